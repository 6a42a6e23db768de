//! What a session tells a node: its view whole, and then what changes.
//!
//! [`super::documents`] is how it travels, [`super::wording`] what makes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cluster::{Endpoint, Membership, Network, NetworkView, Node, View};
use crate::id::{EndpointId, NetworkId, NodeId, Version};
use crate::membership::{DerivedMembership, Roots, SignedMembership, SignedRemovals};

/// A change of what a node is told. The first of a session is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewUpdate {
    /// What is not of one network.
    pub outline: Outline,
    /// Networks that are new, whole.
    pub networks: Vec<NetworkView>,
    /// What changed of networks that the node knows, or that are new.
    pub changes: Vec<NetworkChange>,
}

/// What is in an update beside its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// The version of the cluster's state after it, or an earlier one if some of it is newer.
    pub version: Version,
    /// True when all that is not in it is gone.
    pub full: bool,
    /// Who is a manager and who was removed, if that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roster: Option<Roster>,
    /// The roots that the cluster trusts, if they changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roots: Option<Roots>,
    /// Networks that the node is no longer a member of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<NetworkId>,
}

/// Who is a manager and who was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The managers.
    pub managers: Vec<Node>,
    /// The removed nodes.
    pub removed: BTreeSet<NodeId>,
    /// The same as it was signed.
    #[serde(default)]
    pub removals: Option<SignedRemovals>,
}

/// What changed of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkChange {
    /// The network.
    pub network: NetworkId,
    /// Its membership, if that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<NewMembership>,
    /// Endpoints that are new or changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that are gone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub endpoints_gone: BTreeSet<EndpointId>,
    /// Nodes that are new or changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// Nodes that are gone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub nodes_gone: BTreeSet<NodeId>,
}

/// The membership after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewMembership {
    /// As it is.
    Whole(SignedMembership),
    /// Its members are the network's nodes after the change.
    Derived(DerivedMembership),
}

/// An update does not fit what the node knows: it has to be told all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "what a manager told of network {network} does not fit what this node knew of it; asking for all of it"
)]
pub struct Misfit {
    /// The network.
    pub network: NetworkId,
}

impl ViewUpdate {
    /// All of `view`.
    pub fn full(view: &View) -> Self {
        let roster = Roster {
            managers: view.managers.clone(),
            removed: view.removed.clone(),
            removals: view.removals.clone(),
        };
        let outline = Outline {
            version: view.version,
            full: true,
            roster: Some(roster),
            roots: Some(view.roots.clone()),
            gone: Vec::new(),
        };
        Self { outline, networks: view.networks.values().cloned().collect(), changes: Vec::new() }
    }

    /// The view after this update of `old`.
    ///
    /// # Errors
    /// When that cannot be found out from `old`.
    pub fn apply(self, old: &View) -> Result<View, Misfit> {
        let Outline { version, full, roster, roots, gone } = self.outline;
        let mut networks = if full { BTreeMap::new() } else { old.networks.clone() };
        for id in &gone {
            networks.remove(id);
        }
        networks.extend(self.networks.into_iter().map(|network| (network.network.id, network)));
        for change in self.changes {
            if let Some(network) = networks.get_mut(&change.network) {
                change.apply_to(network)?;
            }
        }
        let Roster { managers, removed, removals } = roster.unwrap_or_else(|| Roster {
            managers: old.managers.clone(),
            removed: old.removed.clone(),
            removals: old.removals.clone(),
        });
        let roots = roots.unwrap_or_else(|| old.roots.clone());
        Ok(View { version, managers, removed, removals, roots, networks })
    }
}

impl NetworkChange {
    /// Brings a view of the network up to date.
    fn apply_to(self, view: &mut NetworkView) -> Result<(), Misfit> {
        merge(&mut view.endpoints, self.endpoints, &self.endpoints_gone, |endpoint| endpoint.id);
        merge(&mut view.nodes, self.nodes, &self.nodes_gone, |node| node.id);
        match self.membership {
            Some(NewMembership::Whole(membership)) => view.membership = membership,
            Some(NewMembership::Derived(derived)) => {
                let nodes = view.nodes.iter().map(|node| node.id).collect();
                let Network { id, vni, .. } = view.network;
                let membership = Membership { network: id, vni, epoch: derived.epoch, nodes };
                view.membership = derived.signed(&membership).ok_or(Misfit { network: id })?;
            }
            None => {}
        }
        Ok(())
    }
}

/// Puts and removes rows, and keeps them in the order of their ids.
fn merge<T, K: Ord>(rows: &mut Vec<T>, put: Vec<T>, gone: &BTreeSet<K>, key: impl Fn(&T) -> K) {
    let replaced: BTreeSet<K> = put.iter().map(&key).collect();
    rows.retain(|row| !gone.contains(&key(row)) && !replaced.contains(&key(row)));
    rows.extend(put);
    rows.sort_by_key(key);
}
