//! Ethernet II (RFC 894).
//!
//! ```text
//!  0  6  destination    6  6  source    12  2  EtherType    14  payload
//! ```
//! No 802.1Q: a tag is just another EtherType here, and policy refuses it. Called by `wire::frame`
//! and by the writers of replies.

use super::{Malformed, octets, put};
use crate::id::MacAddr;

/// Octets of the header.
pub const HEADER_LEN: usize = 14;

/// What the payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    /// 0x0800.
    Ipv4,
    /// 0x0806.
    Arp,
    /// 0x86dd.
    Ipv6,
    /// Everything else: VLAN tags, LLC lengths below 1536, and so on.
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

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who it is for.
    pub destination: MacAddr,
    /// Who sent it.
    pub source: MacAddr,
    /// What follows.
    pub ether_type: EtherType,
}

impl Header {
    /// Reads the header at the start of `frame`.
    ///
    /// # Errors
    /// When the frame is shorter than the header.
    pub fn parse(frame: &[u8]) -> Result<Self, Malformed> {
        let header: [u8; HEADER_LEN] = octets(frame, 0)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = header;
        Ok(Self {
            destination: MacAddr::new([a, b, c, d, e, f]),
            source: MacAddr::new([g, h, i, j, k, l]),
            ether_type: EtherType::from_number(u16::from_be_bytes([m, n])),
        })
    }

    /// Writes the header at the start of `frame`.
    ///
    /// # Panics
    /// When `frame` is shorter than [`HEADER_LEN`].
    pub fn write(self, frame: &mut [u8]) {
        put(frame, 0, self.destination.octets());
        put(frame, 6, self.source.octets());
        put(frame, 12, self.ether_type.number().to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips_and_short_frames_are_refused() {
        for number in [0x0800, 0x0806, 0x86dd, 0x8100, 0x0026] {
            let header = Header {
                destination: MacAddr::new([1, 2, 3, 4, 5, 6]),
                source: MacAddr::new([7, 8, 9, 10, 11, 12]),
                ether_type: EtherType::from_number(number),
            };
            let mut frame = [0; HEADER_LEN];
            header.write(&mut frame);
            assert_eq!(Header::parse(&frame), Ok(header));
            assert_eq!(header.ether_type.number(), number);
            assert_eq!(Header::parse(&frame[..13]), Err(Malformed));
        }
    }
}
