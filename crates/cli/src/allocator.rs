//! How the C library's allocator treats the buffers of this program.
//!
//! By default it adapts to them: what ranges of packs were read into is given back to the kernel and asked for again, and the
//! kernel clears a thousand pages for it, one fault after the other. Here buffers of up to 8 MiB stay in the heap and are
//! used again, and those of a pack's size are mapped, each for itself, and leave nothing behind. Two arenas instead of eight
//! for each core keep what waits there from adding up; the many threads of this program allocate seldom. Measured in
//! docs/adr/0017.
//!
//! Invariant: nothing but speed depends on it; another C library does as it does.

#[cfg(target_env = "gnu")]
pub(crate) fn keep_buffers() {
    const MMAP_THRESHOLD_BYTES: libc::c_int = 8 << 20;
    const TRIM_THRESHOLD_BYTES: libc::c_int = 64 << 20;
    const ARENAS: libc::c_int = 2;
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (libc::M_ARENA_MAX, ARENAS),
    ] {
        #[expect(unsafe_code, reason = "the C library has no other way to say it")]
        // SAFETY: mallopt takes two integers by value and may be called at any time; it is called before any thread is
        // started. What it refuses stays as it was.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_buffers() {}
