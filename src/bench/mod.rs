//! `overlayd bench`: the way of a packet on this processor, without the kernel, and what to configure.
//!
//! A [`pair`] of lanes in memory sends and receives as fast as it can, for each suite and several
//! sizes, on one thread and on all. It needs no rights and opens nothing. Called by `main`; the
//! benchmarks and the allocation test use the same pair.

mod measurement;
pub mod pair;
mod recommendation;
mod report;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

pub use measurement::{Load, Measurement};
pub use recommendation::Recommendation;
pub use report::{BenchReport, Processor};

use crate::io::cpu;
use crate::sa::Suite;

/// Measures for about `duration` in all.
pub fn run(duration: Duration) -> BenchReport {
    let cores = cpu::cores();
    let plan = plan(cores);
    let steps = plan.len() * PASSES;
    let each = duration / u32::try_from(steps).expect("a short plan");
    let progress = progress(steps);
    let pass = || -> Vec<_> {
        let step = |&(suite, load, threads): &(Suite, Load, usize)| {
            progress.set_message(format!("{suite}, {load}, {}", report::threads(threads)));
            let measured = measurement::measure(suite, load, threads, each);
            progress.inc(1);
            measured
        };
        plan.iter().map(step).collect()
    };
    let mut measurements = pass();
    for _ in 1..PASSES {
        measurements.iter_mut().zip(pass()).for_each(|(measured, again)| measured.repeat(again));
    }
    progress.finish_and_clear();
    let processor = Processor { model: cpu::model(), cores, has_aes: cpu::has_aes() };
    let recommendation = recommendation::recommend(&measurements, &processor);
    BenchReport { version: env!("CARGO_PKG_VERSION").into(), processor, measurements, recommendation }
}

/// Everything on one thread and on all; the load that lanes are recommended by on those between, too.
fn plan(cores: usize) -> Vec<(Suite, Load, usize)> {
    let everything = Suite::ALL.into_iter().flat_map(|suite| Load::ALL.map(|load| (suite, load)));
    let ends = everything.flat_map(|(suite, load)| [1, cores].map(|threads| (suite, load, threads)));
    let doubled = std::iter::successors(Some(2), |threads| Some(threads * 2));
    let between = doubled.take_while(|&threads| threads < cores);
    let mut plan: Vec<_> = ends
        .chain(between.map(|threads| (recommendation::SUITE_OF_LANES, recommendation::LOAD, threads)))
        .collect();
    // One core has nothing between, and is all.
    plan.dedup();
    plan
}

/// On standard error, where that is a terminal.
fn progress(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30.cyan} {msg}").expect("a template");
    ProgressBar::new(u64::try_from(steps).expect("few")).with_style(style)
}

/// Everything is measured so often, in turn: what else runs slows one pass and not all.
const PASSES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_suite_and_load_is_planned_once_on_one_thread_and_once_on_all() {
        assert_eq!(plan(1).len(), Suite::ALL.len() * Load::ALL.len());
        assert_eq!(plan(2).len(), 2 * Suite::ALL.len() * Load::ALL.len());
        let threads: Vec<_> = plan(12).iter().skip(24).map(|(_, _, threads)| *threads).collect();
        assert_eq!(threads, [2, 4, 8]);
    }
}
