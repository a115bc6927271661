//! Any object of a repository as JSON: what it says, without its data.
//!
//! Invariant: secrets stay inside; of a key slot only the public part is shown.

use aquifer_engine::repository::format::{
    self, BlobKind, Codec, FOOTER_BYTES, KeyRing, PACK_HEADER_BYTES, PackHeader, PackKind, RepositoryConfig,
    SegmentPack, TableRow,
};
use aquifer_engine::{Error, Kind, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// The object under `key`, decoded by what its key says it is.
///
/// # Errors
/// `Corrupt` when the bytes are not such an object, `Denied` when the key does not open it, `Unsupported` for a key
/// that names nothing decodable.
pub(super) fn object(ring: &KeyRing, key: &str, bytes: &[u8]) -> Result<Value> {
    let (folder, name) = key.split_once('/').unwrap_or((key, ""));
    match folder {
        "format" => Ok(config(&opened(RepositoryConfig::decode(bytes))?)),
        "log" => json_of(&opened(format::open_entry(ring, number(key, name)?, bytes))?),
        "ckpt" => json_of(&opened(format::decode_checkpoint(ring, number(key, name)?, bytes))?),
        "hb" => json_of(&opened(format::open_heartbeat(ring, opened(name.parse())?, bytes))?),
        "packs" => pack(ring, bytes),
        "index" => {
            let packs = opened(format::decode_segment(ring, opened(name.parse())?, bytes))?;
            Ok(packs.iter().map(segment_pack).collect())
        }
        _ => Err(Error::new(Kind::Unsupported, format!("{key}: nothing of it can be shown"))
            .hint("format, log/…, ckpt/…, packs/…, index/… and hb/… can")),
    }
}

/// What the format said, as an error of the engine.
///
/// # Errors
/// What the format said.
pub(super) fn opened<T>(answer: format::Result<T>) -> Result<T> {
    Ok(answer.map_err(aquifer_engine::repository::Error::from)?)
}

fn segment_pack(pack: &SegmentPack) -> Value {
    json!({
        "name": pack.name.to_string(),
        "stored_as": pack.stored_as.to_string(),
        "bytes": pack.bytes,
        "kind": pack_kind(pack.kind),
        "hash": hex(&pack.hash),
        "blobs": rows(&pack.rows),
    })
}

fn json_of(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::caused(Kind::Internal, error))
}

fn number(key: &str, hex: &str) -> Result<u64> {
    u64::from_str_radix(hex, 16)
        .map_err(|error| Error::caused(Kind::Invalid, error).about(format_args!("{key}: the slot's number")))
}

fn config(config: &RepositoryConfig) -> Value {
    json!({
        "version": config.version,
        "repository": config.repository.to_string(),
        "log_store": config.log_store.to_string(),
        "chunk_bytes": config.chunk_bytes,
        "fan_out": config.fan_out,
        "encrypted": config.encrypted,
    })
}

fn pack(ring: &KeyRing, bytes: &[u8]) -> Result<Value> {
    let short =
        || Error::new(Kind::Corrupt, format!("a pack of {} bytes has no header and footer", bytes.len()));
    let header = opened(PackHeader::decode(bytes.get(..PACK_HEADER_BYTES).ok_or_else(short)?))?;
    let tail = bytes.len().checked_sub(FOOTER_BYTES).and_then(|at| bytes.get(at..)).ok_or_else(short)?;
    let total = u64::try_from(bytes.len()).map_err(|_| short())?;
    let footer = opened(format::decode_footer(tail, total))?;
    let (start, length) = (usize::try_from(footer.table_offset), usize::try_from(footer.table_bytes));
    let (Ok(start), Ok(length)) = (start, length) else { return Err(short()) };
    let table = bytes.get(start..start.saturating_add(length)).ok_or_else(short)?;
    let table = opened(format::decode_table(ring, &header, &footer, table))?;
    Ok(json!({
        "name": header.name.to_string(),
        "repository": header.repository.to_string(),
        "kind": pack_kind(header.kind),
        "encrypted": header.sealed,
        "epoch": header.epoch.to_string(),
        "bytes": total,
        "hash": hex(&footer.hash),
        "blobs": rows(&table),
    }))
}

fn rows(rows: &[TableRow]) -> Value {
    rows.iter()
        .map(|row| {
            json!({
                "id": row.id.to_string(),
                "kind": match row.kind {
                    BlobKind::Data => "data",
                    BlobKind::Tree => "tree",
                    BlobKind::Record => "record",
                },
                "codec": match row.codec {
                    Codec::Raw => "raw",
                    Codec::Zstd => "zstd",
                },
                "offset": row.offset,
                "stored_bytes": row.stored_bytes,
                "plain_bytes": row.plain_bytes,
            })
        })
        .collect()
}

fn pack_kind(kind: PackKind) -> &'static str {
    match kind {
        PackKind::Data => "data",
        PackKind::Meta => "meta",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use aquifer_engine::repository::format::{Heartbeat, RepositoryId, SessionId, StoreId, seal_heartbeat};

    use super::*;

    fn plain() -> (RepositoryConfig, KeyRing) {
        let config = RepositoryConfig {
            version: 1,
            repository: RepositoryId([1; 16]),
            log_store: StoreId([2; 16]),
            chunk_bytes: 128 << 10,
            fan_out: 256,
            encrypted: false,
        };
        let ring = KeyRing::plain(&config).unwrap();
        (config, ring)
    }

    #[test]
    fn an_object_is_decoded_by_what_its_key_says() {
        let (config, ring) = plain();
        assert_eq!(object(&ring, "format", &config.encode()).unwrap()["chunk_bytes"], 128 << 10);
        let session = SessionId::new([3; 10], 4);
        let beat = Heartbeat { session, beat: 5, wall_ms: 6, host: "h".to_owned(), note: "n".to_owned() };
        let sealed = seal_heartbeat(&ring, [7; 32], &beat).unwrap();
        assert_eq!(object(&ring, &format!("hb/{session}"), &sealed).unwrap()["beat"], 5);
    }

    #[test]
    fn bytes_that_are_no_such_object_are_corrupt() {
        let (_, ring) = plain();
        for key in ["format", "log/0000000000000001", "packs/00000000000000000000000000000001/00000001"] {
            let error = object(&ring, key, b"garbage").unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{key}: {error}");
        }
    }

    #[test]
    fn a_key_that_names_nothing_to_show_is_refused() {
        let (_, ring) = plain();
        assert_eq!(object(&ring, "keys/0101010101010101", b"").unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(object(&ring, "log/xyz", b"").unwrap_err().kind(), Kind::Invalid);
    }
}
