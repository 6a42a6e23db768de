//! Who was removed from the cluster: refused by TLS, written down, and passed on to the peers.
//!
//! A manager tells it in the view, and peers tell it to one another on their key channels
//! (`agent/peer`), so that a node that no manager can reach learns it too. The lists come together in
//! [`super::placement`], which takes the removed nodes' keys; from there they are told here.

use std::sync::Arc;

use tokio::sync::watch;

use super::attachments::blocking;
use super::dataplane::{DataPlane, Removed};
use super::office::Office;
use super::saving::{self, File};
use crate::api::ApiError;
use crate::control::store::Store;
use crate::control::tls::Credentials;
use crate::membership::SignedRemovals;
use crate::worker::LaneGone;

/// Refuses whom this node knew to be removed when it last ran; called before it serves anybody.
pub(crate) async fn recall(
    store: &Store,
    dataplane: &Arc<DataPlane>,
    credentials: &Credentials,
) -> anyhow::Result<()> {
    let store = store.clone();
    let known = blocking(move || store.removals()).await?;
    if let Some(signed) = known
        && let Err(error) = dataplane
            .adopt_removals(signed)
            .await
            .map_err(|LaneGone| anyhow::anyhow!("a packet lane has ended"))?
    {
        tracing::warn!(%error, "the list of removed nodes in the state file is not believed");
    }
    refuse(credentials, &dataplane.removed().borrow());
    Ok(())
}

/// Keeps refusing whoever is removed.
pub(crate) async fn keep(
    mut removed: watch::Receiver<Removed>,
    store: Store,
    (credentials, office): (Arc<Credentials>, Arc<Office>),
) {
    let file = RemovalsFile { store, written: None };
    let saving = saving::keep(removed.clone(), "the list of removed nodes was", saving::PAUSE, file);
    let refusing = async {
        while removed.changed().await.is_ok() {
            let now = removed.borrow_and_update().clone();
            if office.manager().is_none() {
                refuse(&credentials, &now);
            } else {
                // A manager's trust follows its own list of members, which stands still while it does not reach the
                // store.
                credentials.change_trust(|trust| trust.refusing(&now.nodes, &now.demoted));
            }
        }
    };
    tokio::join!(refusing, saving);
}

/// Where the list is written down.
struct RemovalsFile {
    store: Store,
    written: Option<Arc<SignedRemovals>>,
}

impl File<Removed> for RemovalsFile {
    async fn save(&mut self, removed: Removed) -> Result<(), ApiError> {
        if removed.signed == self.written {
            return Ok(());
        }
        if let Some(list) = removed.signed.clone() {
            let store = self.store.clone();
            blocking(move || store.put_removals(&list)).await?;
        }
        self.written = removed.signed;
        Ok(())
    }
}

pub(crate) fn refuse(credentials: &Credentials, removed: &Removed) {
    credentials.change_trust(|trust| {
        trust.with_removed(removed.nodes.as_ref().clone()).with_demoted(removed.demoted.clone())
    });
}
