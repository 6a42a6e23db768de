//! What a node is told: only the networks that it is a member of, whole or since a version.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ClusterState;
use super::model::{Model, NetworkState};
use crate::cluster::{NetworkView, Node, View};
use crate::id::{NetworkId, NodeId, Version};
use crate::membership::{Roots, SignedRemovals};

/// What changed of a node's view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDelta {
    /// The state that the view is of afterwards.
    pub version: Version,
    /// The managers, if any node was added, changed or removed.
    pub managers: Option<Vec<Node>>,
    /// The removed nodes, if any node was added, changed or removed.
    pub removed: Option<BTreeSet<NodeId>>,
    /// The same signed, to be passed on.
    pub removals: Option<SignedRemovals>,
    /// The roots, if they changed.
    pub roots: Option<Roots>,
    /// The networks that changed, whole.
    pub changed: BTreeMap<NetworkId, NetworkView>,
    /// All networks of the node: what it knows beside these is gone.
    pub networks: BTreeSet<NetworkId>,
}

impl ViewDelta {
    /// Brings a view up to this delta's version.
    pub fn apply_to(self, view: &mut View) {
        view.version = self.version;
        if let Some(managers) = self.managers {
            view.managers = managers;
        }
        if let Some(removed) = self.removed {
            view.removed = removed;
            view.removals = self.removals;
        }
        if let Some(roots) = self.roots {
            view.roots = roots;
        }
        view.networks.retain(|id, _| self.networks.contains(id));
        view.networks.extend(self.changed);
    }
}

impl ClusterState {
    /// All that a node is told.
    pub fn view_for(&self, node: NodeId) -> View {
        let mut view = View::default();
        // Every version is later than this one, so the delta holds everything.
        delta(&self.model(), node, Version::new(0)).apply_to(&mut view);
        view
    }

    /// What changed for a node since it was told of version `since` by this manager; without
    /// changes for it, a delta that carries only the version.
    pub fn view_delta(&self, node: NodeId, since: Version) -> ViewDelta {
        delta(&self.model(), node, since)
    }
}

fn delta(model: &Model, node: NodeId, since: Version) -> ViewDelta {
    // A version that we have not reached yet is from a state that was lost: nothing of it counts.
    let since = if since > model.counters.version { Version::new(0) } else { since };
    let roster = model.roster_changed > since;
    let mine: Vec<_> = model.networks.values().filter(|s| s.members.contains_key(&node)).collect();
    let changed = mine.iter().filter(|state| state.changed > since);
    ViewDelta {
        version: model.counters.version,
        managers: roster.then(|| model.managers().cloned().collect()),
        removed: roster.then(|| model.removed.keys().copied().collect()),
        removals: model.removals.as_ref().filter(|_| roster).map(|row| row.signed.clone()),
        roots: (model.roots_changed > since).then(|| model.roots()),
        changed: changed.filter_map(|state| Some((state.network.id, network_view(model, state)?))).collect(),
        networks: mine.iter().map(|state| state.network.id).collect(),
    }
}

/// One network as its members see it; `None` if it has no membership, which none lacks.
pub(super) fn network_view(model: &Model, state: &NetworkState) -> Option<NetworkView> {
    Some(NetworkView {
        network: state.network.clone(),
        membership: state.membership.as_ref()?.signed.clone(),
        endpoints: state.endpoints.values().cloned().collect(),
        nodes: state.members.keys().filter_map(|id| model.nodes.get(id)).cloned().collect(),
    })
}
