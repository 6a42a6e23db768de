//! The Internet checksum (RFC 1071) and the pseudo header of IPv6 (RFC 8200 §8.1).
//!
//! Not a place for offload: frames leave here with a full checksum. Called by `wire::ndp` and
//! `wire::ipv4`.

use std::net::Ipv6Addr;

/// The checksum of `bytes` under IPv6 as protocol `next_header`; zero over a packet whose own
/// checksum field is right.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, bytes: &[u8]) -> u16 {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut sum = add(0, &source.octets());
    sum = add(sum, &destination.octets());
    sum = add(sum, &length.to_be_bytes());
    sum = add(sum, &[0, 0, 0, next_header]);
    fold(add(sum, bytes))
}

/// The checksum of `bytes` alone, as the IPv4 header has it.
pub fn plain(bytes: &[u8]) -> u16 {
    fold(add(0, bytes))
}

/// Adds big-endian 16-bit words; an odd last byte counts as the upper half of a word.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(sum, |sum, word| sum + u64::from(u16::from_be_bytes(*word)));
    rest.first().map_or(sum, |last| sum + (u64::from(*last) << 8))
}

/// Folds the carries in and complements.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).expect("the carries are folded in")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        assert_eq!(plain(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn an_odd_byte_is_the_upper_half_of_a_word() {
        assert_eq!(plain(&[0x12]), plain(&[0x12, 0x00]));
    }

    proptest::proptest! {
        #[test]
        fn ipv6_checksum_agrees_with_etherparse(
            source: u128, destination: u128, payload in proptest::collection::vec(proptest::num::u8::ANY, 0..64)
        ) {
            let header = etherparse::Icmpv6Type::EchoRequest(etherparse::IcmpEchoHeader { id: 7, seq: 9 });
            let theirs = etherparse::Icmpv6Header::with_checksum(
                header, source.to_be_bytes(), destination.to_be_bytes(), &payload).expect("short");
            let mut packet = theirs.to_bytes().to_vec();
            packet.extend_from_slice(&payload);
            proptest::prop_assert_eq!(ipv6(source.into(), destination.into(), 58, &packet), 0);
        }
    }
}
