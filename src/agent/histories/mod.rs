//! Random histories of a cluster in virtual time: containers attached and detached, agents killed,
//! partitions, new keys and removals, over a wire that loses, repeats and reorders.
//!
//! What decides is the real thing: the placement, the key exchange, SAs, both ways of a packet and
//! the memberships. The tasks around them (`dataplane`, `peer`, `peers`) are played by [`node`], the
//! manager by [`cluster`]. A wiretap looks at every datagram. When all is quiet, what there is must be
//! what should be. All randomness comes from the seed, so that each history can be had again.

mod cluster;
mod node;
mod wire;
mod world;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use self::cluster::Identities;
use self::world::{Told, World};

#[test]
fn every_history_ends_with_what_should_be_and_leaks_nothing() {
    let told = run(0..200);
    // A history in which nothing happens proves nothing.
    for (what, count) in [
        ("frames delivered", told.delivered),
        ("datagrams lost", told.lost),
        ("datagrams replayed", told.replayed),
        ("agents killed", told.kills),
        ("partitions", told.partitions),
        ("removals", told.removals),
        ("keys", told.keys),
    ] {
        assert!(count >= 100, "{count} {what} in 200 histories");
    }
}

#[test]
fn seed_gives_the_same_history_again() {
    let identities = Identities::new();
    for seed in [3, 14] {
        let [first, second] = [(); 2].map(|()| World::run(&identities, seed));
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_ne!(first.digest, World::run(&identities, seed + 1).digest);
    }
}

/// Those of `OVERLAYD_HISTORIES=FIRST..LAST`, or of one seed, to see a failure again.
#[test]
#[ignore = "soak: minutes"]
fn many_more_histories() {
    let wanted = std::env::var("OVERLAYD_HISTORIES").unwrap_or_else(|_| "200..10000".to_owned());
    let number = |text: &str| text.trim().parse::<u64>().expect("a seed, or two with .. between");
    let seeds = match wanted.split_once("..") {
        Some((first, last)) => number(first)..number(last),
        None => number(&wanted)..number(&wanted) + 1,
    };
    let told = run(seeds.clone());
    let _ = writeln!(std::io::stderr(), "histories {seeds:?}: {told:?}");
}

/// Runs the histories of these seeds, on both processors, and names those that fail.
fn run(seeds: std::ops::Range<u64>) -> Told {
    let identities = Identities::new();
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let (mut sum, mut failed) = (Told::default(), None);
        while failed.is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            match catch_unwind(AssertUnwindSafe(|| World::run(&identities, seed))) {
                Ok(told) => sum.add(&told),
                Err(_) => failed = Some(seed),
            }
        }
        (sum, failed)
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        (work(), other.join().expect("panics are caught"))
    });
    let failed: Vec<u64> = [one.1, other.1].into_iter().flatten().collect();
    assert!(failed.is_empty(), "the histories of these seeds failed, as was said above: {failed:?}");
    let mut told = one.0;
    told.add(&other.0);
    told
}
