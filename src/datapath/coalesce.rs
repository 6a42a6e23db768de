//! Merges received segments of a flow into one super-frame for the container's kernel, by the rules of
//! the kernel's own (`tcp_gro_receive`, `udp_gro_receive_segment`, `inet_gro_receive`).
//!
//! One flow is open at a time, so frames never overtake each other. Pieces are borrowed from the buffer of
//! the batch and written with one call when the batch has been opened (`gathered`); nothing is copied.
//! Every piece's checksum has been found right before it is merged, or left undone by a sender who is
//! believed, because the merged frame says so: a wrong one goes to the container alone and as it is. A run
//! ends with the batch, with a frame that does not follow, with a shorter segment, with PSH or FIN, after
//! 64 segments, and at 64 KiB. What follows in a run came the same way and has the same addresses, protocol
//! and ports as its head, so that nothing else of it has to be judged. Used by `datapath::ingress`.

use std::num::NonZeroU16;

use super::egress::{deliver, of_unfinished};
use super::gathered::Gathered;
use super::segment::{IPV4_CHECKSUM, IPV4_ID, IPV4_TOTAL_LEN, IPV6_PAYLOAD_LEN};
use super::segment::{octets16, partial_of, put, udp_len, word};
use super::{Context, Outlet};
use crate::drop_reason::DropReason;
use crate::id::{LinkSlot, PortSlot, Vni, VtepSlot};
use crate::wire::transport::{ACK, ECE, FIN, PSH, Protocol, TCP_FLAGS, TCP_HEADER_LEN, Transport};
use crate::wire::vnet_hdr::{Kind, Segmentation, VnetHeader};
use crate::wire::vxlan::RemoteChecksum;
use crate::wire::{checksum, ethernet, ipv4, ipv6};

/// What a port takes as super-frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merging {
    /// Segments of TCP.
    pub tcp: bool,
    /// Datagrams of UDP.
    pub udp: bool,
}

impl Merging {
    pub(super) fn takes(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        }
    }
}

/// A frame that may go to a container.
#[derive(Debug)]
pub struct Arrived<'p> {
    pub(super) bytes: &'p mut [u8],
    transport: Option<Transport>,
    /// The checksum covers the pseudo header alone, and an authentic packet says so.
    is_left: bool,
}

impl<'p> Arrived<'p> {
    /// Compares what the sender left to do, if anything, with the frame.
    ///
    /// # Errors
    /// `MalformedVxlan` when that is not the checksum of the frame's TCP or UDP.
    #[inline]
    pub fn new(bytes: &'p mut [u8], left: Option<RemoteChecksum>) -> Result<Self, DropReason> {
        let transport = Transport::locate(bytes).ok().flatten();
        let is_left = left.is_some();
        if is_left && left.map(RemoteChecksum::state) != transport.as_ref().and_then(partial_of) {
            return Err(DropReason::MalformedVxlan);
        }
        Ok(Self { bytes, transport, is_left })
    }

    /// What the container's kernel is told of it.
    pub(super) fn header(&self) -> VnetHeader {
        of_unfinished(self.transport.filter(|_| self.is_left))
    }

    fn is_checksum_right(&self, transport: &Transport) -> bool {
        self.is_left || is_checksum_right(self.bytes, transport)
    }
}

/// The way on which a frame came: whose endpoints may speak there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A link, which belongs to one network.
    Link(LinkSlot),
    /// A VTEP, in this network.
    Vtep(VtepSlot, Vni),
}

/// The frames of one batch on their way to containers; `'p` is the batch.
#[derive(Debug)]
#[must_use = "what has gathered is to be flushed"]
pub struct Coalescer<'p> {
    run: Option<Run<'p>>,
    gathered: Gathered<'p>,
}

impl<'p> Coalescer<'p> {
    /// Nothing has gathered.
    pub fn new() -> Self {
        Self { run: None, gathered: Gathered::default() }
    }

    /// Takes a frame that continues the run; gives back one that does not and has to be judged.
    ///
    /// # Errors
    /// The frame.
    #[inline]
    pub fn continue_run(&mut self, origin: Origin, frame: Arrived<'p>) -> Result<(), Arrived<'p>> {
        let (Some(run), Some(transport)) = (&mut self.run, &frame.transport) else { return Err(frame) };
        let follows = run.origin == origin
            && is_mergeable(frame.bytes, transport)
            && run.is_followed_by(frame.bytes, transport)
            && frame.is_checksum_right(transport);
        if !follows {
            return Err(frame);
        }
        self.gathered.add(run.append(frame.bytes, transport));
        if run.is_closed {
            self.finish_run();
        }
        Ok(())
    }

    /// Takes a frame that continues no run and may go to `port`.
    pub fn push(
        &mut self,
        cx: &Context<'_>,
        port: PortSlot,
        origin: Origin,
        frame: Arrived<'p>,
        outlet: &mut impl Outlet,
    ) {
        let Some(transport) = frame.transport.filter(|transport| is_mergeable(frame.bytes, transport)) else {
            return self.pass(cx, port, &frame, outlet);
        };
        let merging = outlet.merging(port);
        let is_merged = match transport.protocol {
            Protocol::Tcp => merging.tcp && may_lead(frame.bytes, &transport),
            Protocol::Udp => merging.udp,
        };
        if is_merged && frame.is_checksum_right(&transport) {
            self.finish_run();
            if !self.gathered.has_room() {
                self.gathered.deliver(cx, outlet);
            }
            self.gathered.begin();
            self.run = Some(Run::new(port, origin, frame, transport));
        } else {
            self.pass(cx, port, &frame, outlet);
        }
    }

    /// Hands over what has gathered.
    pub fn flush(&mut self, cx: &Context<'_>, outlet: &mut impl Outlet) {
        self.finish_run();
        self.gathered.deliver(cx, outlet);
    }

    fn finish_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let port = run.port;
        let (head, header) = run.close();
        self.gathered.finish(port, head, header);
    }

    /// Hands over one frame behind what has gathered.
    fn pass(&mut self, cx: &Context<'_>, port: PortSlot, frame: &Arrived<'_>, outlet: &mut impl Outlet) {
        self.flush(cx, outlet);
        deliver(cx, port, &frame.header(), &[frame.bytes], outlet);
    }
}

impl Default for Coalescer<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// A super-frame in the making.
#[derive(Debug)]
struct Run<'p> {
    port: PortSlot,
    origin: Origin,
    /// The first segment, as it came until the run is closed.
    head: &'p mut [u8],
    /// What the container's kernel is told of the head, should nothing follow.
    alone: VnetHeader,
    transport: Transport,
    /// Octets of payload in each segment but the last.
    segment: usize,
    segments: usize,
    /// Octets of the frame with everything appended.
    len: usize,
    next_sequence: u32,
    /// How IPv4 identifications go on, once two segments have shown it.
    id_step: Option<u16>,
    /// FIN and PSH of the last segment.
    last_flags: u8,
    is_closed: bool,
}

impl<'p> Run<'p> {
    fn new(port: PortSlot, origin: Origin, frame: Arrived<'p>, transport: Transport) -> Self {
        let alone = if frame.is_left { frame.header() } else { VnetHeader::VERIFIED };
        let (head, segment) = (frame.bytes, transport.end - transport.payload);
        Self {
            port,
            origin,
            transport,
            segment,
            segments: 1,
            len: head.len(),
            next_sequence: sequence_behind(head, &transport),
            id_step: None,
            last_flags: 0,
            is_closed: false,
            head,
            alone,
        }
    }

    /// Whether the kernel would merge `frame`, but for its checksum.
    #[inline]
    fn is_followed_by(&self, frame: &[u8], other: &Transport) -> bool {
        let (head, transport) = (&*self.head, &self.transport);
        let &Transport { protocol, is_ipv6, network, start, payload, end } = other;
        let fits = end - payload <= self.segment
            && self.segments < MAX_SEGMENTS
            && self.len + (end - payload) <= MAX_LEN;
        // Both have the shortest IP header, so `start` follows from the version and from `network`, and
        // both or neither have a tag, which with the EtherType stands in front of that.
        fits && protocol == transport.protocol
            && is_ipv6 == transport.is_ipv6
            && network == transport.network
            && payload == transport.payload
            && same::<{ ethernet::ADDRESSES_LEN }>(head, frame, 0)
            && if is_ipv6 {
                // Tag, EtherType, version, class and flow label; next header, hop limit, addresses, ports.
                same::<8>(head, frame, network - 4) && same::<38>(head, frame, network + 6)
            } else {
                // Tag, EtherType, version, class; DF, TTL, protocol; addresses, ports.
                same::<6>(head, frame, network - 4)
                    && same::<4>(head, frame, network + 6)
                    && same::<12>(head, frame, network + 12)
                    && self.id_follows(frame)
            }
            && match protocol {
                Protocol::Tcp => {
                    let flags = [start + TCP_FLAGS].map(|at| (head[at], frame[at]))[0];
                    sequence(frame, start) == self.next_sequence
                        // Acknowledgment and header length; window; urgent pointer and options.
                        && same::<5>(head, frame, start + 8)
                        && (flags.0 ^ flags.1) & !(FIN | PSH) == 0
                        && same::<2>(head, frame, start + 14)
                        && head[start + 18..payload] == frame[start + 18..payload]
                }
                Protocol::Udp => true,
            }
    }

    /// With DF the identification may stand still (RFC 6864 §4.1), else it counts.
    fn id_follows(&self, frame: &[u8]) -> bool {
        let step = self.id_step_to(frame);
        let counted = u16::from_be_bytes(octets16(self.segments));
        match self.id_step {
            Some(0) => step == 0,
            Some(_) => step == counted,
            None => step == counted || step == 0 && self.head[self.transport.network + IPV4_FLAGS] & DF != 0,
        }
    }

    /// How much larger the identification of `frame` is than that of the head.
    fn id_step_to(&self, frame: &[u8]) -> u16 {
        let at = self.transport.network + IPV4_ID;
        word(frame, at).wrapping_sub(word(self.head, at))
    }

    /// Takes a frame that follows; its payload.
    fn append(&mut self, frame: &'p [u8], transport: &Transport) -> &'p [u8] {
        let payload = &frame[transport.payload..transport.end];
        if !transport.is_ipv6 && self.id_step.is_none() {
            self.id_step = Some(self.id_step_to(frame));
        }
        self.segments += 1;
        self.len += payload.len();
        self.is_closed = payload.len() < self.segment || self.segments == MAX_SEGMENTS;
        if transport.protocol == Protocol::Tcp {
            self.next_sequence = sequence_behind(frame, transport);
            self.last_flags = frame[transport.start + TCP_FLAGS] & (FIN | PSH);
            self.is_closed |= self.last_flags != 0;
        }
        payload
    }

    /// The head with headers that are true of the whole, and what the kernel is told of it.
    fn close(self) -> (&'p [u8], VnetHeader) {
        let Self { head, transport, segment, len, alone, .. } = self;
        let &Transport { protocol, is_ipv6, network, start, payload, .. } = &transport;
        let size = u16::try_from(segment).ok().and_then(NonZeroU16::new);
        let header_len = u16::try_from(payload).ok();
        let (Some(size), Some(header_len), Some(checksum)) = (size, header_len, partial_of(&transport))
        else {
            return (head, alone);
        };
        if self.segments == 1 {
            return (head, alone);
        }
        let packet = &mut head[network..];
        if is_ipv6 {
            put(packet, IPV6_PAYLOAD_LEN, octets16(len - network - ipv6::HEADER_LEN));
        } else {
            let (before, total_len) = (word(packet, IPV4_TOTAL_LEN), octets16(len - network));
            let sum = checksum::adjusted(word(packet, IPV4_CHECKSUM), before.to_be_bytes(), total_len);
            put(packet, IPV4_TOTAL_LEN, total_len);
            put(packet, IPV4_CHECKSUM, sum.to_be_bytes());
        }
        let kind = match protocol {
            Protocol::Tcp => {
                head[start + TCP_FLAGS] |= self.last_flags;
                if is_ipv6 { Kind::Tcp6 } else { Kind::Tcp4 }
            }
            Protocol::Udp => {
                put(head, start + 4, octets16(len - start));
                Kind::Udp
            }
        };
        let sum = transport.pseudo_header(head, u16::from_be_bytes(octets16(len - start)));
        put(head, start + protocol.checksum_offset(), sum.folded().to_be_bytes());
        let segmentation = Some(Segmentation { kind, has_cwr: false, size });
        (head, VnetHeader { checksum, segmentation, header_len })
    }
}

/// Whether a frame may be part of a run: data in TCP or UDP behind a plain IP header that is right,
/// no fragment, nothing behind the packet.
fn is_mergeable(frame: &[u8], transport: &Transport) -> bool {
    let &Transport { protocol, is_ipv6, network, start, payload, end } = transport;
    let header = &frame[network..start];
    let is_plain = if is_ipv6 {
        header.len() == ipv6::HEADER_LEN
    } else {
        header.len() == ipv4::HEADER_LEN && header[IPV4_FLAGS] & !DF == 0 && checksum::plain(header) == 0
    };
    let has_checksum = match protocol {
        Protocol::Tcp => true,
        Protocol::Udp => udp_len(frame, start) == end - start && word(frame, start + 6) != 0,
    };
    is_plain && has_checksum && payload < end && end == frame.len()
}

/// Whether a TCP segment may be the first of a run. One with CWR may not: with Accurate ECN the flag
/// is a bit of a counter (RFC 9768), so newer kernels merge it with no segment that has it not, and
/// older ones with none that has it.
fn may_lead(frame: &[u8], transport: &Transport) -> bool {
    let flags = frame[transport.start + TCP_FLAGS];
    flags & ACK != 0 && flags & !(ACK | ECE) == 0
}

#[inline]
fn is_checksum_right(frame: &[u8], transport: &Transport) -> bool {
    let covered = &frame[transport.start..transport.end];
    let sum = transport.pseudo_header(frame, u16::from_be_bytes(octets16(covered.len())));
    sum.plus(covered).checksum() == 0
}

/// Whether the `N` octets at a place are those of the other, and both have them.
#[inline]
fn same<const N: usize>(one: &[u8], other: &[u8], at: usize) -> bool {
    let octets = |frame: &[u8]| frame.get(at..)?.first_chunk::<N>().copied();
    octets(one).is_some_and(|octets_of_one| octets(other) == Some(octets_of_one))
}

fn sequence(frame: &[u8], start: usize) -> u32 {
    u32::from_be_bytes([0, 1, 2, 3].map(|at| frame[start + 4 + at]))
}

fn sequence_behind(frame: &[u8], transport: &Transport) -> u32 {
    let len = u32::try_from(transport.end - transport.payload).expect("a frame is shorter than 64 KiB");
    match transport.protocol {
        Protocol::Tcp => sequence(frame, transport.start).wrapping_add(len),
        Protocol::Udp => 0,
    }
}

const IPV4_FLAGS: usize = 6;
/// Do not fragment, in the upper octet of the flags.
const DF: u8 = 0x40;
/// `UDP_MAX_SEGMENTS` of Linux before 6.9: a kernel refuses longer runs of datagrams.
pub(super) const MAX_SEGMENTS: usize = 64;
/// The longest packet of IPv4, with its Ethernet header; with a tag, that takes its part.
const MAX_LEN: usize = 0xffff + ethernet::HEADER_LEN;

const _: () = assert!(TCP_HEADER_LEN == 20, "the urgent pointer ends the fixed header");
