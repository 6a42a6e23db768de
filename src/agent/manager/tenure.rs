//! For how long this node serves as a manager: until the cluster's state says that it is none, and while it
//! reaches that state. Who is cut off from it cannot know what the others have acknowledged meanwhile, so it
//! ends its sessions, and the nodes go to another manager.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Manager;
use crate::control::rpc::{ErrorKind, ManagerError};
use crate::control::store::Revision;

impl Manager {
    /// Resolves once this node is no manager any more.
    pub(in crate::agent) async fn dismissed(&self) {
        let mut versions = self.state.versions();
        loop {
            versions.borrow_and_update();
            if !self.is_in_office() {
                return;
            }
            if versions.changed().await.is_err() {
                // The state holds the sender, and this holds the state.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Refuses everybody once this node is no manager any more.
    pub(super) fn require_office(&self) -> Result<(), ManagerError> {
        if self.is_in_office() {
            return Ok(());
        }
        let managers: Vec<_> = self.addresses().iter().map(SocketAddr::to_string).collect();
        let why = format!("the node that was asked is no manager any more: ask {}", managers.join(" or "));
        Err(ManagerError::new(ErrorKind::Unavailable, why))
    }

    /// Keeps asking for the cluster's state, where it is not here.
    pub(in crate::agent) async fn keep_store(self: Arc<Self>) {
        let mut answered = Instant::now();
        loop {
            let (asked, rows) = (Instant::now(), self.state.rows());
            if rows.shared().is_none() {
                // It is here, but may be brought elsewhere.
                (answered, _) = (asked, sleep(LOOK_INTERVAL).await);
                continue;
            }
            let mut asking = tokio::task::spawn_blocking(move || rows.is_current(Revision::NOTHING));
            let ended = tokio::select! {
                ended = &mut asking => ended,
                () = sleep_until(answered + PATIENCE) => {
                    self.store.send_if_modified(|has_store| std::mem::replace(has_store, false));
                    asking.await
                }
            };
            if matches!(ended, Ok(Ok(_))) {
                answered = asked;
                self.store.send_if_modified(|has_store| !std::mem::replace(has_store, true));
            }
            sleep(ASK_INTERVAL).await;
        }
    }

    /// Refuses whoever wants to go on with this manager, while it does not reach the cluster's state.
    pub(super) fn require_store(&self) -> Result<(), ManagerError> {
        if *self.store.borrow() {
            return Ok(());
        }
        let why = "this manager does not reach the cluster's store: another manager may";
        Err(ManagerError::new(ErrorKind::Unavailable, why))
    }

    /// Resolves once this node is no manager any more, or does not reach the cluster's state.
    pub(super) async fn stopped_serving(&self) {
        let mut store = self.store.subscribe();
        tokio::select! {
            () = self.dismissed() => {}
            // The sender is in this.
            _ = store.wait_for(|has_store| !has_store) => {}
        }
    }

    fn is_in_office(&self) -> bool {
        self.state.is_in_office()
    }
}

/// How often a state that is here is looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often one that is elsewhere is asked for.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Longer than etcd takes to find another leader, or this node another member of it, and so short that
/// nodes are soon with another manager.
const PATIENCE: Duration = Duration::from_secs(3);
