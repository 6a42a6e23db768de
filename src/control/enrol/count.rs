//! How joins ended, since the agent started.

use std::sync::atomic::{AtomicU64, Ordering};

use super::EnrolRefusal;

/// Counts joins; read at any time.
#[derive(Debug, Default)]
pub struct JoinCounts {
    admitted: AtomicU64,
    refused: AtomicU64,
    turned_away: AtomicU64,
}

impl JoinCounts {
    /// Machines that became nodes.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Machines that were heard and refused: by their token, or by what they say of themselves.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Machines that were told to try again later, unheard.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    pub(super) fn count<T>(&self, outcome: &Result<T, EnrolRefusal>) {
        let counter = match outcome {
            Ok(_) => &self.admitted,
            Err(EnrolRefusal::TooManyAttempts { .. } | EnrolRefusal::Busy { .. }) => &self.turned_away,
            Err(
                EnrolRefusal::WrongSecret
                | EnrolRefusal::TokenExpired
                | EnrolRefusal::TokenUsed { .. }
                | EnrolRefusal::TokenRemoved
                | EnrolRefusal::NotTheHolder
                | EnrolRefusal::Invalid(_)
                | EnrolRefusal::Unavailable(_),
            ) => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
