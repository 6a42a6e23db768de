//! How often machines may try to join: each source by itself and all together, in bounded memory.
//!
//! Pure: [`super::serve`] asks before it listens to a machine, and tells how it ended. A limit is a pace
//! with a burst, so what is refused can be told when to try again.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::EnrolRefusal;
use crate::boot_time::BootTime;

/// Who may try to join now.
#[derive(Debug, Default)]
pub(super) struct JoinLimit {
    sources: HashMap<IpAddr, Source>,
    all: Spent,
}

/// An attempt that was let through; it is handed back when it ends.
#[derive(Debug)]
pub(super) struct Attempt(IpAddr);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The token was one that admits, whatever else was wrong.
    Honest,
    /// No such token was shown.
    Failed,
}

impl JoinLimit {
    /// Lets an attempt through, or says when to try again.
    pub(super) fn begin(&mut self, source: IpAddr, now: BootTime) -> Result<Attempt, EnrolRefusal> {
        let place = self.place(source, now);
        let of = self.sources.entry(place).or_default();
        let failed = of.failures.wait(FAILURES, now);
        if !failed.is_zero() {
            return Err(EnrolRefusal::TooManyAttempts { retry_seconds: whole_seconds(failed) });
        }
        let crowded = if of.open < OPEN_OF_SOURCE { Duration::ZERO } else { Duration::from_secs(1) };
        let busy = crowded.max(of.attempts.wait(OF_SOURCE, now)).max(self.all.wait(OF_ALL, now));
        if !busy.is_zero() {
            return Err(EnrolRefusal::Busy { retry_seconds: whole_seconds(busy) });
        }
        of.open += 1;
        of.attempts.charge(OF_SOURCE, now);
        self.all.charge(OF_ALL, now);
        Ok(Attempt(place))
    }

    /// Counts how an attempt ended.
    pub(super) fn end(&mut self, attempt: Attempt, ending: Ending, now: BootTime) {
        let Some(of) = self.sources.get_mut(&attempt.0) else { return };
        of.open = of.open.saturating_sub(1);
        if ending == Ending::Failed {
            of.failures.charge(FAILURES, now);
        }
    }

    /// Where a source is counted: by itself, or with all others that there is no room for.
    fn place(&mut self, source: IpAddr, now: BootTime) -> IpAddr {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, of| of.is_remembered(now));
            if self.sources.len() >= MAX_SOURCES {
                return THE_OTHERS;
            }
        }
        source
    }
}

#[derive(Debug, Default)]
struct Source {
    attempts: Spent,
    failures: Spent,
    /// Attempts that have not ended.
    open: usize,
}

impl Source {
    fn is_remembered(&self, now: BootTime) -> bool {
        self.open > 0 || self.attempts.0 > now || self.failures.0 > now
    }
}

/// So many at once, and one more in each interval.
#[derive(Debug, Clone, Copy)]
struct Pace {
    burst: u32,
    interval: Duration,
}

/// When all of a burst will be there again: the generic cell rate algorithm (ITU-T I.371, annex A).
#[derive(Debug, Clone, Copy, Default)]
struct Spent(BootTime);

impl Spent {
    /// How long until the pace allows one more.
    fn wait(self, pace: Pace, now: BootTime) -> Duration {
        self.0.since(now + pace.interval * (pace.burst - 1))
    }

    fn charge(&mut self, pace: Pace, now: BootTime) {
        self.0 = self.0.max(now) + pace.interval;
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

/// Attempts of one source that show no token which admits.
const FAILURES: Pace = Pace { burst: 10, interval: Duration::from_secs(6) };
/// Attempts of one source: a thousand machines behind one address join within half a minute.
const OF_SOURCE: Pace = Pace { burst: 400, interval: Duration::from_millis(40) };
/// Attempts of all sources: what a manager of two cores can answer beside its other work.
const OF_ALL: Pace = Pace { burst: 1000, interval: Duration::from_millis(10) };
/// Attempts of one source at a time.
const OPEN_OF_SOURCE: usize = 32;
/// Sources that are told apart, some 100 bytes each.
const MAX_SOURCES: usize = 4096;
/// No connection comes from the unspecified address.
const THE_OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleventh_failure_is_told_when_to_try_again_and_is_heard_then() {
        let mut limit = JoinLimit::default();
        for _ in 0..10 {
            let attempt = limit.begin(source(1), at(0)).expect("one of ten");
            limit.end(attempt, Ending::Failed, at(0));
        }
        let refusal = limit.begin(source(1), at(1000)).expect_err("the eleventh");
        assert_eq!(refusal, EnrolRefusal::TooManyAttempts { retry_seconds: 5 });
        assert!(limit.begin(source(2), at(1000)).is_ok(), "another source");
        assert!(limit.begin(source(1), at(6000)).is_ok());
    }

    #[test]
    fn thousand_honest_machines_behind_one_address_that_wait_as_told_join_within_half_a_minute() {
        let mut limit = JoinLimit::default();
        let mut due = std::collections::BTreeMap::from([(0, 1000)]);
        let mut last = 0;
        while let Some((millis, machines)) = due.pop_first() {
            for _ in 0..machines {
                match limit.begin(source(1), at(millis)) {
                    Ok(attempt) => {
                        limit.end(attempt, Ending::Honest, at(millis));
                        last = millis;
                    }
                    Err(EnrolRefusal::Busy { retry_seconds }) => {
                        *due.entry(millis + retry_seconds * 1000).or_default() += 1;
                    }
                    Err(refusal) => panic!("{refusal}"),
                }
            }
        }
        assert!(last <= 30_000, "{last} ms");
    }

    #[test]
    fn all_sources_together_keep_to_the_manager_s_pace() {
        let mut limit = JoinLimit::default();
        let begun = (0..3000).filter(|&n| match limit.begin(source(n), at(0)) {
            Ok(attempt) => {
                limit.end(attempt, Ending::Honest, at(0));
                true
            }
            Err(refusal) => {
                assert_eq!(refusal, EnrolRefusal::Busy { retry_seconds: 1 });
                false
            }
        });
        assert_eq!(begun.count(), 1000);
    }

    #[test]
    fn one_source_has_a_share_of_the_attempts_that_are_open_at_a_time() {
        let mut limit = JoinLimit::default();
        let open: Vec<_> = (0..100).map_while(|_| limit.begin(source(1), at(0)).ok()).collect();
        assert_eq!(open.len(), OPEN_OF_SOURCE);
        assert_eq!(limit.begin(source(1), at(0)).expect_err("full"), EnrolRefusal::Busy { retry_seconds: 1 });
        open.into_iter().for_each(|attempt| limit.end(attempt, Ending::Honest, at(0)));
        assert!(limit.begin(source(1), at(0)).is_ok());
    }

    #[test]
    fn flood_from_ever_new_sources_fills_no_memory_and_forgives_nobody() {
        let mut limit = JoinLimit::default();
        for _ in 0..10 {
            let attempt = limit.begin(source(0), at(0)).expect("one of ten");
            limit.end(attempt, Ending::Failed, at(0));
        }
        for n in 1..20_000 {
            if let Ok(attempt) = limit.begin(source(n), at(u64::from(n) / 2)) {
                limit.end(attempt, Ending::Failed, at(u64::from(n) / 2));
            }
        }
        assert!(limit.sources.len() <= MAX_SOURCES + 1, "{}", limit.sources.len());
        assert!(limit.begin(source(0), at(0)).is_err());
        // Ten minutes later all is forgotten.
        limit.sources.retain(|_, of| of.is_remembered(at(600_000)));
        assert_eq!(limit.sources.len(), 0);
    }

    fn source(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000) + Duration::from_millis(millis)
    }
}
