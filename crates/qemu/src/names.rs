//! The names of everything Aquifer puts into a QEMU or beside it, and the only place that builds them.
//!
//! No name is guessed from a list: whether something is ours is decided by these prefixes alone, so that a run
//! which remembers nothing can find what a killed one left. Invariant: no name of one repository is ever taken
//! for one of another, nor one of one domain's files for another domain's.
//!
//! | thing | name |
//! |---|---|
//! | overlay node of disk *i* | `aqf-<8 hex of the repository>-d<i>` (QEMU allows 31 bytes) |
//! | file node under it | `aqf-<8 hex>-f<i>` |
//! | filter over disk *i*, and the node that shows its snapshot | `aqf-<8 hex>-c<i>`, `aqf-<8 hex>-a<i>` |
//! | job and export of disk *i* | `aqf-<8 hex>-<backup uuid>-<i>` |
//! | job that makes a scratch beside a TLS monitor | `aqf-<8 hex>-format-<i>` |
//! | NBD export name | `<backup uuid>/<disk>` |
//! | bitmap that marks a backup's instant on a disk | `aqf-<32 hex of the repository>-<backup uuid>-<disk>` (QEMU allows 1023 bytes) |
//! | bitmap that marks the node under a filter | `aqf-<32 hex>-under-<filter>` |
//! | bitmap that marks a guest which we paused | `aqf-<32 hex>-paused` |
//! | bitmap of the changes, on the overlay | `delta` |
//! | scratch file | `aquifer-<8 hex>-<domain>+<disk>.qcow2` |
//! | NBD socket | `aquifer-<8 hex>-<domain>.nbd`, hashed when the path would not fit a socket address |

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Longest path of a unix socket: `sun_path` less its terminator.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What every node, job and export of any Aquifer repository begins with.
pub(crate) const FAMILY: &str = "aqf-";
/// The bitmap on an overlay that names what changed since the base.
pub(crate) const DELTA: &str = "delta";
/// How the bitmap goes on that marks a node under a filter; no uuid begins so.
const UNDER: &str = "under-";
/// How the bitmap goes on that marks a paused guest.
const PAUSED: &str = "paused";
/// Characters of a hyphenated uuid.
const UUID_CHARS: usize = 36;
/// Longest file name that every file system takes.
const FILE_NAME_BYTES_MAX: usize = 255;

/// The names of one repository on one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    prefix: String,
    bitmap_prefix: String,
    file_prefix: String,
}

impl Names {
    /// `repository` is the repository's id as 32 hex digits.
    pub(crate) fn new(repository: &str, domain: &str) -> Result<Self> {
        if repository.len() != 32 || !repository.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::RepositoryId { text: repository.to_owned() });
        }
        let short = repository[..8].to_ascii_lowercase();
        Ok(Self {
            prefix: format!("{FAMILY}{short}-"),
            bitmap_prefix: format!("{FAMILY}{}-", repository.to_ascii_lowercase()),
            file_prefix: format!("aquifer-{short}-{}", escaped(domain)),
        })
    }

    /// Whether a node, job or export is of this repository.
    pub(crate) fn owns(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    pub(crate) fn overlay(&self, disk: usize) -> String {
        format!("{}d{disk}", self.prefix)
    }

    pub(crate) fn file(&self, disk: usize) -> String {
        format!("{}f{disk}", self.prefix)
    }

    pub(crate) fn filter(&self, disk: usize) -> String {
        format!("{}c{disk}", self.prefix)
    }

    pub(crate) fn access(&self, disk: usize) -> String {
        format!("{}a{disk}", self.prefix)
    }

    /// Whether a node is a filter of this repository.
    pub(crate) fn is_filter(&self, node: &str) -> bool {
        node.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('c'))
    }

    /// Whether a node shows a snapshot of this repository.
    pub(crate) fn is_access(&self, node: &str) -> bool {
        node.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('a'))
    }

    /// The bitmap that marks the node over which a filter stands.
    pub(crate) fn under(&self, filter: &str) -> String {
        format!("{}{UNDER}{filter}", self.bitmap_prefix)
    }

    /// The bitmap that marks a guest which was paused for the instant.
    pub(crate) fn paused(&self) -> String {
        format!("{}{PAUSED}", self.bitmap_prefix)
    }

    /// Whether a bitmap is one of these two kinds.
    pub(crate) fn is_filter_mark(&self, bitmap: &str) -> bool {
        bitmap.strip_prefix(&self.bitmap_prefix).is_some_and(|rest| rest == PAUSED || rest.starts_with(UNDER))
    }

    pub(crate) fn format_job(&self, disk: usize) -> String {
        format!("{}format-{disk}", self.prefix)
    }

    /// Id of the backup job and of the export of a disk.
    pub(crate) fn session(&self, backup: &str, disk: usize) -> String {
        format!("{}{backup}-{disk}", self.prefix)
    }

    /// What the ids of the jobs and exports of `backup` have in common.
    pub(crate) fn session_prefix(&self, backup: &str) -> String {
        session_of(&self.session(backup, 0)).to_owned()
    }

    /// The bitmap that marks the instant of `backup` on the disk called `disk`.
    pub(crate) fn bitmap(&self, backup: &str, disk: &str) -> String {
        format!("{}{backup}-{}", self.bitmap_prefix, escaped(disk))
    }

    /// Uuid and escaped disk of a bitmap of this repository; `None` for anybody else's.
    pub(crate) fn read_bitmap<'a>(&self, name: &'a str) -> Option<(&'a str, &'a str)> {
        let rest = name.strip_prefix(&self.bitmap_prefix)?;
        let (backup, disk) = (rest.get(..UUID_CHARS)?, rest.get(UUID_CHARS..)?.strip_prefix('-')?);
        let uuid = backup.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        uuid.then_some((backup, disk))
    }

    /// Whether a file of the scratch folder is this domain's.
    pub(crate) fn owns_file(&self, name: &str) -> bool {
        name.strip_prefix(&self.file_prefix)
            .is_some_and(|rest| rest.starts_with('+') && rest.ends_with(".qcow2"))
    }

    /// What the scratch files of this domain begin with.
    pub(crate) fn scratch_prefix(&self) -> String {
        format!("{}+", self.file_prefix)
    }

    pub(crate) fn scratch(&self, disk: &str) -> String {
        let name = format!("{}+{}.qcow2", self.file_prefix, escaped(disk));
        if name.len() <= FILE_NAME_BYTES_MAX {
            return name;
        }
        format!("{}+{:016x}.qcow2", self.file_prefix, fnv1a(disk.as_bytes()))
    }

    /// Path of our NBD server's socket in `folder`; fails when even the hashed name does not fit.
    pub(crate) fn socket(&self, folder: &Path) -> Result<PathBuf> {
        socket_path(folder, &self.file_prefix, ".nbd")
    }
}

/// Whose a job or an export is: its id without the number of the disk.
pub(crate) fn session_of(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(session, _)| session)
}

/// `folder/stem+suffix`, or with the stem hashed when that is too long for a unix socket.
pub(crate) fn socket_path(folder: &Path, stem: &str, suffix: &str) -> Result<PathBuf> {
    let plain = folder.join(format!("{stem}{suffix}"));
    if plain.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(plain);
    }
    let hashed = folder.join(format!("aqf-{:016x}{suffix}", fnv1a(stem.as_bytes())));
    let bytes = hashed.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(Error::SocketPathTooLong { folder: folder.to_owned(), bytes });
    }
    Ok(hashed)
}

/// Everything outside letters, digits, `.`, `_` and `-` as `%XX`: safe in a file name, and one to one.
/// A long domain is replaced by its hash, so that the disk's name still fits.
fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let escaped = percent_encoded(text, keep);
    if escaped.len() <= 100 { escaped } else { format!("%{:016x}", fnv1a(text.as_bytes())) }
}

/// Percent-encoding of every byte for which `keep` is false.
pub(crate) fn percent_encoded(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if keep(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// FNV-1a, 64 bit: stable for ever, which a name on disk needs; nothing here needs a strong hash.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: &str = "0123456789abcdef0123456789abcdef";

    fn names(domain: &str) -> Names {
        Names::new(REPOSITORY, domain).unwrap()
    }

    #[test]
    fn node_names_fit_qemus_31_bytes_for_a_hundred_thousand_disks() {
        assert!(names("web01").overlay(99_999).len() <= 31);
        assert!(names("web01").file(99_999).len() <= 31);
    }

    #[test]
    fn a_domain_with_a_dash_cannot_be_taken_for_another_domains_disk() {
        assert_ne!(names("a-b").scratch("c"), names("a").scratch("b-c"));
        assert!(!names("a").owns_file(&names("a-b").scratch("c")));
        assert!(names("a-b").owns_file(&names("a-b").scratch("c")));
    }

    #[test]
    fn a_domain_named_like_a_path_stays_inside_the_folder() {
        let name = names("../../etc").scratch("/dev/vda");
        assert!(!name.contains('/'), "{name}");
    }

    #[test]
    fn another_repositorys_names_are_not_ours() {
        let other = Names::new("ffffffff89abcdef0123456789abcdef", "web01").unwrap();
        assert!(!names("web01").owns(&other.overlay(0)));
        assert!(names("web01").owns(&names("web01").session("u", 0)));
    }

    #[test]
    fn a_bitmap_names_repository_backup_and_disk_and_is_read_back() {
        let uuid = "0190163d-8694-739b-aea5-966c26f8ad90";
        let name = names("web01").bitmap(uuid, "virtio-disk0");
        assert_eq!(name, format!("aqf-{REPOSITORY}-{uuid}-virtio-disk0"));
        assert_eq!(names("web01").read_bitmap(&name), Some((uuid, "virtio-disk0")));
        assert_eq!(names("web01").read_bitmap(&names("x").bitmap(uuid, &"ü/".repeat(99))).unwrap().0, uuid);
        for foreign in
            ["libvirt-1", "aqf-", &format!("aqf-{REPOSITORY}-{uuid}"), &format!("aqf-{REPOSITORY}-x-vda")]
        {
            assert_eq!(names("web01").read_bitmap(foreign), None, "{foreign}");
        }
        let other = Names::new("ffffffff89abcdef0123456789abcdef", "web01").unwrap();
        assert_eq!(other.read_bitmap(&name), None);
    }

    #[test]
    fn a_long_domain_gets_a_hashed_socket_and_a_long_folder_is_refused() {
        let long = names(&"x".repeat(90));
        let path = long.socket(Path::new("/var/tmp/some/where")).unwrap();
        assert!(path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        assert!(long.socket(&PathBuf::from(format!("/{}", "y".repeat(100)))).is_err());
    }

    #[test]
    fn names_of_any_length_fit_a_file_system() {
        assert!(names(&"ü".repeat(300)).scratch(&"ü".repeat(300)).len() <= FILE_NAME_BYTES_MAX);
    }

    #[test]
    fn a_repository_id_that_is_no_id_is_refused() {
        assert!(Names::new("abc", "web01").is_err());
        assert!(Names::new(&"ä".repeat(16), "web01").is_err());
    }
}
