//! libFuzzer on `fuzz/targets/exchange.rs`, which says what it looks for.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::exchange::run(data));
