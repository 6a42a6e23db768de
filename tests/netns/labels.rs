//! Labels and availability: which nodes take containers, and of which networks they may be members.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::api::types::{ChangeNodeResponse, InitResponse, InspectNodeResponse, ListNodesResponse};
use overlayd::cluster::{Availability, Node};
use overlayd::control::key_channel::KeyChannel;
use overlayd::control::rpc::messages::{Attach, InspectNetwork};
use overlayd::drop_reason::DropReason;
use overlayd::id::{BootId, EndpointId, Epoch, LaneCount, NodeId};
use overlayd::io::clock::boot_time;
use overlayd::lab::{Host, Underlay, eventually};
use overlayd::membership::SignedMembership;
use overlayd::negotiate::{Action, Hello, Message, Reason, SpiPool};

use crate::support::cut_off::{Traffic, cut_tcp, mend_tcp};
use crate::support::simulated::SimulatedNode;
use crate::support::swarm::{Agent, Attached, Family, Swarm, V4_SUBNET};
use crate::support::{keyed, tests};

tests! {
    drained_node_takes_no_new_containers_and_keeps_those_that_it_has
    node_that_was_away_is_in_no_network_that_only_has_the_old_ones_name
    node_that_loses_its_label_is_cut_off_within_a_second_by_peers_that_no_manager_reaches
    peer_gives_a_node_without_the_label_no_keys_whatever_its_view_and_an_older_or_forged_record_say
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

fn node_that_was_away_is_in_no_network_that_only_has_the_old_ones_name() {
    let swarm = Swarm::pair();
    let (manager, agent) = (swarm.agent(1), swarm.agent(2));
    let id = id_of(agent);
    label(&swarm, &id, "--label-add", "zone=a");
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "--node-label", "zone=a", "red"]);
    let attached = swarm.attach(2, "red", "c2");
    agent.kill();
    label(&swarm, &id, "--label-rm", "zone");
    manager.done(&["rm", "red"]);
    swarm.create(&["--subnet", V4_SUBNET, "red"]);
    swarm.start(2);
    let told = format!("there is no network {}", attached.endpoint().network);
    let is_told = || agent.log().contains(&told) || !manager.inspect("red").endpoints.is_empty();
    assert!(eventually(PATIENCE, is_told), "{}", agent.log());
    assert_eq!(manager.inspect("red").endpoints, [], "what was encrypted is in plaintext");
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
    let update = |id: NodeId, flag, text| label(&swarm, &id, flag, text);
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

/// The agent of host 2 hears nothing of the manager any more, whose last view of the network has the node in it.
/// The nodes live on host 3, and do what they like.
fn peer_gives_a_node_without_the_label_no_keys_whatever_its_view_and_an_older_or_forged_record_say() {
    let swarm = Swarm::idle(3, Underlay::default());
    let config = swarm.dir().join("debug.toml");
    std::fs::write(&config, "[log]\nlevel = \"info,overlayd::agent::peer=debug\"\n").unwrap();
    for agent in &swarm.agents[..2] {
        agent.spawn(swarm.host(agent), &["--config", config.to_str().unwrap()]);
        agent.await_ready();
    }
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "--node-label", "zone=a", "red"]);
    swarm.create(&["--encrypted", "--subnet", "10.78.0.0/24", "blue"]);
    let (agent, host) = (swarm.agent(2), swarm.lab.host(3));
    for other in [1, 2] {
        ip(swarm.lab.host(other), &["route", "add", SIMULATED, "via", &host.v4().to_string()]);
    }
    ip(host, &["route", "add", "local", SIMULATED, "dev", "lo"]);
    label(&swarm, &id_of(agent), "--label-add", "zone=a");
    let _containers = ["red", "blue"].map(|network| swarm.attach(2, network, network));
    host.run_in(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ask_without_the_label(&swarm, &init));
    })
    .unwrap();
}

async fn ask_without_the_label(swarm: &Swarm, init: &InitResponse) {
    let agent = swarm.agent(2);
    let peer = agent.status().cluster.unwrap().node;
    let [honest, condemned] = two_above(init, peer.id).await;
    let id = condemned.node.id;
    for node in [&honest, &condemned] {
        label(swarm, &node.node.id, "--label-add", "zone=a");
        for network in ["red", "blue"] {
            let (id, network) = (EndpointId::from_entropy(rand::random()), network.parse().unwrap());
            node.client.attach(Attach { id, network, name: None, ips: vec![], mac: None }).await.unwrap();
        }
    }
    let old = record(&condemned, "red").await;
    let blue = record(&condemned, "blue").await;
    assert!(eventually(PATIENCE, || shared(agent, &id) == ["blue", "red"]), "{:?}", agent.peers());

    // With the label it has keys.
    let mut asking = Asking::connected(&condemned, &peer).await;
    assert_eq!(asking.ask(&old).await, Ok(()));
    assert_eq!(asking.ask(&blue).await, Ok(()));

    // That it has lost it, the agent hears from another node alone.
    let [manager, deaf] = [1, 2].map(|number| swarm.lab.host(number));
    cut_tcp(manager, &[deaf]);
    label(swarm, &id, "--label-rm", "zone");
    let new = record(&honest, "red").await;
    assert_eq!(shared(agent, &id), ["blue", "red"]);
    let mut telling = Asking::connected(&honest, &peer).await;
    telling.pass(&new).await;
    assert!(eventually(PATIENCE, || shared(agent, &id) == ["blue"]), "{:?}", agent.peers());

    // It goes on as if it had not heard, passes on what it was told before, and what it says itself.
    let mut forged = new.claim().unwrap();
    forged.nodes.insert(id);
    forged.epoch = Epoch::new(forged.epoch.get() + 1);
    let identity = condemned.credentials.identity();
    let forged = SignedMembership::sign(&forged, |payload| identity.signature(payload)).unwrap();
    assert_eq!(asking.ask(&old).await, Err(Reason::UnknownNetwork));
    for record in [&old, &forged] {
        asking.pass(record).await;
        assert_eq!(asking.ask(record).await, Err(Reason::UnknownNetwork));
        let mut anew = Asking::connected(&condemned, &peer).await;
        anew.pass(record).await;
        assert_eq!(anew.ask(record).await, Err(Reason::UnknownNetwork));
        // The agent listens to it, of what they do share.
        assert_eq!(anew.ask(&blue).await, Ok(()));
        assert_eq!(shared(agent, &id), ["blue"]);
        asking = anew;
    }
    let forgery = || agent.log().contains("signed by a node that is no manager");
    assert!(eventually(PATIENCE, forgery), "{}", agent.log());
}

/// Two nodes with larger ids, which therefore connect and offer.
async fn two_above(init: &InitResponse, id: NodeId) -> [SimulatedNode; 2] {
    let token = init.worker_token.parse().unwrap();
    let mut above = Vec::new();
    for number in 0.. {
        let node = SimulatedNode::join(init.manager, &token, number).await;
        above.extend((node.node.id > id).then_some(node));
        if above.len() == 2 {
            break;
        }
    }
    above.try_into().ok().expect("two")
}

/// The record of who may hold a network's keys, as a manager gives it to a member.
async fn record(node: &SimulatedNode, network: &str) -> SignedMembership {
    let network = InspectNetwork { name: network.parse().unwrap() };
    node.client.inspect_network(network).await.unwrap().view.membership
}

/// The encrypted networks that an agent shares with a node.
fn shared(agent: &Agent, node: &NodeId) -> Vec<String> {
    let peers = agent.peers().peers.into_iter().filter(|peer| peer.node == *node);
    let mut networks: Vec<_> = peers.map(|peer| peer.network_name.to_string()).collect();
    networks.sort_unstable();
    networks
}

/// A node with a key channel to an agent, on which it does what it likes.
struct Asking<'n> {
    node: &'n SimulatedNode,
    agent: Node,
    channel: KeyChannel,
    hello: Hello,
    /// What the agent said of itself.
    theirs: Hello,
    spis: SpiPool,
}

impl<'n> Asking<'n> {
    async fn connected(node: &'n SimulatedNode, agent: &Node) -> Self {
        let mut channel = KeyChannel::connect(&node.credentials, agent.advertise, agent.id).await.unwrap();
        let hello = Hello { boot_id: BootId::from_entropy(rand::random()), lanes: LaneCount::ONE.get() };
        channel.send(&Message::Hello(hello).encode()).await.unwrap();
        let theirs = loop {
            if let Message::Hello(theirs) = next(&mut channel).await {
                break theirs;
            }
        };
        Self { node, agent: agent.clone(), channel, hello, theirs, spis: SpiPool::default() }
    }

    async fn pass(&mut self, record: &SignedMembership) {
        self.channel.send(&Message::Membership(Box::new(record.clone())).encode()).await.unwrap();
    }

    /// Asks for keys as a member by a record; why it is refused.
    async fn ask(&mut self, record: &SignedMembership) -> Result<(), Reason> {
        let membership = record.claim().unwrap();
        let link = &mut keyed::link(self.node, &self.agent, &membership, self.hello);
        keyed::with_env(&mut self.spis, |env| link.handle_channel_up(env, self.theirs));
        loop {
            while let Some(action) = link.poll_action() {
                match action {
                    Action::Send(frame) => self.channel.send(&frame).await.unwrap(),
                    Action::Install(install) => {
                        keyed::with_env(&mut self.spis, |env| link.handle_installed(env, install.exchange));
                    }
                    Action::Established(_) => return Ok(()),
                    Action::Refused { by_peer, reason } => {
                        assert!(by_peer, "{reason}");
                        return Err(reason);
                    }
                    Action::RetireInbound { .. }
                    | Action::DropLink
                    | Action::MembershipStale { .. }
                    | Action::PassMembership => {}
                }
            }
            if let Message::Link(frame) = next(&mut self.channel).await
                && frame.network() == membership.network
            {
                let export = |context: &[u8; 32]| *self.channel.export(context);
                keyed::with_env(&mut self.spis, |env| link.handle_frame(env, frame, &export));
            }
        }
    }
}

async fn next(channel: &mut KeyChannel) -> Message {
    let received = tokio::time::timeout(PATIENCE, channel.receive()).await;
    Message::decode(&received.expect("it answers").unwrap().expect("it stays")).unwrap()
}

fn label(swarm: &Swarm, id: &NodeId, flag: &str, label: &str) -> ChangeNodeResponse {
    swarm.agent(1).ask(&["node", "update", id.as_str(), flag, label])
}

fn ip(host: &Host, arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    assert!(host.spawn(command).unwrap().wait().unwrap().success(), "ip {arguments:?}");
}

fn id_of(agent: &Agent) -> NodeId {
    agent.status().cluster.unwrap().node.id
}

/// Where [`SimulatedNode`]s say that they are.
const SIMULATED: &str = "198.18.0.0/16";
const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(15);
