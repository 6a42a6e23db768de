//! Datagrams from the wire: raw, authentic but malformed, replayed with bits changed, and plain.
//!
//! Whatever reaches a container is from an endpoint that is placed on the link or VTEP that brought
//! it, for that container, and the frame that was sent, but for its congestion mark (RFC 6040) and the
//! segment size of a SYN; everything else is counted as exactly one drop, and nothing goes back to the
//! wire. What merged frames are made of is the target `super_frames`' to judge.
//!
//! The first octet of the input is how the node is set up: bits 0 and 1 have containers take merged TCP
//! and UDP, bits 2 and 3 limit what they are sent ([`Limited`]), bits 4 and 5 say how many datagrams a
//! batch has, bit 6 gives outer headers a DSCP, and with bit 7 no TAP has room.
//!
//! The low three bits of a record's first octet say what is done with it ([`run`]), bit 3 lets time
//! pass before, bits 4 and 5 name the link or VTEP, the upper two are the ECN of the outer header.

use std::time::Duration;

use overlayd::boot_time::BootTime;
use overlayd::datapath::{
    Coalescer, Context, Delivery, Encapsulated, Ingress, LaneCounters, Merging, Notice, Outlet, Run,
    SuperFrame,
};
use overlayd::drop_reason::DropReason;
use overlayd::forward::Tables;
use overlayd::id::{LinkSlot, PortSlot, Vni, VtepSlot};
use overlayd::sa::{HEADER_LEN, MAX_TRAILER_LEN, OutboundSa, Sealed};
use overlayd::wire::traffic_class::TrafficClass;
use overlayd::wire::vnet_hdr::{Checksum, VnetHeader};
use overlayd::wire::{checksum, mss, udp, vxlan};

use super::limited::Limited;
use super::overlay::{
    At, ENCRYPTED_VNI, LINKS, MTU, NOW, PLAIN_VNI, at_port, esp_address, is_for, records, sa_pair, source_of,
    tables, tag_of, vtep_address,
};

/// Panics where a promise of the way inward is broken.
pub fn run(data: &[u8]) {
    let Some((&setup, rest)) = data.split_first() else { return };
    let mut node = Node::new(setup);
    for (what, bytes) in records(rest) {
        if what & 8 != 0 {
            node.advance();
        }
        let link = LINKS[usize::from(what >> 4 & 1)];
        let vtep = VtepSlot::new(u32::from(what >> 4 & 3));
        let (way, from) = (Way::Vxlan(vtep), Some(At::Vtep(vtep)));
        let sent = match what & 7 {
            0 => Sent { way: Way::Esp, from: None, datagram: bytes.to_vec(), frame: &[] },
            1 => Sent { way, from, datagram: bytes.to_vec(), frame: behind(bytes, vxlan::HEADER_LEN) },
            2 => Sent { frame: behind(bytes, INNER_HEADERS_LEN), ..node.sealed(link, bytes) },
            3 => Sent { frame: bytes, ..node.sealed(link, &inner_datagram(ENCRYPTED_VNI, bytes)) },
            4 => Sent { way, from, datagram: in_vxlan(PLAIN_VNI, bytes), frame: bytes },
            5 => Sent { way, from: None, datagram: in_vxlan(ENCRYPTED_VNI, bytes), frame: &[] },
            6 => Sent { way: Way::Esp, from: None, datagram: node.changed(bytes), frame: &[] },
            _ => Sent { from: None, ..node.sealed(link, &inner_datagram(PLAIN_VNI, bytes)) },
        };
        node.take(sent, what >> 6);
    }
    node.receive();
}

/// A datagram that somebody sends.
struct Sent<'a> {
    way: Way,
    /// Who may have sent it; nobody, if it must not be delivered.
    from: Option<At>,
    datagram: Vec<u8>,
    /// The frame in it, or more than that.
    frame: &'a [u8],
}

/// The port it comes to, and from whom.
#[derive(Clone, Copy)]
enum Way {
    Esp,
    Vxlan(VtepSlot),
}

/// The node that receives, and its peers as far as they seal.
struct Node {
    setup: u8,
    tables: Tables,
    ingress: Ingress,
    counters: LaneCounters,
    peers: [Box<OutboundSa>; 2],
    /// The last authentic packet.
    last: Vec<u8>,
    /// What has come and was not received yet.
    batch: Vec<(Way, TrafficClass, Vec<u8>)>,
    judge: Judge,
    now: BootTime,
}

impl Node {
    fn new(setup: u8) -> Self {
        let mut ingress = Ingress::new();
        let peers = LINKS.map(|link| {
            let (outbound, inbound) = sa_pair(link);
            ingress.install(link, inbound);
            outbound
        });
        let judge = Judge {
            allowed: Vec::new(),
            merging: Merging { tcp: setup & 1 != 0, udp: setup & 2 != 0 },
            limited: Limited::new(setup >> 2),
            is_full: setup & 0x80 != 0,
            halves: 0,
            refused: 0,
        };
        let (tables, counters) = (tables(), LaneCounters::new());
        let (last, batch) = (Vec::new(), Vec::new());
        Self { setup, tables, ingress, counters, peers, last, batch, judge, now: NOW }
    }

    fn advance(&mut self) {
        self.receive();
        self.now = self.now + PAUSE;
        self.judge.limited.advance(self.now);
    }

    /// A peer seals what may be no frame at all.
    fn sealed(&mut self, link: LinkSlot, datagram: &[u8]) -> Sent<'static> {
        let mut packet = vec![0; HEADER_LEN];
        packet.extend_from_slice(datagram);
        packet.resize(packet.len() + MAX_TRAILER_LEN, 0);
        let sealed = self.peers[link.index()].seal(self.now, &mut packet, datagram.len());
        packet.truncate(sealed.expect("there is room, and no limit is near").len());
        self.last.clone_from(&packet);
        Sent { way: Way::Esp, from: Some(At::Link(link)), datagram: packet, frame: &[] }
    }

    /// The last authentic packet again with bits changed, or with none changed.
    fn changed(&self, bits: &[u8]) -> Vec<u8> {
        self.last.iter().zip(bits.iter().chain(std::iter::repeat(&0))).map(|(a, b)| a ^ b).collect()
    }

    fn take(&mut self, Sent { way, from, datagram, frame }: Sent<'_>, ecn: u8) {
        let dscp = if self.setup & 0x40 == 0 { 0 } else { 0xb8 };
        let class = TrafficClass::new(ecn | dscp);
        self.judge.allowed.extend(from.map(|from| (from, frame.to_vec(), ecn)));
        self.batch.push((way, class, datagram));
        if self.batch.len() >= [1, 2, 8, 64][usize::from(self.setup >> 4 & 3)] {
            self.receive();
        }
    }

    /// Everything in the batch at once.
    fn receive(&mut self) {
        let (drops, mut batch) = (self.drops(), std::mem::take(&mut self.batch));
        let came = batch.len();
        let cx = Context { tables: &self.tables, counters: &self.counters, now: self.now };
        let mut coalescer = Coalescer::new();
        let (ingress, judge) = (&mut self.ingress, &mut self.judge);
        for (way, class, datagram) in &mut batch {
            match way {
                Way::Esp => {
                    let from = esp_address(LINKS[0]);
                    ingress.receive_esp(&cx, from, *class, datagram, &mut coalescer, judge);
                }
                Way::Vxlan(vtep) => {
                    let from = vtep_address(*vtep);
                    ingress.receive_vxlan(&cx, from, *class, datagram, &mut coalescer, judge);
                }
            }
        }
        coalescer.flush(&cx, judge);
        let dropped_before = usize::try_from(self.drops() - drops).expect("a batch") - self.judge.refused;
        let halves = self.judge.halves;
        assert_eq!(2 * dropped_before + halves, 2 * came, "{dropped_before} drops of {came}");
        (self.judge.halves, self.judge.refused) = (0, 0);
        self.judge.allowed.clear();
    }

    fn drops(&self) -> u64 {
        self.counters.drops().iter().sum()
    }
}

/// Judges what one batch leads to.
struct Judge {
    /// From where which frame may come, with the ECN of its outer header.
    allowed: Vec<(At, Vec<u8>, u8)>,
    merging: Merging,
    limited: Limited,
    is_full: bool,
    /// Halves of datagrams that came to where they are for: each network has two containers here, which
    /// both get what is for all.
    halves: usize,
    /// Frames for which there was no room.
    refused: usize,
}

impl Judge {
    /// Panics unless it is a frame of the batch, as this port may get it.
    fn assert_is_one(&self, from: At, header: &VnetHeader, frame: &[u8]) {
        let is_group = frame[0] & 1 == 1;
        let is_whole = !matches!(header.checksum, Checksum::Partial { .. });
        let expected = |sent: &[u8], ecn| {
            let mut expected = sent.get(..frame.len())?.to_vec();
            entered(&mut expected, ecn)?;
            if !is_group {
                mss::clamp(&mut expected, MTU, is_whole);
            }
            Some(expected)
        };
        let is_it = |(at, sent, ecn): &(At, Vec<u8>, u8)| {
            *at == from && expected(sent, *ecn).is_some_and(|expected| expected == frame)
        };
        assert!(self.allowed.iter().any(is_it), "nobody sent it");
    }
}

impl Outlet for Judge {
    fn send_esp(&mut self, _: &Run<'_, Sealed>) {
        panic!("what came from the wire goes back to it");
    }

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {
        panic!("what came from the wire goes back to it");
    }

    fn deliver(&mut self, port: PortSlot, header: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        let frame = &pieces.concat();
        let source = source_of(frame);
        let receiver = at_port(port).expect("the port of an endpoint");
        assert!(self.allowed.iter().any(|(from, ..)| *from == source.at), "the source is placed elsewhere");
        assert_eq!(source.is_encrypted, receiver.is_encrypted, "from one network into another");
        assert!(is_for(frame, receiver), "for another endpoint");
        source.assert_speaks(frame);
        let frames = match header.segmentation {
            Some(cut) => SuperFrame::parse(frame, header, cut).expect("what is merged can be cut").segments(),
            None => {
                self.assert_is_one(source.at, header, frame);
                1
            }
        };
        self.halves += if frame[0] & 1 == 1 { frames } else { 2 * frames };
        let delivery = if self.is_full {
            Delivery::Dropped(DropReason::TapFull)
        } else {
            self.limited.deliver(port, header, pieces)
        };
        if let Delivery::Dropped(_) = delivery {
            self.refused += frames;
        }
        delivery
    }

    fn merging(&self, port: PortSlot) -> Merging {
        self.limited.merging(port, self.merging)
    }

    fn notice(&mut self, _: Notice) {}
}

/// Gives a frame the congestion mark that its outer header brought (RFC 6040 figure 4); `None` where it
/// is to be dropped. The header checksum of IPv4 follows, right or wrong as it was.
fn entered(frame: &mut [u8], outer: u8) -> Option<()> {
    let tag_len = tag_of(frame).len();
    let frame = &mut frame[tag_len..];
    let Some(&[a, b, first, second]) = frame.get(12..16) else { return Some(()) };
    let inner = match [a, b] {
        [0x08, 0x00] => second & 3,
        [0x86, 0xdd] => second >> 4 & 3,
        _ => return Some(()),
    };
    let ecn = match (inner, outer) {
        (0, 3) => return None,
        (_, 3) => 3,
        (2, 1) => 1,
        _ => return Some(()),
    };
    if [a, b] == [0x86, 0xdd] {
        frame[15] = second & 0b1100_1111 | ecn << 4;
        return Some(());
    }
    frame[15] = second & 0b1111_1100 | ecn;
    let before = u16::from_be_bytes([frame[24], frame[25]]);
    let after = checksum::adjusted(before, [first, second], [first, frame[15]]);
    frame[24..26].copy_from_slice(&after.to_be_bytes());
    Some(())
}

fn behind(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(len..).unwrap_or_default()
}

fn in_vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; vxlan::HEADER_LEN];
    vxlan::write_header(&mut bytes, Vni::new(vni).expect("in range"), None);
    bytes.extend_from_slice(frame);
    bytes
}

/// What a peer seals around a frame; too long a one is cut.
fn inner_datagram(vni: u32, frame: &[u8]) -> Vec<u8> {
    let room = usize::from(u16::MAX) - udp::HEADER_LEN - vxlan::HEADER_LEN;
    let payload = in_vxlan(vni, &frame[..frame.len().min(room)]);
    let mut bytes = vec![0; udp::HEADER_LEN];
    udp::write_header(&mut bytes, 50_000, vxlan::PORT, payload.len());
    bytes.extend_from_slice(&payload);
    bytes
}

const INNER_HEADERS_LEN: usize = udp::HEADER_LEN + vxlan::HEADER_LEN;
/// Long enough for a slow limit to let some frames pass.
const PAUSE: Duration = Duration::from_millis(10);
