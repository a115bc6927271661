//! Whole objects, as they are and with the trailing hash set right.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aquifer_format_fuzz::objects(data));
