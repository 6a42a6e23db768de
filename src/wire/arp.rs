//! ARP for IPv4 over Ethernet (RFC 826).
//!
//! ```text
//!  0  2  hardware type 1      2  2  protocol 0x0800     4  1  6      5  1  4
//!  6  2  operation: 1 request, 2 reply
//!  8  6  sender MAC          14  4  sender IP
//! 18  6  target MAC          24  4  target IP
//! ```
//! Other hardware, protocols and operations (RARP, InARP) are malformed here: no endpoint needs
//! them. Called by `wire::frame`; replies are written for `datapath::reply`.

use std::net::Ipv4Addr;

use super::ethernet::{self, EtherType};
use super::{Malformed, octets, put};
use crate::id::MacAddr;

/// Octets of the packet.
pub const LEN: usize = 28;
/// Octets of a reply with its Ethernet header.
pub const REPLY_LEN: usize = ethernet::HEADER_LEN + LEN;

/// Whether somebody asks or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has its address.
    Reply,
}

/// The packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's MAC address.
    pub sender_mac: MacAddr,
    /// The sender's IP address; `0.0.0.0` in a probe (RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// The target's MAC address; without meaning in a request.
    pub target_mac: MacAddr,
    /// The target's IP address.
    pub target_ip: Ipv4Addr,
}

impl Packet {
    /// Reads the packet behind the Ethernet header; padding behind it is ignored.
    ///
    /// # Errors
    /// When it is short, or not a request or reply of IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let packet: [u8; LEN] = octets(bytes, 0)?;
        let operation = match octets::<8>(&packet, 0)? {
            [0, 1, 8, 0, 6, 4, 0, 1] => Operation::Request,
            [0, 1, 8, 0, 6, 4, 0, 2] => Operation::Reply,
            [..] => return Err(Malformed),
        };
        Ok(Self {
            operation,
            sender_mac: MacAddr::new(octets(&packet, 8)?),
            sender_ip: Ipv4Addr::from_octets(octets(&packet, 14)?),
            target_mac: MacAddr::new(octets(&packet, 18)?),
            target_ip: Ipv4Addr::from_octets(octets(&packet, 24)?),
        })
    }

    /// Writes the packet as a whole frame from its sender to `destination`.
    ///
    /// # Panics
    /// When `frame` is shorter than [`REPLY_LEN`].
    pub fn write_frame(&self, destination: MacAddr, frame: &mut [u8]) {
        ethernet::Header { destination, source: self.sender_mac, tag: None, ether_type: EtherType::Arp }
            .write(frame);
        let packet = &mut frame[ethernet::HEADER_LEN..];
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        put(packet, 0, [0, 1, 8, 0, 6, 4, 0, operation]);
        put(packet, 8, self.sender_mac.octets());
        put(packet, 14, self.sender_ip.octets());
        put(packet, 18, self.target_mac.octets());
        put(packet, 24, self.target_ip.octets());
    }

    /// The answer to this request: `owner` has the target address.
    pub fn answer(&self, owner: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: owner,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Packet {
        Packet {
            operation: Operation::Request,
            sender_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            sender_ip: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: MacAddr::new([0; 6]),
            target_ip: Ipv4Addr::new(10, 0, 0, 2),
        }
    }

    #[test]
    fn frame_round_trips_and_reads_the_same_with_etherparse() {
        let owner = MacAddr::new([2, 0, 0, 0, 0, 2]);
        let reply = request().answer(owner);
        let mut frame = [0; REPLY_LEN];
        reply.write_frame(reply.target_mac, &mut frame);
        assert_eq!(Packet::parse(&frame[14..]), Ok(reply));
        let theirs = etherparse::ArpPacketSlice::from_slice(&frame[14..]).expect("an ARP packet").to_packet();
        let theirs = theirs.try_eth_ipv4().expect("IPv4 over Ethernet");
        assert_eq!(theirs.sender_mac, owner.octets());
        assert_eq!(theirs.sender_ipv4, [10, 0, 0, 2]);
        assert_eq!(theirs.target_ipv4, [10, 0, 0, 1]);
    }

    #[test]
    fn other_hardware_protocols_operations_and_short_packets_are_malformed() {
        let mut frame = [0; REPLY_LEN];
        request().write_frame(MacAddr::BROADCAST, &mut frame);
        for offset in 0..8 {
            let mut bad = frame;
            bad[14 + offset] ^= 0x40;
            assert_eq!(Packet::parse(&bad[14..]), Err(Malformed), "octet {offset}");
        }
        assert_eq!(Packet::parse(&frame[14..41]), Err(Malformed));
    }
}
