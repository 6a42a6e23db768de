//! libFuzzer's entry to `overlayd_fuzz::key_exchange`: hostile messages of a peer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlayd_fuzz::key_exchange::run(data));
