//! Segments of one flow on their way into a container: what is merged, and everything that is not.

use proptest::prelude::*;

use super::flows::{Flow, are_checksums_right, mend};
use super::testbed::*;
use super::{Coalescer, Context, Merging};
use crate::drop_reason::DropReason::PeerMacSpoofed;
use crate::id::Spi;
use crate::sa::{InboundSa, KeyMaterial, Limits, Suite};
use crate::wire::transport::{CWR, ECE, FIN, PSH, Protocol, Transport};
use crate::wire::vnet_hdr::VnetHeader;

const EVERYTHING: Merging = Merging { tcp: true, udp: true };
const RST: u8 = 4;
const SYN: u8 = 2;
const URG: u8 = 0x20;

#[test]
fn segments_that_follow_each_other_become_one() {
    for (is_ipv6, protocol) in kinds() {
        let flow = Flow::new(A, B, is_ipv6, protocol);
        let whole = flow.super_frame(&payload(4_500));
        assert_eq!(merge(&flow.segments(&payload(4_500))), [(whole.0, whole.1)], "{flow:?}");
    }
}

#[test]
fn one_segment_alone_is_said_to_be_verified() {
    for (is_ipv6, protocol) in kinds() {
        let frame = Flow::new(A, B, is_ipv6, protocol).frame(&payload(700));
        assert_eq!(merge(std::slice::from_ref(&frame)), [(VnetHeader::VERIFIED, frame)]);
    }
}

#[test]
fn shorter_segment_push_and_fin_end_a_run() {
    for (flags, len) in [(0x10, 999), (0x10 | PSH, 1000), (0x10 | FIN, 1000)] {
        let flow = Flow::new(A, B, false, Protocol::Tcp);
        let mut segments = flow.segments(&payload(3_000));
        let mut last = Flow { sequence: flow.sequence.wrapping_add(3_000), flags, ..flow.clone() };
        last.id = last.id.wrapping_add(3);
        segments.push(last.frame(&payload(len)));
        let mut next = Flow { sequence: last.sequence.wrapping_add(u32::try_from(len).unwrap()), ..flow };
        next.id = next.id.wrapping_add(4);
        segments.push(next.frame(&payload(1_000)));
        let lens: Vec<_> = merge(&segments).iter().map(|(_, frame)| frame.len() - 66).collect();
        assert_eq!(lens, [3_000 + len, 1_000], "{flags:x}, {len}");
    }
}

#[test]
fn congestion_window_reduced_is_said_of_one_segment_alone() {
    for is_ipv6 in [false, true] {
        let flow = Flow { flags: 0x10 | CWR, ..Flow::new(A, B, is_ipv6, Protocol::Tcp) };
        let merged = merge(&flow.segments(&payload(4_000)));
        let [(first, alone), (_, rest)] = merged.as_slice() else { panic!("{} frames", merged.len()) };
        assert_eq!((*first, alone), (VnetHeader::COMPLETE, &flow.segments(&payload(4_000))[0]));
        assert_eq!(rest.len(), alone.len() + 2_000);
    }
}

#[test]
fn run_ends_after_64_segments_and_at_64_kib() {
    let flow = Flow { size: 100, ..Flow::new(A, B, false, Protocol::Tcp) };
    let lens: Vec<_> = merge(&flow.segments(&payload(10_000))).iter().map(|(_, frame)| frame.len()).collect();
    assert_eq!(lens, [66 + 6_400, 66 + 3_600]);
    let flow = Flow { size: 1300, ..Flow::new(A, B, false, Protocol::Tcp) };
    let lens: Vec<_> = merge(&flow.segments(&payload(78_000))).iter().map(|(_, frame)| frame.len()).collect();
    assert_eq!(lens, [66 + 50 * 1300, 66 + 10 * 1300]);
}

#[test]
fn batch_is_opened_before_any_of_it_is_written() {
    let (a, mut b) = keyed_nodes();
    b.out.merging = EVERYTHING;
    let runs = [false, true].map(|is_ipv6| Flow::new(A, B, is_ipv6, Protocol::Tcp).segments(&payload(3_000)));
    let mut packets = seal(&a, &runs.concat());
    let Node { ingress, tables, counters, out, now, class, .. } = &mut b;
    let cx = Context { tables, counters, now: *now };
    let mut batch = Coalescer::new();
    for packet in &mut packets {
        ingress.receive_esp(&cx, a.esp_address, *class, packet, &mut batch, out);
        assert_eq!(out.delivered.len(), 0);
    }
    batch.flush(&cx, out);
    assert_eq!(out.delivered.iter().map(|(_, _, frame)| frame.len()).collect::<Vec<_>>(), [3_066, 3_086]);
}

#[test]
fn batch_of_more_than_can_gather_keeps_its_order() {
    let flow = Flow { size: 100, ..Flow::new(A, B, false, Protocol::Tcp) };
    let merged = merge(&flow.segments(&payload(40_000)));
    assert_eq!(merged.iter().map(|(_, frame)| frame.len() - 66).collect::<Vec<_>>(), {
        [6_400, 6_400, 6_400, 6_400, 6_400, 6_400, 1_600]
    });
    let arrived: Vec<_> = merged.iter().flat_map(|(_, frame)| frame[66..].to_vec()).collect();
    assert_eq!(arrived, payload(40_000));

    let flows = [false, true].map(|is_ipv6| Flow::new(A, B, is_ipv6, Protocol::Udp).frame(&payload(700)));
    let alternating = flows.iter().cycle().take(50).cloned().collect::<Vec<_>>();
    let frames: Vec<_> = merge(&alternating).into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(frames, alternating);
}

/// A change of the second of two frames that would be merged without it.
type Change = fn(&mut Vec<u8>);

#[test]
fn second_frame_that_differs_is_not_merged_tcp_over_ipv4() {
    let changes: [(&str, Change); 21] = [
        ("class", |frame| frame[15] ^= 0x20),
        ("ECN", |frame| frame[15] ^= 3),
        ("identification", |frame| frame[19] ^= 8),
        ("DF", |frame| frame[20] ^= 0x40),
        ("reserved flag", |frame| frame[20] ^= 0x80),
        ("TTL", |frame| frame[22] -= 1),
        ("destination address", |frame| frame[33] ^= 1),
        ("source port", |frame| frame[35] ^= 1),
        ("destination port", |frame| frame[37] ^= 1),
        ("sequence", |frame| frame[41] ^= 1),
        ("acknowledgment", |frame| frame[45] ^= 1),
        ("reserved bits", |frame| frame[46] ^= 2),
        ("FIN and SYN", |frame| frame[47] |= SYN | FIN),
        ("RST", |frame| frame[47] |= RST),
        ("URG", |frame| frame[47] |= URG),
        ("ECE", |frame| frame[47] |= ECE),
        ("CWR", |frame| frame[47] |= CWR),
        ("window", |frame| frame[49] ^= 1),
        ("urgent pointer", |frame| frame[53] ^= 1),
        ("timestamp", |frame| frame[61] ^= 1),
        ("Ethernet padding", |frame| frame.push(0)),
    ];
    refuse(&Flow::new(A, B, false, Protocol::Tcp), &changes);
}

#[test]
fn second_frame_that_differs_is_not_merged_tcp_over_ipv6() {
    let changes: [(&str, Change); 6] = [
        ("class", |frame| frame[15] ^= 0x10),
        ("flow label", |frame| frame[17] ^= 1),
        ("hop limit", |frame| frame[21] -= 1),
        ("destination address", |frame| frame[53] ^= 1),
        ("sequence", |frame| frame[61] ^= 1),
        ("window", |frame| frame[69] ^= 1),
    ];
    refuse(&Flow::new(A, B, true, Protocol::Tcp), &changes);
}

#[test]
fn second_frame_that_differs_is_not_merged_udp() {
    let changes: [(&str, Change); 4] = [
        ("source port", |frame| frame[35] ^= 1),
        ("TTL", |frame| frame[22] -= 1),
        ("identification", |frame| frame[19] ^= 8),
        ("longer", |frame| {
            frame.extend([7; 2]);
            let (ip, udp) = (1000 + 30, 1000 + 10);
            frame[16..18].copy_from_slice(&u16::to_be_bytes(ip));
            frame[38..40].copy_from_slice(&u16::to_be_bytes(udp));
        }),
    ];
    refuse(&Flow::new(A, B, false, Protocol::Udp), &changes);
}

#[test]
fn frames_that_are_never_merged_come_as_they_are() {
    let tcp = |flags| Flow { flags, ..Flow::new(A, B, false, Protocol::Tcp) };
    for flags in [0, 0x10 | PSH, 0x10 | FIN, 0x10 | SYN, 0x10 | RST, 0x10 | URG, 0x10 | CWR] {
        assert_untouched(&tcp(flags), 1_000, |_| {});
    }
    assert_untouched(&tcp(0x10), 0, |_| {});
    let udp = Flow::new(A, B, false, Protocol::Udp);
    assert_untouched(&udp, 0, |_| {});
    assert_untouched(&tcp(0x10), 1_000, |frame| {
        frame.splice(34..34, [1, 1, 1, 0]);
        frame[14] = 0x46;
        frame[17] += 4;
        mend(frame);
    });
    assert_untouched(&Flow::new(A, B, true, Protocol::Tcp), 1_000, |frame| {
        frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
        (frame[20], frame[19]) = (60, frame[19] + 8);
    });
    // Without a checksum there is nothing to verify; with a wrong one nothing to merge.
    assert_untouched(&udp, 1_000, |frame| frame[40..42].fill(0));
    assert_untouched(&udp, 1_000, |frame| frame[39] -= 1);
    assert_untouched(&udp, 1_000, |frame| frame[41] ^= 1);
    assert_untouched(&tcp(0x10), 1_000, |frame| frame[50] ^= 1);
    assert_untouched(&tcp(0x10), 1_000, |frame| frame[25] ^= 1);
    assert_untouched(&tcp(0x10), 1_000, |frame| frame[20] |= 0x20);
}

#[test]
fn identification_stands_still_or_counts_but_not_both() {
    for (ids, dont_fragment, expected) in [
        ([5u16, 5, 5], true, 1),
        ([5, 6, 7], true, 1),
        ([5, 6, 7], false, 1),
        ([0xffff, 0, 1], false, 1),
        ([5, 5, 5], false, 3),
        ([5, 6, 6], true, 2),
        ([5, 5, 7], true, 2),
        ([5, 5, 6], true, 2),
    ] {
        let flow = Flow { dont_fragment, ..Flow::new(A, B, false, Protocol::Tcp) };
        let mut segments = flow.segments(&payload(3_000));
        for (segment, id) in segments.iter_mut().zip(ids) {
            segment[18..20].copy_from_slice(&id.to_be_bytes());
            mend(segment);
        }
        assert_eq!(merge(&segments).len(), expected, "{ids:?}, DF {dont_fragment}");
    }
}

#[test]
fn frames_of_other_flows_and_ports_come_in_between_in_order() {
    let one = Flow::new(A, B, false, Protocol::Tcp).segments(&payload(2_000));
    let other = Flow::new(A, B_NEIGHBOR, false, Protocol::Tcp).segments(&payload(1_000));
    let batch = [one[0].clone(), other[0].clone(), one[1].clone()];
    assert_eq!(merge(&batch).into_iter().map(|(_, frame)| frame).collect::<Vec<_>>(), batch);
    let broadcast = broadcast(A);
    let merged = merge(&[one[0].clone(), broadcast.clone(), one[1].clone()]);
    let frames: Vec<_> = merged.into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(frames, [one[0].clone(), broadcast.clone(), broadcast.clone(), broadcast, one[1].clone()]);
}

#[test]
fn missing_repeated_and_reordered_segments_are_not_merged_over() {
    let segments = Flow::new(A, B, false, Protocol::Tcp).segments(&payload(4_000));
    for order in [[0usize, 2, 3], [0, 0, 1], [1, 0, 2], [2, 1, 0]] {
        let batch: Vec<_> = order.iter().map(|index| segments[*index].clone()).collect();
        let merged = merge(&batch);
        let bytes: usize = merged.iter().map(|(_, frame)| frame.len() - 66).sum();
        assert!(merged.len() > 1 && bytes == 3_000, "{order:?}");
    }
}

#[test]
fn port_that_takes_no_super_frames_gets_the_segments() {
    for (protocol, merging) in [
        (Protocol::Tcp, Merging { tcp: false, udp: true }),
        (Protocol::Udp, Merging { tcp: true, udp: false }),
    ] {
        let segments = Flow::new(A, B, false, protocol).segments(&payload(3_000));
        let expected: Vec<_> = segments.iter().map(|frame| (VnetHeader::COMPLETE, frame.clone())).collect();
        assert_eq!(merge_for(merging, &segments), expected);
    }
}

#[test]
fn spoofed_segment_within_a_run_is_dropped_alone() {
    let (a, mut b) = keyed_nodes();
    b.out.merging = EVERYTHING;
    let mut segments = Flow::new(A, B, false, Protocol::Tcp).segments(&payload(3_000));
    segments[1][11] = THIRD.mac().octets()[5];
    b.receive_esp_batch(a.esp_address, &mut seal(&a, &segments));
    assert_eq!(b.drops(), [(PeerMacSpoofed, 1)]);
    assert_eq!(b.delivered().len(), 2);
}

#[test]
fn segment_that_would_continue_the_run_of_another_peer_is_dropped() {
    for (is_ipv6, protocol) in kinds() {
        let (a, mut b) = keyed_nodes();
        b.out.merging = EVERYTHING;
        let key = KeyMaterial::new(Suite::Aes256Gcm, &[0x30; KeyMaterial::LEN]);
        let spi = Spi::new(0x3000).unwrap();
        let sa = InboundSa::new(spi, key, Limits::standard(Suite::Aes256Gcm), b.now);
        b.ingress.install(LINK_TO_THIRD, sa);
        let segments = Flow::new(A, B, is_ipv6, protocol).segments(&payload(4_000));
        let mut packets = seal(&a, &segments[..3]);
        packets.extend(seal_under(0x3000, &a, &segments[3..]));
        b.receive_esp_batch(a.esp_address, &mut packets);
        assert_eq!(b.drops(), [(PeerMacSpoofed, 1)], "{is_ipv6} {protocol:?}");
        let whole = merge(&segments[..3]);
        let delivered: Vec<_> =
            b.delivered_as().into_iter().map(|(_, header, frame)| (header, frame)).collect();
        assert_eq!(delivered, whole);
    }
}

#[test]
fn wrong_checksum_by_any_bit_of_a_header_is_never_laundered() {
    for (is_ipv6, protocol) in kinds() {
        let len = match protocol {
            Protocol::Tcp => 32,
            Protocol::Udp => 8,
        };
        for bit in 0..len * 8 {
            assert_never_laundered(&Flow::new(A, B, is_ipv6, protocol), bit % 3, bit / 8, bit % 8);
        }
    }
}

proptest! {
    #[test]
    fn wrong_checksum_is_never_laundered(
        is_ipv6: bool, is_tcp: bool, victim in 0usize..5, at in 0usize..1080, bit in 0usize..8
    ) {
        let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
        assert_never_laundered(&Flow::new(A, B, is_ipv6, protocol), victim, at, bit);
    }

    #[test]
    fn no_byte_is_lost_or_reordered(
        picks in prop::collection::vec((any::<bool>(), any::<bool>(), 0u8..8), 1..60)
    ) {
        let mut flows = [false, true].map(|is_ipv6| Flow::new(A, B, is_ipv6, Protocol::Tcp));
        let (mut batch, mut expected) = (Vec::new(), [Vec::new(), Vec::new()]);
        for (is_ipv6, is_short, flags) in picks {
            let flow = &mut flows[usize::from(is_ipv6)];
            flow.flags = 0x10 | if flags == 0 { PSH } else { 0 };
            let bytes = payload(if is_short { 900 } else { 1_000 });
            batch.push(flow.frame(&bytes));
            flow.sequence = flow.sequence.wrapping_add(u32::try_from(bytes.len()).unwrap());
            flow.id = flow.id.wrapping_add(1);
            expected[usize::from(is_ipv6)].extend(bytes);
        }
        let mut arrived = [Vec::new(), Vec::new()];
        for (_, frame) in merge(&batch) {
            let found = Transport::locate(&frame).unwrap().unwrap();
            arrived[usize::from(found.is_ipv6)].extend_from_slice(&frame[found.payload..]);
        }
        prop_assert_eq!(arrived, expected);
    }
}

/// Changes a bit, `at` octets into the transport header or behind it, of one of five segments: not of the
/// addresses, which policy watches.
fn assert_never_laundered(flow: &Flow, victim: usize, at: usize, bit: usize) {
    let mut segments = flow.segments(&payload(5_000));
    let start = if flow.is_ipv6 { 54 } else { 34 };
    let at = (start + at).min(segments[victim].len() - 1);
    segments[victim][at] ^= 1 << bit;
    let damaged = segments[victim].clone();
    let change = format!("{flow:?}, segment {victim}, octet {at}, bit {bit}");
    assert!(std::panic::catch_unwind(|| !are_checksums_right(&damaged)).unwrap_or(true), "{change}");
    let merged = merge(&segments);
    let untouched = merged.iter().filter(|one| **one == (VnetHeader::COMPLETE, damaged.clone()));
    assert_eq!(untouched.count(), 1, "{change}");
    for (header, frame) in merged {
        assert!(header != VnetHeader::VERIFIED || are_checksums_right(&frame), "{change}");
    }
}

fn refuse(flow: &Flow, changes: &[(&str, Change)]) {
    let segments = flow.segments(&payload(2_000));
    assert_eq!(merge(&segments).len(), 1);
    for (name, change) in changes {
        let mut batch = segments.clone();
        change(&mut batch[1]);
        mend(&mut batch[1]);
        let frames: Vec<_> = merge(&batch).into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(frames, batch, "{name}");
    }
}

fn assert_untouched(flow: &Flow, len: usize, change: Change) {
    let mut frame = flow.frame(&payload(len));
    change(&mut frame);
    let expected = [(VnetHeader::COMPLETE, frame.clone()), (VnetHeader::COMPLETE, frame.clone())];
    assert_eq!(merge(&[frame.clone(), frame]), expected, "{flow:?}, {len}");
}

fn merge(segments: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    merge_for(EVERYTHING, segments)
}

/// What the second node's containers get when these frames come in one batch.
fn merge_for(merging: Merging, segments: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let (a, mut b) = keyed_nodes();
    b.out.merging = merging;
    b.receive_esp_batch(a.esp_address, &mut seal(&a, segments));
    assert!(b.drops().is_empty(), "{:?}", b.drops());
    b.delivered_as().into_iter().map(|(_, header, frame)| (header, frame)).collect()
}

fn kinds() -> [(bool, Protocol); 4] {
    [(false, Protocol::Tcp), (true, Protocol::Tcp), (false, Protocol::Udp), (true, Protocol::Udp)]
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1].wrapping_mul(31)).collect()
}
