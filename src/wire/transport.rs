//! The TCP or UDP header of a frame: where it lies and where the packet around it ends.
//!
//! ```text
//! TCP (RFC 9293)   0 2 ports 2   4 4 sequence   8 4 acknowledgment   12 4 offset, flags, window
//!                 16 2 checksum   18 2 urgent   20 options
//! UDP (RFC 768)    0 2 ports 2   4 2 length     6 2 checksum
//! ```
//! For those who cut and merge frames and finish their checksums; who may send what is judged by
//! [`super::frame`]. Fragments have no transport header here. Called by `datapath`.

use super::checksum::Sum;
use super::{Malformed, ethernet, ipv4, ipv6, octets, udp};

/// Octets of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;
/// Where flags stand in a TCP header.
pub const TCP_FLAGS: usize = 13;
/// TCP: no more data.
pub const FIN: u8 = 0x01;
/// TCP: a connection begins.
pub const SYN: u8 = 0x02;
/// TCP: hand it to the application.
pub const PSH: u8 = 0x08;
/// TCP: the acknowledgment number counts.
pub const ACK: u8 = 0x10;
/// TCP: congestion was seen (RFC 3168).
pub const ECE: u8 = 0x40;
/// TCP: the congestion window was reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// Which transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where its header has the checksum.
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Where the parts of an unfragmented TCP or UDP packet lie in its frame; all offsets are within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// Which transport.
    pub protocol: Protocol,
    /// Over IPv6 rather than IPv4.
    pub is_ipv6: bool,
    /// Where the IP header begins: behind that of Ethernet and a VLAN tag.
    pub network: usize,
    /// Where the transport header begins.
    pub start: usize,
    /// Where its payload begins.
    pub payload: usize,
    /// Where the IP packet ends; what follows is padding of Ethernet.
    pub end: usize,
}

impl Transport {
    /// Finds the header; `None` for what is no TCP or UDP, or a fragment.
    ///
    /// # Errors
    /// When a header is short or contradicts the length of the frame.
    pub fn locate(frame: &[u8]) -> Result<Option<Self>, Malformed> {
        let header = ethernet::Header::parse(frame)?;
        let network = header.end();
        let packet = &frame[network..];
        let (is_ipv6, protocol, start, end) = match header.ether_type {
            ethernet::EtherType::Ipv4 => {
                let protocol = ipv4::Packet::parse(packet)?.protocol;
                let [version_ihl, _, high, low] = octets(packet, 0)?;
                if u16::from_be_bytes(octets(packet, 6)?) & IPV4_FRAGMENT != 0 {
                    return Ok(None);
                }
                let header_len = usize::from(version_ihl & 0x0f) * 4;
                (false, protocol, header_len, usize::from(u16::from_be_bytes([high, low])))
            }
            ethernet::EtherType::Ipv6 => {
                let parsed = ipv6::Packet::parse(packet)?;
                if parsed.fragmented {
                    return Ok(None);
                }
                let end = ipv6::HEADER_LEN + usize::from(u16::from_be_bytes(octets(packet, 4)?));
                (true, parsed.protocol, end - parsed.payload.len(), end)
            }
            ethernet::EtherType::Arp | ethernet::EtherType::Other(_) => return Ok(None),
        };
        let (protocol, header_len) = match protocol {
            6 => {
                let offset = usize::from(octets::<1>(packet, start + 12)?[0] >> 4) * 4;
                (Protocol::Tcp, Some(offset).filter(|len| *len >= TCP_HEADER_LEN).ok_or(Malformed)?)
            }
            17 => (Protocol::Udp, udp::HEADER_LEN),
            _ => return Ok(None),
        };
        let payload = start + header_len;
        if payload > end {
            return Err(Malformed);
        }
        let [start, payload, end] = [start, payload, end].map(|offset| network + offset);
        Ok(Some(Self { protocol, is_ipv6, network, start, payload, end }))
    }

    /// The sum of the pseudo header for `len` octets of transport header and payload, by the
    /// addresses of the IP header: not for a packet with a routing header.
    #[inline]
    pub fn pseudo_header(&self, frame: &[u8], len: u16) -> Sum {
        let addresses = if self.is_ipv6 { 8..40 } else { 12..20 };
        Sum::ZERO
            .plus(&frame[self.network..][addresses])
            .plus_word(u16::from(self.protocol.number()))
            .plus_word(len)
    }
}

/// More fragments, or an offset.
const IPV4_FRAGMENT: u16 = 0x3fff;

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(is_ipv6: bool, payload: &[u8]) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        if is_ipv6 {
            builder.ipv6([1; 16], [2; 16], 64).tcp(1, 2, 3, 4).write(&mut frame, payload)
        } else {
            builder.ipv4([1; 4], [2; 4], 64).tcp(1, 2, 3, 4).write(&mut frame, payload)
        }
        .expect("a frame");
        frame
    }

    #[test]
    fn header_payload_and_end_are_found_in_front_of_padding() {
        for (is_ipv6, network, start) in [(false, 14, 34), (true, 14, 54), (false, 18, 38), (true, 18, 58)] {
            let mut frame = tcp(is_ipv6, b"hello");
            frame.extend([0; 9]);
            if network == 18 {
                frame.splice(12..12, [0x81, 0, 0, 5]);
            }
            let (protocol, payload, end) = (Protocol::Tcp, start + 20, start + 25);
            let expected = Transport { protocol, is_ipv6, network, start, payload, end };
            assert_eq!(Transport::locate(&frame), Ok(Some(expected)));
            let sum = expected.pseudo_header(&frame, 25).plus(&frame[start..start + 25]);
            assert_eq!(sum.checksum(), 0, "etherparse's checksum is right");
        }
    }

    #[test]
    fn fragments_and_other_protocols_have_none() {
        let mut fragment = tcp(false, b"hello");
        fragment[20] = 0x20;
        assert_eq!(Transport::locate(&fragment), Ok(None));
        let mut icmp = tcp(false, b"hello");
        icmp[23] = 1;
        assert_eq!(Transport::locate(&icmp), Ok(None));
    }

    #[test]
    fn header_that_is_short_or_longer_than_the_packet_is_malformed() {
        for offset in [0x40, 0x70] {
            let mut frame = tcp(false, b"hello");
            frame[34 + 12] = offset;
            assert_eq!(Transport::locate(&frame), Err(Malformed), "{offset:x}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_frames_never_panic_and_offsets_stay_inside(
            is_ipv6: bool, is_tagged: bool, at in 0usize..78, bits: u8, len in 0usize..84
        ) {
            let mut frame = tcp(is_ipv6, &[0; 6]);
            if is_tagged {
                frame.splice(12..12, [0x81, 0, 0, 5]);
            }
            let last = frame.len() - 1;
            frame[at.min(last)] ^= bits;
            frame.truncate(len);
            if let Ok(Some(found)) = Transport::locate(&frame) {
                proptest::prop_assert!(found.network < found.start && found.start < found.payload);
                proptest::prop_assert!(found.payload <= found.end && found.end <= frame.len());
            }
        }
    }
}
