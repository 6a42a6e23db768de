//! Nodes that are removed while they live on: cut off within a second, refused everywhere, back only as new.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use overlayd::api::types::{
    ChangeNodeResponse, InitResponse, InspectNodeResponse, JoinResponse, LeaveResponse, ListNetworksResponse,
    ListNodesResponse, NodeState, RemoveNodeResponse,
};
use overlayd::boot_time::BootTime;
use overlayd::control::identity::NodeIdentity;
use overlayd::control::key_channel::KeyChannel;
use overlayd::control::rpc::messages::{ListNetworks, ListNodes};
use overlayd::control::rpc::{ErrorKind, ManagerClient};
use overlayd::control::store::Store;
use overlayd::control::tls::Credentials;
use overlayd::control::trust::{Refusal, Trust};
use overlayd::drop_reason::DropReason;
use overlayd::events::{Event, Recorded};
use overlayd::id::NodeId;
use overlayd::io::clock::{boot_time, wall_clock};
use overlayd::lab::{Host, Underlay, eventually};

use crate::support::cut_off::{Traffic, cut_tcp, mend_tcp};
use crate::support::swarm::{Agent, Attached, Family, Swarm};
use crate::support::tests;

tests! {
    removed_node_that_hears_nothing_of_it_is_cut_off_within_a_second_and_peers_tell_one_another
    removed_node_says_so_and_comes_back_only_as_a_new_node
    node_is_removed_only_by_force_while_it_is_connected_or_has_endpoints
    node_leaves_by_force_without_its_manager
    manager_gives_its_cluster_up_only_by_force
    nodes_of_a_cluster_that_was_given_up_get_nothing_from_the_next_one_and_do_it_no_harm
    only_managers_remove_inspect_and_change_nodes_and_there_stays_one_manager
}

fn removed_node_that_hears_nothing_of_it_is_cut_off_within_a_second_and_peers_tell_one_another() {
    let swarm = Swarm::formed(5, Family::V4, Underlay::default());
    swarm.agent(5).kill();
    let stolen = credentials(swarm.agent(5));
    swarm.start(5);
    let (swarm, containers) = swarm.with_containers();
    let (last, others) = containers.split_last().unwrap();
    let condemned = swarm.agent(5).status().cluster.unwrap().node.id;
    // Of the others two hear nothing of the manager, and the condemned hears nothing of anybody.
    let hosts: Vec<&Host> = (1..=5).map(|number| swarm.lab.host(number)).collect();
    let (&deaf, hearing) = hosts.split_last().unwrap();
    cut_tcp(hosts[0], &hosts[2..4]);
    hearing.iter().for_each(|host| cut_tcp(host, &[deaf]));

    let traffic = Traffic::new(last, others);
    let ended = AtomicBool::new(false);
    // Its keys are also with somebody who has connections to all of them, and asks for more.
    let is_connected = Barrier::new(others.len() + 2);
    let (removed, answered, sent, shut) = std::thread::scope(|scope| {
        traffic.run(scope, &ended);
        assert!(eventually(PATIENCE, || traffic.arrived().iter().all(Option::is_some)), "{}", swarm.drops());
        let knocking: Vec<_> = swarm.agents[..4]
            .iter()
            .map(|agent| scope.spawn(|| alone(&swarm, agent, knock(&stolen, agent, &is_connected))))
            .collect();
        let asking = scope.spawn(|| {
            let manager = swarm.agent(1);
            alone(&swarm, manager, ask_on(&stolen, manager, &is_connected))
        });
        is_connected.wait();
        let removed = boot_time();
        let done: RemoveNodeResponse = swarm.agent(1).ask(&["node", "rm", "--force", condemned.as_str()]);
        let answered = boot_time();
        assert_eq!((done.node.id, done.endpoint_count), (condemned, 1));
        std::thread::sleep(SECOND);
        let sent = traffic.sent.load(Ordering::Relaxed);
        let received = swarm.agent(5).received();
        std::thread::sleep(2 * SECOND);
        assert_eq!(swarm.agent(5).received(), received, "somebody still sends to it");
        let sent = traffic.sent.load(Ordering::Relaxed) - sent;
        ended.store(true, Ordering::Relaxed);
        let shut: Vec<_> = knocking.into_iter().map(|knocking| knocking.join().unwrap()).collect();
        (removed, answered, sent, (shut, asking.join().unwrap()))
    });
    let (channels, asked) = shut;
    for (number, (cut, refused)) in (1..).zip(channels) {
        let late = [cut, refused].map(|at| at.since(removed));
        assert!(late.iter().all(|late| *late < SECOND), "agent {number} shuts it out after {late:?}");
    }
    let late = asked.since(removed);
    assert!(late < SECOND, "the manager serves it for {late:?}");
    for (number, arrived) in (1..).zip(traffic.arrived()) {
        let late = arrived.unwrap().since(removed);
        assert!(late < SECOND, "host {number} was sent something {late:?} after the removal was asked for");
    }
    assert!(answered.since(removed) < SECOND && sent > 100, "{sent} datagrams in 2 s");
    // It has its keys and goes on sending: what it sends gets as far as the others' doors.
    let established =
        swarm.agent(5).peers().peers.iter().filter(|peer| !peer.outbound_spis.is_empty()).count();
    assert_eq!(established, 4, "{:?}", swarm.agent(5).peers());
    for agent in &swarm.agents[..4] {
        assert!(agent.dropped(DropReason::UnknownSpi) > 100, "agent {}: {}", agent.number, swarm.drops());
        assert!(agent.peers().peers.iter().all(|peer| peer.node != condemned));
    }
    swarm.assert_joined(&others[2], &others[3]);
    swarm.assert_joined(&others[0], &others[1]);

    // Each tells of it, whoever it has it from.
    for agent in &swarm.agents[..4] {
        let told = || {
            let log = agent.done(&["--json", "events", "--no-follow"]);
            let mut told = log.lines().map(|line| serde_json::from_str::<Recorded>(line).unwrap().event);
            told.any(|event| event == Event::NodeRemoved { node: condemned })
        };
        assert!(eventually(PATIENCE, told), "{}", agent.done(&["events", "--no-follow"]));
    }

    // What a node was told by its peers alone it knows after a restart as well.
    swarm.agent(3).kill();
    swarm.start(3);
    hearing.iter().for_each(|host| mend_tcp(host, &[deaf]));
    swarm.agent(5).kill();
    assert_refused_everywhere(&swarm, swarm.agent(5));
    swarm.assert_joined(&others[2], &others[3]);
}

fn removed_node_says_so_and_comes_back_only_as_a_new_node() {
    let (swarm, init, containers) = formed_with_containers(3);
    let [one, two, three] = containers.as_slice() else { unreachable!("three hosts") };
    let agent = swarm.agent(3);
    let before = agent.status().cluster.unwrap().node.id;
    swarm.agent(1).done(&["node", "rm", "--force", before.as_str()]);

    let told =
        || agent.status().warnings.iter().any(|warning| warning.contains("was removed from its cluster"));
    assert!(eventually(PATIENCE, told), "{:?}\n{}", agent.status(), agent.log());
    let status = agent.done(&["status"]);
    assert!(status.contains("overlayd leave --force") && status.contains("overlayd join"), "{status}");
    assert!(!status.contains("traffic goes on") && !status.contains("what is attached works"), "{status}");
    assert!(status.contains("REMOVED") && agent.status().cluster.unwrap().removed, "{status}");
    for command in [&["ls"][..], &["attach", "red", "--netns", "c3"]] {
        let refusal = agent.refused(command);
        assert!(refusal.contains("overlayd leave --force") || refusal.contains("already"), "{refusal}");
    }
    swarm.assert_joined(one, two);
    // A restart changes nothing.
    for number in [1, 3] {
        swarm.agent(number).kill();
        swarm.start(number);
    }
    assert!(eventually(PATIENCE, told), "{:?}\n{}", agent.status(), agent.log());
    let refusal = agent.refused(&["join", "--token", &init.worker_token, &init.manager.to_string()]);
    assert!(refusal.contains("overlayd leave"), "{refusal}");

    let left: LeaveResponse = agent.ask(&["leave", "--force"]);
    assert_eq!((left.node, left.untold), (before, None));
    assert!(three.read("/proc/thread-self/net/dev").lines().all(|line| !line.contains("eth0")));
    let joined: JoinResponse = swarm.join(3, &init);
    assert_ne!(joined.node.id, before);
    let again = swarm.attach(3, "red", "c4");
    swarm.assert_joined(one, &again);
    let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    let ids: Vec<NodeId> = nodes.nodes.iter().map(|summary| summary.node.id).collect();
    assert!(ids.len() == 3 && ids.contains(&joined.node.id) && !ids.contains(&before));
}

fn node_is_removed_only_by_force_while_it_is_connected_or_has_endpoints() {
    let (swarm, _, mut containers) = formed_with_containers(3);
    let agent = swarm.agent(3);
    let node = agent.status().cluster.unwrap().node;
    let refusal = swarm.agent(1).refused(&["node", "rm", node.id.as_str()]);
    for words in ["is connected and has 1 endpoints", "overlayd leave", "--force"] {
        assert!(refusal.contains(words), "{refusal}");
    }
    // All hosts of the laboratory have the name of this machine.
    let refusal = swarm.agent(1).refused(&["node", "rm", "--force", node.name.as_str()]);
    let ids = swarm.agents.iter().map(|agent| agent.status().cluster.unwrap().node.id.to_string());
    assert!(
        refusal.contains("3 nodes are called") && ids.into_iter().all(|id| refusal.contains(&id)),
        "{refusal}"
    );
    let refusal = swarm.agent(1).refused(&["node", "rm", "nobody"]);
    assert!(refusal.contains("there is no node nobody: overlayd node ls"), "{refusal}");

    agent.kill();
    let down = || {
        let inspected: InspectNodeResponse = swarm.agent(1).ask(&["node", "inspect", node.id.as_str()]);
        inspected.summary.state == NodeState::Down && inspected.last_seen_seconds.is_some()
    };
    assert!(eventually(PATIENCE, down));
    let endpoint = containers[2].endpoint().id;
    let refusal = swarm.agent(1).refused(&["node", "rm", node.id.as_str()]);
    assert!(refusal.contains("has 1 endpoints") && refusal.contains(endpoint.as_str()), "{refusal}");
    let text = swarm.agent(1).done(&["node", "inspect", node.id.as_str()]);
    assert!(text.contains(endpoint.as_str()) && text.contains("last seen"), "{text}");

    // Its container ends, its agent tells so, and is stopped: then it may go.
    swarm.start(3);
    drop(containers.pop());
    let gone = || swarm.agent(1).inspect("red").endpoints.len() == 2;
    assert!(eventually(PATIENCE, gone), "{}", agent.log());
    agent.kill();
    assert!(eventually(PATIENCE, down));
    let removed: RemoveNodeResponse = swarm.agent(1).ask(&["node", "rm", node.id.as_str()]);
    assert_eq!((removed.node.id, removed.endpoint_count), (node.id, 0));
    let refusal = swarm.agent(1).refused(&["node", "inspect", node.id.as_str()]);
    assert!(refusal.contains("there is no node"), "{refusal}");
}

fn node_leaves_by_force_without_its_manager() {
    let (swarm, init, containers) = formed_with_containers(3);
    let agent = swarm.agent(3);
    let before = agent.status().cluster.unwrap().node.id;
    let refusal = agent.refused(&["leave"]);
    assert!(refusal.contains("has 1 endpoints") && refusal.contains("--force"), "{refusal}");
    swarm.agent(1).kill();
    agent.done(&["detach", "red", "--netns", "c3"]);
    let refusal = agent.refused(&["leave"]);
    assert!(refusal.contains("overlayd leave --force"), "{refusal}");
    assert!(agent.status().cluster.is_some());

    let left: LeaveResponse = agent.ask(&["leave", "--force"]);
    assert!(left.node == before && left.untold.is_some(), "{left:?}");
    assert!(agent.status().cluster.is_none());
    swarm.start(1);
    let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    assert_eq!(nodes.nodes.len(), 3, "the manager has not heard of it");
    swarm.agent(1).done(&["node", "rm", "--force", before.as_str()]);
    let joined = swarm.join(3, &init);
    assert_ne!(joined.node.id, before);

    // With endpoints and a manager: both are told.
    let other = swarm.agent(2).status().cluster.unwrap().node.id;
    let left: LeaveResponse = swarm.agent(2).ask(&["leave", "--force"]);
    assert_eq!((left.node, left.untold), (other, None));
    assert!(!containers[1].read("/proc/thread-self/net/dev").contains("eth0"));
    let gone = || swarm.agent(1).inspect("red").endpoints.iter().all(|endpoint| endpoint.node != other);
    assert!(gone());
}

fn manager_gives_its_cluster_up_only_by_force() {
    let (swarm, _, containers) = formed_with_containers(2);
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    let id = swarm.agent(1).status().cluster.unwrap().node.id;
    let refusal = swarm.agent(1).refused(&["node", "rm", "--force", id.as_str()]);
    assert!(refusal.contains("is this one") && refusal.contains("overlayd leave"), "{refusal}");
    swarm.agent(1).done(&["detach", "red", "--netns", "c1"]);
    let refusal = swarm.agent(1).refused(&["leave"]);
    assert!(refusal.contains("only manager") && refusal.contains("--force"), "{refusal}");
    swarm.agent(1).done(&["leave", "--force"]);
    assert!(!one.read("/proc/thread-self/net/dev").contains("eth0"));
    // What is left of it can be left as well, and another can be made.
    swarm.agent(2).done(&["leave", "--force"]);
    assert!(!two.read("/proc/thread-self/net/dev").contains("eth0"));
    swarm.init(Family::V4);
}

fn nodes_of_a_cluster_that_was_given_up_get_nothing_from_the_next_one_and_do_it_no_harm() {
    let (swarm, _, containers) = formed_with_containers(2);
    swarm.agent(1).done(&["leave", "--force"]);
    let is_left =
        || swarm.agent(2).status().cluster.unwrap().managers.iter().all(|manager| !manager.connected);
    assert!(eventually(SECOND * 10, is_left), "{}", swarm.agent(2).log());
    swarm.init(Family::V4);
    swarm.create_encrypted("new");
    // Its agent would tell the manager of that.
    drop(containers);
    std::thread::sleep(SECOND * 4);
    assert!(swarm.agent(2).try_ask::<ListNodesResponse>(&["node", "ls"]).is_none());
    swarm.agent(1).kill();
    swarm.start(1);
    let networks: ListNetworksResponse = swarm.agent(1).ask(&["ls"]);
    assert_eq!(
        networks.networks.iter().map(|network| network.network.name.as_str()).collect::<Vec<_>>(),
        ["new"]
    );
    let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    assert_eq!(nodes.nodes.len(), 1);
}

fn only_managers_remove_inspect_and_change_nodes_and_there_stays_one_manager() {
    let swarm = Swarm::pair();
    let [manager, worker] = [1, 2].map(|number| swarm.agent(number).status().cluster.unwrap().node.id);
    let address = swarm.lab.host(1).v4().to_string();
    for command in [
        &["node", "rm", "--force", manager.as_str()][..],
        &["node", "inspect", manager.as_str()],
        &["node", "demote", manager.as_str()],
        &["node", "promote", worker.as_str()],
        &["node", "update", worker.as_str(), "--label-add", "zone=a"],
    ] {
        let refusal = swarm.agent(2).refused(command);
        assert!(refusal.contains("only managers may") && refusal.contains(&address), "{refusal}");
    }
    let refusal = swarm.agent(1).refused(&["node", "promote", worker.as_str()]);
    assert!(refusal.contains("stays a worker") && refusal.contains("embedded store"), "{refusal}");
    let refusal = swarm.agent(1).refused(&["node", "demote", manager.as_str()]);
    assert!(refusal.contains("stays a manager") && refusal.contains("the only one"), "{refusal}");
    // What is so already is no error.
    for (command, node) in [("promote", manager), ("demote", worker)] {
        let changed: ChangeNodeResponse = swarm.agent(1).ask(&["node", command, node.as_str()]);
        assert_eq!(changed.node.id, node);
    }
}

/// What a dead agent shows of itself.
fn credentials(agent: &Agent) -> Arc<Credentials> {
    let identity: NodeIdentity = Store::open(&agent.state_dir()).unwrap().identity().unwrap().unwrap();
    let trust = Trust::of(&identity).unwrap();
    Credentials::new(identity, trust, wall_clock).unwrap()
}

/// Runs something on an agent's host: whoever has stolen keys may be anywhere.
fn alone<T: Send>(swarm: &Swarm, agent: &Agent, work: impl Future<Output = T> + Send) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let in_time = async { tokio::time::timeout(PATIENCE, work).await.expect("it is not refused") };
    swarm.host(agent).run_in(|| runtime.block_on(in_time)).unwrap()
}

/// Has a key channel to an agent until it ends, then asks for others until it is refused: when both were.
async fn knock(stolen: &Credentials, agent: &Agent, is_connected: &Barrier) -> (BootTime, BootTime) {
    let node = agent.status().cluster.unwrap().node;
    let mut channel = KeyChannel::connect(stolen, node.advertise, node.id).await.unwrap();
    is_connected.wait();
    while let Ok(Some(_)) = channel.receive().await {}
    let cut = boot_time();
    loop {
        match KeyChannel::connect(stolen, node.advertise, node.id).await {
            Ok(channel) => drop(channel),
            Err(error) => {
                let alert = rustls::AlertDescription::CertificateRevoked;
                assert_eq!(error.refusal(), Some(&Refusal::ByPeer(alert)), "{error}");
                return (cut, boot_time());
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks a manager again and again until it refuses: when it did.
async fn ask_on(stolen: &Arc<Credentials>, manager: &Agent, is_connected: &Barrier) -> BootTime {
    let address = manager.status().cluster.unwrap().node.advertise;
    let client = ManagerClient::new(Arc::clone(stolen), vec![address]);
    client.list_networks(ListNetworks {}).await.unwrap();
    is_connected.wait();
    loop {
        // What is asked as its connection is cut has no answer.
        if let Err(refusal) = client.list_networks(ListNetworks {}).await
            && refusal.kind != ErrorKind::Unavailable
        {
            assert_eq!(refusal.kind, ErrorKind::Removed, "{refusal}");
            return boot_time();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Shows the certificate of a dead agent to every other one, on both protocols that ask for one.
fn assert_refused_everywhere(swarm: &Swarm, removed: &Agent) {
    let credentials = credentials(removed);
    for agent in swarm.agents.iter().filter(|agent| agent.number != removed.number) {
        let node = agent.status().cluster.unwrap().node;
        let (key, manager) = alone(swarm, removed, async {
            let channel = KeyChannel::connect(&credentials, node.advertise, node.id).await;
            let refusal = channel.map(drop).unwrap_err().refusal().cloned();
            let manager = ManagerClient::new(Arc::clone(&credentials), vec![node.advertise]);
            (refusal, manager.list_nodes(ListNodes {}).await.unwrap_err())
        });
        let Some(Refusal::ByPeer(alert)) = key else { panic!("agent {}: {key:?}", agent.number) };
        assert_eq!(alert, rustls::AlertDescription::CertificateRevoked, "agent {}", agent.number);
        if agent.number == 1 {
            assert_eq!(manager.kind, ErrorKind::Removed, "{manager}");
        }
    }
}

fn formed_with_containers(hosts: u8) -> (Swarm, InitResponse, Vec<Attached>) {
    let swarm = Swarm::unformed(hosts, Underlay::default());
    let init = swarm.init(Family::V4);
    for number in 2..=swarm.agents.len() {
        swarm.join(number, &init);
    }
    let (swarm, containers) = swarm.with_containers();
    (swarm, init, containers)
}

const PAUSE: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(15);
