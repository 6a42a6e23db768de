//! What a model that was read anew takes over from the one before it: when which part changed last. So nodes
//! are told of what another manager changed, and not of all there is.
//!
//! It is found by comparing the two, and needs no history of etcd: neither a compaction nor a watch that was
//! interrupted can lose a change.

use std::collections::BTreeSet;

use super::change_log::{ChangeLog, Touched};
use super::model::Model;
use super::network_state::NetworkState;
use crate::id::{NodeId, Version};

impl Model {
    /// Takes what is as it was `before` to be as old as it was then; the rest changed with this version.
    pub(super) fn inherit(&mut self, before: &Self) {
        let version = self.counters.version;
        let known: BTreeSet<NodeId> = self.nodes.keys().chain(before.nodes.keys()).copied().collect();
        let other: BTreeSet<NodeId> =
            known.into_iter().filter(|id| self.nodes.get(id) != before.nodes.get(id)).collect();
        for (id, state) in &mut self.networks {
            if let Some(before) = before.networks.get(id).filter(|before| before.network == state.network) {
                state.inherit(before, &other, version);
            }
        }
        let is_same_removed = self.removed == before.removed
            && self.removals == before.removals
            && self.demoted == before.demoted;
        if other.is_empty() && is_same_removed {
            self.roster_changed = before.roster_changed;
            self.members_changed = before.members_changed;
        }
        if self.roots == before.roots {
            self.roots_changed = before.roots_changed;
        }
    }

    /// Takes everything to have changed with this version, whatever it was before.
    pub(super) fn forget_history(&mut self) {
        let version = self.counters.version;
        (self.roster_changed, self.members_changed, self.roots_changed) = (version, version, version);
        for state in self.networks.values_mut() {
            state.log = ChangeLog::new(version);
        }
    }
}

impl NetworkState {
    /// The same for one network; `nodes` are those that are other than before.
    fn inherit(&mut self, before: &Self, nodes: &BTreeSet<NodeId>, version: Version) {
        let mut touched = BTreeSet::new();
        if self.membership != before.membership {
            touched.insert(Touched::Membership);
        }
        let endpoints = self.endpoints.keys().chain(before.endpoints.keys());
        let endpoints = endpoints.filter(|id| self.endpoints.get(id) != before.endpoints.get(id));
        touched.extend(endpoints.copied().map(Touched::Endpoint));
        let members = self.members.keys().chain(before.members.keys());
        let members = members.filter(|id| {
            nodes.contains(id) || self.members.contains_key(id) != before.members.contains_key(id)
        });
        touched.extend(members.copied().map(Touched::Node));
        self.log = before.log.clone();
        for part in touched {
            self.note(version, part);
        }
    }
}
