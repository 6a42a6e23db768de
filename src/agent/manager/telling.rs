//! When the sessions are told what changed: all at the same moments, so that what is said is made once for all
//! of them, and the less often the more there are.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Manager;

impl Manager {
    /// Has the sessions told of every change from now on, until the state ends.
    pub(in crate::agent) async fn keep_telling(self: Arc<Self>) {
        let mut versions = self.state.versions();
        loop {
            let version = *versions.borrow_and_update();
            self.sessions.tell(version);
            let next = Instant::now() + interval(self.sessions.count());
            if versions.changed().await.is_err() {
                return;
            }
            // Many changes at once are told as one.
            sleep_until(next.max(Instant::now() + BATCH)).await;
        }
    }

    /// Ends the sessions, so that the nodes go to another manager. They outlive what serves them.
    pub(in crate::agent) fn end_sessions(&self) {
        self.sessions.end_all();
    }

    /// Does that whenever this manager does not reach the cluster's state.
    pub(in crate::agent) async fn keep_ending(self: Arc<Self>) {
        let mut store = self.store.subscribe();
        // The sender is in this.
        while store.wait_for(|has_store| !has_store).await.is_ok() {
            self.end_sessions();
            let _ = store.wait_for(|has_store| *has_store).await;
        }
    }
}

/// The least time between two moments.
fn interval(sessions: usize) -> Duration {
    BATCH + FOR_EACH_SESSION * u32::try_from(sessions).unwrap_or(u32::MAX)
}

const BATCH: Duration = Duration::from_millis(20);
/// Twice what it takes to tell one node of a change; a thousand take a quarter of a second.
const FOR_EACH_SESSION: Duration = Duration::from_micros(200);
