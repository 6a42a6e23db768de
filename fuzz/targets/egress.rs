//! Frames from containers, honest or not.
//!
//! What leaves in ESP opens at the peer to a frame that a port of the encrypted network sent under its
//! own name; what leaves in plain VXLAN is so from a port of the unencrypted network; what is
//! delivered next door is so too, or answers the one who asked. A frame goes only where its
//! destination is, and none leaves that is longer than the MTU.
//!
//! The low bits of a record's first octet name the port, bit 7 sends what has gathered.

use std::net::SocketAddr;

use overlayd::datapath::{
    Context, Delivery, Egress, Encapsulated, FloodLimit, LaneCounters, Merging, Notice, Outlet, Run,
    SendToken,
};
use overlayd::id::PortSlot;
use overlayd::sa::{InboundSa, Sealed};
use overlayd::wire::vnet_hdr::VnetHeader;
use overlayd::wire::{ethernet, mss, udp, vxlan};

use super::overlay::{
    At, ENCRYPTED_VNI, ENDPOINTS, Endpoint, LINKS, MTU, NO_PORT, NOW, PLAIN_VNI, array, at_port, esp_address,
    is_answer, is_for, records, sa_pair, source_of, tables, vtep_address,
};

/// Panics where a promise of the way outward is broken.
pub fn run(data: &[u8]) {
    let (tables, counters) = (tables(), LaneCounters::new());
    let cx = Context { tables: &tables, counters: &counters, now: NOW };
    let mut egress = Egress::new(FloodLimit { frames_per_second: 10, burst: 5 });
    let peers = LINKS.map(|link| {
        let (outbound, inbound) = sa_pair(link);
        egress.install(link, Box::new(outbound));
        inbound
    });
    let mut judge = Judge { peers, submitted: Vec::new() };
    for (what, bytes) in records(data) {
        let port = PortSlot::new(u32::from(what & 0x7f).min(NO_PORT.get()));
        let place = egress.reserve(&tables, port, &mut judge);
        let frame = &bytes[..bytes.len().min(place.head.len() + place.rest.len())];
        place.fill(frame);
        let mut clamped = frame.to_vec();
        mss::clamp(&mut clamped, MTU, true);
        judge.submitted.push((port, clamped));
        egress.submit(&cx, port, &VnetHeader::COMPLETE, frame.len(), &mut judge);
        if what & 0x80 != 0 {
            egress.flush(&mut judge);
        }
    }
    egress.flush(&mut judge);
}

/// The peers and the ports next door, who judge what they get.
struct Judge {
    peers: [InboundSa; 2],
    /// Every frame, with the segment size of a SYN as it may leave, and the port that it came from.
    submitted: Vec<(PortSlot, Vec<u8>)>,
}

impl Judge {
    /// Panics unless a container of the network sent the frame, may have sent it, and to there.
    fn assert_may_leave(&self, frame: &[u8], is_encrypted: bool, to: At) -> Endpoint {
        let sender = source_of(frame);
        let port = sender.port().expect("what leaves is from a port of this node");
        assert_eq!(sender.is_encrypted, is_encrypted, "from one network into another");
        sender.assert_speaks(frame);
        assert!(self.submitted.iter().any(|sent| sent.0 == port && sent.1 == frame), "nobody sent it");
        assert!(frame.len() <= ethernet::HEADER_LEN + usize::from(MTU), "longer than the MTU");
        let mut there = ENDPOINTS.into_iter().filter(|endpoint| endpoint.at == to);
        assert!(there.any(|endpoint| is_for(frame, endpoint)), "the destination is elsewhere");
        sender
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
            self.assert_may_leave(&payload[vxlan::HEADER_LEN..], true, At::Link(link));
        }
    }

    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>) {
        let vtep = ENDPOINTS.into_iter().find(|endpoint| address_of(*endpoint) == Some(run.to()));
        assert_segments(run);
        for packet in run.datagrams() {
            assert_eq!(vni_of(packet), PLAIN_VNI, "another network's frame in the clear");
            self.assert_may_leave(&packet[vxlan::HEADER_LEN..], false, vtep.expect("a VTEP").at);
        }
    }

    fn deliver(&mut self, port: PortSlot, _: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        let frame = &pieces.concat();
        let receiver = at_port(port).expect("the port of an endpoint");
        if let Some((_, sent)) = self.submitted.last().filter(|(asker, _)| *asker == port) {
            let is_answer = is_answer_to_too_big(frame, sent) || is_answer(frame, receiver);
            assert!(is_answer, "a port gets back what is no answer");
        } else {
            let sender = self.assert_may_leave(frame, receiver.is_encrypted, receiver.at);
            assert_ne!(sender, receiver);
        }
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging { tcp: true, udp: true }
    }

    fn notice(&mut self, _: Notice) {}
}

/// Whether a port is told that what it sent is too big, from where it sent it to.
fn is_answer_to_too_big(frame: &[u8], sent: &[u8]) -> bool {
    let (quoted, expected) = match frame.get(12..) {
        Some([0x08, 0x00, ..]) => (42, [3, 4]),
        Some([0x86, 0xdd, ..]) => (62, [2, 0]),
        Some(_) | None => return false,
    };
    if frame.len() < quoted || frame[quoted - 8..quoted - 6] != expected {
        return false;
    }
    let quote = &frame[quoted..];
    assert!(sent.len() > ethernet::HEADER_LEN + usize::from(MTU), "it was not too big");
    assert_eq!(frame[quoted - 2..quoted], MTU.to_be_bytes());
    assert_eq!(quote, &sent[ethernet::HEADER_LEN..][..quote.len()]);
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
