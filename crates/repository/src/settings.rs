//! Sizes and limits of one open repository. None changes what a reader must understand.

use std::time::Duration;

/// How hard data is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// At a level of zstd, from 1 to 19, or negative for faster.
    Level(i32),
    /// Lightly while the processor is what the backup waits for, and more while the line or the store is.
    Auto,
}

/// Knobs of one open repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How hard chunks are compressed.
    pub compression: Compression,
    /// Whether each blob is decoded again and compared before its pack is stored.
    pub self_check: bool,
    /// Target size in bytes of a data pack; 128 MiB at most.
    pub pack_bytes: usize,
    /// Target size in bytes of a pack of tree nodes and records.
    pub meta_pack_bytes: usize,
    /// Packs on their way to the store at one time.
    pub uploads: usize,
    /// How long [`crate::Access::Write`] waits for the process that writes the index now.
    pub index_wait: Duration,
    /// The rule that is switched off, to prove that the tests would notice.
    #[cfg(test)]
    pub(crate) weakness: Option<Weakness>,
}

/// A rule of the protocol (docs/FORMAT.md) without which data is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weakness {
    /// W4: a commit does not look again whether what it counts on was condemned.
    NoRecheckAtCommit,
    /// G5: what was committed or pinned since the walk is not looked at.
    StaleMark,
    /// G2: what a session pins is no root when it is forgotten.
    PinsIgnored,
    /// G3, G6: packs are collected whoever owns them.
    OwnersIgnored,
    /// G7: condemned packs are deleted whoever may still count on them.
    OlderSessionsIgnored,
}

impl Settings {
    /// Whether this program lacks a rule; never outside of tests.
    pub(crate) fn lacks(&self, rule: Weakness) -> bool {
        #[cfg(test)]
        let lacking = self.weakness;
        #[cfg(not(test))]
        let lacking: Option<Weakness> = None;
        lacking == Some(rule)
    }

    /// Whether what should never happen is caught before it costs data; off when a rule is, or nobody would see that
    /// the rule matters.
    pub(crate) fn has_net(&self) -> bool {
        #[cfg(test)]
        let whole = self.weakness.is_none();
        #[cfg(not(test))]
        let whole = true;
        whole
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            compression: Compression::Level(1),
            self_check: true,
            pack_bytes: 32 << 20,
            meta_pack_bytes: 8 << 20,
            uploads: 2,
            index_wait: Duration::from_secs(30),
            #[cfg(test)]
            weakness: None,
        }
    }
}
