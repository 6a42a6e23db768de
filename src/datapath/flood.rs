//! How much broadcast and multicast a container may cause: a token bucket for each port.
//!
//! One flooded frame is one token, however many receivers it is replicated to; a super-frame is as
//! many as it has segments. Owned by `datapath::egress`.

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

/// The tokens of one port, counted in the nanoseconds that it takes to earn them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TokenBucket {
    /// When the bucket will be full again (the generic cell rate algorithm, ITU-T I.371).
    full_at: BootTime,
}

impl TokenBucket {
    /// Takes a token for each of `frames`, if there are so many.
    pub(super) fn take(&mut self, limit: FloodLimit, frames: usize, now: BootTime) -> bool {
        let Some(cost_ns) = NANOS_PER_SECOND.checked_div(u64::from(limit.frames_per_second)) else {
            return false;
        };
        let debt_ns = self.full_at.as_nanos().saturating_sub(now.as_nanos());
        let more_ns = cost_ns * frames as u64;
        if debt_ns + more_ns > cost_ns * u64::from(limit.burst) {
            return false;
        }
        self.full_at = BootTime::from_nanos(now.as_nanos() + debt_ns + more_ns);
        true
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
        let mut bucket = TokenBucket::default();
        let start = BootTime::from_nanos(5_000_000_000);
        let taken = |bucket: &mut TokenBucket, now| (0..10).filter(|_| bucket.take(LIMIT, 1, now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(99)), 0);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(100)), 1);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(60)), 3);
    }

    #[test]
    fn super_frame_costs_its_segments_or_nothing() {
        let mut bucket = TokenBucket::default();
        let now = BootTime::from_nanos(5_000_000_000);
        assert!(!bucket.take(LIMIT, 4, now), "more than the burst");
        assert!(bucket.take(LIMIT, 3, now));
        assert!(!bucket.take(LIMIT, 1, now));
    }

    #[test]
    fn rate_of_zero_floods_nothing() {
        let limit = FloodLimit { frames_per_second: 0, burst: 3 };
        assert!(!TokenBucket::default().take(limit, 1, BootTime::from_nanos(1)));
    }
}
