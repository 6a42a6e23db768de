//! What an agent costs that has many peers and nothing to carry: its keys, channels, timers and session.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use overlayd::cluster::Node;
use overlayd::control::rpc::ManagerClient;
use overlayd::control::rpc::messages::{Attach, InspectNetwork, SessionRequest};
use overlayd::id::EndpointId;
use overlayd::io::clock::boot_time;
use overlayd::lab::{Host, Underlay, eventually};
use overlayd::membership::JoinToken;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use support::simulated::SimulatedNode;
use support::swarm::{Agent, Family, Swarm};
use support::{keyed, tell, test_program};

test_program! {
    agent_with_a_hundred_peers_is_idle_when_nothing_happens
    ; soak:
    agent_with_a_thousand_peers_is_idle_when_nothing_happens
}

fn agent_with_a_hundred_peers_is_idle_when_nothing_happens() {
    hold(100, Duration::from_secs(5));
}

fn agent_with_a_thousand_peers_is_idle_when_nothing_happens() {
    hold(1_000, Duration::from_secs(30));
}

/// The agent of host 2 has the peers, which live on host 3.
fn hold(peers: usize, idle: Duration) {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let swarm = Swarm::unformed(3, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm.create(&["--encrypted", "--subnet", "10.64.0.0/12", "red"]);
    let (agent, host) = (swarm.agent(2), swarm.lab.host(3));
    for other in [1, 2] {
        ip(swarm.lab.host(other), &["route", "add", PEERS, "via", &host.v4().to_string()]);
    }
    ip(host, &["route", "add", "local", PEERS, "dev", "lo"]);
    let _container = swarm.attach(2, "red", "c2");
    let token: JoinToken = init.worker_token.parse().unwrap();
    let node = agent.status().cluster.unwrap().node;
    host.run_in(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(live(peers, init.manager, &token, node));
        agent.await_keys(peers);
        await_settled(agent);
        measure(agent, swarm.agent(1), peers, idle);
    })
    .unwrap();
}

/// Nodes that have joined, have an endpoint and a session each, and begin to have keys with the agent.
async fn live(peers: usize, manager: SocketAddr, token: &JoinToken, agent: Node) {
    let peers = join_all((0..peers).map(|number| SimulatedNode::join(manager, token, number))).await;
    for peer in &peers {
        attach(&peer.client).await;
    }
    let network = InspectNetwork { name: "red".parse().unwrap() };
    let network = peers[0].client.inspect_network(network).await.unwrap();
    let membership = Arc::new(network.view.membership.claim().unwrap());
    for peer in peers {
        let request = SessionRequest { node: peer.node.clone(), standing: None };
        let mut updates = peer.client.session(request).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = updates.message().await {} });
        tokio::spawn(keyed::keep(peer, agent.clone(), Arc::clone(&membership)));
    }
}

/// Waits until what has begun to happen has happened: no key is new, and no older one is still taken.
fn await_settled(agent: &Agent) {
    let keys = || {
        let peers = agent.peers().peers.into_iter();
        peers.map(|peer| (peer.inbound_spis, peer.lingering_spis)).collect::<Vec<_>>()
    };
    let is_settled = || {
        let before = keys();
        std::thread::sleep(SETTLED);
        before == keys() && before.iter().all(|(_, lingering)| lingering.is_empty())
    };
    assert!(eventually(PATIENCE, is_settled), "keys do not settle: {:?}", keys());
}

async fn attach(client: &ManagerClient) {
    let id = EndpointId::from_entropy(rand::random());
    let request = Attach { id, network: "red".parse().unwrap(), name: None, ips: vec![], mac: None };
    client.attach(request).await.unwrap();
}

/// Timers, keepalives and the session are what it does all the time; each peer's keys are made anew once in
/// [`KEY_AGE`].
fn measure(agent: &Agent, manager: &Agent, peers: usize, idle: Duration) {
    let (begun, before, before_of_manager) = (boot_time(), ran(agent), ran(manager));
    std::thread::sleep(idle);
    let waiting = percent(ran(agent) - before, boot_time().since(begun));
    let serving = percent(ran(manager) - before_of_manager, boot_time().since(begun));
    tell(&format!("a manager with sessions of {peers} nodes took {serving:.2} % of a core"));
    let before = ran(agent);
    agent.done(&["rekey"]);
    let rekeying = ran(agent) - before;
    let all = waiting + percent(rekeying, KEY_AGE);
    tell(&format!(
        "with {peers} peers {waiting:.2} % of a core, with new keys every {KEY_AGE:?} ({:?} for each peer) {all:.2} %",
        rekeying / u32::try_from(peers).unwrap()
    ));
    let most = peers as f64 * MOST_PERCENT_OF_PEER * if cfg!(debug_assertions) { DEBUG_BUILD } else { 1.0 };
    assert!(all < most, "{all:.2} % of a core and not {most:.2}");
}

/// For how long all threads of an agent have run, those that have ended too, in steps of 10 ms (`proc_pid_stat(5)`).
fn ran(agent: &Agent) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.status().pid)).unwrap();
    // The name before may have blanks. Of the rest, the 12th and 13th are what it ran for itself and in the kernel.
    let numbers = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u32 = numbers.skip(11).take(2).map(|number| number.parse::<u32>().unwrap()).sum();
    Duration::from_secs(1) * ticks / USER_HZ
}

fn percent(ran: Duration, of: Duration) -> f64 {
    ran.as_secs_f64() / of.as_secs_f64() * 100.0
}

fn ip(host: &Host, arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    assert!(host.spawn(command).unwrap().wait().unwrap().success(), "ip {arguments:?}");
}

/// Where [`SimulatedNode`]s say that they are.
const PEERS: &str = "198.18.0.0/16";
/// For how long no key is new before what began is over.
const SETTLED: Duration = Duration::from_secs(2);
/// Within which keys settle.
const PATIENCE: Duration = Duration::from_secs(60);
/// After which keys are replaced.
const KEY_AGE: Duration = Duration::from_secs(15 * 60);
/// 1 % of a core for a thousand.
const MOST_PERCENT_OF_PEER: f64 = 0.001;
/// How much slower the code is that is not optimized.
const DEBUG_BUILD: f64 = 10.0;
/// Of x86-64 and all newer architectures (`include/asm-generic/param.h`).
const USER_HZ: u32 = 100;
