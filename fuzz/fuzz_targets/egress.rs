//! libFuzzer's entry to `overlayd_fuzz::egress`: hostile frames of containers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::egress::run(data));
