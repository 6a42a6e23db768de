//! What a manager does with other nodes when an operator asks for it.

use std::sync::Arc;
use std::time::Duration;

use super::Manager;
use super::colleagues::Census;
use crate::cluster::{Node, Role};
use crate::control::rpc::messages::{
    ChangeNode, ChangedNode, InspectNode, Leave, NodeChange, NodeDetail, NodeStatus, ProfileChange,
    RemoveNode, RemovedNode,
};
use crate::control::rpc::{ErrorKind, ManagerError};
use crate::control::state::Takes;
use crate::control::tls::peer::PeerIdentity;
use crate::id::HostName;
use crate::io::clock::{boot_time, wall_clock};

impl Manager {
    /// Removes a node other than the caller.
    pub(super) async fn remove(
        &self,
        caller: &PeerIdentity,
        request: RemoveNode,
    ) -> Result<RemovedNode, ManagerError> {
        let node = self.state.find_node(&request.node)?;
        let refuse = |why: String| Err(ManagerError::new(ErrorKind::Conflict, why));
        let named = format!("node {} ({})", node.name, node.id);
        if node.id == caller.node && self.other_nodes() > 0 {
            return refuse(format!("{named} is this one: take it out with overlayd leave"));
        }
        let endpoints = self.state.endpoints_of(node.id).len();
        let is_connected = !request.force && self.census().await.connected.contains(&node.id);
        if is_connected && node.id != caller.node {
            let has = if endpoints == 0 { String::new() } else { format!(" and has {endpoints} endpoints") };
            return refuse(format!(
                "{named} is connected{has}: let it leave (overlayd leave on it), or remove it with --force, which \
                 cuts it off at once"
            ));
        }
        if node.id == self.this() && !self.is_alone() {
            if !request.force {
                return refuse(format!(
                    "{named} is the manager that was asked: let it leave (overlayd leave on it)"
                ));
            }
            // It signs what others are to believe, which is nothing that says that it was removed.
            self.others_of_office()?.leave(Leave {}).await?;
            return Ok(RemovedNode { node, endpoints });
        }
        let takes = if request.force { Takes::Endpoints } else { Takes::Nothing };
        let (id, expires) = (node.id, self.latest_certificate_of(None));
        self.on_state(move |state| state.remove_node(id, expires, takes)).await?;
        tracing::info!(node = %id, name = %node.name, by = %caller.node, endpoints, "node removed");
        Ok(RemovedNode { node, endpoints })
    }

    /// Describes a node.
    pub(super) async fn describe(&self, request: &InspectNode) -> Result<NodeDetail, ManagerError> {
        let node = self.state.find_node(&request.node)?;
        let census = self.census().await;
        Ok(NodeDetail {
            last_seen_seconds: census.away_seconds(node.id),
            endpoints: self.state.endpoints_of(node.id),
            status: self.status_of(node, &census),
        })
    }

    /// Changes a node; what is so already is no error.
    pub(super) async fn change(&self, request: ChangeNode) -> Result<ChangedNode, ManagerError> {
        let ChangeNode { node: name, change } = request;
        let node = self.state.find_node(&name)?;
        match (change, node.role) {
            (NodeChange::Update(change), _) => self.update(name, change).await,
            (NodeChange::Promote, Role::Manager) | (NodeChange::Demote, Role::Worker) => {
                self.update(name, ProfileChange::default()).await
            }
            (NodeChange::Promote, Role::Worker) => self.promote(name, &node).await,
            (NodeChange::Demote, Role::Manager) => self.demote(name, &node).await,
        }
    }

    pub(super) async fn update(
        &self,
        name: HostName,
        change: ProfileChange,
    ) -> Result<ChangedNode, ManagerError> {
        let changed = self.on_state(move |state| state.change_profile(&name, &change)).await?;
        for (network, endpoint) in &changed.lost {
            let (node, endpoint) = (&changed.node.name, endpoint.id);
            tracing::info!(%node, %network, %endpoint, "the node's labels are not the network's any more: endpoint taken back");
        }
        Ok(changed)
    }

    fn status_of(&self, node: Node, census: &Census) -> NodeStatus {
        NodeStatus {
            connected: census.connected.contains(&node.id),
            manager: census.manager(node.id),
            profile: self.state.profile(node.id),
            endpoints: self.state.endpoints_of(node.id).len(),
            node,
        }
    }

    /// Forgets removed nodes once no certificate of theirs can be shown any more, from now on.
    pub(crate) async fn forget_removed(self: Arc<Self>) {
        loop {
            let (wall, boot) = (wall_clock(), boot_time());
            tokio::time::sleep(Duration::from_hours(1)).await;
            // A clock is believed to be so late once it has been for an hour: it may be ahead by any time until it is
            // set after the machine has started, and who is forgotten too early is let in again.
            let long_ago = wall_clock().min(wall + boot_time().since(boot)).saturating_sub(CLOCKS_APART);
            let now = u64::try_from(long_ago.unix_timestamp()).unwrap_or(0);
            if let Err(error) = self.on_state(move |state| state.forget_expired(now)).await {
                tracing::warn!(%error, "removed nodes whose certificates have expired could not be forgotten");
            }
        }
    }

    /// The last moment, in seconds since 1970, at which any certificate of a node ends: that which it was
    /// seen with, or one that it had signed just now.
    pub(super) fn latest_certificate_of(&self, seen: Option<&PeerIdentity>) -> u64 {
        let latest = wall_clock().saturating_add(self.certificate_life());
        let latest = seen.map_or(latest, |seen| latest.max(seen.certificate_expires));
        u64::try_from(latest.unix_timestamp()).unwrap_or(0)
    }
}

/// For so long after its certificates have expired by our clock, a node that was removed is still refused by
/// name. Each of four clocks may be wrong by two days: ours when the certificate was signed, when the node was
/// removed and now, and that of the peer which it is shown to.
const CLOCKS_APART: time::Duration = time::Duration::days(10);
