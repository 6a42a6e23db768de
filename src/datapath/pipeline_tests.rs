//! Frames all the way from one node's container to another's, and what stops them on the way.

use std::time::Duration;

use super::testbed::*;
use super::{Notice, PeerCounters};
use crate::drop_reason::DropReason::{self, *};
use crate::id::{LinkSlot, MacAddr, Spi};
use crate::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Suite};
use crate::wire::{esp, frame, udp, vxlan};

#[test]
fn unicast_frame_arrives_unchanged_and_only_as_esp() {
    let (mut a, mut b) = keyed_nodes();
    for len in [0, 1, 2, 3, 64, 512, 1380] {
        let frame = udp4(A, B, &vec![0x5a; len]);
        a.send(PORT, &frame);
        let sent = a.sent_esp();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].0, b.esp_address);
        assert_eq!(sent[0].1.len(), esp::sealed_len(frame.len()));
        assert!(len < 3 || !contains(&sent[0].1, &[0x5a; 3]), "plaintext on the wire");
        b.receive_esp(a.esp_address, &sent[0].1);
        assert_eq!(b.delivered(), [(PORT, frame)]);
    }
    assert!(a.out.vxlan.is_empty() && a.drops().is_empty() && b.drops().is_empty());
}

#[test]
fn batch_to_one_peer_leaves_in_order_and_arrives_whole() {
    let (mut a, mut b) = keyed_nodes();
    let frames: Vec<_> = (0..400u16).map(|n| udp4(A, B, &vec![7; usize::from(n % 5) * 300])).collect();
    frames.iter().for_each(|frame| a.submit(PORT, frame));
    a.egress.flush(&mut a.out);
    for (_, packet) in a.sent_esp() {
        b.receive_esp(a.esp_address, &packet);
    }
    let arrived: Vec<_> = b.delivered().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(arrived, frames);
}

#[test]
fn inner_header_is_vxlan_to_its_port_with_the_network_of_the_sa() {
    let (mut a, b) = keyed_nodes();
    let frame = udp4(A, B, b"x");
    a.send(PORT, &frame);
    let mut packet = a.sent_esp().remove(0).1;
    let key = KeyMaterial::new(Suite::Aes256Gcm, &[0x10; KeyMaterial::LEN]);
    let spi = Spi::new(0x1000).expect("no reserved SPI");
    let mut sa = InboundSa::new(spi, key, Limits::standard(Suite::Aes256Gcm), b.now);
    let opened = sa.open(b.now, &mut packet).expect("authentic");
    let (port, payload) = udp::parse(opened.payload()).expect("UDP");
    assert_eq!(port, 4789);
    assert!(u16::from_be_bytes([opened.payload()[0], opened.payload()[1]]) >= 49152);
    let vni = crate::id::Vni::new(ENCRYPTED_VNI).expect("in range");
    assert_eq!(vxlan::parse(payload), Ok(vxlan::Packet { vni, checksum: None, frame: &frame[..] }));
}

#[test]
fn frame_between_local_containers_never_leaves_the_node() {
    let (mut a, _) = keyed_nodes();
    let frame = udp4(A, A_NEIGHBOR, b"next door");
    a.send(PORT, &frame);
    assert_eq!(a.delivered(), [(NEIGHBOR_PORT, frame)]);
    assert!(a.out.esp.is_empty() && a.out.vxlan.is_empty());
}

#[test]
fn broadcast_reaches_local_containers_and_each_peer_once() {
    let (mut a, mut b) = keyed_nodes();
    let frame = broadcast(A);
    a.send(PORT, &frame);
    assert_eq!(a.delivered(), [(NEIGHBOR_PORT, frame.clone())]);
    let sent = a.sent_esp();
    assert_eq!(sent.len(), 1, "one copy for the peer with a key, none for the third");
    b.receive_esp(a.esp_address, &sent[0].1);
    let ports: Vec<_> = b.delivered().into_iter().map(|(port, _)| port).collect();
    assert_eq!(ports, [PORT, NEIGHBOR_PORT, GATEWAY_PORT]);
    assert!(b.out.esp.is_empty() && b.out.vxlan.is_empty(), "no transit");
    assert_eq!(a.drops(), [(NoKey, 1)]);
}

#[test]
fn broadcast_above_the_rate_is_dropped_until_tokens_return() {
    let (mut a, _) = keyed_nodes();
    for _ in 0..8 {
        a.send(PORT, &broadcast(A));
    }
    assert_eq!(a.counters.dropped(FloodRateLimited), 3);
    a.send(NEIGHBOR_PORT, &broadcast(A_NEIGHBOR));
    a.advance(Duration::from_millis(100));
    a.send(PORT, &broadcast(A));
    assert_eq!(a.counters.dropped(FloodRateLimited), 3);
}

#[test]
fn without_a_key_nothing_leaves_and_control_hears_of_it_once_a_second() {
    let (mut a, _) = nodes();
    for _ in 0..10 {
        a.send(PORT, &udp4(A, B, b"secret"));
    }
    a.send(PORT, &udp4(A, THIRD, b"secret"));
    assert!(a.out.esp.is_empty() && a.out.vxlan.is_empty());
    assert_eq!(a.drops(), [(NoKey, 11)]);
    assert_eq!(a.counters.link(LINK).last_drop, Some(NoKey));
    assert_eq!(a.counters.port(PORT).drops, 11);
    let notices = [Notice::NoKey { link: LINK }, Notice::NoKey { link: LINK_TO_THIRD }];
    assert_eq!(a.out.notices, notices);
    a.advance(Duration::from_secs(1));
    a.send(PORT, &udp4(A, B, b"secret"));
    assert_eq!(a.out.notices.len(), 3);
}

#[test]
fn removed_key_stops_both_directions_at_once() {
    let (mut a, mut b) = keyed_nodes();
    a.send(PORT, &udp4(A, B, b"before"));
    let packet = a.sent_esp().remove(0).1;
    a.egress.remove(LINK);
    b.ingress.remove(LINK);
    a.send(PORT, &udp4(A, B, b"after"));
    b.receive_esp(a.esp_address, &packet);
    assert!(a.out.esp.is_empty() && b.delivered().is_empty());
    assert_eq!((a.drops(), b.drops()), (vec![(NoKey, 1)], vec![(UnknownSpi, 1)]));
}

#[test]
fn link_that_the_tables_give_to_another_network_carries_nothing() {
    let (mut a, _) = keyed_nodes();
    a.tables = crate::forward::TablesBuilder::default()
        .network(
            crate::id::NetSlot::new(0),
            a.tables.shared_network(crate::id::NetSlot::new(0)).unwrap().clone(),
        )
        .link(LINK, crate::id::NetSlot::new(1), "192.0.2.2:4500".parse().unwrap())
        .build();
    a.send(PORT, &udp4(A, B, b"secret"));
    assert!(a.out.esp.is_empty());
    assert_eq!(a.drops(), [(NoKey, 1)]);
}

#[test]
fn exhausted_and_expired_sas_seal_nothing_and_ask_for_a_key() {
    for (limits, expected) in [
        (Limits { hard_packets: 2, soft_packets: 1, ..Limits::standard(Suite::Aes256Gcm) }, SaExhausted),
        (Limits { hard_age: Duration::ZERO, ..Limits::standard(Suite::Aes256Gcm) }, SaExpired),
    ] {
        let (mut a, mut b) = nodes();
        connect(&mut a, &mut b, 0x1000, limits);
        for _ in 0..3 {
            a.send(PORT, &udp4(A, B, b"x"));
        }
        assert!(a.counters.dropped(expected) > 0, "{expected:?}");
        // Once at the soft limit, where there is one, and once a second at the hard one.
        let wanted = Notice::RekeyWanted { link: LINK, spi: Spi::new(0x1000).unwrap() };
        assert_eq!(a.out.notices, vec![wanted; 1 + usize::from(expected == SaExhausted)]);
    }
}

#[test]
fn replayed_too_old_and_forged_packets_are_not_delivered() {
    let (mut a, mut b) = keyed_nodes();
    a.send(PORT, &udp4(A, B, b"one"));
    let first = a.sent_esp().remove(0).1;
    let mut forged = first.clone();
    *forged.last_mut().unwrap() ^= 1;
    b.receive_esp(a.esp_address, &forged);
    assert_eq!(b.drops(), [(AuthenticationFailed, 1)]);
    b.receive_esp(a.esp_address, &first);
    b.receive_esp(a.esp_address, &first);
    assert_eq!(b.delivered().len(), 1);
    assert_eq!(b.counters.dropped(Replayed), 1);
    for _ in 0..9000 {
        a.submit(PORT, &udp4(A, B, b""));
    }
    a.egress.flush(&mut a.out);
    let last = a.sent_esp().pop().unwrap().1;
    b.receive_esp(a.esp_address, &last);
    b.receive_esp(a.esp_address, &first);
    assert_eq!(b.counters.dropped(ReplayTooOld), 1);
    assert_eq!(b.delivered().len(), 1);
    assert_eq!(b.counters.link(LINK).last_drop, Some(ReplayTooOld));
}

#[test]
fn too_many_forgeries_ask_for_a_new_key_once() {
    let (mut a, mut b) = nodes();
    connect(&mut a, &mut b, 0x1000, Limits { failed_opens: 3, ..Limits::standard(Suite::Aes256Gcm) });
    a.send(PORT, &udp4(A, B, b"one"));
    let mut forged = a.sent_esp().remove(0).1;
    forged[20] ^= 1;
    for _ in 0..6 {
        b.receive_esp(a.esp_address, &forged);
    }
    assert!(
        matches!(b.out.notices.as_slice(), [Notice::RekeyWanted { link: LINK, .. }]),
        "{:?}",
        b.out.notices
    );
}

#[test]
fn sas_end_in_their_order_whatever_was_installed_retired_or_removed_meanwhile() {
    let (_, b) = keyed_nodes();
    let (mut ingress, now) = (super::Ingress::new(), b.now);
    let limits = Limits::standard(Suite::Aes256Gcm);
    let spi = |number| Spi::new(0x9000 + number).expect("no reserved SPI");
    let key = || KeyMaterial::new(Suite::Aes256Gcm, &[7; KeyMaterial::LEN]);
    let at = |seconds: u64| now + Duration::from_secs(seconds);
    let sa = |number, created| InboundSa::new(spi(number), key(), limits, created);
    let alive = |ingress: &super::Ingress| {
        (0..6).filter(|number| ingress.inbound(spi(*number)).is_some()).collect::<Vec<_>>()
    };
    for number in 0..6 {
        ingress.install(LinkSlot::new(number / 2), sa(number, now));
    }
    for (number, seconds) in [(4, 30), (0, 10), (5, 20), (1, 10), (0, 40)] {
        ingress.retire(spi(number), at(seconds));
    }
    // Another in the place of one that was to end first.
    ingress.install(LinkSlot::new(0), sa(1, at(1)));
    ingress.remove(LinkSlot::new(1));
    assert_eq!((ingress.expire(now), alive(&ingress)), (at(20), vec![0, 1, 4, 5]));
    assert_eq!((ingress.expire(at(20)), alive(&ingress)), (at(30), vec![0, 1, 4]));
    assert_eq!((ingress.expire(at(39)), alive(&ingress)), (at(40), vec![0, 1]));
    let end = ingress.inbound(spi(1)).expect("it lives").expires_at();
    assert_eq!((ingress.expire(at(40)), alive(&ingress)), (end, vec![1]));
    assert_eq!(ingress.expire(end), crate::boot_time::BootTime::NEVER);
    assert!(alive(&ingress).is_empty());
}

#[test]
fn retired_sa_opens_until_its_end_and_is_forgotten_then() {
    let (mut a, mut b) = keyed_nodes();
    let spi = Spi::new(0x1000).expect("no reserved SPI");
    let end = b.now + Duration::from_secs(10);
    b.ingress.retire(spi, end);
    assert_eq!(b.ingress.expire(b.now), end);
    a.send(PORT, &udp4(A, B, b"late"));
    a.send(PORT, &udp4(A, B, b"too late"));
    let sent = a.sent_esp();
    b.advance(Duration::from_secs(9));
    b.receive_esp(a.esp_address, &sent[0].1);
    assert_eq!(b.delivered().len(), 1);
    b.advance(Duration::from_secs(1));
    b.receive_esp(a.esp_address, &sent[1].1);
    assert_eq!(b.drops(), [(UnknownSpi, 1)]);
    assert!(b.ingress.inbound(spi).is_some());
    assert_eq!(b.ingress.expire(b.now), crate::boot_time::BootTime::NEVER);
    assert!(b.ingress.inbound(spi).is_none());
}

#[test]
fn unknown_spi_is_counted_and_told_once_a_second() {
    let (mut a, mut b) = keyed_nodes();
    b.ingress.remove(LINK);
    for _ in 0..5 {
        a.send(PORT, &udp4(A, B, b"x"));
    }
    for (_, packet) in a.sent_esp() {
        b.receive_esp(a.esp_address, &packet);
    }
    assert_eq!(b.drops(), [(UnknownSpi, 5)]);
    let spi = Spi::new(0x1000).expect("no reserved SPI");
    assert_eq!(b.out.notices, [Notice::UnknownSpi { spi, from: a.esp_address }]);
}

#[test]
fn what_is_no_esp_is_counted_by_name() {
    let (_, mut b) = keyed_nodes();
    let from = "198.51.100.1:9".parse().unwrap();
    b.receive_esp(from, &[0xff]);
    b.receive_esp(from, &[0; 64]);
    b.receive_esp(from, &[1, 2, 3]);
    assert_eq!(b.drops(), [(NatKeepalive, 1), (NonEsp, 1), (MalformedEsp, 1)]);
    assert!(b.delivered().is_empty() && b.out.esp.is_empty());
}

#[test]
fn authentic_packet_that_is_no_vxlan_of_the_network_is_dropped_by_name() {
    let cases: [(DropReason, Corruption); 4] = [
        (MalformedVxlan, |plain| plain[2] ^= 1),
        (MalformedVxlan, |plain| plain[8] = 0),
        (MalformedVxlan, |plain| plain.truncate(6)),
        (WrongVni, |plain| plain[14] ^= 1),
    ];
    for (expected, corrupt) in cases {
        let (a, mut b) = keyed_nodes();
        let packet = seal(&a, corrupt);
        b.receive_esp(a.esp_address, &packet);
        assert_eq!(b.drops(), [(expected, 1)]);
        assert!(b.delivered().is_empty());
    }
}

#[test]
fn authentic_packet_with_a_bad_trailer_or_a_dummy_is_dropped() {
    // A trailer that the sender's own code cannot make: sealed with the bare cipher.
    for (trailer, expected) in
        [([9, 9, 9, 17], BadTrailer), ([1, 2, 2, 59], NonEsp), ([0, 0, 0, 6], BadTrailer)]
    {
        let (a, mut b) = keyed_nodes();
        let mut packet = [&[0, 0, 0x10, 0][..], &[0, 0, 0, 1], &[0; 8]].concat();
        let nonce = [[0x10; 4].as_slice(), &[0; 8]].concat();
        let key = aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, &[0x10; 32]).unwrap();
        let mut body = trailer.to_vec();
        aws_lc_rs::aead::LessSafeKey::new(key)
            .seal_in_place_append_tag(
                aws_lc_rs::aead::Nonce::try_assume_unique_for_key(&nonce).unwrap(),
                aws_lc_rs::aead::Aad::from(&packet[..8]),
                &mut body,
            )
            .unwrap();
        packet.extend(body);
        b.receive_esp(a.esp_address, &packet);
        assert_eq!(b.drops(), [(expected, 1)], "{trailer:?}");
    }
}

#[test]
fn packet_for_a_network_that_is_gone_is_dropped() {
    let (mut a, mut b) = keyed_nodes();
    a.send(PORT, &udp4(A, B, b"x"));
    b.tables = crate::forward::Tables::default();
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    assert_eq!(b.drops(), [(NoSuchPort, 1)]);
}

#[test]
fn full_tap_is_counted_at_the_receiving_port() {
    let (mut a, mut b) = keyed_nodes();
    b.out.is_tap_full = true;
    a.send(PORT, &udp4(A, B, b"x"));
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    assert_eq!(b.drops(), [(TapFull, 1)]);
    assert_eq!(b.counters.port(PORT).last_drop, Some(TapFull));
}

#[test]
fn traffic_is_counted_at_ports_and_links() {
    let (mut a, mut b) = keyed_nodes();
    let frame = udp4(A, B, b"counted");
    a.send(PORT, &frame);
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    let len = frame.len() as u64;
    assert_eq!((a.counters.port(PORT).frames_sent, a.counters.port(PORT).bytes_sent), (1, len));
    assert_eq!((a.counters.link(LINK).packets_sent, a.counters.link(LINK).bytes_sent), (1, len));
    assert_eq!((b.counters.link(LINK).packets_received, b.counters.link(LINK).bytes_received), (1, len));
    assert_eq!((b.counters.port(PORT).frames_received, b.counters.port(PORT).bytes_received), (1, len));
}

#[test]
fn plain_network_speaks_rfc_7348_and_only_with_its_vteps() {
    let (mut a, mut b) = nodes();
    let frame = udp4(A_PLAIN, B_PLAIN, b"in the clear");
    a.send(PLAIN_PORT, &frame);
    let (to, packet) = a.out.vxlan.remove(0);
    assert_eq!(to, b.vxlan_address);
    assert_eq!(packet, [&[8, 0, 0, 0, 0, 0, 9, 0], &frame[..]].concat());
    b.receive_vxlan(a.vxlan_address, &packet);
    assert_eq!(b.delivered(), [(PLAIN_PORT, frame)]);
    b.receive_vxlan("192.0.2.77:4789".parse().unwrap(), &packet);
    assert_eq!(b.drops(), [(UnknownVtep, 1)]);
    assert!(a.out.esp.is_empty());
}

#[test]
fn vteps_of_a_plain_network_are_counted_as_links_are() {
    let (mut a, mut b) = nodes();
    let frame = udp4(A_PLAIN, B_PLAIN, b"in the clear");
    let len = frame.len() as u64;
    a.send(PLAIN_PORT, &frame);
    let packet = a.out.vxlan.remove(0).1;
    b.receive_vxlan(a.vxlan_address, &packet);
    let forged = udp4_as(B_PLAIN.mac(), B_PLAIN.mac(), A_PLAIN.v4(), B_PLAIN.v4(), b"");
    b.receive_vxlan(a.vxlan_address, &[&packet[..8], &forged[..]].concat());
    // What is refused before its sender is known is nobody's.
    b.receive_vxlan("192.0.2.77:4789".parse().unwrap(), &packet);
    let sent = a.counters.vtep(VTEP);
    assert_eq!((sent.packets_sent, sent.bytes_sent, sent.last_drop), (1, len, None));
    let received = b.counters.vtep(VTEP);
    assert_eq!((received.packets_received, received.bytes_received), (2, len + forged.len() as u64));
    assert_eq!((received.drops, received.last_drop), (1, Some(PeerMacSpoofed)));
    assert_eq!(b.drops(), [(UnknownVtep, 1), (PeerMacSpoofed, 1)]);
    for node in [&a, &b] {
        node.counters.reset_vtep(VTEP);
        assert_eq!(node.counters.vtep(VTEP), PeerCounters::default());
    }
}

#[test]
fn plaintext_for_an_encrypted_network_is_never_delivered() {
    let (a, mut b) = keyed_nodes();
    let frame = udp4(A, B, b"forged");
    b.receive_vxlan(a.vxlan_address, &[&[8, 0, 0, 0, 0, 0, 7, 0], &frame[..]].concat());
    b.receive_vxlan(a.vxlan_address, &[&[8, 0, 0, 0, 0, 1, 7, 0], &frame[..]].concat());
    b.receive_vxlan(a.vxlan_address, &[&[0, 0, 0, 0, 0, 0, 9, 0], &frame[..]].concat());
    assert_eq!(b.drops(), [(MalformedVxlan, 1), (PlaintextForEncryptedNetwork, 1), (UnknownVni, 1)]);
    assert!(b.delivered().is_empty());
}

#[test]
fn malformed_too_big_unknown_and_homeless_frames_are_dropped_by_name() {
    let (mut a, _) = keyed_nodes();
    let unknown = udp4_as(A.mac(), MacAddr::new([2, 9, 9, 9, 9, 9]), A.v4(), [10, 0, 0, 99], b"");
    a.send(PORT, &[0; 13]);
    a.send(PORT, &udp4(A, B, &[0; 1381]));
    a.send(PORT, &tagged(&tagged(&udp4(A, B, b""))));
    a.send(PORT, &unknown);
    a.send(PORT, &udp4(A, A, b""));
    a.send(crate::id::PortSlot::new(99), &udp4(A, B, b""));
    let expected = [
        (MalformedFrame, 1),
        (FrameTooBig, 1),
        (UnsupportedEthertype, 1),
        (UnknownDestination, 2),
        (NoSuchPort, 1),
    ];
    assert_eq!(a.drops(), expected);
    assert!(a.out.esp.is_empty() && a.out.vxlan.is_empty());
    assert_eq!(a.delivered().len(), 1, "the sender is told of the one that was too big");
}

proptest::proptest! {
    #[test]
    fn hostile_datagrams_are_never_delivered(
        mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), known_spi: bool
    ) {
        let (a, mut b) = keyed_nodes();
        if known_spi && bytes.len() > 4 {
            bytes[..4].copy_from_slice(&0x1000u32.to_be_bytes());
        }
        b.receive_esp(a.esp_address, &bytes);
        b.receive_vxlan(a.vxlan_address, &bytes);
        proptest::prop_assert!(b.delivered().is_empty());
        proptest::prop_assert_eq!(b.drops().iter().map(|(_, count)| count).sum::<u64>(), 2);
    }

    #[test]
    fn hostile_frames_leave_only_as_esp_with_the_senders_own_mac(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), own_mac: bool, kind in 0usize..3
    ) {
        let (mut a, mut b) = keyed_nodes();
        let mut bytes = bytes;
        if bytes.len() >= 14 && own_mac {
            bytes[6..12].copy_from_slice(&A.mac().octets());
            bytes[12..14].copy_from_slice(&[[8, 0], [8, 6], [0x86, 0xdd]][kind]);
        }
        a.send(PORT, &bytes);
        proptest::prop_assert!(a.out.vxlan.is_empty());
        for (_, packet) in a.sent_esp() {
            b.receive_esp(a.esp_address, &packet);
        }
        for (_, frame) in b.delivered() {
            proptest::prop_assert_eq!(frame::Frame::parse(&frame).expect("checked").source, A.mac());
        }
    }
}

/// What is done to an inner UDP datagram before it is sealed.
type Corruption = fn(&mut Vec<u8>);

/// What a peer with the right key seals when it does not keep to the rules.
fn seal(a: &Node, corrupt: Corruption) -> Vec<u8> {
    let frame = udp4(A, B, b"x");
    let mut plain = vec![0; 16];
    udp::write_header(&mut plain, 50000, 4789, 8 + frame.len());
    vxlan::write_header(&mut plain[8..], crate::id::Vni::new(ENCRYPTED_VNI).unwrap(), None);
    plain.extend(frame);
    corrupt(&mut plain);
    seal_plain(a, &plain)
}

fn seal_plain(a: &Node, plain: &[u8]) -> Vec<u8> {
    let key = KeyMaterial::new(Suite::Aes256Gcm, &[0x10; KeyMaterial::LEN]);
    let spi = Spi::new(0x1000).expect("no reserved SPI");
    let mut sa = OutboundSa::new(spi, key, Limits::standard(Suite::Aes256Gcm), a.now);
    let mut packet = [&[0; 16][..], plain, &[0; 32]].concat();
    let sealed = sa.seal(a.now, &mut packet, plain.len()).expect("fresh").len();
    packet.truncate(sealed);
    packet
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
