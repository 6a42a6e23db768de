//! A manager whose state was restored from a backup elsewhere: what it has is an old copy, and two managers
//! with one identity would tell the nodes different things. As soon as it hears of the other it ends, and it
//! does not start again. Managers that shared a store with it are none in the restored state: they leave it to
//! the other, and go on as its nodes.
//!
//! It hears of it by the list of removed nodes, which every node has and passes on: a restore raises its
//! epoch by more than anything else does, and signs it, so nobody but the other can say so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::attachments::blocking;
use super::dataplane::Removed;
use super::manager::Manager;
use super::office::Office;
use crate::control::store::Store;
use crate::id::Epoch;

/// Refuses to serve what was restored elsewhere, by the list that this node had when it last ran.
pub(super) fn refuse(manager: Option<&Arc<Manager>>, removed: &Removed, store: &Store) -> anyhow::Result<()> {
    let is_old = epoch(removed).zip(manager).is_some_and(|(epoch, manager)| is_replaced(manager, epoch));
    if is_old { Err(replaced(store)) } else { Ok(()) }
}

/// Whether a list is of a state that was restored from a backup of this manager's, as far as that is known here.
pub(super) fn is_replaced(manager: &Manager, removals: Epoch) -> bool {
    manager.state.is_overtaken_by(removals)
}

/// Ends the agent when it hears that its state was restored elsewhere.
pub(super) async fn listen(
    office: Arc<Office>,
    removed: watch::Receiver<Removed>,
    store: Store,
    failed: mpsc::Sender<anyhow::Error>,
) {
    let mut seat = office.seat();
    loop {
        let holder = seat.borrow_and_update().clone();
        let now = tokio::select! {
            now = until_replaced(holder.as_ref(), removed.clone(), false) => now,
            changed = seat.changed() => match changed {
                Ok(()) => continue,
                // The agent is ending.
                Err(_) => std::future::pending().await,
            },
        };
        // The next start knows it before it serves anybody.
        let saving = store.clone();
        if let Some(signed) = now.signed
            && let Err(error) = blocking(move || saving.put_removals(&signed)).await
        {
            tracing::warn!(%error, "that this manager was replaced was not saved: the next start hears of it again");
        }
        // The agent is ending already when nobody listens.
        let _ = failed.send(replaced(&store)).await;
        std::future::pending::<()>().await;
    }
}

/// Resolves once a manager hears that it is none in a state that was restored elsewhere.
pub(super) async fn until_demoted(manager: &Arc<Manager>, removed: watch::Receiver<Removed>) {
    until_replaced(Some(manager), removed, true).await;
}

/// Resolves once the state of a manager was restored elsewhere, where the manager is one still or, if that is
/// asked for, none.
async fn until_replaced(
    manager: Option<&Arc<Manager>>,
    mut removed: watch::Receiver<Removed>,
    as_worker: bool,
) -> Removed {
    loop {
        let now = removed.borrow_and_update().clone();
        let mut unknown = false;
        if let (Some(manager), Some(epoch)) = (manager, epoch(&now))
            && is_replaced(manager, epoch)
            && manager.is_demoted_by(&now.demoted) == as_worker
        {
            // What managers share may be that very state, and they hear of it there.
            match manager.freshen().await {
                Ok(()) if is_replaced(manager, epoch) => return now,
                Ok(()) => {}
                Err(_) => unknown = true,
            }
        }
        tokio::select! {
            changed = removed.changed() => if changed.is_err() {
                // The agent is ending.
                std::future::pending::<()>().await;
            },
            () = tokio::time::sleep(PAUSE), if unknown => {}
        }
    }
}

fn epoch(removed: &Removed) -> Option<Epoch> {
    Some(removed.signed.as_deref()?.claim().ok()?.epoch)
}

fn replaced(store: &Store) -> anyhow::Error {
    let dir = store.file().parent().unwrap_or(store.file());
    Superseded { dir: dir.to_owned() }.into()
}

/// Why an agent ends for good.
#[derive(Debug, thiserror::Error)]
#[error(
    "this manager was replaced: a backup of its state was restored elsewhere, and other nodes follow that \
     manager; two with one identity would tear the cluster apart, so this one does not go on. Delete its \
     state directory ({}), then it can join the cluster as a new node",
    dir.display()
)]
pub struct Superseded {
    dir: PathBuf,
}

impl Superseded {
    /// The exit code by which a service manager knows not to start it again.
    pub const EXIT_CODE: u8 = 3;
}

/// Before a store is asked again that could not be.
const PAUSE: Duration = Duration::from_secs(1);
