//! Managers that come and go beside this one, where the cluster's state is in a store that they can share.

use super::Manager;
use crate::cluster::{Node, Role};
use crate::control::rpc::messages::{ChangeNode, ChangedNode, Done, Leave, NodeChange, StoreAccess};
use crate::control::rpc::{ErrorKind, ManagerClient, ManagerError};
use crate::control::tls::peer::PeerIdentity;
use crate::id::{HostName, NodeId};

impl Manager {
    /// Makes a worker a manager, if there can be several.
    pub(super) async fn promote(&self, name: HostName, node: &Node) -> Result<ChangedNode, ManagerError> {
        if self.state.shared_store().is_none() {
            let why = format!("node {} ({}) stays a worker: {ONE_MANAGER}", node.name, node.id);
            return Err(ManagerError::new(ErrorKind::Conflict, why));
        }
        let promoted = self.on_state(move |state| state.promote(&name)).await?;
        tracing::info!(node = %promoted.id, name = %promoted.name, "made a manager");
        Ok(self.changed(promoted))
    }

    /// Makes a manager a worker. What it signed is signed anew, which it cannot do itself.
    pub(super) async fn demote(&self, name: HostName, node: &Node) -> Result<ChangedNode, ManagerError> {
        if self.state.managers().len() == 1 {
            let why = format!(
                "node {} ({}) stays a manager: it is the only one, and without it the cluster could not be changed \
                 any more",
                node.name, node.id
            );
            return Err(ManagerError::new(ErrorKind::Conflict, why));
        }
        if node.id == self.this() {
            let change = NodeChange::Demote;
            return self.others_of_office()?.change_node(ChangeNode { node: name, change }).await;
        }
        let demoted = self.on_state(move |state| state.demote(&name)).await?;
        tracing::info!(node = %demoted.id, name = %demoted.name, "made a worker");
        Ok(self.changed(demoted))
    }

    /// The answer about a change that is made, from what is known here: it does not depend on whether the store can
    /// be asked once more.
    fn changed(&self, node: Node) -> ChangedNode {
        let (profile, endpoints) = (self.state.profile(node.id), self.state.endpoints_of(node.id).len());
        ChangedNode { node, profile, lost: Vec::new(), endpoints }
    }

    /// Removes the caller from the cluster; this manager itself has another do it.
    pub(super) async fn dismiss(&self, caller: PeerIdentity) -> Result<Done, ManagerError> {
        if caller.node == self.this() && self.state.managers().len() > 1 {
            return self.others_of_office()?.leave(Leave {}).await;
        }
        if self.state.removed_nodes().contains(&caller.node) {
            // Its answer was lost.
            return Ok(Done {});
        }
        let expires = self.latest_certificate_of(Some(&caller));
        self.on_state(move |state| {
            state.remove_node(caller.node, expires, crate::control::state::Takes::Endpoints)
        })
        .await?;
        Ok(Done {})
    }

    /// What a manager needs to reach the cluster's state.
    pub(super) fn store_access(&self) -> Result<StoreAccess, ManagerError> {
        let shared = self.state.shared_store();
        let shared = shared.ok_or_else(|| ManagerError::new(ErrorKind::Conflict, ONE_MANAGER))?;
        Ok(StoreAccess { shared, unlock_key: self.own.unlock_key() })
    }

    /// Whether this node is the cluster's only manager; not if it is none any more, and another the only one.
    pub(in crate::agent) fn is_alone(&self) -> bool {
        let managers = self.state.managers();
        managers.len() == 1 && managers.iter().all(|manager| manager.id == self.this())
    }

    /// A client of the managers but this one.
    pub(super) fn others_of_office(&self) -> Result<ManagerClient, ManagerError> {
        let others: Vec<_> = self.other_managers().map(|node| node.advertise).collect();
        if others.is_empty() {
            let why = "this manager is the only one, and only another could do that";
            return Err(ManagerError::new(ErrorKind::Conflict, why));
        }
        Ok(ManagerClient::new(self.credentials.clone(), others))
    }

    pub(super) fn this(&self) -> NodeId {
        self.credentials.identity().node()
    }

    /// Refuses a new manager where there can be one only.
    pub(super) fn require_room_for(&self, role: Role) -> Result<(), &'static str> {
        if role == Role::Manager && self.state.shared_store().is_none() { Err(ONE_MANAGER) } else { Ok(()) }
    }
}

/// Why there is no second manager.
const ONE_MANAGER: &str = "this cluster keeps its state in an embedded store, which has one \
     manager: overlayd store migrate etcd://HOST:2379 brings it where several can share it";

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use super::super::tests::{manager, node};
    use super::*;
    use crate::control::rpc::ManagerApi;
    use crate::control::rpc::messages::RemoveNode;
    use crate::id::Version;
    use crate::io::clock::wall_clock;

    #[tokio::test]
    async fn demoted_manager_serves_nobody_any_more_and_what_a_worker_asks_is_judged_by_the_state() {
        let (manager, _dir) = manager();
        let other = node(NodeId::from_entropy([9; 16]), Role::Manager, 2);
        manager.state.add_node(other.clone()).expect("added");
        let caller = caller(other.id);
        assert_eq!(ManagerApi::role(&manager, &caller), Role::Manager);
        manager.state.demote(&other.name).expect("demoted");
        assert_eq!(ManagerApi::role(&manager, &caller), Role::Worker);
        manager.state.promote(&other.name).expect("promoted");
        assert_eq!(ManagerApi::role(&manager, &caller), Role::Manager);

        assert_eq!(ManagerApi::serves(&manager), Ok(()));
        let this = manager.state.node(manager.this()).expect("a member");
        let waiting = tokio::spawn({
            let manager = Arc::clone(&manager);
            async move { manager.dismissed().await }
        });
        manager.state.demote(&this.name).expect("demoted");
        waiting.await.expect("told");
        assert!(
            !manager.is_alone(),
            "the other is, and what it keeps is not to be taken along by who leaves"
        );
        let refused = ManagerApi::serves(&manager).expect_err("no manager");
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        assert!(refused.message.ends_with("ask 192.0.2.2:2377"), "{refused}");
    }

    #[tokio::test]
    async fn change_that_is_made_is_told_whatever_happens_next() {
        let (manager, _dir) = manager();
        let other = node(NodeId::from_entropy([9; 16]), Role::Manager, 2);
        manager.state.add_node(other.clone()).expect("added");
        let mut demoting = pin!(manager.demote(other.name.clone(), &other));
        assert!(demoting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let role = || manager.state.node(other.id).expect("a member").role;
        while role() == Role::Manager {
            std::thread::yield_now();
        }
        // Another comes by the same name before the answer is put together.
        let namesake =
            Node { name: other.name.clone(), ..node(NodeId::from_entropy([8; 16]), Role::Worker, 3) };
        manager.state.add_node(namesake).expect("added");
        let changed = demoting.await.expect("it is a worker");
        assert_eq!((changed.node.id, changed.node.role), (other.id, Role::Worker));
        assert_eq!((changed.profile, changed.endpoints), (Default::default(), 0));
    }

    #[tokio::test]
    async fn manager_does_not_remove_itself_since_nobody_would_believe_what_it_signs() {
        let (manager, _dir) = manager();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let other = node(NodeId::from_entropy([9; 16]), Role::Manager, 2);
        let other = Node { advertise: nowhere, ..other };
        manager.state.add_node(other.clone()).expect("added");
        let this = manager.state.node(manager.this()).expect("a member");
        let request = RemoveNode { node: this.name.clone(), force: true };
        // The other, which is to do it, cannot be reached.
        let refused =
            ManagerApi::remove_node(&manager, caller(other.id), request).await.expect_err("not by itself");
        assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
        assert_eq!(manager.state.node(this.id), Some(this));
    }

    #[tokio::test]
    async fn embedded_store_has_one_manager() {
        let (manager, _dir) = manager();
        let worker = node(NodeId::from_entropy([9; 16]), Role::Worker, 2);
        manager.state.add_node(worker.clone()).expect("added");
        let refused = manager.promote(worker.name.clone(), &worker).await.expect_err("refused");
        assert!(refused.message.contains(ONE_MANAGER), "{refused}");
        assert!(manager.require_room_for(Role::Manager).is_err());
        assert!(Manager::store_access(&manager).is_err());
        let this = manager.state.node(manager.this()).expect("a member");
        let refused = manager.demote(this.name.clone(), &this).await.expect_err("refused");
        assert!(refused.message.contains("it is the only one"), "{refused}");
    }

    /// A node whose certificate said manager once.
    fn caller(node: NodeId) -> PeerIdentity {
        PeerIdentity {
            node,
            role: Role::Manager,
            issued_at: Version::new(0),
            address: SocketAddr::from(([192, 0, 2, 2], 40000)),
            certificate_expires: wall_clock(),
        }
    }
}
