//! A stranger's reader: restores disks from a repository's files with what docs/FORMAT.md says, and with nothing of
//! the product's own code.
//!
//! It trusts no index: packs are found by listing them, blobs by the packs' own tables. It reads, checks every tag and
//! every hash on its way, and gives up on anything that it does not expect. What it does not check is who signed the log.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use anyhow::{Context, Result, bail, ensure};
use aquifer_testkit::{Aquifer, tempdir};
use serde_json::Value;

use crate::Outcome;
use crate::rig::{sample, text};

type Hash = [u8; 32];

/// Reads numbers and fields off the front of some bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("an object ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn number<const N: usize>(&mut self) -> Result<usize> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        Ok(usize::try_from(u64::from_le_bytes(wide))?)
    }

    fn expect(&mut self, magic: &[u8]) -> Result<()> {
        let found = self.take(magic.len())?;
        ensure!(found == magic, "{found:?} instead of {:?}", String::from_utf8_lossy(magic));
        Ok(())
    }
}

/// The key of one object, or none in a plain repository.
struct Cipher(Option<Hash>);

impl Cipher {
    fn new(base: Option<Hash>, repository: &[u8], key: &str, salt: &[u8]) -> Cipher {
        Cipher(base.map(|base| derive("object key", &[&base, repository, key.as_bytes(), salt])))
    }

    fn open(&self, index: u32, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let Some(key) = self.0 else {
            let (body, tag) = sealed.split_last_chunk::<16>().context("a box without a tag")?;
            let sum = blake3::Hasher::new().update(aad).update(body).finalize();
            ensure!(sum.as_bytes()[..16] == *tag, "a box has another checksum");
            return Ok(body.to_vec());
        };
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&index.to_le_bytes());
        let cipher = Aes256Gcm::new(&key.into());
        let opened = cipher.decrypt(&Nonce::from(nonce), Payload { msg: sealed, aad });
        opened.map_err(|_| anyhow::anyhow!("box {index} does not open"))
    }
}

fn derive(purpose: &str, parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(&format!("aquifer v1 2026-11 {purpose}"));
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    hasher.finalize().into()
}

fn unpack(codec: usize, body: Vec<u8>, plain_bytes: usize) -> Result<Vec<u8>> {
    let plain = match codec {
        0 => body,
        1 => zstd::bulk::decompress(&body, plain_bytes)?,
        other => bail!("codec {other}"),
    };
    ensure!(plain.len() == plain_bytes, "{} bytes instead of {plain_bytes}", plain.len());
    Ok(plain)
}

/// Checks an object's last 32 bytes, the hash of all others, and returns these.
fn hashed(bytes: &[u8]) -> Result<&[u8]> {
    let (content, hash) = bytes.split_last_chunk::<32>().context("an object without a hash")?;
    ensure!(blake3::hash(content) == blake3::Hash::from(*hash), "an object has another hash");
    Ok(content)
}

/// Where a blob lies, and what its pack's header says.
struct Blob {
    pack: PathBuf,
    header: Vec<u8>,
    row: Row,
}

struct Row {
    id: Hash,
    offset: usize,
    stored_bytes: usize,
    plain_bytes: usize,
    codec: usize,
    kind: usize,
    ordinal: u32,
}

struct Reader {
    root: PathBuf,
    repository: Vec<u8>,
    fingerprint: Hash,
    chunk_bytes: usize,
    /// The generations of the master key; none in a plain repository.
    generations: Option<Vec<Hash>>,
    blobs: HashMap<Hash, Blob>,
    /// Each committed backup's uuid and the id of its record.
    commits: Vec<(String, Hash)>,
}

impl Reader {
    fn open(root: &Path, secret: Option<&[u8]>) -> Result<Reader> {
        let format = fs::read(root.join("format"))?;
        let mut fields = Bytes(hashed(&format)?);
        fields.expect(b"AQUIFER\n")?;
        ensure!(fields.number::<4>()? == 1, "another version");
        ensure!(fields.number::<4>()? == 0, "unknown features");
        let repository = fields.take(16)?.to_vec();
        fields.take(16)?;
        let chunk_bytes = fields.number::<4>()?;
        ensure!(fields.number::<2>()? == 256, "another fan-out");
        let encrypted = fields.number::<1>()? == 1;
        ensure!(encrypted == secret.is_some(), "encrypted: {encrypted}");

        let mut reader = Reader {
            root: root.to_owned(),
            repository,
            fingerprint: blake3::hash(&format).into(),
            chunk_bytes,
            generations: None,
            blobs: HashMap::new(),
            commits: Vec::new(),
        };
        if let Some(secret) = secret {
            let slots = list(&root.join("keys"))?;
            let opened = slots.iter().find_map(|slot| reader.open_slot(slot, secret).ok());
            reader.generations = Some(opened.context("the secret opens no slot")?);
        }
        reader.read_log()?;
        for session in list(&root.join("packs"))? {
            for pack in list(&session)? {
                reader.read_table(&pack)?;
            }
        }
        Ok(reader)
    }

    fn open_slot(&self, path: &Path, secret: &[u8]) -> Result<Vec<Hash>> {
        let bytes = fs::read(path)?;
        let content = hashed(&bytes)?;
        let mut fields = Bytes(content);
        fields.expect(b"AQF-KEYS")?;
        ensure!(
            (fields.number::<2>()?, fields.number::<1>()?, fields.number::<1>()?) == (1, 1, 0),
            "another kind of slot"
        );
        let costs = [fields.number::<4>()?, fields.number::<4>()?, fields.number::<4>()?];
        let [memory_kib, passes, lanes] = costs.map(|cost| u32::try_from(cost).unwrap_or(u32::MAX));
        let stored_bytes = fields.number::<4>()?;
        ensure!(
            fields.take(16)? == self.repository && fields.take(32)? == self.fingerprint,
            "another repository's slot"
        );
        let salt = fields.take(32)?;

        let params = argon2::Params::new(memory_kib, passes, lanes, Some(32));
        let params = params.map_err(|error| anyhow::anyhow!("{error}"))?;
        let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut derived = [0; 32];
        argon.hash_password_into(secret, salt, &mut derived).map_err(|error| anyhow::anyhow!("{error}"))?;
        let key = self.key_of(path)?;
        let aad = [&content[..108], key.as_bytes()].concat();
        let cipher = Cipher::new(Some(derived), &self.repository, &key, salt);
        let plain = cipher.open(0, &aad, fields.take(stored_bytes)?)?;
        let mut plain = Bytes(&plain);
        (0..plain.number::<4>()?).map(|_| plain.array()).collect()
    }

    /// The base key of a purpose, under a generation of the master key.
    fn base(&self, generation: usize, purpose: &str, epoch: &[u8]) -> Result<Option<Hash>> {
        let Some(generations) = &self.generations else { return Ok(None) };
        let master =
            generation.checked_sub(1).and_then(|at| generations.get(at)).context("no such generation")?;
        Ok(Some(derive(purpose, &[master, epoch])))
    }

    /// Replays the log: each entry must name its predecessor's hash.
    fn read_log(&mut self) -> Result<()> {
        let mut previous = self.fingerprint;
        for (seq, path) in (1..).zip(list(&self.root.join("log"))?) {
            let bytes = fs::read(&path)?;
            let plain = self.open_log(seq, &bytes, &self.key_of(&path)?)?;
            let entry: Value = serde_json::from_slice(plain.get(64..).context("no signature")?)?;
            ensure!(
                entry["seq"] == seq && entry["prev"] == hex(&previous),
                "the chain is broken at {seq}: {entry}"
            );
            previous = blake3::hash(&bytes).into();
            for commit in
                entry["bodies"].as_array().into_iter().flatten().filter_map(|body| body.get("commit"))
            {
                let uuid = commit["summary"]["backup"].as_str().context("no backup")?.to_owned();
                self.commits.push((uuid, id(&commit["record"])?));
            }
        }
        Ok(())
    }

    fn open_log(&self, seq: usize, bytes: &[u8], key: &str) -> Result<Vec<u8>> {
        let content = hashed(bytes)?;
        let mut fields = Bytes(content);
        fields.expect(b"AQF-LOG\n")?;
        let (version, sealed, codec) = (fields.number::<2>()?, fields.number::<1>()?, fields.number::<1>()?);
        ensure!(
            version == 1 && (sealed == 1) == self.generations.is_some(),
            "version {version}, sealed {sealed}"
        );
        let generation = fields.number::<4>()?;
        ensure!(fields.take(16)? == self.repository, "another repository's entry");
        let salt = fields.take(32)?;
        let (plain_bytes, stored_bytes) = (fields.number::<4>()?, fields.number::<4>()?);
        ensure!(fields.number::<8>()? == seq && fields.take(16)? == [0; 16], "an entry in another slot");
        // The first entry binds the format object.
        let bound: &[u8] = if seq == 1 { &self.fingerprint } else { &[] };
        let aad = [&content[..96], key.as_bytes(), bound].concat();
        let cipher = Cipher::new(self.base(generation, "log", &[])?, &self.repository, key, salt);
        unpack(codec, cipher.open(0, &aad, fields.take(stored_bytes)?)?, plain_bytes)
    }

    /// Takes up the blobs of a pack from its own table.
    fn read_table(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path)?;
        let content = hashed(&bytes)?;
        let header = content.get(..112).context("no header")?;
        let footer = content.len().checked_sub(24).context("no footer")?;
        let mut fields = Bytes(&content[footer..]);
        fields.expect(b"AQF-PEND")?;
        let (offset, table_bytes, count) =
            (fields.number::<4>()?, fields.number::<4>()?, fields.number::<4>()?);
        let words = [count, offset].map(|word| u32::try_from(word).unwrap_or(u32::MAX).to_le_bytes());
        let aad = [header, b"AQFT", &words[0], &words[1]].concat();
        let sealed = content.get(offset..offset + table_bytes).context("no table")?;
        let table = self.pack_cipher(header)?.open(0xffff, &aad, sealed)?;
        ensure!(table.len() == count * 48, "a table of {} bytes for {count} rows", table.len());
        for row in table.chunks(48) {
            let mut row = Bytes(row);
            let row = Row {
                id: row.array()?,
                offset: row.number::<4>()?,
                stored_bytes: row.number::<4>()?,
                plain_bytes: row.number::<4>()?,
                codec: row.number::<1>()?,
                kind: row.number::<1>()?,
                ordinal: u32::try_from(row.number::<2>()?)?,
            };
            self.blobs.insert(row.id, Blob { pack: path.to_owned(), header: header.to_vec(), row });
        }
        Ok(())
    }

    fn pack_cipher(&self, header: &[u8]) -> Result<Cipher> {
        let mut fields = Bytes(header);
        fields.expect(b"AQF-PACK")?;
        ensure!(fields.number::<2>()? == 1, "another version of a pack");
        fields.take(2)?;
        let generation = fields.number::<4>()?;
        let epoch = fields.take(8)?;
        let number = fields.number::<4>()?;
        fields.take(4)?;
        let (repository, session, salt) = (fields.take(16)?, fields.take(16)?, fields.take(32)?);
        let key = format!("packs/{}/{number:08x}", hex(session));
        Ok(Cipher::new(self.base(generation, "data epoch", epoch)?, repository, &key, salt))
    }

    /// A blob's plain bytes, which hash to its id.
    fn blob(&self, id: &Hash, kind: usize) -> Result<Vec<u8>> {
        let Blob { pack, header, row } =
            self.blobs.get(id).with_context(|| format!("no blob {}", hex(id)))?;
        ensure!(row.kind == kind, "blob {} is of kind {}", hex(id), row.kind);
        let bytes = fs::read(pack)?;
        let mut fields = Bytes(bytes.get(row.offset..).context("a blob behind its pack's end")?);
        let frame = fields.take(48)?;
        let aad = [&header[..], frame].concat();
        let body = self.pack_cipher(header)?.open(row.ordinal, &aad, fields.take(row.stored_bytes)?)?;
        let plain = unpack(row.codec, body, row.plain_bytes)?;
        let purpose = ["chunk id data", "chunk id tree", "chunk id record"][kind];
        let root = self.generations.as_ref().map_or([0; 32], |generations| generations[0]);
        let named = blake3::keyed_hash(&derive(purpose, &[&root]), &plain);
        ensure!(named == blake3::Hash::from(*id), "blob {} hashes to {named}", hex(id));
        Ok(plain)
    }

    /// The bytes of one disk of a backup.
    fn disk(&self, backup: &str, name: &str) -> Result<Vec<u8>> {
        let commit = self.commits.iter().find(|(uuid, _)| uuid == backup);
        let record: Value = serde_json::from_slice(&self.blob(&commit.context("no such backup")?.1, 2)?)?;
        let disks = record["disks"].as_array().context("a record without disks")?;
        let disk = disks.iter().find(|disk| disk["name"] == name).context("no such disk")?;
        let size = usize::try_from(disk["size_bytes"].as_u64().context("no size")?)?;
        let mut content = vec![0; size];
        if !disk["root"].is_null() {
            let mut levels = 1;
            while self.chunk_bytes * 256_usize.pow(levels) < size {
                levels += 1;
            }
            self.read_node(&id(&disk["root"])?, levels - 1, 0, &mut content)?;
        }
        Ok(content)
    }

    /// Reads the subtree of a node of this level, whose first chunk is number `first`.
    fn read_node(&self, id: &Hash, level: u32, first: usize, content: &mut [u8]) -> Result<()> {
        let node = self.blob(id, 1)?;
        let mut fields = Bytes(&node);
        fields.expect(b"AQFN")?;
        ensure!(
            fields.number::<1>()? == usize::try_from(level)? && fields.number::<1>()? == 0,
            "a node of another level"
        );
        fields.take(2)?;
        let present = fields.take(32)?;
        for slot in (0..256).filter(|slot| present[slot / 8] & (1 << (slot % 8)) != 0) {
            let child = fields.array()?;
            let chunk = first + slot * 256_usize.pow(level);
            if level > 0 {
                self.read_node(&child, level - 1, chunk, content)?;
                continue;
            }
            let plain = self.blob(&child, 0)?;
            let from = chunk * self.chunk_bytes;
            let target =
                content.get_mut(from..from + plain.len()).context("a chunk behind the end of the disk")?;
            target.copy_from_slice(&plain);
        }
        Ok(())
    }

    /// The key of an object: its path in the repository.
    fn key_of(&self, path: &Path) -> Result<String> {
        Ok(text(path.strip_prefix(&self.root)?))
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| text(folder))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn id(value: &Value) -> Result<Hash> {
    let digits = value.as_str().context("no id")?;
    ensure!(digits.len() == 64, "{digits} is no id");
    let mut id = [0; 32];
    for (byte, pair) in id.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16)?;
    }
    Ok(id)
}

fn restored_by_a_stranger(init: &[&str], secret: Option<&[u8]>, bytes: usize) -> Outcome {
    let folder = tempdir()?;
    let image = folder.path().join("source.raw");
    sample(&image, bytes)?;
    let aquifer = Aquifer::new(folder.path())?;
    let run = |arguments: &[&str]| {
        let mut command = aquifer.command(arguments);
        if secret.is_none() {
            command.env_remove("AQUIFER_PASSWORD_FILE");
        }
        aquifer.start_command(&command)?.wait()
    };
    run(&[&["repository", "init"], init].concat())?.ok()?;

    let mut backups = Vec::new();
    for fill in [0x11, 0x22] {
        let mut content = fs::read(&image)?;
        content[bytes / 8..bytes / 8 + 300_000].fill(fill);
        fs::write(&image, &content)?;
        let source = format!("root={}", text(&image));
        let done = run(&["backup", "vm", "--image", &source])?.ok()?.event("done")?;
        backups.push((done["uuid"].as_str().context("no uuid")?.to_owned(), content));
    }
    let reader = Reader::open(&aquifer.repository(), secret)?;
    ensure!(reader.commits.len() == 2, "{:?}", reader.commits);
    for (uuid, content) in backups {
        ensure!(reader.disk(&uuid, "root")? == content, "backup {uuid} reads differently");
    }
    Ok(())
}

#[test]
fn a_stranger_restores_every_backup_of_an_encrypted_repository() -> Outcome {
    restored_by_a_stranger(&[], Some(b"correct horse battery staple"), 5 << 20)
}

#[test]
fn a_stranger_restores_every_backup_of_a_plain_repository() -> Outcome {
    restored_by_a_stranger(&["--no-encryption"], None, 5 << 20)
}

#[test]
fn a_stranger_restores_a_disk_whose_tree_has_two_levels_and_a_short_last_chunk() -> Outcome {
    let init = ["--chunk-size", "64KiB"];
    restored_by_a_stranger(&init, Some(b"correct horse battery staple"), (20 << 20) + 512)
}

#[test]
fn a_stranger_restores_the_golden_repositories() -> Outcome {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/format/tests/golden/v1");
    for (name, secret) in [("encrypted", Some(&b"correct horse battery staple"[..])), ("plain", None)] {
        let reader = Reader::open(&golden.join(name), secret).with_context(|| name)?;
        let (uuid, _) = reader.commits.first().context("no backup")?;
        let disk = reader.disk(uuid, "vda")?;
        let chunk = 64 << 10;
        let prose =
            |bytes| b"All work and no play makes Jack a dull boy. ".iter().copied().cycle().take(bytes);
        ensure!(disk.len() == 7 * chunk + 1024, "{} bytes", disk.len());
        ensure!(disk[..chunk].iter().copied().eq(prose(chunk)), "chunk 0 has another content");
        ensure!(disk[chunk..2 * chunk].iter().any(|&byte| byte != 0), "chunk 1, of noise, is zero");
        ensure!(disk[2 * chunk..7 * chunk].iter().all(|&byte| byte == 0), "chunks 2 to 6 are not zero");
        ensure!(disk[7 * chunk..].iter().copied().eq(prose(1024)), "chunk 7 has another content");
        ensure!(reader.disk(uuid, "vdb")?.iter().all(|&byte| byte == 0), "an all-zero disk is not");
    }
    Ok(())
}
