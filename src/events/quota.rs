//! How many events are recorded of what others can cause at will.
//!
//! Each kind has a bucket. What finds it empty is counted, and the count is an event of its own, once in
//! an interval: a flood costs a few lines, and hides no event of another kind.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Event;
use crate::boot_time::BootTime;

/// The buckets of all kinds, as many as there are kinds.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    buckets: BTreeMap<String, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// How many events may come at once from now on.
    room: u32,
    /// When it was filled last.
    filled: BootTime,
    suppressed: u64,
    reported: BootTime,
}

impl Quotas {
    /// Whether an event is recorded; counts it if not.
    pub(super) fn admit(&mut self, event: &Event, now: BootTime) -> bool {
        let (burst, interval) = if event.is_from_outside() {
            (OUTSIDE_BURST, OUTSIDE_INTERVAL)
        } else if event.is_from_nodes() {
            (NODES_BURST, NODES_INTERVAL)
        } else {
            return true;
        };
        let new = || Bucket { room: burst, filled: now, suppressed: 0, reported: now };
        let bucket = self.buckets.entry(event.kind()).or_insert_with(new);
        bucket.fill(burst, interval, now);
        if bucket.room == 0 {
            bucket.suppressed = bucket.suppressed.saturating_add(1);
            return false;
        }
        bucket.room -= 1;
        true
    }

    /// What is to be told of suppressed events.
    pub(super) fn due(&mut self, now: BootTime) -> Vec<Event> {
        let due = self
            .buckets
            .iter_mut()
            .filter(|(_, bucket)| bucket.suppressed > 0 && now.since(bucket.reported) >= REPORT_INTERVAL);
        let told = due.map(|(kind, bucket)| {
            bucket.reported = now;
            Event::Suppressed { kind: kind.clone(), count: std::mem::take(&mut bucket.suppressed) }
        });
        told.collect()
    }
}

impl Bucket {
    fn fill(&mut self, burst: u32, interval: Duration, now: BootTime) {
        let passed = now.since(self.filled).as_nanos() / interval.as_nanos();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if self.room.saturating_add(passed) >= burst {
            (self.room, self.filled) = (burst, now);
        } else {
            self.room += passed;
            self.filled = self.filled + interval * passed;
        }
    }
}

const OUTSIDE_BURST: u32 = 50;
const OUTSIDE_INTERVAL: Duration = Duration::from_secs(2);
/// Attaching a few hundred containers at once is no flood.
const NODES_BURST: u32 = 1000;
const NODES_INTERVAL: Duration = Duration::from_millis(50);
/// How often suppressed events of a kind are told of.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_one_kind_costs_its_quota_and_is_counted_and_hides_no_other() {
        let mut quotas = Quotas::default();
        let start = BootTime::from_nanos(1_000_000_000);
        let at = |millis: u64| start + Duration::from_millis(millis);
        let (refused, mut told) = (refused(), 0);
        let recorded = (0..60_000).filter(|&millis| {
            for event in quotas.due(at(millis)) {
                let Event::Suppressed { kind, count } = event else { panic!("{event}") };
                assert_eq!(kind, "connection_refused");
                told += count;
            }
            quotas.admit(&refused, at(millis))
        });
        let recorded = u64::try_from(recorded.count()).expect("a number");
        assert_eq!(recorded, 50 + 29, "a burst, and one each 2 s");
        assert!(quotas.admit(&Event::CallerDenied { uid: 1, pid: None }, at(60_000)));
        for _ in 0..10_000 {
            assert!(quotas.admit(&Event::AgentStopped {}, at(60_000)), "what no other causes has no limit");
        }
        for event in quotas.due(at(80_000)) {
            let Event::Suppressed { count, .. } = event else { panic!("{event}") };
            told += count;
        }
        assert_eq!(recorded + told, 60_000, "each is recorded or counted");
        assert_eq!(quotas.due(at(100_000)), []);
    }

    fn refused() -> Event {
        let from = "192.0.2.1:40000".parse().expect("an address");
        Event::ConnectionRefused { from, reason: super::super::Reason::of("it is a test") }
    }
}
