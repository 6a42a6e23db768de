//! How fast a container may send, or be sent to: one limit for each port and direction.
//!
//! A frame may pass while no more than [`BURST`] is missing, however long it is, and is charged
//! afterwards; a super-frame so goes into debt, which is paid before the next frame passes. In the
//! long run the rate is exact, whoever looks how late: what was earned during [`BURST`] is not lost.
//!
//! All lanes share a limit, so that it holds for the container as a whole and one flow may use all of
//! it; where there is one, a frame costs a compare-and-exchange. Made by the agent. The worker asks it
//! before it reads a TAP, and [`super::Shaper`] before it hands on a frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::bucket::TokenBucket;
use crate::boot_time::BootTime;
use crate::rate::{Rate, RateLimits};

/// The limit of one direction of a port.
#[derive(Debug)]
pub struct RateLimit {
    rate: Rate,
    bucket: TokenBucket,
    /// Octets that wait for it in all lanes.
    waiting: AtomicUsize,
}

impl RateLimit {
    /// Nothing has passed yet.
    pub fn new(rate: Rate) -> Self {
        Self { rate, bucket: TokenBucket::default(), waiting: AtomicUsize::new(0) }
    }

    /// The rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Whether a frame may pass.
    pub fn is_open(&self, now: BootTime) -> bool {
        self.opens_at() <= now
    }

    /// When the next frame may pass, if no other does until then.
    pub fn opens_at(&self) -> BootTime {
        self.bucket.reaches(nanos(BURST))
    }

    /// Takes note of a frame that passed, with as many octets as it has on a wire.
    pub fn charge(&self, octets: usize, now: BootTime) {
        self.bucket.charge(nanos(self.rate.time_of(octets)), now);
    }

    /// Whether `octets` more may wait, so that all lanes together have no more than `most`; then they do.
    pub(super) fn begin_waiting(&self, octets: usize, most: usize) -> bool {
        let more = |waiting: usize| Some(waiting + octets).filter(|waiting| *waiting <= most);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// They wait no longer.
    pub(super) fn end_waiting(&self, octets: usize) {
        self.waiting.fetch_sub(octets, Ordering::Relaxed);
    }
}

/// The limits of a port, the same for all of its lanes; by default there is none.
#[derive(Debug, Clone, Default)]
pub struct PortLimits {
    /// From the container.
    pub egress: Option<Arc<RateLimit>>,
    /// To the container.
    pub ingress: Option<Arc<RateLimit>>,
}

impl PortLimits {
    /// Limits of which nothing has been used.
    pub fn new(rates: RateLimits) -> Self {
        let limit = |rate: Option<Rate>| rate.map(|rate| Arc::new(RateLimit::new(rate)));
        Self { egress: limit(rates.egress), ingress: limit(rates.ingress) }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// More than a busy machine lets a lane wait for its turn, so that nothing earned is lost meanwhile;
/// little enough that the first second is no more than 2 % above the rate.
const BURST: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    const START: BootTime = BootTime::from_nanos(5_000_000_000);

    fn limit(text: &str) -> RateLimit {
        RateLimit::new(text.parse().expect("a rate"))
    }

    /// Octets that pass in `time` if somebody looks every `interval` with frames of `len`.
    fn passed(limit: &RateLimit, len: usize, interval: Duration, time: Duration) -> usize {
        let (mut now, mut octets) = (START, 0);
        while now < START + time {
            while limit.is_open(now) {
                limit.charge(len, now);
                octets += len;
            }
            now = now + interval;
        }
        octets
    }

    #[test]
    fn rate_is_exact_but_for_the_burst_whatever_the_frames_and_however_late_the_looks() {
        for (rate, octets) in [("10mbit", 2_500_000), ("100mbit", 25_000_000), ("1gbit", 250_000_000)] {
            for (len, interval) in [(64, 20_000), (1_422, 1_000_000), (60_000, 50_000), (60_000, 15_000_000)]
            {
                let passed =
                    passed(&limit(rate), len, Duration::from_nanos(interval), Duration::from_secs(2));
                // The burst of 20 ms, and the debt of a frame.
                let most = octets + octets / 100 + len;
                assert!((octets..=most).contains(&passed), "{rate} in {len}: {passed} of {octets}");
            }
        }
    }

    #[test]
    fn frame_longer_than_the_burst_passes_and_is_paid_for() {
        let limit = limit("10mbit");
        assert!(limit.is_open(START));
        limit.charge(125_000, START);
        assert_eq!(limit.opens_at(), START + Duration::from_millis(100) - BURST);
        assert!(!limit.is_open(START + Duration::from_millis(79)));
        assert!(limit.is_open(START + Duration::from_millis(80)));
    }

    #[test]
    fn lanes_that_share_a_limit_share_its_rate() {
        let limits = PortLimits::new(RateLimits { egress: Some(Rate::MIN), ingress: None });
        let other = limits.clone();
        let (one, two) = (limits.egress.expect("a limit"), other.egress.expect("a limit"));
        one.charge(1_000, START);
        assert!(!two.is_open(START) && limits.ingress.is_none());
    }

    #[test]
    fn silence_is_not_saved_up() {
        let limit = limit("100mbit");
        limit.charge(1_000, START);
        let later = START + Duration::from_secs(3600);
        while limit.is_open(later) {
            limit.charge(1_000, later);
        }
        assert!(limit.opens_at().since(later) <= Duration::from_micros(80));
    }
}
