//! One Ethernet frame of a container, told apart without copying or allocating.
//!
//! It says what the frame is and who it claims to be from; whether it may be so is
//! `forward::policy`'s. Called by `datapath` once per frame in either direction.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Malformed, arp, ethernet, ipv4, ipv6, ndp};
use crate::id::MacAddr;

/// A frame's addresses and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Who it is for.
    pub destination: MacAddr,
    /// Who it claims to be from.
    pub source: MacAddr,
    /// The VLAN that it is of; addresses are the same in all of them.
    pub tag: Option<ethernet::Tag>,
    /// What it carries.
    pub content: Content,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// ARP.
    Arp(arp::Packet),
    /// IPv4.
    Ipv4(ipv4::Packet),
    /// IPv6 but for neighbour discovery.
    Ipv6 {
        /// Source address.
        source: Ipv6Addr,
        /// Destination address.
        destination: Ipv6Addr,
        /// The protocol behind all extension headers.
        protocol: u8,
        /// Both ports where the protocol has them and the packet is no fragment, else zero.
        ports: [u8; 4],
        /// A multicast listener report or done, which may come from `::` (RFC 3590).
        listener_report: bool,
    },
    /// Neighbour discovery, wherever in the packet it hides.
    Discovery {
        /// Source address.
        source: Ipv6Addr,
        /// The message.
        message: ndp::Message,
    },
    /// An EtherType that the overlay does not carry.
    Unsupported,
}

impl Frame {
    /// Tells what `bytes` are.
    ///
    /// # Errors
    /// When a header is short or contradicts the length of the frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = ethernet::Header::parse(bytes)?;
        let ethernet::Header { destination, source, tag, ether_type } = header;
        let payload = &bytes[header.end()..];
        let content = match ether_type {
            ethernet::EtherType::Arp => Content::Arp(arp::Packet::parse(payload)?),
            ethernet::EtherType::Ipv4 => Content::Ipv4(ipv4::Packet::parse(payload)?),
            ethernet::EtherType::Ipv6 => Content::ipv6(&ipv6::Packet::parse(payload)?),
            ethernet::EtherType::Other(_) => Content::Unsupported,
        };
        Ok(Self { destination, source, tag, content })
    }

    /// A number that all packets of a flow share and flows seldom do; it depends on nothing but
    /// the frame.
    pub fn flow_hash(&self) -> u64 {
        match self.content {
            Content::Ipv4(packet) => hash(
                bits_v4(packet.source),
                bits_v4(packet.destination),
                u64::from(packet.protocol) << 32 | u64::from(u32::from_be_bytes(packet.ports)),
            ),
            Content::Ipv6 { source, destination, protocol, ports, .. } => hash(
                bits_v6(source),
                bits_v6(destination),
                u64::from(protocol) << 32 | u64::from(u32::from_be_bytes(ports)),
            ),
            Content::Discovery { source, .. } => hash(bits_v6(source), 0, 0),
            Content::Arp(_) | Content::Unsupported => 0,
        }
    }
}

impl Content {
    fn ipv6(packet: &ipv6::Packet<'_>) -> Self {
        let &ipv6::Packet { source, destination, protocol, .. } = packet;
        match ndp::Message::parse(packet) {
            Some(message) => Self::Discovery { source, message },
            None => Self::Ipv6 {
                source,
                destination,
                protocol,
                ports: packet.ports(),
                listener_report: protocol == ipv6::NEXT_HEADER_ICMPV6
                    && matches!(packet.payload.first(), Some(131 | 132 | 143)),
            },
        }
    }
}

fn bits_v4(address: Ipv4Addr) -> u64 {
    u64::from(address.to_bits())
}

fn bits_v6(address: Ipv6Addr) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]).rotate_left(17)
        ^ u64::from_be_bytes([i, j, k, l, m, n, o, p])
}

/// Two folded multiplications: every bit of the input reaches every bit of the port.
fn hash(source: u64, destination: u64, transport: u64) -> u64 {
    let pair = fold(source ^ 0x9e37_79b9_7f4a_7c15, destination ^ 0xd1b5_4a32_d192_ed03);
    fold(pair ^ 0x2545_f491_4f6c_dd1d, transport ^ 0xaef1_7502_108e_f2d9)
}

fn fold(a: u64, b: u64) -> u64 {
    let product = (u128::from(a) * u128::from(b)).to_le_bytes();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = product;
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_le_bytes([i, j, k, l, m, n, o, p])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn udp(source_port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 64)
            .udp(source_port, 53)
            .write(&mut frame, b"hello")
            .expect("a frame");
        frame
    }

    #[test]
    fn provider_tags_second_tags_and_llc_are_unsupported() {
        for header in [&[0x88, 0xa8, 0, 5][..], &[0x81, 0, 0, 5, 0x81, 0, 0, 6], &[0x00, 0x26]] {
            let mut frame = udp(1);
            frame.splice(12..12, header.iter().copied());
            assert_eq!(Frame::parse(&frame).expect("a frame").content, Content::Unsupported);
        }
    }

    #[test]
    fn tagged_frame_is_what_it_is_without_its_tag() {
        let plain = Frame::parse(&udp(1)).expect("a frame");
        let mut bytes = udp(1);
        bytes.splice(12..12, [0x81, 0, 0, 5]);
        let tagged = Frame::parse(&bytes).expect("a frame");
        assert_eq!(tagged.tag.map(ethernet::Tag::octets), Some([0x81, 0, 0, 5]));
        assert_eq!(Frame { tag: None, ..tagged }, plain);
        assert_eq!(tagged.flow_hash(), plain.flow_hash());
        assert_eq!(Frame::parse(&bytes[..17]), Err(Malformed));
    }

    #[test]
    fn flows_of_one_pair_spread_over_the_entropy_ports() {
        let ports: std::collections::BTreeSet<u16> = (1000..1256)
            .map(|port| {
                crate::wire::udp::entropy_port(Frame::parse(&udp(port)).expect("a frame").flow_hash())
            })
            .collect();
        assert!(ports.len() > 240, "{} ports of 256 flows", ports.len());
    }

    #[test]
    fn multicast_listener_report_is_told_from_other_icmp() {
        for (kind, expected) in [(143, true), (131, true), (128, false)] {
            let mut frame = udp(1);
            frame[14 + 6] = 58;
            frame[54] = kind;
            let content = Frame::parse(&frame).expect("a frame").content;
            assert!(matches!(content, Content::Ipv6 { listener_report, .. } if listener_report == expected));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200), ether_type in 0usize..4, inner in 0usize..4
        ) {
            if bytes.len() >= 14 {
                bytes[12..14].copy_from_slice(&[[8, 0], [8, 6], [0x86, 0xdd], [0x81, 0]][ether_type]);
            }
            if bytes.len() >= 18 && ether_type == 3 {
                bytes[16..18].copy_from_slice(&[[8, 0], [8, 6], [0x86, 0xdd], [0x81, 0]][inner]);
            }
            if let Ok(frame) = Frame::parse(&bytes) {
                let _ = frame.flow_hash();
            }
        }

        #[test]
        fn cut_or_flipped_frames_never_panic(len in 0usize..67, at in 0usize..67, bits: u8) {
            let mut frame = udp(7);
            frame[at] ^= bits;
            let _ = Frame::parse(&frame[..len]);
        }
    }
}
