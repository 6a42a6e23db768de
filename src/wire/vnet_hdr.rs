//! The header in front of every frame that a TAP reads or writes (`struct virtio_net_hdr_v1`,
//! virtio 1.2 §5.1.6): what the kernel left undone, or need not do.
//!
//! ```text
//!  0  1  flags: 1 checksum is partial, 2 checksum was verified
//!  1  1  kind of super-frame: 0 none, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP; 0x80 CWR is set
//!  2  2  length of the headers        4  2  payload of each segment
//!  6  2  checksum covers from here    8  2  checksum lies so far behind
//! 10  2  buffers, unused
//! ```
//! Numbers are in the machine's order, as the kernel has them unless it is told otherwise
//! (`TUNSETVNETLE`). Not here: whether what it says is true of the frame; that is `datapath`'s.
//! Called by `io::tap`.

use std::num::NonZeroU16;

use super::{Malformed, put};

/// Octets of the header.
pub const HEADER_LEN: usize = 12;

/// What a kernel says of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VnetHeader {
    /// The state of the transport checksum.
    pub checksum: Checksum,
    /// Set for a super-frame.
    pub segmentation: Option<Segmentation>,
    /// Octets of all headers, as a hint; zero for a frame that is none.
    pub header_len: u16,
}

impl VnetHeader {
    /// Of a frame as it would be on a wire.
    pub const COMPLETE: Self = Self { checksum: Checksum::Complete, segmentation: None, header_len: 0 };
    /// Of the same whose transport checksum has been found right.
    pub const VERIFIED: Self = Self { checksum: Checksum::Verified, segmentation: None, header_len: 0 };

    /// Reads the header.
    ///
    /// # Errors
    /// When it is a super-frame of a kind that was not asked for, or without a segment size.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let [flags, kind, a, b, c, d, e, f, g, h, _, _] = *bytes;
        let kind_of = |kind| match kind {
            1 => Ok(Kind::Tcp4),
            4 => Ok(Kind::Tcp6),
            5 => Ok(Kind::Udp),
            _ => Err(Malformed),
        };
        let segmentation = match kind & !HAS_CWR {
            0 => None,
            kind => Some(Segmentation {
                kind: kind_of(kind)?,
                has_cwr: bytes[1] & HAS_CWR != 0,
                size: NonZeroU16::new(u16::from_ne_bytes([c, d])).ok_or(Malformed)?,
            }),
        };
        let checksum = if flags & NEEDS_CHECKSUM != 0 {
            Checksum::Partial { start: u16::from_ne_bytes([e, f]), offset: u16::from_ne_bytes([g, h]) }
        } else if flags & CHECKSUM_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        Ok(Self { checksum, segmentation, header_len: u16::from_ne_bytes([a, b]) })
    }

    /// How many frames a super-frame of `len` octets that begins with `head` is on a wire, and how many
    /// octets they have, each with headers of its own; one and `len` for an ordinary frame.
    pub fn on_the_wire(&self, head: &[u8], len: usize) -> (usize, usize) {
        let (Some(cut), Checksum::Partial { start, .. }) = (self.segmentation, self.checksum) else {
            return (1, len);
        };
        let start = usize::from(start);
        let headers = match cut.kind {
            // The upper four bits of the octet behind the sequence numbers count words.
            Kind::Tcp4 | Kind::Tcp6 => start + usize::from(head.get(start + 12).map_or(5, |at| at >> 4)) * 4,
            Kind::Udp => start + 8,
        };
        let segments = len.saturating_sub(headers).div_ceil(cut.size.get().into()).max(1);
        (segments, len + (segments - 1) * headers)
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        match self.checksum {
            Checksum::Complete => {}
            Checksum::Verified => bytes[0] = CHECKSUM_VALID,
            Checksum::Partial { start, offset } => {
                bytes[0] = NEEDS_CHECKSUM;
                put(&mut bytes, 6, start.to_ne_bytes());
                put(&mut bytes, 8, offset.to_ne_bytes());
            }
        }
        put(&mut bytes, 2, self.header_len.to_ne_bytes());
        if let Some(segmentation) = self.segmentation {
            let kind = match segmentation.kind {
                Kind::Tcp4 => 1,
                Kind::Tcp6 => 4,
                Kind::Udp => 5,
            };
            bytes[1] = if segmentation.has_cwr { kind | HAS_CWR } else { kind };
            put(&mut bytes, 4, segmentation.size.get().to_ne_bytes());
        }
        bytes
    }
}

/// The state of a frame's transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It is there, right or wrong, or the packet has none.
    Complete,
    /// It is there, and somebody has found it right.
    Verified,
    /// The field holds the sum of the pseudo header alone (see [`super::checksum`]).
    Partial {
        /// From where on the frame is covered.
        start: u16,
        /// How far behind `start` the field lies.
        offset: u16,
    },
}

/// How a super-frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// What it is.
    pub kind: Kind,
    /// The first segment alone has CWR set (RFC 3168 §6.1.2).
    pub has_cwr: bool,
    /// Octets of payload in every segment but the last, which may have fewer.
    pub size: NonZeroU16,
}

/// What a super-frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either: each segment is a datagram.
    Udp,
}

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_VALID: u8 = 2;
const HAS_CWR: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let partial = Checksum::Partial { start: 34, offset: 16 };
        let size = NonZeroU16::new(1356).expect("not zero");
        let cut = |kind, has_cwr| Some(Segmentation { kind, has_cwr, size });
        for header in [
            VnetHeader::COMPLETE,
            VnetHeader::VERIFIED,
            VnetHeader { checksum: partial, ..VnetHeader::COMPLETE },
            VnetHeader { checksum: partial, segmentation: cut(Kind::Tcp4, true), header_len: 66 },
            VnetHeader { checksum: partial, segmentation: cut(Kind::Tcp6, false), header_len: 86 },
            VnetHeader { checksum: partial, segmentation: cut(Kind::Udp, false), header_len: 42 },
        ] {
            assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(header));
        }
        assert_eq!(VnetHeader::COMPLETE.to_bytes(), [0; HEADER_LEN]);
    }

    #[test]
    fn super_frame_is_its_segments_with_a_header_each() {
        let size = NonZeroU16::new(1_000).expect("not zero");
        let of = |kind, len| {
            let cut = Segmentation { kind, has_cwr: false, size };
            let checksum = Checksum::Partial { start: 34, offset: 16 };
            let mut head = [0; 66];
            head[46] = 0x80;
            VnetHeader { checksum, segmentation: Some(cut), header_len: 0 }.on_the_wire(&head, len)
        };
        assert_eq!(of(Kind::Tcp4, 66 + 2_001), (3, 2_001 + 3 * 66));
        assert_eq!(of(Kind::Udp, 42 + 2_000), (2, 2_000 + 2 * 42));
        assert_eq!(of(Kind::Udp, 10), (1, 10), "shorter than its headers");
        assert_eq!(VnetHeader::COMPLETE.on_the_wire(&[], 1_422), (1, 1_422));
    }

    #[test]
    fn kinds_that_were_not_asked_for_and_segments_of_nothing_are_malformed() {
        for kind in [2, 3, 6, 0x20, 0x43, 0x7f] {
            assert_eq!(VnetHeader::parse(&[1, kind, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0]), Err(Malformed), "{kind}");
        }
        assert_eq!(VnetHeader::parse(&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed));
    }
}
