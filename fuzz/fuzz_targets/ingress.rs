//! libFuzzer's entry to `overlayd_fuzz::ingress`: hostile datagrams, forged and authentic ones.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::ingress::run(data));
