//! Replays the committed corpus of every fuzz target, by the very code that the fuzzer runs.

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a library of the fuzz workspace as well")]
mod targets;

use std::path::Path;

#[test]
fn corpus_of_every_wire_format_replays() {
    replay("wire", targets::wire::run);
}

#[test]
fn corpus_of_hostile_datagrams_replays() {
    replay("ingress", targets::ingress::run);
}

#[test]
fn corpus_of_hostile_frames_replays() {
    replay("egress", targets::egress::run);
}

#[test]
fn corpus_of_hostile_key_exchanges_replays() {
    replay("key_exchange", targets::key_exchange::run);
}

#[test]
fn every_target_has_a_corpus_that_is_replayed() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut names: Vec<_> = std::fs::read_dir(&targets)
        .unwrap_or_else(|error| panic!("{}: {error}", targets.display()))
        .map(|entry| entry.expect("an entry").path().file_stem().expect("a name").to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["egress", "ingress", "key_exchange", "wire"]);
}

/// Runs every file of a corpus; one that is missing or has next to nothing is a failure.
fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{} has {} inputs only", corpus.display(), files.len());
    for file in files {
        let input = std::fs::read(&file).expect("a readable file");
        let replayed = std::panic::catch_unwind(|| run(&input));
        assert!(replayed.is_ok(), "{} breaks an invariant of {target}", file.display());
    }
}
