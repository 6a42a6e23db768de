//! Checksums that a container's kernel leaves, from one node to another inside ESP.

use super::flows::{Flow, are_checksums_right, leave_checksum, partial};
use super::testbed::*;
use super::{Egress, FloodLimit, Merging};
use crate::drop_reason::DropReason::MalformedVxlan;
use crate::id::{Spi, Vni};
use crate::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Suite};
use crate::wire::transport::{Protocol, Transport};
use crate::wire::vnet_hdr::{Checksum, VnetHeader};
use crate::wire::vxlan::{LeftChecksums, RemoteChecksum};
use crate::wire::{udp, vxlan};

const KINDS: [(bool, Protocol); 4] =
    [(false, Protocol::Tcp), (true, Protocol::Tcp), (false, Protocol::Udp), (true, Protocol::Udp)];

/// Sends one frame from the first node and gives the packet's VXLAN header and frame.
fn sent(checksums: LeftChecksums, header: &VnetHeader, frame: &[u8]) -> (Option<RemoteChecksum>, Vec<u8>) {
    let (mut a, mut b) = nodes();
    a.egress = Egress::new(FloodLimit::default()).with_checksums(checksums);
    connect(&mut a, &mut b, 0x1000, Limits::standard(Suite::Aes256Gcm));
    a.submit_as(PORT, header, frame);
    a.egress.flush(&mut a.out);
    let mut packet = a.sent_esp().remove(0).1;
    let mut sa = InboundSa::new(spi(), key(), Limits::standard(Suite::Aes256Gcm), b.now);
    let opened = sa.open(b.now, &mut packet).expect("authentic");
    let (_, payload) = udp::parse(opened.payload()).expect("UDP");
    let packet = vxlan::parse(payload).expect("VXLAN");
    (packet.checksum, packet.frame.to_vec())
}

#[test]
fn packet_says_that_the_checksum_is_left_and_the_frame_is_as_its_kernel_gave_it() {
    for (is_ipv6, protocol) in KINDS {
        let whole = Flow::new(A, B, is_ipv6, protocol).frame(b"payload");
        let transport = Transport::locate(&whole).expect("well formed").expect("TCP or UDP");
        let (mut frame, header) = (whole.clone(), partial(&transport));
        leave_checksum(&mut frame, &transport);
        let left = RemoteChecksum::of(header.checksum);
        assert!(left.is_some());
        assert_eq!(sent(LeftChecksums::Passed, &header, &frame), (left, frame.clone()));
        assert_eq!(sent(LeftChecksums::Made, &header, &frame), (None, whole.clone()));
        assert_eq!(sent(LeftChecksums::Passed, &VnetHeader::COMPLETE, &whole), (None, whole));
    }
}

#[test]
fn other_kernel_is_told_what_is_left_of_a_single_frame_and_of_a_merged_one() {
    for (is_ipv6, protocol) in KINDS {
        for merging in [Merging::default(), Merging { tcp: true, udp: true }] {
            let (mut a, mut b) = keyed_nodes();
            b.out.merging = merging;
            let flow = Flow::new(A, B, is_ipv6, protocol);
            let (header, frame) = flow.super_frame(&vec![7; 5_500]);
            a.submit_as(PORT, &header, &frame);
            a.egress.flush(&mut a.out);
            let mut packets: Vec<_> = a.sent_esp().into_iter().map(|(_, packet)| packet).collect();
            b.receive_esp_batch(a.esp_address, &mut packets);
            let got = b.delivered_as();
            if merging.tcp {
                assert_eq!(got, [(PORT, header, frame)], "{flow:?}");
            } else {
                assert_eq!(got.len(), packets.len());
                for ((_, header, mut frame), whole) in got.into_iter().zip(flow.segments(&vec![7; 5_500])) {
                    let transport = Transport::locate(&frame).expect("well formed").expect("TCP or UDP");
                    assert_eq!(header, partial(&transport));
                    leave_checksum(&mut frame, &transport);
                    let mut left = whole.clone();
                    leave_checksum(&mut left, &transport);
                    assert!(frame == left && are_checksums_right(&whole));
                }
            }
        }
    }
}

/// A peer may say of a frame what is not so; its container's kernel would write where it says.
#[test]
fn checksum_left_elsewhere_than_in_the_transport_header_is_malformed() {
    let whole = Flow::new(A, B, false, Protocol::Tcp).frame(b"payload");
    let discovery = neighbor_message(135, B.v6(), None);
    for (frame, start, offset) in [
        (&whole, 32, 16),
        (&whole, 34, 6),
        (&whole, 254, 16),
        (&udp4(A, B, b"x"), 34, 16),
        (&discovery, 54, 16),
    ] {
        let (a, mut b) = keyed_nodes();
        let left = RemoteChecksum::of(Checksum::Partial { start, offset });
        assert!(left.is_some());
        let plain_len = 16 + frame.len();
        let mut packet = [&[0; 32][..], frame, &[0; 21]].concat();
        udp::write_header(&mut packet[16..], 50_000, vxlan::PORT, 8 + frame.len());
        vxlan::write_header(&mut packet[24..], Vni::new(ENCRYPTED_VNI).expect("in range"), left);
        let mut sa = OutboundSa::new(spi(), key(), Limits::standard(Suite::Aes256Gcm), a.now);
        let len = sa.seal(a.now, &mut packet, plain_len).expect("fresh").len();
        b.receive_esp(a.esp_address, &packet[..len]);
        assert!(b.delivered().is_empty() && b.drops().len() == 1, "{start}, {offset}: {:?}", b.drops());
        if start != 54 {
            assert_eq!(b.drops(), [(MalformedVxlan, 1)]);
        }
    }
}

#[test]
fn plain_vxlan_leaves_nothing_and_believes_no_such_word() {
    let (mut a, mut b) = nodes();
    let whole = Flow::new(A_PLAIN, B_PLAIN, false, Protocol::Udp).frame(b"payload");
    let transport = Transport::locate(&whole).expect("well formed").expect("UDP");
    let mut frame = whole.clone();
    leave_checksum(&mut frame, &transport);
    a.submit_as(PLAIN_PORT, &partial(&transport), &frame);
    a.egress.flush(&mut a.out);
    let (_, mut packet) = a.out.vxlan.remove(0);
    assert_eq!((packet[1], packet[7], &packet[8..]), (0, 0, &whole[..]));
    packet[1] |= 0x20;
    packet[7] = 0x80 | 17;
    b.receive_vxlan(a.vxlan_address, &packet);
    assert_eq!(b.delivered_as(), [(PLAIN_PORT, VnetHeader::COMPLETE, whole)]);
}

fn spi() -> Spi {
    Spi::new(0x1000).expect("no reserved SPI")
}

fn key() -> KeyMaterial {
    KeyMaterial::new(Suite::Aes256Gcm, &[0x10; KeyMaterial::LEN])
}
