//! What `overlayd bench` prints.

use std::fmt::Write as _;

use serde::Serialize;

use super::measurement::Measurement;
use super::recommendation::Recommendation;

/// Everything that was measured, and what follows from it.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// The program's version.
    pub version: String,
    /// What it ran on.
    pub processor: Processor,
    /// In the order of the table.
    pub measurements: Vec<Measurement>,
    /// What to configure.
    pub recommendation: Recommendation,
}

/// The processor as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Processor {
    /// What it calls itself.
    pub model: Option<String>,
    /// Threads that can run at once.
    pub cores: usize,
    /// Whether it has instructions for AES-GCM.
    pub has_aes: bool,
}

impl BenchReport {
    /// As JSON.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data");
        text.push('\n');
        text
    }

    /// As a table for people.
    pub fn text(&self) -> String {
        let Processor { model, cores, has_aes } = &self.processor;
        let model = model.as_deref().unwrap_or("a processor without a name");
        let aes = if *has_aes { "" } else { " without AES instructions" };
        let cores = if *cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
        let mut text = format!(
            "overlayd {} on {model}{aes}, {cores}\n\
             Both ends of a tunnel in memory: policy, table, seal; open, checks, merge. No kernel, no wire.\n\n\
             {:<20}{:<14}{:<12}{:>14}{:>16}{:>14}\n",
            self.version, "SUITE", "FRAMES", "THREADS", "GBIT/S", "PACKETS/S", "NS/PACKET"
        );
        for measured in &self.measurements {
            writeln!(
                text,
                "{:<20}{:<14}{:<12}{:>14}{:>16}{:>14}",
                measured.suite,
                measured.load,
                measured.threads,
                gigabits(measured.bits_per_second),
                measured.packets_per_second,
                measured.ns_per_packet
            )
            .expect("a String takes all");
        }
        text.push('\n');
        text.push_str(&self.advice());
        text
    }

    fn advice(&self) -> String {
        let Recommendation { suites: [first, second], lanes, config, was_disturbed, aes_128_gain_percent } =
            &self.recommendation;
        let lanes = if *lanes == 1 { "1 lane".to_owned() } else { format!("{lanes} lanes") };
        let mut text = format!("Recommended: {first} before {second}, {lanes}. ");
        if config.is_empty() {
            text.push_str("That is what the agent does by itself.\n");
        } else {
            text.push_str("For the agent's configuration file:\n\n");
            for line in config {
                writeln!(text, "    {line}").expect("a String takes all");
            }
        }
        if *aes_128_gain_percent >= WORTH_A_WORD_PERCENT {
            writeln!(
                text,
                "aes-128-gcm would carry {aes_128_gain_percent} % more; nodes agree to it where both name it \
                 in `suites`."
            )
            .expect("a String takes all");
        }
        if *was_disturbed {
            text.push_str(
                "Something else ran meanwhile: measure again on a quiet machine before you believe it.\n",
            );
        }
        text
    }
}

/// `1 thread` or `2 threads`.
pub(super) fn threads(count: usize) -> String {
    if count == 1 { "1 thread".into() } else { format!("{count} threads") }
}

/// With two digits behind the point.
fn gigabits(bits: u64) -> String {
    format!("{}.{:02}", bits / 1_000_000_000, bits % 1_000_000_000 / 10_000_000)
}

const WORTH_A_WORD_PERCENT: u64 = 5;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::measurement::Load;
    use super::*;
    use crate::sa::Suite;

    #[test]
    fn the_table_and_the_advice_read_well() {
        let load = (Suite::Aes256Gcm, Load::Frames(64), 1);
        let mut report = BenchReport {
            version: "1.2.3".into(),
            processor: Processor { model: Some("Zen 4".into()), cores: 2, has_aes: true },
            measurements: vec![Measurement::new(load, 2_000_000, 128_000_000, Duration::from_secs(1))],
            recommendation: Recommendation {
                suites: Suite::preferred(true),
                lanes: 2,
                config: vec![],
                was_disturbed: false,
                aes_128_gain_percent: 4,
            },
        };
        assert_eq!(
            report.text(),
            "overlayd 1.2.3 on Zen 4, 2 cores\n\
             Both ends of a tunnel in memory: policy, table, seal; open, checks, merge. No kernel, no wire.\n\n\
             SUITE               FRAMES        THREADS             GBIT/S       PACKETS/S     NS/PACKET\n\
             aes-256-gcm         64 B          1                     1.02         2000000           500\n\n\
             Recommended: aes-256-gcm before chacha20-poly1305, 2 lanes. That is what the agent does by itself.\n"
        );
        report.recommendation.lanes = 1;
        report.recommendation.config = vec!["lanes = 1".into()];
        report.recommendation.was_disturbed = true;
        report.recommendation.aes_128_gain_percent = 12;
        let advice = "Recommended: aes-256-gcm before chacha20-poly1305, 1 lane. For the agent's configuration file:\n\n\
             \x20   lanes = 1\n\
             aes-128-gcm would carry 12 % more; nodes agree to it where both name it in `suites`.\n\
             Something else ran meanwhile: measure again on a quiet machine before you believe it.\n";
        assert!(report.text().ends_with(advice), "{}", report.text());
    }
}
