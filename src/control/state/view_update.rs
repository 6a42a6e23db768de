//! What a session tells a node: its view whole, and then what changes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cluster::{Endpoint, NetworkView, Node, View};
use crate::id::{EndpointId, NetworkId, NodeId, Version};
use crate::membership::{Roots, SignedMembership, SignedRemovals};

/// A change of what a node is told. The first of a session is full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewUpdate {
    /// The version of the cluster's state after it.
    pub version: Version,
    /// True when all that is not in it is gone.
    pub full: bool,
    /// The managers.
    pub managers: Vec<Node>,
    /// The removed nodes.
    pub removed: BTreeSet<NodeId>,
    /// The same as it was signed.
    #[serde(default)]
    pub removals: Option<SignedRemovals>,
    /// The roots that the cluster trusts, if they changed.
    #[serde(default)]
    pub roots: Option<Roots>,
    /// Networks that are new, whole.
    pub networks: Vec<NetworkView>,
    /// What changed of networks that the node knows.
    #[serde(default)]
    pub changes: Vec<NetworkChange>,
    /// Networks that the node is no longer a member of.
    pub gone: Vec<NetworkId>,
}

/// What changed of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkChange {
    /// The network.
    pub network: NetworkId,
    /// Its membership, if that is another.
    pub membership: Option<SignedMembership>,
    /// Endpoints that are new or changed.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that are gone.
    pub endpoints_gone: BTreeSet<EndpointId>,
    /// Nodes that are new or changed.
    pub nodes: Vec<Node>,
    /// Nodes that are gone.
    pub nodes_gone: BTreeSet<NodeId>,
}

impl ViewUpdate {
    /// All of `view`.
    pub fn full(view: &View) -> Self {
        Self {
            version: view.version,
            full: true,
            managers: view.managers.clone(),
            removed: view.removed.clone(),
            removals: view.removals.clone(),
            roots: Some(view.roots.clone()),
            networks: view.networks.values().cloned().collect(),
            changes: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// The view after this update of `old`.
    pub fn apply(self, old: &View) -> View {
        let mut networks = if self.full { BTreeMap::new() } else { old.networks.clone() };
        for id in &self.gone {
            networks.remove(id);
        }
        networks.extend(self.networks.into_iter().map(|network| (network.network.id, network)));
        for change in self.changes {
            if let Some(network) = networks.get_mut(&change.network) {
                change.apply_to(network);
            }
        }
        View {
            version: self.version,
            managers: self.managers,
            removed: self.removed,
            removals: self.removals,
            roots: self.roots.unwrap_or_else(|| old.roots.clone()),
            networks,
        }
    }
}

impl NetworkChange {
    /// Brings a view of the network up to date.
    pub fn apply_to(self, view: &mut NetworkView) {
        if let Some(membership) = self.membership {
            view.membership = membership;
        }
        merge(&mut view.endpoints, self.endpoints, &self.endpoints_gone, |endpoint| endpoint.id);
        merge(&mut view.nodes, self.nodes, &self.nodes_gone, |node| node.id);
    }
}

/// Puts and removes rows, and keeps them in the order of their ids.
fn merge<T, K: Ord>(rows: &mut Vec<T>, put: Vec<T>, gone: &BTreeSet<K>, key: impl Fn(&T) -> K) {
    let replaced: BTreeSet<K> = put.iter().map(&key).collect();
    rows.retain(|row| !gone.contains(&key(row)) && !replaced.contains(&key(row)));
    rows.extend(put);
    rows.sort_by_key(key);
}
