//! Time and randomness as arguments, so that a simulation with a seed replays exactly.

/// A moment since the machine was booted. Unlike wall time nobody sets it, and unlike a process's clock it outlives the
/// process; two moments can be compared only within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootClock {
    /// Names this run of the machine.
    pub boot: [u8; 16],
    /// Milliseconds since the machine was booted, suspended time included; never goes back within one boot.
    pub ms: u64,
}

/// The clocks and the randomness that a repository uses; the engine implements it for real, tests with a seed.
pub trait World: Send + Sync {
    /// Milliseconds since 1970, UTC. For display only: no decision rests on it.
    fn wall_ms(&self) -> u64;

    /// Milliseconds since some moment of this process; never goes back.
    fn monotonic_ms(&self) -> u64;

    /// The clock of this run of the machine, which processes that follow each other share.
    fn boot_clock(&self) -> BootClock;

    /// Fills `out` with random bytes fit for keys and salts.
    fn random(&self, out: &mut [u8]);
}

/// An array of random bytes.
pub(crate) fn random<const N: usize>(world: &dyn World) -> [u8; N] {
    let mut out = [0; N];
    world.random(&mut out);
    out
}
