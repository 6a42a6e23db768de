//! When a lane pauses between the turns of a fast sender, for whoever is to receive what it sends.
//!
//! A container that sends single frames as fast as it can gets most of what its processor can do, and
//! its lane much of the rest. The lane is woken for every few frames, or finds a full queue when the
//! scheduler has kept it waiting, and sends that in one burst; either way the program at the far end does
//! not find the time to read, and loses what its socket buffer cannot hold after all the work has been
//! done. So where the processor is wanted by others a lane sleeps for a moment after each turn that had
//! many single frames, as a network card moderates its interrupts (`rx-usecs` of ethtool): they leave in
//! even batches, and what is too much is dropped by the container's own kernel, where it costs least.
//! Super-frames are a stream's, which knows how fast it may send; so are the acknowledgments of one that
//! arrives. Owned by `turn`.

use std::time::Duration;

use super::busy_poll::Work;
use crate::boot_time::BootTime;

/// What a lane knows of the streams that arrive.
#[derive(Debug)]
pub(super) struct Moderation {
    /// Until then what leaves in single frames may be their acknowledgments.
    streams_until: BootTime,
}

impl Moderation {
    pub(super) fn new() -> Self {
        Self { streams_until: BootTime::from_nanos(0) }
    }

    /// How long to sleep after a turn that took `taken` off the TAPs and `received` octets off the wire;
    /// `is_wanted` is whether others want the processor, and is asked only where it matters.
    #[inline]
    pub(super) fn pause_after(
        &mut self,
        (taken, received): (Work, usize),
        now: BootTime,
        is_wanted: impl FnOnce() -> bool,
    ) -> Option<Duration> {
        if received >= STREAM_OCTETS {
            self.streams_until = now + AWAY;
        }
        let is_fast = taken.packets >= MANY && taken.bytes <= taken.packets * LONGEST_SINGLE;
        (is_fast && now >= self.streams_until && is_wanted()).then_some(PAUSE)
    }
}

/// What comes while a pause lasts, at 160,000 frames a second.
const MANY: usize = 16;
/// On average; what is longer is a super-frame.
const LONGEST_SINGLE: usize = 2048;
/// The kernel lets a sleeper wait for up to 50 µs more (`PR_SET_TIMERSLACK`).
const PAUSE: Duration = Duration::from_micros(50);
/// What a turn receives of a stream: a run of segments.
const STREAM_OCTETS: usize = 16 * 1024;
/// A lane is not kept waiting longer than some milliseconds between a stream's runs.
const AWAY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn singles(packets: usize) -> Work {
        Work { packets, bytes: packets * 1400 }
    }

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn fast_sender_s_lane_pauses_where_others_want_the_processor() {
        let mut moderation = Moderation::new();
        assert_eq!(moderation.pause_after((singles(64), 0), at(0), || true), Some(PAUSE));
        assert_eq!(moderation.pause_after((singles(16), 0), at(0), || true), Some(PAUSE));
        assert_eq!(moderation.pause_after((singles(64), 0), at(0), || false), None);
    }

    #[test]
    fn words_and_streams_leave_at_once() {
        let mut moderation = Moderation::new();
        let mut leaves_at_once = |work| {
            assert_eq!(moderation.pause_after((work, 0), at(0), || unreachable!("it does not matter")), None);
        };
        leaves_at_once(singles(15));
        leaves_at_once(Work { packets: 16, bytes: 16 * 20_000 });
        let mut beside_a_flood = singles(64);
        beside_a_flood.add(4, 240_000);
        leaves_at_once(beside_a_flood);
    }

    #[test]
    fn acknowledgments_of_a_stream_leave_at_once() {
        let mut moderation = Moderation::new();
        let acknowledgments = Work { packets: 32, bytes: 32 * 66 };
        assert_eq!(moderation.pause_after((acknowledgments, 60_000), at(0), || true), None, "in one turn");
        assert_eq!(
            moderation.pause_after((acknowledgments, 0), at(1), || true),
            None,
            "in a turn of their own"
        );
        assert_eq!(
            moderation.pause_after((acknowledgments, 100), at(9), || true),
            Some(PAUSE),
            "of no stream"
        );
    }
}
