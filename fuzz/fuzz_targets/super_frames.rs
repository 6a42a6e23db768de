//! libFuzzer on `fuzz/targets/super_frames.rs`, which says what it looks for.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::super_frames::run(data));
