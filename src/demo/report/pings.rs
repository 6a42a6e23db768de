//! Pings both ways, by family.

use super::{DIRECTIONS, Finding, Ink, line};
use crate::lab::PingReport;

/// Pings both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Pings {
    /// IPv4 and IPv6, for each direction.
    pub(in crate::demo) reports: [[PingReport; 2]; 2],
}

impl Finding for Pings {
    fn render(&self, ink: Ink) -> String {
        let mut text = String::new();
        let title = format!("{:<35}{:<27}IPv6", "Ping through the network", "IPv4");
        line!(text, "\n{}", ink.heading(&title));
        for (direction, reports) in DIRECTIONS.iter().zip(&self.reports) {
            let [four, six] = reports.each_ref().map(told);
            let holds = reports.iter().all(is_answered);
            line!(text, "  {} {direction:<26}{four:<27}{six}", ink.verdict(holds));
        }
        text
    }

    fn failures(&self) -> Vec<String> {
        let each = DIRECTIONS.iter().zip(&self.reports);
        each.flat_map(|(direction, reports)| {
            let failed = ["IPv4", "IPv6"].into_iter().zip(reports).filter(|(_, report)| !is_answered(report));
            failed.map(move |(family, report)| {
                let why = report.last_error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
                format!("{family} pings {direction}: {} of {} answered{why}", report.received(), report.sent)
            })
        })
        .collect()
    }
}

fn is_answered(report: &PingReport) -> bool {
    report.sent > 0 && report.is_complete()
}

fn told(report: &PingReport) -> String {
    let mean = report.mean().map_or_else(String::new, |mean| format!(", {:.2} ms", mean.as_secs_f64() * 1e3));
    format!("{} of {} answered{mean}", report.received(), report.sent)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pings_are_told_by_direction_and_family_and_a_lost_one_fails() {
        let full = PingReport { sent: 2, round_trips: vec![Duration::from_micros(310); 2], last_error: None };
        let lost =
            PingReport { round_trips: Vec::new(), last_error: Some("no route".into()), ..full.clone() };
        let pings = Pings { reports: [[full.clone(), full.clone()], [full, lost]] };
        assert_eq!(
            pings.render(Ink::PLAIN),
            "\nPing through the network           IPv4                       IPv6\n\
             \x20 ok     c1 to c2                  2 of 2 answered, 0.31 ms   2 of 2 answered, 0.31 ms\n\
             \x20 FAILED c2 to c1                  2 of 2 answered, 0.31 ms   0 of 2 answered\n"
        );
        assert_eq!(pings.failures(), ["IPv6 pings c2 to c1: 0 of 2 answered (no route)"]);
    }
}
