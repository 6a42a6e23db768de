//! Keeping the processors awake while containers converse.
//!
//! A processor that has nothing to do sleeps, and to leave its sleep takes a virtual machine longer than
//! all that is done for a packet, at every step from program to lane to lane to program. The kernel can be
//! asked to let its processors spin instead. That costs all that they would have slept, so it is asked for
//! only where it pays, while lanes are woken for one word after the other, both ways, and for a moment
//! after. Turns of many packets do not gain by it: more gathers while a processor wakes. Owned by `turn`.

use std::time::Duration;

use super::busy_poll::{Direction, Work};
use super::wish::{WINDOW, Wish};
use crate::boot_time::BootTime;

/// How often a lane has been woken lately, and for what.
#[derive(Debug)]
pub(super) struct Wakings {
    vigil: Option<Wish>,
    /// When the window began.
    since: BootTime,
    /// For which it was woken.
    words: u32,
    /// After each `Direction`.
    has_carried: [bool; 2],
    has_bulk: bool,
}

impl Wakings {
    pub(super) fn new(vigil: Option<Wish>) -> Self {
        let since = BootTime::from_nanos(0);
        Self { vigil, since, words: 0, has_carried: [false; 2], has_bulk: false }
    }

    /// The lane has carried frames, until `now`; `may_have_slept` before, as it did not poll.
    #[inline]
    pub(super) fn carried(&mut self, work: Work, direction: Direction, may_have_slept: bool, now: BootTime) {
        let Some(vigil) = &self.vigil else { return };
        if now.since(self.since) >= WINDOW {
            (self.since, self.words, self.has_carried, self.has_bulk) = (now, 0, [false; 2], false);
        }
        self.has_bulk |= !work.is_light();
        self.has_carried[direction as usize] = true;
        if may_have_slept && !self.has_bulk {
            self.words += 1;
            if self.words >= OFTEN && self.has_carried == [true; 2] {
                vigil.ask();
            }
        }
    }
}

/// Whether it may pay to keep so many processors awake, where a wake-up takes so long.
pub fn may_pay(processors: usize, asleep: Duration) -> bool {
    processors <= FEW && asleep >= LONG
}

/// Whether it pays where a wake-up takes so long, and so long if they are kept awake.
pub fn pays(asleep: Duration, awake: Duration) -> bool {
    awake * 2 <= asleep
}

/// In a window: 200 a second.
const OFTEN: u32 = 10;
/// All of them spin, whichever the packets need.
const FEW: usize = 8;
/// Some times what a processor that no hypervisor has takes to leave a light sleep (`C1`).
const LONG: Duration = Duration::from_micros(10);

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: Work = Work { packets: 1, bytes: 80 };

    fn at(micros: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + micros * 1000)
    }

    fn wakings() -> Wakings {
        Wakings::new(Some(Wish::unheard()))
    }

    fn asked(wakings: &Wakings) -> bool {
        wakings.vigil.as_ref().unwrap().take_asked()
    }

    #[test]
    fn lane_that_is_woken_for_many_words_asks_in_every_window() {
        let mut wakings = wakings();
        for number in 0..10 {
            assert!(!asked(&wakings), "word {number} of 10 is not many");
            wakings.carried(WORD, Direction::Out, true, at(number * 2_000));
            wakings.carried(WORD, Direction::In, false, at(number * 2_000 + 70));
        }
        assert!(asked(&wakings));
        let (mut windows, mut now) = (0, 20_000);
        while windows < 5 {
            now += 2_000;
            wakings.carried(WORD, Direction::Out, true, at(now));
            wakings.carried(WORD, Direction::In, false, at(now + 70));
            if asked(&wakings) {
                windows = now / 50_000;
            }
            assert!(now < 400_000, "windows without a question");
        }
    }

    #[test]
    fn lane_that_is_woken_now_and_then_or_not_asleep_does_not() {
        let mut wakings = wakings();
        for number in 0..500 {
            wakings.carried(WORD, Direction::Out, true, at(number * 6_000));
            wakings.carried(WORD, Direction::In, false, at(number * 6_000 + 100));
            assert!(!asked(&wakings));
        }
    }

    #[test]
    fn what_goes_one_way_is_no_conversation() {
        for direction in [Direction::In, Direction::Out] {
            let mut wakings = wakings();
            for number in 0..500 {
                wakings.carried(Work { packets: 1, bytes: 1_200 }, direction, true, at(number * 2_000));
                assert!(!asked(&wakings));
            }
        }
    }

    #[test]
    fn stream_is_carried_by_processors_that_sleep() {
        let mut wakings = wakings();
        for number in 0..5_000 {
            let run = Work { packets: 1, bytes: 60_000 };
            wakings.carried(run, Direction::Out, true, at(number * 100));
            wakings.carried(WORD, Direction::In, true, at(number * 100 + 50));
            assert!(!asked(&wakings), "its acknowledgments are words");
        }
    }

    #[test]
    fn pays_only_where_wake_ups_are_dear_and_processors_few() {
        let micros = Duration::from_micros;
        assert!(may_pay(2, micros(50)) && may_pay(8, micros(10)));
        assert!(!may_pay(9, micros(50)) && !may_pay(2, micros(9)));
        assert!(pays(micros(50), micros(25)) && !pays(micros(50), micros(26)));
        assert!(!may_pay(1, Duration::ZERO), "nobody is woken from elsewhere");
    }
}
