//! What measurements say about the configuration: which cipher first, and how many lanes.

use serde::Serialize;

use super::measurement::{Load, Measurement};
use super::report::Processor;
use crate::id::LaneCount;
use crate::sa::Suite;

/// What to configure, and whether that is what the agent does by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recommendation {
    /// Ciphers, the fastest of those with keys of 256 bits first.
    pub suites: [Suite; 2],
    /// Lanes that still add speed.
    pub lanes: u8,
    /// Lines for the agent's configuration file; none where the defaults are right.
    pub config: Vec<String>,
    /// Whether the passes agreed so little that something else must have run, and the rest be doubted.
    pub was_disturbed: bool,
    /// By how many percent AES-128-GCM carries more than the first of `suites`, if it does.
    pub aes_128_gain_percent: u64,
}

/// Judges by full frames, which are what bulk traffic becomes.
pub(super) fn recommend(measured: &[Measurement], processor: &Processor) -> Recommendation {
    let rate = |suite, threads| {
        let same = |m: &&Measurement| m.suite == suite && m.load == LOAD && m.threads == threads;
        measured.iter().find(same).map_or(0, |m| m.packets_per_second)
    };
    let usual = Suite::preferred(processor.has_aes);
    let [first, second] = usual.map(|suite| rate(suite, 1));
    let is_clearly_faster = second * 100 > first * (100 + NOISE_PERCENT);
    let suites = if is_clearly_faster { [usual[1], usual[0]] } else { usual };

    let scaling = || measured.iter().filter(|m| m.suite == SUITE_OF_LANES && m.load == LOAD);
    let most = scaling().map(|m| m.packets_per_second).max().unwrap_or_default();
    let is_enough = |m: &&Measurement| m.packets_per_second * 100 >= most * (100 - NOISE_PERCENT);
    let threads = scaling().filter(is_enough).map(|m| m.threads).min().unwrap_or(1);
    let lanes = LaneCount::clamped(threads).get();

    let mut config = Vec::new();
    if suites != usual {
        config.push(format!("suites = [\"{}\", \"{}\"]", suites[0], suites[1]));
    }
    if lanes != LaneCount::clamped(processor.cores).get() {
        config.push(format!("lanes = {lanes}"));
    }
    let (best, aes_128) = (rate(suites[0], 1), rate(Suite::Aes128Gcm, 1));
    let aes_128_gain_percent = aes_128.saturating_sub(best) * 100 / best.max(1);
    let was_disturbed = measured
        .iter()
        .filter(|m| m.load == LOAD)
        .any(|m| m.slowest_packets_per_second * 100 < m.packets_per_second * (100 - DISTURBANCE_PERCENT));
    Recommendation { suites, lanes, config, was_disturbed, aes_128_gain_percent }
}

/// What is decided by.
pub(super) const LOAD: Load = Load::Frames(1400);
/// The cipher that every processor of a server is fast with.
pub(super) const SUITE_OF_LANES: Suite = Suite::Aes256Gcm;
/// Less is no difference.
const NOISE_PERCENT: u64 = 5;
/// By how much the slowest pass may lag on a machine that does nothing else.
const DISTURBANCE_PERCENT: u64 = 20;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::AgentConfig;

    #[test]
    fn the_defaults_are_right_where_aes_is_fast_and_every_core_adds() {
        let measured = [full(Suite::Aes256Gcm, 1, 200), full(CHACHA, 1, 80), full(Suite::Aes256Gcm, 2, 390)];
        let recommended = recommend(&measured, &processor(2));
        assert_eq!(recommended.suites, [Suite::Aes256Gcm, CHACHA]);
        assert_eq!((recommended.lanes, recommended.config), (2, vec![]));
    }

    #[test]
    fn a_faster_second_suite_and_cores_that_add_nothing_are_written_down() {
        let measured = [
            full(Suite::Aes256Gcm, 1, 80),
            full(CHACHA, 1, 100),
            full(Suite::Aes256Gcm, 2, 150),
            full(Suite::Aes256Gcm, 4, 152),
        ];
        let recommended = recommend(&measured, &processor(4));
        assert_eq!(recommended.config, [r#"suites = ["chacha20-poly1305", "aes-256-gcm"]"#, "lanes = 2"]);
        let config = AgentConfig::parse(&recommended.config.join("\n"), Path::new("o.toml")).unwrap();
        assert_eq!(config.suites, [CHACHA, Suite::Aes256Gcm]);
        assert_eq!(config.lanes, LaneCount::new(2));
    }

    #[test]
    fn more_cores_than_lanes_can_be_are_all_used_by_default() {
        let recommended = recommend(&[full(Suite::Aes256Gcm, 192, 100)], &processor(192));
        assert_eq!((recommended.lanes, recommended.config), (64, vec![]));
    }

    #[test]
    fn passes_that_disagree_are_told() {
        let mut measured = [full(Suite::Aes256Gcm, 1, 100)];
        measured[0].repeat(full(Suite::Aes256Gcm, 1, 85));
        assert!(!recommend(&measured, &processor(1)).was_disturbed);
        measured[0].repeat(full(Suite::Aes256Gcm, 1, 70));
        assert!(recommend(&measured, &processor(1)).was_disturbed);
    }

    #[test]
    fn a_difference_within_the_noise_changes_nothing() {
        let measured = [full(Suite::Aes256Gcm, 1, 100), full(CHACHA, 1, 104), full(Suite::Aes128Gcm, 1, 120)];
        let recommended = recommend(&measured, &processor(1));
        assert_eq!((recommended.config, recommended.aes_128_gain_percent), (vec![], 20));
    }

    fn full(suite: Suite, threads: usize, packets: u64) -> Measurement {
        Measurement::new((suite, LOAD, threads), packets, packets * 1400, Duration::from_secs(1))
    }

    fn processor(cores: usize) -> Processor {
        Processor { model: None, cores, has_aes: true }
    }

    const CHACHA: Suite = Suite::ChaCha20Poly1305;
}
