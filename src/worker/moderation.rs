//! When a lane pauses between the turns of a fast sender, for whoever is to receive what it sends.
//!
//! A container that sends single frames as fast as it can gets most of what its processor can do, and
//! its lane much of the rest. The lane is woken for every few frames, or finds a full queue when the
//! scheduler has kept it waiting, and sends that in one burst; either way the program at the far end does
//! not find the time to read, and loses what its socket buffer cannot hold after all the work has been
//! done. So where the processor is wanted by others a lane sleeps for a moment after each turn that had
//! many single frames, as a network card moderates its interrupts (`rx-usecs` of ethtool): they leave in
//! even batches, and what is too much is dropped by the container's own kernel, where it costs least.
//! Super-frames are a stream's, which knows how fast it may send. Owned by `turn`.

use std::time::Duration;

use super::busy_poll::Work;

/// How long to sleep after a turn that took `work` off the TAPs; `is_wanted` is whether others want the
/// processor, and is asked only where it matters.
#[inline]
pub(super) fn pause_after(work: Work, is_wanted: impl FnOnce() -> bool) -> Option<Duration> {
    let is_fast = work.packets >= MANY && work.bytes <= work.packets * LONGEST_SINGLE;
    (is_fast && is_wanted()).then_some(PAUSE)
}

/// What comes while a pause lasts, at 160,000 frames a second.
const MANY: usize = 16;
/// On average; what is longer is a super-frame.
const LONGEST_SINGLE: usize = 2048;
/// The kernel lets a sleeper wait for up to 50 µs more (`PR_SET_TIMERSLACK`).
const PAUSE: Duration = Duration::from_micros(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn singles(packets: usize) -> Work {
        Work { packets, bytes: packets * 1400 }
    }

    #[test]
    fn fast_sender_s_lane_pauses_where_others_want_the_processor() {
        assert_eq!(pause_after(singles(64), || true), Some(PAUSE));
        assert_eq!(pause_after(singles(16), || true), Some(PAUSE));
        assert_eq!(pause_after(singles(64), || false), None);
    }

    #[test]
    fn words_and_streams_leave_at_once() {
        assert_eq!(pause_after(singles(15), || unreachable!("it does not matter")), None);
        let stream = Work { packets: 16, bytes: 16 * 20_000 };
        assert_eq!(pause_after(stream, || unreachable!("it does not matter")), None);
        let mut beside_a_flood = singles(64);
        beside_a_flood.add(4, 240_000);
        assert_eq!(pause_after(beside_a_flood, || unreachable!("it does not matter")), None);
    }
}
