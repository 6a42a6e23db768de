//! How batches are timed of which a part alone counts.

use std::time::Duration;

use criterion::{Bencher, Throughput};
use overlayd::io::clock::boot_time;

/// Frames of a batch, as many as a run of `UDP_SEGMENT` often has.
pub(crate) const BATCH: usize = 32;

/// How long `work` takes.
pub(crate) fn time(work: impl FnOnce()) -> Duration {
    let begin = boot_time();
    work();
    boot_time().since(begin)
}

/// Measures what `batch` says that it took.
pub(crate) fn each_batch(b: &mut Bencher<'_>, mut batch: impl FnMut() -> Duration) {
    b.iter_custom(|batches| (0..batches).map(|_| batch()).sum());
}

/// Of so many frames of `len` octets.
pub(crate) fn frames(count: usize, len: usize) -> Throughput {
    Throughput::ElementsAndBytes { elements: count as u64, bytes: (count * len) as u64 }
}
