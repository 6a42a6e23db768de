//! For how long this node serves as a manager: until the cluster's state says that it is none, and while it
//! reaches that state. Who is cut off from it cannot know what the others have acknowledged meanwhile, so it
//! ends its sessions, and the nodes go to another manager.
//!
//! Whether it reaches the state it finds by asking for the head, which also finds what the watch has not told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Manager;
use crate::control::rpc::{ErrorKind, ManagerError};
use crate::id::{NodeId, Version};

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

    /// Whether a list of demoted managers names this one with the certificate that it has.
    pub(in crate::agent) fn is_demoted_by(&self, demoted: &BTreeMap<NodeId, Version>) -> bool {
        let identity = self.credentials.identity();
        demoted.get(&identity.node()).is_some_and(|until| identity.issued_at() <= *until)
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
            let (asked, state) = (Instant::now(), self.state.clone());
            if state.rows().shared().is_none() {
                // It is here, but may be brought elsewhere.
                (answered, _) = (asked, sleep(LOOK_INTERVAL).await);
                continue;
            }
            let mut asking = tokio::task::spawn_blocking(move || state.look());
            let ended = tokio::select! {
                ended = &mut asking => ended,
                () = sleep_until(answered + PATIENCE) => {
                    self.store.send_if_modified(|has_store| std::mem::replace(has_store, false));
                    asking.await
                }
            };
            if matches!(ended, Ok(Ok(()))) {
                answered = asked;
                self.store.send_if_modified(|has_store| !std::mem::replace(has_store, true));
            }
            sleep(ASK_INTERVAL).await;
        }
    }

    /// Does something with the cluster's state for one who wants to go on with this manager; refuses as soon as
    /// it does not reach that state.
    pub(super) async fn with_store<T>(
        &self,
        work: impl Future<Output = Result<T, ManagerError>>,
    ) -> Result<T, ManagerError> {
        let has_store = self.reaches_store_soon().await;
        let mut store = self.store.subscribe();
        tokio::select! {
            done = work, if has_store => done,
            _ = store.wait_for(|has_store| !has_store) => Err(no_store()),
        }
    }

    /// Refuses everybody while this node does not serve.
    pub(in crate::agent) fn require_service(&self) -> Result<(), ManagerError> {
        if *self.store.borrow() { self.require_office() } else { Err(no_store()) }
    }

    /// The same, after a moment in which that may pass.
    pub(super) async fn service_soon(&self) -> Result<(), ManagerError> {
        self.reaches_store_soon().await;
        self.require_service()
    }

    /// Whether the store is reached within a moment: whoever comes from a manager that has died may come while etcd
    /// elects a leader.
    async fn reaches_store_soon(&self) -> bool {
        let mut store = self.store.subscribe();
        timeout(MOMENT, store.wait_for(|has_store| *has_store)).await.is_ok()
    }

    fn is_in_office(&self) -> bool {
        self.state.is_in_office()
    }
}

pub(super) fn no_store() -> ManagerError {
    let why = "this manager does not reach the cluster's store: another manager may";
    ManagerError::new(ErrorKind::Unavailable, why)
}

/// How often a state that is here is looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often one that is elsewhere is asked for.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Longer than etcd takes to find another leader, or this node another member of it, and so short that
/// nodes are soon with another manager.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one who comes is kept waiting for the state: another manager may reach it.
const MOMENT: Duration = Duration::from_secs(1);
