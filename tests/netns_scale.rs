//! Many nodes and endpoints against one manager: the real control protocol of each node (joining, TLS,
//! the session with its views, requests), without containers and packets.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use overlayd::boot_time::BootTime;
use overlayd::control::rpc::ManagerClient;
use overlayd::control::rpc::messages::{Attach, SessionRequest, ViewUpdate};
use overlayd::id::EndpointId;
use overlayd::io::clock::boot_time;
use overlayd::lab::Underlay;
use overlayd::membership::JoinToken;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Semaphore, watch};

use support::simulated::SimulatedNode;
use support::swarm::{Agent, Family, Swarm};
use support::{tell, test_program};

test_program! {
    hundred_nodes_join_from_one_address_and_hear_of_changes_in_time
    ; soak:
    thousand_nodes_join_from_one_address_and_hear_of_changes_in_time
}

fn hundred_nodes_join_from_one_address_and_hear_of_changes_in_time() {
    hold(&Scale { nodes: 100, endpoints: 500 });
}

fn thousand_nodes_join_from_one_address_and_hear_of_changes_in_time() {
    hold(&Scale { nodes: 1_000, endpoints: 10_000 });
}

struct Scale {
    nodes: usize,
    endpoints: usize,
}

fn hold(scale: &Scale) {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let swarm = Swarm::unformed(2, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.create(&["--encrypted", "--subnet", "10.64.0.0/12", "red"]);
    let token: JoinToken = init.worker_token.parse().unwrap();
    swarm
        .lab
        .host(2)
        .run_in(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(live(scale, init.manager, &token, swarm.agent(1)));
        })
        .unwrap();
}

async fn live(scale: &Scale, manager: SocketAddr, token: &JoinToken, agent: &Agent) {
    let begun = boot_time();
    let nodes = join_all((0..scale.nodes).map(|number| Follower::join(manager, token, number))).await;
    let joined = since(begun);
    tell(&format!("{} nodes joined and had a session after {joined:.1} s", scale.nodes));
    assert!(joined <= 120.0, "{joined} s");

    let begun = boot_time();
    let each = scale.endpoints / scale.nodes;
    // All nodes are simulated by one process, which is to keep up with what they are told.
    let room = &Semaphore::new(AT_ONCE);
    join_all(nodes.iter().map(|node| async {
        let _room = room.acquire().await.unwrap();
        node.attach(each).await;
    }))
    .await;
    tell(&format!("{} endpoints attached after {:.1} s", scale.endpoints, since(begun)));
    knows_all(&nodes, scale.endpoints, Duration::from_secs(600)).await;
    tell(&format!("{} endpoints of one network known to all after {:.1} s", scale.endpoints, since(begun)));

    for more in 1..=5 {
        let begun = boot_time();
        nodes[0].attach(1).await;
        let acknowledged = since(begun);
        knows_all(&nodes, scale.endpoints + more, Duration::from_secs(60)).await;
        let known = since(begun);
        tell(&format!("a change acknowledged after {acknowledged:.3} s, known to all after {known:.3} s"));
        assert!(known <= 2.0, "{known} s");
    }
    let megabytes = peak_megabytes(agent);
    tell(&format!("the manager had {megabytes} MB in memory at most"));
    assert!(megabytes < 512, "{megabytes} MB");
}

/// A node with a session.
struct Follower {
    client: ManagerClient,
    endpoints: watch::Receiver<BTreeSet<EndpointId>>,
}

impl Follower {
    async fn join(manager: SocketAddr, token: &JoinToken, number: usize) -> Self {
        let SimulatedNode { node, client } = SimulatedNode::join(manager, token, number).await;
        let (known, endpoints) = watch::channel(BTreeSet::new());
        let (begun, mut has_begun) = watch::channel(false);
        let request = SessionRequest { node, standing: None };
        tokio::spawn(follow(client.clone(), request, known, begun));
        has_begun.wait_for(|begun| *begun).await.unwrap();
        Self { client, endpoints }
    }

    async fn attach(&self, count: usize) {
        for _ in 0..count {
            let request = Attach {
                id: EndpointId::from_entropy(rand::random()),
                network: "red".parse().unwrap(),
                name: None,
                ips: vec![],
                mac: None,
            };
            self.client.attach(request).await.unwrap();
        }
    }
}

/// Keeps the endpoints of the views that it is told, and of them the ids alone.
async fn follow(
    client: ManagerClient,
    request: SessionRequest,
    known: watch::Sender<BTreeSet<EndpointId>>,
    begun: watch::Sender<bool>,
) {
    loop {
        let mut updates = match client.session(request.clone()).await {
            Ok(updates) => updates,
            Err(error) => {
                assert!(!*begun.borrow(), "a session ended: {error}");
                tokio::time::sleep(Duration::from_millis(rand::random_range(200..600))).await;
                continue;
            }
        };
        while let Ok(Some(update)) = updates.message().await {
            known.send_modify(|known| learn(known, update));
            begun.send_replace(true);
        }
        panic!("a session ended");
    }
}

fn learn(known: &mut BTreeSet<EndpointId>, update: ViewUpdate) {
    if update.full {
        known.clear();
    }
    known.extend(update.networks.iter().flat_map(|network| &network.endpoints).map(|endpoint| endpoint.id));
    for change in update.changes {
        known.extend(change.endpoints.iter().map(|endpoint| endpoint.id));
        known.retain(|id| change.endpoints_gone.is_empty() || !change.endpoints_gone.contains(id));
    }
}

async fn knows_all(nodes: &[Follower], endpoints: usize, patience: Duration) {
    let all = join_all(nodes.iter().map(|node| async {
        node.endpoints.clone().wait_for(|known| known.len() == endpoints).await.map(drop).unwrap();
    }));
    if tokio::time::timeout(patience, all).await.is_err() {
        let known: BTreeSet<_> = nodes.iter().map(|node| node.endpoints.borrow().len()).collect();
        panic!("of {endpoints} endpoints nodes know {known:?}");
    }
}

fn since(begun: BootTime) -> f64 {
    boot_time().since(begun).as_secs_f64()
}

fn peak_megabytes(agent: &Agent) -> u64 {
    let pid = agent.status().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Nodes that attach endpoints at a time.
const AT_ONCE: usize = 8;
