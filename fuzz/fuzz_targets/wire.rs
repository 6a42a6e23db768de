//! libFuzzer on `fuzz/targets/wire.rs`, which says what it looks for.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::wire::run(data));
