//! How much broadcast and multicast a container may cause, and how many answers to packets that are too
//! big: a token bucket of each for each port.
//!
//! One flooded frame is one token, however many receivers it is replicated to; a super-frame is as
//! many as it has segments. The lanes of a node share the buckets, so that the limit is the
//! container's and not the lane's: a bucket is one number, changed by compare and swap, and touched
//! by flooded frames alone. Used by `datapath::egress`.

use std::sync::Arc;

use super::bucket::TokenBucket;
use crate::boot_time::BootTime;
use crate::id::PortSlot;

/// Rate and burst of flooded frames of one port.
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

/// The limit, and what every port has used of it; clones share it.
#[derive(Debug, Clone)]
pub struct Flood {
    limit: FloodLimit,
    /// Ports whose slots are [`BUCKETS`] apart share one.
    buckets: Arc<[TokenBucket]>,
    /// The same for answers.
    answers: Arc<[TokenBucket]>,
}

impl Flood {
    /// Takes a token of the port's for each of `frames`, if there are so many; of a super-frame of more
    /// than any kernel makes none are taken, since it cannot be sent in parts and each goes to every node.
    pub(super) fn take(&self, port: PortSlot, frames: usize, now: BootTime) -> bool {
        if frames > MOST_SEGMENTS {
            return false;
        }
        let FloodLimit { frames_per_second, burst } = self.limit;
        let Some(cost_ns) = NANOS_PER_SECOND.checked_div(u64::from(frames_per_second)) else {
            return false;
        };
        bucket(&self.buckets, port).take(cost_ns * frames as u64, cost_ns * u64::from(burst), now)
    }

    /// Whether the port may get an answer. The next one that is made is to be taken with
    /// [`Self::take_answer`]: not everything is answered.
    pub(super) fn may_answer(&self, port: PortSlot, now: BootTime) -> bool {
        let missing = bucket(&self.answers, port).reaches(ANSWER_NS * (ANSWER_BURST - 1));
        missing <= now
    }

    /// Takes a token of the port's for an answer, if there is one.
    pub(super) fn take_answer(&self, port: PortSlot, now: BootTime) -> bool {
        bucket(&self.answers, port).take(ANSWER_NS, ANSWER_NS * ANSWER_BURST, now)
    }

    /// Fills the buckets of a port that is new in its slot.
    pub(super) fn fill(&self, port: PortSlot) {
        bucket(&self.buckets, port).fill();
        bucket(&self.answers, port).fill();
    }
}

impl From<FloodLimit> for Flood {
    fn from(limit: FloodLimit) -> Self {
        let buckets = || (0..BUCKETS).map(|_| TokenBucket::default()).collect();
        Self { limit, buckets: buckets(), answers: buckets() }
    }
}

fn bucket(buckets: &[TokenBucket], port: PortSlot) -> &TokenBucket {
    &buckets[port.index() % BUCKETS]
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A hundred a second: a sender of many flows hears of each soon enough, and none can make the lanes
/// busy with answers.
const ANSWER_NS: u64 = NANOS_PER_SECOND / 100;
const ANSWER_BURST: u64 = 100;

/// `UDP_MAX_SEGMENTS` of Linux since 6.9 (include/linux/udp.h): no TCP has a group address.
const MOST_SEGMENTS: usize = 128;

/// More than a node has containers; 32 KiB.
const BUCKETS: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMIT: FloodLimit = FloodLimit { frames_per_second: 10, burst: 3 };
    const PORT: PortSlot = PortSlot::new(7);

    #[test]
    fn burst_then_the_rate_then_the_burst_again() {
        let flood = Flood::from(LIMIT);
        let start = BootTime::from_nanos(5_000_000_000);
        let taken = |now| (0..10).filter(|_| flood.take(PORT, 1, now)).count();
        assert_eq!(taken(start), 3);
        assert_eq!(taken(start + Duration::from_millis(99)), 0);
        assert_eq!(taken(start + Duration::from_millis(100)), 1);
        assert_eq!(taken(start + Duration::from_secs(60)), 3);
    }

    #[test]
    fn super_frame_costs_its_segments_or_nothing() {
        let flood = Flood::from(LIMIT);
        let now = BootTime::from_nanos(5_000_000_000);
        assert!(!flood.take(PORT, 4, now), "more than the burst");
        assert!(flood.take(PORT, 3, now));
        assert!(!flood.take(PORT, 1, now));
    }

    #[test]
    fn super_frame_of_more_segments_than_kernels_make_floods_nothing_and_costs_nothing() {
        let flood = Flood::from(FloodLimit { frames_per_second: 1000, burst: 1000 });
        let now = BootTime::from_nanos(5_000_000_000);
        assert!(!flood.take(PORT, 129, now));
        assert_eq!((0..10).filter(|_| flood.take(PORT, 128, now)).count(), 7, "of the whole burst");
    }

    #[test]
    fn lanes_share_the_answers_of_a_container_and_know_before_they_make_one() {
        let (one, now) = (Flood::from(LIMIT), BootTime::from_nanos(5_000_000_000));
        let two = one.clone();
        for lane in [&one, &two].into_iter().cycle().take(100) {
            assert!(lane.may_answer(PORT, now) && lane.take_answer(PORT, now));
        }
        for lane in [&one, &two] {
            assert!(!lane.may_answer(PORT, now) && !lane.take_answer(PORT, now));
            assert!(lane.may_answer(PortSlot::new(8), now) && lane.take(PORT, 1, now), "another bucket");
        }
        let later = now + Duration::from_nanos(ANSWER_NS);
        assert!(two.may_answer(PORT, later) && one.take_answer(PORT, later) && !two.may_answer(PORT, later));
        one.fill(PORT);
        assert!(two.may_answer(PORT, now));
    }

    #[test]
    fn rate_of_zero_floods_nothing() {
        let flood = Flood::from(FloodLimit { frames_per_second: 0, burst: 3 });
        assert!(!flood.take(PORT, 1, BootTime::from_nanos(1)));
    }

    #[test]
    fn ports_have_buckets_of_their_own_and_a_new_one_begins_with_a_full_one() {
        let flood = Flood::from(LIMIT);
        let now = BootTime::from_nanos(5_000_000_000);
        assert!(flood.take(PORT, 3, now) && flood.take(PortSlot::new(8), 3, now));
        flood.fill(PORT);
        assert!(flood.take(PORT, 3, now) && !flood.take(PortSlot::new(8), 1, now));
    }

    #[test]
    fn lanes_that_flood_at_once_have_one_burst_together() {
        let flood = Flood::from(FloodLimit { frames_per_second: 1, burst: 1000 });
        let now = BootTime::from_nanos(5_000_000_000);
        let lane = || {
            let flood = flood.clone();
            std::thread::spawn(move || (0..1000).filter(|_| flood.take(PORT, 1, now)).count())
        };
        let lanes: Vec<_> = (0..4).map(|_| lane()).collect();
        let taken: usize = lanes.into_iter().map(|lane| lane.join().expect("no panic")).sum();
        assert_eq!(taken, 1000);
    }
}
