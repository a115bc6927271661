//! The machine's clocks and randomness: the only place in the workspace that reads either.
//!
//! Everything below takes time, randomness and new ids as arguments through [`World`], so that tests and
//! simulations are deterministic (ARCHITECTURE.md, invariant 8).

use std::time::{Duration, Instant, SystemTime};

use aquifer_repository::World;
use uuid::Uuid;

/// The real world: the system's wall clock, a monotonic clock, and the kernel's random generator.
#[derive(Debug)]
pub struct System {
    started: Instant,
}

impl System {
    /// Starts the monotonic clock at zero.
    pub fn new() -> Self {
        System { started: Instant::now() }
    }
}

impl Default for System {
    fn default() -> Self {
        System::new()
    }
}

impl World for System {
    #[expect(clippy::disallowed_methods, reason = "this is the one clock that everybody else is given")]
    fn wall_ms(&self) -> u64 {
        // A clock set before 1970 only changes what is displayed; no decision rests on wall time.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        whole_ms(since)
    }

    fn monotonic_ms(&self) -> u64 {
        whole_ms(self.started.elapsed())
    }

    fn random(&self, out: &mut [u8]) {
        let mut filled = 0;
        while filled < out.len() {
            match rustix::rand::getrandom(&mut out[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                // Going on without randomness would reuse keys, so there is nothing better than to stop.
                Err(error) => panic!("getrandom fails only on kernels older than Linux 3.17: {error}"),
            }
        }
    }
}

/// Milliseconds of a duration, saturating after half a billion years.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A new UUID of version 7 from the given clock and randomness (RFC 9562, section 5.7).
pub fn new_uuid(world: &dyn World) -> Uuid {
    let mut random = [0_u8; 10];
    world.random(&mut random);
    uuid::Builder::from_unix_timestamp_millis(world.wall_ms(), &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_of_randomness_differ() {
        let world = System::new();
        let (mut first, mut second) = ([0_u8; 32], [0_u8; 32]);
        world.random(&mut first);
        world.random(&mut second);
        assert_ne!(first, second);
    }

    #[test]
    fn new_ids_are_version_seven_and_sort_by_time() {
        struct At(u64);
        impl World for At {
            fn wall_ms(&self) -> u64 {
                self.0
            }
            fn monotonic_ms(&self) -> u64 {
                0
            }
            fn random(&self, out: &mut [u8]) {
                out.fill(7);
            }
        }
        let (early, late) = (new_uuid(&At(1_000)), new_uuid(&At(2_000)));
        assert_eq!(early.get_version_num(), 7);
        assert!(early < late);
    }
}
