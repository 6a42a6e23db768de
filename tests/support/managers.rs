//! Several managers, whose state is in a real etcd of three members.

use std::path::Path;

use overlayd::api::types::{InitResponse, ListNodesResponse, TokenResponse};
use overlayd::cluster::{ManagerState, Role};
use overlayd::id::NodeId;
use overlayd::lab::{Underlay, eventually};

use super::etcd::{Etcd, Place};
use super::swarm::{Agent, PATIENCE, Swarm};

/// A manager that made the cluster, one that joined as such, one that was promoted; a member of etcd beside each.
pub(crate) fn three_managers_and_two_workers() -> (Swarm, Etcd) {
    let swarm = Swarm::unformed(5, Underlay::default());
    let places = (1..=3).map(|number| {
        let host = swarm.lab.host(number);
        Place::within(&Path::new("/run/netns").join(host.name()), host.v4())
    });
    let etcd = Etcd::at(places.collect(), None);
    let address = swarm.lab.host(1).v4().to_string();
    let init = ["init", "--advertise-addr", &address, "--store", &etcd.url()];
    let mut made = None;
    let is_made = eventually(PATIENCE, || {
        made = swarm.agent(1).try_ask::<InitResponse>(&init);
        made.is_some()
    });
    assert!(is_made, "{}", swarm.agent(1).refused(&init));
    let made = made.unwrap();
    let token: TokenResponse = swarm.agent(1).ask(&["token", "manager"]);
    let joined = swarm.join(2, &InitResponse { worker_token: token.token, ..made.clone() });
    assert_eq!(joined.node.role, Role::Manager);
    // Any manager admits; the token is the cluster's.
    let second = InitResponse { manager: joined.node.advertise, ..made.clone() };
    assert!(eventually(PATIENCE, || managers(swarm.agent(1)).len() == 2 && are_reachable(swarm.agent(2))));
    let third = swarm.join(3, &second);
    for number in [4, 5] {
        swarm.join(number, &made);
    }
    swarm.agent(2).done(&["node", "promote", third.node.id.as_str()]);
    for agent in &swarm.agents[..3] {
        let is_whole = || managers(agent).len() == 3 && are_reachable(agent);
        assert!(eventually(PATIENCE, is_whole), "{:?}\n{}", managers(agent), swarm.agent(3).log());
    }
    (swarm, etcd)
}

/// The managers as one of them lists them.
pub(crate) fn managers(agent: &Agent) -> Vec<(NodeId, ManagerState)> {
    let listed: Option<ListNodesResponse> = agent.try_ask(&["node", "ls"]);
    let nodes = listed.into_iter().flat_map(|listed| listed.nodes);
    nodes.filter_map(|summary| Some((summary.node.id, summary.manager?))).collect()
}

/// Whether a manager reaches all.
pub(crate) fn are_reachable(agent: &Agent) -> bool {
    let managers = managers(agent);
    !managers.is_empty() && managers.iter().all(|(_, state)| *state == ManagerState::Reachable)
}
