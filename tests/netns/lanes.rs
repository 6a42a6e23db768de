//! Several lanes in each agent: flows are spread over them and keep their order, each lane has the
//! SAs that name it, and nodes with other numbers of lanes, or without steering, get along.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use overlayd::api::types::Offload;
use overlayd::drop_reason::DropReason;
use overlayd::id::{MacAddr, Spi};
use overlayd::lab::{Underlay, eventually, tcp_throughput};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::frames::{self, Datagram, datagrams};
use crate::support::swarm::{Agent, Attached, Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    there_is_a_lane_for_each_core_unless_the_configuration_says_otherwise
    every_flow_stays_in_one_lane_and_every_lane_has_some
    flows_keep_their_order_under_load_and_no_packet_seems_replayed
    where_the_kernel_does_not_steer_one_lane_receives_and_all_send
    nodes_with_other_numbers_of_lanes_get_along_and_may_change_them
    spi_of_a_lane_that_is_not_there_is_counted
    flood_limit_holds_for_a_container_over_all_lanes
    plain_vxlan_flows_are_sent_by_every_lane_and_come_back
    frames_between_local_containers_cross_in_one_piece
}

fn there_is_a_lane_for_each_core_unless_the_configuration_says_otherwise() {
    let all = sched_getaffinity(None).unwrap();
    let mut first = CpuSet::new();
    first.set((0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap());
    let cores = usize::try_from(all.count()).unwrap();
    for (may_use, lines, lanes) in
        [(&all, "", cores), (&first, "", 1), (&all, "lanes = 5", 5), (&first, "lanes = 5", 5)]
    {
        let file = tempfile::Builder::new().suffix(".toml").tempfile_in("/run").unwrap();
        std::fs::write(file.path(), lines).unwrap();
        // The laboratory starts agents from a thread of its own, which has the affinity of this one.
        sched_setaffinity(None, may_use).unwrap();
        let swarm =
            Swarm::unformed_with(1, Underlay::default(), &["--config", file.path().to_str().unwrap()]);
        swarm.init(Family::V4);
        swarm.create_encrypted("red");
        swarm.attach(1, "red", "c1");
        let agent = swarm.agent(1);
        assert_eq!(agent.lane_runs().len(), lanes, "threads, with {lines:?}");
        // Each has a socket of its own.
        let of = |offload| {
            let rows = agent.status().cluster.unwrap().offloads;
            rows.iter().find(|row| row.offload == offload).unwrap().of
        };
        assert_eq!(of(Offload::EspSegmentation), lanes as u64, "sockets, with {lines:?}");
        sched_setaffinity(None, &all).unwrap();
    }
}

fn every_flow_stays_in_one_lane_and_every_lane_has_some() {
    let (swarm, one, two) = pair(&[4, 4]);
    let before = Quiet::of(&swarm);
    let mut lanes: BTreeMap<u8, usize> = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for [from, to] in [[&one, &two], [&two, &one]] {
        let (sink, flows) = flows(from, to);
        for (number, flow) in flows.iter().enumerate() {
            let wire = swarm.capture(1);
            for _ in 0..5 {
                let mut datagram = [7; LONG];
                flow.send_to(&datagram, sink.local_addr().unwrap()).unwrap();
                let (_, back) = sink.recv_from(&mut datagram).unwrap();
                assert_eq!(back, flow.local_addr().unwrap());
                // The kernel lets a flow go by the queue that its answers come by.
                sink.send_to(&datagram, back).unwrap();
                flow.recv_from(&mut datagram).unwrap();
            }
            let esp = long_packets(&wire.stop().unwrap());
            assert_eq!(esp.len(), 10);
            let used: BTreeSet<_> = esp.iter().map(|packet| (packet.from, packet.esp().unwrap().0)).collect();
            assert_eq!(used.len(), 2, "flow {number} goes by several lanes: {used:?}");
            let lane = |spi| u8::from(Spi::new(spi).unwrap().lane());
            let used: Vec<_> = used.into_iter().map(|(sender, spi)| (sender, lane(spi))).collect();
            assert_eq!(used[0].1, used[1].1, "flow {number} goes by one lane and its answers by another");
            *lanes.entry(used[0].1).or_default() += 1;
            for (sender, lane) in used {
                // Were it another's too, the receiver's kernel could merge packets of two lanes.
                assert_eq!(*ports.entry(sender).or_insert(lane), lane, "{sender} sends to two lanes");
            }
        }
    }
    assert_eq!(lanes.len(), 4, "{lanes:?}");
    // A hash gives each of them 32 of 128, with a deviation of 5.
    assert!(lanes.values().all(|flows| *flows >= FLOWS / 6), "{lanes:?}");
    assert_eq!(ports.len(), 8, "each lane sends from a port of its own: {ports:?}");
    before.assert_no_more(&swarm);
}

fn flows_keep_their_order_under_load_and_no_packet_seems_replayed() {
    let (swarm, one, two) = pair(&[4, 4]);
    // A veth pair has a queue for each processor; a lane that moves while it sends would overtake itself.
    swarm.agents.iter().for_each(pin);
    let before = Quiet::of(&swarm);
    let (sink, flows) = flows(&one, &two);
    flows.iter().for_each(|flow| flow.set_nonblocking(true).unwrap());
    let to = sink.local_addr().unwrap();
    let [one, two] = [&one, &two];
    std::thread::scope(|scope| {
        let streams: Vec<_> = [[one, two], [two, one], [one, two], [two, one]]
            .map(|[from, to]| {
                let (namespaces, address) = ((from.container.namespace(), to.container.namespace()), to);
                scope.spawn(move || {
                    let address = address.address(Family::V4);
                    tcp_throughput(namespaces.0, namespaces.1, address, Duration::from_secs(2)).unwrap()
                })
            })
            .into();
        let echo = sink.try_clone().unwrap();
        let echoed = scope.spawn(move || {
            let mut order = Order::default();
            let mut datagram = [0; 64];
            while let Ok((length, from)) = echo.recv_from(&mut datagram) {
                order.note(from.port(), &datagram[..length]);
                // What the kernel does not take is a loss like any other.
                let _ = echo.send_to(&datagram[..length], from);
            }
            order
        });
        let mut order = Order::default();
        let mut hear = || {
            let before = order.received;
            for flow in &flows {
                let mut datagram = [0; 64];
                while let Ok((length, _)) = flow.recv_from(&mut datagram) {
                    order.note(flow.local_addr().unwrap().port(), &datagram[..length]);
                }
            }
            order.received > before
        };
        // Nothing waits for an answer, so that some are always under way.
        for number in 0..NUMBERS {
            for flow in &flows {
                let _ = flow.send_to(&number.to_be_bytes(), to);
            }
            hear();
            std::thread::sleep(Duration::from_millis(3));
        }
        eventually(PATIENCE, || {
            std::thread::sleep(Duration::from_millis(300));
            !hear()
        });
        for stream in streams {
            assert!(stream.join().unwrap().bytes > 100_000);
        }
        for order in [order, echoed.join().unwrap()] {
            assert!(order.received > FLOWS * NUMBERS as usize / 2, "{} arrived", order.received);
            assert!(order.overtaken.is_empty(), "flow, number, after: {:?}", order.overtaken);
        }
    });
    before.assert_no_more(&swarm);
}

fn where_the_kernel_does_not_steer_one_lane_receives_and_all_send() {
    let (swarm, one, two) = pair(&[4, 4]);
    let agent = swarm.agent(2);
    agent.kill();
    // A program for SO_REUSEPORT needs room in it (reuseport_attach_filter in net/core/filter.c).
    let limit = "/proc/sys/net/core/optmem_max";
    let host = swarm.lab.host(2);
    let usual = host.run_in(|| {
        let usual = std::fs::read_to_string(limit).unwrap();
        std::fs::write(limit, "32").unwrap();
        usual
    });
    start(&swarm, 2, 4);
    host.run_in(|| std::fs::write(limit, usual.unwrap()).unwrap()).unwrap();

    let status = agent.status();
    assert_eq!(status.cluster.unwrap().lane_count, 4);
    let told =
        |line: &str| line.contains("one lane of 4 receives") && line.contains("SO_ATTACH_REUSEPORT_CBPF");
    assert!(status.warnings.iter().any(|warning| told(warning)), "{:?}", status.warnings);
    assert!(agent.log().lines().any(told));
    swarm.await_keys(1);
    let peer = &agent.peers().peers[0];
    assert_eq!((peer.inbound_spis.len(), peer.outbound_spis.len()), (4, 4));
    assert!(peer.inbound_spis.iter().all(|spi| spi.lane().index() == 0), "{:?}", peer.inbound_spis);

    let before = Quiet::of(&swarm);
    swarm.assert_joined(&one, &two);
    let wire = swarm.capture(2);
    for [from, to] in [[&one, &two], [&two, &one]] {
        let (sink, flows) = flows(from, to);
        for flow in &flows {
            flow.send_to(&[7; LONG], sink.local_addr().unwrap()).unwrap();
            sink.recv_from(&mut [0; LONG]).unwrap();
        }
    }
    let esp = long_packets(&wire.stop().unwrap());
    assert_eq!(esp.len(), 2 * FLOWS);
    let senders: BTreeSet<_> = esp.iter().map(|packet| packet.from).collect();
    assert_eq!(senders.len(), 8, "four lanes of either node send: {senders:?}");
    before.assert_no_more(&swarm);
}

fn nodes_with_other_numbers_of_lanes_get_along_and_may_change_them() {
    let (swarm, one, two) = pair(&[4, 1]);
    for (numbers, changed) in [([4, 1], None), ([4, 3], Some(2)), ([2, 3], Some(1)), ([2, 64], Some(2))] {
        if let Some(number) = changed {
            swarm.agent(number).kill();
            start(&swarm, number, numbers[number - 1]);
            swarm.await_keys(1);
        }
        let before = Quiet::of(&swarm);
        swarm.assert_joined(&one, &two);
        for [from, to] in [[&one, &two], [&two, &one]] {
            let (sink, flows) = flows(from, to);
            for flow in &flows {
                flow.send_to(b"there and back", sink.local_addr().unwrap()).unwrap();
                let (_, back) = sink.recv_from(&mut [0; 64]).unwrap();
                sink.send_to(b"there and back", back).unwrap();
                flow.recv_from(&mut [0; 64]).unwrap();
            }
        }
        for (agent, lanes) in swarm.agents.iter().zip(numbers) {
            assert_eq!(agent.status().cluster.unwrap().lane_count, lanes);
            assert_eq!(agent.peers().peers[0].outbound_spis.len(), usize::from(lanes));
        }
        before.assert_no_more(&swarm);
    }
}

fn spi_of_a_lane_that_is_not_there_is_counted() {
    let (swarm, ..) = pair(&[4, 4]);
    let (agent, host) = (swarm.agent(2), swarm.lab.host(2));
    let unknown = |lane: usize| {
        let drops = agent.stats().drops.into_iter();
        let drops = drops.filter(|drop| drop.reason == DropReason::UnknownSpi && drop.lane.index() == lane);
        drops.map(|drop| drop.packets).sum::<u64>()
    };
    let before: Vec<_> = (0..4).map(unknown).collect();
    let to = SocketAddr::new(host.v4(), frames::ESP_PORT);
    swarm
        .lab
        .host(1)
        .run_in(|| {
            let thrower = UdpSocket::bind("0.0.0.0:0").unwrap();
            for spi in 0x0abc_de00..0x0abc_de40u32 {
                thrower.send_to(&[&spi.to_be_bytes()[..], &[7; 60]].concat(), to).unwrap();
            }
        })
        .unwrap();
    let counted = || (0..4).map(|lane| unknown(lane) - before[lane]).collect::<Vec<_>>();
    assert!(eventually(PATIENCE, || counted().iter().sum::<u64>() >= 64), "{:?}", counted());
    // Lanes 4 to 63 are not there; each of the four has what is congruent to it.
    assert_eq!(counted(), [16; 4]);
}

fn flood_limit_holds_for_a_container_over_all_lanes() {
    let (swarm, one, _two) = pair_with(&[4, 4], "[flood]\npackets_per_second = 1\nburst = 50\n");
    let agent = swarm.agent(1);
    let group = MacAddr::new([0x01, 0, 0x5e, 0, 0, 251]);
    let frame = |port| {
        let from = SocketAddr::new(one.address(Family::V4), port);
        frames::udp((one.mac(), group), from, "224.0.0.251:5353".parse().unwrap(), b"flood")
    };
    let flood: Vec<_> = (0..400).map(|number| frame(1024 + number)).collect();
    let limited = || agent.dropped(DropReason::FloodRateLimited);
    let before = (limited(), agent.stats().drops.len());
    let wire = swarm.capture(1);
    frames::send(one.container.namespace(), one.ifname(), &flood);
    assert!(eventually(PATIENCE, || limited() - before.0 >= 350), "{} of 400", limited() - before.0);
    let passed = 400 - (limited() - before.0);
    // What the container sent by itself before may have used some of the burst, and a token a second
    // comes back.
    assert!(passed <= 60, "{passed} frames passed");
    let lanes: BTreeSet<_> = agent
        .stats()
        .drops
        .iter()
        .filter(|drop| drop.reason == DropReason::FloodRateLimited)
        .map(|drop| drop.lane)
        .collect();
    assert_eq!(lanes.len(), 4, "the flood came by {lanes:?}");
    drop(wire);
}

fn plain_vxlan_flows_are_sent_by_every_lane_and_come_back() {
    let swarm = formed(&[4, 4], "");
    swarm.create(&["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "plain"]);
    let (one, two) = (swarm.attach(1, "plain", "c1"), swarm.attach(2, "plain", "c2"));
    swarm.assert_joined(&one, &two);
    let before = Quiet::of(&swarm);
    for [from, to] in [[&one, &two], [&two, &one]] {
        let (sink, flows) = flows(from, to);
        let sender = swarm.agents.iter().find(|agent| from.container.name() == format!("c{}", agent.number));
        let runs = || sender.unwrap().lane_runs();
        let before = runs();
        for flow in &flows {
            flow.send_to(b"there", sink.local_addr().unwrap()).unwrap();
            sink.recv_from(&mut [0; 64]).unwrap();
        }
        // Whoever sends has to wake up for it, and before an answer the hash alone decides.
        let woken: Vec<_> = runs().iter().zip(before).map(|(now, before)| now - before).collect();
        assert!(woken.len() == 4 && woken.iter().all(|runs| *runs >= 4), "{woken:?}");
        for flow in &flows {
            flow.send_to(b"there and back", sink.local_addr().unwrap()).unwrap();
            let (_, back) = sink.recv_from(&mut [0; 64]).unwrap();
            sink.send_to(b"there and back", back).unwrap();
            flow.recv_from(&mut [0; 64]).unwrap();
        }
        let (from, address) = (from.container.namespace(), to.address(Family::V4));
        let report = tcp_throughput(from, to.container.namespace(), address, Duration::from_millis(200));
        assert!(report.unwrap().bytes > 100_000);
    }
    before.assert_no_more(&swarm);
}

fn frames_between_local_containers_cross_in_one_piece() {
    let (swarm, one, _two) = pair(&[4, 4]);
    let neighbor = swarm.attach(1, "red", "c3");
    swarm.assert_joined(&one, &neighbor);
    let agent = swarm.agent(1);
    let traffic = || {
        let endpoints = agent.stats().endpoints.into_iter();
        let mut neighbors = endpoints.filter(|endpoint| endpoint.endpoint == neighbor.endpoint().id);
        neighbors.next().unwrap().received
    };
    let (before, sent) = (traffic(), agent.peers().peers[0].sent.packets);
    let (from, to) = (one.container.namespace(), neighbor.container.namespace());
    tcp_throughput(from, to, neighbor.address(Family::V4), Duration::from_millis(500)).unwrap();
    let now = traffic();
    let mean = (now.bytes - before.bytes) / (now.packets - before.packets);
    assert!(mean > 20_000, "{mean} bytes in the mean");
    // What the containers say of themselves to all.
    assert!(agent.peers().peers[0].sent.packets - sent < 50, "it left the node");
}

/// Two hosts in one cluster whose agents have so many lanes, with an encrypted network and a
/// container on each.
fn pair(lanes: &[u8; 2]) -> (Swarm, Attached, Attached) {
    pair_with(lanes, "")
}

fn pair_with(lanes: &[u8; 2], config: &str) -> (Swarm, Attached, Attached) {
    let (swarm, mut containers) = formed(lanes, config).with_containers();
    let two = containers.remove(1);
    let one = containers.remove(0);
    swarm.assert_joined(&one, &two);
    (swarm, one, two)
}

fn formed(lanes: &[u8; 2], config: &str) -> Swarm {
    let underlay = Underlay { segment_offload: false, ..Underlay::default() };
    let swarm = Swarm::idle(2, underlay);
    for (number, lanes) in [1, 2].into_iter().zip(lanes) {
        spawn(&swarm, number, *lanes, config);
    }
    swarm.agents.iter().for_each(Agent::await_ready);
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm
}

/// Starts an agent with so many lanes and waits until it answers.
fn start(swarm: &Swarm, number: usize, lanes: u8) {
    spawn(swarm, number, lanes, "");
    swarm.agent(number).await_ready();
}

fn spawn(swarm: &Swarm, number: usize, lanes: u8, config: &str) {
    let file = swarm.dir().join(format!("config{number}.toml"));
    std::fs::write(&file, format!("lanes = {lanes}\n{config}")).unwrap();
    swarm.agent(number).spawn(swarm.lab.host(number), &["--config", file.to_str().unwrap()]);
}

/// A socket in `to`, and one for each of [`FLOWS`] flows to it in `from`.
fn flows(from: &Attached, to: &Attached) -> (UdpSocket, Vec<UdpSocket>) {
    let bind = |container: &Attached| {
        let address = SocketAddr::new(container.address(Family::V4), 0);
        let socket = container.container.run_in(|| UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    };
    (bind(to), (0..FLOWS).map(|_| bind(from)).collect())
}

/// The ESP packets of a capture that are as long as the tests', and as nothing that containers send
/// by themselves.
fn long_packets(capture: &[Vec<u8>]) -> Vec<Datagram> {
    let datagrams = datagrams(capture).into_iter();
    datagrams.filter(|packet| packet.esp().is_some() && packet.payload.len() >= LONG).collect()
}

/// Lets an agent run on one processor only.
fn pin(agent: &Agent) {
    let all = sched_getaffinity(None).unwrap();
    let usable: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    let mut one = CpuSet::new();
    one.set(usable[agent.number % usable.len()]);
    for task in std::fs::read_dir(format!("/proc/{}/task", agent.status().pid)).unwrap() {
        let task = task.unwrap().file_name().into_string().unwrap().parse().unwrap();
        sched_setaffinity(rustix::thread::Pid::from_raw(task), &one).unwrap();
    }
}

/// In which order the datagrams of each flow came.
#[derive(Default)]
struct Order {
    last: BTreeMap<u16, u32>,
    received: usize,
    /// Flow, number, and the higher number that came before.
    overtaken: Vec<(u16, u32, u32)>,
}

impl Order {
    fn note(&mut self, flow: u16, datagram: &[u8]) {
        let number = u32::from_be_bytes(datagram.try_into().unwrap());
        self.received += 1;
        if let Some(last) = self.last.insert(flow, number)
            && last >= number
        {
            self.overtaken.push((flow, number, last));
        }
    }
}

/// Drops that must not become more, however many lanes there are.
struct Quiet(Vec<u64>);

impl Quiet {
    const REASONS: [DropReason; 6] = [
        DropReason::Replayed,
        DropReason::ReplayTooOld,
        DropReason::UnknownSpi,
        DropReason::AuthenticationFailed,
        DropReason::NoKey,
        DropReason::NoSuchPort,
    ];

    fn of(swarm: &Swarm) -> Self {
        let dropped = swarm.agents.iter().flat_map(|agent| Self::REASONS.map(|reason| agent.dropped(reason)));
        Self(dropped.collect())
    }

    fn assert_no_more(&self, swarm: &Swarm) {
        assert_eq!(self.0, Self::of(swarm).0, "{:?}: {}", Self::REASONS, swarm.drops());
    }
}

const FLOWS: usize = 64;
/// Datagrams of a flow.
const NUMBERS: u32 = 400;
/// Bytes of a datagram.
const LONG: usize = 600;
