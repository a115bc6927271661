//! Any text as a `<domainbackup>`.
#![no_main]

#[path = "../harness.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::documents(data));
