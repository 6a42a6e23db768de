//! Frames in a VLAN of the containers: each is judged, cut, merged and answered as without its tag, which it
//! keeps. Who may say what behind a tag is among the spoofing tests.

use proptest::prelude::*;

use super::Merging;
use super::flows::{Flow, leave_checksum, partial};
use super::testbed::*;
use crate::drop_reason::DropReason::{
    FloodRateLimited, ForbiddenInner, FrameTooBig, MalformedFrame, UnsupportedEthertype,
};
use crate::wire::arp::Operation::Request;
use crate::wire::frame::{Content, Frame};
use crate::wire::ndp::Message;
use crate::wire::transport::{CWR, FIN, PSH, Protocol, Transport};
use crate::wire::vnet_hdr::{Checksum, VnetHeader};
use crate::wire::{arp, ethernet};

const EVERYTHING: Merging = Merging { tcp: true, udp: true };

#[test]
fn super_frame_is_cut_and_merged_again_with_its_tag() {
    for flow in flows() {
        for flags in [0x10, 0x10 | PSH | FIN, 0x10 | CWR] {
            let flow = Flow { flags, ..flow.clone() };
            let (mut a, mut b) = keyed_nodes();
            let (header, frame) = in_vlan(flow.super_frame(&payload(12_345)));
            let packets = sent(&mut a, &header, &frame);
            packets.iter().for_each(|packet| b.receive_esp(a.esp_address, packet));
            let arrived: Vec<_> = b.delivered().into_iter().map(|(_, frame)| frame).collect();
            let expected: Vec<_> = flow.segments(&payload(12_345)).iter().map(|one| tagged(one)).collect();
            assert_eq!(arrived, expected, "{flow:?}");

            let (a, mut b) = keyed_nodes();
            b.out.merging = EVERYTHING;
            b.receive_esp_batch(a.esp_address, &mut packets.clone());
            // One with CWR is merged with no other.
            let merged = if flags & CWR != 0 && flow.protocol == Protocol::Tcp { 2 } else { 1 };
            let arrived = b.delivered_as();
            assert_eq!(arrived.len(), merged, "{flow:?}");
            if merged == 1 {
                assert_eq!(arrived, [(PORT, header, frame)], "{flow:?}");
            }
            assert!(a.drops().is_empty() && b.drops().is_empty());
        }
    }
}

#[test]
fn super_frame_of_a_plain_network_leaves_with_whole_checksums() {
    let (mut a, mut b) = nodes();
    b.out.merging = EVERYTHING;
    let flow = Flow::new(A_PLAIN, B_PLAIN, false, Protocol::Tcp);
    let (header, frame) = in_vlan(flow.super_frame(&payload(5_000)));
    a.submit_as(PLAIN_PORT, &header, &frame);
    a.egress.flush(&mut a.out);
    let mut packets: Vec<_> = a.out.vxlan.drain(..).map(|(_, packet)| packet).collect();
    let inner: Vec<_> = packets.iter().map(|packet| packet[8..].to_vec()).collect();
    assert_eq!(inner, flow.segments(&payload(5_000)).iter().map(|one| tagged(one)).collect::<Vec<_>>());
    b.receive_vxlan_batch(a.vxlan_address, &mut packets);
    assert_eq!(b.delivered_as(), [(PLAIN_PORT, header, frame)]);
}

#[test]
fn super_frame_stays_whole_next_door_and_is_flooded_to_all() {
    for flow in flows() {
        let (mut a, mut b) = keyed_nodes();
        a.out.merging = EVERYTHING;
        let (header, frame) = in_vlan(Flow { to: A_NEIGHBOR, ..flow.clone() }.super_frame(&payload(60_000)));
        assert!(sent(&mut a, &header, &frame).is_empty());
        assert_eq!(a.delivered_as(), [(NEIGHBOR_PORT, header, frame)]);

        let (header, mut frame) = in_vlan(flow.super_frame(&payload(4_000)));
        frame[..6].fill(0xff);
        let packets = sent(&mut a, &header, &frame);
        assert_eq!(a.delivered_as(), [(NEIGHBOR_PORT, header, frame)]);
        packets.iter().for_each(|packet| b.receive_esp(a.esp_address, packet));
        let delivered = b.delivered();
        assert!(delivered.len() == 3 * 4 && delivered.iter().all(|(_, frame)| frame[12..16] == TAG));
        // Nobody has a key for the third node.
        assert!(a.drops().iter().all(|(reason, _)| *reason != FloodRateLimited));
    }
}

#[test]
fn checksum_left_by_the_kernel_is_left_to_the_other_one() {
    for flow in flows() {
        let (mut a, mut b) = keyed_nodes();
        let mut frame = tagged(&flow.frame(&payload(700)));
        let transport = Transport::locate(&frame).unwrap().unwrap();
        leave_checksum(&mut frame, &transport);
        let packets = sent(&mut a, &partial(&transport), &frame);
        b.receive_esp(a.esp_address, &packets[0]);
        assert_eq!(b.delivered_as(), [(PORT, partial(&transport), frame)]);
    }
}

#[test]
fn segments_of_different_vlans_priorities_and_none_are_not_merged() {
    for flow in flows() {
        let segments = flow.segments(&payload(2_000));
        for tag in [&[0x81, 0, 0, 6][..], &[0x81, 0, 0x20, 5], &[]] {
            let batch = [tagged(&segments[0]), tagged_as(tag, &segments[1])];
            let (a, mut b) = keyed_nodes();
            b.out.merging = EVERYTHING;
            b.receive_esp_batch(a.esp_address, &mut seal(&a, &batch));
            assert_eq!(b.delivered().into_iter().map(|(_, frame)| frame).collect::<Vec<_>>(), batch);
        }
    }
}

#[test]
fn second_tag_and_a_providers_are_refused_by_name_in_both_directions() {
    for flow in flows() {
        let frame = flow.frame(b"inner");
        for tag in
            [&[0x81, 0, 0, 5, 0x81, 0, 0, 6][..], &[0x88, 0xa8, 0, 5], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]]
        {
            let (mut a, mut b) = keyed_nodes();
            a.send(PORT, &tagged_as(tag, &frame));
            b.receive_esp_batch(a.esp_address, &mut seal(&a, &[tagged_as(tag, &frame)]));
            assert_eq!((a.drops(), b.drops()), (vec![(UnsupportedEthertype, 1)], vec![(ForbiddenInner, 1)]));
            assert!(a.out.esp.is_empty() && a.out.delivered.is_empty() && b.out.delivered.is_empty());
        }
    }
    let (mut a, _) = keyed_nodes();
    a.send(PORT, &tagged(&udp4(A, B, b""))[..17]);
    assert_eq!(a.drops(), [(MalformedFrame, 1)]);
}

#[test]
fn questions_are_answered_in_the_vlan_in_which_they_are_asked() {
    let (mut a, _) = keyed_nodes();
    a.send(PORT, &tagged(&arp(Request, A.mac(), A.v4(), B.v4())));
    let [(PORT, reply)] = &a.delivered()[..] else { panic!("no answer") };
    assert_eq!(reply[12..16], TAG);
    let Content::Arp(reply) = Frame::parse(reply).expect("well formed").content else { panic!("no ARP") };
    assert_eq!((reply.operation, reply.sender_mac), (arp::Operation::Reply, B.mac()));

    let question = neighbor_message(135, B.v6(), Some(A.mac()));
    a.send(PORT, &tagged(&icmp6(A.mac(), A.v6(), "ff02::1:ff00:2".parse().unwrap(), &question)));
    let [(PORT, reply)] = &a.delivered()[..] else { panic!("no answer") };
    assert_eq!(reply[12..16], TAG);
    let Content::Discovery { message, .. } = Frame::parse(reply).expect("well formed").content else {
        panic!("no advertisement")
    };
    let expected = Message::NeighborAdvertisement { target: B.v6(), target_link: Some(B.mac()) };
    assert_eq!(message, expected);
    assert!(a.drops().is_empty() && a.out.esp.is_empty());
}

#[test]
fn tag_takes_its_part_of_the_mtu_and_the_sender_is_told() {
    const HEADERS: usize = 28;
    let mtu = MTU - 4;
    let (mut a, _) = keyed_nodes();
    a.send(PORT, &tagged(&udp4(A, B, &payload(usize::from(mtu) - HEADERS))));
    assert_eq!((a.sent_esp().len(), a.drops().len()), (1, 0));
    let long = tagged(&udp4(A, B, &payload(usize::from(mtu) - HEADERS + 1)));
    let flow = Flow { size: mtu - 20 - 32 + 1, ..Flow::new(A, B, false, Protocol::Tcp) };
    let (header, super_frame) = in_vlan(flow.super_frame(&payload(9_000)));
    for (header, frame) in [(VnetHeader::COMPLETE, long), (header, super_frame)] {
        assert!(sent(&mut a, &header, &frame).is_empty());
        let (_, answer) = a.delivered().remove(0);
        assert_eq!(answer[..12], [A.mac().octets(), B.mac().octets()].concat());
        assert_eq!((&answer[12..16], &answer[38..40]), (&TAG[..], &[3, 4][..]));
        assert_eq!(answer[44..46], mtu.to_be_bytes());
        assert_eq!(answer[46..], frame[18..][..answer.len() - 46]);
    }
    assert_eq!(a.drops(), [(FrameTooBig, 1 + 7)]);
}

proptest! {
    /// Whatever happens to frames happens to them in a VLAN as well.
    #[test]
    fn tag_changes_nothing_else(
        is_ipv6: bool, is_tcp: bool, size in 100u16..1300, len in 1usize..9_000, at in 12usize..120, bits: u8,
        flags in prop::sample::select(vec![0x10u8, 0x18, 0x19, 0x50, 0x90]), is_whole: bool, merging: bool
    ) {
        let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
        let flow = Flow { size, flags, ..Flow::new(A, B, is_ipv6, protocol) };
        let (header, mut frame) = flow.super_frame(&payload(len.max(usize::from(size) + 1)));
        let at = at.min(frame.len() - 1);
        // What would be a tag, or none any more, is not the same with another in front of it.
        frame[at] ^= if at < 14 { 0 } else { bits };
        let header = if is_whole { VnetHeader::COMPLETE } else { header };
        let outcome = |header: &VnetHeader, frame: &[u8]| {
            let (mut a, mut b) = keyed_nodes();
            b.out.merging = Merging { tcp: merging, udp: merging };
            let mut packets = sent(&mut a, header, frame);
            b.receive_esp_batch(a.esp_address, &mut packets);
            (b.delivered_as(), a.drops(), b.drops(), a.delivered_as())
        };
        let (arrived, dropped, refused, told) = outcome(&header, &frame);
        let (vlan_header, vlan_frame) = in_vlan((header, frame));
        let (vlan_arrived, vlan_dropped, vlan_refused, vlan_told) = outcome(&vlan_header, &vlan_frame);
        let tag_all = |all: Vec<(_, VnetHeader, Vec<u8>)>| {
            let tag_one = |(port, header, frame)| {
                let (header, frame) = in_vlan((header, frame));
                (port, header, frame)
            };
            all.into_iter().map(tag_one).collect::<Vec<_>>()
        };
        prop_assert_eq!(vlan_arrived, tag_all(arrived));
        prop_assert_eq!((vlan_dropped, vlan_refused), (dropped, refused));
        // What they are told of the MTU differs.
        prop_assert_eq!(vlan_told.len(), told.len());
    }

    #[test]
    fn hostile_tagged_frames_never_panic_and_leave_with_the_senders_addresses(
        is_ipv6: bool, is_tcp: bool, at in 12usize..100, bits: u8, len in 1usize..3_000, cut: bool
    ) {
        let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
        let flow = Flow::new(A, B, is_ipv6, protocol);
        let (header, mut frame) = in_vlan(flow.super_frame(&payload(len)));
        let at = at.min(frame.len() - 1);
        frame[at] ^= bits;
        if cut {
            frame.truncate(at);
        }
        let (mut a, mut b) = keyed_nodes();
        b.out.merging = EVERYTHING;
        let mut packets = sent(&mut a, &header, &frame);
        b.receive_esp_batch(a.esp_address, &mut packets);
        for (_, _, frame) in b.delivered_as() {
            let network = ethernet::Header::parse(&frame).expect("well formed").end();
            prop_assert_eq!(&frame[6..12], A.mac().octets());
            let from = if is_ipv6 { A.v6().octets().to_vec() } else { A.v4().to_vec() };
            let place = if is_ipv6 { 8..24 } else { 12..16 };
            prop_assert_eq!(&frame[network..][place], from);
        }
        prop_assert!(b.drops().is_empty());
    }
}

/// What the first node sends in ESP when its container sends `frame`.
fn sent(a: &mut Node, header: &VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    a.submit_as(PORT, header, frame);
    a.egress.flush(&mut a.out);
    a.sent_esp().into_iter().map(|(_, packet)| packet).collect()
}

/// The frame in VLAN 5, and what a kernel says of it there.
fn in_vlan((header, frame): (VnetHeader, Vec<u8>)) -> (VnetHeader, Vec<u8>) {
    let checksum = match header.checksum {
        Checksum::Partial { start, offset } => Checksum::Partial { start: start + 4, offset },
        Checksum::Complete | Checksum::Verified => return (header, tagged(&frame)),
    };
    (VnetHeader { checksum, header_len: header.header_len + 4, ..header }, tagged(&frame))
}

fn flows() -> [Flow; 4] {
    [(false, Protocol::Tcp), (true, Protocol::Tcp), (false, Protocol::Udp), (true, Protocol::Udp)]
        .map(|(is_ipv6, protocol)| Flow::new(A, B, is_ipv6, protocol))
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1].wrapping_mul(31)).collect()
}
