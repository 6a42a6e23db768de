//! What is fuzzed, and what must hold whatever comes in.
//!
//! Each target is a function of bytes that panics where a promise is broken. libFuzzer runs them
//! (`fuzz/fuzz_targets`), and `tests/fuzz_corpus.rs` runs them over the corpus with every test.

pub mod egress;
pub mod exchange;
pub mod ingress;
mod limited;
mod overlay;
pub mod super_frames;
pub mod wire;
