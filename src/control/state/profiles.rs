//! What managers say of a node, and what follows from it for its endpoints.
//!
//! A profile is a table of its own, which no session touches. Labels are in no view and no certificate: they are
//! held against those that a network asks for when an endpoint is given and whenever they change, in the same
//! transaction that signs the membership. A membership that names a node is the word that it had the labels, and
//! peers that go by nothing else enforce them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::model::{Change, Model};
use super::network_state::NetworkState;
use super::{ClusterState, StateError, labels};
use crate::cluster::{Availability, Endpoint, Node, NodeProfile};
use crate::id::{HostName, NetworkId, NetworkName, NodeId};

/// What shall be said of a node from now on; the rest stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProfileChange {
    /// Whether it takes endpoints.
    pub availability: Option<Availability>,
    /// Labels to have, in the place of what they were.
    pub label_add: BTreeMap<String, String>,
    /// Labels to have no more.
    pub label_remove: BTreeSet<String>,
}

/// A node after a change of what is said of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedProfile {
    /// The node.
    pub node: Node,
    /// What is said of it now.
    pub profile: NodeProfile,
    /// The endpoints that it lost with a label.
    pub lost: Vec<(NetworkName, Endpoint)>,
    /// How many endpoints it has.
    pub endpoints: usize,
}

impl ClusterState {
    /// Changes what is said of the node of that name or id. Networks whose labels it has no more lose it as
    /// a member, with its endpoints.
    ///
    /// # Errors
    /// When there is no such node, a label is not usable, or one to be removed is not there or to be set.
    pub fn change_profile(
        &self,
        name: &HostName,
        change: &ProfileChange,
    ) -> Result<ChangedProfile, StateError> {
        self.change(|model| {
            let node = model.find_node(name)?;
            let before = model.profile(node.id);
            let profile = changed(node, &before, change)?;
            let closed = |id: &NetworkId| {
                let state = model.networks.get(id);
                state.is_some_and(|s| labels::admit(&s.network, node, Some(&profile)).is_err())
            };
            let all = model.named_endpoints_of(node.id);
            let (lost, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, e)| closed(&e.network));
            let networks: BTreeSet<NetworkId> = lost.iter().map(|(_, endpoint)| endpoint.network).collect();
            let mut changes = self.drop_endpoints(model, node.id, |e| networks.contains(&e.network))?;
            if profile != before {
                changes.push(Change::PutProfile(node.id, profile.clone()));
            }
            Ok((ChangedProfile { node: node.clone(), profile, lost, endpoints: kept.len() }, changes))
        })
    }

    /// What managers say of a node.
    pub fn profile(&self, id: NodeId) -> NodeProfile {
        self.model().profile(id)
    }
}

impl Model {
    pub(super) fn profile(&self, id: NodeId) -> NodeProfile {
        self.profiles.get(&id).cloned().unwrap_or_default()
    }

    /// Refuses a node as the place of a new endpoint in a network.
    pub(super) fn admit(&self, node: NodeId, network: NetworkId) -> Result<(), StateError> {
        let (node, profile) = (self.member(node)?, self.profiles.get(&node));
        if let Some(state) = self.networks.get(&network) {
            labels::admit(&state.network, node, profile)?;
            self.admit_family(state, node)?;
        }
        match profile.map(|profile| profile.availability).unwrap_or_default() {
            Availability::Active => Ok(()),
            Availability::Drain => Err(StateError::Drained { node: node.name.clone(), id: node.id }),
        }
    }

    /// Refuses a node whose data address the network's members, all of one family, have no way to from theirs. One that is
    /// a member stays one.
    fn admit_family(&self, state: &NetworkState, node: &Node) -> Result<(), StateError> {
        if state.members.contains_key(&node.id) {
            return Ok(());
        }
        let other = state.members.keys().find_map(|id| self.nodes.get(id));
        match other {
            Some(other) if other.data.is_ipv4() != node.data.is_ipv4() => Err(StateError::OtherFamily {
                network: state.network.name.clone(),
                node: node.name.clone(),
                data: node.data.ip(),
                member: other.name.clone(),
                at: other.data.ip(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

fn changed(node: &Node, before: &NodeProfile, change: &ProfileChange) -> Result<NodeProfile, StateError> {
    let mut profile = before.clone();
    for key in &change.label_remove {
        if change.label_add.contains_key(key) {
            return Err(StateError::LabelTwice { key: key.clone() });
        }
        if profile.labels.remove(key).is_none() {
            let has = before.labels.keys().cloned().collect();
            return Err(StateError::NoLabel { node: node.name.clone(), key: key.clone(), has });
        }
    }
    profile.labels.extend(change.label_add.clone());
    labels::check(&profile.labels)?;
    profile.availability = change.availability.unwrap_or(before.availability);
    Ok(profile)
}
