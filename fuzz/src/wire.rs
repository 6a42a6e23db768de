//! Every parser and writer of `wire` with the same bytes.
//!
//! Besides not panicking, each must agree with `etherparse` where that knows the format, never
//! show bytes that are not there, and read back what it writes.

use etherparse::{LaxNetSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice};
use overlayd::wire::frame::{Content, Frame};
use overlayd::wire::{arp, checksum, esp, ethernet, ipv4, ipv6, ndp, udp, vxlan};

use super::claims::{Claim, at};

/// Runs one input.
pub fn run(data: &[u8]) {
    ethernet_and_frame(data);
    arp_packet(data);
    ipv4_packet(data);
    ipv6_packet(data);
    encapsulation(data);
    advertisement(data);
    let sum = checksum::plain(data);
    if data.len() % 2 == 0 {
        let summed = [data, &sum.to_be_bytes()].concat();
        assert_eq!(checksum::plain(&summed), 0, "a packet with its checksum sums up to zero");
    }
}

fn ethernet_and_frame(data: &[u8]) {
    let header = ethernet::Header::parse(data);
    assert_eq!(header.is_ok(), data.len() >= ethernet::HEADER_LEN);
    if let Ok(header) = header {
        let mut written = [0; ethernet::HEADER_LEN];
        header.write(&mut written);
        assert_eq!(written, data[..ethernet::HEADER_LEN]);
    }
    let Ok(frame) = Frame::parse(data) else { return };
    assert_eq!(frame.destination.octets(), data[..6]);
    assert_eq!(frame.source.octets(), data[6..12]);
    assert!(udp::entropy_port(frame.flow_hash()) >= 49152);
    let claim = Claim::of(data);
    match frame.content {
        Content::Arp(packet) => {
            assert_eq!(claim, Claim::Arp { mac: packet.sender_mac.octets(), ip: packet.sender_ip });
        }
        Content::Ipv4(packet) => {
            assert_eq!(claim, Claim::Ip(packet.source.into()));
            ports_agree(data, packet.ports);
        }
        Content::Ipv6 { source, ports, listener_report, .. } => {
            match claim {
                Claim::Ip(ip) => assert_eq!(ip, source),
                Claim::ListenerReport(ip) => assert!(listener_report && ip == source),
                Claim::Arp { .. }
                | Claim::Advertisement { .. }
                | Claim::OtherDiscovery(_)
                | Claim::Unknown => panic!("{claim:?} taken for plain IPv6"),
            }
            ports_agree(data, ports);
        }
        Content::Discovery { message, .. } => match (message, &claim) {
            (
                ndp::Message::NeighborAdvertisement { target, .. },
                Claim::Advertisement { target: theirs, .. },
            ) => {
                assert_eq!(target, *theirs);
            }
            // Behind headers that etherparse does not walk, or cut by fragmentation.
            (ndp::Message::Invalid, _) | (_, Claim::Ip(_)) => {}
            (_, Claim::OtherDiscovery(133..=135 | 137)) => {}
            _ => panic!("{message:?} but {claim:?}"),
        },
        Content::Unsupported => assert_eq!(claim, Claim::Unknown),
    }
}

/// A strict parser's view of the ports, where it has one.
fn ports_agree(data: &[u8], ports: [u8; 4]) {
    let Ok(packet) = SlicedPacket::from_ethernet(data) else { return };
    let theirs = match packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            [udp.source_port().to_be_bytes(), udp.destination_port().to_be_bytes()]
        }
        Some(TransportSlice::Tcp(tcp)) => {
            [tcp.source_port().to_be_bytes(), tcp.destination_port().to_be_bytes()]
        }
        _ => return,
    };
    let is_atomic = match packet.net {
        // An atomic fragment is a fragment to us: its ports only spread the load.
        Some(NetSlice::Ipv6(ip)) => ip.extensions().first_header().is_some(),
        _ => false,
    };
    assert!(ports.as_slice() == theirs.as_flattened() || is_atomic && ports == [0; 4]);
}

fn arp_packet(data: &[u8]) {
    let Ok(packet) = arp::Packet::parse(data) else { return };
    let mut frame = [0; arp::REPLY_LEN];
    packet.write_frame(packet.target_mac, &mut frame);
    assert_eq!(frame[ethernet::HEADER_LEN..], data[..arp::LEN]);
    let owner = overlayd::id::MacAddr::new([2; 6]);
    let answer = packet.answer(owner);
    answer.write_frame(packet.sender_mac, &mut frame);
    assert_eq!(arp::Packet::parse(&frame[ethernet::HEADER_LEN..]), Ok(answer));
    assert_eq!((answer.sender_mac, answer.sender_ip), (owner, packet.target_ip));
}

fn ipv4_packet(data: &[u8]) {
    let Ok(packet) = ipv4::Packet::parse(data) else { return };
    let theirs = LaxSlicedPacket::from_ip(data).expect("what is IPv4 to us is to etherparse");
    let Some(LaxNetSlice::Ipv4(theirs)) = theirs.net else { panic!("not IPv4 to etherparse") };
    assert_eq!(packet.source, theirs.header().source_addr());
    assert_eq!(packet.destination, theirs.header().destination_addr());
}

fn ipv6_packet(data: &[u8]) {
    let Ok(packet) = ipv6::Packet::parse(data) else { return };
    assert_eq!(at(data, 8), Some(packet.source.octets()));
    assert_eq!(at(data, 24), Some(packet.destination.octets()));
    assert!(packet.payload.len() + ipv6::HEADER_LEN <= data.len());
    if let Some(message) = ndp::Message::parse(&packet) {
        assert_eq!(packet.protocol, ipv6::NEXT_HEADER_ICMPV6);
        let is_valid = message != ndp::Message::Invalid;
        assert!(!is_valid || packet.hop_limit == 255 && !packet.fragmented, "{message:?} was routed");
    }
}

fn encapsulation(data: &[u8]) {
    if let Ok((port, payload)) = udp::parse(data) {
        assert_eq!(at(data, 2), Some(port.to_be_bytes()));
        assert!(payload.len() + udp::HEADER_LEN <= data.len());
        let mut header = [0; udp::HEADER_LEN];
        udp::write_header(&mut header, 50_000, port, payload.len());
        assert_eq!(header[2..6], data[2..6]);
    }
    if let Ok((vni, payload)) = vxlan::parse(data) {
        assert_eq!(payload, &data[vxlan::HEADER_LEN..]);
        let mut header = [0; vxlan::HEADER_LEN];
        vxlan::write_header(&mut header, vni);
        assert_eq!(header[4..7], data[4..7]);
    }
    match esp::classify(data) {
        Ok(esp::Datagram::NatKeepalive) => assert_eq!(data, [0xff]),
        Ok(esp::Datagram::NonEspMarker) => assert_eq!(data[..4], [0; 4]),
        Ok(esp::Datagram::Esp(spi)) => {
            assert_eq!(at(data, 0), Some(spi.get().to_be_bytes()));
            assert!(spi.get() >= 256 && data.len() >= 34);
        }
        Err(_) => {}
    }
    let sealed = esp::sealed_len(data.len());
    assert!(sealed <= esp::HEADROOM + data.len() + esp::MAX_TRAILER_LEN);
    assert_eq!((sealed - esp::ICV_LEN) % 4, 0);
}

fn advertisement(data: &[u8]) {
    let (Some(target), Some(owner), Some(asker), Some(asker_ip)) =
        (at(data, 0), at(data, 16), at(data, 22), at(data, 28))
    else {
        return;
    };
    let [target, asker_ip] = [target, asker_ip].map(std::net::Ipv6Addr::from_octets);
    let [owner, asker] = [owner, asker].map(overlayd::id::MacAddr::new);
    let mut written = [0; ndp::ADVERTISEMENT_LEN];
    ndp::Advertisement { target, owner, router: data[0] & 1 == 1, asker, asker_ip }.write_frame(&mut written);
    let read = Frame::parse(&written).expect("what is written can be read");
    let message = ndp::Message::NeighborAdvertisement { target, target_link: Some(owner) };
    assert_eq!((read.source, read.content), (owner, Content::Discovery { source: target, message }));
}
