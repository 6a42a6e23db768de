//! How many system calls the lanes of real agents make for a megabyte: batches, never packets. strace
//! counts them. It also slows the lane, which makes batches longer; but a call per packet would still
//! be hundreds a megabyte, as the first test shows where the kernel's offloads are off.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use overlayd::lab::Underlay;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::streams::assert_stream_is_intact;
use crate::support::swarm::{Agent, Attached, Family, Swarm};
use crate::support::tests;

tests! {
    calls_per_packet_would_be_seen
    tcp_through_the_encrypted_network_costs_few_calls_a_megabyte
    tcp_through_the_plain_network_costs_few_calls_a_megabyte
}

fn calls_per_packet_would_be_seen() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile_in("/run").unwrap();
    std::fs::write(file.path(), "[offload]\ntap_checksum = false\n").unwrap();
    let swarm = swarm(&["--config", file.path().to_str().unwrap()]);
    let (swarm, containers) = swarm.with_containers();
    for cost in measure(&swarm, &containers, 4) {
        // A TAP without super-frames takes and gives one packet for a call.
        assert!(cost.calls_per_mb() > 400.0, "{cost:?}");
    }
}

fn tcp_through_the_encrypted_network_costs_few_calls_a_megabyte() {
    let (swarm, containers) = swarm(&[]).with_containers();
    assert_few_calls(&swarm, &containers);
}

fn tcp_through_the_plain_network_costs_few_calls_a_megabyte() {
    let swarm = swarm(&[]);
    swarm.create(&["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "plain"]);
    let containers = [1, 2].map(|number| swarm.attach(number, "plain", &format!("c{number}")));
    assert_few_calls(&swarm, &containers);
}

fn assert_few_calls(swarm: &Swarm, containers: &[Attached]) {
    let costs = measure(swarm, containers, 64);
    let is_little = |cost: &Cost| cost.calls_per_mb() <= MOST_CALLS_PER_MB && cost.calls * 4 <= cost.packets;
    assert!(costs.iter().all(is_little), "{costs:#?}");
    let is_made =
        |call: &&str| costs.iter().any(|cost| cost.table.split_whitespace().any(|word| word == *call));
    assert_eq!(NEVER.iter().find(|call| is_made(call)), None, "{costs:#?}");
}

fn swarm(flags: &[&str]) -> Swarm {
    let swarm = Swarm::unformed_with(2, Underlay::default(), flags);
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm
}

/// Sends a stream of so many megabytes from the first container to the second; what it cost each agent.
fn measure(swarm: &Swarm, containers: &[Attached], megabytes: usize) -> Vec<Cost> {
    let [one, two] = containers else { panic!("two containers") };
    swarm.assert_joined(one, two);
    let packets = || swarm.agents.iter().map(packets).collect::<Vec<_>>();
    let before = packets();
    let strace: Vec<_> = swarm.agents.iter().map(Strace::attach).collect();
    let to = (two.container.namespace(), two.address(Family::V4));
    assert_stream_is_intact(one.container.namespace(), to, megabytes * 1_000_000);
    let calls: Vec<_> = strace.into_iter().map(Strace::stop).collect();
    let counted = calls.into_iter().zip(packets()).zip(before).zip(&swarm.agents);
    counted
        .map(|((((calls, table), after), before), agent)| Cost {
            agent: agent.number,
            megabytes,
            packets: after - before,
            calls,
            table,
        })
        .collect()
}

/// What a stream cost an agent.
#[derive(Debug)]
struct Cost {
    #[expect(dead_code, reason = "shown when a test fails")]
    agent: usize,
    megabytes: usize,
    /// That it sent to its peer and received from it.
    packets: u64,
    /// Of its lanes.
    calls: u64,
    /// What strace says.
    table: String,
}

impl Cost {
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    fn calls_per_mb(&self) -> f64 {
        self.calls as f64 / self.megabytes as f64
    }
}

fn packets(agent: &Agent) -> u64 {
    agent.peers().peers.iter().map(|peer| peer.sent.packets + peer.received.packets).sum()
}

/// An strace that counts the calls of an agent's lanes.
struct Strace {
    child: Child,
    table: PathBuf,
}

impl Strace {
    fn attach(agent: &Agent) -> Self {
        let lanes = lanes(agent.status().pid);
        assert!(!lanes.is_empty(), "the agent has no lane");
        let table = agent.dir.join("strace");
        let mut command = Command::new("strace");
        command.args(["-c", "-U", "calls,name", "-o"]).arg(&table);
        command.args(lanes.iter().flat_map(|lane| ["-p".to_owned(), lane.to_string()]));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace: install the Debian package of this name");
        // It says so of each thread once it has it.
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        for _ in lanes {
            let line = said.next().expect("strace ended").unwrap();
            assert!(line.contains("attached"), "strace: {line}");
        }
        Self { child, table }
    }

    /// How many calls there were, and the table of them.
    fn stop(mut self) -> (u64, String) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.child.wait().unwrap();
        let table = std::fs::read_to_string(&self.table).unwrap();
        let total = table.lines().find_map(|line| line.trim().strip_suffix("total"));
        let calls = total.and_then(|calls| calls.trim().parse().ok());
        (calls.unwrap_or_else(|| panic!("no total in {table:?}")), table)
    }
}

/// The threads of an agent that carry packets.
fn lanes(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let is_lane = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).unwrap().starts_with("lane-");
    let number = |task: PathBuf| task.file_name().unwrap().to_str().unwrap().parse().unwrap();
    tasks.filter(is_lane).map(number).collect()
}

/// A packet is 1.4 kB, so a megabyte is 700 of them.
const MOST_CALLS_PER_MB: f64 = 150.0;
/// What locks and allocations come to.
const NEVER: [&str; 5] = ["futex", "mmap", "munmap", "brk", "madvise"];
