//! Who may say what: containers and peers that lie about who they are, and who is answered.

use std::net::Ipv6Addr;

use super::testbed::*;
use crate::drop_reason::DropReason::{self, *};
use crate::id::MacAddr;
use crate::wire::arp::Operation::{Reply, Request};
use crate::wire::frame::{Content, Frame};
use crate::wire::ndp::Message;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

#[test]
fn container_cannot_use_anothers_mac_or_ip() {
    let third = "2001:db8::1".parse().unwrap();
    let cases = [
        (udp4_as(B.mac(), B.mac(), A.v4(), B.v4(), b""), SourceMacSpoofed),
        (udp4_as(A_NEIGHBOR.mac(), B.mac(), A.v4(), B.v4(), b""), SourceMacSpoofed),
        (udp4_as(A.mac(), B.mac(), A_NEIGHBOR.v4(), B.v4(), b""), SourceIpSpoofed),
        (udp4_as(A.mac(), B.mac(), [0; 4], B.v4(), b""), SourceIpSpoofed),
        (udp6_as(A.mac(), B.mac(), B.v6(), B.v6()), SourceIpSpoofed),
        (udp6_as(A.mac(), B.mac(), B.mac().link_local(), B.v6()), SourceIpSpoofed),
        (udp6_as(A.mac(), B.mac(), Ipv6Addr::UNSPECIFIED, B.v6()), SourceIpSpoofed),
        (udp6_as(A.mac(), B.mac(), third, B.v6()), SourceIpSpoofed),
    ];
    for (frame, expected) in cases {
        assert_outward(&frame, expected);
    }
}

#[test]
fn own_addresses_and_the_link_local_one_pass() {
    for source in [A.v6(), A.mac().link_local()] {
        let (mut a, mut b) = keyed_nodes();
        let frame = udp6_as(A.mac(), B.mac(), source, B.v6());
        a.send(PORT, &frame);
        b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
        assert_eq!(b.delivered(), [(PORT, frame)]);
    }
}

#[test]
fn listener_report_from_the_unspecified_address_passes() {
    let (mut a, mut b) = keyed_nodes();
    let report = icmp6(A.mac(), Ipv6Addr::UNSPECIFIED, ALL_NODES, &[143, 0, 0, 0, 0, 0, 0, 0]);
    a.send(PORT, &report);
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    assert_eq!(b.delivered().len(), 3);
}

#[test]
fn gateway_forwards_others_packets_but_under_its_own_mac_and_identity() {
    let (mut a, mut b) = keyed_nodes();
    let from_outside = udp4_as(GATEWAY.mac(), A.mac(), [198, 51, 100, 7], A.v4(), b"hello");
    b.send(GATEWAY_PORT, &from_outside);
    a.receive_esp(b.esp_address, &b.sent_esp().remove(0).1);
    assert_eq!(a.delivered(), [(PORT, from_outside)]);
    b.send(GATEWAY_PORT, &udp4_as(B.mac(), A.mac(), [198, 51, 100, 7], A.v4(), b"hello"));
    b.send(GATEWAY_PORT, &arp(Request, GATEWAY.mac(), B.v4(), A.v4()));
    b.send(GATEWAY_PORT, &icmp6(GATEWAY.mac(), GATEWAY.v6(), ALL_NODES, &[134, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(b.drops(), [(SourceMacSpoofed, 1), (NeighborSpoofed, 1), (RogueRouterMessage, 1)]);
}

#[test]
fn gateway_cannot_speak_for_other_endpoints_of_its_network_nor_from_what_no_router_forwards() {
    let (gateway, to) = (GATEWAY.mac(), A.mac());
    for frame in [
        udp4_as(gateway, to, B.v4(), A.v4(), b""),
        udp4_as(gateway, to, THIRD.v4(), A.v4(), b""),
        udp4_as(gateway, to, [0; 4], A.v4(), b""),
        udp4_as(gateway, to, [127, 0, 0, 1], A.v4(), b""),
        udp4_as(gateway, to, [224, 0, 0, 1], A.v4(), b""),
        udp4_as(gateway, to, [255; 4], A.v4(), b""),
        udp6_as(gateway, to, A_NEIGHBOR.v6(), A.v6()),
        udp6_as(gateway, to, B.mac().link_local(), A.v6()),
        udp6_as(gateway, to, "fe80::1".parse().unwrap(), A.v6()),
        udp6_as(gateway, to, Ipv6Addr::LOCALHOST, A.v6()),
        udp6_as(gateway, to, Ipv6Addr::UNSPECIFIED, A.v6()),
        udp6_as(gateway, to, ALL_NODES, A.v6()),
    ] {
        let (mut a, mut b) = keyed_nodes();
        b.send(GATEWAY_PORT, &frame);
        assert_eq!(b.drops(), [(SourceIpSpoofed, 1)], "{frame:02x?}");
        assert!(b.out.esp.is_empty() && b.delivered().is_empty());
        let packet = seal_under(0x2000, &b, std::slice::from_ref(&frame)).remove(0);
        a.receive_esp(b.esp_address, &packet);
        assert_eq!(a.drops(), [(PeerIpSpoofed, 1)], "{frame:02x?}");
        assert!(a.delivered().is_empty());
    }
}

#[test]
fn container_cannot_use_anothers_arp_identity() {
    for frame in [
        arp(Request, A.mac(), B.v4(), A_NEIGHBOR.v4()),
        arp(Reply, A.mac(), B.v4(), A_NEIGHBOR.v4()),
        arp(Reply, A.mac(), [0; 4], A_NEIGHBOR.v4()),
        with_ethernet_source(arp(Request, B.mac(), A.v4(), B.v4()), A.mac()),
    ] {
        assert_outward(&frame, NeighborSpoofed);
    }
}

#[test]
fn container_cannot_use_anothers_neighbor_identity() {
    let (mac, own, other) = (A.mac(), A.v6(), B.v6());
    for (from, message) in [
        (other, neighbor_message(SOLICITATION, B.v6(), Some(mac))),
        (own, neighbor_message(SOLICITATION, B.v6(), Some(B.mac()))),
        (Ipv6Addr::UNSPECIFIED, neighbor_message(SOLICITATION, B.v6(), Some(mac))),
        (own, neighbor_message(ADVERTISEMENT, other, Some(mac))),
        (own, neighbor_message(ADVERTISEMENT, own, Some(B.mac()))),
        (other, neighbor_message(ADVERTISEMENT, own, Some(mac))),
        (Ipv6Addr::UNSPECIFIED, neighbor_message(ADVERTISEMENT, own, Some(mac))),
        (own, vec![ADVERTISEMENT, 0, 0, 0]),
    ] {
        assert_outward(&icmp6(mac, from, ALL_NODES, &message), NeighborSpoofed);
    }
}

#[test]
fn forged_advertisement_hidden_in_a_fragment_or_behind_options_is_found() {
    let message = neighbor_message(ADVERTISEMENT, B.v6(), Some(A.mac()));
    let plain = icmp6(A.mac(), A.v6(), ALL_NODES, &message);
    for (kind, hidden) in
        [(44, [58, 0, 0, 0, 0, 0, 0, 1]), (44, [58, 0, 0, 1, 0, 0, 0, 1]), (60, [58, 0, 1, 4, 0, 0, 0, 0])]
    {
        let mut frame = plain.clone();
        frame.splice(54..54, hidden);
        frame[14 + 5] += 8;
        frame[14 + 6] = kind;
        assert_outward(&frame, NeighborSpoofed);
    }
}

#[test]
fn container_is_no_router() {
    for kind in [134, 137] {
        let frame = icmp6(A.mac(), A.mac().link_local(), ALL_NODES, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        assert_outward(&frame, RogueRouterMessage);
    }
    let question = icmp6(A.mac(), A.mac().link_local(), ALL_NODES, &[133, 0, 0, 0, 0, 0, 0, 0]);
    assert_outward(&question, UnknownNeighbor);
}

#[test]
fn arp_is_answered_from_the_table_and_never_crosses_the_wire() {
    let (mut a, _) = keyed_nodes();
    for (owner, sender_ip) in [(B, A.v4()), (A_NEIGHBOR, A.v4()), (B, [0; 4])] {
        a.send(PORT, &arp(Request, A.mac(), sender_ip, owner.v4()));
        let (port, reply) = a.delivered().remove(0);
        let Content::Arp(reply) = Frame::parse(&reply).unwrap().content else { panic!("no ARP") };
        assert_eq!((port, reply.operation), (PORT, Reply));
        assert_eq!((reply.sender_mac, reply.sender_ip.octets()), (owner.mac(), owner.v4()));
        assert_eq!((reply.target_mac, reply.target_ip.octets()), (A.mac(), sender_ip));
    }
    assert!(a.out.esp.is_empty() && a.drops().is_empty());
}

#[test]
fn questions_for_oneself_or_for_nobody_get_no_answer() {
    let (mut a, _) = keyed_nodes();
    let nobody: Ipv6Addr = "fd00::99".parse().unwrap();
    let silent = [
        arp(Request, A.mac(), A.v4(), A.v4()),
        arp(Request, A.mac(), [0; 4], A.v4()),
        arp(Request, A.mac(), [0; 4], [10, 0, 0, 99]),
        arp(Reply, A.mac(), A.v4(), B.v4()),
        icmp6(A.mac(), Ipv6Addr::UNSPECIFIED, ALL_NODES, &neighbor_message(SOLICITATION, A.v6(), None)),
        icmp6(A.mac(), Ipv6Addr::UNSPECIFIED, ALL_NODES, &neighbor_message(SOLICITATION, nobody, None)),
    ];
    silent.iter().for_each(|frame| a.send(PORT, frame));
    assert!(a.drops().is_empty());
    a.send(PORT, &arp(Request, A.mac(), A.v4(), [10, 0, 0, 99]));
    a.send(PORT, &icmp6(A.mac(), A.v6(), ALL_NODES, &neighbor_message(SOLICITATION, nobody, Some(A.mac()))));
    assert_eq!(a.drops(), [(UnknownNeighbor, 2)]);
    assert!(a.delivered().is_empty() && a.out.esp.is_empty());
}

#[test]
fn solicitation_is_answered_for_global_and_link_local_targets_and_in_detection() {
    let (mut a, _) = keyed_nodes();
    for (from, target, link) in [
        (A.v6(), B.v6(), Some(A.mac())),
        (A.mac().link_local(), B.mac().link_local(), Some(A.mac())),
        (A.v6(), B.v6(), None),
        (Ipv6Addr::UNSPECIFIED, B.v6(), None),
    ] {
        a.send(PORT, &icmp6(A.mac(), from, ALL_NODES, &neighbor_message(SOLICITATION, target, link)));
        let (port, reply) = a.delivered().remove(0);
        let reply = Frame::parse(&reply).unwrap();
        let message = Message::NeighborAdvertisement { target, target_link: Some(B.mac()) };
        assert_eq!(
            (port, reply.source, reply.content),
            (PORT, B.mac(), Content::Discovery { source: target, message })
        );
    }
    assert!(a.out.esp.is_empty() && a.drops().is_empty());
}

#[test]
fn honest_advertisement_crosses_the_wire() {
    let (mut a, mut b) = keyed_nodes();
    let message = neighbor_message(ADVERTISEMENT, A.v6(), Some(A.mac()));
    a.send(PORT, &icmp6(A.mac(), A.v6(), ALL_NODES, &message));
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    assert_eq!(b.delivered().len(), 3);
}

#[test]
fn peer_cannot_speak_for_endpoints_that_are_not_placed_on_it() {
    let group = MacAddr::BROADCAST;
    let cases = [
        (udp4_as(THIRD.mac(), B.mac(), THIRD.v4(), B.v4(), b""), PeerMacSpoofed),
        (udp4_as(B_NEIGHBOR.mac(), B.mac(), B_NEIGHBOR.v4(), B.v4(), b""), PeerMacSpoofed),
        (udp4_as(MacAddr::new([6; 6]), B.mac(), A.v4(), B.v4(), b""), PeerMacSpoofed),
        (udp4_as(A.mac(), B.mac(), THIRD.v4(), B.v4(), b""), PeerIpSpoofed),
        (udp4_as(A.mac(), group, A_NEIGHBOR.v4(), B.v4(), b""), PeerIpSpoofed),
        (udp6_as(A.mac(), B.mac(), B.v6(), B.v6()), PeerIpSpoofed),
        (udp6_as(A.mac(), B.mac(), Ipv6Addr::UNSPECIFIED, B.v6()), PeerIpSpoofed),
        (advertisement(A.v6(), B.v6(), A.mac()), PeerNeighborSpoofed),
        (advertisement(A.v6(), A.v6(), B.mac()), PeerNeighborSpoofed),
        (advertisement(THIRD.v6(), A.v6(), A.mac()), PeerNeighborSpoofed),
        (icmp6(A.mac(), A.v6(), ALL_NODES, &[ADVERTISEMENT, 1]), PeerNeighborSpoofed),
    ];
    for (frame, expected) in cases {
        assert_inward(&frame, expected);
    }
}

#[test]
fn peer_cannot_send_what_never_crosses_the_wire_nor_use_us_as_transit() {
    let solicitation = neighbor_message(SOLICITATION, B.v6(), Some(A.mac()));
    let router = |kind| icmp6(A.mac(), A.mac().link_local(), ALL_NODES, &[kind, 0, 0, 0, 0, 0, 0, 0]);
    let cases = [
        (arp(Request, A.mac(), A.v4(), B.v4()), ForbiddenInner),
        (arp(Reply, A.mac(), A.v4(), B.v4()), ForbiddenInner),
        (icmp6(A.mac(), A.v6(), ALL_NODES, &solicitation), ForbiddenInner),
        (router(133), ForbiddenInner),
        (router(134), ForbiddenInner),
        (router(137), ForbiddenInner),
        (tagged(&tagged(&udp4(A, B, b""))), ForbiddenInner),
        (udp4(A, THIRD, b""), NotLocal),
        (udp4(A, A_NEIGHBOR, b""), NotLocal),
        (udp4_as(A.mac(), MacAddr::new([2, 9, 9, 9, 9, 9]), A.v4(), B.v4(), b""), NotLocal),
        (udp4(A, B, b"")[..20].to_vec(), MalformedVxlan),
    ];
    for (frame, expected) in cases {
        assert_inward(&frame, expected);
    }
}

#[test]
fn foreign_vtep_of_a_plain_network_may_ask_and_be_answered() {
    let (mut a, mut b) = nodes();
    let request = arp(Request, A_PLAIN.mac(), A_PLAIN.v4(), B_PLAIN.v4());
    b.receive_vxlan(a.vxlan_address, &plain(&request));
    assert_eq!(b.delivered(), [(PLAIN_PORT, request)]);
    let mut reply = arp(Reply, B_PLAIN.mac(), B_PLAIN.v4(), A_PLAIN.v4());
    reply[..6].copy_from_slice(&A_PLAIN.mac().octets());
    b.send(PLAIN_PORT, &reply);
    assert_eq!(b.out.vxlan, [(a.vxlan_address, plain(&reply))]);
    let solicitation = neighbor_message(SOLICITATION, B_PLAIN.v6(), Some(A_PLAIN.mac()));
    b.receive_vxlan(a.vxlan_address, &plain(&icmp6(A_PLAIN.mac(), A_PLAIN.v6(), ALL_NODES, &solicitation)));
    assert_eq!(b.delivered().len(), 1);
    b.receive_vxlan(a.vxlan_address, &plain(&arp(Reply, A_PLAIN.mac(), B_PLAIN.v4(), B_PLAIN.v4())));
    let forged = neighbor_message(SOLICITATION, B_PLAIN.v6(), Some(B_PLAIN.mac()));
    b.receive_vxlan(a.vxlan_address, &plain(&icmp6(A_PLAIN.mac(), A_PLAIN.v6(), ALL_NODES, &forged)));
    assert_eq!(b.drops(), [(PeerNeighborSpoofed, 2)]);
    a.send(PLAIN_PORT, &arp(Request, A_PLAIN.mac(), A_PLAIN.v4(), B_PLAIN.v4()));
    assert!(a.out.vxlan.is_empty(), "our own containers are answered from the table");
}

/// The container A sends `frame`, and again in a VLAN; nobody may get it.
fn assert_outward(frame: &[u8], expected: DropReason) {
    let (mut a, _) = keyed_nodes();
    a.send(PORT, frame);
    a.send(PORT, &tagged(frame));
    assert_eq!(a.drops(), [(expected, 2)], "{frame:02x?}");
    assert!(a.out.esp.is_empty() && a.out.vxlan.is_empty() && a.delivered().is_empty());
}

/// The node A, with the right key and no scruples, sends `frame`, and again in a VLAN; nobody may get it.
fn assert_inward(frame: &[u8], expected: DropReason) {
    let (a, mut b) = keyed_nodes();
    b.receive_esp_batch(a.esp_address, &mut seal(&a, &[frame.to_vec(), tagged(frame)]));
    assert_eq!(b.drops(), [(expected, 2)], "{frame:02x?}");
    assert!(b.out.esp.is_empty() && b.out.vxlan.is_empty() && b.delivered().is_empty());
}
fn advertisement(from: Ipv6Addr, target: Ipv6Addr, link: MacAddr) -> Vec<u8> {
    icmp6(A.mac(), from, ALL_NODES, &neighbor_message(ADVERTISEMENT, target, Some(link)))
}

fn with_ethernet_source(mut frame: Vec<u8>, source: MacAddr) -> Vec<u8> {
    frame[6..12].copy_from_slice(&source.octets());
    frame
}

fn plain(frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, 9, 0], frame].concat()
}
