//! Labels and availability: which nodes take containers, and of which networks they may be members.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::api::types::{ChangeNodeResponse, InspectNodeResponse, ListNodesResponse};
use overlayd::cluster::Availability;
use overlayd::drop_reason::DropReason;
use overlayd::id::NodeId;
use overlayd::io::clock::boot_time;
use overlayd::lab::{Underlay, eventually};

use support::cut_off::{Traffic, cut_tcp, mend_tcp};
use support::swarm::{Agent, Attached, Family, Swarm, V4_SUBNET};
use support::test_program;

test_program! {
    drained_node_takes_no_new_containers_and_keeps_those_that_it_has
    node_that_loses_its_label_is_cut_off_within_a_second_by_peers_that_no_manager_reaches
}

fn drained_node_takes_no_new_containers_and_keeps_those_that_it_has() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    let agent = swarm.agent(2);
    let id = id_of(agent);
    let update = ["node", "update", id.as_str(), "--availability"];
    let drained: ChangeNodeResponse = swarm.agent(1).ask(&[&update[..], &["drain"]].concat());
    assert_eq!((drained.profile.availability, drained.endpoint_count), (Availability::Drain, 1));

    let _spare = swarm.lab.host(2).container("c9").unwrap();
    let attach = ["attach", "red", "--netns", "c9"];
    let is_refused = || {
        let refusal = agent.refused(&attach);
        assert!(refusal.contains("is drained") && refusal.contains("--availability active"), "{refusal}");
    };
    is_refused();
    swarm.assert_joined(one, two);
    let text = swarm.agent(1).done(&["node", "inspect", id.as_str()]);
    assert!(text.contains("drain, 1 endpoints left") && text.contains(two.endpoint().id.as_str()), "{text}");
    let listed: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    let listed = listed.nodes.into_iter().find(|summary| summary.node.id == id).unwrap();
    assert_eq!((listed.profile.availability, listed.endpoint_count), (Availability::Drain, 1));

    // It holds over restarts of both, and the node itself cannot change it.
    for number in [1, 2] {
        swarm.agent(number).kill();
        swarm.start(number);
    }
    swarm.assert_joined(one, two);
    is_refused();
    let refusal = agent.refused(&[&update[..], &["active"]].concat());
    assert!(refusal.contains("only managers may change nodes"), "{refusal}");

    agent.done(&["detach", "red", "--netns", "c2"]);
    let inspected: InspectNodeResponse = swarm.agent(1).ask(&["node", "inspect", id.as_str()]);
    assert!(inspected.endpoints.is_empty());
    swarm.agent(1).done(&[&update[..], &["active"]].concat());
    agent.done(&attach);
}

fn node_that_loses_its_label_is_cut_off_within_a_second_by_peers_that_no_manager_reaches() {
    let swarm = Swarm::formed(5, Family::V4, Underlay::default());
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "--node-label", "zone=a", "red"]);
    let _spare = swarm.lab.host(2).container("c9").unwrap();
    let refusal = swarm.agent(2).refused(&["attach", "red", "--netns", "c9"]);
    assert!(refusal.contains("labelled zone=a") && refusal.contains("--label-add zone=a"), "{refusal}");
    let text = swarm.agent(2).done(&["inspect", "red"]);
    assert!(text.contains("Only nodes:  labelled zone=a"), "{text}");
    let ids: Vec<NodeId> = swarm.agents.iter().map(id_of).collect();
    let update = |id: NodeId, flag, label| {
        swarm.agent(1).ask::<ChangeNodeResponse>(&["node", "update", id.as_str(), flag, label])
    };
    for id in &ids {
        update(*id, "--label-add", "zone=a");
    }
    let containers: Vec<Attached> =
        (1..=5).map(|number| swarm.attach(number, "red", &format!("c{number}"))).collect();
    swarm.await_keys(4);

    // No manager reaches 3 and 5, and nobody reaches 4, whose traffic goes on.
    let [manager, two, three, deaf, five] = [1, 2, 3, 4, 5].map(|number| swarm.lab.host(number));
    let cut =
        [(manager, [three, five, deaf].to_vec()), (two, vec![deaf]), (three, vec![deaf]), (five, vec![deaf])];
    cut.iter().for_each(|(from, to)| cut_tcp(from, to));
    let traffic = Traffic::new(&containers[3], &containers[..3]);
    let ended = AtomicBool::new(false);
    let taken = std::thread::scope(|scope| {
        traffic.run(scope, &ended);
        assert!(eventually(PATIENCE, || traffic.arrived().iter().all(Option::is_some)), "{}", swarm.drops());
        let taken = boot_time();
        for (id, endpoint) in [(ids[3], &containers[3]), (ids[4], &containers[4])] {
            let changed = update(id, "--label-rm", "zone");
            let lost: Vec<_> = changed.lost.iter().map(|lost| lost.endpoint.id).collect();
            assert_eq!((lost, changed.endpoint_count), (vec![endpoint.endpoint().id], 0));
        }
        // What a peer tells it is enough for the node itself.
        let is_out = || swarm.agent(5).peers().peers.is_empty();
        assert!(eventually(SECOND, is_out), "{:#?}\n{}", swarm.agent(5).peers(), swarm.agent(5).log());
        std::thread::sleep(SECOND);
        let sent = traffic.sent.load(Ordering::Relaxed);
        std::thread::sleep(SECOND);
        assert!(traffic.sent.load(Ordering::Relaxed) > sent + 50, "the deaf one has its keys still");
        ended.store(true, Ordering::Relaxed);
        taken
    });
    for (number, arrived) in (1..).zip(traffic.arrived()) {
        let late = arrived.unwrap().since(taken);
        assert!(late < SECOND, "host {number} was sent something {late:?} after the label was taken");
    }
    for agent in &swarm.agents[..3] {
        let peers: Vec<NodeId> = agent.peers().peers.iter().map(|peer| peer.node).collect();
        assert!(!peers.contains(&ids[3]) && !peers.contains(&ids[4]), "agent {}: {peers:?}", agent.number);
        assert!(agent.dropped(DropReason::UnknownSpi) > 50, "agent {}: {}", agent.number, swarm.drops());
    }
    swarm.assert_joined(&containers[1], &containers[2]);
    swarm.assert_joined(&containers[0], &containers[2]);

    // A manager tells the two what became of their endpoints.
    cut.iter().for_each(|(from, to)| mend_tcp(from, to));
    for number in [4, 5] {
        let (agent, container) = (swarm.agent(number), &containers[number - 1]);
        let is_gone = || !container.read("/proc/thread-self/net/dev").contains("eth0");
        assert!(eventually(PATIENCE, is_gone), "agent {number}:\n{}", agent.log());
        let told = || agent.status().warnings.iter().any(|told| told.contains("was taken back"));
        assert!(eventually(PATIENCE, told), "{:?}", agent.status());
    }
    assert_eq!(swarm.agent(1).inspect("red").endpoints.len(), 3);
    update(ids[4], "--label-add", "zone=a");
    let again = swarm.attach(5, "red", "c6");
    swarm.assert_joined(&again, &containers[2]);
    assert!(swarm.agent(5).status().warnings.iter().all(|told| !told.contains("was taken back")));
}

fn id_of(agent: &Agent) -> NodeId {
    agent.status().cluster.unwrap().node.id
}

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(15);
