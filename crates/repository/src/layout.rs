//! The only builder of keys: from names of the format to names of objects.
//!
//! Invariant: what is built here is inside the store's grammar, which the test holds for the extremes of every number.

use aquifer_format::id::{PackName, SegmentName, SessionId, SlotId, StoreId};
use aquifer_format::key;
use aquifer_store::Key;

/// Parses what the format's own key functions wrote.
fn built(name: &str) -> Key {
    Key::parse(name)
        .expect("the format's names are fixed words and fixed-width hex, which is the store's grammar")
}

/// The object that describes the repository.
pub(crate) fn format() -> Key {
    built(key::FORMAT)
}

/// A key slot.
pub(crate) fn slot(id: SlotId) -> Key {
    built(&key::slot(id))
}

/// An entry of the log.
pub(crate) fn log(seq: u64) -> Key {
    built(&key::log(seq))
}

/// A checkpoint.
pub(crate) fn checkpoint(seq: u64) -> Key {
    built(&key::checkpoint(seq))
}

/// A pack.
pub(crate) fn pack(name: &PackName) -> Key {
    built(&key::pack(name))
}

/// A segment.
pub(crate) fn segment(name: &SegmentName) -> Key {
    built(&key::segment(name))
}

/// A heartbeat.
pub(crate) fn heartbeat(session: &SessionId) -> Key {
    built(&key::heartbeat(session))
}

/// The permanent object of the log store: it tells which store this is, and re-creating it must fail.
pub(crate) fn store_mark(store: &StoreId) -> Key {
    built(&format!("probe/{store}"))
}

/// Prefixes of listings.
pub(crate) const SLOTS: &str = "keys/";
pub(crate) const ENTRIES: &str = "log/";
pub(crate) const CHECKPOINTS: &str = "ckpt/";
pub(crate) const PACKS: &str = "packs/";
pub(crate) const SEGMENTS: &str = "index/";
pub(crate) const HEARTBEATS: &str = "hb/";
pub(crate) const LOG: &str = "log/";

/// The number of a log entry or checkpoint whose key came from a listing.
pub(crate) fn number(key: &Key) -> Option<u64> {
    u64::from_str_radix(last_part(key), 16).ok()
}

/// The last part of a key, for names that came from a listing.
pub(crate) fn last_part(key: &Key) -> &str {
    key.as_str().rsplit('/').next().unwrap_or_default()
}

/// The name that a listed key has below `prefix`.
pub(crate) fn below<T: std::str::FromStr>(prefix: &str, key: &Key) -> Option<T> {
    key.as_str().strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_can_be_built_is_inside_the_grammar() {
        for byte in [0, 0x0a, 0xff] {
            let session = SessionId([byte; 16]);
            for number in [0, u32::MAX] {
                pack(&PackName { session, number });
                segment(&SegmentName { session, number });
            }
            heartbeat(&session);
            slot(SlotId([byte; 8]));
            store_mark(&StoreId([byte; 16]));
        }
        for seq in [0, 1, u64::MAX] {
            log(seq);
            checkpoint(seq);
        }
        assert_eq!(last_part(&log(1)), "0000000000000001");
        assert_eq!(format().as_str(), "format");
    }
}
