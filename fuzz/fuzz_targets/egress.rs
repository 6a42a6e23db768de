//! libFuzzer on `fuzz/targets/egress.rs`, which says what it looks for.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::egress::run(data));
