//! Whether others want the processor that a lane runs on: it has lately been made to leave it.
//!
//! Asked where a lane has the choice to leave work undone for a moment. Owned by `turn`.

use std::time::Duration;

use crate::boot_time::BootTime;

/// What a lane knows of the others.
#[derive(Debug)]
pub(super) struct Contention {
    /// How often the lane had been made to leave its processor when that was last asked.
    preemptions: u64,
    ask_again: BootTime,
    wanted_until: BootTime,
}

impl Contention {
    pub(super) fn new() -> Self {
        let start = BootTime::from_nanos(0);
        Self { preemptions: 0, ask_again: start, wanted_until: start }
    }

    /// `preemptions` is a system call, and is not made every time.
    #[inline]
    pub(super) fn is_wanted(&mut self, now: BootTime, preemptions: impl FnOnce() -> u64) -> bool {
        if now >= self.ask_again {
            self.ask_again = now + ASK;
            let preemptions = preemptions();
            if std::mem::replace(&mut self.preemptions, preemptions) != preemptions {
                self.wanted_until = now + WANTED;
            }
        }
        now < self.wanted_until
    }
}

const ASK: Duration = Duration::from_micros(500);
/// So long others are believed to want the processor after they took it.
const WANTED: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn taken_processor_is_wanted_for_a_while() {
        let mut contention = Contention::new();
        assert!(contention.is_wanted(at(1), || 7));
        assert!(contention.is_wanted(at(2), || 7), "a moment ago");
        assert!(!contention.is_wanted(at(90), || 7), "nobody wants it any more");
        assert!(contention.is_wanted(at(92), || 8));
    }

    #[test]
    fn kernel_is_not_asked_every_time() {
        let mut contention = Contention::new();
        assert!(contention.is_wanted(at(1), || 7));
        assert!(contention.is_wanted(at(1), || unreachable!("asked at this instant")));
        let mut asked = false;
        contention.is_wanted(at(2), || {
            asked = true;
            7
        });
        assert!(asked);
    }
}
