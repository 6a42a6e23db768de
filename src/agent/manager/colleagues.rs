//! The other managers, and what they alone know: each has sessions with some of the nodes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Manager, NO_PANIC};
use crate::cluster::{ManagerState, Node, Role};
use crate::control::rpc::ManagerClient;
use crate::control::rpc::messages::{Presence, PresenceRequest};
use crate::id::NodeId;
use crate::io::clock::boot_time;

/// Connections to the other managers.
#[derive(Debug, Default)]
pub(super) struct Colleagues {
    clients: Mutex<BTreeMap<NodeId, (SocketAddr, ManagerClient)>>,
}

/// Which nodes are there, as all managers that answer know it.
#[derive(Debug, Default)]
pub(in crate::agent) struct Census {
    pub(in crate::agent) connected: HashSet<NodeId>,
    away: BTreeMap<NodeId, u64>,
    managers: BTreeMap<NodeId, ManagerState>,
}

impl Census {
    /// How many seconds ago the last session of a node ended, if it has none and a manager saw one.
    pub(in crate::agent) fn away_seconds(&self, node: NodeId) -> Option<u64> {
        self.away.get(&node).copied().filter(|_| !self.connected.contains(&node))
    }

    /// Whether a node can be asked, if it is a manager.
    pub(super) fn manager(&self, node: NodeId) -> Option<ManagerState> {
        self.managers.get(&node).copied()
    }

    fn add(&mut self, manager: NodeId, presence: Presence) {
        let Presence { connected, away, has_store } = presence;
        self.connected.extend(connected);
        for (node, seconds) in away {
            let known = self.away.entry(node).or_insert(seconds);
            *known = seconds.min(*known);
        }
        let state = if has_store { ManagerState::Reachable } else { ManagerState::WithoutStore };
        self.managers.insert(manager, state);
    }
}

impl Manager {
    /// Asks every other manager which nodes it has.
    pub(in crate::agent) async fn census(&self) -> Census {
        let this = self.this();
        let asked = self.colleagues().into_iter().map(|(id, client)| async move {
            let answer = tokio::time::timeout(PATIENCE, client.presence(PresenceRequest {})).await;
            (id, answer.ok().and_then(Result::ok))
        });
        let mut census = Census::default();
        census.add(this, self.presence_here());
        for (id, presence) in join_all(asked).await {
            match presence {
                Some(presence) => census.add(id, presence),
                None => drop(census.managers.insert(id, ManagerState::Unreachable)),
            }
        }
        census
    }

    /// The nodes that have a session with this manager, or had one.
    pub(super) fn presence_here(&self) -> Presence {
        let connected: BTreeSet<NodeId> = self.sessions.nodes().into_iter().collect();
        let now = boot_time();
        let seen = self.state.nodes().into_iter().filter(|status| !connected.contains(&status.node.id));
        let away = seen.filter_map(|status| Some((status.node.id, now.since(status.last_seen?).as_secs())));
        Presence {
            away: away.collect(),
            connected: connected.into_iter().collect(),
            has_store: *self.store.borrow(),
        }
    }

    /// The other managers.
    pub(super) fn other_managers(&self) -> impl Iterator<Item = Node> {
        self.others().into_iter().filter(|node| node.role == Role::Manager)
    }

    fn colleagues(&self) -> Vec<(NodeId, ManagerClient)> {
        let others: BTreeMap<NodeId, SocketAddr> =
            self.other_managers().map(|node| (node.id, node.advertise)).collect();
        let mut clients = self.colleagues.clients.lock().expect(NO_PANIC);
        clients.retain(|id, (address, _)| others.get(id) == Some(address));
        let known = others.into_iter().map(|(id, address)| {
            let new = || (address, ManagerClient::new(self.credentials.clone(), vec![address]));
            (id, clients.entry(id).or_insert_with(new).1.clone())
        });
        known.collect()
    }
}

/// How long another manager may take: an operator is waiting.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_manager_knows_of_a_node_counts_and_the_latest_most() {
        let [one, two, node, other] = [1, 2, 3, 4].map(|n| NodeId::from_entropy([n; 16]));
        let mut census = Census::default();
        census.add(one, Presence { connected: vec![node], away: vec![(other, 70)], has_store: true });
        census.add(two, Presence { connected: vec![], away: vec![(node, 9), (other, 7)], has_store: false });
        assert_eq!((census.away_seconds(node), census.away_seconds(other)), (None, Some(7)));
        assert_eq!(census.manager(one), Some(ManagerState::Reachable));
        assert_eq!(census.manager(two), Some(ManagerState::WithoutStore));
        assert_eq!(census.manager(node), None);
    }
}
