//! Super-frames from containers with what their kernels say of them, and segments from a peer.
//!
//! Outward, the segments of a super-frame are the super-frame: its payload in order behind its headers,
//! none longer than the MTU. Inward, what is merged falls apart again into the very segments that came,
//! in their order, and what is not merged comes as it came.
//!
//! Bit 0 of a record's first octet says which way; bit 1 has lengths and checksums mended, so that
//! more than their checks is reached, and then bit 3 leaves the checksum of what a peer sends undone;
//! bits 4 and 5 are the port or the link; bit 7 ends a batch. A super-frame's record begins with its
//! vnet header and, in two octets, by how much it is stretched.

use std::collections::BTreeMap;

use overlayd::datapath::{
    Coalescer, Context, Delivery, Egress, Encapsulated, FloodLimit, Ingress, LaneCounters, Merging, Notice,
    Outlet, Run, SuperFrame,
};
use overlayd::forward::Tables;
use overlayd::id::{LinkSlot, PortSlot, Vni};
use overlayd::sa::{HEADER_LEN, InboundSa, MAX_TRAILER_LEN, OutboundSa, Sealed};
use overlayd::wire::checksum;
use overlayd::wire::traffic_class::TrafficClass;
use overlayd::wire::transport::{Protocol, Transport};
use overlayd::wire::vnet_hdr::{self, Checksum, VnetHeader};
use overlayd::wire::vxlan::RemoteChecksum;
use overlayd::wire::{ethernet, udp, vxlan};

use super::overlay::{
    ENCRYPTED_VNI, ENDPOINTS, LINKS, MTU, NOW, array, at_port, esp_address, records, sa_pair, source_of,
    tables, tag_of,
};

/// Panics where a promise about super-frames is broken.
pub fn run(data: &[u8]) {
    let mut node = Node::new();
    let mut batch = Vec::new();
    for (what, bytes) in records(data) {
        let is_mended = what & 2 != 0;
        if what & 1 == 0 {
            node.send(PortSlot::new(u32::from(what >> 4 & 3)), bytes, is_mended);
        } else {
            let mut frame = bytes.to_vec();
            if is_mended {
                mend(&mut frame, false);
            }
            let is_left = is_mended && what & 8 != 0;
            batch.push(Sent { link: LINKS[usize::from(what >> 4 & 1)], frame, is_left });
        }
        if what & 0x80 != 0 {
            node.receive(&std::mem::take(&mut batch));
        }
    }
    node.receive(&batch);
}

/// What a peer sends.
struct Sent {
    link: LinkSlot,
    frame: Vec<u8>,
    /// Its checksum is not made.
    is_left: bool,
}

/// A node between its containers and its peers.
struct Node {
    tables: Tables,
    counters: LaneCounters,
    egress: Egress,
    ingress: Ingress,
    /// The peers' SAs towards this node.
    sealing: [Box<OutboundSa>; 2],
    peers: Peers,
}

impl Node {
    fn new() -> Self {
        let mut egress = Egress::new(FloodLimit { frames_per_second: 1_000, burst: 1_000 });
        let mut ingress = Ingress::new();
        let opening = LINKS.map(|link| {
            let (outbound, inbound) = sa_pair(link);
            egress.install(link, outbound);
            inbound
        });
        let sealing = LINKS.map(|link| {
            let (outbound, inbound) = sa_pair(link);
            ingress.install(link, inbound);
            outbound
        });
        let peers = Peers { opening, sent: Vec::new() };
        Self { tables: tables(), counters: LaneCounters::new(), egress, ingress, sealing, peers }
    }

    fn send(&mut self, port: PortSlot, bytes: &[u8], is_mended: bool) {
        let Some((header, bytes)) = bytes.split_first_chunk::<{ vnet_hdr::HEADER_LEN }>() else { return };
        let Some((stretch, bytes)) = bytes.split_first_chunk() else { return };
        let Ok(mut header) = VnetHeader::parse(header) else { return };
        let mut frame = bytes.to_vec();
        let stretched = frame.len() + usize::from(u16::from_be_bytes(*stretch));
        let noise = |at: usize| at.to_le_bytes()[0] ^ at.to_le_bytes()[1];
        frame.extend((frame.len()..stretched.min(LONGEST)).map(noise));
        if is_mended && let Some(transport) = mend(&mut frame, true) {
            let [start, offset] = [transport.start, transport.protocol.checksum_offset()]
                .map(|octets| u16::try_from(octets).expect("a header is near the beginning"));
            header.checksum = Checksum::Partial { start, offset };
        }
        let cx = Context { tables: &self.tables, counters: &self.counters, now: NOW };
        self.egress.reserve(&self.tables, port, &mut self.peers).fill(&frame);
        self.egress.submit(&cx, port, &header, frame.len(), &mut self.peers);
        self.egress.flush(&mut self.peers);
        let sent = std::mem::take(&mut self.peers.sent);
        if header.segmentation.is_some() {
            assert_is_cut_of(&frame, &sent, is_mended);
            assert_charge_is_of(&header, &frame, &sent);
        }
    }

    /// Takes frames of peers in one batch.
    fn receive(&mut self, frames: &[Sent]) {
        let cx = Context { tables: &self.tables, counters: &self.counters, now: NOW };
        let mut packets: Vec<_> =
            frames.iter().map(|sent| seal(&mut self.sealing[sent.link.index()], sent)).collect();
        let mut delivered = Delivered::default();
        let mut expected: BTreeMap<PortSlot, Vec<&[u8]>> = BTreeMap::new();
        let (mut batch, mut drops) = (Coalescer::new(), self.counters.drops());
        for (packet, Sent { link, frame, .. }) in packets.iter_mut().zip(frames) {
            let class = TrafficClass::ZERO;
            self.ingress.receive_esp(&cx, esp_address(*link), class, packet, &mut batch, &mut delivered);
            let now = self.counters.drops();
            if std::mem::replace(&mut drops, now) == now {
                for port in receivers(frame) {
                    expected.entry(port).or_default().push(frame);
                }
            }
        }
        batch.flush(&cx, &mut delivered);
        for (port, pieces) in &delivered.0 {
            let expected = expected.get(port).map(Vec::as_slice).unwrap_or_default();
            assert!(pieces.iter().eq(expected), "other frames than came, or in another order");
        }
        assert_eq!(delivered.0.len(), expected.len(), "a container got nothing");
    }
}

/// The peers, who open what is sent to them.
struct Peers {
    opening: [Box<InboundSa>; 2],
    sent: Vec<(LinkSlot, Vec<u8>)>,
}

impl Outlet for Peers {
    fn send_esp(&mut self, run: &Run<'_, Sealed>) {
        let link = *LINKS.iter().find(|link| esp_address(**link) == run.to()).expect("a peer");
        for packet in run.datagrams() {
            let mut packet = packet.to_vec();
            let opened = self.opening[link.index()].open(NOW, &mut packet).expect("the peer can open it");
            let (_, payload) = udp::parse(opened.payload()).expect("UDP");
            let vxlan::Packet { checksum, frame, .. } = vxlan::parse(payload).expect("VXLAN");
            let state = checksum.map_or(Checksum::Complete, RemoteChecksum::state);
            self.sent.push((link, finished(frame, state)));
        }
    }

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {}

    fn deliver(&mut self, _: PortSlot, _: &VnetHeader, _: &[&[u8]]) -> Delivery {
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging::default()
    }

    fn notice(&mut self, _: Notice) {}
}

/// What containers got, cut again where it was merged.
#[derive(Default)]
struct Delivered(BTreeMap<PortSlot, Vec<Normal>>);

impl Outlet for Delivered {
    fn send_esp(&mut self, _: &Run<'_, Sealed>) {
        panic!("what came from the wire goes back to it");
    }

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {
        panic!("what came from the wire goes back to it");
    }

    fn deliver(&mut self, port: PortSlot, header: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        let frame = pieces.concat();
        let got = self.0.entry(port).or_default();
        let Some(cut) = header.segmentation else {
            assert_eq!(pieces.len(), 1, "merged without a word");
            got.push(Normal::of(&finished(&frame, header.checksum), true));
            return Delivery::Taken;
        };
        let cut = SuperFrame::parse(&frame, header, cut).expect("the kernel can cut it again");
        assert_eq!(cut.segments(), pieces.len());
        for index in 0..cut.segments() {
            let mut place = vec![0; cut.longest()];
            let len = cut.write(&frame, index, &mut place, false);
            got.push(Normal::of(&place[..len], false));
        }
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging { tcp: true, udp: true }
    }

    fn notice(&mut self, _: Notice) {}
}

/// A frame as it is compared: a cut gives every packet another identification, but with DF they
/// may all have had one (RFC 6864); and TCP may write its zero in two ways.
#[derive(Debug)]
struct Normal {
    bytes: Vec<u8>,
    is_exact: bool,
}

impl Normal {
    fn of(frame: &[u8], is_exact: bool) -> Self {
        Self { bytes: if is_exact { frame.to_vec() } else { normal(frame) }, is_exact }
    }
}

impl PartialEq<&[u8]> for Normal {
    fn eq(&self, frame: &&[u8]) -> bool {
        if self.is_exact { self.bytes == *frame } else { self.bytes == normal(frame) }
    }
}

fn normal(frame: &[u8]) -> Vec<u8> {
    let mut whole = frame.to_vec();
    let frame = &mut whole[tag_of(frame).len()..];
    if frame[12..14] == [0x08, 0x00] && frame[20] & 0x40 != 0 {
        // Identification and the checksum of the header, which covers it.
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    if let Ok(Some(Transport { protocol: Protocol::Tcp, start, .. })) = Transport::locate(frame)
        && frame[start + 16..start + 18] == [0xff, 0xff]
    {
        frame[start + 16..start + 18].fill(0);
    }
    whole
}

/// Panics unless the packets to each peer are the super-frame, cut.
fn assert_is_cut_of(whole: &[u8], sent: &[(LinkSlot, Vec<u8>)], is_mended: bool) {
    for link in LINKS {
        let segments: Vec<_> = sent.iter().filter(|(to, _)| *to == link).map(|(_, frame)| frame).collect();
        if segments.is_empty() {
            continue;
        }
        let sender = source_of(whole);
        let Transport { start, payload, end, .. } = located(whole);
        let mut joined = Vec::new();
        for segment in segments {
            assert!(segment.len() <= ethernet::HEADER_LEN + usize::from(MTU), "longer than the MTU");
            sender.assert_speaks(segment);
            let found = located(segment);
            assert_eq!((found.start, found.payload, found.end), (start, payload, segment.len()));
            assert_eq!(segment[start..start + 4], whole[start..start + 4], "other ports");
            assert!(!is_mended || is_right(segment, &found), "a wrong checksum");
            joined.extend_from_slice(&segment[payload..]);
        }
        assert_eq!(joined, whole[payload..end], "other bytes");
    }
}

/// Panics unless a rate limit, which is charged by what the vnet header says, is charged for what is sent.
fn assert_charge_is_of(header: &VnetHeader, whole: &[u8], sent: &[(LinkSlot, Vec<u8>)]) {
    for link in LINKS {
        let segments = || sent.iter().filter(|(to, _)| *to == link).map(|(_, frame)| frame.len());
        if segments().next().is_some() {
            assert_eq!(header.on_the_wire(whole, whole.len()), (segments().count(), segments().sum()));
        }
    }
}

fn located(frame: &[u8]) -> Transport {
    Transport::locate(frame).expect("a packet").expect("TCP or UDP")
}

/// Whether the checksum of a packet without routing header is right.
fn is_right(frame: &[u8], transport: &Transport) -> bool {
    let covered = &frame[transport.start..transport.end];
    let len = u16::try_from(covered.len()).expect("at most the MTU");
    transport.pseudo_header(frame, len).plus(covered).checksum() == 0
}

/// Makes lengths and checksums right where the bytes are TCP or UDP straight behind IP; the
/// transport's checksum is left partial, as a kernel does, or finished.
fn mend(frame: &mut [u8], is_partial: bool) -> Option<Transport> {
    let tag_len = tag_of(frame).len();
    let Transport { network, start, payload, end, .. } = mend_untagged(&mut frame[tag_len..], is_partial)?;
    let [network, start, payload, end] = [network, start, payload, end].map(|offset| tag_len + offset);
    let found = Transport::locate(frame).ok()??;
    assert_eq!((found.network, found.start, found.payload, found.end), (network, start, payload, end));
    Some(found)
}

fn mend_untagged(frame: &mut [u8], is_partial: bool) -> Option<Transport> {
    let len = u16::try_from(frame.len().checked_sub(ethernet::HEADER_LEN)?).ok()?;
    match array(frame, 12) {
        [0x08, 0x00] if len >= 20 => {
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            frame[24..26].fill(0);
            let header = frame.get(14..14 + usize::from(frame[14] & 15) * 4)?;
            let sum = checksum::plain(header);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        [0x86, 0xdd] if len >= 40 && matches!(frame[20], 6 | 17) => {
            frame[18..20].copy_from_slice(&(len - 40).to_be_bytes());
        }
        _ => return None,
    }
    let transport = Transport::locate(frame).ok()??;
    let (start, offset) = (transport.start, transport.protocol.checksum_offset());
    let covered = u16::try_from(transport.end - start).ok()?;
    if transport.protocol == Protocol::Udp {
        frame[start + 4..start + 6].copy_from_slice(&covered.to_be_bytes());
    }
    let sum = transport.pseudo_header(frame, covered).folded();
    frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    if !is_partial {
        checksum::complete(frame, start, offset).ok()?;
    }
    Some(transport)
}

/// The frame with its checksum made, if it was left.
fn finished(frame: &[u8], state: Checksum) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Checksum::Partial { start, offset } = state {
        checksum::complete(&mut frame, start.into(), offset.into()).expect("the field lies in the frame");
    }
    frame
}

fn seal(sa: &mut OutboundSa, sent: &Sent) -> Vec<u8> {
    let mut frame = sent.frame[..sent.frame.len().min(LONGEST)].to_vec();
    let transport = if sent.is_left { mend(&mut frame, true) } else { None };
    let left = transport.and_then(|Transport { start, protocol, .. }| {
        let [start, offset] = [start, protocol.checksum_offset()].map(|octets| u16::try_from(octets).ok());
        RemoteChecksum::of(Checksum::Partial { start: start?, offset: offset? })
    });
    if left.is_none() {
        frame.clone_from(&sent.frame);
        frame.truncate(LONGEST);
    }
    let mut packet = vec![0; HEADER_LEN + udp::HEADER_LEN + vxlan::HEADER_LEN];
    udp::write_header(&mut packet[HEADER_LEN..], 50_000, vxlan::PORT, vxlan::HEADER_LEN + frame.len());
    let vni = Vni::new(ENCRYPTED_VNI).expect("in range");
    vxlan::write_header(&mut packet[HEADER_LEN + udp::HEADER_LEN..], vni, left);
    packet.extend_from_slice(&frame);
    let len = packet.len() - HEADER_LEN;
    packet.resize(packet.len() + MAX_TRAILER_LEN, 0);
    let sealed = sa.seal(NOW, &mut packet, len).expect("there is room, and no limit is near").len();
    packet.truncate(sealed);
    packet
}

/// The ports that a frame of the encrypted network is for.
fn receivers(frame: &[u8]) -> Vec<PortSlot> {
    let ports = (0..4).map(PortSlot::new);
    let is_for = |port: &PortSlot| {
        let receiver = at_port(*port).expect("an endpoint");
        receiver.is_encrypted && super::overlay::is_for(frame, receiver)
    };
    let receivers: Vec<_> = ports.filter(is_for).collect();
    assert!(!receivers.is_empty() && ENDPOINTS.len() > receivers.len(), "delivered to nobody");
    receivers
}

/// The longest frame that a container's kernel gives, or a peer can send.
const LONGEST: usize = 65_000;
