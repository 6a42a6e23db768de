//! Everything in `fuzz/corpus` through what the fuzzers run, with the stable toolchain and no fuzzer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../fuzz/targets/mod.rs"]
pub mod targets;

#[test]
fn corpus_of_the_wire_formats_holds() {
    replay("wire", targets::wire::run);
}

#[test]
fn corpus_of_datagrams_inward_holds() {
    replay("ingress", targets::ingress::run);
}

#[test]
fn corpus_of_frames_outward_holds() {
    replay("egress", targets::egress::run);
}

#[test]
fn corpus_of_super_frames_holds() {
    replay("super_frames", targets::super_frames::run);
}

#[test]
fn corpus_of_the_key_exchange_holds() {
    replay("exchange", targets::exchange::run);
}

/// Runs a target on each file of its corpus, and names the files that it fails on.
fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort_unstable();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    let failed: Vec<_> = files
        .iter()
        .filter(|file| {
            let data = std::fs::read(file).expect("a readable file");
            catch_unwind(AssertUnwindSafe(|| run(&data))).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "{target} fails on {failed:?}");
}
