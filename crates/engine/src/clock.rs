//! The machine's clocks and randomness: the only place in the workspace that reads either.
//!
//! Everything below takes time, randomness and new ids as arguments through [`World`], so that tests and
//! simulations are deterministic (ARCHITECTURE.md, invariant 8).

use std::time::{Duration, Instant, SystemTime};

use aquifer_repository::{BootClock, World};
use uuid::Uuid;

/// The kernel's name of this run of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The real world: the system's clocks, and the kernel's random generator.
#[derive(Debug)]
pub struct System {
    started: Instant,
    boot: [u8; 16],
}

impl System {
    /// Starts the monotonic clock at zero.
    pub fn new() -> Self {
        // Where the kernel does not tell, nothing that was measured against this clock outlives the process.
        let boot = boot_id().unwrap_or_else(|| {
            let mut own = [0; 16];
            fill_random(&mut own);
            own
        });
        System { started: Instant::now(), boot }
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

    fn boot_clock(&self) -> BootClock {
        // Time in suspension counts: the other hosts' clocks went on.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
        BootClock { boot: self.boot, ms: seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000) }
    }

    fn random(&self, out: &mut [u8]) {
        fill_random(out);
    }
}

fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string(BOOT_ID).ok()?;
    Some(text.trim().parse::<Uuid>().ok()?.into_bytes())
}

fn fill_random(out: &mut [u8]) {
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
    fn two_processes_of_one_boot_share_its_clock() {
        let (first, second) = (System::new().boot_clock(), System::new().boot_clock());
        assert_eq!(first.boot, second.boot);
        assert!(first.ms > 0 && first.ms <= second.ms, "{first:?}, {second:?}");
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
            fn boot_clock(&self) -> BootClock {
                BootClock { boot: [0; 16], ms: 0 }
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
