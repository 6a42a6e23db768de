//! A manager whose state was restored from a backup elsewhere: what it has is an old copy, and two managers
//! with one identity would tell the nodes different things. As soon as it hears of the other it ends, and it
//! does not start again.
//!
//! It hears of it by the list of removed nodes, which every node has and passes on: a restore raises its
//! epoch by more than anything else does, and signs it, so nobody but the other can say so.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::attachments::blocking;
use super::dataplane::Removed;
use super::manager::Manager;
use super::office::Office;
use crate::control::store::Store;
use crate::id::Epoch;

/// Refuses to serve what was restored elsewhere, by the list that this node had when it last ran.
pub(super) fn refuse(manager: Option<&Arc<Manager>>, removed: &Removed, store: &Store) -> anyhow::Result<()> {
    let signed = removed.signed.as_deref();
    let newest = signed.and_then(|signed| signed.claim().ok());
    let is_old = newest.is_some_and(|list| manager.is_some_and(|m| is_replaced(m, list.epoch)));
    if !is_old {
        return Ok(());
    }
    let dir = store.file().parent().unwrap_or(store.file());
    anyhow::bail!(
        "this manager was replaced: a backup of its state was restored elsewhere, and other nodes follow that \
         manager; two with one identity would tear the cluster apart, so this one does not go on. Delete its \
         state directory ({}), then it can join the cluster as a new node",
        dir.display()
    )
}

/// What managers share is the newest there is, and this one hears of it there.
pub(super) fn is_replaced(manager: &Manager, removals: Epoch) -> bool {
    manager.state.shared_store().is_none() && manager.state.is_overtaken_by(removals)
}

/// Ends the agent when it hears that its state was restored elsewhere.
pub(super) async fn listen(
    office: Arc<Office>,
    mut removed: watch::Receiver<Removed>,
    store: Store,
    failed: mpsc::Sender<anyhow::Error>,
) {
    while removed.changed().await.is_ok() {
        let now = removed.borrow_and_update().clone();
        let Err(replaced) = refuse(office.manager().as_ref(), &now, &store) else { continue };
        // The next start knows it before it serves anybody.
        let saving = store.clone();
        if let Some(signed) = now.signed
            && let Err(error) = blocking(move || saving.put_removals(&signed)).await
        {
            tracing::warn!(%error, "that this manager was replaced was not saved: the next start hears of it again");
        }
        // The agent is ending already when nobody listens.
        let _ = failed.send(replaced).await;
    }
    std::future::pending::<()>().await;
}
