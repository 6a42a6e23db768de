//! When a lane lets frames gather before it looks again.
//!
//! A container that sends single frames fast wakes its lane for every few of them, and the lane takes the
//! processor from the programs at both ends: more is sent than whoever is to receive it finds the time to
//! read. Where many have come within a short time a lane therefore sleeps for a moment after a turn that
//! left none waiting, as a network card moderates its interrupts (`rx-usecs` of ethtool). Turns that are
//! full follow each other at once, so nothing is slowed down that needs all of a lane; super-frames have
//! gathered already. Owned by `turn`.

use std::time::Duration;

use super::busy_poll::Work;
use crate::boot_time::BootTime;

/// What has lately come from the TAPs of one lane.
#[derive(Debug)]
pub(super) struct Moderation {
    since: BootTime,
    /// Single frames since then.
    frames: usize,
    /// Something in this turn must not wait.
    is_urgent: bool,
}

impl Moderation {
    pub(super) fn new() -> Self {
        Self { since: BootTime::from_nanos(0), frames: 0, is_urgent: false }
    }

    /// A turn that began at `now` has taken `work` from a TAP, and has left some there or not.
    #[inline]
    pub(super) fn took(&mut self, work: Work, left_some: bool, now: BootTime) {
        if now.since(self.since) >= WINDOW {
            (self.since, self.frames) = (now, 0);
        }
        self.frames += work.packets;
        self.is_urgent |= left_some || work.bytes > work.packets * LONGEST_SINGLE;
    }

    /// How long to sleep after this turn.
    #[inline]
    pub(super) fn pause(&mut self) -> Option<Duration> {
        let is_urgent = std::mem::take(&mut self.is_urgent);
        if is_urgent || self.frames < MANY {
            return None;
        }
        self.frames = 0;
        Some(PAUSE)
    }
}

/// So many within `WINDOW` are a sender at full speed: 80,000 frames a second.
const MANY: usize = 16;
const WINDOW: Duration = Duration::from_micros(200);
/// The kernel lets a sleeper wait for up to 50 µs more (`PR_SET_TIMERSLACK`).
const PAUSE: Duration = Duration::from_micros(50);
/// On average; what is longer is a stream's, merged by the container's kernel.
const LONGEST_SINGLE: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + micros * 1000)
    }

    fn singles(packets: usize) -> Work {
        Work { packets, bytes: packets * 1400 }
    }

    #[test]
    fn fast_sender_s_frames_gather() {
        let mut moderation = Moderation::new();
        let mut pauses = 0;
        for turn in 0..100 {
            moderation.took(singles(4), false, at(turn * 25));
            pauses += usize::from(moderation.pause().is_some());
        }
        assert_eq!(pauses, 25, "one for each sixteen frames");
    }

    #[test]
    fn slow_sender_s_frames_leave_at_once() {
        let mut moderation = Moderation::new();
        for turn in 0..100 {
            moderation.took(singles(1), false, at(turn * 20));
            assert_eq!(moderation.pause(), None, "50,000 a second");
        }
    }

    #[test]
    fn what_is_left_waiting_does_not_wait_longer() {
        let mut moderation = Moderation::new();
        for turn in 0..100 {
            moderation.took(singles(64), true, at(turn * 50));
            moderation.took(singles(1), false, at(turn * 50));
            assert_eq!(moderation.pause(), None);
        }
        moderation.took(singles(1), false, at(5_000));
        assert_eq!(moderation.pause(), Some(PAUSE), "the flood has been taken");
    }

    #[test]
    fn stream_does_not_wait_behind_a_flood() {
        let mut moderation = Moderation::new();
        moderation.took(Work { packets: 3, bytes: 180_000 }, false, at(0));
        moderation.took(singles(30), false, at(0));
        assert_eq!(moderation.pause(), None);
        moderation.took(singles(30), false, at(60));
        assert_eq!(moderation.pause(), Some(PAUSE), "it has nothing in this turn");
    }
}
