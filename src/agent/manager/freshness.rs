//! Brings what this manager knows up to what all managers have acknowledged: whoever asks for that while it is
//! being done shares the next time, so that a crowd costs the store two readings.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::Manager;
use crate::control::rpc::ManagerError;
use crate::control::state::ClusterState;

/// The readings so far.
#[derive(Debug)]
pub(super) struct Freshness {
    /// How many have begun.
    begun: AtomicU64,
    /// Which ended last, and how; held by the one that is under way.
    last: Mutex<(u64, Result<(), ManagerError>)>,
}

impl Default for Freshness {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), last: Mutex::new((0, Ok(()))) }
    }
}

impl Freshness {
    /// Reads, unless another has who began after this was asked for.
    async fn share<R>(&self, read: impl FnOnce() -> R) -> Result<(), ManagerError>
    where
        R: Future<Output = Result<(), ManagerError>>,
    {
        let before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.0 <= before {
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            *last = (number, read().await);
        }
        last.1.clone()
    }
}

impl Manager {
    /// Brings the state up to what all managers have acknowledged before this was asked for.
    pub(in crate::agent) async fn freshen(&self) -> Result<(), ManagerError> {
        if self.state.rows().shared().is_none() {
            return Ok(());
        }
        self.freshness.share(|| self.on_state(ClusterState::catch_up)).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;

    use super::*;
    use crate::control::rpc::ErrorKind;

    #[tokio::test]
    async fn crowd_is_served_by_two_readings_and_told_how_they_ended() {
        let (freshness, readings) = (Freshness::default(), Cell::new(0));
        let read = || async {
            readings.set(readings.get() + 1);
            tokio::task::yield_now().await;
            Ok(())
        };
        let crowd = join_all((0..1000).map(|_| freshness.share(read))).await;
        assert!(crowd.iter().all(Result::is_ok));
        assert!(readings.get() <= 2, "{} readings", readings.get());

        let lost = || ManagerError::new(ErrorKind::Unavailable, "etcd is gone");
        let fail = || async {
            tokio::task::yield_now().await;
            Err(lost())
        };
        let crowd = join_all((0..10).map(|_| freshness.share(fail))).await;
        assert!(crowd.iter().all(|ended| *ended == Err(lost())));
    }

    #[tokio::test]
    async fn each_that_comes_later_has_its_own_reading_and_who_goes_away_leaves_it_to_the_next() {
        let (freshness, readings) = (Freshness::default(), Cell::new(0));
        let read = || async {
            readings.set(readings.get() + 1);
            Ok(())
        };
        for _ in 0..3 {
            assert_eq!(freshness.share(read).await, Ok(()));
        }
        assert_eq!(readings.get(), 3);
        let never = || std::future::pending();
        let gone = tokio::time::timeout(std::time::Duration::from_millis(1), freshness.share(never)).await;
        assert!(gone.is_err());
        assert_eq!(freshness.share(read).await, Ok(()));
        assert_eq!(readings.get(), 4);
    }
}
