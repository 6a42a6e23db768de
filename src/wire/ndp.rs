//! Neighbour discovery (RFC 4861): the messages that claim or ask for an identity.
//!
//! ```text
//!  0  1  type 133 RS, 134 RA, 135 NS, 136 NA, 137 redirect    1  1  code 0    2  2  checksum
//!  4  4  flags (NA: router 0x80, solicited 0x40, override 0x20)
//!  8 16  target (NS, NA)    24  options: type, length in units of 8 octets, value
//! ```
//! A message that a receiver may not accept (RFC 4861 §7.1, RFC 6980) is [`Message::Invalid`]
//! rather than something harmless, so that policy refuses it. Called by `wire::frame`; answers
//! are written for `datapath::reply`.

use std::net::Ipv6Addr;

use super::ethernet::{self, EtherType};
use super::{checksum, ipv6, octets, put};
use crate::id::MacAddr;

/// Octets of a neighbour advertisement with all its headers.
pub const ADVERTISEMENT_LEN: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + MESSAGE_LEN;

/// A message of neighbour discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Who has the target? From `::` it is duplicate address detection.
    NeighborSolicitation {
        /// The address asked for.
        target: Ipv6Addr,
        /// The asker's MAC address, if it says it.
        source_link: Option<MacAddr>,
    },
    /// The sender has the target.
    NeighborAdvertisement {
        /// The address claimed.
        target: Ipv6Addr,
        /// The claimer's MAC address, if it says it.
        target_link: Option<MacAddr>,
    },
    /// Who is a router?
    RouterSolicitation,
    /// The sender is a router.
    RouterAdvertisement,
    /// The sender, a router, knows a better next hop.
    Redirect,
    /// Of a type of neighbour discovery, but fragmented, routed or malformed.
    Invalid,
}

impl Message {
    /// The message in an IPv6 packet, if it is one of neighbour discovery.
    pub fn parse(packet: &ipv6::Packet<'_>) -> Option<Self> {
        if packet.protocol != ipv6::NEXT_HEADER_ICMPV6 {
            return None;
        }
        let message = packet.payload;
        let kind = message.first().copied().filter(|kind| (FIRST_TYPE..=LAST_TYPE).contains(kind))?;
        if packet.fragmented || packet.hop_limit != 255 || message.get(1) != Some(&0) {
            return Some(Self::Invalid);
        }
        Some(match kind {
            ROUTER_SOLICITATION => Self::RouterSolicitation,
            ROUTER_ADVERTISEMENT => Self::RouterAdvertisement,
            NEIGHBOR_SOLICITATION => {
                parse_neighbor(message, SOURCE_LINK).map_or(Self::Invalid, |(target, source_link)| {
                    Self::NeighborSolicitation { target, source_link }
                })
            }
            NEIGHBOR_ADVERTISEMENT => {
                parse_neighbor(message, TARGET_LINK).map_or(Self::Invalid, |(target, target_link)| {
                    Self::NeighborAdvertisement { target, target_link }
                })
            }
            _ => Self::Redirect,
        })
    }
}

/// A neighbour advertisement to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertisement {
    /// The address that was asked for.
    pub target: Ipv6Addr,
    /// Who has it.
    pub owner: MacAddr,
    /// Whether the owner is a router.
    pub router: bool,
    /// Who asked.
    pub asker: MacAddr,
    /// The address that asked; `::` in duplicate address detection.
    pub asker_ip: Ipv6Addr,
}

impl Advertisement {
    /// Writes the advertisement as a whole frame from the owner to the asker.
    ///
    /// # Panics
    /// When `frame` is shorter than [`ADVERTISEMENT_LEN`].
    pub fn write_frame(&self, frame: &mut [u8]) {
        // RFC 4861 §7.2.4: duplicate address detection is answered to all nodes, unsolicited.
        let detection = self.asker_ip.is_unspecified();
        let (destination, ip) =
            if detection { (ALL_NODES_MAC, ALL_NODES) } else { (self.asker, self.asker_ip) };
        let router = if self.router { ROUTER } else { 0 };
        let solicited = if detection { 0 } else { SOLICITED };
        ethernet::Header { destination, source: self.owner, tag: None, ether_type: EtherType::Ipv6 }
            .write(frame);
        let packet = &mut frame[ethernet::HEADER_LEN..];
        ipv6::write_header(packet, self.target, ip, ipv6::NEXT_HEADER_ICMPV6, MESSAGE_LEN_FIELD);
        let message = &mut packet[ipv6::HEADER_LEN..ipv6::HEADER_LEN + MESSAGE_LEN];
        put(message, 0, [NEIGHBOR_ADVERTISEMENT, 0, 0, 0, router | solicited | OVERRIDE, 0, 0, 0]);
        put(message, 8, self.target.octets());
        put(message, 24, [TARGET_LINK, 1]);
        put(message, 26, self.owner.octets());
        let sum = checksum::ipv6(self.target, ip, ipv6::NEXT_HEADER_ICMPV6, message);
        put(message, 2, sum.to_be_bytes());
    }
}

/// Target and link-layer address of a solicitation or advertisement. Two link-layer addresses are
/// refused: which of them a receiver takes is its own choice.
fn parse_neighbor(message: &[u8], link_option: u8) -> Option<(Ipv6Addr, Option<MacAddr>)> {
    let target = Ipv6Addr::from_octets(octets(message, 8).ok()?);
    let mut options = message.get(24..)?;
    let mut link = None;
    while !options.is_empty() {
        let [kind, units] = octets(options, 0).ok()?;
        let (option, rest) = options.split_at_checked(8 * usize::from(units)).filter(|_| units > 0)?;
        if kind == link_option {
            if link.is_some() || units != 1 {
                return None;
            }
            link = Some(MacAddr::new(octets(option, 2).ok()?));
        }
        options = rest;
    }
    Some((target, link))
}

const FIRST_TYPE: u8 = ROUTER_SOLICITATION;
const LAST_TYPE: u8 = REDIRECT;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr::new([0x33, 0x33, 0, 0, 0, 1]);
/// Octets of an advertisement with one link-layer address.
const MESSAGE_LEN: usize = 32;
const MESSAGE_LEN_FIELD: u16 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);

    fn advertisement(asker_ip: Ipv6Addr) -> [u8; ADVERTISEMENT_LEN] {
        let mut frame = [0; ADVERTISEMENT_LEN];
        let asker = MacAddr::new([2, 0, 0, 0, 0, 1]);
        Advertisement { target: OWNER.link_local(), owner: OWNER, router: false, asker, asker_ip }
            .write_frame(&mut frame);
        frame
    }

    fn parse(frame: &[u8]) -> Option<Message> {
        Message::parse(&ipv6::Packet::parse(&frame[14..]).expect("well formed IPv6"))
    }

    #[test]
    fn advertisement_round_trips_with_a_right_checksum() {
        for asker in [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED] {
            let frame = advertisement(asker);
            let packet = ipv6::Packet::parse(&frame[14..]).expect("well formed IPv6");
            assert_eq!(checksum::ipv6(packet.source, packet.destination, 58, packet.payload), 0);
            let target = OWNER.link_local();
            let expected = Message::NeighborAdvertisement { target, target_link: Some(OWNER) };
            assert_eq!(parse(&frame), Some(expected));
        }
    }

    #[test]
    fn duplicate_address_detection_is_answered_to_all_nodes_and_unsolicited() {
        let frame = advertisement(Ipv6Addr::UNSPECIFIED);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(frame[54 + 4], OVERRIDE);
        assert_eq!(advertisement(Ipv6Addr::LOCALHOST)[54 + 4], OVERRIDE | SOLICITED);
    }

    #[test]
    fn routed_coded_or_malformed_messages_are_invalid() {
        let good = advertisement(Ipv6Addr::LOCALHOST);
        for (offset, value) in [(14 + 7, 254), (54 + 1, 1), (54 + 25, 0), (54 + 25, 2)] {
            let mut bad = good;
            bad[offset] = value;
            assert_eq!(parse(&bad), Some(Message::Invalid), "octet {offset} = {value}");
        }
    }

    #[test]
    fn second_link_layer_address_is_invalid() {
        let mut frame = advertisement(Ipv6Addr::LOCALHOST).to_vec();
        frame[14 + 5] += 8;
        frame.extend([TARGET_LINK, 1, 6, 6, 6, 6, 6, 6]);
        assert_eq!(parse(&frame), Some(Message::Invalid));
    }

    #[test]
    fn discovery_behind_an_atomic_fragment_is_invalid() {
        let mut frame = advertisement(Ipv6Addr::LOCALHOST).to_vec();
        frame.splice(54..54, [58, 0, 0, 0, 0, 0, 0, 1]);
        frame[14 + 5] += 8;
        frame[14 + 6] = 44;
        assert_eq!(parse(&frame), Some(Message::Invalid));
    }

    #[test]
    fn every_type_of_discovery_is_known_and_echo_is_none() {
        let mut frame = advertisement(Ipv6Addr::LOCALHOST);
        frame[54] = 133;
        assert_eq!(parse(&frame), Some(Message::RouterSolicitation));
        frame[54] = 134;
        assert_eq!(parse(&frame), Some(Message::RouterAdvertisement));
        frame[54] = 137;
        assert_eq!(parse(&frame), Some(Message::Redirect));
        frame[54] = 128;
        assert_eq!(parse(&frame), None);
    }
}
