//! Refusals on their way to the log: what anybody can cause costs ten lines a second at most.

use std::fmt;
use std::net::SocketAddr;

/// The lines of the current second.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    written: u32,
    silent: u32,
}

impl RefusalLog {
    /// Writes a line, or counts it.
    pub(super) fn note(&mut self, from: SocketAddr, what: &str, reason: &dyn fmt::Display) {
        if self.written < LINES_PER_SECOND {
            self.written += 1;
            tracing::warn!(%from, %reason, "{what} refused");
        } else {
            self.silent += 1;
        }
    }

    /// Tells how many were not written.
    pub(super) fn next_second(&mut self) {
        if self.silent > 0 {
            tracing::warn!(count = self.silent, "more refused within a second");
        }
        *self = Self::default();
    }
}

const LINES_PER_SECOND: u32 = 10;
