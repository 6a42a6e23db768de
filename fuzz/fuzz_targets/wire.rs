//! libFuzzer's entry to `overlayd_fuzz::wire`: every parser and writer of `wire`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::wire::run(data));
