//! Many nodes and endpoints against one manager: the real control protocol of each node (joining, TLS,
//! the session with its updates, requests), without containers and packets.
//!
//! All nodes are one process, on the same two cores as the manager. Each reads every update; most keep of it
//! only who is there, and one in fifty keeps the whole view and checks what was signed, as an agent does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use overlayd::boot_time::BootTime;
use overlayd::io::clock::boot_time;
use overlayd::lab::Underlay;
use overlayd::membership::JoinToken;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;

use crate::support::followers::{Follower, known_to_all};
use crate::support::swarm::{Agent, Family, Swarm};
use crate::support::{tell, tests};

tests! {
    hundred_nodes_join_from_one_address_and_hear_of_changes_in_time
    ; soak:
    thousand_nodes_join_from_one_address_and_hear_of_changes_in_time
}

fn hundred_nodes_join_from_one_address_and_hear_of_changes_in_time() {
    hold(&Scale { nodes: 100, endpoints: 500, rounds: 2 });
}

fn thousand_nodes_join_from_one_address_and_hear_of_changes_in_time() {
    hold(&Scale { nodes: 1_000, endpoints: 10_000, rounds: 7 });
}

struct Scale {
    nodes: usize,
    endpoints: usize,
    /// Of four changes each, when everything else is at rest.
    rounds: usize,
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

    let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
    fill(scale, &nodes).await;
    change(scale, nodes.clone(), agent).await;

    let whole: Vec<_> = nodes.iter().filter_map(|node| node.view()).collect();
    let newest = whole.iter().map(|view| view.version).max().unwrap();
    let current: Vec<_> = whole.iter().filter(|view| view.version == newest).collect();
    assert!(current.len() > whole.len() / 2 && current.iter().all(|view| view == &current[0]));
    let ended: usize = nodes.iter().map(|node| node.ended()).sum();
    let megabytes = peak_megabytes(agent);
    tell(&format!(
        "the manager had {megabytes} MB in memory at most; {ended} sessions ended before their time"
    ));
    assert_eq!(ended, 0);
    assert!(megabytes < 512, "{megabytes} MB");
}

/// Attaches all endpoints, and sees meanwhile how long one more takes to be known.
async fn fill(scale: &Scale, nodes: &[Arc<Follower>]) {
    let begun = boot_time();
    let filled = AtomicBool::new(false);
    // The nodes that are to leave and come back have one endpoint each, the others the rest.
    let (coming, staying) = nodes.split_at(scale.rounds);
    let count = |number: usize| {
        let rest = scale.endpoints - coming.len();
        rest / staying.len() + usize::from(number < rest % staying.len())
    };
    let attaching = async {
        let room = &Semaphore::new(AT_ONCE);
        let staying = staying.iter().enumerate().map(|(number, node)| (node, count(number)));
        let all = staying.chain(coming.iter().map(|node| (node, 1)));
        join_all(all.map(|(node, count)| async move {
            let _room = room.acquire().await.unwrap();
            node.attach(count).await;
        }))
        .await;
        filled.store(true, Ordering::Relaxed);
        since(begun)
    };
    let probing = async {
        let mut delays = Vec::new();
        while !filled.load(Ordering::Relaxed) {
            tokio::time::sleep(PROBE_INTERVAL).await;
            let members = nodes.iter().filter(|node| node.is_member()).cloned().collect::<Vec<_>>();
            let Some(prober) = staying.iter().find(|node| node.is_member()) else { continue };
            let asked = boot_time();
            let probe = prober.attach(1).await;
            known_to_all(&members, "an endpoint", |known| known.endpoints.contains(&probe[0])).await;
            delays.push(since(asked));
            prober.detach(probe[0]).await;
        }
        delays
    };
    let (attached, mut delays) = tokio::join!(attaching, probing);
    tell(&format!("{} endpoints attached after {attached:.1} s", scale.endpoints));
    known_to_all(nodes, "all", |known| known.endpoints.len() == scale.endpoints).await;
    tell(&format!("{} endpoints of one network known to all after {:.1} s", scale.endpoints, since(begun)));
    tell(&format!("meanwhile one more was known to all after {}", of(&mut delays)));
}

/// Changes that each member hears of, one at a time.
async fn change(scale: &Scale, mut nodes: Vec<Arc<Follower>>, agent: &Agent) {
    let mut delays = Vec::new();
    let mut carried = Vec::new();
    for round in 0..scale.rounds {
        for kind in [Kind::Endpoint, Kind::Leaves, Kind::Comes, Kind::Removed] {
            let (before, begun) = (bytes_received(), boot_time());
            kind.make(round, &mut nodes, agent).await;
            let known = since(begun);
            // Of the same second, in which nothing else happens.
            carried.push((bytes_received() - before) / nodes.len());
            assert!(known <= 2.0, "{kind:?}: {known} s");
            delays.push(known);
        }
    }
    let count = delays.len();
    tell(&format!("of {count} changes each was known to all after {}", of(&mut delays)));
    carried.sort_unstable();
    let most = carried[carried.len() - 1];
    tell(&format!("a change took {most} bytes for each node at most"));
    // It says what changed, whatever the number of members.
    assert!(most <= MOST_BYTES, "{carried:?}");
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A member has one more endpoint.
    Endpoint,
    /// A member is none any more.
    Leaves,
    /// It is a member again.
    Comes,
    /// A node is removed from the cluster, with its endpoints.
    Removed,
}

impl Kind {
    /// Makes a change, and waits until all members know of it.
    async fn make(self, round: usize, nodes: &mut Vec<Arc<Follower>>, agent: &Agent) {
        let coming = Arc::clone(&nodes[round]);
        match self {
            Self::Endpoint => {
                let new = nodes[nodes.len() - 2].attach(1).await;
                known_to_all(nodes, "an endpoint", |known| known.endpoints.contains(&new[0])).await;
            }
            Self::Leaves => {
                let old = coming.endpoints();
                coming.detach(old[0]).await;
                let others: Vec<_> = nodes.iter().filter(|node| node.id() != coming.id()).cloned().collect();
                known_to_all(&others, "who left", |known| !known.nodes.contains(&coming.id())).await;
            }
            Self::Comes => {
                let new = coming.attach(1).await;
                let has_come = |known: &crate::support::followers::Known| {
                    known.nodes.contains(&coming.id()) && known.endpoints.contains(&new[0])
                };
                known_to_all(nodes, "who came", has_come).await;
            }
            Self::Removed => {
                let removed = nodes.pop().unwrap();
                removed.is_to_end();
                let id = removed.id().to_string();
                agent.done(&["node", "rm", "--force", &id]);
                let knows = |known: &crate::support::followers::Known| {
                    known.removed.contains(&removed.id()) && !known.nodes.contains(&removed.id())
                };
                known_to_all(nodes, "who was removed", knows).await;
            }
        }
    }
}

/// The median and the most.
fn of(delays: &mut [f64]) -> String {
    delays.sort_by(f64::total_cmp);
    let (Some(most), Some(median)) = (delays.last(), delays.get(delays.len() / 2)) else {
        return "no time".to_owned();
    };
    format!("{median:.2} s in the median, {most:.2} s at most")
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

/// What has come to this host from the manager, headers among it.
fn bytes_received() -> usize {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let devices = devices.lines().filter_map(|line| line.split_once(':'));
    let received =
        devices.filter(|(name, _)| name.trim() != "lo").map(|(_, rest)| rest.split_whitespace().next());
    received.map(|bytes| bytes.unwrap().parse::<usize>().unwrap()).sum()
}

/// Nodes that attach endpoints at a time.
const AT_ONCE: usize = 8;
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// TCP, TLS and HTTP/2 take some 200 of them.
const MOST_BYTES: usize = 5_000;
