//! The time by which join tokens expire: the wall clock, but it never goes back.
//!
//! While the manager runs, a wall clock that is set back changes nothing: time goes on as the boot clock
//! does. It is no earlier than anything that the tokens tell of, so that of several managers the one whose
//! clock is ahead decides; of what a clock is set back
//! by while no manager runs, tokens that had not ended profit.

use std::sync::Mutex;

use time::OffsetDateTime;

use crate::boot_time::BootTime;

/// Gives the time in seconds since 1970.
#[derive(Debug)]
pub(super) struct TokenClock {
    /// The latest time given, in nanoseconds since 1970, and when that was.
    latest: Mutex<(u128, BootTime)>,
}

impl TokenClock {
    /// A clock that is never before `seconds` since 1970.
    pub(super) fn since(seconds: u64, boot: BootTime) -> Self {
        Self { latest: Mutex::new((u128::from(seconds) * NANOS, boot)) }
    }

    /// Now, by the two clocks, and no earlier than `known`, in seconds since 1970.
    pub(super) fn now(&self, wall: OffsetDateTime, boot: BootTime, known: u64) -> u64 {
        let mut latest = self.latest.lock().expect("nothing panics while it looks at the clock");
        let (time, then) = *latest;
        let wall = u128::try_from(wall.unix_timestamp_nanos()).unwrap_or(0);
        let now = wall.max(time + boot.since(then).as_nanos()).max(u128::from(known) * NANOS);
        *latest = (now, boot.max(then));
        u64::try_from(now / NANOS).unwrap_or(u64::MAX)
    }
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clock_that_is_set_back_neither_goes_back_nor_stands_still() {
        let start = BootTime::from_nanos(5);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let clock = TokenClock::since(0, start);
        assert_eq!(clock.now(wall(1000), at(0), 0), 1000);
        assert_eq!(clock.now(wall(1010), at(10), 0), 1010);
        // Set back by 900 s.
        assert_eq!(clock.now(wall(111), at(11), 0), 1011);
        assert_eq!(clock.now(wall(120), at(20), 0), 1020);
        // Set forward: believed.
        assert_eq!(clock.now(wall(5000), at(21), 0), 5000);
        // Another manager, whose clock is ahead, has written something down.
        assert_eq!(clock.now(wall(5001), at(22), 6000), 6000);
        assert_eq!(clock.now(wall(5002), at(23), 0), 6001);
    }

    #[test]
    fn clock_of_a_new_start_is_not_before_what_is_known() {
        let start = BootTime::from_nanos(5);
        let clock = TokenClock::since(2000, start);
        assert_eq!(clock.now(wall(1000), start, 0), 2000);
        assert_eq!(clock.now(wall(1030), start + Duration::from_secs(30), 0), 2030);
        assert_eq!(clock.now(wall(3000), start, 0), 3000);
    }

    fn wall(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).expect("a time")
    }
}
