//! Frames made by hand and captured frames taken apart, by another implementation than ours.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use etherparse::{LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use overlayd::id::{IfName, MacAddr};
use overlayd::io::netlink::Netlink;
use overlayd::io::netns::NetNs;
use overlayd::io::packet::PacketSocket;
use overlayd::lab::eventually;

/// A UDP datagram in a frame of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: Vec<u8>,
    /// Bytes of the IP packet.
    pub(crate) ip_len: usize,
}

/// What crossed the underlay, told apart as an observer can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// ARP, neighbour discovery, multicast group reports: the hosts' own housekeeping.
    Neighbors,
    /// TCP from or to this port, whichever is the lower.
    Tcp(u16),
    Udp(Datagram),
    Other,
}

/// Tells a frame of the underlay.
pub(crate) fn see(frame: &[u8]) -> Seen {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return Seen::Other };
    let (from, to, ip_len) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let addresses: (IpAddr, IpAddr) = (header.source_addr().into(), header.destination_addr().into());
            (addresses.0, addresses.1, usize::from(header.total_len()))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let addresses: (IpAddr, IpAddr) = (header.source_addr().into(), header.destination_addr().into());
            (addresses.0, addresses.1, 40 + usize::from(header.payload_length()))
        }
        Some(NetSlice::Arp(_)) => return Seen::Neighbors,
        None => return Seen::Other,
    };
    match packet.transport {
        Some(TransportSlice::Udp(udp)) => Seen::Udp(Datagram {
            from: SocketAddr::new(from, udp.source_port()),
            to: SocketAddr::new(to, udp.destination_port()),
            payload: udp.payload().to_vec(),
            ip_len,
        }),
        Some(TransportSlice::Tcp(tcp)) => Seen::Tcp(tcp.source_port().min(tcp.destination_port())),
        Some(TransportSlice::Igmp(_)) => Seen::Neighbors,
        Some(TransportSlice::Icmpv6(icmp)) if matches!(icmp.type_u8(), 131 | 133..=136 | 143) => {
            Seen::Neighbors
        }
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) | None => Seen::Other,
    }
}

/// The UDP datagrams among captured frames.
pub(crate) fn datagrams(frames: &[Vec<u8>]) -> Vec<Datagram> {
    frames
        .iter()
        .filter_map(|frame| match see(frame) {
            Seen::Udp(datagram) => Some(datagram),
            Seen::Neighbors | Seen::Tcp(_) | Seen::Other => None,
        })
        .collect()
}

impl Datagram {
    /// SPI and sequence number, if it went to the port of encrypted data.
    pub(crate) fn esp(&self) -> Option<(u32, u32)> {
        let number = |at| Some(u32::from_be_bytes(*self.payload.get(at..)?.first_chunk()?));
        (self.to.port() == ESP_PORT).then(|| Some((number(0)?, number(4)?)))?
    }
}

/// A frame with a UDP datagram in it; checksums are right.
pub(crate) fn udp(macs: (MacAddr, MacAddr), from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(macs.0.octets(), macs.1.octets());
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families"),
    };
    let mut frame = Vec::new();
    ip.udp(from.port(), to.port()).write(&mut frame, payload).unwrap();
    frame
}

/// An ARP packet: request (1) or reply (2), sender and target.
pub(crate) fn arp(
    macs: (MacAddr, MacAddr),
    operation: u16,
    sender: (MacAddr, Ipv4Addr),
    target: (MacAddr, Ipv4Addr),
) -> Vec<u8> {
    let mut frame = [macs.1.octets(), macs.0.octets()].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        frame.extend(mac.octets());
        frame.extend(ip.octets());
    }
    frame
}

/// The EtherType of a frame.
pub(crate) fn ether_type(frame: &[u8]) -> Option<u16> {
    match SlicedPacket::from_ethernet(frame).ok()?.link? {
        LinkSlice::Ethernet2(ethernet) => Some(ethernet.ether_type().0),
        LinkSlice::LinuxSll(_) | LinkSlice::EtherPayload(_) | LinkSlice::LinuxSllPayload(_) => None,
    }
}

/// VXLAN (RFC 7348 §5) around a frame.
pub(crate) fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(frame);
    packet
}

/// Sends frames out of an interface as they are.
pub(crate) fn send(namespace: &NetNs, interface: &IfName, frames: &[Vec<u8>]) {
    let link = Netlink::within(namespace, |netlink| netlink.link(interface)).unwrap();
    namespace
        .run_in(|| {
            let socket = PacketSocket::open(link.index).unwrap();
            for frame in frames {
                let sent = || match socket.send(frame) {
                    // Whoever reads the interface is slower than we are.
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => false,
                    sent => {
                        sent.unwrap();
                        true
                    }
                };
                assert!(eventually(Duration::from_secs(10), sent), "nobody takes the frames");
            }
        })
        .unwrap();
}

/// Whether `part` occurs in `whole`.
pub(crate) fn contains(whole: &[u8], part: &[u8]) -> bool {
    whole.windows(part.len()).any(|window| window == part)
}

/// The UDP port of encrypted data.
pub(crate) const ESP_PORT: u16 = 4500;
/// The UDP port of VXLAN.
pub(crate) const VXLAN_PORT: u16 = 4789;
/// The TCP port of managers and key channels.
pub(crate) const TLS_PORT: u16 = 2377;
