//! How much broadcast and multicast a container may cause: a token bucket for each port.
//!
//! One flooded frame is one token, however many receivers it is replicated to; a super-frame is as
//! many as it has segments. Owned by `datapath::egress`.

use super::bucket::TokenBucket;
use crate::boot_time::BootTime;

/// Rate and burst of flooded frames of one port and lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodLimit {
    /// Frames a second in the long run.
    pub frames_per_second: u32,
    /// Frames at once after a silence.
    pub burst: u32,
}

impl Default for FloodLimit {
    fn default() -> Self {
        Self { frames_per_second: 1000, burst: 1000 }
    }
}

impl FloodLimit {
    /// Takes a token for each of `frames` out of the bucket of a port, if there are so many.
    pub(super) fn take(self, bucket: &TokenBucket, frames: usize, now: BootTime) -> bool {
        let Some(cost_ns) = NANOS_PER_SECOND.checked_div(u64::from(self.frames_per_second)) else {
            return false;
        };
        bucket.take(cost_ns * frames as u64, cost_ns * u64::from(self.burst), now)
    }
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMIT: FloodLimit = FloodLimit { frames_per_second: 10, burst: 3 };

    #[test]
    fn burst_then_the_rate_then_the_burst_again() {
        let bucket = TokenBucket::default();
        let start = BootTime::from_nanos(5_000_000_000);
        let taken = |now| (0..10).filter(|_| LIMIT.take(&bucket, 1, now)).count();
        assert_eq!(taken(start), 3);
        assert_eq!(taken(start + Duration::from_millis(99)), 0);
        assert_eq!(taken(start + Duration::from_millis(100)), 1);
        assert_eq!(taken(start + Duration::from_secs(60)), 3);
    }

    #[test]
    fn super_frame_costs_its_segments_or_nothing() {
        let bucket = TokenBucket::default();
        let now = BootTime::from_nanos(5_000_000_000);
        assert!(!LIMIT.take(&bucket, 4, now), "more than the burst");
        assert!(LIMIT.take(&bucket, 3, now));
        assert!(!LIMIT.take(&bucket, 1, now));
    }

    #[test]
    fn rate_of_zero_floods_nothing() {
        let limit = FloodLimit { frames_per_second: 0, burst: 3 };
        assert!(!limit.take(&TokenBucket::default(), 1, BootTime::from_nanos(1)));
    }
}
