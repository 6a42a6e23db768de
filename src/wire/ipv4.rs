//! IPv4 (RFC 791), as far as a frame's identity and flow need it.
//!
//! ```text
//!  0  1  version 4, IHL      2  2  total length     6  2  flags, fragment offset
//!  9  1  protocol           12  4  source          16  4  destination      20  options
//! ```
//! The header checksum is left to the receiving stack. Called by `wire::frame`.

use std::net::Ipv4Addr;

use super::{Malformed, octets};

/// Octets of a header without options.
pub const HEADER_LEN: usize = 20;

/// Who talks to whom, over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Both ports where the protocol has them and the packet is no fragment, else zero.
    pub ports: [u8; 4],
}

impl Packet {
    /// Reads the packet behind the Ethernet header; padding behind it is ignored.
    ///
    /// # Errors
    /// When the header, its options or the total length do not fit the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = etherparse::Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
        let (header_len, total_len) = (header.slice().len(), usize::from(header.total_len()));
        let payload = bytes.get(header_len..total_len).ok_or(Malformed)?;
        let protocol = header.protocol().0;
        let ports =
            if header.is_fragmenting_payload() { [0; 4] } else { super::udp::ports(protocol, payload) };
        Ok(Self {
            source: Ipv4Addr::from_octets(octets(bytes, 12)?),
            destination: Ipv4Addr::from_octets(octets(bytes, 16)?),
            protocol,
            ports,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp() -> Vec<u8> {
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(0x1234, 0x5678)
            .write(&mut packet, b"hello")
            .expect("a packet");
        packet
    }

    #[test]
    fn addresses_protocol_and_ports_are_read() {
        let packet = Packet::parse(&udp()).expect("well formed");
        assert_eq!(packet.source, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(packet.destination, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!((packet.protocol, packet.ports), (17, [0x12, 0x34, 0x56, 0x78]));
    }

    #[test]
    fn options_are_skipped_on_the_way_to_the_ports() {
        let mut bytes = udp();
        bytes.splice(20..20, [1, 1, 1, 0]);
        bytes[0] = 0x46;
        bytes[3] += 4;
        assert_eq!(Packet::parse(&bytes).expect("well formed").ports, [0x12, 0x34, 0x56, 0x78]);
    }

    #[test]
    fn a_fragment_has_no_ports() {
        let mut bytes = udp();
        bytes[6] = 0x20;
        assert_eq!(Packet::parse(&bytes).expect("well formed").ports, [0; 4]);
    }

    #[test]
    fn contradicting_lengths_are_malformed() {
        for (offset, value) in [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 0xff), (3, 19)] {
            let mut bytes = udp();
            bytes[offset] = value;
            assert_eq!(Packet::parse(&bytes), Err(Malformed), "octet {offset} = {value}");
        }
        for len in 0..udp().len() {
            assert_eq!(Packet::parse(&udp()[..len]), Err(Malformed), "{len} octets");
        }
    }
}
