//! The members of the cluster: added when they enrol, removed by an operator or when they leave.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::managers::Demoted;
use super::model::{Change, Model, RemovalsRow};
use super::network_state::NetworkState;
use super::networks::MOST_NAMED;
use super::{ClusterState, NO_PANIC, StateError, subnets};
use crate::boot_time::BootTime;
use crate::cluster::{Endpoint, Node, NodeProfile, Role};
use crate::id::{Epoch, HostName, NetworkName, NodeId, Version};
use crate::membership::{Removals, SignedRemovals};

/// A node and when it was heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node.
    pub node: Node,
    /// What managers say of it.
    pub profile: NodeProfile,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// When it was heard of last, since this manager started.
    pub last_seen: Option<BootTime>,
}

/// What a removal may take with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: a node with endpoints stays.
    Nothing,
    /// Its endpoints.
    Endpoints,
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
            Ok(((), vec![Change::PutNode(node.clone())]))
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
        self.change_if_needed(|model| {
            let present = model.member(id)?;
            let node = Node { advertise, data, underlay_mtu, ..present.clone() };
            if node == *present {
                return Ok(((), Vec::new()));
            }
            subnets::check_node(model, &node)?;
            Ok(((), vec![Change::PutNode(node)]))
        })
    }

    /// Removes a node, with its endpoints and memberships if `takes` says so. Until its certificate
    /// expires (`certificate_expiry`, seconds since 1970) every node is told to refuse it.
    ///
    /// # Errors
    /// When there is no such node, it is the only manager, or it has endpoints that are not to be taken.
    pub fn remove_node(&self, id: NodeId, certificate_expiry: u64, takes: Takes) -> Result<(), StateError> {
        self.change(|model| Ok(((), self.removal(model, id, certificate_expiry, takes)?)))?;
        self.inner.last_seen.lock().expect(NO_PANIC).remove(&id);
        Ok(())
    }

    /// The changes that remove a node.
    pub(super) fn removal(
        &self,
        model: &Model,
        id: NodeId,
        certificate_expiry: u64,
        takes: Takes,
    ) -> Result<Vec<Change>, StateError> {
        let node = model.nodes.get(&id).ok_or_else(|| StateError::NoNode { node: id.to_string() })?;
        if node.role == Role::Manager && model.managers().count() == 1 {
            return Err(StateError::LastManager { node: id, name: node.name.clone() });
        }
        if takes == Takes::Nothing {
            refuse_in_use(model, node)?;
        }
        let mut changes = self.drop_endpoints(model, id, |_| true)?;
        let demoted = match node.role {
            Role::Manager => &self.disbelieve(model, id, &mut changes)?,
            Role::Worker => &model.demoted,
        };
        changes.push(Change::RemoveNode(id, certificate_expiry));
        let mut removed = model.removed.clone();
        removed.insert(id, certificate_expiry);
        changes.push(self.removals(model, &removed, demoted)?);
        Ok(changes)
    }

    /// Forgets the removed nodes whose certificates have expired by `now` (seconds since 1970).
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget_expired(&self, now: u64) -> Result<(), StateError> {
        self.change_if_needed(|model| {
            let mut left = model.removed.clone();
            left.retain(|_, expiry| *expiry >= now);
            let expired = model.removed.keys().filter(|id| !left.contains_key(id));
            let mut changes: Vec<_> = expired.map(|id| Change::ForgetRemoved(*id)).collect();
            if !changes.is_empty() {
                changes.push(self.removals(model, &left, &model.demoted)?);
            }
            Ok(((), changes))
        })
    }

    /// The change to the next list of removed nodes, signed. Of more than fit in a message between nodes
    /// it has those that expire last; managers tell of all.
    pub(super) fn removals(
        &self,
        model: &Model,
        removed: &BTreeMap<NodeId, u64>,
        demoted: &BTreeMap<NodeId, Demoted>,
    ) -> Result<Change, StateError> {
        let epoch = model.removals.as_ref().map_or(0, |row| row.epoch.get()) + 1;
        self.removals_of(Epoch::new(epoch), removed, demoted)
    }

    pub(super) fn removals_of(
        &self,
        epoch: Epoch,
        removed: &BTreeMap<NodeId, u64>,
        demoted: &BTreeMap<NodeId, Demoted>,
    ) -> Result<Change, StateError> {
        let mut latest: Vec<_> = removed.iter().map(|(id, expiry)| (*expiry, *id)).collect();
        latest.sort_unstable();
        let nodes = latest.into_iter().rev().take(MOST_PASSED_ON).map(|(_, id)| id).collect();
        let demoted = demoted.iter().map(|(id, row)| (*id, row.at)).collect();
        let signed = SignedRemovals::sign(&Removals { epoch, nodes, demoted }, &self.inner.sign)
            .map_err(|source| StateError::SigningRemovals { source })?;
        Ok(Change::PutRemovals(RemovalsRow { epoch, signed }))
    }

    /// Notes that a node was heard of; kept in memory alone.
    pub fn saw_node(&self, id: NodeId, now: BootTime) {
        let model = self.model();
        let mut seen = self.inner.last_seen.lock().expect(NO_PANIC);
        if model.nodes.contains_key(&id) {
            seen.insert(id, now);
        }
        // Others remove nodes too.
        if seen.len() > model.nodes.len() {
            seen.retain(|id, _| model.nodes.contains_key(id));
        }
    }

    /// When a node was heard of last, since this manager started.
    pub fn last_seen(&self, id: NodeId) -> Option<BootTime> {
        self.inner.last_seen.lock().expect(NO_PANIC).get(&id).copied()
    }

    /// When a node was added or removed last, or the roots changed that nodes trust.
    pub fn trust_changed(&self) -> Version {
        let model = self.model();
        model.members_changed.max(model.roots_changed)
    }

    /// The nodes, by id.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let last_seen: BTreeMap<NodeId, BootTime> = self.inner.last_seen.lock().expect(NO_PANIC).clone();
        let model = self.model();
        let nodes = model.nodes.values();
        nodes
            .map(|node| NodeStatus {
                profile: model.profile(node.id),
                endpoints: model.networks.values().filter_map(|state| state.members.get(&node.id)).sum(),
                last_seen: last_seen.get(&node.id).copied(),
                node: node.clone(),
            })
            .collect()
    }

    /// The node that an operator means by its name or id.
    ///
    /// # Errors
    /// When there is none, or several have the name.
    pub fn find_node(&self, name: &HostName) -> Result<Node, StateError> {
        self.model().find_node(name).cloned()
    }

    /// The endpoints of a node, by network.
    pub fn endpoints_of(&self, id: NodeId) -> Vec<(NetworkName, Endpoint)> {
        self.model().named_endpoints_of(id)
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
    /// The endpoints of a node, each with its network's name, by network.
    pub(super) fn named_endpoints_of(&self, id: NodeId) -> Vec<(NetworkName, Endpoint)> {
        let of = |state: &NetworkState| {
            let name = state.network.name.clone();
            let own = state.endpoints.values().filter(|endpoint| endpoint.node == id).cloned();
            own.map(|endpoint| (name.clone(), endpoint)).collect::<Vec<_>>()
        };
        self.networks.values().filter(|state| state.members.contains_key(&id)).flat_map(of).collect()
    }

    /// The node of that id.
    pub(super) fn member(&self, id: NodeId) -> Result<&Node, StateError> {
        self.nodes.get(&id).ok_or(StateError::UnknownNode { node: id })
    }

    /// The node of that id, or else of that name.
    pub(super) fn find_node(&self, name: &HostName) -> Result<&Node, StateError> {
        if let Some(node) = name.as_str().parse().ok().and_then(|id| self.nodes.get(&id)) {
            return Ok(node);
        }
        let mut named = self.nodes.values().filter(|node| node.name == *name);
        match (named.next(), named.next()) {
            (Some(node), None) => Ok(node),
            (None, _) => Err(StateError::NoNode { node: name.to_string() }),
            (Some(first), Some(second)) => {
                let all = [first, second].into_iter().chain(named);
                Err(StateError::AmbiguousNode { name: name.clone(), ids: all.map(|node| node.id).collect() })
            }
        }
    }

    /// The managers.
    pub(super) fn managers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.role == Role::Manager)
    }
}

/// Refuses a node that has endpoints, naming them.
fn refuse_in_use(model: &Model, node: &Node) -> Result<(), StateError> {
    let mut endpoints: Vec<_> = model.endpoints_of(node.id).map(|e| e.id.to_string()).collect();
    if endpoints.is_empty() {
        return Ok(());
    }
    let more = endpoints.len().saturating_sub(MOST_NAMED);
    endpoints.truncate(MOST_NAMED);
    Err(StateError::NodeInUse { node: node.id, name: node.name.clone(), endpoints, more })
}

/// How many removed nodes the list names that nodes pass on: some 56 KiB, which each node sends whole
/// on every new key channel. Former managers come on top: there are few.
const MOST_PASSED_ON: usize = 2000;
