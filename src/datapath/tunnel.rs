//! The two ways of a frame to another node: ESP to a link, plain VXLAN to a VTEP.
//!
//! Each is bound to its own kind of directory and arena by its types, so `datapath::egress` forwards
//! for both with the same code and cannot mix them up. In either the frame lies [`Tunnel::OFFSET`]
//! bytes behind the tail of the arena, where the headers go in front of it.

use super::arena::{Encapsulated, MAX_FRAME_LEN, SendArena};
use super::segment::SuperFrame;
use super::{Context, Notice, NoticeLimit, Outlet};
use crate::drop_reason::DropReason;
use crate::forward::Remote;
use crate::id::{LinkSlot, NetSlot, Vni, VtepSlot};
use crate::sa::{OutboundSa, Sealed};
use crate::wire::traffic_class::TrafficClass;
use crate::wire::vnet_hdr::Checksum;
use crate::wire::vxlan::{LeftChecksums, RemoteChecksum};
use crate::wire::{esp, udp, vxlan};

/// One way to another node.
pub(super) trait Tunnel<R: Remote> {
    /// Where a frame lies behind the tail of the arena.
    const OFFSET: usize;

    /// The frame of `frame_len` bytes at the tail.
    fn frame(&self, frame_len: usize) -> &[u8];

    /// The same, to be changed.
    fn frame_mut(&mut self, frame_len: usize) -> &mut [u8];

    /// What may be left of a checksum in this state to the receiver's kernel.
    fn leave(&self, state: Checksum) -> Option<RemoteChecksum>;

    /// Sends the frame of `frame_len` bytes at the tail; its checksum is whole but for what is `left`.
    fn send(
        &mut self,
        to: R,
        frame_len: usize,
        flow: Flow,
        left: Option<RemoteChecksum>,
        outlet: &mut impl Outlet,
    ) -> Sent;

    /// Makes room for one more frame and gives its place, having sent what is in the way.
    fn next_frame(&mut self, outlet: &mut impl Outlet) -> &mut [u8];

    /// Sends what would be in the way of so many bytes of packets, so that they become one run.
    fn make_room(&mut self, bytes: usize, outlet: &mut impl Outlet);

    /// Notes at the receiver, in addition to the sending port, that packets were not sent.
    fn note_drops(&self, to: R, reason: DropReason, packets: usize);

    /// Cuts `frame` into the arena and sends the segments.
    fn send_segments(
        &mut self,
        to: R,
        cut: &SuperFrame,
        frame: &[u8],
        flow: Flow,
        outlet: &mut impl Outlet,
    ) -> SentPackets {
        self.make_room(cut.segments() * (cut.longest() + Self::OFFSET + esp::MAX_TRAILER_LEN), outlet);
        let left = self.leave(cut.header().checksum);
        for index in 0..cut.segments() {
            let len = cut.write(frame, index, self.next_frame(outlet), left.is_some());
            self.send(to, len, flow, left, outlet).map_err(|reason| Refused { reason, made: index })?;
        }
        Ok(cut.segments())
    }

    /// Copies `frame` into the arena and sends it.
    fn send_copy(&mut self, to: R, frame: &[u8], flow: Flow, outlet: &mut impl Outlet) -> SentPackets {
        self.next_frame(outlet)[..frame.len()].copy_from_slice(frame);
        self.send(to, frame.len(), flow, None, outlet)?;
        Ok(1)
    }
}

/// What the outer headers tell of the flow that a frame belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    /// Packets of one flow have one; it becomes a port.
    pub(super) hash: u64,
    /// Of the outer IP header.
    pub(super) class: TrafficClass,
}

/// Whether a frame is on its way.
pub(super) type Sent = Result<(), DropReason>;

/// How many packets were made of a frame.
pub(super) type SentPackets = Result<usize, Refused>;

/// Why a frame was not sent on, or not all of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub(super) reason: DropReason,
    /// Packets of it that had been made before.
    pub(super) made: usize,
}

impl Refused {
    /// Notes at the receiver what it is not sent of a frame of so many `packets`.
    pub(super) fn note<R: Remote>(&self, tunnel: &impl Tunnel<R>, to: R, packets: usize) {
        tunnel.note_drops(to, self.reason, packets - self.made);
    }
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Self {
        Self { reason, made: 0 }
    }
}

/// The lane's sending state of one link.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    /// Boxed, so that installing it moves no key.
    pub(super) outbound: Option<Box<OutboundSa>>,
    no_key_notice: NoticeLimit,
}

/// ESP to the links of one encrypted network.
pub(super) struct EspTunnel<'a> {
    pub(super) cx: Context<'a>,
    pub(super) arena: &'a mut SendArena<Sealed>,
    pub(super) links: &'a mut Vec<LinkState>,
    pub(super) net: NetSlot,
    pub(super) vni: Vni,
    pub(super) checksums: LeftChecksums,
}

impl Tunnel<LinkSlot> for EspTunnel<'_> {
    const OFFSET: usize = esp::HEADROOM;

    fn frame(&self, frame_len: usize) -> &[u8] {
        self.arena.peek(Self::OFFSET..Self::OFFSET + frame_len)
    }

    fn frame_mut(&mut self, frame_len: usize) -> &mut [u8] {
        self.arena.peek_mut(Self::OFFSET..Self::OFFSET + frame_len)
    }

    fn leave(&self, state: Checksum) -> Option<RemoteChecksum> {
        match self.checksums {
            LeftChecksums::Passed => RemoteChecksum::of(state),
            LeftChecksums::Made => None,
        }
    }

    fn send(
        &mut self,
        to: LinkSlot,
        frame_len: usize,
        flow: Flow,
        left: Option<RemoteChecksum>,
        outlet: &mut impl Outlet,
    ) -> Sent {
        let now = self.cx.now;
        let state = link_state(self.links, to);
        let link = self.cx.tables.link(to).filter(|link| link.net == self.net);
        let (Some(sa), Some(link)) = (state.outbound.as_deref_mut(), link) else {
            if state.no_key_notice.permits(now) {
                outlet.notice(Notice::NoKey { link: to });
            }
            return Err(DropReason::NoKey);
        };
        let packet = self.arena.next_packet();
        let port = udp::entropy_port(flow.hash);
        udp::write_header(&mut packet[UDP_OFFSET..], port, vxlan::PORT, vxlan::HEADER_LEN + frame_len);
        vxlan::write_header(&mut packet[VXLAN_OFFSET..], self.vni, left);
        match sa.seal(now, packet, udp::HEADER_LEN + vxlan::HEADER_LEN + frame_len) {
            Ok(sealed) => self.arena.commit(to, link.remote, flow.class, sealed),
            Err(reason) => {
                if state.no_key_notice.permits(now) {
                    outlet.notice(Notice::RekeyWanted { link: to, spi: sa.spi() });
                }
                return Err(reason);
            }
        }
        if sa.wants_rekey() {
            outlet.notice(Notice::RekeyWanted { link: to, spi: sa.spi() });
        }
        self.cx.counters.sent_to_link(to, frame_len);
        Ok(())
    }

    fn next_frame(&mut self, outlet: &mut impl Outlet) -> &mut [u8] {
        next_esp_frame(self.arena, outlet)
    }

    fn make_room(&mut self, bytes: usize, outlet: &mut impl Outlet) {
        if !self.arena.has_room_for(bytes) {
            flush_esp(self.arena, outlet);
        }
    }

    fn note_drops(&self, to: LinkSlot, reason: DropReason, packets: usize) {
        self.cx.counters.note_drops_at_link(to, reason, packets as u64);
    }
}

/// Plain VXLAN to the VTEPs of one unencrypted network.
pub(super) struct VxlanTunnel<'a> {
    pub(super) cx: Context<'a>,
    pub(super) arena: &'a mut SendArena<Encapsulated>,
    pub(super) net: NetSlot,
    pub(super) vni: Vni,
}

impl Tunnel<VtepSlot> for VxlanTunnel<'_> {
    const OFFSET: usize = vxlan::HEADER_LEN;

    fn frame(&self, frame_len: usize) -> &[u8] {
        self.arena.peek(Self::OFFSET..Self::OFFSET + frame_len)
    }

    fn frame_mut(&mut self, frame_len: usize) -> &mut [u8] {
        self.arena.peek_mut(Self::OFFSET..Self::OFFSET + frame_len)
    }

    /// Nothing: plain VXLAN is for everybody, and proves nothing of its payload.
    fn leave(&self, _: Checksum) -> Option<RemoteChecksum> {
        None
    }

    fn send(
        &mut self,
        to: VtepSlot,
        frame_len: usize,
        flow: Flow,
        left: Option<RemoteChecksum>,
        _: &mut impl Outlet,
    ) -> Sent {
        let vtep = self.cx.tables.vtep(to).filter(|vtep| vtep.net == self.net);
        let vtep = vtep.ok_or(DropReason::UnknownDestination)?;
        vxlan::write_header(self.arena.next_packet(), self.vni, left);
        self.arena.commit(to, vtep.remote, flow.class, Encapsulated { len: Self::OFFSET + frame_len });
        self.cx.counters.sent_to_vtep(to, frame_len);
        Ok(())
    }

    fn next_frame(&mut self, outlet: &mut impl Outlet) -> &mut [u8] {
        next_vxlan_frame(self.arena, outlet)
    }

    fn make_room(&mut self, bytes: usize, outlet: &mut impl Outlet) {
        if !self.arena.has_room_for(bytes) {
            flush_vxlan(self.arena, outlet);
        }
    }

    fn note_drops(&self, to: VtepSlot, reason: DropReason, packets: usize) {
        self.cx.counters.note_drops_at_vtep(to, reason, packets as u64);
    }
}

/// The place of the next frame for ESP, with the arena flushed if it was full.
pub(super) fn next_esp_frame<'a>(arena: &'a mut SendArena<Sealed>, outlet: &mut impl Outlet) -> &'a mut [u8] {
    if !arena.has_room() {
        flush_esp(arena, outlet);
    }
    &mut arena.next_packet()[esp::HEADROOM..esp::HEADROOM + MAX_FRAME_LEN]
}

/// The place of the next frame for plain VXLAN, with the arena flushed if it was full.
pub(super) fn next_vxlan_frame<'a>(
    arena: &'a mut SendArena<Encapsulated>,
    outlet: &mut impl Outlet,
) -> &'a mut [u8] {
    if !arena.has_room() {
        flush_vxlan(arena, outlet);
    }
    &mut arena.next_packet()[vxlan::HEADER_LEN..vxlan::HEADER_LEN + MAX_FRAME_LEN]
}

pub(super) fn flush_esp(arena: &mut SendArena<Sealed>, outlet: &mut impl Outlet) {
    arena.runs().for_each(|run| outlet.send_esp(&run));
    arena.clear();
}

pub(super) fn flush_vxlan(arena: &mut SendArena<Encapsulated>, outlet: &mut impl Outlet) {
    arena.runs().for_each(|run| outlet.send_vxlan(&run));
    arena.clear();
}

/// The state of a link, which begins without key when the link is first looked at.
pub(super) fn link_state(links: &mut Vec<LinkState>, link: LinkSlot) -> &mut LinkState {
    if links.len() <= link.index() {
        links.resize_with(link.index() + 1, LinkState::default);
    }
    &mut links[link.index()]
}

const UDP_OFFSET: usize = esp::HEADER_LEN + esp::IV_LEN;
const VXLAN_OFFSET: usize = UDP_OFFSET + udp::HEADER_LEN;
