//! Every parser of bytes from containers and from the wire, on the input and on what follows its
//! first 14 octets.
//!
//! What a parser gives lies within its input, does not depend on what follows the packet, and reads
//! the same again where there is a writer.

use overlayd::id::MacAddr;
use overlayd::wire::frame::{Content, Frame};
use overlayd::wire::traffic_class::TrafficClass;
use overlayd::wire::{arp, checksum, esp, ethernet, icmp, ipv4, ipv6, mss, ndp, udp, vxlan};

/// Panics where a promise of `wire` is broken.
pub fn run(data: &[u8]) {
    frame(data);
    for bytes in [data, data.get(ethernet::HEADER_LEN..).unwrap_or_default()] {
        packets(bytes);
        tunnel(bytes);
    }
}

fn frame(bytes: &[u8]) {
    let Ok(frame) = Frame::parse(bytes) else { return };
    assert!(udp::entropy_port(frame.flow_hash()) >= 49152);
    rewritten(bytes, frame);
    let header = ethernet::Header::parse(bytes).expect("a frame has a header");
    assert_eq!((header.destination, header.source), (frame.destination, frame.source));
    let mut written = vec![0; header.end()];
    header.write(&mut written);
    assert_eq!((&written[..], header.tag), (&bytes[..header.end()], frame.tag));
    assert_eq!(Frame::parse(&[bytes, &[0xa5; 60]].concat()), Ok(frame), "padding changes the frame");
    let payload = &bytes[header.end()..];
    let len = match frame.content {
        Content::Arp(_) => arp::LEN,
        Content::Ipv4(_) => usize::from(u16::from_be_bytes([payload[2], payload[3]])),
        Content::Ipv6 { .. } | Content::Discovery { .. } => {
            ipv6::HEADER_LEN + usize::from(u16::from_be_bytes([payload[4], payload[5]]))
        }
        Content::Unsupported => 0,
    };
    assert_eq!(Frame::parse(&bytes[..header.end() + len]), Ok(frame), "what follows the packet changes it");
}

/// What a tunnel changes in a frame leaves it the same frame, and what is too big is answered to its
/// sender and to nobody else.
fn rewritten(bytes: &[u8], frame: Frame) {
    for change in [
        |bytes: &mut [u8]| mss::clamp(bytes, 1408, true),
        |bytes: &mut [u8]| mss::clamp(bytes, 0, false),
        |bytes: &mut [u8]| {
            let _ = TrafficClass::new(0xff).enter(bytes);
        },
        |bytes: &mut [u8]| {
            let _ = TrafficClass::new(1).enter(bytes);
        },
    ] {
        let mut changed = bytes.to_vec();
        change(&mut changed);
        assert_eq!(Frame::parse(&changed), Ok(frame));
    }
    let mut room = [0; icmp::TOO_BIG_ROOM];
    let Some(len) = icmp::write_too_big(bytes, 1408, &mut room) else { return };
    let answer = Frame::parse(&room[..len]).expect("what we write is a frame");
    assert_eq!((answer.destination, answer.source), (frame.source, frame.destination));
    let (Content::Ipv4(_) | Content::Ipv6 { .. }) = answer.content else { panic!("{answer:?}") };
    assert_eq!(icmp::write_too_big(&room[..len], 1408, &mut [0; icmp::TOO_BIG_ROOM]), None);
}

fn packets(bytes: &[u8]) {
    if let Ok(packet) = arp::Packet::parse(bytes) {
        let owner = MacAddr::new([2, 0, 0, 0, 0, 9]);
        for written in [packet, packet.answer(owner)] {
            let mut frame = [0; arp::REPLY_LEN];
            written.write_frame(MacAddr::BROADCAST, &mut frame);
            let read = Frame::parse(&frame).expect("what we write is a frame");
            assert_eq!((read.source, read.content), (written.sender_mac, Content::Arp(written)));
        }
    }
    if let Ok(packet) = ipv4::Packet::parse(bytes) {
        assert_eq!((packet.source.octets(), packet.destination.octets()), (four(bytes, 12), four(bytes, 16)));
    }
    if let Ok(packet) = ipv6::Packet::parse(bytes) {
        assert!(packet.payload.is_empty() || lies_within(packet.payload, &bytes[ipv6::HEADER_LEN..]));
        if packet.fragmented {
            assert_eq!(packet.ports(), [0; 4], "a fragment has no ports");
        }
        let _ = checksum::ipv6(packet.source, packet.destination, packet.protocol, packet.payload);
        if let Some(message) = ndp::Message::parse(&packet) {
            discovery(&packet, message);
        }
    }
    let _ = checksum::plain(bytes);
}

/// A solicitation's answer reads as what it was written from.
fn discovery(packet: &ipv6::Packet<'_>, message: ndp::Message) {
    assert!(message == ndp::Message::Invalid || !packet.fragmented && packet.hop_limit == 255);
    let ndp::Message::NeighborSolicitation { target, source_link } = message else { return };
    let owner = MacAddr::new([2, 0, 0, 0, 0, 9]);
    let asker = source_link.unwrap_or(MacAddr::BROADCAST);
    let mut frame = [0; ndp::ADVERTISEMENT_LEN];
    ndp::Advertisement { target, owner, router: false, asker, asker_ip: packet.source }
        .write_frame(&mut frame);
    let answer = ipv6::Packet::parse(&frame[ethernet::HEADER_LEN..]).expect("what we write is IPv6");
    assert_eq!(checksum::ipv6(answer.source, answer.destination, answer.protocol, answer.payload), 0);
    let expected = ndp::Message::NeighborAdvertisement { target, target_link: Some(owner) };
    assert_eq!(ndp::Message::parse(&answer), Some(expected));
}

fn tunnel(bytes: &[u8]) {
    if let Ok((_, payload)) = udp::parse(bytes) {
        assert!(lies_within(payload, &bytes[udp::HEADER_LEN..]));
        assert_eq!(payload.len() + udp::HEADER_LEN, usize::from(u16::from_be_bytes([bytes[4], bytes[5]])));
    }
    if let Ok(packet) = vxlan::parse(bytes) {
        let vxlan::Packet { vni, checksum, frame } = packet;
        assert!(frame.len() + vxlan::HEADER_LEN == bytes.len() && lies_within(frame, bytes));
        let mut written = bytes.to_vec();
        vxlan::write_header(&mut written, vni, checksum);
        assert_eq!(vxlan::parse(&written), Ok(packet));
        let again = checksum.map(|left| vxlan::RemoteChecksum::of(left.state()));
        assert_eq!(again, checksum.map(Some));
    }
    match esp::classify(bytes) {
        Ok(esp::Datagram::Esp(spi)) => {
            assert_eq!(spi.get().to_be_bytes(), four(bytes, 0));
            assert!(bytes.len() >= esp::HEADER_LEN + esp::IV_LEN + 2 + esp::ICV_LEN);
        }
        Ok(esp::Datagram::NatKeepalive) => assert_eq!(bytes, [0xff]),
        Ok(esp::Datagram::NonEspMarker) => assert_eq!(four(bytes, 0), [0; 4]),
        Err(_) => {}
    }
}

fn lies_within(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

fn four(bytes: &[u8], offset: usize) -> [u8; 4] {
    super::overlay::array(bytes, offset)
}
