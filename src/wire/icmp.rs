//! ICMP (RFC 792) and ICMPv6 (RFC 4443): telling a sender that its packet is too big.
//!
//! ```text
//! IPv4   0  1  type 3    1  1  code 4    2  2  checksum    4  2  unused    6  2  MTU (RFC 1191)
//! IPv6   0  1  type 2    1  1  code 0    2  2  checksum    4  4  MTU
//!        8     the packet that was too big, as far as it fits
//! ```
//! The answer comes from the address that the packet was for, as the kernel's own `vxlan` has it
//! (`iptunnel_pmtud_build_icmp` in net/ipv4/ip_tunnel_core.c): every stack has a route to it, so
//! no filter of reverse paths takes offence, and an overlay has no router with an address of its own.
//! Written for `datapath::egress`, which limits how often.

use std::net::Ipv4Addr;

use super::{Malformed, checksum, ethernet, ipv4, ipv6, octets, put};

/// Octets of the longest answer's frame, without tag.
pub const TOO_BIG_ROOM: usize = ethernet::HEADER_LEN + IPV6_LIMIT;

/// Writes the frame, without tag, that tells the sender of `frame` of the `mtu`, from which a tag of
/// `frame` takes its part; its length. `None` for what must not be answered: IPv4 that may be
/// fragmented, groups, later fragments, and errors (RFC 1812 §4.3.2.7, RFC 4443 §2.4 e).
pub fn write_too_big(frame: &[u8], mtu: u16, answer: &mut [u8; TOO_BIG_ROOM]) -> Option<usize> {
    let header = ethernet::Header::parse(frame).ok()?;
    if header.destination.is_multicast() {
        return None;
    }
    let mtu = header.mtu(mtu);
    let packet = &frame[header.end()..];
    let (place, message) = answer.split_at_mut(ethernet::HEADER_LEN);
    let len = match header.ether_type {
        ethernet::EtherType::Ipv4 => too_big_ipv4(packet, mtu, message),
        ethernet::EtherType::Ipv6 => too_big_ipv6(packet, mtu, message),
        ethernet::EtherType::Arp | ethernet::EtherType::Other(_) => Err(Malformed),
    };
    let ethernet::Header { destination, source, ether_type, .. } = header;
    ethernet::Header { destination: source, source: destination, tag: None, ether_type }.write(place);
    Some(ethernet::HEADER_LEN + len.ok()?)
}

/// The packet of IPv4 that answers `packet`; an error where none may.
fn too_big_ipv4(packet: &[u8], mtu: u16, answer: &mut [u8]) -> Result<usize, Malformed> {
    let ipv4::Packet { source, destination, protocol, .. } = ipv4::Packet::parse(packet)?;
    let flags = u16::from_be_bytes(octets(packet, 6)?);
    let [version_ihl, _, high, low] = octets(packet, 0)?;
    let is_error = protocol == PROTOCOL_ICMP && {
        let [kind] = octets(packet, usize::from(version_ihl & 0x0f) * 4)?;
        ERRORS.contains(&kind)
    };
    let is_group = destination.is_multicast() || destination.is_broadcast();
    if flags & DONT_FRAGMENT == 0 || flags & FRAGMENT_OFFSET != 0 || is_error || is_group {
        return Err(Malformed);
    }
    let packet = &packet[..usize::from(u16::from_be_bytes([high, low]))];
    let quoted = &packet[..packet.len().min(IPV4_LIMIT - ipv4::HEADER_LEN - HEADER_LEN)];
    let len = ipv4::HEADER_LEN + HEADER_LEN + quoted.len();
    let (header, message) = answer[..len].split_at_mut(ipv4::HEADER_LEN);
    write_ipv4_header(header, destination, source, len);
    let [high, low] = mtu.to_be_bytes();
    write_message(message, [3, 4, 0, 0, 0, 0, high, low], quoted);
    let checksum = checksum::plain(message);
    put(message, CHECKSUM, checksum.to_be_bytes());
    Ok(len)
}

/// The packet of IPv6 that answers `packet`; an error where none may.
fn too_big_ipv6(packet: &[u8], mtu: u16, answer: &mut [u8]) -> Result<usize, Malformed> {
    let parsed = ipv6::Packet::parse(packet)?;
    let ipv6::Packet { source, destination, payload, .. } = parsed;
    let is_error = parsed.protocol == ipv6::NEXT_HEADER_ICMPV6
        && payload.first().is_none_or(|kind| *kind < FIRST_INFORMATION || *kind == REDIRECT);
    let is_later_fragment = parsed.fragmented && payload.is_empty();
    if is_error || is_later_fragment || destination.is_multicast() || source.is_unspecified() {
        return Err(Malformed);
    }
    let packet_len = ipv6::HEADER_LEN + usize::from(u16::from_be_bytes(octets(packet, 4)?));
    let quoted = &packet[..packet_len.min(IPV6_LIMIT - ipv6::HEADER_LEN - HEADER_LEN)];
    let message_len = HEADER_LEN + quoted.len();
    let len = u16::try_from(message_len).map_err(|_| Malformed)?;
    let (header, message) = answer[..ipv6::HEADER_LEN + message_len].split_at_mut(ipv6::HEADER_LEN);
    ipv6::write_header(header, destination, source, ipv6::NEXT_HEADER_ICMPV6, len);
    let [high, low] = mtu.to_be_bytes();
    write_message(message, [2, 0, 0, 0, 0, 0, high, low], quoted);
    let checksum = checksum::ipv6(destination, source, ipv6::NEXT_HEADER_ICMPV6, message);
    put(message, CHECKSUM, checksum.to_be_bytes());
    Ok(ipv6::HEADER_LEN + message_len)
}

fn write_ipv4_header(bytes: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, len: usize) {
    let len = u16::try_from(len).expect("an answer is short");
    // Precedence of internetwork control (RFC 1812 §4.3.2.5).
    put(bytes, 0, [0x45, 0xc0]);
    put(bytes, 2, len.to_be_bytes());
    put(bytes, 4, [0, 0]);
    put(bytes, 6, DONT_FRAGMENT.to_be_bytes());
    put(bytes, 8, [64, PROTOCOL_ICMP, 0, 0]);
    put(bytes, 12, source.octets());
    put(bytes, 16, destination.octets());
    let checksum = checksum::plain(&bytes[..ipv4::HEADER_LEN]);
    put(bytes, 10, checksum.to_be_bytes());
}

fn write_message(message: &mut [u8], header: [u8; HEADER_LEN], quoted: &[u8]) {
    put(message, 0, header);
    message[HEADER_LEN..].copy_from_slice(quoted);
}

/// Octets in front of the quoted packet.
const HEADER_LEN: usize = 8;
const CHECKSUM: usize = 2;
/// An answer is no longer than what every host takes (RFC 1812 §4.3.2.3, RFC 4443 §2.4 c).
const IPV4_LIMIT: usize = 576;
const IPV6_LIMIT: usize = 1280;
const PROTOCOL_ICMP: u8 = 1;
/// Unreachable, source quench, redirect, time exceeded, parameter problem.
const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
/// ICMPv6: the types below are errors.
const FIRST_INFORMATION: u8 = 128;
/// ICMPv6: never to be answered, though not among the errors.
const REDIRECT: u8 = 137;
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: [u8; TOO_BIG_ROOM] = [0; TOO_BIG_ROOM];

    fn frame(is_ipv6: bool, payload_len: usize) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        let payload = vec![7; payload_len];
        if is_ipv6 {
            builder.ipv6([0x20; 16], [0x30; 16], 64).udp(1, 2).write(&mut frame, &payload)
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut frame, &payload)
        }
        .expect("a frame");
        frame
    }

    fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        let mut room = ROOM;
        write_too_big(frame, 1408, &mut room).map(|len| room[..len].to_vec())
    }

    #[test]
    fn answer_names_the_mtu_quotes_the_packet_and_has_right_checksums() {
        for (is_ipv6, payload_len, limit) in
            [(false, 2000, 576), (false, 100, 156), (true, 2000, 1280), (true, 100, 196)]
        {
            let sent = frame(is_ipv6, payload_len);
            let answer = answer(&sent).expect("an answer");
            assert_eq!(answer.len(), 14 + limit);
            assert_eq!(answer[..12], [[2; 6], [4; 6]].concat(), "back to the sender");
            let sliced = etherparse::SlicedPacket::from_ethernet(&answer).expect("well formed");
            let (transport, header_len) = if is_ipv6 { (&answer[54..], 54) } else { (&answer[34..], 34) };
            match sliced.transport {
                Some(etherparse::TransportSlice::Icmpv4(icmp)) => {
                    let mtu =
                        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1408 };
                    assert_eq!(icmp.icmp_type(), etherparse::Icmpv4Type::DestinationUnreachable(mtu));
                    assert_eq!(checksum::plain(transport), 0);
                    assert_eq!(checksum::plain(&answer[14..34]), 0);
                    assert_eq!((&answer[26..30], &answer[30..34]), (&sent[30..34], &sent[26..30]));
                }
                Some(etherparse::TransportSlice::Icmpv6(icmp)) => {
                    assert_eq!(icmp.icmp_type(), etherparse::Icmpv6Type::PacketTooBig { mtu: 1408 });
                    assert!(icmp.is_checksum_valid([0x30; 16], [0x20; 16]));
                }
                other => panic!("{other:?}"),
            }
            let quoted = &answer[header_len + 8..];
            assert_eq!(quoted, &sent[14..14 + quoted.len()]);
        }
    }

    #[test]
    fn ipv4_that_may_be_fragmented_groups_and_later_fragments_are_not_answered() {
        assert!(answer(&frame(false, 2000)).is_some(), "etherparse sets DF");
        for (at, value) in [(20, 0x00), (21, 1), (0, 0x01), (30, 239)] {
            let mut quiet = frame(false, 2000);
            quiet[at] = value;
            assert_eq!(answer(&quiet), None, "octet {at} = {value}");
        }
        let mut broadcast = frame(false, 2000);
        broadcast[30..34].fill(0xff);
        assert_eq!(answer(&broadcast), None);
        let mut multicast = frame(true, 2000);
        multicast[38] = 0xff;
        assert_eq!(answer(&multicast), None);
        let mut unspecified = frame(true, 2000);
        unspecified[22..38].fill(0);
        assert_eq!(answer(&unspecified), None);
        let mut fragment = frame(true, 2000);
        fragment[20] = 44;
        fragment[54..62].copy_from_slice(&[17, 0, 0, 8, 0, 0, 0, 1]);
        assert_eq!(answer(&fragment), None);
        fragment[57] = 1;
        assert!(answer(&fragment).is_some(), "the first fragment");
        let mut arp = frame(false, 2000);
        arp[13] = 6;
        assert_eq!(answer(&arp), None);
    }

    #[test]
    fn errors_are_not_answered_and_questions_are() {
        for (is_ipv6, protocol, kind, is_answered) in [
            (false, 1, 3, false),
            (false, 1, 5, false),
            (false, 1, 11, false),
            (false, 1, 8, true),
            (true, 58, 2, false),
            (true, 58, 127, false),
            (true, 58, 137, false),
            (true, 58, 128, true),
        ] {
            let mut sent = frame(is_ipv6, 2000);
            sent[if is_ipv6 { 20 } else { 23 }] = protocol;
            sent[if is_ipv6 { 54 } else { 34 }] = kind;
            assert_eq!(answer(&sent).is_some(), is_answered, "type {kind}");
        }
    }

    #[test]
    fn tagged_frame_is_told_of_less_and_is_else_answered_the_same() {
        for is_ipv6 in [false, true] {
            let (mut tagged, mut room) = (frame(is_ipv6, 2000), ROOM);
            let plain = write_too_big(&tagged, 1404, &mut room).map(|len| room[..len].to_vec());
            tagged.splice(12..12, [0x81, 0, 0, 5]);
            assert_eq!(answer(&tagged), plain);
        }
    }

    proptest! {
        #[test]
        fn hostile_frames_never_panic_and_answers_are_never_answered(
            is_ipv6: bool, len in 0usize..3000, at in 0usize..60, bits: u8
        ) {
            let mut sent = frame(is_ipv6, 2500);
            sent[at] ^= bits;
            sent.truncate(len);
            if let Some(told) = answer(&sent) {
                prop_assert_eq!(answer(&told), None);
            }
        }
    }
}
