//! When a lane looks again instead of going to sleep.
//!
//! A sleeping thread is woken through the scheduler, often on a processor that has to leave its own
//! sleep: 10 to 80 µs, four times in a request and its response. In a conversation, where single packets
//! come soon after each other, a lane therefore polls for a while, and gives its processor to whoever
//! wants it after every look. The window grows and shrinks with success, as that of the kernel's own
//! polling hypervisor does (`virt/kvm/kvm_main.c`, `grow_halt_poll_ns`). There are two: who asks now and
//! then has his answer soon after each question, and nothing to do for long after each answer.
//!
//! In a conversation a lane also expects one packet at a time, and spares itself the system call that
//! would find no second one.
//!
//! A stream is served better by a lane that sleeps: more has gathered when it wakes. So does a processor
//! that others want: only a sleeper is preferred by the scheduler when its packet comes. Owned by `turn`.

use std::time::Duration;

use crate::boot_time::BootTime;

/// The patience of one lane.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// The longest window; zero switches polling off.
    longest: Duration,
    /// After each `Direction`.
    windows: [Duration; 2],
    /// Of what was served last.
    last: Direction,
    /// When the lane last had something to do.
    served: BootTime,
    /// Until then it does not poll.
    resting_until: BootTime,
    /// Turns in a row that came right behind the one before.
    streak: u32,
}

/// Where the last word went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the wire to a container.
    In,
    /// From a container, to the wire or to another.
    Out,
}

/// What a lane has done in one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Work {
    /// Frames and datagrams, or runs of them.
    pub(super) packets: usize,
    pub(super) bytes: usize,
}

impl Work {
    /// Whether it may have been one side's word in a conversation.
    pub(super) fn is_light(self) -> bool {
        self.packets <= LIGHT_PACKETS && self.bytes <= LIGHT_BYTES
    }

    pub(super) fn add(&mut self, packets: usize, bytes: usize) {
        self.packets += packets;
        self.bytes += bytes;
    }
}

impl BusyPoll {
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            longest,
            windows: [Duration::ZERO; 2],
            last: Direction::In,
            served: BootTime::from_nanos(0),
            resting_until: BootTime::from_nanos(0),
            streak: 0,
        }
    }

    /// Whether to look again without sleeping.
    pub(super) fn is_patient(&self, now: BootTime) -> bool {
        now.since(self.served) < self.windows[self.last as usize] && now >= self.resting_until
    }

    /// Whether what is there now is probably one packet, so that asking for a second would be in vain:
    /// the next word of a conversation. One that comes at once behind another of its direction is not.
    pub(super) fn expects_a_word(&self, now: BootTime, direction: Direction) -> bool {
        let is_in_conversation = self.windows.iter().any(|window| !window.is_zero());
        let is_new = direction != self.last || now.since(self.served) >= CLOSE;
        is_in_conversation && is_new && now >= self.resting_until
    }

    /// A look without sleep found nothing and gave the processor away from `from` until `now`.
    pub(super) fn yielded(&mut self, from: BootTime, now: BootTime) {
        if now.since(from) > CONTENDED {
            self.rest(now);
        }
    }

    /// A sleep was ended by something to do.
    pub(super) fn woken(&mut self, now: BootTime) {
        let window = &mut self.windows[self.last as usize];
        *window = if now.since(self.served) < self.longest {
            (*window * 2).max(SHORTEST).min(self.longest)
        } else if *window > SHORTEST {
            *window / 2
        } else {
            Duration::ZERO
        };
    }

    /// The lane had something to do from `from` on and has done it.
    pub(super) fn served(&mut self, from: BootTime, now: BootTime, work: Work, direction: Direction) {
        let is_close = from.since(self.served) < CLOSE;
        self.streak = if is_close { self.streak.saturating_add(1) } else { 0 };
        if self.streak >= STREAM || !work.is_light() {
            self.rest(now);
        }
        (self.served, self.last) = (now, direction);
    }

    fn rest(&mut self, now: BootTime) {
        self.resting_until = now + REST;
    }
}

/// The longest window where a wake-up takes so long. The other side's turn has some of them: its lane, its
/// program, and what they wake in turn; and a window that is too short to begin with never finds out how
/// soon the answers come once nobody has to be woken.
pub fn longest_window(wake_up: Duration) -> Duration {
    (wake_up * WAKE_UPS).clamp(LEAST, MOST)
}

const WAKE_UPS: u32 = 6;
const LEAST: Duration = Duration::from_micros(100);
const MOST: Duration = Duration::from_micros(400);
/// The first window, and the last before none.
const SHORTEST: Duration = Duration::from_micros(10);
/// Away for longer, the lane waited for somebody with work of his own, not for the other side's turn.
const CONTENDED: Duration = Duration::from_micros(200);
const REST: Duration = Duration::from_millis(2);
/// No program answers that soon.
const CLOSE: Duration = Duration::from_micros(4);
const STREAM: u32 = 4;
/// A segment and an acknowledgment.
const LIGHT_PACKETS: usize = 2;
const LIGHT_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(100);

    const WORD: Work = Work { packets: 1, bytes: 80 };

    fn at(micros: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + micros * 1000)
    }

    fn served_at_zero(longest: Duration) -> BusyPoll {
        let mut poll = BusyPoll::new(longest);
        poll.served(at(0), at(0), WORD, Direction::In);
        poll
    }

    /// Sleeps for `micros` from `from` on, then has something to do.
    fn sleep(poll: &mut BusyPoll, from: u64, micros: u64) -> u64 {
        poll.woken(at(from + micros));
        poll.served(at(from + micros), at(from + micros), WORD, Direction::In);
        from + micros
    }

    #[test]
    fn short_sleeps_make_it_patient_up_to_the_longest_window() {
        let mut poll = served_at_zero(LONGEST);
        assert!(!poll.is_patient(at(0)));
        let mut now = sleep(&mut poll, 0, 30);
        assert!(poll.is_patient(at(now + 9)) && !poll.is_patient(at(now + 10)));
        for _ in 0..9 {
            now = sleep(&mut poll, now, 30);
        }
        assert!(poll.is_patient(at(now + 99)) && !poll.is_patient(at(now + 100)));
    }

    #[test]
    fn answers_are_awaited_though_questions_are_rare() {
        let mut poll = served_at_zero(LONGEST);
        let mut now = 0;
        for _ in 0..5 {
            now += 2_000;
            poll.woken(at(now));
            poll.served(at(now), at(now), WORD, Direction::Out);
            now += 70;
            poll.woken(at(now));
            poll.served(at(now), at(now), WORD, Direction::In);
            assert!(!poll.is_patient(at(now)), "the next question is long in coming");
        }
        poll.woken(at(now + 2_000));
        poll.served(at(now + 2_000), at(now + 2_000), WORD, Direction::Out);
        assert!(poll.is_patient(at(now + 2_070)));
    }

    #[test]
    fn word_is_expected_in_a_conversation_but_not_behind_another() {
        let mut poll = served_at_zero(LONGEST);
        assert!(!poll.expects_a_word(at(100), Direction::In), "nobody talks yet");
        let now = sleep(&mut poll, 0, 30);
        assert!(poll.expects_a_word(at(now + 50), Direction::In));
        assert!(poll.expects_a_word(at(now + 1), Direction::Out), "an answer");
        assert!(!poll.expects_a_word(at(now + 1), Direction::In), "more of the same");
        let now = now + 50;
        poll.served(at(now), at(now), Work { packets: 1, bytes: 60_000 }, Direction::In);
        assert!(!poll.expects_a_word(at(now + 50), Direction::In), "a super-frame");
    }

    #[test]
    fn long_sleeps_do_not() {
        let mut poll = served_at_zero(LONGEST);
        let now = sleep(&mut poll, 0, 2000);
        assert!(!poll.is_patient(at(now)));
    }

    #[test]
    fn windows_in_vain_shrink_to_nothing() {
        let mut poll = served_at_zero(LONGEST);
        let mut now = 0;
        for _ in 0..5 {
            now = sleep(&mut poll, now, 30);
        }
        let mut windows = 0;
        while poll.is_patient(at(now)) {
            let from = now;
            while poll.is_patient(at(now)) {
                now += 1;
                poll.yielded(at(now - 1), at(now));
            }
            assert!(now - from <= 100);
            windows += 1;
            now = sleep(&mut poll, now, 2_000);
        }
        assert!((2..=6).contains(&windows), "{windows}");
    }

    #[test]
    fn processor_that_others_want_is_left_to_them_for_a_while() {
        let mut poll = served_at_zero(LONGEST);
        let now = sleep(&mut poll, 0, 30);
        poll.yielded(at(now), at(now + 300));
        let now = sleep(&mut poll, now + 300, 30);
        assert!(!poll.is_patient(at(now)));
        let now = sleep(&mut poll, now, 2_000);
        let now = sleep(&mut poll, now, 30);
        assert!(poll.is_patient(at(now)));
    }

    #[test]
    fn streams_and_bulk_are_waited_for_asleep() {
        let mut poll = served_at_zero(LONGEST);
        let mut now = sleep(&mut poll, 0, 30);
        assert!(poll.is_patient(at(now)));
        for _ in 0..4 {
            now += 2;
            poll.served(at(now), at(now), WORD, Direction::In);
        }
        assert!(!poll.is_patient(at(now)), "one packet every 2 µs");

        let now = sleep(&mut poll, now, 5_000);
        let mut now = sleep(&mut poll, now, 30);
        assert!(poll.is_patient(at(now)));
        now += 5;
        poll.served(at(now), at(now), Work { packets: 1, bytes: 60_000 }, Direction::In);
        assert!(!poll.is_patient(at(now)), "a super-frame");
    }

    #[test]
    fn longest_window_grows_with_what_a_wake_up_takes() {
        let window = |micros| longest_window(Duration::from_micros(micros));
        assert_eq!(window(0), Duration::from_micros(100));
        assert_eq!(window(50), Duration::from_micros(300));
        assert_eq!(window(5_000), Duration::from_micros(400), "a machine that was busy when it was asked");
    }

    #[test]
    fn zero_switches_it_off() {
        let mut poll = served_at_zero(Duration::ZERO);
        let now = sleep(&mut poll, 0, 0);
        assert!(!poll.is_patient(at(now)));
    }
}
