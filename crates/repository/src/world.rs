//! Time and randomness as arguments, so that a simulation with a seed replays exactly.

/// The clocks and the randomness that a repository uses; the engine implements it for real, tests with a seed.
pub trait World: Send + Sync {
    /// Milliseconds since 1970, UTC. For display only: no decision rests on it.
    fn wall_ms(&self) -> u64;

    /// Milliseconds since some moment of this process; never goes back.
    fn monotonic_ms(&self) -> u64;

    /// Fills `out` with random bytes fit for keys and salts.
    fn random(&self, out: &mut [u8]);
}

/// An array of random bytes.
pub(crate) fn random<const N: usize>(world: &dyn World) -> [u8; N] {
    let mut out = [0; N];
    world.random(&mut out);
    out
}
