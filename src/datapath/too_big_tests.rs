//! Packets above the MTU: the sender is told, and the connections that begin fit.

use std::num::NonZeroU16;
use std::time::Duration;

use super::testbed::*;
use crate::drop_reason::DropReason::{FrameTooBig, SourceIpSpoofed};
use crate::id::MacAddr;
use crate::wire::transport::Transport;
use crate::wire::vnet_hdr::{Checksum, Kind, Segmentation, VnetHeader};
use crate::wire::{checksum, mss};

/// Octets in front of a UDP payload over IPv4.
const HEADERS: usize = 28;

#[test]
fn packet_one_octet_too_long_is_answered_to_its_sender_and_counted() {
    let (mut a, _) = keyed_nodes();
    for to in [B, A_NEIGHBOR] {
        a.send(PORT, &udp4(A, to, &vec![1; usize::from(MTU) - HEADERS]));
        a.delivered();
        a.sent_esp();
        let long = udp4(A, to, &vec![1; usize::from(MTU) - HEADERS + 1]);
        a.send(PORT, &long);
        assert!(a.sent_esp().is_empty());
        let delivered = a.delivered();
        let [(port, answer)] = delivered.as_slice() else { panic!("{delivered:?}") };
        assert_eq!(*port, PORT);
        assert_eq!(answer[..12], [A.mac().octets(), to.mac().octets()].concat());
        assert_eq!((&answer[26..30], &answer[30..34]), (&to.v4()[..], &A.v4()[..]));
        assert_eq!((&answer[34..36], &answer[40..42]), (&[3, 4][..], &MTU.to_be_bytes()[..]));
        assert_eq!(answer[42..], long[14..][..answer.len() - 42]);
    }
    assert_eq!(a.drops(), [(FrameTooBig, 2)]);
    assert_eq!(a.counters.port(PORT).last_drop, Some(FrameTooBig));
}

#[test]
fn ipv6_is_told_packet_too_big() {
    let (mut a, _) = keyed_nodes();
    a.send(PORT, &long_udp6(usize::from(MTU) - 47));
    let answer = a.delivered().remove(0).1;
    assert_eq!(answer[..12], [A.mac().octets(), B.mac().octets()].concat());
    assert_eq!((&answer[54..56], &answer[58..62]), (&[2, 0][..], &u32::from(MTU).to_be_bytes()[..]));
    assert_eq!(checksum::ipv6(B.v6(), A.v6(), 58, &answer[54..]), 0);
    assert_eq!(a.drops(), [(FrameTooBig, 1)]);
}

#[test]
fn ipv4_that_may_be_fragmented_and_groups_are_dropped_in_silence() {
    let (mut a, _) = keyed_nodes();
    let mut may_fragment = udp4(A, B, &[1; 2000]);
    may_fragment[20] = 0;
    let group = udp4_as(A.mac(), MacAddr::BROADCAST, A.v4(), [255; 4], &[1; 2000]);
    for frame in [may_fragment, group] {
        a.send(PORT, &frame);
    }
    assert!(a.delivered().is_empty() && a.sent_esp().is_empty());
    assert_eq!(a.drops(), [(FrameTooBig, 2)]);
}

#[test]
fn liar_gets_no_answer() {
    let (mut a, _) = keyed_nodes();
    a.send(PORT, &udp4_as(A.mac(), B.mac(), THIRD.v4(), B.v4(), &[1; 2000]));
    assert!(a.delivered().is_empty());
    assert_eq!(a.drops(), [(SourceIpSpoofed, 1)]);
}

#[test]
fn super_frame_whose_segments_are_too_long_is_answered_once() {
    let (mut a, _) = keyed_nodes();
    let frame = udp4(A, B, &[1; 9000]);
    let size = NonZeroU16::new(MTU - 27).expect("not zero");
    let header = VnetHeader {
        checksum: Checksum::Partial { start: 34, offset: 6 },
        segmentation: Some(Segmentation { kind: Kind::Udp, has_cwr: false, size }),
        header_len: 42,
    };
    a.submit_as(PORT, &header, &frame);
    let answer = a.delivered().remove(0).1;
    assert_eq!(answer[42..], frame[14..][..answer.len() - 42]);
    assert_eq!(a.drops(), [(FrameTooBig, 7)]);
}

#[test]
fn answers_are_limited_and_drops_counted_all_the_same() {
    let (mut a, _) = keyed_nodes();
    let long = udp4(A, B, &[1; 2000]);
    for _ in 0..1000 {
        a.send(PORT, &long);
    }
    assert_eq!(a.delivered().len(), 100);
    assert_eq!(a.drops(), [(FrameTooBig, 1000)]);
    a.advance(Duration::from_millis(50));
    for _ in 0..10 {
        a.send(PORT, &long);
    }
    assert_eq!(a.delivered().len(), 5);
}

#[test]
fn syn_is_clamped_on_its_way_out_next_door_and_in() {
    let (mut a, mut b) = keyed_nodes();
    for (to, expected_port) in [(B, PORT), (A_NEIGHBOR, NEIGHBOR_PORT)] {
        a.send(PORT, &syn(A, to));
        let frame = match a.sent_esp().pop() {
            Some((_, packet)) => {
                b.receive_esp(a.esp_address, &packet);
                b.delivered()
            }
            None => a.delivered(),
        };
        assert_eq!(frame, [(expected_port, clamped(A, to))]);
    }
    // A peer that clamps nothing, such as a kernel's VTEP.
    b.receive_vxlan(a.vxlan_address, &[&[8, 0, 0, 0, 0, 0, 9, 0], &syn(A_PLAIN, B_PLAIN)[..]].concat());
    assert_eq!(b.delivered(), [(PLAIN_PORT, clamped(A_PLAIN, B_PLAIN))]);
    assert!(a.drops().is_empty() && b.drops().is_empty());
}

#[test]
fn syn_whose_checksum_the_kernel_left_arrives_with_a_right_one() {
    let (mut a, mut b) = keyed_nodes();
    let header = VnetHeader {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segmentation: None,
        header_len: 58,
    };
    let mut unfinished = syn(A, B);
    let transport = Transport::locate(&unfinished).expect("well formed").expect("TCP");
    let sum = transport.pseudo_header(&unfinished, 24);
    unfinished[50..52].copy_from_slice(&sum.folded().to_be_bytes());
    a.submit_as(PORT, &header, &unfinished);
    a.egress.flush(&mut a.out);
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    assert_eq!(b.delivered(), [(PORT, clamped(A, B))]);
}

/// A SYN that announces segments for an MTU of 9,000.
fn syn(from: Container, to: Container) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.mac().octets(), to.mac().octets())
        .ipv4(from.v4(), to.v4(), 64)
        .tcp(1111, 2222, 7, 60_000)
        .syn()
        .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(8960)])
        .expect("options")
        .write(&mut frame, &[])
        .expect("a frame");
    frame
}

fn clamped(from: Container, to: Container) -> Vec<u8> {
    let mut frame = syn(from, to);
    mss::clamp(&mut frame, MTU, true);
    assert_eq!(frame[56..58], (MTU - 40).to_be_bytes());
    frame
}

fn long_udp6(payload_len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(A.mac().octets(), B.mac().octets())
        .ipv6(A.v6().octets(), B.v6().octets(), 64)
        .udp(1111, 2222)
        .write(&mut frame, &vec![1; payload_len])
        .expect("a frame");
    frame
}
