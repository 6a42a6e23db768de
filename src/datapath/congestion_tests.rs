//! DSCP and ECN across the tunnel (RFC 6040), and packets of one class in each run.

use super::testbed::*;
use super::{Egress, FloodLimit, Merging};
use crate::drop_reason::DropReason;
use crate::sa::{Limits, Suite};
use crate::wire::checksum;
use crate::wire::traffic_class::{Dscp, TrafficClass};

#[test]
fn ecn_is_shown_outside_and_dscp_on_request_alone() {
    for (dscp, shown) in [(Dscp::Hidden, [2, 3, 0]), (Dscp::Copied, [0xba, 0xbb, 0xb8])] {
        let (mut a, mut b) = nodes();
        a.egress = Egress::new(FloodLimit::default()).with_dscp(dscp);
        connect(&mut a, &mut b, 0x1000, Limits::standard(Suite::Aes256Gcm));
        for class in [0xba, 0xbb, 0xb8] {
            a.submit(PORT, &classed(udp4(A, B, b"data"), class));
        }
        a.egress.flush(&mut a.out);
        assert_eq!(a.out.classes, shown);
    }
}

#[test]
fn mark_of_the_underlay_reaches_the_container_and_the_header_checksum_stays_right() {
    let (mut a, mut b) = keyed_nodes();
    for (inner, outer, expected) in [(2, 3, 3), (1, 3, 3), (2, 1, 1), (0, 2, 0), (3, 0, 3)] {
        a.send(PORT, &classed(udp4(A, B, b"data"), 0x28 | inner));
        b.class = TrafficClass::new(0xf0 | outer);
        b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
        let (port, frame) = b.delivered().remove(0);
        assert_eq!((port, frame[15]), (PORT, 0x28 | expected), "{inner} in {outer}");
        assert_eq!(checksum::plain(&frame[14..34]), 0);
    }
    assert!(b.drops().is_empty());
}

#[test]
fn mark_on_a_packet_without_ecn_is_a_counted_drop() {
    let (mut a, mut b) = keyed_nodes();
    a.send(PORT, &classed(udp4(A, B, b"data"), 0xb8));
    b.class = TrafficClass::new(3);
    b.receive_esp(a.esp_address, &a.sent_esp().remove(0).1);
    assert!(b.delivered().is_empty());
    assert_eq!(b.drops(), [(DropReason::EcnIncapable, 1)]);
    assert_eq!(b.counters.link(LINK).last_drop, Some(DropReason::EcnIncapable));
}

#[test]
fn plain_vxlan_carries_marks_as_well() {
    let (mut a, mut b) = nodes();
    a.send(PLAIN_PORT, &classed(udp4(A_PLAIN, B_PLAIN, b"data"), 2));
    b.class = TrafficClass::new(3);
    let sent = std::mem::take(&mut a.out.vxlan);
    b.receive_vxlan(a.vxlan_address, &sent[0].1);
    assert_eq!(b.delivered()[0].1[15], 3);
}

#[test]
fn marked_and_unmarked_datagrams_of_a_flow_are_not_merged() {
    let (mut a, mut b) = keyed_nodes();
    b.out.merging = Merging { tcp: true, udp: true };
    for _ in 0..4 {
        a.submit(PORT, &classed(udp4(A, B, b"data"), 2));
    }
    a.egress.flush(&mut a.out);
    let mut sent: Vec<_> = a.sent_esp().into_iter().map(|(_, packet)| packet).collect();
    b.receive_esp_batch_as(a.esp_address, &mut sent, &[0, 0, 3, 3].map(TrafficClass::new));
    let delivered: Vec<_> = b.delivered().iter().map(|(_, frame)| (frame[15], frame.len())).collect();
    assert_eq!(delivered, [(2, 42 + 8), (3, 42 + 8)], "two runs of two datagrams");
}

/// The IPv4 frame with another class.
fn classed(mut frame: Vec<u8>, class: u8) -> Vec<u8> {
    frame[15] = class;
    frame[24..26].fill(0);
    let sum = checksum::plain(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}
