//! What a node is told: only the networks that it is a member of, whole and then what changes.

use std::collections::BTreeSet;

use super::ClusterState;
use super::change_log::Touched;
use super::model::Model;
use super::network_state::NetworkState;
use super::view_update::{NetworkChange, ViewUpdate};
use crate::cluster::{NetworkView, View};
use crate::id::{NetworkId, NodeId, Version};

/// What a node was told in a session: nothing, at its beginning.
#[derive(Debug, Clone, Default)]
pub struct Told {
    version: Option<Version>,
    networks: BTreeSet<NetworkId>,
}

impl ClusterState {
    /// All that a node is told.
    pub fn view_for(&self, node: NodeId) -> View {
        let update = update(&self.model(), node, &mut Told::default());
        update.map_or_else(View::default, |update| update.apply(&View::default()))
    }

    /// What is news to a node: its whole view at first, and nothing where nothing of it changed.
    pub fn update_for(&self, node: NodeId, told: &mut Told) -> Option<ViewUpdate> {
        update(&self.model(), node, told)
    }
}

fn update(model: &Model, node: NodeId, told: &mut Told) -> Option<ViewUpdate> {
    let version = model.counters.version;
    // A version that we have not reached yet is from a state that was lost: nothing of it counts.
    let since = told.version.filter(|since| *since <= version);
    let mine = model.networks.values().filter(|state| state.members.contains_key(&node));
    let mut networks = Vec::new();
    let mut changes = Vec::new();
    let mut members = BTreeSet::new();
    for state in mine {
        let id = state.network.id;
        members.insert(id);
        let since = since.filter(|_| told.networks.contains(&id));
        match since.map_or(News::Whole, |since| news(model, state, node, since)) {
            News::Whole => networks.extend(network_view(model, state)),
            News::Change(change) => changes.push(change),
            News::Nothing => {}
        }
    }
    let gone: Vec<_> = match since {
        Some(_) => told.networks.difference(&members).copied().collect(),
        None => Vec::new(),
    };
    let roster = since.is_none_or(|since| model.roster_changed > since);
    let roots = since.is_none_or(|since| model.roots_changed > since);
    *told = Told { version: Some(version), networks: members };
    if !roster && !roots && networks.is_empty() && changes.is_empty() && gone.is_empty() {
        return None;
    }
    Some(ViewUpdate {
        version,
        full: since.is_none(),
        managers: model.managers().cloned().collect(),
        removed: model.removed.keys().copied().collect(),
        removals: model.removals.as_ref().map(|row| row.signed.clone()),
        roots: roots.then(|| model.roots()),
        networks,
        changes,
        gone,
    })
}

/// What changed of a network for a node that knew it.
enum News {
    Nothing,
    Change(NetworkChange),
    Whole,
}

fn news(model: &Model, state: &NetworkState, node: NodeId, since: Version) -> News {
    let Some(touched) = state.log.after(since) else { return News::Whole };
    let touched: BTreeSet<Touched> = touched.collect();
    if touched.is_empty() {
        return News::Nothing;
    }
    let mut change = NetworkChange {
        network: state.network.id,
        membership: None,
        endpoints: Vec::new(),
        endpoints_gone: BTreeSet::new(),
        nodes: Vec::new(),
        nodes_gone: BTreeSet::new(),
    };
    for part in touched {
        match part {
            Touched::Membership => {
                change.membership = state.membership.as_ref().map(|row| row.signed.clone())
            }
            Touched::Endpoint(id) => match state.endpoints.get(&id) {
                Some(endpoint) => change.endpoints.push(endpoint.clone()),
                None => drop(change.endpoints_gone.insert(id)),
            },
            // It was no member in between, perhaps, and has forgotten the network.
            Touched::Node(id) if id == node => return News::Whole,
            Touched::Node(id) => match model.nodes.get(&id).filter(|_| state.members.contains_key(&id)) {
                Some(node) => change.nodes.push(node.clone()),
                None => drop(change.nodes_gone.insert(id)),
            },
        }
    }
    News::Change(change)
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
