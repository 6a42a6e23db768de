//! Two lanes in memory that share an encrypted and a plain network.
//!
//! What one sends is kept in a fixed buffer and fed to the other; nothing here allocates once built.
//! For `overlayd bench`, the benchmarks and the allocation test.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::datapath::{
    Coalescer, Context, Delivery, Egress, Encapsulated, FloodLimit, Ingress, LaneCounters, Merging, Notice,
    Outlet, Run,
};
use crate::forward::{EndpointSpec, NetworkTable, Place, Tables, TablesBuilder};
use crate::id::{LinkSlot, MacAddr, NetSlot, PortSlot, Spi, Vni, VtepSlot};
use crate::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Sealed, Suite};
use crate::wire::traffic_class::TrafficClass;
use crate::wire::vnet_hdr::{Checksum, Kind, Segmentation, VnetHeader};

/// The only local port of either node in the encrypted network.
pub const PORT: PortSlot = PortSlot::new(0);
/// The first local port of either node in the plain network.
pub const PLAIN_PORT: PortSlot = PortSlot::new(1);
/// The other one.
pub const NEIGHBOR_PORT: PortSlot = PortSlot::new(2);
/// The only link of either node.
pub const LINK: LinkSlot = LinkSlot::new(0);
/// To be added to the number of a node for its endpoints in the plain network.
pub const PLAIN: u8 = 2;
const VTEP_OF_SENDER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4789);
/// The payload of a super-frame as long as a container's kernel makes them.
pub const SUPER_FRAME_PAYLOAD: usize = 58_900;
/// What is left of an MTU of 1408 behind IPv4 and TCP.
pub const SEGMENT: u16 = 1_368;
/// What time it is at first.
pub const NOW: BootTime = BootTime::from_nanos(1_000_000_000);

/// A sending and a receiving node.
#[derive(Debug)]
pub struct Pair {
    sender: Egress,
    sender_tables: Tables,
    receiver: Ingress,
    receiver_tables: Tables,
    counters: LaneCounters,
    wire: Wire,
    now: BootTime,
}

impl Pair {
    /// Both nodes keyed, with `endpoints` on each side of the network.
    pub fn new(suite: Suite, endpoints: u32) -> Self {
        Self::with_tables(suite, [tables(endpoints, 0), tables(endpoints, 1)], 1)
    }

    /// As many nodes on the sender's side as there are `peers`, in one, each with an endpoint and keys of
    /// its own, and `endpoints` on the receiver's, which for the sender are behind the peers in turn.
    pub fn spread(suite: Suite, endpoints: u32, peers: u32) -> Self {
        let tables = [spread_tables(endpoints, peers, 0), spread_tables(endpoints, peers, 1)];
        Self::with_tables(suite, tables, peers)
    }

    fn with_tables(suite: Suite, [sender_tables, receiver_tables]: [Tables; 2], peers: u32) -> Self {
        let limits = Limits::standard(suite);
        let key = || KeyMaterial::new(suite, &[7; KeyMaterial::LEN]);
        let mut sender = Egress::new(FloodLimit { frames_per_second: 1_000_000, burst: 1_000_000_000 });
        let mut receiver = Ingress::new();
        for peer in 0..peers {
            let (link, spi) = (LinkSlot::new(peer), Spi::new(0x1000 + peer).expect("no reserved SPI"));
            sender.install(link, OutboundSa::new(spi, key(), limits, NOW));
            receiver.install(link, InboundSa::new(spi, key(), limits, NOW));
        }
        Self {
            sender,
            sender_tables,
            receiver,
            receiver_tables,
            counters: LaneCounters::new(),
            wire: Wire::new(),
            now: NOW,
        }
    }

    /// Lets time pass, which it does not by itself.
    pub fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    /// The sender's container sends `frame` `count` times; the packets are on the wire after.
    pub fn send(&mut self, frame: &[u8], count: usize) {
        self.send_as(&VnetHeader::COMPLETE, frame, count);
    }

    /// The same for a frame of which its kernel says `header`.
    pub fn send_as(&mut self, header: &VnetHeader, frame: &[u8], count: usize) {
        self.send_from(PORT, header, frame, count);
    }

    /// The same for any port of the sender.
    pub fn send_from(&mut self, port: PortSlot, header: &VnetHeader, frame: &[u8], count: usize) {
        for _ in 0..count {
            self.submit(port, header, frame);
        }
        self.flush();
    }

    /// A container of the sender's side sends a frame, which may not have left yet.
    pub fn submit(&mut self, port: PortSlot, header: &VnetHeader, frame: &[u8]) {
        let cx = Context { tables: &self.sender_tables, counters: &self.counters, now: self.now };
        self.sender.reserve(&self.sender_tables, port, &mut self.wire).fill(frame);
        self.sender.submit(&cx, port, header, frame.len(), &mut self.wire);
    }

    /// What was submitted is on the wire.
    pub fn flush(&mut self) {
        self.sender.flush(&mut self.wire);
    }

    /// The underlay marks congestion on what lies on the wire, where packets say that they may be marked.
    pub fn congest(&mut self) {
        for (_, class) in &mut self.wire.datagrams {
            if class.get() & 0b11 != 0 {
                *class = TrafficClass::new(class.get() | 0b11);
            }
        }
    }

    /// The receiver takes all packets from the wire; how many frames its containers got.
    pub fn receive(&mut self) -> usize {
        self.take_from_the_wire(|_| {}, |_| {})
    }

    /// The same of packets that somebody changed on their way.
    pub fn receive_changed(&mut self, change: fn(&mut [u8])) -> usize {
        self.take_from_the_wire(change, |_| {})
    }

    /// The same, and somebody looks at the first piece of each frame that containers get.
    pub fn receive_seen(&mut self, look: impl FnMut(&[u8])) -> usize {
        self.take_from_the_wire(|_| {}, look)
    }

    fn take_from_the_wire(&mut self, change: impl Fn(&mut [u8]), look: impl FnMut(&[u8])) -> usize {
        let cx = Context { tables: &self.receiver_tables, counters: &self.counters, now: self.now };
        let mut inbox = Inbox { delivered: 0, look };
        let mut rest = &mut self.wire.bytes[..];
        let mut batch = Coalescer::new();
        self.wire.len = 0;
        for (len, class) in self.wire.datagrams.drain(..) {
            let (datagram, behind) = rest.split_at_mut(len);
            change(datagram);
            // VXLAN begins with the flags 0x08, which no SPI here does.
            if datagram.first() == Some(&8) {
                self.receiver.receive_vxlan(&cx, VTEP_OF_SENDER, class, datagram, &mut batch, &mut inbox);
            } else {
                let from = SocketAddr::from(([192, 0, 2, 1], 4500));
                self.receiver.receive_esp(&cx, from, class, datagram, &mut batch, &mut inbox);
            }
            rest = behind;
        }
        batch.flush(&cx, &mut inbox);
        inbox.delivered
    }

    /// Somebody puts a datagram on the wire, `count` times.
    pub fn throw(&mut self, datagram: &[u8], count: usize) {
        for _ in 0..count {
            self.wire.put(datagram, TrafficClass::ZERO);
        }
    }

    /// What both nodes counted.
    pub fn counters(&self) -> &LaneCounters {
        &self.counters
    }

    /// Packets that lie on the wire.
    pub fn on_the_wire(&self) -> usize {
        self.wire.datagrams.len()
    }

    /// Frames that the sender's own container got, answers to its questions among them.
    pub fn answered(&self) -> usize {
        self.wire.delivered
    }
}

/// The MAC address of an endpoint.
pub fn mac(node: u8, endpoint: u32) -> MacAddr {
    let [a, b, c, d] = endpoint.to_be_bytes();
    MacAddr::new([2, node, a, b, c, d])
}

/// The IPv6 address of an endpoint of the plain network.
pub fn ip6(node: u8, endpoint: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(node) << 32 | u128::from(endpoint))
}

/// The IP address of an endpoint.
pub fn ip(node: u8, endpoint: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes([10, node, 0, 0]) + endpoint)
}

/// A UDP frame of `len` bytes from the sender's container to one of the receiver's.
pub fn frame(len: usize) -> Vec<u8> {
    frame_between(len, 0, 0)
}

/// The same between two endpoints.
pub fn frame_between(len: usize, from: u32, to: u32) -> Vec<u8> {
    addressed(len, from, mac(1, to))
}

/// The same in the plain network, or to the neighbour of the container there.
pub fn plain_frame(len: usize, to: MacAddr) -> Vec<u8> {
    between(len, (mac(PLAIN, 0), ip(PLAIN, 0)), (to, ip(PLAIN + 1, 0)))
}

/// A TCP super-frame with `payload` octets from the sender's container to one of the receiver's, as
/// its kernel gives it, to be cut into segments of `size`.
pub fn super_frame(payload: usize, size: u16) -> (VnetHeader, Vec<u8>) {
    super_frame_in(0, payload, size)
}

/// The same in the plain network, where `network` is [`PLAIN`].
pub fn super_frame_in(network: u8, payload: usize, size: u16) -> (VnetHeader, Vec<u8>) {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(network, 0).octets(), mac(network + 1, 0).octets())
        .ipv4(ip(network, 0).octets(), ip(network + 1, 0).octets(), 64)
        .tcp(4000, 4001, 1, 1000)
        .ack(1)
        .write(&mut frame, &vec![0x5a; payload])
        .expect("a frame");
    // The sum of the pseudo header, which is what a kernel leaves in the field.
    let len = u16::try_from(20 + payload).expect("a super-frame");
    let pseudo = [&frame[26..34], &[0, 6], &len.to_be_bytes()].concat();
    let sum = !crate::wire::checksum::plain(&pseudo);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    let size = size.try_into().expect("not zero");
    let header = VnetHeader {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: Kind::Tcp4, has_cwr: false, size }),
        header_len: 54,
    };
    (header, frame)
}

/// A broadcast frame of `len` bytes from the sender's container.
pub fn broadcast(len: usize) -> Vec<u8> {
    addressed(len, 0, MacAddr::BROADCAST)
}

fn addressed(len: usize, from: u32, destination: MacAddr) -> Vec<u8> {
    between(len, (mac(0, from), ip(0, from)), (destination, ip(1, 0)))
}

fn between(len: usize, from: (MacAddr, Ipv4Addr), to: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.0.octets(), to.0.octets())
        .ipv4(from.1.octets(), to.1.octets(), 64)
        .udp(4000, 4001)
        .write(&mut frame, &vec![0x5a; len - 42])
        .expect("a frame");
    frame
}

/// The network as `node` sees it: its own first endpoint has a port, all others are at the peer.
pub fn network(endpoints: u32, node: u8) -> NetworkTable {
    let own = [placed(node, 0, Place::Local(PORT))];
    let others = (0..endpoints).map(|endpoint| placed(1 - node, endpoint, Place::Remote(LINK)));
    NetworkTable::encrypted(Vni::new(7).expect("in range"), 9000, own.into_iter().chain(others).collect())
}

fn placed(node: u8, endpoint: u32, place: Place<LinkSlot>) -> EndpointSpec<LinkSlot> {
    let addresses = vec![IpAddr::V4(ip(node, endpoint))];
    EndpointSpec { mac: mac(node, endpoint), addresses, place, is_gateway: false }
}

/// The plain network as `node` sees it: two endpoints here, one at the peer.
fn plain_network(node: u8) -> NetworkTable {
    let endpoint = |node: u8, number: u32, place| EndpointSpec {
        mac: mac(PLAIN + node, number),
        addresses: vec![IpAddr::V4(ip(PLAIN + node, number)), IpAddr::V6(ip6(PLAIN + node, number))],
        place,
        is_gateway: false,
    };
    let vtep = VtepSlot::new(0);
    let endpoints = vec![
        endpoint(node, 0, Place::Local(PLAIN_PORT)),
        endpoint(node, 1, Place::Local(NEIGHBOR_PORT)),
        endpoint(1 - node, 0, Place::Remote(vtep)),
    ];
    NetworkTable::plain(Vni::new(9).expect("in range"), 9000, vec![(vtep, VTEP_OF_SENDER)], endpoints)
}

fn tables(endpoints: u32, node: u8) -> Tables {
    TablesBuilder::default()
        .network(NetSlot::new(0), Arc::new(network(endpoints, node)))
        .network(NetSlot::new(1), Arc::new(plain_network(node)))
        .link(LINK, NetSlot::new(0), SocketAddr::from(([192, 0, 2, 2], 4500)))
        .build()
}

fn spread_tables(endpoints: u32, peers: u32, node: u8) -> Tables {
    let (port, link) = (|n| Place::Local(PortSlot::new(n)), |n| Place::Remote(LinkSlot::new(n)));
    let senders = (0..peers).map(|peer| placed(0, peer, if node == 0 { port(peer) } else { link(peer) }));
    let receivers = (0..endpoints).map(|endpoint| {
        placed(1, endpoint, if node == 0 { link(endpoint % peers) } else { port(endpoint % PORTS) })
    });
    let endpoints = senders.chain(receivers).collect();
    let (net, vni) = (NetSlot::new(0), Vni::new(7).expect("in range"));
    let network = Arc::new(NetworkTable::encrypted(vni, 9000, endpoints));
    let address = |peer| SocketAddr::from((ip(2, peer), 4500));
    let builder = TablesBuilder::default().network(net, network);
    (0..peers).fold(builder, |builder, peer| builder.link(LinkSlot::new(peer), net, address(peer))).build()
}

/// Of a node with very many endpoints of its own, which no node has.
const PORTS: u32 = 64;

#[derive(Debug)]
struct Wire {
    bytes: Vec<u8>,
    /// Of these, so many are on the wire.
    len: usize,
    /// Each with its length and the class of its outer header.
    datagrams: Vec<(usize, TrafficClass)>,
    delivered: usize,
}

impl Wire {
    fn new() -> Self {
        Self { bytes: vec![0; 1 << 19], len: 0, datagrams: Vec::with_capacity(1024), delivered: 0 }
    }

    fn put(&mut self, datagram: &[u8], class: TrafficClass) {
        self.copy(datagram);
        self.datagrams.push((datagram.len(), class));
    }

    fn copy(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }
}

impl Outlet for Wire {
    fn send_esp(&mut self, run: &Run<'_, Sealed>) {
        self.copy(run.bytes());
        self.datagrams.extend(run.datagrams().map(|datagram| (datagram.len(), run.class())));
    }

    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>) {
        run.datagrams().for_each(|datagram| self.put(datagram, run.class()));
    }

    fn deliver(&mut self, _: PortSlot, _: &VnetHeader, _: &[&[u8]]) -> Delivery {
        self.delivered += 1;
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging { tcp: true, udp: true }
    }

    fn notice(&mut self, _: Notice) {}
}

struct Inbox<F> {
    delivered: usize,
    look: F,
}

impl<F: FnMut(&[u8])> Outlet for Inbox<F> {
    fn send_esp(&mut self, _: &Run<'_, Sealed>) {
        panic!("transit");
    }

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {
        panic!("transit");
    }

    fn deliver(&mut self, _: PortSlot, _: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        black_box(pieces).first().copied().into_iter().for_each(&mut self.look);
        self.delivered += 1;
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging { tcp: true, udp: false }
    }

    fn notice(&mut self, _: Notice) {}
}
