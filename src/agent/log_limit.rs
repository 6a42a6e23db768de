//! How often a line that others can cause is written to the log.

use std::time::Duration;

use crate::boot_time::BootTime;

/// Lets one line through per second; the others are for whoever listens at debug level.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    written: Option<BootTime>,
}

impl LogLimit {
    /// Whether a line may be written now.
    pub(crate) fn permits(&mut self, now: BootTime) -> bool {
        let is_due = self.written.is_none_or(|written| now.since(written) >= INTERVAL);
        if is_due {
            self.written = Some(now);
        }
        is_due
    }
}

const INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_let_through_each_second() {
        let mut limit = LogLimit::default();
        let start = BootTime::default() + Duration::from_secs(100);
        let permitted = (0u32..30).filter(|tenth| limit.permits(start + Duration::from_millis(100) * *tenth));
        assert_eq!(permitted.collect::<Vec<_>>(), [0, 10, 20]);
    }
}
