//! Cuts a super-frame of a container's kernel into frames of the network's MTU, as the kernel's own
//! segmentation would (`tcp_gso_segment`, `__udp_gso_segment`).
//!
//! A segment is written once, at the place from which it is sent. The kernel is not believed: what
//! the vnet header says has to agree with the frame. Used by `datapath::egress`.

use super::DropReason;
use crate::wire::checksum::{self, Sum};
use crate::wire::ipv6;
use crate::wire::transport::{CWR, FIN, PSH, Protocol, TCP_FLAGS, Transport};
use crate::wire::vnet_hdr::{Checksum, Kind, Segmentation, VnetHeader};

/// How a super-frame is to be cut; the frame itself is handed in with every call, unchanged.
#[derive(Debug, Clone, Copy)]
pub struct SuperFrame {
    transport: Transport,
    /// Octets of payload in every segment but the last.
    segment: usize,
    header: VnetHeader,
    /// Of the IPv4 header without length, identification and checksum; each segment has its own.
    ipv4: Sum,
}

impl SuperFrame {
    /// Compares what the vnet header says of `frame` with the frame.
    ///
    /// # Errors
    /// `MalformedFrame` when they contradict each other.
    pub fn parse(frame: &[u8], header: &VnetHeader, cut: Segmentation) -> Result<Self, DropReason> {
        let malformed = DropReason::MalformedFrame;
        let transport = Transport::locate(frame).ok().flatten().ok_or(malformed)?;
        let &Transport { protocol, is_ipv6, network, start, payload, end } = &transport;
        let is_its_kind = match cut.kind {
            Kind::Tcp4 => protocol == Protocol::Tcp && !is_ipv6,
            Kind::Tcp6 => protocol == Protocol::Tcp && is_ipv6,
            Kind::Udp => protocol == Protocol::Udp && udp_len(frame, start) == end - start,
        };
        // Segments get checksums of their own, for which the kernel has prepared the field.
        let checksum = partial_of(&transport).ok_or(malformed)?;
        if !is_its_kind || header.checksum != checksum || end != frame.len() || payload == end {
            return Err(malformed);
        }
        let has_cwr = protocol == Protocol::Tcp && frame[start + TCP_FLAGS] & CWR != 0;
        let header = VnetHeader {
            checksum,
            segmentation: Some(Segmentation { has_cwr, ..cut }),
            header_len: u16::try_from(payload).map_err(|_| malformed)?,
        };
        let ipv4 = if is_ipv6 { Sum::ZERO } else { ipv4_sum(&frame[network..start]) };
        let this = Self { transport, segment: usize::from(cut.size.get()), header, ipv4 };
        if this.segments() > MAX_SEGMENTS { Err(malformed) } else { Ok(this) }
    }

    /// What another kernel is told of the uncut frame.
    pub fn header(&self) -> &VnetHeader {
        &self.header
    }

    /// What it is a super-frame of.
    pub fn protocol(&self) -> Protocol {
        self.transport.protocol
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        (self.transport.end - self.transport.payload).div_ceil(self.segment)
    }

    /// Octets of the longest segment's frame.
    pub fn longest(&self) -> usize {
        self.transport.payload + self.segment.min(self.transport.end - self.transport.payload)
    }

    /// Writes segment number `index` of `frame` to `place`, its checksum whole or covering the pseudo
    /// header alone (`is_left`); octets of its frame.
    ///
    /// # Panics
    /// When there is no such segment, or `place` is shorter than [`Self::longest`].
    #[inline]
    pub fn write(&self, frame: &[u8], index: usize, place: &mut [u8], is_left: bool) -> usize {
        let &Transport { protocol, is_ipv6, network, start, payload, end } = &self.transport;
        let from = payload + index * self.segment;
        let to = end.min(from + self.segment);
        let len = payload + (to - from);
        let place = &mut place[..len];
        place[..payload].copy_from_slice(&frame[..payload]);
        place[payload..].copy_from_slice(&frame[from..to]);
        let (packet, total_len) = (&mut place[network..], len - network);
        if is_ipv6 {
            put(packet, IPV6_PAYLOAD_LEN, octets16(total_len - ipv6::HEADER_LEN));
        } else {
            let total_len = octets16(total_len);
            let id = word(packet, IPV4_ID).wrapping_add(u16::from_be_bytes(octets16(index))).to_be_bytes();
            put(packet, IPV4_TOTAL_LEN, total_len);
            put(packet, IPV4_ID, id);
            put(packet, IPV4_CHECKSUM, self.ipv4.plus(&total_len).plus(&id).checksum().to_be_bytes());
        }
        match protocol {
            Protocol::Tcp => {
                let sequence = u32::from_be_bytes([0, 1, 2, 3].map(|at| frame[start + 4 + at]));
                let ahead = u32::try_from(from - payload).expect("a super-frame is shorter than 64 KiB");
                put(place, start + 4, sequence.wrapping_add(ahead).to_be_bytes());
                if to < end {
                    place[start + TCP_FLAGS] &= !(FIN | PSH);
                }
                if index > 0 {
                    place[start + TCP_FLAGS] &= !CWR;
                }
            }
            Protocol::Udp => put(place, start + 4, octets16(len - start)),
        }
        // The field holds the sum of the pseudo header with the length of the whole; with a routing
        // header nobody but the sender's kernel could make it (RFC 8200 §8.1).
        let field = start + protocol.checksum_offset();
        let [high, low] = octets16(end - start);
        let sum = Sum::ZERO.plus(&frame[field..field + 2]).plus(&[!high, !low]).plus(&octets16(len - start));
        put(place, field, sum.folded().to_be_bytes());
        if !is_left {
            checksum::complete(place, start, protocol.checksum_offset())
                .expect("the field lies in the header");
        }
        len
    }
}

/// The state of the checksum of a packet whose transport is left to do.
pub(super) fn partial_of(transport: &Transport) -> Option<Checksum> {
    let start = u16::try_from(transport.start).ok()?;
    let offset = u16::try_from(transport.protocol.checksum_offset()).ok()?;
    Some(Checksum::Partial { start, offset })
}

/// The sum of an IPv4 header without the fields in which segments differ.
fn ipv4_sum(header: &[u8]) -> Sum {
    let flags_to_protocol = IPV4_ID + 2..IPV4_CHECKSUM;
    let first_word = 0..IPV4_TOTAL_LEN;
    Sum::ZERO.plus(&header[first_word]).plus(&header[flags_to_protocol]).plus(&header[IPV4_CHECKSUM + 2..])
}

/// A length of something that is in a frame.
#[expect(clippy::cast_possible_truncation, reason = "a frame's lengths were 16 bits wide when it was parsed")]
pub(super) fn octets16(len: usize) -> [u8; 2] {
    debug_assert!(len <= 0xffff, "{len}");
    (len as u16).to_be_bytes()
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, octets: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&octets);
}

pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// What the header of UDP at `start` says of its length.
pub(super) fn udp_len(frame: &[u8], start: usize) -> usize {
    usize::from(word(frame, start + 4))
}

// Where lengths and the like stand in an IP header.
pub(super) const IPV4_TOTAL_LEN: usize = 2;
pub(super) const IPV4_ID: usize = 4;
pub(super) const IPV4_CHECKSUM: usize = 10;
pub(super) const IPV6_PAYLOAD_LEN: usize = 4;

/// 64 KiB in the smallest segments that Linux makes: `TCP_MIN_SND_MSS` less full options is 36.
/// Fewer octets are for wearing out whoever cuts.
const MAX_SEGMENTS: usize = 2048;
