//! The members of the cluster: added when they enrol, removed by an operator or when they leave.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::model::{Change, Model};
use super::{ClusterState, NO_PANIC, StateError, subnets};
use crate::boot_time::BootTime;
use crate::cluster::{Node, Role};
use crate::id::NodeId;

/// A node and when it was heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node.
    pub node: Node,
    /// When it was heard of last, since this manager started.
    pub last_seen: Option<BootTime>,
}

impl ClusterState {
    /// Adds a node that enrols.
    ///
    /// # Errors
    /// When its id is or was in use, or an address of it lies in a network's subnet.
    pub fn add_node(&self, node: Node) -> Result<(), StateError> {
        self.change(|model| {
            if model.nodes.contains_key(&node.id) || model.removed.contains_key(&node.id) {
                return Err(StateError::NodeExists { node: node.id });
            }
            subnets::check_node(model, &node)?;
            Ok(((), vec![Change::PutNode(node)]))
        })
    }

    /// Takes note of where a node is reached now.
    ///
    /// # Errors
    /// When it is no member, or an address of it lies in a network's subnet.
    pub fn update_node(
        &self,
        id: NodeId,
        advertise: SocketAddr,
        data: SocketAddr,
        underlay_mtu: u32,
    ) -> Result<(), StateError> {
        self.change(|model| {
            let present = model.member(id)?;
            let node = Node { advertise, data, underlay_mtu, ..present.clone() };
            if node == *present {
                return Ok(((), Vec::new()));
            }
            subnets::check_node(model, &node)?;
            Ok(((), vec![Change::PutNode(node)]))
        })
    }

    /// Removes a node with its endpoints and memberships. Until its certificate expires
    /// (`certificate_expiry`, seconds since 1970) every node is told to refuse it.
    ///
    /// # Errors
    /// When there is no such node, or it is the only manager.
    pub fn remove_node(&self, id: NodeId, certificate_expiry: u64) -> Result<(), StateError> {
        self.change(|model| {
            let node = model.nodes.get(&id).ok_or(StateError::NoNode { node: id })?;
            let managers = model.nodes.values().filter(|n| n.role == Role::Manager).count();
            if node.role == Role::Manager && managers == 1 {
                return Err(StateError::LastManager { node: id, name: node.name.clone() });
            }
            let mut changes = self.drop_endpoints(model, id, |_| true)?;
            changes.push(Change::RemoveNode(id, certificate_expiry));
            Ok(((), changes))
        })?;
        self.inner.last_seen.lock().expect(NO_PANIC).remove(&id);
        Ok(())
    }

    /// Forgets the removed nodes whose certificates have expired by `now` (seconds since 1970).
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget_expired(&self, now: u64) -> Result<(), StateError> {
        self.change(|model| {
            let expired = model.removed.iter().filter(|&(_, &expiry)| expiry < now);
            Ok(((), expired.map(|(&id, _)| Change::ForgetRemoved(id)).collect()))
        })
    }

    /// Notes that a node was heard of; kept in memory alone.
    pub fn saw_node(&self, id: NodeId, now: BootTime) {
        self.inner.last_seen.lock().expect(NO_PANIC).insert(id, now);
    }

    /// The nodes, by id.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let last_seen: BTreeMap<NodeId, BootTime> = self.inner.last_seen.lock().expect(NO_PANIC).clone();
        let model = self.model();
        let nodes = model.nodes.values();
        nodes
            .map(|node| NodeStatus { node: node.clone(), last_seen: last_seen.get(&node.id).copied() })
            .collect()
    }

    /// The node of that id, if it is a member.
    pub fn node(&self, id: NodeId) -> Option<Node> {
        self.model().nodes.get(&id).cloned()
    }

    /// Nodes that were removed and whose certificates may still live.
    pub fn removed_nodes(&self) -> BTreeSet<NodeId> {
        self.model().removed.keys().copied().collect()
    }

    /// Refuses a caller that is no manager, naming the managers.
    ///
    /// # Errors
    /// When it is no member or a worker.
    pub fn require_manager(&self, id: NodeId, what: &'static str) -> Result<(), StateError> {
        let model = self.model();
        let node = model.member(id)?;
        match node.role {
            Role::Manager => Ok(()),
            Role::Worker => Err(StateError::NotManager {
                node: node.name.clone(),
                what,
                managers: model.managers().map(|m| format!("{} ({})", m.name, m.advertise)).collect(),
            }),
        }
    }
}

impl Model {
    /// The node of that id.
    pub(super) fn member(&self, id: NodeId) -> Result<&Node, StateError> {
        self.nodes.get(&id).ok_or(StateError::UnknownNode { node: id })
    }

    /// The managers.
    pub(super) fn managers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.role == Role::Manager)
    }
}
