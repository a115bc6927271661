//! Plain bytes of meta blobs: tree nodes and records.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aquifer_format_fuzz::blobs(data));
