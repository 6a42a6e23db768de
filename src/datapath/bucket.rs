//! A token bucket: what has been taken of something that is earned with time.
//!
//! It is counted in the nanoseconds that it takes to earn what was taken (the generic cell rate
//! algorithm, ITU-T I.371), so that it needs no clock to be filled. Under `datapath::flood` and
//! `datapath::limit`; those know rates and bursts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::boot_time::BootTime;

/// A bucket, full at first. Lanes may share one: it orders nothing but itself.
#[derive(Debug, Default)]
pub(super) struct TokenBucket {
    /// When it will be full again.
    full_at: AtomicU64,
}

impl TokenBucket {
    /// Takes what takes `cost_ns` to earn, if no more than `burst_ns` is missing then.
    pub(super) fn take(&self, cost_ns: u64, burst_ns: u64, now: BootTime) -> bool {
        let taken = |full_at: u64| {
            let missing = full_at.saturating_sub(now.as_nanos());
            (missing + cost_ns <= burst_ns).then(|| now.as_nanos() + missing + cost_ns)
        };
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// Takes what takes `cost_ns` to earn, whether it is there or not.
    pub(super) fn charge(&self, cost_ns: u64, now: BootTime) {
        let charged = |full_at: u64| Some(full_at.max(now.as_nanos()).saturating_add(cost_ns));
        // It cannot fail: there is always something to store.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charged);
    }

    /// Fills it.
    pub(super) fn fill(&self) {
        self.full_at.store(0, Ordering::Relaxed);
    }

    /// When no more than `burst_ns` will be missing.
    pub(super) fn reaches(&self, burst_ns: u64) -> BootTime {
        BootTime::from_nanos(self.full_at.load(Ordering::Relaxed).saturating_sub(burst_ns))
    }
}
