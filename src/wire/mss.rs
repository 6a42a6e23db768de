//! The segment size that TCP announces when a connection begins (RFC 9293 §3.7.1), lowered to what a
//! network carries.
//!
//! ```text
//! TCP option   0  1  kind 2    1  1  length 4    2  2  maximum segment size
//! ```
//! It keeps connections whole whose ends believe in larger packets than pass between them: a
//! container behind a router of its own, an interface whose MTU was raised, an end that has not heard
//! yet that the network's MTU fell. Called by `datapath` for frames in both directions.

use super::checksum::adjusted;
use super::transport::{Protocol, SYN, TCP_FLAGS, TCP_HEADER_LEN, Transport};
use super::{ethernet, ipv4, ipv6, put};

/// Lowers the segment size in a SYN to what fits into `mtu`, less a VLAN tag, in a frame whose TCP
/// checksum is whole (`has_checksum`) or covers the pseudo header alone, which does not change.
#[inline]
pub fn clamp(frame: &mut [u8], mtu: u16, has_checksum: bool) {
    if is_syn(frame) {
        clamp_syn(frame, mtu, has_checksum);
    }
}

/// Whether the frame may hold a SYN: asked of each frame, so it looks no further than it must.
#[inline]
fn is_syn(frame: &[u8]) -> bool {
    let start = match frame.get(ETHER_TYPE..=FIRST_OCTET) {
        Some(&[0x08, 0x00, version_ihl]) if frame.get(IPV4_PROTOCOL) == Some(&TCP) => {
            ethernet::HEADER_LEN + usize::from(version_ihl & 0x0f) * 4
        }
        Some(&[0x86, 0xdd, _]) => match frame.get(IPV6_NEXT_HEADER) {
            Some(&TCP) => ethernet::HEADER_LEN + ipv6::HEADER_LEN,
            Some(&(UDP | ICMPV6)) | None => return false,
            // Extension headers: to be walked through.
            Some(_) => return true,
        },
        // A VLAN tag: the same.
        Some(&[0x81, 0x00, _]) => return true,
        Some(_) | None => return false,
    };
    frame.get(start + TCP_FLAGS).is_some_and(|flags| flags & SYN != 0)
}

fn clamp_syn(frame: &mut [u8], mtu: u16, has_checksum: bool) {
    let Ok(Some(transport)) = Transport::locate(frame) else { return };
    let Transport { protocol, is_ipv6, network, start, payload, .. } = transport;
    if protocol != Protocol::Tcp || frame[start + TCP_FLAGS] & SYN == 0 {
        return;
    }
    let headers = if is_ipv6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN } + TCP_HEADER_LEN;
    let largest = (ethernet::HEADER_LEN + usize::from(mtu)).saturating_sub(network + headers);
    let (Some(at), Ok(largest)) = (find(&frame[start..payload]), u16::try_from(largest)) else { return };
    let field = start + at;
    if u16::from_be_bytes([frame[field], frame[field + 1]]) <= largest {
        return;
    }
    // The checksum is over words, and padding may have the value across two of them.
    let words = start + at / 2 * 2..start + (at + 2).next_multiple_of(2);
    let mut before = [0; 4];
    let before = &mut before[..words.len()];
    before.copy_from_slice(&frame[words.clone()]);
    put(frame, field, largest.to_be_bytes());
    if has_checksum {
        let checksum = start + Protocol::Tcp.checksum_offset();
        let mut sum = u16::from_be_bytes([frame[checksum], frame[checksum + 1]]);
        for (old, new) in before.as_chunks::<2>().0.iter().zip(frame[words].as_chunks::<2>().0) {
            sum = adjusted(sum, *old, *new);
        }
        put(frame, checksum, sum.to_be_bytes());
    }
}

/// Where in a TCP header the segment size stands, if the header has the option.
fn find(header: &[u8]) -> Option<usize> {
    let mut at = TCP_HEADER_LEN;
    loop {
        at += match header.get(at..)? {
            [END, ..] | [] => return None,
            [NOTHING, ..] => 1,
            [SEGMENT_SIZE, 4, _, _, ..] => return Some(at + 2),
            [_, len, ..] if *len >= 2 => usize::from(*len),
            [_, ..] => return None,
        };
    }
}

const ETHER_TYPE: usize = ethernet::HEADER_LEN - 2;
const FIRST_OCTET: usize = ethernet::HEADER_LEN;
const IPV4_PROTOCOL: usize = ethernet::HEADER_LEN + 9;
const IPV6_NEXT_HEADER: usize = ethernet::HEADER_LEN + 6;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = ipv6::NEXT_HEADER_ICMPV6;
// Kinds of options.
const END: u8 = 0;
const NOTHING: u8 = 1;
const SEGMENT_SIZE: u8 = 2;

#[cfg(test)]
mod tests {
    use etherparse::TcpOptionElement::MaximumSegmentSize;
    use proptest::prelude::*;

    use super::*;

    const MTU: u16 = 1408;

    fn syn(is_ipv6: bool, options: &[u8]) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        let builder = if is_ipv6 {
            builder.ipv6([1; 16], [2; 16], 64).tcp(1, 2, 3, 4)
        } else {
            builder.ipv4([1; 4], [2; 4], 64).tcp(1, 2, 3, 4)
        };
        builder.syn().options_raw(options).expect("options").write(&mut frame, b"odd").expect("a frame");
        frame
    }

    fn announced(frame: &[u8]) -> Option<u16> {
        let sliced = etherparse::SlicedPacket::from_ethernet(frame).expect("well formed");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
        let found = tcp.options_iterator().find_map(|option| match option {
            Ok(MaximumSegmentSize(size)) => Some(size),
            Ok(_) | Err(_) => None,
        });
        let transport = Transport::locate(frame).expect("well formed").expect("TCP");
        let len = u16::try_from(transport.end - transport.start).expect("short");
        let sum = transport.pseudo_header(frame, len).plus(&frame[transport.start..transport.end]);
        assert_eq!(sum.checksum(), 0, "the checksum is right");
        found
    }

    #[test]
    fn larger_size_is_lowered_wherever_it_stands_and_the_checksum_stays_right() {
        for (is_ipv6, expected) in [(false, MTU - 40), (true, MTU - 60)] {
            for options in [
                &[2, 4, 0x22, 0xc4][..],
                &[1, 2, 4, 0x22, 0xc4],
                &[4, 2, 1, 1, 2, 4, 0xff, 0xff],
                &[3, 3, 7, 2, 4, 0x05, 0xb4],
            ] {
                let mut frame = syn(is_ipv6, options);
                clamp(&mut frame, MTU, true);
                assert_eq!(announced(&frame), Some(expected), "{options:?}");
            }
        }
    }

    #[test]
    fn smaller_size_other_segments_and_syns_without_the_option_stay_as_they_are() {
        let mut later = syn(false, &[2, 4, 0x22, 0xc4]);
        later[34 + TCP_FLAGS] = 0x10;
        let mut fragment = syn(false, &[2, 4, 0x22, 0xc4]);
        fragment[20] = 0x20;
        let mut udp = syn(true, &[2, 4, 0x22, 0xc4]);
        udp[20] = 17;
        for frame in [
            syn(false, &[2, 4, 0x05, 0x00]),
            syn(true, &[4, 2]),
            syn(true, &[]),
            syn(false, &[0, 2, 4, 0x22, 0xc4]),
            syn(false, &[8, 0, 2, 4, 0x22, 0xc4]),
            later,
            fragment,
            udp,
        ] {
            let mut clamped = frame.clone();
            clamp(&mut clamped, MTU, true);
            assert_eq!(clamped, frame);
        }
    }

    #[test]
    fn syn_behind_extension_headers_is_found() {
        let mut frame = syn(true, &[2, 4, 0x22, 0xc4]);
        frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
        frame[20] = 60;
        frame[19] += 8;
        clamp(&mut frame, MTU, true);
        assert_eq!(announced(&frame), Some(MTU - 60));
    }

    #[test]
    fn tag_takes_its_part() {
        for (is_ipv6, expected) in [(false, MTU - 44), (true, MTU - 64)] {
            let mut frame = syn(is_ipv6, &[2, 4, 0x22, 0xc4]);
            frame.splice(12..12, [0x81, 0, 0, 5]);
            clamp(&mut frame, MTU, true);
            assert_eq!(announced(&frame), Some(expected));
        }
    }

    #[test]
    fn checksum_of_the_pseudo_header_alone_does_not_change() {
        let mut frame = syn(false, &[2, 4, 0x22, 0xc4]);
        let before = frame.clone();
        clamp(&mut frame, MTU, false);
        assert_eq!(frame[56..58], (MTU - 40).to_be_bytes());
        assert_eq!((&frame[..56], &frame[58..]), (&before[..56], &before[58..]));
    }

    proptest! {
        #[test]
        fn checksum_stays_right_for_all_sizes(is_ipv6: bool, odd: bool, size: u16, mtu in 576u16..16_000) {
            let [high, low] = size.to_be_bytes();
            let options = if odd { vec![1, 2, 4, high, low] } else { vec![2, 4, high, low] };
            let mut frame = syn(is_ipv6, &options);
            clamp(&mut frame, mtu, true);
            let largest = mtu - if is_ipv6 { 60 } else { 40 };
            prop_assert_eq!(announced(&frame), Some(size.min(largest)));
        }

        #[test]
        fn hostile_frames_never_panic(
            is_ipv6: bool, is_tagged: bool, at in 0usize..82, bits: u8, len in 0usize..94
        ) {
            let mut frame = syn(is_ipv6, &[1, 2, 4, 0x22, 0xc4]);
            if is_tagged {
                frame.splice(12..12, [0x81, 0, 0, 5]);
            }
            let last = frame.len() - 1;
            frame[at.min(last)] ^= bits;
            frame.truncate(len);
            clamp(&mut frame, MTU, true);
        }
    }
}
