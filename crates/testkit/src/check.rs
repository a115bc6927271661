//! Proves that raw images are one point in the guest's history.
//!
//! [`check`] finds the only write M whose state the images can be and compares every byte of every image with it. It
//! believes nothing else: not the backup's own hashes, not what the guest says. It reads the images and writes nothing.
//!
//! Invariant: a [`Moment`] is returned only when all bytes of all images are those of that moment and it lies in the window.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::pattern::{BLOCK, Pattern, claimed_write};

/// The point in the guest's history that a set of images shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The first write after which the disks looked like this.
    pub write: u64,
    /// The last such write: later than `write` when the writes between them changed nothing.
    pub last: u64,
    /// Blocks compared, of all images.
    pub blocks: u64,
    /// Blocks of these that hold data.
    pub data_blocks: u64,
}

/// Why a set of images is no point in the guest's history.
#[derive(Debug)]
pub enum Flaw {
    /// An image could not be read, or is too small to have been a guest's disk.
    Unreadable(PathBuf, io::Error),
    /// The images are not the state after any one write.
    Torn {
        /// The newest write seen in any block.
        newest: u64,
        /// Blocks that differ from the state after that write.
        wrong_blocks: u64,
        /// Blocks among these that show an older write, or zero, where the state shows a newer one.
        older: u64,
        /// The first wrong block: image and block number.
        first: (PathBuf, u64),
    },
    /// The images are a point in the history, but not of the time in question.
    OutsideWindow {
        /// The point that they are.
        moment: Moment,
        /// The window asked for.
        window: RangeInclusive<u64>,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Unreadable(path, error) => write!(f, "{}: {error}", path.display()),
            Flaw::Torn { newest, wrong_blocks, older, first: (path, block) } => write!(
                f,
                "not one point in time: newest write {newest}, {wrong_blocks} blocks differ from the state after it \
                 ({older} of them older), first {} block {block}",
                path.display()
            ),
            Flaw::OutsideWindow { moment, window } => write!(
                f,
                "the state after write {}, which is not between {} and {}",
                moment.write,
                window.start(),
                window.end()
            ),
        }
    }
}

impl std::error::Error for Flaw {}

/// How many writes may follow the newest visible one: zeroes leave no mark, and may cover the writes just before them.
const HIDDEN_WRITES_MAX: u64 = 64;

/// Proves that `images`, the guest's disks in their order, are the state after one write within `window`, byte for
/// byte; else says how they are not.
pub fn check(images: &[impl AsRef<Path>], window: RangeInclusive<u64>) -> Result<Moment, Flaw> {
    let open = |path: &_| Image::open(AsRef::<Path>::as_ref(path), None);
    check_opened(&images.iter().map(open).collect::<Result<Vec<_>, _>>()?, window)
}

/// As [`check`], for disks that have grown since their history began: it covers the first `history` bytes of each
/// image, and what lies behind them must be zero.
pub fn check_grown(
    images: &[impl AsRef<Path>],
    history: &[u64],
    window: RangeInclusive<u64>,
) -> Result<Moment, Flaw> {
    assert_eq!(images.len(), history.len(), "each image has its history");
    let open = |(path, &bytes): (&_, &u64)| Image::open(AsRef::<Path>::as_ref(path), Some(bytes));
    check_opened(&images.iter().zip(history).map(open).collect::<Result<Vec<_>, _>>()?, window)
}

fn check_opened(images: &[Image], window: RangeInclusive<u64>) -> Result<Moment, Flaw> {
    let sizes: Vec<u64> = images.iter().map(|image| image.history_bytes).collect();
    let pattern = Pattern::new(&sizes).ok_or_else(|| {
        let path = images.iter().min_by_key(|image| image.history_bytes).map(|image| image.path.clone());
        Flaw::Unreadable(
            path.unwrap_or_default(),
            io::Error::other("too small to be a disk of the test guest"),
        )
    })?;
    let claims = images.iter().map(Image::claims).collect::<Result<Vec<_>, _>>()?;
    let newest = claims.iter().flatten().copied().max().unwrap_or(0);

    let mut shown = pattern.blocks_after(newest);
    let mut write = newest;
    while shown != claims {
        write += 1;
        if write > newest + HIDDEN_WRITES_MAX {
            return Err(torn(images, &claims, &pattern.blocks_after(newest), newest));
        }
        pattern.apply(write, &mut shown);
    }
    compare(images, &pattern, &shown, newest)?;

    let mut last = write;
    while !pattern.apply(last + 1, &mut shown.clone()) {
        last += 1;
    }
    let moment = Moment {
        write,
        last,
        blocks: shown.iter().map(|blocks| blocks.len() as u64).sum(),
        data_blocks: shown.iter().flatten().filter(|&&seq| seq != 0).count() as u64,
    };
    if *window.end() < write || last < *window.start() {
        return Err(Flaw::OutsideWindow { moment, window });
    }
    Ok(moment)
}

fn torn(images: &[Image], claims: &[Vec<u64>], shown: &[Vec<u64>], newest: u64) -> Flaw {
    let mut wrong_blocks = 0;
    let mut older = 0;
    let mut first = None;
    for (image, (claims, shown)) in images.iter().zip(claims.iter().zip(shown)) {
        for (block, (claim, shows)) in (0u64..).zip(claims.iter().zip(shown)) {
            if claim != shows {
                wrong_blocks += 1;
                older += u64::from(claim < shows);
                first.get_or_insert_with(|| (image.path.clone(), block));
            }
        }
    }
    Flaw::Torn { newest, wrong_blocks, older, first: first.unwrap_or_default() }
}

/// Compares every byte of the images with the state, what lies behind the last block of the history (always zero)
/// included.
fn compare(images: &[Image], pattern: &Pattern, shown: &[Vec<u64>], newest: u64) -> Result<(), Flaw> {
    let mut expected = [0; BLOCK];
    for (image, shown) in images.iter().zip(shown) {
        let wrong =
            |block| Err(Flaw::Torn { newest, wrong_blocks: 1, older: 0, first: (image.path.clone(), block) });
        let mut reader = image.reader()?;
        let mut found = [0; BLOCK];
        for (block, &seq) in (0u64..).zip(shown) {
            reader.read_exact(&mut found).map_err(|error| image.unreadable(error))?;
            if seq == 0 {
                expected.fill(0);
            } else {
                pattern.fill(seq, block, &mut expected);
            }
            if found != expected {
                return wrong(block);
            }
        }
        for block in shown.len() as u64.. {
            let mut behind = Vec::with_capacity(BLOCK);
            let read = reader.by_ref().take(BLOCK as u64).read_to_end(&mut behind);
            if read.map_err(|error| image.unreadable(error))? == 0 {
                break;
            }
            if behind.iter().any(|&byte| byte != 0) {
                return wrong(block);
            }
        }
    }
    Ok(())
}

struct Image {
    path: PathBuf,
    /// How much of it the history covers.
    history_bytes: u64,
}

impl Image {
    /// An image whose history covers this much of it, or all of it.
    fn open(path: &Path, history_bytes: Option<u64>) -> Result<Image, Flaw> {
        let unreadable = |error| Flaw::Unreadable(path.to_owned(), error);
        let bytes = path.metadata().map_err(unreadable)?.len();
        let history_bytes = history_bytes.unwrap_or(bytes);
        if bytes < history_bytes {
            return Err(unreadable(io::Error::other(format!(
                "{bytes} bytes, and the disk has {history_bytes}"
            ))));
        }
        Ok(Image { path: path.to_owned(), history_bytes })
    }

    fn unreadable(&self, error: io::Error) -> Flaw {
        Flaw::Unreadable(self.path.clone(), error)
    }

    fn reader(&self) -> Result<BufReader<File>, Flaw> {
        let file = File::open(&self.path).map_err(|error| self.unreadable(error))?;
        Ok(BufReader::with_capacity(1 << 20, file))
    }

    /// The write that each block claims to show, 0 where it bears no mark.
    fn claims(&self) -> Result<Vec<u64>, Flaw> {
        let mut reader = self.reader()?;
        let mut block = [0; BLOCK];
        (0..self.history_bytes / BLOCK as u64)
            .map(|_| {
                reader.read_exact(&mut block).map_err(|error| self.unreadable(error))?;
                Ok(claimed_write(&block).unwrap_or(0))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{Content, DISK_BYTES_MIN};
    use std::os::unix::fs::FileExt;

    const SIZES: [u64; 2] = [DISK_BYTES_MIN, DISK_BYTES_MIN + 1536];

    /// Images as a guest leaves them that issued the writes 1 to `last`.
    fn images_after(dir: &Path, last: u64) -> Vec<PathBuf> {
        let pattern = Pattern::new(&SIZES).unwrap();
        let shown = pattern.blocks_after(last);
        let mut content = [0; BLOCK];
        let mut paths = Vec::new();
        for (disk, (blocks, bytes)) in shown.iter().zip(SIZES).enumerate() {
            let path = dir.join(format!("{disk}.raw"));
            let file = File::create(&path).unwrap();
            file.set_len(bytes).unwrap();
            for (block, &seq) in (0u64..).zip(blocks).filter(|&(_, &seq)| seq != 0) {
                pattern.fill(seq, block, &mut content);
                file.write_all_at(&content, block * BLOCK as u64).unwrap();
            }
            paths.push(path);
        }
        paths
    }

    #[test]
    fn every_moment_of_the_history_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        for last in (0..90).chain([500, 1000]) {
            let moment = check(&images_after(dir.path(), last), 0..=u64::MAX).unwrap();
            assert!((moment.write..=moment.last).contains(&last), "write {last} taken for {moment:?}");
        }
    }

    #[test]
    fn a_moment_outside_the_window_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let images = images_after(dir.path(), 500);
        assert!(check(&images, 490..=510).is_ok());
        assert!(matches!(check(&images, 510..=600), Err(Flaw::OutsideWindow { .. })));
        assert!(matches!(check(&images, 0..=490), Err(Flaw::OutsideWindow { .. })));
    }

    #[test]
    fn disks_of_two_moments_are_torn() {
        let (early, late) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mixed = [images_after(early.path(), 500).remove(0), images_after(late.path(), 510).remove(1)];
        let flaw = check(&mixed, 0..=u64::MAX).unwrap_err();
        assert!(matches!(flaw, Flaw::Torn { newest, .. } if newest >= 500), "{flaw}");
    }

    #[test]
    fn every_single_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let images = images_after(dir.path(), 500);
        for at in [0, 9, 17, 600, 4095, DISK_BYTES_MIN / 2 + 3, SIZES[1] - 1] {
            let file = File::options().read(true).write(true).open(&images[1]).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(matches!(check(&images, 0..=u64::MAX), Err(Flaw::Torn { .. })), "byte {at} passed");
            file.write_all_at(&byte, at).unwrap();
        }
        assert!(check(&images, 0..=u64::MAX).is_ok());
    }

    #[test]
    fn a_lost_write_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let images = images_after(dir.path(), 500);
        let pattern = Pattern::new(&SIZES).unwrap();
        let lost = (300..500).rev().find(|&seq| pattern.write(seq).content == Content::Noise).unwrap();
        let write = pattern.write(lost);
        let file = File::options().write(true).open(&images[write.disk]).unwrap();
        file.write_all_at(&vec![0; BLOCK], write.block * BLOCK as u64).unwrap();
        assert!(matches!(check(&images, 0..=u64::MAX), Err(Flaw::Torn { .. })));
    }

    #[test]
    fn a_grown_disk_shows_its_history_and_zeroes_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let images = images_after(dir.path(), 500);
        let grown = File::options().read(true).write(true).open(&images[0]).unwrap();
        grown.set_len(SIZES[0] + 5 * BLOCK as u64 + 100).unwrap();
        assert!(check(&images, 0..=u64::MAX).is_err(), "disks of other sizes have another history");
        check_grown(&images, &SIZES, 490..=510).unwrap();
        for at in [SIZES[0], SIZES[0] + 5 * BLOCK as u64 + 99] {
            grown.write_all_at(&[1], at).unwrap();
            assert!(matches!(check_grown(&images, &SIZES, 0..=u64::MAX), Err(Flaw::Torn { .. })));
            grown.write_all_at(&[0], at).unwrap();
        }
        grown.set_len(SIZES[0] - 1).unwrap();
        assert!(matches!(check_grown(&images, &SIZES, 0..=u64::MAX), Err(Flaw::Unreadable(..))));
    }

    #[test]
    fn a_truncated_image_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short.raw");
        File::create(&path).unwrap().set_len(DISK_BYTES_MIN - 1).unwrap();
        assert!(matches!(check(&[path], 0..=0), Err(Flaw::Unreadable(..))));
    }

    #[test]
    fn the_history_has_every_kind_of_write() {
        let pattern = Pattern::new(&SIZES).unwrap();
        let writes: Vec<_> = (1..200).map(|seq| pattern.write(seq)).collect();
        for content in [Content::Plain, Content::Noise, Content::Zeroes, Content::Discard] {
            for disk in 0..SIZES.len() {
                assert!(writes.iter().any(|write| write.content == content && write.disk == disk));
            }
        }
    }

    #[test]
    fn a_discard_only_meets_blocks_that_are_zero() {
        let pattern = Pattern::new(&SIZES).unwrap();
        let mut shown = pattern.blocks_after(0);
        for seq in 1..5000 {
            let changed = pattern.apply(seq, &mut shown);
            assert!(!(changed && pattern.write(seq).content == Content::Discard), "write {seq}");
        }
    }
}
