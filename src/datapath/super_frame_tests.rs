//! Super-frames from a container outward: cut, judged, refused.

use proptest::prelude::*;

use super::flows::{Flow, are_checksums_right, leave_checksum, partial};
use super::testbed::*;
use super::{Merging, SuperFrame};
use crate::drop_reason::DropReason::{self, *};
use crate::id::PortSlot;
use crate::sa::{Limits, Suite};
use crate::wire::transport::{CWR, FIN, PSH, Protocol, Transport};
use crate::wire::vnet_hdr::{Checksum, Kind, Segmentation, VnetHeader};

const EVERYTHING: Merging = Merging { tcp: true, udp: true };

#[test]
fn super_frame_leaves_as_the_segments_that_one_would_have_made_by_hand() {
    for (is_ipv6, protocol) in kinds() {
        for flags in [0x10, 0x10 | PSH | FIN, 0x10 | CWR, 0x10 | CWR | PSH] {
            let (mut a, mut b) = keyed_nodes();
            let flow = Flow { flags, ..Flow::new(A, B, is_ipv6, protocol) };
            let payload = payload(12_345);
            let (header, frame) = flow.super_frame(&payload);
            a.submit_as(PORT, &header, &frame);
            a.egress.flush(&mut a.out);
            for (_, packet) in a.sent_esp() {
                b.receive_esp(a.esp_address, &packet);
            }
            let arrived: Vec<_> = b.delivered().into_iter().map(|(_, frame)| frame).collect();
            assert!(arrived.iter().all(|frame| are_checksums_right(frame)));
            assert_eq!(arrived, flow.segments(&payload), "{flow:?}");
            assert_eq!(a.counters.link(LINK).packets_sent, 13);
        }
    }
}

#[test]
fn ip_options_and_extension_headers_are_in_every_segment() {
    for is_ipv6 in [false, true] {
        let flow = Flow::new(A, B, is_ipv6, Protocol::Tcp);
        let (_, mut frame) = flow.super_frame(&payload(2_500));
        if is_ipv6 {
            // Destination options of 8 octets: one option of padding.
            frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
            frame[20] = 60;
            frame[19] += 8;
        } else {
            frame.splice(34..34, [1, 1, 1, 0]);
            frame[14] = 0x46;
            frame[17] += 4;
        }
        let transport = Transport::locate(&frame).unwrap().unwrap();
        let kind = if is_ipv6 { Kind::Tcp6 } else { Kind::Tcp4 };
        let cut = Segmentation { kind, has_cwr: false, size: 1000.try_into().unwrap() };
        let cut = SuperFrame::parse(&frame, &partial(&transport), cut).unwrap();
        assert_eq!(cut.segments(), 3);
        for index in 0..3 {
            let mut place = [0; 1400];
            let len = cut.write(&frame, index, &mut place, false);
            assert!(are_checksums_right(&place[..len]), "segment {index}, IPv6: {is_ipv6}");
            assert_eq!(Transport::locate(&place[..len]).unwrap().unwrap().payload, transport.payload);
        }
    }
}

#[test]
fn super_frame_to_a_local_container_stays_whole() {
    for (is_ipv6, protocol) in kinds() {
        let (mut a, _) = keyed_nodes();
        a.out.merging = EVERYTHING;
        let (header, frame) = Flow::new(A, A_NEIGHBOR, is_ipv6, protocol).super_frame(&payload(60_000));
        a.submit_as(PORT, &header, &frame);
        a.egress.flush(&mut a.out);
        assert_eq!(a.out.delivered, [(NEIGHBOR_PORT, header, frame)]);
        assert!(a.out.esp.is_empty() && a.drops().is_empty());
    }
}

#[test]
fn super_frame_is_cut_for_a_neighbor_who_takes_none() {
    for (is_ipv6, protocol) in kinds() {
        let (mut a, _) = keyed_nodes();
        let flow = Flow::new(A, A_NEIGHBOR, is_ipv6, protocol);
        let (header, frame) = flow.super_frame(&payload(60_000));
        a.submit_as(PORT, &header, &frame);
        a.egress.flush(&mut a.out);
        let segments = flow.segments(&payload(60_000)).into_iter();
        let expected: Vec<_> =
            segments.map(|segment| (NEIGHBOR_PORT, VnetHeader::COMPLETE, segment)).collect();
        assert_eq!(a.delivered_as(), expected);
        assert!(a.out.esp.is_empty() && a.drops().is_empty());
    }
}

#[test]
fn dropped_super_frame_is_counted_as_the_frames_that_it_was() {
    let (mut a, _) = keyed_nodes();
    a.out.merging = EVERYTHING;
    a.out.is_tap_full = true;
    let (header, frame) = Flow::new(A, A_NEIGHBOR, false, Protocol::Tcp).super_frame(&payload(5_000));
    a.submit_as(PORT, &header, &frame);
    assert_eq!(a.drops(), [(TapFull, 5)]);
}

#[test]
fn super_frame_of_which_half_has_left_is_counted_as_the_other_half() {
    let (mut a, mut b) = nodes();
    let limits = Limits { hard_packets: 10, soft_packets: 9, ..Limits::standard(Suite::Aes256Gcm) };
    connect(&mut a, &mut b, 0x1000, limits);
    let (header, frame) = Flow::new(A, B, false, Protocol::Tcp).super_frame(&payload(44_000));
    assert_eq!(a.submit_as(PORT, &header, &frame), 10);
    a.egress.flush(&mut a.out);
    assert_eq!(a.sent_esp().len(), 10);
    assert_eq!(a.drops(), [(SaExhausted, 34)]);
    assert_eq!((a.counters.port(PORT).drops, a.counters.link(LINK).drops), (34, 34));
}

#[test]
fn packets_made_of_a_frame_are_told() {
    let (mut a, _) = keyed_nodes();
    let flow = Flow::new(A, B, false, Protocol::Udp);
    let (header, mut frame) = flow.super_frame(&payload(2_000));
    assert_eq!(a.submit_as(PORT, &header, &frame), 2);
    frame[..6].fill(0xff);
    assert_eq!(a.submit_as(PORT, &header, &frame), 1 + 2 + 1, "next door, to one node, refused to another");
    let flow = Flow { to: A_NEIGHBOR, ..flow };
    let (header, frame) = flow.super_frame(&payload(4_000));
    assert_eq!(a.submit_as(PORT, &header, &frame), 4, "cut for a container that takes none");
    a.out.merging = EVERYTHING;
    assert_eq!(a.submit_as(PORT, &header, &frame), 1);
    assert_eq!(a.submit_as(PORT, &VnetHeader::COMPLETE, &udp4(A, B, b"x")), 1);
    assert_eq!(a.submit_as(PORT, &VnetHeader::COMPLETE, &udp4(B, A, b"x")), 0, "refused");
}

#[test]
fn super_frame_of_a_port_that_is_gone_is_counted_as_the_frames_that_it_was() {
    let (mut a, _) = keyed_nodes();
    let gone = PortSlot::new(99);
    let (header, frame) = Flow::new(A, B, false, Protocol::Tcp).super_frame(&payload(9_000));
    a.submit_as(gone, &header, &frame);
    assert_eq!((a.drops(), a.counters.port(gone).drops), (vec![(NoSuchPort, 9)], 9));
}

#[test]
fn super_frame_of_a_plain_network_is_cut_as_well() {
    let (mut a, mut b) = nodes();
    b.out.merging = EVERYTHING;
    let flow = Flow::new(A_PLAIN, B_PLAIN, false, Protocol::Tcp);
    let (header, frame) = flow.super_frame(&payload(5_000));
    a.submit_as(PLAIN_PORT, &header, &frame);
    a.egress.flush(&mut a.out);
    let mut packets: Vec<_> = a.out.vxlan.drain(..).map(|(_, packet)| packet).collect();
    let inner: Vec<_> = packets.iter().map(|packet| packet[8..].to_vec()).collect();
    assert_eq!(inner, flow.segments(&payload(5_000)));
    b.receive_vxlan_batch(a.vxlan_address, &mut packets);
    assert_eq!(b.delivered_as(), [(PLAIN_PORT, header, frame)]);
}

#[test]
fn flooded_super_frame_is_whole_next_door_and_cut_for_peers_and_costs_its_segments() {
    let (mut a, mut b) = keyed_nodes();
    let flow = Flow::new(A, B, false, Protocol::Udp);
    let (header, mut frame) = flow.super_frame(&payload(4_000));
    frame[..6].fill(0xff);
    a.submit_as(PORT, &header, &frame);
    a.egress.flush(&mut a.out);
    assert_eq!(a.out.delivered, [(NEIGHBOR_PORT, header, frame.clone())]);
    let sent = a.sent_esp();
    assert_eq!(sent.len(), 4);
    sent.iter().for_each(|(_, packet)| b.receive_esp(a.esp_address, packet));
    assert_eq!(b.delivered().len(), 3 * 4, "to all three ports there");
    // The burst is five frames, of which one is left.
    a.submit_as(PORT, &header, &frame);
    assert_eq!(a.drops(), [(FloodRateLimited, 4), (NoKey, 4)]);
}

#[test]
fn policy_holds_for_super_frames() {
    let flow = Flow::new(A, B, false, Protocol::Tcp);
    let cases: [(DropReason, u64, Flow); 4] = [
        (SourceMacSpoofed, 9, Flow { from: B_NEIGHBOR, ..flow.clone() }),
        (FrameTooBig, 7, Flow { size: 1408 - 20 - 32 + 1, ..flow.clone() }),
        (UnknownDestination, 9, Flow { to: Container(99), ..flow.clone() }),
        (NoKey, 9, Flow { to: THIRD, ..flow.clone() }),
    ];
    for (expected, segments, flow) in cases {
        let (mut a, _) = keyed_nodes();
        let (header, frame) = flow.super_frame(&payload(9_000));
        a.submit_as(PORT, &header, &frame);
        a.egress.flush(&mut a.out);
        assert_eq!(a.drops(), [(expected, segments)]);
        let answers = usize::from(expected == FrameTooBig);
        assert!(a.out.esp.is_empty() && a.out.delivered.len() == answers);
    }
    let (mut a, _) = keyed_nodes();
    let (header, mut frame) = flow.super_frame(&payload(9_000));
    frame[29] ^= 1;
    a.submit_as(PORT, &header, &frame);
    assert_eq!(a.drops(), [(SourceIpSpoofed, 9)]);
}

#[test]
fn full_segments_of_the_mtu_pass() {
    let (mut a, _) = keyed_nodes();
    let flow = Flow { size: 1408 - 20 - 32, ..Flow::new(A, B, false, Protocol::Tcp) };
    let (header, frame) = flow.super_frame(&payload(9_000));
    a.submit_as(PORT, &header, &frame);
    assert!(a.drops().is_empty());
}

#[test]
fn kernel_that_contradicts_the_frame_is_not_believed() {
    let lies: [fn(&mut VnetHeader, &mut Vec<u8>); 13] = [
        |header, _| header.checksum = Checksum::Complete,
        |header, _| header.checksum = Checksum::Verified,
        |header, _| header.checksum = Checksum::Partial { start: 35, offset: 16 },
        |header, _| header.checksum = Checksum::Partial { start: 34, offset: 6 },
        |header, _| header.checksum = Checksum::Partial { start: 14, offset: 12 },
        |header, _| header.segmentation.as_mut().unwrap().kind = Kind::Tcp6,
        |header, _| header.segmentation.as_mut().unwrap().kind = Kind::Udp,
        |header, _| header.segmentation.as_mut().unwrap().size = 1.try_into().unwrap(),
        |_, frame| frame.push(0),
        |_, frame| frame.truncate(9_000),
        |_, frame| frame[20] |= 0x20,
        |_, frame| frame[23] = 17,
        |_, frame| frame[46] = 0x10,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let (mut a, _) = keyed_nodes();
        let (mut header, mut frame) = Flow::new(A, B, false, Protocol::Tcp).super_frame(&payload(9_000));
        lie(&mut header, &mut frame);
        a.submit_as(PORT, &header, &frame);
        a.egress.flush(&mut a.out);
        assert_eq!(a.drops(), [(MalformedFrame, 1)], "lie {number}");
        assert!(a.out.esp.is_empty() && a.out.delivered.is_empty());
    }
}

#[test]
fn checksum_left_by_the_kernel_is_made_for_peers_and_left_for_neighbors() {
    for (is_ipv6, protocol) in kinds() {
        let (mut a, mut b) = keyed_nodes();
        for (to, len) in [(B, 5), (B, 0), (A_NEIGHBOR, 5)] {
            let whole = Flow::new(A, to, is_ipv6, protocol).frame(&payload(len));
            let mut frame = whole.clone();
            let transport = Transport::locate(&frame).unwrap().unwrap();
            leave_checksum(&mut frame, &transport);
            a.submit_as(PORT, &partial(&transport), &frame);
            a.egress.flush(&mut a.out);
            if to == B {
                b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
                assert_eq!(b.delivered(), [(PORT, whole)]);
            } else {
                assert_eq!(a.delivered_as(), [(NEIGHBOR_PORT, partial(&transport), frame)]);
            }
        }
    }
}

#[test]
fn checksum_that_would_change_what_is_judged_is_made_before_judging() {
    // An honest advertisement, but for a "checksum" whose place is the end of the target address.
    let (mut a, _) = keyed_nodes();
    let message = neighbor_message(136, A.v6(), Some(A.mac()));
    let mut frame = icmp6(A.mac(), A.v6(), all_nodes(), &message);
    let target_end = 54 + 8 + 14;
    assert_eq!(frame[target_end..target_end + 2], [0, A.0]);
    let start = 54 + 4;
    let offset = u16::try_from(target_end - start).unwrap();
    let checksum = Checksum::Partial { start: u16::try_from(start).unwrap(), offset };
    a.submit_as(PORT, &VnetHeader { checksum, ..VnetHeader::COMPLETE }, &frame);
    a.egress.flush(&mut a.out);
    assert_eq!(a.drops(), [(NeighborSpoofed, 1)]);
    // The source address of IP itself, and beyond the end.
    frame = Flow::new(A, B, false, Protocol::Udp).frame(b"x");
    for (start, offset, expected) in
        [(14, 14, SourceIpSpoofed), (34, 900, MalformedFrame), (900, 0, MalformedFrame)]
    {
        let (mut a, _) = keyed_nodes();
        let checksum = Checksum::Partial { start, offset };
        a.submit_as(PORT, &VnetHeader { checksum, ..VnetHeader::COMPLETE }, &frame);
        a.egress.flush(&mut a.out);
        assert_eq!(a.drops(), [(expected, 1)]);
        assert!(a.out.esp.is_empty());
    }
}

#[test]
fn checksum_within_a_tunnel_of_the_container_is_made() {
    let (mut a, mut b) = keyed_nodes();
    let mut frame = Flow::new(A, B, false, Protocol::Udp).frame(&payload(100));
    let checksum = Checksum::Partial { start: 60, offset: 16 };
    a.submit_as(PORT, &VnetHeader { checksum, ..VnetHeader::COMPLETE }, &frame);
    a.egress.flush(&mut a.out);
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    crate::wire::checksum::complete(&mut frame, 60, 16).unwrap();
    assert_eq!(b.delivered(), [(PORT, frame)]);
}

#[test]
fn frame_longer_than_the_mtu_that_is_no_super_frame_is_too_big() {
    let (mut a, _) = keyed_nodes();
    a.send(PORT, &udp4(A, B, &payload(50_000)));
    a.send(PORT, &udp4(B, A, &payload(50_000)));
    assert_eq!(a.drops(), [(FrameTooBig, 1), (SourceMacSpoofed, 1)]);
}

proptest! {
    #[test]
    fn split_then_merge_is_identity(
        is_ipv6: bool, is_tcp: bool, has_timestamps: bool, size in 100u16..1300, full in 1usize..63,
        rest in 1usize..1300, flags in prop::sample::select(vec![0x10u8, 0x18, 0x19, 0x50, 0x58]),
        sequence: u32, id: u16, dont_fragment: bool
    ) {
        let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
        let len = (full * usize::from(size) + rest.min(size.into())).min(60_000);
        prop_assume!(len > usize::from(size));
        let flow = Flow::new(A, B, is_ipv6, protocol);
        let flow = Flow { has_timestamps, size, flags, sequence, id, dont_fragment, ..flow };
        let (mut a, mut b) = keyed_nodes();
        b.out.merging = EVERYTHING;
        let (header, frame) = flow.super_frame(&payload(len));
        a.submit_as(PORT, &header, &frame);
        a.egress.flush(&mut a.out);
        let mut packets: Vec<_> = a.sent_esp().into_iter().map(|(_, packet)| packet).collect();
        b.receive_esp_batch(a.esp_address, &mut packets);
        prop_assert_eq!(b.delivered_as(), [(PORT, header, frame)]);
    }

    #[test]
    fn hostile_super_frames_never_panic_and_leave_only_with_the_senders_addresses(
        is_ipv6: bool, is_tcp: bool, at in 0usize..100, bits: u8, len in 1usize..5_000,
        start in 0u16..100, offset in 0u16..100, kind in 0usize..3, size in 1u16..2000, keep: bool
    ) {
        let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
        let (mut header, mut frame) = Flow::new(A, B, is_ipv6, protocol).super_frame(&payload(len));
        let at = at.min(frame.len() - 1);
        frame[at] ^= bits;
        let kind = [Kind::Tcp4, Kind::Tcp6, Kind::Udp][kind];
        if !keep {
            header.checksum = Checksum::Partial { start, offset };
            let size = size.try_into().unwrap();
            header.segmentation = Some(Segmentation { kind, has_cwr: false, size });
        }
        let (mut a, mut b) = keyed_nodes();
        b.out.merging = EVERYTHING;
        a.submit_as(PORT, &header, &frame);
        a.egress.flush(&mut a.out);
        let mut packets: Vec<_> = a.sent_esp().into_iter().map(|(_, packet)| packet).collect();
        b.receive_esp_batch(a.esp_address, &mut packets);
        for (_, _, frame) in b.delivered_as() {
            prop_assert_eq!(&frame[6..12], A.mac().octets());
            let from = if is_ipv6 { A.v6().octets().to_vec() } else { A.v4().to_vec() };
            let place = if is_ipv6 { 22..38 } else { 26..30 };
            prop_assert_eq!(&frame[place], from);
        }
        prop_assert!(b.drops().is_empty());
    }
}

fn kinds() -> [(bool, Protocol); 4] {
    [(false, Protocol::Tcp), (true, Protocol::Tcp), (false, Protocol::Udp), (true, Protocol::Udp)]
}

fn all_nodes() -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1].wrapping_mul(31)).collect()
}
