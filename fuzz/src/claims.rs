//! What a frame says of its sender, read as simply as possible and not by the code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{LaxSlicedPacket, TransportSlice};

/// Whom a frame claims to be from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// An IP packet from this address.
    Ip(IpAddr),
    /// An ARP packet with this sender.
    Arp { mac: [u8; 6], ip: Ipv4Addr },
    /// A neighbour advertisement.
    Advertisement { source: Ipv6Addr, target: Ipv6Addr },
    /// A neighbour solicitation, a router's message or a redirect.
    OtherDiscovery(u8),
    /// A multicast listener report or done.
    ListenerReport(Ipv6Addr),
    /// Neither.
    Unknown,
}

impl Claim {
    /// Reads a frame.
    pub(crate) fn of(frame: &[u8]) -> Self {
        match frame.get(12..14) {
            Some([0x08, 0x00]) => {
                at(frame, 26).map_or(Self::Unknown, |ip| Self::Ip(Ipv4Addr::from_octets(ip).into()))
            }
            Some([0x08, 0x06]) => match (at(frame, 22), at(frame, 28)) {
                (Some(mac), Some(ip)) => Self::Arp { mac, ip: Ipv4Addr::from_octets(ip) },
                _ => Self::Unknown,
            },
            Some([0x86, 0xdd]) => Self::of_ipv6(frame),
            _ => Self::Unknown,
        }
    }

    fn of_ipv6(frame: &[u8]) -> Self {
        let Some(source) = at(frame, 22).map(Ipv6Addr::from_octets) else { return Self::Unknown };
        let transport = LaxSlicedPacket::from_ethernet(frame).ok().and_then(|packet| packet.transport);
        let Some(TransportSlice::Icmpv6(message)) = transport else { return Self::Ip(source.into()) };
        match message.type_u8() {
            136 => match at(message.slice(), 8).map(Ipv6Addr::from_octets) {
                Some(target) => Self::Advertisement { source, target },
                None => Self::OtherDiscovery(136),
            },
            kind @ (133..=135 | 137) => Self::OtherDiscovery(kind),
            131 | 132 | 143 => Self::ListenerReport(source),
            _ => Self::Ip(source.into()),
        }
    }
}

/// `N` bytes of `bytes` from `offset` on.
pub(crate) fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}
