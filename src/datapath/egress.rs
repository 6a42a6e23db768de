//! From a container outward: judge, answer, deliver next door, or seal for a peer.
//!
//! One frame is read into [`Egress::reserve`]'s place and handed in by [`Egress::submit`]; it is
//! sealed where it lies, or cut into segments first. What stays on this node is handed on as the
//! kernel gave it, and so are checksums inside ESP; what leaves otherwise has whole ones. [`Egress::flush`] sends what has gathered. Owned
//! and called by one lane.

use super::arena::{Encapsulated, SendArena};
use super::flood::Flood;
use super::reply::{self, EMPTY_REPLY};
use super::segment::{SuperFrame, partial_of};
use super::stage::{Place as FramePlace, Stage};
use super::tunnel::{self, EspTunnel, Flow, LinkState, Refused, Sent, SentPackets, Tunnel, VxlanTunnel};
use super::{Context, Delivery, MAX_FRAME_LEN, Outlet};
use crate::drop_reason::DropReason;
use crate::forward::policy::{self, Outward};
use crate::forward::{Carrier, Directory, NetworkTable, Place, PortRow, Remote, Row, Tables};
use crate::id::{LinkSlot, PortSlot};
use crate::sa::{OutboundSa, Sealed};
use crate::wire::ethernet::Tag;
use crate::wire::frame::Frame;
use crate::wire::traffic_class::{Dscp, TrafficClass};
use crate::wire::transport::Transport;
use crate::wire::vnet_hdr::{Checksum, Segmentation, VnetHeader};
use crate::wire::vxlan::LeftChecksums;
use crate::wire::{checksum, esp, ethernet, icmp, mss};

/// A lane's way out: its outbound SAs, its buffers and its rate limits.
#[derive(Debug)]
pub struct Egress {
    esp: SendArena<Sealed>,
    vxlan: SendArena<Encapsulated>,
    links: Vec<LinkState>,
    stage: Stage,
    flood: Flood,
    dscp: Dscp,
    checksums: LeftChecksums,
}

impl Egress {
    /// A way out without keys; `flood` may be shared with other lanes.
    pub fn new(flood: impl Into<Flood>) -> Self {
        Self {
            esp: SendArena::new(),
            vxlan: SendArena::new(),
            links: Vec::new(),
            stage: Stage::new(),
            flood: flood.into(),
            dscp: Dscp::default(),
            checksums: LeftChecksums::default(),
        }
    }

    /// Whether packets show the underlay the DSCP of the frames in them.
    #[must_use]
    pub fn with_dscp(mut self, dscp: Dscp) -> Self {
        self.dscp = dscp;
        self
    }

    /// Whether checksums that containers leave are left to the receivers' kernels.
    #[must_use]
    pub fn with_checksums(mut self, checksums: LeftChecksums) -> Self {
        self.checksums = checksums;
        self
    }

    /// Sends with `sa` to the link from now on.
    pub fn install(&mut self, link: LinkSlot, sa: Box<OutboundSa>) {
        tunnel::link_state(&mut self.links, link).outbound = Some(sa);
    }

    /// Sends nothing to the link from now on.
    pub fn remove(&mut self, link: LinkSlot) {
        tunnel::link_state(&mut self.links, link).outbound = None;
    }

    /// The outbound SA of a link.
    pub fn outbound(&self, link: LinkSlot) -> Option<&OutboundSa> {
        self.links.get(link.index())?.outbound.as_deref()
    }

    /// Every outbound SA with its link.
    pub fn sas(&self) -> impl Iterator<Item = (LinkSlot, &OutboundSa)> {
        let links = (0u32..).zip(&self.links);
        links.filter_map(|(slot, state)| Some((LinkSlot::new(slot), state.outbound.as_deref()?)))
    }

    /// Makes ready for a port that is new in its slot.
    pub fn add_port(&mut self, port: PortSlot) {
        self.flood.fill(port);
    }

    /// The place to read the port's next frame into.
    pub fn reserve(&mut self, tables: &Tables, port: PortSlot, outlet: &mut impl Outlet) -> FramePlace<'_> {
        // What an unknown port sends is read all the same, to be counted and dropped.
        let network = find(tables, port).map(|(_, network)| network);
        let head_len = network.map_or(MAX_FRAME_LEN, longest_frame);
        let head = match network.map(NetworkTable::carrier) {
            Some(Carrier::Esp(_)) | None => tunnel::next_esp_frame(&mut self.esp, outlet),
            Some(Carrier::Vxlan(_)) => tunnel::next_vxlan_frame(&mut self.vxlan, outlet),
        };
        let head_len = head_len.min(head.len());
        self.stage.place(&mut head[..head_len])
    }

    /// Takes the frame that was read into the place reserved for `port`, by the same tables, with
    /// what its kernel said of it. How many packets were made of it: sealed, or handed on one by one.
    ///
    /// # Panics
    /// When `frame_len` is longer than the place, or nothing was reserved.
    pub fn submit(
        &mut self,
        cx: &Context<'_>,
        port: PortSlot,
        header: &VnetHeader,
        frame_len: usize,
        outlet: &mut impl Outlet,
    ) -> usize {
        cx.counters.sent_by_port(port, frame_len);
        let (stage, flood, dscp) = (&mut self.stage, &self.flood, self.dscp);
        let sent = match find(cx.tables, port) {
            None => {
                let head = esp::HEADROOM..esp::HEADROOM + stage.head_len(frame_len);
                stage.gather(self.esp.peek(head), frame_len);
                Err(DropReason::NoSuchPort.into())
            }
            Some((row, network)) => match network.carrier() {
                Carrier::Esp(directory) => {
                    let (arena, links, checksums) = (&mut self.esp, &mut self.links, self.checksums);
                    let (net, vni) = (row.net(), network.vni());
                    let tunnel = EspTunnel { cx: *cx, arena, links, net, vni, checksums };
                    Sender::new(port, row, network, directory, dscp).map_err(Refused::from).and_then(
                        |sender| sender.forward_any(cx, tunnel, stage, flood, header, frame_len, outlet),
                    )
                }
                Carrier::Vxlan(carrier) => {
                    let arena = &mut self.vxlan;
                    let tunnel = VxlanTunnel { cx: *cx, arena, net: row.net(), vni: network.vni() };
                    Sender::new(port, row, network, carrier.directory(), dscp)
                        .map_err(Refused::from)
                        .and_then(|sender| {
                            sender.forward_any(cx, tunnel, stage, flood, header, frame_len, outlet)
                        })
                }
            },
        };
        sent.unwrap_or_else(|Refused { reason, made }| {
            let packets = packets_of(header, self.stage.gathered(frame_len), reason);
            cx.counters.drop_frames_at_port(port, reason, packets - made);
            if reason == DropReason::FrameTooBig {
                self.answer_too_big(cx, port, frame_len, outlet);
            }
            made
        })
    }

    /// Tells the sender of the frame on the stage what would have passed.
    fn answer_too_big(
        &mut self,
        cx: &Context<'_>,
        port: PortSlot,
        frame_len: usize,
        outlet: &mut impl Outlet,
    ) {
        let Some((_, network)) = find(cx.tables, port).filter(|_| self.flood.may_answer(port, cx.now)) else {
            return;
        };
        let mut answer = [0; icmp::TOO_BIG_ROOM];
        let frame = self.stage.gathered(frame_len);
        if let Some(len) = icmp::write_too_big(frame, network.mtu(), &mut answer)
            && let Ok(ethernet::Header { tag, .. }) = ethernet::Header::parse(frame)
            && self.flood.take_answer(port, cx.now)
        {
            deliver_answer(cx, port, tag, &answer[..len], outlet);
        }
    }

    /// Sends everything that has gathered.
    pub fn flush(&mut self, outlet: &mut impl Outlet) {
        tunnel::flush_esp(&mut self.esp, outlet);
        tunnel::flush_vxlan(&mut self.vxlan, outlet);
    }
}

/// The endpoint that sent a frame.
struct Sender<'a, R> {
    port: PortSlot,
    row: &'a Row<R>,
    directory: &'a Directory<R>,
    mtu: u16,
    max_len: usize,
    dscp: Dscp,
}

impl<'a, R: Remote> Sender<'a, R> {
    fn new(
        port: PortSlot,
        row: PortRow,
        network: &NetworkTable,
        directory: &'a Directory<R>,
        dscp: Dscp,
    ) -> Result<Self, DropReason> {
        let row = row.endpoint(directory).ok_or(DropReason::NoSuchPort)?;
        let (mtu, max_len) = (network.mtu(), longest_frame(network));
        Ok(Self { port, row, directory, mtu, max_len, dscp })
    }

    /// Tells super-frames from ordinary ones.
    #[expect(clippy::too_many_arguments, reason = "the parts of one lane, borrowed one by one")]
    fn forward_any(
        &self,
        cx: &Context<'_>,
        mut tunnel: impl Tunnel<R>,
        stage: &mut Stage,
        flood: &Flood,
        header: &VnetHeader,
        frame_len: usize,
        outlet: &mut impl Outlet,
    ) -> SentPackets {
        if let Some(cut) = header.segmentation {
            let bytes = stage.gather(tunnel.frame(stage.head_len(frame_len)), frame_len);
            return self.forward_super(cx, &mut tunnel, flood, bytes, header, cut, outlet);
        }
        if frame_len > self.max_len || !stage.is_spared(frame_len) {
            let bytes = stage.gather(tunnel.frame(stage.head_len(frame_len)), frame_len);
            self.judge(bytes)?;
            return Err(DropReason::FrameTooBig.into());
        }
        self.forward(cx, &mut tunnel, stage, flood, header, frame_len, outlet)
    }

    /// A frame of ordinary length, which lies in the arena.
    #[expect(clippy::too_many_arguments, reason = "the parts of one lane, borrowed one by one")]
    fn forward(
        &self,
        cx: &Context<'_>,
        tunnel: &mut impl Tunnel<R>,
        stage: &mut Stage,
        flood: &Flood,
        header: &VnetHeader,
        frame_len: usize,
        outlet: &mut impl Outlet,
    ) -> SentPackets {
        let unfinished = unfinished(tunnel.frame_mut(frame_len), header.checksum)?;
        let (frame, verdict) = self.judge(tunnel.frame(frame_len))?;
        mss::clamp(tunnel.frame_mut(frame_len), self.mtu, unfinished.is_none());
        let bytes = tunnel.frame(frame_len);
        match verdict {
            Outward::Absorb => Ok(0),
            Outward::Ask(question) => {
                let mut reply = EMPTY_REPLY;
                if let Some(len) = reply::answer(self.directory, frame.source, question, &mut reply)? {
                    deliver_answer(cx, self.port, frame.tag, &reply[..len], outlet);
                }
                Ok(0)
            }
            Outward::Forward if frame.destination.is_multicast() => {
                self.permit_flood(cx, flood, 1)?;
                finish(tunnel.frame_mut(frame_len), unfinished)?;
                let bytes = tunnel.frame(frame_len);
                let delivered = self.deliver_to_all(cx, &VnetHeader::COMPLETE, bytes, outlet);
                let (copy, flow) = (stage.gather(bytes, frame_len), self.flow(&frame, bytes));
                let sent = self.send_to_all(cx, tunnel, 1, |tunnel, remote| {
                    tunnel.send_copy(remote, copy, flow, outlet)
                });
                Ok(delivered + sent)
            }
            Outward::Forward => match self.destination(&frame)? {
                Place::Local(port) => {
                    deliver(cx, port, &of_unfinished(unfinished), &[bytes], outlet);
                    Ok(1)
                }
                Place::Remote(remote) => {
                    let flow = self.flow(&frame, bytes);
                    let left = tunnel.leave(of_unfinished(unfinished).checksum);
                    if left.is_none() {
                        finish(tunnel.frame_mut(frame_len), unfinished)?;
                    }
                    let sent = tunnel.send(remote, frame_len, flow, left, outlet);
                    sent.inspect_err(|reason| tunnel.note_drops(remote, *reason, 1))?;
                    Ok(1)
                }
            },
        }
    }

    /// A super-frame, which is judged by its headers: all of its segments have the same.
    #[expect(clippy::too_many_arguments, reason = "the parts of one lane, borrowed one by one")]
    fn forward_super(
        &self,
        cx: &Context<'_>,
        tunnel: &mut impl Tunnel<R>,
        flood: &Flood,
        bytes: &[u8],
        header: &VnetHeader,
        cut: Segmentation,
        outlet: &mut impl Outlet,
    ) -> SentPackets {
        let (frame, verdict) = self.judge(bytes)?;
        let cut = SuperFrame::parse(bytes, header, cut)?;
        if cut.longest() > self.max_len {
            return Err(DropReason::FrameTooBig.into());
        }
        match verdict {
            // These are no TCP or UDP.
            Outward::Absorb | Outward::Ask(_) => Err(DropReason::MalformedFrame.into()),
            Outward::Forward if frame.destination.is_multicast() => {
                self.permit_flood(cx, flood, cut.segments())?;
                let delivered = self.deliver_to_all(cx, cut.header(), bytes, outlet);
                let flow = self.flow(&frame, bytes);
                let sent = self.send_to_all(cx, tunnel, cut.segments(), |tunnel, remote| {
                    tunnel.send_segments(remote, &cut, bytes, flow, outlet)
                });
                Ok(delivered + sent)
            }
            Outward::Forward => match self.destination(&frame)? {
                Place::Local(port) if outlet.merging(port).takes(cut.protocol()) => {
                    deliver(cx, port, cut.header(), &[bytes], outlet);
                    Ok(1)
                }
                Place::Local(port) => {
                    for index in 0..cut.segments() {
                        let len = cut.write(bytes, index, tunnel.next_frame(outlet), false);
                        deliver(cx, port, &VnetHeader::COMPLETE, &[tunnel.frame(len)], outlet);
                    }
                    Ok(cut.segments())
                }
                Place::Remote(remote) => {
                    let sent = tunnel.send_segments(remote, &cut, bytes, self.flow(&frame, bytes), outlet);
                    sent.inspect_err(|refused| refused.note(tunnel, remote, cut.segments()))
                }
            },
        }
    }

    fn judge(&self, bytes: &[u8]) -> Result<(Frame, Outward), DropReason> {
        let frame = Frame::parse(bytes).map_err(|_| DropReason::MalformedFrame)?;
        let verdict = policy::outward(self.directory, self.row, &frame)?;
        Ok((frame, verdict))
    }

    fn flow(&self, frame: &Frame, bytes: &[u8]) -> Flow {
        Flow { hash: frame.flow_hash(), class: TrafficClass::of_frame(bytes).outer(self.dscp) }
    }

    fn destination(&self, frame: &Frame) -> Result<Place<R>, DropReason> {
        let to = self.directory.place(frame.destination);
        to.filter(|place| *place != Place::Local(self.port)).ok_or(DropReason::UnknownDestination)
    }

    fn permit_flood(&self, cx: &Context<'_>, flood: &Flood, frames: usize) -> Sent {
        let is_permitted = flood.take(self.port, frames, cx.now);
        if is_permitted { Ok(()) } else { Err(DropReason::FloodRateLimited) }
    }

    /// To every other port of the network here; how many these are.
    fn deliver_to_all(
        &self,
        cx: &Context<'_>,
        header: &VnetHeader,
        bytes: &[u8],
        outlet: &mut impl Outlet,
    ) -> usize {
        let mut others = 0;
        for port in self.directory.local_ports().iter().filter(|port| **port != self.port) {
            deliver(cx, *port, header, &[bytes], outlet);
            others += 1;
        }
        others
    }

    /// Once to every node that has a port of the network (head-end replication), in so many `packets`
    /// to each. How many were made; one at least for each node, as a refusal takes its time as well.
    fn send_to_all<T: Tunnel<R>>(
        &self,
        cx: &Context<'_>,
        tunnel: &mut T,
        packets: usize,
        mut send: impl FnMut(&mut T, R) -> SentPackets,
    ) -> usize {
        let send_to = |remote: &R| {
            send(tunnel, *remote).unwrap_or_else(|refused| {
                refused.note(tunnel, *remote, packets);
                cx.counters.drop_frames_at_port(self.port, refused.reason, packets - refused.made);
                refused.made.max(1)
            })
        };
        self.directory.remotes().iter().map(send_to).sum()
    }
}

/// How many packets a frame would have been that was refused: a super-frame as many as it has segments,
/// but for one that contradicts itself, of which nothing can be said.
fn packets_of(header: &VnetHeader, frame: &[u8], reason: DropReason) -> usize {
    if reason == DropReason::MalformedFrame {
        return 1;
    }
    let (packets, _) = header.on_the_wire(frame, frame.len());
    packets
}

/// Looks whether a TCP or UDP checksum is still to be made, which is done only for a frame that
/// leaves the node. Any other that the kernel left undone is made at once, before the frame is
/// judged: the bytes it is written to may be those that are judged.
fn unfinished(frame: &mut [u8], state: Checksum) -> Result<Option<Transport>, DropReason> {
    let Checksum::Partial { start, offset } = state else { return Ok(None) };
    let transport = Transport::locate(frame).map_err(|_| DropReason::MalformedFrame)?;
    let transport = transport.filter(|transport| partial_of(transport) == Some(state));
    if transport.is_none() {
        checksum::complete(frame, start.into(), offset.into()).map_err(|_| DropReason::MalformedFrame)?;
    }
    Ok(transport)
}

/// Makes the checksum that was left.
fn finish(frame: &mut [u8], unfinished: Option<Transport>) -> Sent {
    let Some(Transport { start, protocol, .. }) = unfinished else { return Ok(()) };
    checksum::complete(frame, start, protocol.checksum_offset()).map_err(|_| DropReason::MalformedFrame)
}

/// What another kernel is told of a frame whose checksum was left.
pub(super) fn of_unfinished(unfinished: Option<Transport>) -> VnetHeader {
    let Some(transport) = unfinished else { return VnetHeader::COMPLETE };
    let checksum = partial_of(&transport).unwrap_or(Checksum::Complete);
    let header_len = u16::try_from(transport.payload).unwrap_or_default();
    VnetHeader { checksum, segmentation: None, header_len }
}

/// Hands an answer, which was written without tag, to a container in the VLAN of its question.
fn deliver_answer(
    cx: &Context<'_>,
    port: PortSlot,
    tag: Option<Tag>,
    answer: &[u8],
    outlet: &mut impl Outlet,
) {
    let tag = tag.map(Tag::octets);
    let (addresses, rest) = answer.split_at(ethernet::ADDRESSES_LEN);
    deliver(cx, port, &VnetHeader::COMPLETE, &[addresses, tag.as_slice().as_flattened(), rest], outlet);
}

/// Hands a frame in pieces to a container and counts it there.
pub(super) fn deliver(
    cx: &Context<'_>,
    port: PortSlot,
    header: &VnetHeader,
    pieces: &[&[u8]],
    outlet: &mut impl Outlet,
) {
    let len = pieces.iter().map(|piece| piece.len()).sum();
    match outlet.deliver(port, header, pieces) {
        Delivery::Taken => cx.counters.received_by_port(port, len),
        Delivery::Waits => {}
        Delivery::Dropped(reason) => {
            let (frames, _) = header.on_the_wire(pieces.first().copied().unwrap_or_default(), len);
            cx.counters.drop_frames_at_port(port, reason, frames);
        }
    }
}

/// Octets of the longest frame on a network's wire.
fn longest_frame(network: &NetworkTable) -> usize {
    ethernet::HEADER_LEN + usize::from(network.mtu())
}

fn find(tables: &Tables, port: PortSlot) -> Option<(PortRow, &NetworkTable)> {
    let row = tables.port(port)?;
    Some((row, tables.network(row.net())?))
}
