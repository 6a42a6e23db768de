//! What a node is told: only the networks that it is a member of, whole and then what changes.

use std::collections::BTreeMap;

use super::documents::Documents;
use super::model::Model;
use super::network_state::NetworkState;
use super::view_update::{Outline, Roster};
use super::wording::{self, Wording};
use super::{ClusterState, NO_PANIC};
use crate::cluster::{NetworkView, View};
use crate::id::{NetworkId, NodeId, Version};

/// What a node was told in a session: nothing, at its beginning.
#[derive(Debug, Clone, Default)]
pub struct Told {
    version: Option<Version>,
    /// The version up to which it knows each of its networks.
    networks: BTreeMap<NetworkId, Version>,
}

impl ClusterState {
    /// All that a node is told.
    pub fn view_for(&self, node: NodeId) -> View {
        let model = self.model();
        let Roster { managers, removed, removals } = roster(&model);
        let mine = mine(&model, node).filter_map(|state| network_view(&model, state));
        View {
            version: model.counters.version,
            managers,
            removed,
            removals,
            roots: model.roots(),
            networks: mine.map(|view| (view.network.id, view)).collect(),
        }
    }

    /// What is news to a node, up to version `at` or later: its whole view at first, and nothing where nothing
    /// of it changed. Sessions that are told up to the same version at about the same time share what is said.
    pub fn update_for(&self, node: NodeId, told: &mut Told, at: Version) -> Option<Documents> {
        let model = self.model();
        update(&model, &mut self.inner.wording.lock().expect(NO_PANIC), node, told, at)
    }
}

fn update(
    model: &Model,
    wording: &mut Wording,
    node: NodeId,
    told: &mut Told,
    at: Version,
) -> Option<Documents> {
    let now = model.counters.version;
    let at = at.min(now);
    // A version that we have not reached yet is from a state that was lost: nothing of it counts.
    let since = told.version.filter(|since| *since <= now);
    let before = since.map(|_| std::mem::take(&mut told.networks)).unwrap_or_default();
    let (mut documents, mut networks) = (Vec::new(), BTreeMap::new());
    for state in mine(model, node) {
        let id = state.network.id;
        let known = before.get(&id).copied().filter(|known| *known <= now);
        networks.insert(id, wording.tell((model, state), (known, at), node, &mut documents));
    }
    let gone: Vec<_> = before.keys().filter(|id| !networks.contains_key(id)).copied().collect();
    let roster = since.is_none_or(|since| model.roster_changed > since).then(|| roster(model));
    let roots = since.is_none_or(|since| model.roots_changed > since).then(|| model.roots());
    let version = since.map_or(at, |since| since.max(at));
    *told = Told { version: Some(version), networks };
    if since.is_some() && roster.is_none() && roots.is_none() && documents.is_empty() && gone.is_empty() {
        return None;
    }
    Some(Documents::new(documents, &Outline { version, full: since.is_none(), roster, roots, gone }))
}

/// The networks that a node is a member of.
fn mine(model: &Model, node: NodeId) -> impl Iterator<Item = &NetworkState> {
    model.networks.values().filter(move |state| state.members.contains_key(&node))
}

fn roster(model: &Model) -> Roster {
    Roster {
        managers: model.managers().cloned().collect(),
        removed: model.removed.keys().copied().collect(),
        removals: model.removals.as_ref().map(|row| row.signed.clone()),
    }
}

/// One network as its members see it; `None` if it has no membership, which none lacks.
pub(super) fn network_view(model: &Model, state: &NetworkState) -> Option<NetworkView> {
    Some(NetworkView {
        network: state.network.clone(),
        membership: state.membership.as_ref()?.signed.clone(),
        endpoints: state.endpoints.values().cloned().collect(),
        nodes: wording::nodes(model, state).cloned().collect(),
    })
}
