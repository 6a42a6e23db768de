//! What was put into words for one session and serves the others: a thousand members of a network are told the
//! same of it.
//!
//! A network as a whole is put into words seldom, and who needs it later is told beside it what changed
//! since. What changed is told from one version on, up to a version that all sessions are to reach.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;

use super::change_log::Touched;
use super::documents;
use super::model::{MembershipRow, Model};
use super::network_state::NetworkState;
use super::view_update::{NetworkChange, NewMembership};
use crate::cluster::{Endpoint, Membership, Network, Node};
use crate::id::{NetworkId, NodeId, Version};
use crate::membership::{DerivedMembership, SignedMembership};

/// Documents that may be needed again.
#[derive(Debug, Default)]
pub(super) struct Wording {
    networks: BTreeMap<NetworkId, Worded>,
    /// The latest version that somebody was to reach.
    at: Version,
}

#[derive(Debug, Default)]
struct Worded {
    whole: Option<(Version, Bytes)>,
    /// By the version that they are from, with the one that they lead to.
    changes: BTreeMap<Version, (Version, Bytes)>,
    is_used: bool,
}

impl Wording {
    /// Adds what a member that knows a network as of `since` is to be told, so that it knows it as of `at` or
    /// later; which version that is.
    pub(super) fn tell(
        &mut self,
        (model, state): (&Model, &NetworkState),
        (since, at): (Option<Version>, Version),
        member: NodeId,
        documents: &mut Vec<Bytes>,
    ) -> Version {
        let now = model.counters.version;
        self.advance(at, now);
        let worded = self.networks.entry(state.network.id).or_default();
        worded.is_used = true;
        let known = match since.filter(|since| knows(state, *since, member)) {
            Some(since) => since,
            None => {
                // No network lacks a membership.
                let Some((version, whole)) = worded.whole(model, state) else { return now };
                documents.push(whole);
                version
            }
        };
        // Since when it knows the same.
        let Some(known) = state.log.latest(known).filter(|_| known < at) else { return known };
        let Some((version, change)) = worded.change(model, state, (known, at)) else { return now };
        documents.push(change);
        version
    }

    /// Forgets what nobody has needed for a while, and what is of a state that was lost.
    fn advance(&mut self, at: Version, now: Version) {
        if self.at > now {
            *self = Self::default();
        }
        if at <= self.at {
            return;
        }
        self.at = at;
        self.networks.retain(|_, worded| {
            worded.changes.clear();
            std::mem::take(&mut worded.is_used)
        });
    }
}

impl Worded {
    /// The network as it is now, or was before few changes.
    fn whole(&mut self, model: &Model, state: &NetworkState) -> Option<(Version, Bytes)> {
        let few = (state.endpoints.len() + state.members.len()) / PARTS_FOR_EACH_CHANGE;
        let is_of_use = |(version, _): &(Version, Bytes)| {
            state.log.after(*version).is_some_and(|touched| touched.take(few + 1).count() <= few)
        };
        if !self.whole.as_ref().is_some_and(is_of_use) {
            let membership = &state.membership.as_ref()?.signed;
            let (endpoints, nodes) = (state.endpoints.values().collect(), nodes(model, state).collect());
            let whole = documents::whole(&Whole { network: &state.network, membership, endpoints, nodes });
            self.whole = Some((model.counters.version, whole));
        }
        self.whole.clone()
    }

    /// What changed since the first version, up to the other or later, and up to which; `None` for nothing.
    fn change(
        &mut self,
        model: &Model,
        state: &NetworkState,
        (since, at): (Version, Version),
    ) -> Option<(Version, Bytes)> {
        if let Some(worded) = self.changes.get(&since).filter(|(version, _)| *version >= at) {
            return Some(worded.clone());
        }
        let change = documents::changed(&change(model, state, since)?);
        let worded = (model.counters.version, change);
        self.changes.insert(since, worded.clone());
        Some(worded)
    }
}

/// Written as a [`crate::cluster::NetworkView`].
#[derive(Debug, Serialize)]
struct Whole<'a> {
    network: &'a Network,
    membership: &'a SignedMembership,
    endpoints: Vec<&'a Endpoint>,
    nodes: Vec<&'a Node>,
}

/// Whether a member that knew the network at that time can be told what changed.
fn knows(state: &NetworkState, since: Version, member: NodeId) -> bool {
    // It was no member in between, perhaps, and has forgotten the network.
    state.log.after(since).is_some_and(|mut touched| touched.all(|part| part != Touched::Node(member)))
}

fn change(model: &Model, state: &NetworkState, since: Version) -> Option<NetworkChange> {
    let touched: BTreeSet<Touched> = state.log.after(since)?.collect();
    if touched.is_empty() {
        return None;
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
            Touched::Membership => change.membership = membership(model, state),
            Touched::Endpoint(id) => match state.endpoints.get(&id) {
                Some(endpoint) => change.endpoints.push(endpoint.clone()),
                None => drop(change.endpoints_gone.insert(id)),
            },
            Touched::Node(id) => match model.nodes.get(&id).filter(|_| state.members.contains_key(&id)) {
                Some(node) => change.nodes.push(node.clone()),
                None => drop(change.nodes_gone.insert(id)),
            },
        }
    }
    Some(change)
}

fn membership(model: &Model, state: &NetworkState) -> Option<NewMembership> {
    let MembershipRow { epoch, signed } = state.membership.as_ref()?;
    let Network { id, vni, .. } = state.network;
    let nodes = nodes(model, state).map(|node| node.id).collect();
    let known = Membership { network: id, vni, epoch: *epoch, nodes };
    let derived = DerivedMembership::new(signed, &known).map(NewMembership::Derived);
    Some(derived.unwrap_or_else(|| NewMembership::Whole(signed.clone())))
}

/// The members, as nodes are told of them.
pub(super) fn nodes<'a>(model: &'a Model, state: &'a NetworkState) -> impl Iterator<Item = &'a Node> {
    state.members.keys().filter_map(|id| model.nodes.get(id))
}

/// Of so many parts of a network one may have changed before all of it is put into words anew.
const PARTS_FOR_EACH_CHANGE: usize = 8;
