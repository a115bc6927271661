//! Bodies behind right checksums: JSON documents, segments, zstd frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aquifer_format_fuzz::bodies(data));
