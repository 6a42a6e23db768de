//! Frames from containers, honest or not.
//!
//! What leaves in ESP opens at the peer to a frame that a port of the encrypted network sent under its
//! own name; what leaves in plain VXLAN is so from a port of the unencrypted network; what is
//! delivered next door is so too, or answers the one who asked. A frame goes only where its
//! destination is, and none leaves that is longer than the MTU.
//!
//! The first octet of the input is how the lane is set up: bit 0 shows DSCP outside, bit 1 has checksums
//! made, bits 2 and 3 limit what containers are sent ([`Limited`]), bit 4 what they send, bit 5 lets
//! them flood at will, bits 6 and 7 have them take no merged TCP and UDP.
//!
//! Of a record's first octet the low three bits name the port, and bits 3 and 4 what its kernel says of
//! the checksum: it is whole, verified, left to do, or left to do where the first two octets of the
//! record say. Bit 5 lets time pass before, bit 7 sends what has gathered.

use std::net::SocketAddr;
use std::time::Duration;

use overlayd::datapath::{
    Context, Delivery, Egress, Encapsulated, FloodLimit, LaneCounters, Merging, Notice, Outlet, Run,
    SendToken,
};
use overlayd::id::PortSlot;
use overlayd::sa::{InboundSa, Sealed};
use overlayd::wire::traffic_class::{Dscp, TrafficClass};
use overlayd::wire::transport::Transport;
use overlayd::wire::vnet_hdr::{Checksum, VnetHeader};
use overlayd::wire::vxlan::LeftChecksums;
use overlayd::wire::{checksum, ethernet, mss, udp, vxlan};

use super::limited::{Allowance, Limited, SLOW};
use super::overlay::{
    At, ENCRYPTED_VNI, ENDPOINTS, Endpoint, LINKS, MTU, NO_PORT, NOW, PLAIN_VNI, array, at_port, esp_address,
    is_answer, is_for, records, sa_pair, source_of, tables, tag_of, vtep_address,
};

/// Panics where a promise of the way outward is broken.
pub fn run(data: &[u8]) {
    let Some((&setup, records_of)) = data.split_first() else { return };
    let (tables, counters) = (tables(), LaneCounters::new());
    let dscp = if setup & 1 == 0 { Dscp::Hidden } else { Dscp::Copied };
    let checksums = if setup & 2 == 0 { LeftChecksums::Passed } else { LeftChecksums::Made };
    let burst = if setup & 0x20 == 0 { 5 } else { 1_000_000 };
    let mut egress =
        Egress::new(FloodLimit { frames_per_second: 10, burst }).with_dscp(dscp).with_checksums(checksums);
    let peers = LINKS.map(|link| {
        let (outbound, inbound) = sa_pair(link);
        egress.install(link, outbound);
        inbound
    });
    let merging = Merging { tcp: setup & 0x40 == 0, udp: setup & 0x80 == 0 };
    let mut judge =
        Judge { peers, submitted: Vec::new(), dscp, checksums, merging, limited: Limited::new(setup >> 2) };
    let mut allowances: Vec<_> = (0..=NO_PORT.get()).map(|_| Allowance::new(SLOW)).collect();
    let mut now = NOW;
    for (what, bytes) in records(records_of) {
        if what & 0x20 != 0 {
            now = now + PAUSE;
            judge.limited.advance(now);
        }
        let port = PortSlot::new(u32::from(what & 7).min(NO_PORT.get()));
        let place = egress.reserve(&tables, port, &mut judge);
        let (header, bytes) = said_of(what >> 3 & 3, bytes);
        let frame = &bytes[..bytes.len().min(place.head.len() + place.rest.len())];
        if setup & 0x10 != 0 && !allowances[port.index()].passes(&header, frame, now) {
            continue;
        }
        place.fill(frame);
        judge.submitted.push(Submitted::new(port, &header, frame));
        let cx = Context { tables: &tables, counters: &counters, now };
        egress.submit(&cx, port, &header, frame.len(), &mut judge);
        if what & 0x80 != 0 {
            egress.flush(&mut judge);
        }
    }
    egress.flush(&mut judge);
}

/// What a kernel says of a frame, and the frame.
fn said_of(what: u8, bytes: &[u8]) -> (VnetHeader, &[u8]) {
    let partial = |start, offset| Checksum::Partial { start, offset };
    let (checksum, frame) = match what {
        0 => (Checksum::Complete, bytes),
        1 => (Checksum::Verified, bytes),
        2 => {
            let transport = Transport::locate(bytes).ok().flatten();
            let left = transport.and_then(|Transport { start, protocol, .. }| {
                Some(partial(u16::try_from(start).ok()?, u16::try_from(protocol.checksum_offset()).ok()?))
            });
            (left.unwrap_or(Checksum::Complete), bytes)
        }
        _ => match bytes {
            [start, offset, frame @ ..] => (partial(u16::from(*start), u16::from(*offset)), frame),
            _ => (Checksum::Complete, bytes),
        },
    };
    (VnetHeader { checksum, ..VnetHeader::COMPLETE }, frame)
}

/// A frame that a container sent.
struct Submitted {
    port: PortSlot,
    /// As its kernel gave it.
    given: Vec<u8>,
    /// As it may leave: with its checksum, and with the segment size of a SYN, whichever was made first.
    whole: [Option<Vec<u8>>; 2],
}

impl Submitted {
    fn new(port: PortSlot, header: &VnetHeader, frame: &[u8]) -> Self {
        let whole = [true, false].map(|is_made_first| {
            let mut whole = frame.to_vec();
            if is_made_first {
                make(&mut whole, header.checksum)?;
                mss::clamp(&mut whole, MTU, true);
            } else {
                mss::clamp(&mut whole, MTU, header.checksum == Checksum::Complete);
                make(&mut whole, header.checksum)?;
            }
            Some(whole)
        });
        Self { port, given: frame.to_vec(), whole }
    }
}

/// Makes a checksum that was left; `None` where there is no place for it.
fn make(frame: &mut [u8], state: Checksum) -> Option<()> {
    let Checksum::Partial { start, offset } = state else { return Some(()) };
    checksum::complete(frame, start.into(), offset.into()).ok()
}

/// The peers and the ports next door, who judge what they get.
struct Judge {
    peers: [Box<InboundSa>; 2],
    submitted: Vec<Submitted>,
    dscp: Dscp,
    checksums: LeftChecksums,
    merging: Merging,
    limited: Limited,
}

impl Judge {
    /// Panics unless a container of the network sent the frame, may have sent it, and to there.
    fn assert_may_leave(&self, frame: &[u8], is_encrypted: bool, to: At) -> Endpoint {
        let sender = source_of(frame);
        let port = sender.port().expect("what leaves is from a port of this node");
        assert_eq!(sender.is_encrypted, is_encrypted, "from one network into another");
        sender.assert_speaks(frame);
        let is_it = |whole: &Option<Vec<u8>>| whole.as_deref() == Some(frame);
        let is_its = |sent: &Submitted| sent.port == port && sent.whole.iter().any(is_it);
        assert!(self.submitted.iter().any(is_its), "nobody sent it");
        assert!(frame.len() <= ethernet::HEADER_LEN + usize::from(MTU), "longer than the MTU");
        let mut there = ENDPOINTS.into_iter().filter(|endpoint| endpoint.at == to);
        assert!(there.any(|endpoint| is_for(frame, endpoint)), "the destination is elsewhere");
        sender
    }

    /// Panics unless the outer header is to say of the frame what it may.
    fn assert_class(&self, class: TrafficClass, frame: &[u8]) {
        let inner = match frame[tag_of(frame).len()..][12..16] {
            [0x08, 0x00, _, octet] => octet,
            [0x86, 0xdd, high, low] => high << 4 | low >> 4,
            _ => 0,
        };
        let shown = match self.dscp {
            Dscp::Hidden => inner & 3,
            Dscp::Copied => inner,
        };
        assert_eq!(class.get(), shown);
    }
}

impl Outlet for Judge {
    fn send_esp(&mut self, run: &Run<'_, Sealed>) {
        let link = *LINKS.iter().find(|link| esp_address(**link) == run.to()).expect("a peer");
        assert_segments(run);
        for packet in run.datagrams() {
            let mut packet = packet.to_vec();
            let opened = self.peers[link.index()].open(NOW, &mut packet).expect("the peer can open it");
            let (port, payload) = udp::parse(opened.payload()).expect("an inner UDP datagram");
            assert_eq!(port, vxlan::PORT);
            assert_eq!(vni_of(payload), ENCRYPTED_VNI);
            let packet = vxlan::parse(payload).expect("VXLAN");
            let mut frame = packet.frame.to_vec();
            self.assert_class(run.class(), &frame);
            if let Some(left) = packet.checksum {
                assert_eq!(self.checksums, LeftChecksums::Passed);
                make(&mut frame, left.state()).expect("the field lies in the frame");
            }
            self.assert_may_leave(&frame, true, At::Link(link));
        }
    }

    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>) {
        let vtep = ENDPOINTS.into_iter().find(|endpoint| address_of(*endpoint) == Some(run.to()));
        assert_segments(run);
        for packet in run.datagrams() {
            assert_eq!(vni_of(packet), PLAIN_VNI, "another network's frame in the clear");
            let packet = vxlan::parse(packet).expect("VXLAN");
            assert_eq!(packet.checksum, None, "a checksum is left where nothing proves it");
            self.assert_class(run.class(), packet.frame);
            self.assert_may_leave(packet.frame, false, vtep.expect("a VTEP").at);
        }
    }

    fn deliver(&mut self, port: PortSlot, header: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        let mut frame = pieces.concat();
        make(&mut frame, header.checksum).expect("the field lies in the frame");
        let frame = &frame;
        let receiver = at_port(port).expect("the port of an endpoint");
        if let Some(sent) = self.submitted.last().filter(|sent| sent.port == port) {
            let is_answer = is_answer_to_too_big(frame, &sent.given) || is_answer(frame, receiver);
            assert!(is_answer, "a port gets back what is no answer");
            assert_eq!(tag_of(frame), tag_of(&sent.given), "the answer is in another VLAN");
        } else {
            let sender = self.assert_may_leave(frame, receiver.is_encrypted, receiver.at);
            assert_ne!(sender, receiver);
        }
        self.limited.deliver(port, header, pieces)
    }

    fn merging(&self, port: PortSlot) -> Merging {
        self.limited.merging(port, self.merging)
    }

    fn notice(&mut self, _: Notice) {}
}

/// Whether a port is told that what it sent is too big, from where it sent it to.
fn is_answer_to_too_big(frame: &[u8], sent: &[u8]) -> bool {
    let tag_len = tag_of(sent).len();
    let (quoted, expected) = match frame.get(tag_len + 12..) {
        Some([0x08, 0x00, ..]) => (42, [3, 4]),
        Some([0x86, 0xdd, ..]) => (62, [2, 0]),
        Some(_) | None => return false,
    };
    let quoted = tag_len + quoted;
    if frame.len() < quoted || frame[quoted - 8..quoted - 6] != expected {
        return false;
    }
    let quote = &frame[quoted..];
    assert!(sent.len() > ethernet::HEADER_LEN + usize::from(MTU), "it was not too big");
    let mtu = usize::from(u16::from_be_bytes(array(frame, quoted - 2)));
    assert_eq!(mtu + tag_len, usize::from(MTU));
    assert_eq!(quote, &sent[tag_len + ethernet::HEADER_LEN..][..quote.len()]);
    assert_eq!((&frame[..6], &frame[6..12]), (&sent[6..12], &sent[..6]));
    true
}

fn address_of(endpoint: Endpoint) -> Option<SocketAddr> {
    match endpoint.at {
        At::Vtep(vtep) => Some(vtep_address(vtep)),
        At::Port(_) | At::Link(_) => None,
    }
}

/// The kernel cuts the run as we do.
fn assert_segments<P: SendToken>(run: &Run<'_, P>) {
    assert_eq!(run.datagrams().count(), run.packets());
    assert!(run.packets() <= 64 && run.bytes().len() <= 65_507);
}

fn vni_of(packet: &[u8]) -> u32 {
    let [flags, _, _, _, a, b, c, _] = array::<8>(packet, 0);
    assert_eq!(flags, 0x08);
    u32::from_be_bytes([0, a, b, c])
}

/// Long enough for a slow limit to let some frames pass.
const PAUSE: Duration = Duration::from_millis(10);
