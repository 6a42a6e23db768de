//! Ethernet II (RFC 894), with or without one VLAN tag (IEEE 802.1Q §9.6).
//!
//! ```text
//!  0  6  destination    6  6  source    12  2  EtherType    14  payload
//!                                       12  2  0x8100    14  2  priority 3, DEI 1, VLAN 12
//!                                       16  2  EtherType    18  payload
//! ```
//! A second tag, and one of a provider (802.1ad), are just another EtherType here, and policy refuses
//! them. Called by whoever looks into a frame, and by the writers of replies.

use super::{Malformed, octets, put};
use crate::id::MacAddr;

/// Octets of the header without tag.
pub const HEADER_LEN: usize = 14;
/// Octets that a tag adds.
pub const TAG_LEN: usize = 4;
/// Octets of both addresses, behind which a tag stands.
pub const ADDRESSES_LEN: usize = 12;

/// What the payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    /// 0x0800.
    Ipv4,
    /// 0x0806.
    Arp,
    /// 0x86dd.
    Ipv6,
    /// Everything else: further tags, LLC lengths below 1536, and so on.
    Other(u16),
}

impl EtherType {
    /// From its number.
    pub const fn from_number(number: u16) -> Self {
        match number {
            0x0800 => Self::Ipv4,
            0x0806 => Self::Arp,
            0x86dd => Self::Ipv6,
            other => Self::Other(other),
        }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        match self {
            Self::Ipv4 => 0x0800,
            Self::Arp => 0x0806,
            Self::Ipv6 => 0x86dd,
            Self::Other(number) => number,
        }
    }
}

/// A VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag([u8; 2]);

impl Tag {
    /// The tag as it stands behind the addresses.
    pub const fn octets(self) -> [u8; TAG_LEN] {
        let ([a, b], [c, d]) = (TPID.to_be_bytes(), self.0);
        [a, b, c, d]
    }
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who it is for.
    pub destination: MacAddr,
    /// Who sent it.
    pub source: MacAddr,
    /// The VLAN that it is of.
    pub tag: Option<Tag>,
    /// What follows.
    pub ether_type: EtherType,
}

impl Header {
    /// Reads the header at the start of `frame`.
    ///
    /// # Errors
    /// When the frame is shorter than the header.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, Malformed> {
        let header: [u8; HEADER_LEN] = octets(frame, 0)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = header;
        let mut number = u16::from_be_bytes([m, n]);
        let mut tag = None;
        if number == TPID {
            let [a, b, c, d] = octets(frame, HEADER_LEN)?;
            (tag, number) = (Some(Tag([a, b])), u16::from_be_bytes([c, d]));
        }
        Ok(Self {
            destination: MacAddr::new([a, b, c, d, e, f]),
            source: MacAddr::new([g, h, i, j, k, l]),
            tag,
            ether_type: EtherType::from_number(number),
        })
    }

    /// Where it ends and the payload begins.
    pub const fn end(&self) -> usize {
        HEADER_LEN + if self.tag.is_some() { TAG_LEN } else { 0 }
    }

    /// The longest packet that it may be in front of, where that is `mtu` without tag: the frame stays
    /// as long.
    pub const fn mtu(&self, mtu: u16) -> u16 {
        if self.tag.is_some() { mtu.saturating_sub(4) } else { mtu }
    }

    /// Writes the header at the start of `frame`.
    ///
    /// # Panics
    /// When `frame` is shorter than [`Self::end`].
    pub fn write(self, frame: &mut [u8]) {
        put(frame, 0, self.destination.octets());
        put(frame, 6, self.source.octets());
        if let Some(tag) = self.tag {
            put(frame, ADDRESSES_LEN, tag.octets());
        }
        put(frame, self.end() - 2, self.ether_type.number().to_be_bytes());
    }
}

const _: () = assert!(TAG_LEN == 4, "a packet is so much shorter");

/// The tag protocol identifier of a customer's tag.
const TPID: u16 = 0x8100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips_and_short_frames_are_refused() {
        for number in [0x0800, 0x0806, 0x86dd, 0x88a8, 0x0026] {
            for tag in [None, Some(Tag([0xa0, 0x05]))] {
                let header = Header {
                    destination: MacAddr::new([1, 2, 3, 4, 5, 6]),
                    source: MacAddr::new([7, 8, 9, 10, 11, 12]),
                    tag,
                    ether_type: EtherType::from_number(number),
                };
                let mut frame = vec![0; header.end()];
                header.write(&mut frame);
                assert_eq!(Header::parse(&frame), Ok(header));
                assert_eq!(header.ether_type.number(), number);
                assert_eq!(Header::parse(&frame[..frame.len() - 1]), Err(Malformed));
            }
        }
    }

    #[test]
    fn tag_stands_behind_the_addresses_and_only_one_is_read() {
        let mut frame = vec![7; ADDRESSES_LEN];
        frame.extend([0x81, 0x00, 0x60, 0x05, 0x81, 0x00, 0x00, 0x06, 0x08, 0x00]);
        let header = Header::parse(&frame).expect("a header");
        assert_eq!((header.tag.map(Tag::octets), header.end()), (Some([0x81, 0x00, 0x60, 0x05]), 18));
        assert_eq!(header.ether_type, EtherType::Other(TPID));
    }
}
