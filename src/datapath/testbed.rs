//! Two nodes in memory for tests: what one's egress sends is fed to the other's ingress.
//!
//! Each node has two endpoints of an encrypted network and one of an unencrypted one; a third
//! node, and a gateway on the second, exist in the tables alone.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{
    Coalescer, Context, Delivery, Egress, Encapsulated, FloodLimit, Ingress, LaneCounters, Merging, Notice,
    Outlet, Run,
};
use crate::boot_time::BootTime;
use crate::drop_reason::DropReason;
use crate::forward::{EndpointSpec, NetworkTable, Place, Tables, TablesBuilder};
use crate::id::{LinkSlot, MacAddr, NetSlot, PortSlot, Spi, Vni, VtepSlot};
use crate::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Sealed, Suite};
use crate::wire::traffic_class::TrafficClass;
use crate::wire::vnet_hdr::{Checksum, VnetHeader};
use crate::wire::{arp, checksum, udp, vxlan};

pub(super) const PORT: PortSlot = PortSlot::new(0);
pub(super) const NEIGHBOR_PORT: PortSlot = PortSlot::new(1);
pub(super) const PLAIN_PORT: PortSlot = PortSlot::new(2);
pub(super) const GATEWAY_PORT: PortSlot = PortSlot::new(3);
pub(super) const LINK: LinkSlot = LinkSlot::new(0);
pub(super) const LINK_TO_THIRD: LinkSlot = LinkSlot::new(1);
pub(super) const VTEP: VtepSlot = VtepSlot::new(2);
pub(super) const MTU: u16 = 1408;
pub(super) const ENCRYPTED_VNI: u32 = 7;
pub(super) const PLAIN_VNI: u32 = 9;

/// A container: its number is the last octet of its MAC and IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Container(pub(super) u8);

pub(super) const A: Container = Container(10);
pub(super) const A_NEIGHBOR: Container = Container(11);
pub(super) const A_PLAIN: Container = Container(12);
pub(super) const B: Container = Container(20);
pub(super) const B_NEIGHBOR: Container = Container(21);
pub(super) const B_PLAIN: Container = Container(22);
pub(super) const GATEWAY: Container = Container(1);
pub(super) const THIRD: Container = Container(30);

impl Container {
    pub(super) fn mac(self) -> MacAddr {
        MacAddr::new([2, 0x42, 10, 0, 0, self.0])
    }

    pub(super) fn v4(self) -> [u8; 4] {
        [10, 0, 0, self.0]
    }

    pub(super) fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(self.0))
    }

    fn at<R>(self, place: Place<R>) -> EndpointSpec<R> {
        let addresses = vec![IpAddr::from(self.v4()), IpAddr::from(self.v6())];
        EndpointSpec { mac: self.mac(), addresses, place, is_gateway: self == GATEWAY }
    }
}

/// A UDP packet over IPv4 from one container to another.
pub(super) fn udp4(from: Container, to: Container, payload: &[u8]) -> Vec<u8> {
    udp4_as(from.mac(), to.mac(), from.v4(), to.v4(), payload)
}

pub(super) fn udp4_as(
    source: MacAddr,
    destination: MacAddr,
    from: [u8; 4],
    to: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(source.octets(), destination.octets())
        .ipv4(from, to, 64)
        .udp(1111, 2222)
        .write(&mut frame, payload)
        .expect("a frame");
    frame
}

pub(super) fn udp6_as(source: MacAddr, destination: MacAddr, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(source.octets(), destination.octets())
        .ipv6(from.octets(), to.octets(), 64)
        .udp(1111, 2222)
        .write(&mut frame, b"six")
        .expect("a frame");
    frame
}

pub(super) fn broadcast(from: Container) -> Vec<u8> {
    udp4_as(from.mac(), MacAddr::BROADCAST, from.v4(), [255; 4], b"to all")
}

pub(super) fn arp(operation: arp::Operation, from: MacAddr, from_ip: [u8; 4], to_ip: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; arp::REPLY_LEN];
    arp::Packet {
        operation,
        sender_mac: from,
        sender_ip: from_ip.into(),
        target_mac: MacAddr::new([0; 6]),
        target_ip: to_ip.into(),
    }
    .write_frame(MacAddr::BROADCAST, &mut frame);
    frame
}

/// An ICMPv6 packet with hop limit 255 from `source` with `message` from its type on.
pub(super) fn icmp6(source: MacAddr, from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let group = [0x33, 0x33, 0, 0, 0, 1];
    etherparse::PacketBuilder::ethernet2(source.octets(), group)
        .ipv6(from.octets(), to.octets(), 255)
        .write(&mut frame, etherparse::IpNumber::IPV6_ICMP, message)
        .expect("a frame");
    frame
}

/// A solicitation (135) or advertisement (136) for `target` with a link-layer address.
pub(super) fn neighbor_message(kind: u8, target: Ipv6Addr, link: Option<MacAddr>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if let Some(link) = link {
        message.extend([kind - 134, 1]);
        message.extend(link.octets());
    }
    message
}

/// The frame in VLAN 5.
pub(super) fn tagged(frame: &[u8]) -> Vec<u8> {
    tagged_as(&TAG, frame)
}

/// The frame with a tag behind its addresses.
pub(super) fn tagged_as(tag: &[u8], frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, tag, rest].concat()
}

pub(super) const TAG: [u8; 4] = [0x81, 0x00, 0x00, 0x05];

/// One lane of one node.
pub(super) struct Node {
    pub(super) egress: Egress,
    pub(super) ingress: Ingress,
    pub(super) tables: Tables,
    pub(super) counters: LaneCounters,
    pub(super) out: Recorder,
    pub(super) now: BootTime,
    pub(super) esp_address: SocketAddr,
    pub(super) vxlan_address: SocketAddr,
    /// Of the outer headers of what arrives.
    pub(super) class: TrafficClass,
}

impl Node {
    fn new(tables: Tables, host: u8) -> Self {
        Self {
            egress: Egress::new(FloodLimit { frames_per_second: 10, burst: 5 }),
            ingress: Ingress::new(),
            tables,
            counters: LaneCounters::new(),
            out: Recorder::default(),
            now: BootTime::from_nanos(1_000_000_000),
            esp_address: SocketAddr::from(([192, 0, 2, host], 4500)),
            vxlan_address: SocketAddr::from(([192, 0, 2, host], 4789)),
            class: TrafficClass::ZERO,
        }
    }

    /// A container sends a frame, and what gathered leaves.
    pub(super) fn send(&mut self, port: PortSlot, frame: &[u8]) {
        self.submit(port, frame);
        self.egress.flush(&mut self.out);
    }

    pub(super) fn submit(&mut self, port: PortSlot, frame: &[u8]) {
        self.submit_as(port, &VnetHeader::COMPLETE, frame);
    }

    /// The container's kernel says `header` of the frame; how many packets were made of it.
    pub(super) fn submit_as(&mut self, port: PortSlot, header: &VnetHeader, frame: &[u8]) -> usize {
        self.egress.reserve(&self.tables, port, &mut self.out).fill(frame);
        let cx = Context { tables: &self.tables, counters: &self.counters, now: self.now };
        self.egress.submit(&cx, port, header, frame.len(), &mut self.out)
    }

    pub(super) fn receive_esp(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.receive_esp_batch(from, &mut [datagram.to_vec()]);
    }

    pub(super) fn receive_esp_batch(&mut self, from: SocketAddr, datagrams: &mut [Vec<u8>]) {
        let classes = vec![self.class; datagrams.len()];
        self.receive_esp_batch_as(from, datagrams, &classes);
    }

    /// Each under an outer header of its own class.
    pub(super) fn receive_esp_batch_as(
        &mut self,
        from: SocketAddr,
        datagrams: &mut [Vec<u8>],
        classes: &[TrafficClass],
    ) {
        let cx = Context { tables: &self.tables, counters: &self.counters, now: self.now };
        let mut batch = Coalescer::new();
        for (datagram, class) in datagrams.iter_mut().zip(classes) {
            self.ingress.receive_esp(&cx, from, *class, datagram, &mut batch, &mut self.out);
        }
        batch.flush(&cx, &mut self.out);
    }

    pub(super) fn receive_vxlan(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.receive_vxlan_batch(from, &mut [datagram.to_vec()]);
    }

    pub(super) fn receive_vxlan_batch(&mut self, from: SocketAddr, datagrams: &mut [Vec<u8>]) {
        let cx = Context { tables: &self.tables, counters: &self.counters, now: self.now };
        let mut batch = Coalescer::new();
        for datagram in datagrams {
            self.ingress.receive_vxlan(&cx, from, self.class, datagram, &mut batch, &mut self.out);
        }
        batch.flush(&cx, &mut self.out);
    }

    /// What was delivered to local containers since the last look, with the checksums made that were
    /// left to their kernels.
    pub(super) fn delivered(&mut self) -> Vec<(PortSlot, Vec<u8>)> {
        let finished = |(port, header, mut frame): (PortSlot, VnetHeader, Vec<u8>)| {
            if let (None, Checksum::Partial { start, offset }) = (header.segmentation, header.checksum) {
                checksum::complete(&mut frame, start.into(), offset.into()).expect("it lies in the frame");
            }
            (port, frame)
        };
        self.delivered_as().into_iter().map(finished).collect()
    }

    /// The same, with what the container's kernel was told.
    pub(super) fn delivered_as(&mut self) -> Vec<(PortSlot, VnetHeader, Vec<u8>)> {
        std::mem::take(&mut self.out.delivered)
    }

    pub(super) fn sent_esp(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.out.esp)
    }

    /// The reasons that have been counted so far, with their numbers.
    pub(super) fn drops(&self) -> Vec<(DropReason, u64)> {
        let counted = DropReason::ALL.iter().map(|reason| (*reason, self.counters.dropped(*reason)));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
    }
}

/// An outlet that keeps everything.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) esp: Vec<(SocketAddr, Vec<u8>)>,
    pub(super) vxlan: Vec<(SocketAddr, Vec<u8>)>,
    /// Of each run sent in ESP.
    pub(super) classes: Vec<u8>,
    pub(super) delivered: Vec<(PortSlot, VnetHeader, Vec<u8>)>,
    pub(super) merging: Merging,
    pub(super) notices: Vec<Notice>,
    pub(super) is_tap_full: bool,
}

impl Outlet for Recorder {
    fn send_esp(&mut self, run: &Run<'_, Sealed>) {
        self.classes.push(run.class().get());
        self.esp.extend(run.datagrams().map(|datagram| (run.to(), datagram.to_vec())));
    }

    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>) {
        self.vxlan.extend(run.datagrams().map(|datagram| (run.to(), datagram.to_vec())));
    }

    fn deliver(&mut self, port: PortSlot, header: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        if self.is_tap_full {
            return Delivery::Dropped(DropReason::TapFull);
        }
        self.delivered.push((port, *header, pieces.concat()));
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        self.merging
    }

    fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }
}

/// Both nodes with keys for each other and none for the third.
pub(super) fn keyed_nodes() -> (Node, Node) {
    let (mut a, mut b) = nodes();
    let limits = Limits::standard(Suite::Aes256Gcm);
    connect(&mut a, &mut b, 0x1000, limits);
    connect(&mut b, &mut a, 0x2000, limits);
    (a, b)
}

/// Installs one SA from `sender` to `receiver`.
pub(super) fn connect(sender: &mut Node, receiver: &mut Node, spi: u32, limits: Limits) {
    let spi = Spi::new(spi).expect("no reserved SPI");
    let key = || KeyMaterial::new(Suite::Aes256Gcm, &[spi.get().to_le_bytes()[1]; KeyMaterial::LEN]);
    receiver.ingress.install(LINK, InboundSa::new(spi, key(), limits, receiver.now));
    sender.egress.install(LINK, OutboundSa::new(spi, key(), limits, sender.now));
}

/// The packets of frames that no policy has seen, as a peer could make them.
pub(super) fn seal(a: &Node, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    seal_under(0x1000, a, frames)
}

/// The same by whoever has the key of this SPI.
pub(super) fn seal_under(spi: u32, a: &Node, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let key = KeyMaterial::new(Suite::Aes256Gcm, &[spi.to_le_bytes()[1]; KeyMaterial::LEN]);
    let spi = Spi::new(spi).expect("no reserved SPI");
    let mut sa = OutboundSa::new(spi, key, Limits::standard(Suite::Aes256Gcm), a.now);
    let mut seal = |frame: &Vec<u8>| {
        let plain_len = 16 + frame.len();
        let mut packet = [&[0; 32][..], frame, &[0; 21]].concat();
        udp::write_header(&mut packet[16..], 50_000, vxlan::PORT, 8 + frame.len());
        vxlan::write_header(&mut packet[24..], Vni::new(ENCRYPTED_VNI).unwrap(), None);
        let len = sa.seal(a.now, &mut packet, plain_len).expect("fresh").len();
        packet.truncate(len);
        packet
    };
    frames.iter().map(&mut seal).collect()
}

/// Both nodes without any key.
pub(super) fn nodes() -> (Node, Node) {
    let a = tables(
        vec![
            A.at(Place::Local(PORT)),
            A_NEIGHBOR.at(Place::Local(NEIGHBOR_PORT)),
            B.at(Place::Remote(LINK)),
            B_NEIGHBOR.at(Place::Remote(LINK)),
            GATEWAY.at(Place::Remote(LINK)),
            THIRD.at(Place::Remote(LINK_TO_THIRD)),
        ],
        vec![A_PLAIN.at(Place::Local(PLAIN_PORT)), B_PLAIN.at(Place::Remote(VTEP))],
        2,
    );
    let b = tables(
        vec![
            B.at(Place::Local(PORT)),
            B_NEIGHBOR.at(Place::Local(NEIGHBOR_PORT)),
            GATEWAY.at(Place::Local(GATEWAY_PORT)),
            A.at(Place::Remote(LINK)),
            A_NEIGHBOR.at(Place::Remote(LINK)),
            THIRD.at(Place::Remote(LINK_TO_THIRD)),
        ],
        vec![B_PLAIN.at(Place::Local(PLAIN_PORT)), A_PLAIN.at(Place::Remote(VTEP))],
        1,
    );
    (Node::new(a, 1), Node::new(b, 2))
}

fn tables(
    encrypted: Vec<EndpointSpec<LinkSlot>>,
    plain: Vec<EndpointSpec<VtepSlot>>,
    peer_host: u8,
) -> Tables {
    let vni = |vni| Vni::new(vni).expect("in range");
    let vteps = vec![(VTEP, SocketAddr::from(([192, 0, 2, peer_host], 4789)))];
    let net = NetSlot::new(0);
    TablesBuilder::default()
        .network(net, Arc::new(NetworkTable::encrypted(vni(ENCRYPTED_VNI), MTU, encrypted)))
        .network(NetSlot::new(1), Arc::new(NetworkTable::plain(vni(PLAIN_VNI), MTU, vteps, plain)))
        .link(LINK, net, SocketAddr::from(([192, 0, 2, peer_host], 4500)))
        .link(LINK_TO_THIRD, net, SocketAddr::from(([192, 0, 2, 3], 4500)))
        .build()
}
