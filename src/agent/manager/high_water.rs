//! How far the state in a shared store has come, written down beside it: an etcd that is put back to an earlier state
//! while no manager runs is known by that when they start again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::super::attachments::blocking;
use super::Manager;
use crate::api::ApiError;

impl Manager {
    /// Keeps writing it down, a while after it changes: what is put back is older than that. It never falls.
    pub(in crate::agent) async fn keep_high_water(self: Arc<Self>) {
        let mut versions = self.state.versions();
        let mut trouble = None;
        loop {
            versions.borrow_and_update();
            let written = self.raise_high_water().await.err().map(|error| error.message);
            if written.is_some() && written != trouble {
                tracing::warn!(error = ?written, "how far the cluster's state has come was not saved; trying again");
            }
            trouble = written;
            sleep(PAUSE).await;
            if trouble.is_none() && versions.changed().await.is_err() {
                // The state holds the sender, and this holds the state.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn raise_high_water(&self) -> Result<(), ApiError> {
        let (own, state) = (self.own.clone(), self.state.clone());
        blocking(move || {
            let version = state.version();
            if state.rows().shared().is_none() || own.high_water()? >= Some(version) {
                return Ok(());
            }
            own.put_high_water(version)
        })
        .await
    }
}

/// The disk is spared most of a stream of changes.
const PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::tests::manager;
    use crate::id::Version;

    #[tokio::test]
    async fn state_in_the_file_has_no_mark() {
        let (manager, _dir) = manager();
        manager.raise_high_water().await.expect("done");
        assert_eq!(manager.own.high_water().expect("read"), None::<Version>);
    }
}
