//! What a lane reads in a turn: so much off one container's TAP, and one batch off a socket.
//!
//! A container's share of a turn is bounded in frames, in octets, and in the packets that are made of them:
//! a super-frame of small segments, or one frame for very many nodes, is soon read and long in the making.

use std::ops::ControlFlow;

use super::busy_poll::Work;
use super::turn::{ESP_TOKEN, Wire};
use crate::datapath::{Coalescer, Context, Egress, Ingress};
use crate::drop_reason::DropReason;
use crate::id::PortSlot;
use crate::io::tap;
use crate::io::udp::{Datagram, RecvRing};

/// What a port has had of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Share {
    /// What was read.
    pub(super) taken: Work,
    /// The packets that were made of it.
    made: usize,
}

impl Share {
    fn is_used_up(self, most: usize) -> bool {
        self.taken.packets >= most || self.taken.bytes >= BYTES_PER_TURN || self.made >= PACKETS_PER_TURN
    }

    /// Whether it was used up by small frames, or small segments, and not by a stream's octets.
    pub(super) fn is_flood(self) -> bool {
        let Self { taken: Work { packets, bytes }, made } = self;
        packets >= FRAMES_PER_TURN || made >= PACKETS_PER_TURN && bytes < BYTES_PER_TURN
    }
}

/// Reads some frames of a port, `most` of them at most, and says how much; breaks when its device is gone.
pub(super) fn read_port(
    cx: &Context<'_>,
    egress: &mut Egress,
    wire: &mut Wire,
    port: PortSlot,
    most: usize,
) -> ControlFlow<(), Share> {
    let mut share = Share::default();
    while !share.is_used_up(most) {
        let place = egress.reserve(cx.tables, port, wire);
        let Some(tap) = wire.ports.readable(port, cx.now) else { break };
        // Whoever in the container may open its TAP can give the device a longer vnet header, of which
        // the kernel leaves the rest unwritten (`tun_put_user`): what lay here would be read as a frame.
        place.head[..UNWRITTEN].fill(0);
        match tap.read_frame(place.head, place.rest) {
            Ok(Some((header, frame_len))) => {
                wire.carried.add(&header, place.head, frame_len);
                wire.ports.charge(port, &header, place.head, frame_len, cx.now);
                share.made += egress.submit(cx, port, &header, frame_len, wire);
                share.taken.add(1, frame_len);
            }
            Ok(None) => break,
            Err(error) if tap::is_unreadable_frame(&error) => {
                cx.counters.drop_at_port(port, DropReason::MalformedFrame);
                share.taken.add(1, 0);
            }
            Err(error) if tap::is_gone(&error) => return ControlFlow::Break(()),
            Err(error) => {
                tracing::warn!(%error, %port, "a TAP cannot be read and is given up");
                return ControlFlow::Break(());
            }
        }
    }
    ControlFlow::Continue(share)
}

/// Takes one batch off the socket with this token, of so many messages at most; how much that was.
pub(super) fn read_socket(
    cx: &Context<'_>,
    ingress: &mut Ingress,
    ring: &mut RecvRing,
    wire: &mut Wire,
    (token, most): (u64, usize),
) -> Work {
    let Some(socket) = wire.receiver(token) else { return Work::default() };
    let packets = socket.recv_some(ring, most).unwrap_or_else(|error| {
        // It is that of an earlier datagram (ICMP), and the socket works on.
        tracing::debug!(%error, "receiving failed");
        0
    });
    let bytes = ring.bytes();
    let mut batch = Coalescer::new();
    if token == ESP_TOKEN {
        for Datagram { from, class, bytes } in ring.datagrams() {
            ingress.receive_esp(cx, from, class, bytes, &mut batch, wire);
        }
    } else {
        for Datagram { from, class, bytes } in ring.datagrams() {
            ingress.receive_vxlan(cx, from, class, bytes, &mut batch, wire);
        }
    }
    batch.flush(cx, wire);
    Work { packets, bytes }
}

/// Enough to fill a run of `UDP_SEGMENT`, few enough that other TAPs do not wait long.
pub(super) const FRAMES_PER_TURN: usize = 64;
/// The same for super-frames: four of the longest. What a container has queued for a peer may be
/// more than the peer's socket buffer holds, and its acknowledgments wait meanwhile.
const BYTES_PER_TURN: usize = 1 << 18;
/// The same for what is made of them. No less than five super-frames of a stream in segments of the
/// least MTU of IPv6 have, so that a stream's turn ends by its octets.
const PACKETS_PER_TURN: usize = 256;
/// Both addresses: what is skipped beyond them belongs to a frame without source, which is refused.
const UNWRITTEN: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of so many octets, each of which becomes so many packets, until the turn ends: how many
    /// there were, and whether that was a flood.
    fn turn_of(octets: usize, packets: usize) -> (usize, bool) {
        let mut share = Share::default();
        while !share.is_used_up(FRAMES_PER_TURN) {
            share.taken.add(1, octets);
            share.made += packets;
        }
        (share.taken.packets, share.is_flood())
    }

    #[test]
    fn stream_has_its_octets_whatever_its_mtu() {
        for payload in [8_948, 1_356, 1_208] {
            assert_eq!(turn_of(60_000, 60_000_usize.div_ceil(payload)), (5, false), "segments of {payload}");
        }
        assert_eq!(turn_of(60_000, 1), (5, false), "to the container next door");
    }

    #[test]
    fn single_frames_are_a_flood_at_64() {
        assert_eq!(turn_of(60, 1), (64, true));
        assert_eq!(turn_of(60, 0), (64, true), "refused or answered");
    }

    #[test]
    fn small_segments_and_copies_for_many_nodes_end_the_turn_and_are_a_flood() {
        assert_eq!(turn_of(106, 64), (4, true), "UDP in segments of one octet");
        assert_eq!(turn_of(2_102, 2_048), (1, true), "as small as a frame can be cut");
        assert_eq!(turn_of(300, 100), (3, true), "a broadcast to a hundred nodes");
    }

    #[test]
    fn conversation_has_one_frame() {
        assert!(Share { taken: Work { packets: 1, bytes: 80 }, made: 1 }.is_used_up(1));
        assert!(!Share::default().is_used_up(1));
    }
}
