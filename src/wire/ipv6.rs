//! IPv6 (RFC 8200) with its extension headers, as far as a frame's identity and flow need it.
//!
//! ```text
//!  0  4  version 6, class, label     4  2  payload length     6  1  next header    7  1  hop limit
//!  8 16  source                     24 16  destination       40  extension headers, payload
//! ```
//! The chain of extension headers is walked to its end, because neighbour discovery may hide
//! behind it; a first fragment that does not show the whole chain is refused (RFC 7112), as is a
//! fragment in a fragment. Called by `wire::frame`; `write_header` by `wire::ndp` and `wire::icmp`.

use std::net::Ipv6Addr;

use super::{Malformed, octets, put};

/// Octets of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Next header number of ICMPv6.
pub const NEXT_HEADER_ICMPV6: u8 = 58;

/// A packet with its extension headers walked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Hop limit.
    pub hop_limit: u8,
    /// The first next header that is no extension header.
    pub protocol: u8,
    /// What follows the extension headers; empty in a fragment but the first.
    pub payload: &'a [u8],
    /// Whether a fragment header was among the extension headers, an atomic one too.
    pub fragmented: bool,
}

impl<'a> Packet<'a> {
    /// Reads the packet behind the Ethernet header; padding behind it is ignored.
    ///
    /// # Errors
    /// When the header, the payload length or an extension header do not fit the bytes, or when
    /// the chain of headers is cut by fragmentation.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = etherparse::Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
        let rest = bytes.get(HEADER_LEN..).ok_or(Malformed)?;
        let rest = rest.get(..usize::from(header.payload_length())).ok_or(Malformed)?;
        let (protocol, payload, fragmented) = upper_layer(header.next_header().0, rest)?;
        Ok(Self {
            source: Ipv6Addr::from_octets(octets(bytes, 8)?),
            destination: Ipv6Addr::from_octets(octets(bytes, 24)?),
            hop_limit: header.hop_limit(),
            protocol,
            payload,
            fragmented,
        })
    }

    /// Both ports where the protocol has them and the packet is no fragment, else zero.
    pub fn ports(&self) -> [u8; 4] {
        if self.fragmented { [0; 4] } else { super::udp::ports(self.protocol, self.payload) }
    }
}

/// Writes a header without extension headers and with hop limit 255.
///
/// # Panics
/// When `bytes` is shorter than the header.
pub(super) fn write_header(
    bytes: &mut [u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: u8,
    payload_len: u16,
) {
    put(bytes, 0, [0x60, 0, 0, 0]);
    put(bytes, 4, payload_len.to_be_bytes());
    put(bytes, 6, [next_header, 255]);
    put(bytes, 8, source.octets());
    put(bytes, 24, destination.octets());
}

/// Walks the extension headers of `rest`, whose first header is `next`.
fn upper_layer(mut next: u8, mut rest: &[u8]) -> Result<(u8, &[u8], bool), Malformed> {
    let mut fragmented = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
                8 + 8 * usize::from(octets::<2>(rest, 0)?[1])
            }
            AUTHENTICATION => 8 + 4 * usize::from(octets::<2>(rest, 0)?[1]),
            FRAGMENT => {
                let [following, _, high, low, ..] = octets::<8>(rest, 0)?;
                if fragmented {
                    return Err(Malformed);
                }
                fragmented = true;
                if u16::from_be_bytes([high, low]) >> 3 != 0 {
                    return Ok((following, &[], true));
                }
                8
            }
            // The upper layer's first octet must be in the first fragment, or nobody can judge it.
            _ if fragmented && rest.is_empty() => return Err(Malformed),
            upper => return Ok((upper, rest, fragmented)),
        };
        let [following, ..] = octets::<2>(rest, 0)?;
        next = following;
        rest = rest.get(length..).ok_or(Malformed)?;
    }
    Err(Malformed)
}

/// More than this in one packet is an attack on those who parse it (RFC 8883 §2.4 lets them drop it).
const MAX_EXTENSION_HEADERS: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        let len = u16::try_from(payload.len()).expect("short");
        write_header(&mut bytes, Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, next, len);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn upper_layer_is_found_behind_every_kind_of_extension_header() {
        for kind in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, MOBILITY, HIP, SHIM6] {
            let mut chain = vec![17, 1];
            chain.extend([0; 14]);
            chain.extend([0x12, 0x34, 0x56, 0x78, 0, 8, 0, 0]);
            let bytes = packet(kind, &chain);
            let parsed = Packet::parse(&bytes).expect("well formed");
            assert_eq!((parsed.protocol, parsed.ports()), (17, [0x12, 0x34, 0x56, 0x78]), "{kind}");
        }
        let mut chain = vec![6, 4];
        chain.extend([0; 22]);
        let bytes = packet(AUTHENTICATION, &chain);
        assert_eq!(Packet::parse(&bytes).expect("well formed").protocol, 6);
    }

    #[test]
    fn first_fragment_must_show_the_whole_chain() {
        let hidden = packet(FRAGMENT, &[DESTINATION_OPTIONS, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(Packet::parse(&hidden), Err(Malformed));
        let cut = packet(FRAGMENT, &[DESTINATION_OPTIONS, 0, 0, 1, 0, 0, 0, 1, 58, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Packet::parse(&cut), Err(Malformed));
        let empty = packet(FRAGMENT, &[58, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(Packet::parse(&empty), Err(Malformed));
    }

    #[test]
    fn fragment_in_a_fragment_is_malformed() {
        let atomic = [FRAGMENT, 0, 0, 0, 0, 0, 0, 1];
        let later = [58, 0, 0, 8, 0, 0, 0, 2];
        assert_eq!(Packet::parse(&packet(FRAGMENT, &[atomic, later].concat())), Err(Malformed));
    }

    #[test]
    fn later_fragment_has_no_payload_to_judge() {
        let bytes = packet(FRAGMENT, &[17, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        let parsed = Packet::parse(&bytes).expect("well formed");
        assert!(parsed.fragmented && parsed.payload.is_empty());
        assert_eq!(parsed.ports(), [0; 4]);
    }

    #[test]
    fn endless_chains_and_contradicting_lengths_are_malformed() {
        assert_eq!(Packet::parse(&packet(HOP_BY_HOP, &[0; 256])), Err(Malformed));
        assert_eq!(Packet::parse(&packet(HOP_BY_HOP, &[17, 1, 0, 0, 0, 0, 0, 0])), Err(Malformed));
        let bytes = packet(17, &[0; 16]);
        for len in 0..bytes.len() {
            assert_eq!(Packet::parse(&bytes[..len]), Err(Malformed), "{len} octets");
        }
    }
}
