//! The buffer in which packets are made at their final offset and leave as runs.
//!
//! A packet is written at the tail and committed, or overwritten by the next one. Packets to one
//! receiver that follow each other with one traffic class and equal sizes (only the last may be
//! shorter) form a run, which the kernel cuts again (`UDP_SEGMENT`); they lie next to each other, so a
//! run is never copied.
//!
//! The arena takes packets only against a token of its own kind, so what was not sealed cannot be
//! in the arena for ESP. Used by `datapath::tunnel`.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::Range;

use crate::id::{LinkSlot, VtepSlot};
use crate::sa::Sealed;
use crate::wire::traffic_class::TrafficClass;
use crate::wire::{esp, ethernet};

/// The largest MTU of a network, in bytes of IP.
pub const MAX_MTU: u16 = 16_000;
/// The longest frame: the largest MTU and the Ethernet header. A VLAN tag makes it no longer: what it
/// carries is shorter.
pub const MAX_FRAME_LEN: usize = MAX_MTU as usize + ethernet::HEADER_LEN;

/// Packets on their way out, grouped in runs.
#[derive(Debug)]
pub struct SendArena<P: SendToken> {
    bytes: Box<[u8]>,
    tail: usize,
    runs: Vec<Span<P::Peer>>,
    token: PhantomData<P>,
}

impl<P: SendToken> SendArena<P> {
    /// An empty arena. This is all that it will ever allocate.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into(),
            tail: 0,
            runs: Vec::with_capacity(MAX_RUNS),
            token: PhantomData,
        }
    }

    /// Whether one more packet of any size can be made.
    pub fn has_room(&self) -> bool {
        self.tail + PACKET_ROOM <= self.bytes.len() && self.runs.len() < MAX_RUNS
    }

    /// Whether `bytes` of packets can be made without sending what is here.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.tail + bytes + PACKET_ROOM <= self.bytes.len() && self.runs.len() < MAX_RUNS
    }

    /// The place of the next packet: room for the longest frame with headers and trailer.
    ///
    /// # Panics
    /// Without [`Self::has_room`].
    pub fn next_packet(&mut self) -> &mut [u8] {
        &mut self.bytes[self.tail..self.tail + PACKET_ROOM]
    }

    /// What lies at `range` of the place of the next packet.
    pub(super) fn peek(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[self.tail..][range]
    }

    /// The same, to be changed.
    pub(super) fn peek_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.bytes[self.tail..][range]
    }

    /// Takes the packet that was made at the tail, for `peer` at `to`; its outer header is to say `class`.
    pub fn commit(&mut self, peer: P::Peer, to: SocketAddr, class: TrafficClass, token: P) {
        let len = token.packet_len();
        self.tail += len;
        let Some(run) = self.runs.last_mut().filter(|run| run.accepts(to, class, len)) else {
            let (start, end) = (self.tail - len, self.tail);
            self.runs.push(Span { peer, to, class, start, end, segment: len, packets: 1 });
            return;
        };
        run.end = self.tail;
        run.packets += 1;
    }

    /// The runs, in the order of their first packets.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_, P>> {
        self.runs.iter().map(|run| Run {
            peer: run.peer,
            to: run.to,
            class: run.class,
            bytes: &self.bytes[run.start..run.end],
            segment: run.segment,
            packets: run.packets,
        })
    }

    /// Forgets what has been sent.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.tail = 0;
    }
}

impl<P: SendToken> Default for SendArena<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// Packets to one receiver that one system call can send.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a, P: SendToken> {
    peer: P::Peer,
    to: SocketAddr,
    class: TrafficClass,
    bytes: &'a [u8],
    segment: usize,
    packets: usize,
}

impl<'a, P: SendToken> Run<'a, P> {
    /// The link or VTEP of its first packet; the others are to the same node, maybe of other networks.
    pub fn peer(&self) -> P::Peer {
        self.peer
    }

    /// The receiver.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// What their outer headers are to say.
    pub fn class(&self) -> TrafficClass {
        self.class
    }

    /// The packets, one behind the other.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of every packet but the last, which may have fewer.
    pub fn segment(&self) -> u16 {
        u16::try_from(self.segment).expect("a packet is shorter than a UDP datagram may be")
    }

    /// How many packets there are.
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// Each packet by itself.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a, P> {
        self.bytes.chunks(self.segment)
    }
}

/// Proof that a packet of a kind is complete at the tail of an arena.
pub trait SendToken {
    /// What packets of this kind are sent to.
    type Peer: Copy + std::fmt::Debug;

    /// Bytes of the packet.
    fn packet_len(&self) -> usize;
}

impl SendToken for Sealed {
    type Peer = LinkSlot;

    fn packet_len(&self) -> usize {
        self.len()
    }
}

/// Proof that a plain VXLAN packet of an unencrypted network was written; only the tunnel of such
/// a network makes one.
#[derive(Debug)]
#[must_use = "an encapsulated packet is to be sent"]
pub struct Encapsulated {
    pub(super) len: usize,
}

impl SendToken for Encapsulated {
    type Peer = VtepSlot;

    fn packet_len(&self) -> usize {
        self.len
    }
}

/// Where a run lies.
#[derive(Debug)]
struct Span<R> {
    peer: R,
    to: SocketAddr,
    class: TrafficClass,
    start: usize,
    end: usize,
    segment: usize,
    packets: usize,
}

impl<R> Span<R> {
    /// Whether a packet of `len` bytes to `to` may follow: a shorter one closes the run.
    fn accepts(&self, to: SocketAddr, class: TrafficClass, len: usize) -> bool {
        let bytes = self.end - self.start;
        self.to == to
            && self.class == class
            && len <= self.segment
            && bytes == self.segment * self.packets
            && self.packets < MAX_PACKETS_PER_RUN
            && bytes + len <= MAX_RUN_BYTES
    }
}

/// `UDP_MAX_SEGMENTS` of Linux before 6.9 (include/linux/udp.h); later kernels take more.
const MAX_PACKETS_PER_RUN: usize = 64;
/// The longest payload of UDP over IPv4, which bounds what `UDP_SEGMENT` takes at once.
const MAX_RUN_BYTES: usize = 65_507;
/// Room for one packet in the making.
const PACKET_ROOM: usize = esp::HEADROOM + MAX_FRAME_LEN + esp::MAX_TRAILER_LEN;
/// Some 80 packets of 1,500 bytes, or a whole super-frame behind as much again: little enough that
/// it stays in a core's cache while it is written, sealed and copied by the kernel.
const CAPACITY: usize = 1 << 17;
const MAX_RUNS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(sizes: &[(u16, usize)]) -> Vec<(u16, usize, usize)> {
        let mut arena = SendArena::<Encapsulated>::new();
        for &(port, len) in sizes {
            assert!(arena.has_room());
            arena.next_packet()[..len].fill(7);
            arena.commit(VtepSlot::new(3), to(port), TrafficClass::ZERO, Encapsulated { len });
        }
        arena.runs().map(|run| (run.to().port(), run.packets(), run.bytes().len())).collect()
    }

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn run_has_one_traffic_class() {
        let mut arena = SendArena::<Encapsulated>::new();
        for class in [2, 2, 3, 2, 0] {
            arena.commit(VtepSlot::new(3), to(1), TrafficClass::new(class), Encapsulated { len: 100 });
        }
        let runs: Vec<_> = arena.runs().map(|run| (run.class().get(), run.packets())).collect();
        assert_eq!(runs, [(2, 2), (3, 1), (2, 1), (0, 1)]);
    }

    #[test]
    fn run_names_the_peer_of_its_first_packet() {
        let mut arena = SendArena::<Encapsulated>::new();
        for (peer, port) in [(5, 1), (6, 1), (7, 2)] {
            arena.commit(VtepSlot::new(peer), to(port), TrafficClass::ZERO, Encapsulated { len: 100 });
        }
        let runs: Vec<_> = arena.runs().map(|run| (run.peer().get(), run.packets())).collect();
        assert_eq!(runs, [(5, 2), (7, 1)]);
    }

    #[test]
    fn equal_sizes_share_a_run_and_a_shorter_packet_closes_it() {
        assert_eq!(runs(&[(1, 100), (1, 100), (1, 60), (1, 60)]), [(1, 3, 260), (1, 1, 60)]);
    }

    #[test]
    fn longer_packet_or_other_receiver_begins_a_run() {
        assert_eq!(runs(&[(1, 100), (1, 101), (2, 101)]), [(1, 1, 100), (1, 1, 101), (2, 1, 101)]);
    }

    #[test]
    fn run_ends_at_64_packets_and_at_the_length_of_a_datagram() {
        let small = runs(&[(1, 100); 65]);
        assert_eq!(small, [(1, 64, 6400), (1, 1, 100)]);
        let large = runs(&[(1, 16_000); 5]);
        assert_eq!(large, [(1, 4, 64_000), (1, 1, 16_000)]);
    }

    #[test]
    fn uncommitted_packet_is_overwritten_and_cleared_arena_is_empty() {
        let mut arena = SendArena::<Encapsulated>::new();
        arena.next_packet().fill(1);
        assert_eq!(arena.runs().count(), 0);
        arena.commit(VtepSlot::new(3), to(1), TrafficClass::ZERO, Encapsulated { len: 9 });
        arena.clear();
        assert_eq!(arena.runs().count(), 0);
    }

    #[test]
    fn room_ends_before_the_bytes_do() {
        let mut arena = SendArena::<Encapsulated>::new();
        while arena.has_room() {
            assert_eq!(arena.next_packet().len(), PACKET_ROOM);
            arena.commit(VtepSlot::new(3), to(1), TrafficClass::ZERO, Encapsulated { len: PACKET_ROOM });
        }
    }
}
