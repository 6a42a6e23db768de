//! Lanes with real TAPs and sockets, without control: two hosts, keys put in by hand.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use overlayd::drop_reason::DropReason;
use overlayd::forward::{EndpointSpec, NetworkTable, Place, Tables, TablesBuilder};
use overlayd::id::{
    IfName, LaneCount, LaneId, LinkSlot, MacAddr, NetSlot, PortHold, PortSlot, Spi, Vni, VtepSlot,
};
use overlayd::io::clock::boot_time;
use overlayd::io::container_port::{ContainerPort, TapQueue};
use overlayd::io::tap::{Tap, TapOffloads};
use overlayd::io::udp::{Datagram, RecvRing, UdpOptions, UdpSocket};
use overlayd::lab::{Container, Host, Lab, Ping, Underlay, eventually, tcp_throughput, udp_blast};
use overlayd::rate::{Rate, RateLimits};
use overlayd::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Suite};
use overlayd::wire::traffic_class::{Dscp, TrafficClass};
use overlayd::wire::vxlan::LeftChecksums;
use overlayd::worker::{
    self, Command, DataSocket, FloodLimit, Lane, LaneConfig, LaneEvent, PortLimits, Precedence, Wish,
};

#[path = "support/lane_allocations.rs"]
mod lane_allocations;
mod support;

use lane_allocations::lane_allocations;
use support::streams::{assert_run_is_intact, assert_run_is_intact_as, assert_stream_is_intact};
use support::test_program;

test_program! {
    containers_ping_through_esp_over_either_underlay
    containers_of_a_plain_network_ping_through_vxlan
    every_datagram_of_the_encrypted_network_is_esp
    without_keys_nothing_is_sent_and_control_hears_of_it
    datagrams_that_the_kernel_refuses_are_counted_at_their_peer
    deleted_port_is_reported_and_its_slot_can_be_used_again
    deleted_port_whose_container_may_not_send_is_reported_soon_by_any_lane
    streams_and_runs_cross_intact_whatever_the_kernel_offers
    super_frames_are_used_where_the_kernel_offers_them
    segmentation_that_the_kernel_refuses_is_given_up_and_told_once
    warm_lanes_allocate_nothing_in_either_direction
    outer_header_shows_ecn_and_the_dscp_on_request_alone
    congestion_that_the_underlay_marks_slows_the_stream_down
    mark_that_no_sender_asked_for_is_a_counted_loss
    processors_are_kept_awake_while_containers_converse
    streams_come_first_and_floods_do_not
}

fn containers_ping_through_esp_over_either_underlay() {
    for is_ipv6 in [false, true] {
        let bed = Bed::new(Kind::Encrypted { is_ipv6 });
        bed.exchange_keys();
        bed.assert_ping(0, 1);
        bed.assert_ping(1, 0);
        for node in &bed.nodes {
            let link = node.lane.counters().link(LINK);
            assert!(link.packets_sent >= 6 && link.packets_received >= 6, "{link:?}");
            assert!(node.lane.counters().port(PORT).frames_sent >= 6);
            // What the container sent of itself (MLD) before there were keys.
            assert!(matches!(link.last_drop, None | Some(DropReason::NoKey)), "{link:?}");
        }
    }
}

fn containers_of_a_plain_network_ping_through_vxlan() {
    let bed = Bed::new(Kind::Plain);
    bed.assert_ping(0, 1);
    bed.assert_ping(1, 0);
}

fn every_datagram_of_the_encrypted_network_is_esp() {
    let bed = Bed::new(Kind::Encrypted { is_ipv6: false });
    bed.exchange_keys();
    let capture = bed.lab.host(1).capture().unwrap();
    bed.assert_ping(0, 1);
    let frames = capture.stop().unwrap();
    let udp = |frame: &&Vec<u8>| frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
    let udp: Vec<_> = frames.iter().filter(udp).collect();
    assert!(udp.len() >= 6, "{} datagrams", udp.len());
    for frame in udp {
        assert_eq!(frame[36..38], 4500u16.to_be_bytes(), "a datagram that is not for the ESP port");
        assert!([SPIS[0].to_be_bytes(), SPIS[1].to_be_bytes()].iter().any(|spi| frame[42..46] == *spi));
    }
}

fn without_keys_nothing_is_sent_and_control_hears_of_it() {
    let bed = Bed::new(Kind::Encrypted { is_ipv6: false });
    let capture = bed.lab.host(1).capture().unwrap();
    let report = bed.ping(0, 1, 3);
    assert_eq!(report.received(), 0);
    let frames = capture.stop().unwrap();
    assert!(!frames.iter().any(|frame| frame.get(12..14) == Some(&[8, 0])), "IPv4 left the host");
    let lane = &bed.nodes[0].lane;
    assert!(lane.counters().dropped(DropReason::NoKey) >= 3);
    assert_eq!(lane.counters().link(LINK).last_drop, Some(DropReason::NoKey));
    assert_eq!(block_on(lane.next_event()), Some(LaneEvent::NoKey { link: LINK }));
}

fn datagrams_that_the_kernel_refuses_are_counted_at_their_peer() {
    for kind in [Kind::Encrypted { is_ipv6: false }, Kind::Plain] {
        let bed = Bed::new(kind);
        bed.exchange_keys();
        let node = &bed.nodes[0];
        let unroutable = "198.51.100.1:4500".parse().unwrap();
        node.tables.store(Arc::new(tables(kind, 0, unroutable)));
        block_on(node.lane.execute(Command::Sync)).unwrap();
        assert_eq!(bed.ping(0, 1, 3).received(), 0);
        let counters = node.lane.counters();
        let peer = match kind {
            Kind::Encrypted { .. } => counters.link(LINK),
            Kind::Plain => counters.vtep(VtepSlot::new(0)),
        };
        assert!(counters.dropped(DropReason::SendFailed) >= 3);
        assert_eq!(peer.last_drop, Some(DropReason::SendFailed));
        assert!(peer.drops >= 3, "{peer:?}");
    }
}

fn deleted_port_is_reported_and_its_slot_can_be_used_again() {
    let bed = Bed::new(Kind::Encrypted { is_ipv6: false });
    bed.exchange_keys();
    let (node, host) = (&bed.nodes[0], bed.lab.host(1));
    ContainerPort::remove(&eth0(), node.container.namespace()).unwrap();
    loop {
        match block_on(node.lane.next_event()).unwrap() {
            LaneEvent::PortGone { slot, hold } => break assert_eq!((slot, hold), (PORT, HOLD)),
            LaneEvent::NoKey { .. } | LaneEvent::RekeyWanted { .. } | LaneEvent::UnknownSpi { .. } => {}
            LaneEvent::SegmentationGivenUp { socket } => panic!("this kernel refused a run of {socket:?}"),
        }
    }
    let tap = tap(host, &node.container, 0);
    block_on(node.lane.execute(Command::AddPort {
        slot: PORT,
        hold: HOLD,
        tap,
        limits: PortLimits::default(),
    }))
    .unwrap();
    bed.assert_ping(0, 1);
}

fn deleted_port_whose_container_may_not_send_is_reported_soon_by_any_lane() {
    let bed = Bed::new(Kind::Encrypted { is_ipv6: false });
    bed.exchange_keys();
    let node = &bed.nodes[1];
    ContainerPort::remove(&eth0(), node.container.namespace()).unwrap();
    let gone = |hold| loop {
        if let LaneEvent::PortGone { slot, hold: told } = block_on(node.lane.next_event()).unwrap() {
            break assert_eq!((slot, told), (PORT, hold));
        }
    };
    gone(HOLD);
    let (tap, hold) = (tap(bed.lab.host(2), &node.container, 1), PortHold::new(2));
    let limits = PortLimits::new(RateLimits { egress: Some(Rate::MIN), ingress: None });
    let spent = limits.egress.clone().unwrap();
    block_on(node.lane.execute(Command::AddPort { slot: PORT, hold, tap, limits })).unwrap();
    // Hours of what it may send: the lane neither reads it nor waits for it.
    spent.charge(1 << 24, boot_time());
    assert_eq!(bed.ping(1, 0, 1).received(), 0);
    ContainerPort::remove(&eth0(), node.container.namespace()).unwrap();
    gone(hold);
}

fn streams_and_runs_cross_intact_whatever_the_kernel_offers() {
    const NO_UDP: TapOffloads = TapOffloads { udp: false, ..TapOffloads::ALL };
    const SUMS: TapOffloads = TapOffloads { checksum: true, ..TapOffloads::NONE };
    let (all, none) = (TapOffloads::ALL, TapOffloads::NONE);
    let no_socket = UdpOptions { segmentation: false, coalescing: false, ..UdpOptions::default() };
    let sockets = [
        UdpOptions { segmentation: false, ..UdpOptions::default() },
        UdpOptions { coalescing: false, ..UdpOptions::default() },
    ];
    let over_ipv6 = Kind::Encrypted { is_ipv6: true };
    for options in &sockets {
        Bed::with(over_ipv6, [all, all], options).assert_all_is_intact();
    }
    Bed::with(over_ipv6, [none, none], &no_socket).assert_all_is_intact();
    for kind in [Kind::Encrypted { is_ipv6: false }, Kind::Plain] {
        let pairs = [(all, all), (all, none), (none, all), (none, none), (NO_UDP, NO_UDP), (SUMS, SUMS)];
        for (left, right) in pairs {
            Bed::with_offloads(kind, [left, right]).assert_all_is_intact();
        }
    }
}

fn segmentation_that_the_kernel_refuses_is_given_up_and_told_once() {
    // udp_send_skb refuses UDP_SEGMENT to sockets that send no checksum.
    let options = UdpOptions { checksum: false, ..UdpOptions::default() };
    let bed = Bed::with(Kind::Encrypted { is_ipv6: false }, [TapOffloads::ALL; 2], &options);
    for node in &bed.nodes {
        assert!(node.lane.offloads().0.segmentation, "not known before the first run");
    }
    bed.assert_all_is_intact();
    for node in &bed.nodes {
        let (esp, vxlan) = node.lane.offloads();
        assert_eq!((esp.segmentation, esp.coalescing), (false, true));
        assert!(vxlan.unwrap().segmentation, "nothing was sent there");
        let mut told = 0;
        while let Some(event) = block_on(async {
            tokio::time::timeout(Duration::from_millis(50), node.lane.next_event()).await.ok().flatten()
        }) {
            told += usize::from(event == LaneEvent::SegmentationGivenUp { socket: DataSocket::Esp });
        }
        assert_eq!(told, 1);
    }
}

fn super_frames_are_used_where_the_kernel_offers_them() {
    let mean = |frames: u64, bytes: u64| bytes / frames.max(1);
    for (offloads, is_used) in [(TapOffloads::ALL, true), (TapOffloads::NONE, false)] {
        let bed = Bed::with_offloads(Kind::Encrypted { is_ipv6: false }, [offloads; 2]);
        bed.exchange_keys();
        bed.assert_ping(0, 1);
        let [sender, receiver] = [0, 1].map(|index| bed.nodes[index].container.namespace());
        assert_stream_is_intact(sender, (receiver, v4(1).addr()), STREAM);
        let sent = bed.nodes[0].lane.counters().port(PORT);
        let received = bed.nodes[1].lane.counters().port(PORT);
        let (sent, received) = (
            mean(sent.frames_sent, sent.bytes_sent),
            mean(received.frames_received, received.bytes_received),
        );
        let longest = u64::from(MTU) + 14;
        assert_eq!((sent > longest, received > longest), (is_used, is_used), "{sent} and {received}");
    }
}

fn warm_lanes_allocate_nothing_in_either_direction() {
    let before = lane_allocations();
    for kind in [Kind::Encrypted { is_ipv6: false }, Kind::Plain] {
        let bed = Bed::new(kind);
        bed.assert_all_is_intact();
        let warm = lane_allocations();
        assert!(warm > before, "a lane starts without any allocation, or none is seen");
        bed.assert_all_carried();
        assert_eq!(lane_allocations(), warm, "{kind:?}");
    }
}

fn outer_header_shows_ecn_and_the_dscp_on_request_alone() {
    for kind in [Kind::Encrypted { is_ipv6: false }, Kind::Encrypted { is_ipv6: true }, Kind::Plain] {
        for dscp in [Dscp::Hidden, Dscp::Copied] {
            let bed = Bed::built(kind, [TapOffloads::ALL; 2], &UdpOptions::default(), dscp);
            bed.exchange_keys();
            bed.assert_ping(0, 1);
            for class in [EXPEDITED_ECT, TrafficClass::ZERO] {
                let capture = bed.lab.host(2).capture().unwrap();
                let [one, two] = [0, 1].map(|index| bed.nodes[index].container.namespace());
                for address in [v4, v6] {
                    assert_run_is_intact_as(class, (one, address(0).addr()), (two, address(1).addr()));
                }
                let seen = outer_classes(&capture.stop().unwrap());
                let expected = class.outer(dscp).get();
                let with_it = seen.iter().filter(|seen| **seen == expected).count();
                // Two runs of datagrams, and what the containers' kernels say of themselves.
                let are_known = seen.iter().all(|seen| [expected, 0].contains(seen));
                assert!(with_it >= 2 && are_known, "{kind:?}, {dscp:?}, {class:?}: {seen:?}");
            }
        }
    }
}

fn congestion_that_the_underlay_marks_slows_the_stream_down() {
    for is_ipv6 in [false, true] {
        let bed = Bed::new(Kind::Encrypted { is_ipv6 });
        bed.exchange_keys();
        bed.assert_ping(0, 1);
        for node in &bed.nodes {
            node.container.run_in(|| std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap()).unwrap();
        }
        let _marking = bed.mark_congestion(|class| class.get() & CE != 0);
        let [one, two] = [0, 1].map(|index| bed.nodes[index].container.namespace());
        for address in [v4(1).addr(), v6(1).addr()] {
            assert_stream_is_intact(one, (two, address), STREAM);
        }
        let counted = |node: usize, file: &str, name| {
            // Of the thread: the process is in another namespace.
            let file = format!("/proc/thread-self/net/{file}");
            let table = bed.nodes[node].container.run_in(|| std::fs::read_to_string(file).unwrap()).unwrap();
            counter(&table, name)
        };
        assert!(counted(1, "netstat", "InCEPkts") > 10, "no mark reached the container over IPv4");
        assert!(counted(1, "snmp6", "Ip6InCEPkts") > 10, "no mark reached the container over IPv6");
        assert!(counted(0, "netstat", "TCPDeliveredCE") > 10, "the sender was not told");
    }
}

fn mark_that_no_sender_asked_for_is_a_counted_loss() {
    let bed = Bed::new(Kind::Encrypted { is_ipv6: false });
    bed.exchange_keys();
    bed.assert_ping(0, 1);
    let _marking = bed.mark_congestion(|_| true);
    assert_eq!(bed.ping(0, 1, 3).received(), 0);
    assert!(bed.nodes[1].lane.counters().dropped(DropReason::EcnIncapable) >= 3);
    assert_eq!(bed.nodes[1].lane.counters().link(LINK).last_drop, Some(DropReason::EcnIncapable));
}

fn processors_are_kept_awake_while_containers_converse() {
    let bed = Bed::new(Kind::Encrypted { is_ipv6: false });
    bed.exchange_keys();
    bed.assert_ping(0, 1);
    let calm = |node: &Node| while node.vigil.recv_timeout(Duration::from_secs(1)).is_ok() {};
    bed.nodes.iter().for_each(calm);
    assert!(bed.ping(0, 1, 20).is_complete());
    for node in &bed.nodes {
        assert_eq!(node.vigil.try_recv(), Err(mpsc::TryRecvError::Empty), "20 a second");
    }

    let often = Ping { count: 100, interval: Duration::from_millis(2), ..Ping::default() };
    let namespace = bed.nodes[0].container.namespace();
    for node in &bed.nodes {
        calm(node);
        let is_kept_awake = eventually(Duration::from_secs(60), || {
            assert!(often.run(namespace, v4(1).addr()).unwrap().is_complete());
            node.vigil.try_recv() == Ok(true)
        });
        assert!(is_kept_awake, "500 a second");
        assert_eq!(node.vigil.recv_timeout(Duration::from_secs(10)), Ok(false), "a moment after");
    }
}

fn streams_come_first_and_floods_do_not() {
    let bed = Bed::new(Kind::Encrypted { is_ipv6: false });
    bed.exchange_keys();
    bed.assert_ping(0, 1);
    assert!(bed.ping(0, 1, 20).is_complete());
    let [sender, receiver] = [0, 1].map(|index| bed.nodes[index].container.namespace());
    let to = v4(1).addr();
    let is_quiet = |node: &Node| node.precedence.try_recv() == Err(mpsc::TryRecvError::Empty);
    assert!(bed.nodes.iter().all(is_quiet), "a ping is no stream");

    udp_blast(sender, receiver, to, &[7; 64], 100_000).unwrap();
    assert!(bed.nodes.iter().all(is_quiet), "a flood is none either");

    for node in &bed.nodes {
        let comes_first = eventually(Duration::from_secs(60), || {
            tcp_throughput(sender, receiver, to, Duration::from_secs(1)).unwrap();
            node.precedence.try_recv() == Ok(true)
        });
        assert!(comes_first, "the sender's lane or the receiver's");
        assert_eq!(node.precedence.recv_timeout(Duration::from_secs(10)), Ok(false), "a moment after");
    }
}

/// How the only network of a [`Bed`] travels.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Encrypted { is_ipv6: bool },
    Plain,
}

/// Two hosts with a lane and a container each.
struct Bed {
    // Lanes end before the laboratory does.
    nodes: Vec<Node>,
    lab: Lab,
    kind: Kind,
}

struct Node {
    lane: Lane,
    tables: Arc<ArcSwap<Tables>>,
    container: Container,
    /// Whether the processors are kept awake, whenever that changes.
    vigil: mpsc::Receiver<bool>,
    /// Whether streams come first, whenever that changes.
    precedence: mpsc::Receiver<bool>,
}

impl Bed {
    fn new(kind: Kind) -> Self {
        Self::with_offloads(kind, [TapOffloads::ALL; 2])
    }

    /// What the kernels offer to the two lanes.
    fn with_offloads(kind: Kind, offloads: [TapOffloads; 2]) -> Self {
        Self::with(kind, offloads, &UdpOptions::default())
    }

    /// What the kernels offer to the two lanes, and what the lanes ask of them for their sockets.
    fn with(kind: Kind, offloads: [TapOffloads; 2], options: &UdpOptions) -> Self {
        Self::built(kind, offloads, options, Dscp::Hidden)
    }

    fn built(kind: Kind, offloads: [TapOffloads; 2], options: &UdpOptions, dscp: Dscp) -> Self {
        let lab = Lab::two_hosts(Underlay::default()).unwrap();
        let is_ipv6 = matches!(kind, Kind::Encrypted { is_ipv6: true });
        let address = |host: &Host| if is_ipv6 { host.v6() } else { host.v4() };
        let nodes = (0..2)
            .map(|index| {
                let (host, peer) = (lab.host(index + 1), lab.host(2 - index));
                node(host, [address(host), address(peer)], kind, index, offloads[index], (options, dscp))
            })
            .collect();
        Self { nodes, lab, kind }
    }

    fn exchange_keys(&self) {
        for (sender, spi) in SPIS.into_iter().enumerate() {
            let spi = Spi::new(spi).unwrap();
            let key = || KeyMaterial::new(Suite::Aes256Gcm, &[spi.get().to_le_bytes()[1]; KeyMaterial::LEN]);
            let (limits, now) = (Limits::standard(Suite::Aes256Gcm), boot_time());
            let inbound = InboundSa::new(spi, key(), limits, now);
            let outbound = OutboundSa::new(spi, key(), limits, now);
            let install = Command::InstallInbound { link: LINK, sa: inbound };
            block_on(self.nodes[1 - sender].lane.execute(install)).unwrap();
            let install = Command::InstallOutbound { link: LINK, sa: outbound };
            block_on(self.nodes[sender].lane.execute(install)).unwrap();
        }
    }

    /// Pings, streams and runs of both families, both ways.
    fn assert_all_is_intact(&self) {
        if matches!(self.kind, Kind::Encrypted { .. }) {
            self.exchange_keys();
        }
        self.assert_all_carried();
    }

    fn assert_all_carried(&self) {
        self.assert_ping(0, 1);
        for (from, to) in [(0, 1), (1, 0)] {
            let [sender, receiver] = [from, to].map(|index| self.nodes[index].container.namespace());
            for address in [v4, v6] {
                let receiver = (receiver, address(to).addr());
                assert_stream_is_intact(sender, receiver, STREAM);
                assert_run_is_intact((sender, address(from).addr()), receiver);
            }
        }
    }

    /// From now on a router stands between the hosts that marks congestion on some packets of the first.
    fn mark_congestion(&self, is_marked: fn(TrafficClass) -> bool) -> Marking {
        let host = self.lab.host(2);
        let is_ipv6 = matches!(self.kind, Kind::Encrypted { is_ipv6: true });
        let ip = if is_ipv6 { host.v6() } else { host.v4() };
        let bind = || UdpSocket::bind(SocketAddr::new(ip, 0), &UdpOptions::default()).unwrap();
        let router = host.run_in(bind).unwrap();
        let node = &self.nodes[0];
        node.tables.store(Arc::new(tables(self.kind, 0, router.local_addr().unwrap())));
        block_on(node.lane.execute(Command::Sync)).unwrap();
        Marking::start(router, SocketAddr::new(ip, 4500), is_marked)
    }

    fn ping(&self, from: usize, to: usize, count: u16) -> overlayd::lab::PingReport {
        let ping = Ping { count, ..Ping::default() };
        ping.run(self.nodes[from].container.namespace(), v4(to).addr()).unwrap()
    }

    /// Both families, waiting for IPv6's duplicate address detection to be over.
    fn assert_ping(&self, from: usize, to: usize) {
        let namespace = self.nodes[from].container.namespace();
        for address in [v4(to).addr(), v6(to).addr()] {
            let ping = Ping { count: 3, ..Ping::default() };
            let is_complete = eventually(Duration::from_secs(8), || {
                ping.run(namespace, address).is_ok_and(|report| report.is_complete())
            });
            let drops: Vec<_> = self.nodes.iter().map(|node| node.lane.counters().drops()).collect();
            assert!(is_complete, "{from} to {address}: drops {drops:?}");
        }
    }
}

/// A thread that passes datagrams on, some with CE in their headers, until it is dropped.
struct Marking {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Marking {
    fn start(router: UdpSocket, to: SocketAddr, is_marked: fn(TrafficClass) -> bool) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut ring = RecvRing::new();
            while !over.load(Ordering::Relaxed) {
                if router.recv(&mut ring).unwrap() == 0 {
                    std::thread::sleep(Duration::from_micros(100));
                }
                for Datagram { class, bytes, .. } in ring.datagrams() {
                    let class = if is_marked(class) { TrafficClass::new(CE) } else { class };
                    let sent = router.send_run_as(to, class, bytes, 60_000);
                    assert_eq!(sent.unwrap().datagrams, 1);
                }
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Marking {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking());
    }
}

/// The traffic class of every datagram in a capture.
fn outer_classes(frames: &[Vec<u8>]) -> Vec<u8> {
    let is_udp = |frame: &&Vec<u8>| match frame.get(12..14) {
        Some([8, 0]) => frame.get(23) == Some(&17),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&17),
        Some(_) | None => false,
    };
    frames.iter().filter(is_udp).map(|frame| TrafficClass::of_frame(frame).get()).collect()
}

/// A number of `netstat` (lines of names, then of numbers) or of `snmp6` in `/proc/net`.
fn counter(table: &str, name: &str) -> u64 {
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let found = lines.iter().zip(lines.iter().skip(1)).find_map(|(names, numbers)| {
        if names.first() == Some(&name) {
            return names.get(1).copied();
        }
        numbers.get(names.iter().position(|known| *known == name)?).copied()
    });
    found.unwrap_or_else(|| panic!("no {name} in {table}")).parse().unwrap()
}

fn node(
    host: &Host,
    [own, peer]: [IpAddr; 2],
    kind: Kind,
    index: usize,
    offloads: TapOffloads,
    (options, dscp): (&UdpOptions, Dscp),
) -> Node {
    let container = host.container(["red", "blue"][index]).unwrap();
    let wish = |name| {
        let (said, heard) = mpsc::channel();
        let grant = move |is_granted| said.send(is_granted).map_err(io::Error::other);
        (Wish::start(name, grant).unwrap(), heard)
    };
    let ((wish_awake, vigil), (wish_first, precedence)) = (wish("vigil"), wish("precedence"));
    let (lane, tables) = host
        .run_in(|| {
            let bind = |port| UdpSocket::bind(SocketAddr::new(own, port), options).unwrap();
            let peer = SocketAddr::new(peer, if matches!(kind, Kind::Plain) { 4789 } else { 4500 });
            let tables = Arc::new(ArcSwap::from_pointee(tables(kind, index, peer)));
            let config = LaneConfig {
                id: LaneId::new(u8::try_from(index).unwrap()).unwrap(),
                esp: bind(4500).into(),
                vxlan: Some(bind(4789).into()),
                tables: tables.clone(),
                flood: FloodLimit::default().into(),
                busy_poll: Duration::from_micros(100),
                vigil: Some(wish_awake),
                precedence: Some(Precedence::new(wish_first)),
                dscp,
                checksums: LeftChecksums::default(),
            };
            (worker::spawn(config).unwrap(), tables)
        })
        .unwrap();
    let mut tap = tap(host, &container, index);
    assert_eq!(tap.offloads(), TapOffloads::ALL, "this kernel cannot show what the test is about");
    tap.set_offloads(offloads).unwrap();
    block_on(lane.execute(Command::AddPort { slot: PORT, hold: HOLD, tap, limits: PortLimits::default() }))
        .unwrap();
    Node { lane, tables, container, vigil, precedence }
}

/// The only queue of a container's interface.
fn tap(host: &Host, container: &Container, index: usize) -> Tap {
    let create = || port(index).create(container.namespace(), LaneCount::ONE);
    host.run_in(create).unwrap().unwrap().remove(0)
}

fn tables(kind: Kind, node: usize, peer: SocketAddr) -> Tables {
    let (net, vni) = (NetSlot::new(0), Vni::new(7).unwrap());
    let builder = TablesBuilder::default();
    match kind {
        Kind::Encrypted { .. } => {
            let endpoints = endpoints(node, LINK);
            builder.network(net, Arc::new(NetworkTable::encrypted(vni, MTU, endpoints))).link(LINK, net, peer)
        }
        Kind::Plain => {
            let endpoints = endpoints(node, VtepSlot::new(0));
            let vteps = vec![(VtepSlot::new(0), peer)];
            builder.network(net, Arc::new(NetworkTable::plain(vni, MTU, vteps, endpoints)))
        }
    }
    .build()
}

fn endpoints<R>(node: usize, remote: R) -> Vec<EndpointSpec<R>> {
    let endpoint = |index, place| EndpointSpec {
        mac: mac(index),
        addresses: vec![v4(index).addr(), v6(index).addr()],
        place,
        is_gateway: false,
    };
    vec![endpoint(node, Place::Local(PORT)), endpoint(1 - node, Place::Remote(remote))]
}

fn port(index: usize) -> ContainerPort {
    ContainerPort {
        name: eth0(),
        mac: mac(index),
        mtu: MTU.into(),
        addresses: vec![v4(index), v6(index)],
        gateways: Vec::new(),
        queue: TapQueue::default(),
        alias: String::new(),
    }
}

fn mac(index: usize) -> MacAddr {
    [MacAddr::new([2, 0x42, 10, 1, 0, 2]), MacAddr::new([2, 0x42, 10, 1, 0, 3])][index]
}

fn v4(index: usize) -> IpNet {
    ["10.1.0.2/24", "10.1.0.3/24"][index].parse().unwrap()
}

fn v6(index: usize) -> IpNet {
    ["fd01::2/64", "fd01::3/64"][index].parse().unwrap()
}

fn eth0() -> IfName {
    "eth0".parse().unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), work).await.expect("the lane answers in time")
    })
}

const LINK: LinkSlot = LinkSlot::new(0);
const PORT: PortSlot = PortSlot::new(0);
const HOLD: PortHold = PortHold::new(1);
const MTU: u16 = 1388;
/// Bytes of a stream.
const STREAM: usize = 4 << 20;
/// Congestion experienced.
const CE: u8 = 3;
/// DSCP 46, ECT(0).
const EXPEDITED_ECT: TrafficClass = TrafficClass::new(0xba);
const SPIS: [u32; 2] = [0x1000, 0x2000];
