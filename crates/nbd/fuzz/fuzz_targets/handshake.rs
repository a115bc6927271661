//! Arbitrary bytes of a server in the handshake.
#![no_main]

#[path = "../harness.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::handshake(data));
