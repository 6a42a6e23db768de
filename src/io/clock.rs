//! The clocks. Nothing else in the program reads one; all other code takes the time as an argument.

use rustix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;

use crate::boot_time::BootTime;

/// Now, on the clock that goes on through a suspend and never jumps (`CLOCK_BOOTTIME`).
///
/// # Panics
/// Never on Linux: the clock cannot be missing and does not go below zero.
pub fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the boot clock starts at zero");
    let nanos = u64::try_from(now.tv_nsec).expect("the kernel keeps nanoseconds below 10^9");
    BootTime::from_nanos(seconds * 1_000_000_000 + nanos)
}

/// Now, in UTC, as the operator and certificates see it; it may jump either way.
pub fn wall_clock() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn boot_time_moves_forward_with_a_sleep() {
        let before = boot_time();
        std::thread::sleep(Duration::from_millis(5));
        assert!(boot_time().since(before) >= Duration::from_millis(5));
    }

    #[test]
    fn wall_clock_is_in_utc_and_after_this_was_written() {
        assert!(wall_clock().offset().is_utc());
        assert!(wall_clock().year() >= 2025);
    }
}
