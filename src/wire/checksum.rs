//! The Internet checksum (RFC 1071), the pseudo headers of TCP and UDP, and partial checksums.
//!
//! A *partial* checksum is what a kernel leaves to a device that can do the rest: the field holds the
//! folded sum of the pseudo header, not complemented, and the bytes from the transport header on are
//! still to be added (`Documentation/networking/checksum-offloads.rst`). Called by `wire::ndp` and
//! by `datapath` for what comes from and goes to a TAP.

use std::net::Ipv6Addr;

use super::Malformed;

/// The checksum of `bytes` under IPv6 as protocol `next_header`; zero over a packet whose own
/// checksum field is right.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, bytes: &[u8]) -> u16 {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let sum = Sum::ZERO.plus(&source.octets()).plus(&destination.octets()).plus(&length.to_be_bytes());
    sum.plus(&[0, 0, 0, next_header]).plus(bytes).checksum()
}

/// The checksum of `bytes` alone, as the IPv4 header has it.
pub fn plain(bytes: &[u8]) -> u16 {
    Sum::ZERO.plus(bytes).checksum()
}

/// Turns the partial checksum at `start + offset` into the whole one, which covers everything from
/// `start` on.
///
/// # Errors
/// When the field does not lie behind `start` and within `bytes`.
pub fn complete(bytes: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let covered = bytes.get_mut(start..).ok_or(Malformed)?;
    let checksum = plain(covered);
    // A computed zero would say that there is none (RFC 768); for TCP both are the same number.
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    let field = covered.get_mut(offset..offset + 2).ok_or(Malformed)?;
    field.copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// The checksum after the word `old` among what it covers has become `new` (RFC 1624, equation 3): right
/// if it was right, wrong if it was wrong.
pub fn adjusted(checksum: u16, old: [u8; 2], new: [u8; 2]) -> u16 {
    let sum = Sum::ZERO.plus_word(!checksum).plus_word(!u16::from_be_bytes(old));
    sum.plus_word(u16::from_be_bytes(new)).checksum()
}

/// A sum in the making. All pieces but the last have an even length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds 16-bit words; an odd last byte counts as the upper half of a word.
    #[inline]
    #[must_use]
    pub fn plus(self, bytes: &[u8]) -> Self {
        // The sum does not depend on the order of bytes (RFC 1071 §2 B), so words are taken as the
        // machine has them, four octets at a time, in lanes that the compiler makes a vector of.
        let (blocks, rest) = bytes.as_chunks::<32>();
        let mut lanes = [0u64; 8];
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (words, rest) = rest.as_chunks::<4>();
        let words = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
        let (half, last) = rest.as_chunks::<2>();
        let half = half.first().map_or(0, |half| u64::from(u16::from_ne_bytes(*half)));
        let last = last.first().map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])));
        let lanes = lanes.iter().map(|lane| (lane >> 32) + (lane & 0xffff_ffff)).sum::<u64>();
        Self(self.0 + lanes + words + half + last)
    }

    /// Adds one word.
    #[inline]
    #[must_use]
    pub fn plus_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word.to_be_bytes())))
    }

    /// The sum with its carries folded in: what a partial checksum is.
    #[inline]
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let sum = u16::try_from(sum).expect("the carries are folded in");
        u16::from_be_bytes(sum.to_ne_bytes())
    }

    /// The complement: what a checksum field holds; zero when a sum over a right field was made.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
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

    #[test]
    fn field_outside_the_covered_bytes_is_malformed() {
        for (start, offset) in [(0, 7), (7, 0), (9, 0), (6, 1)] {
            assert_eq!(complete(&mut [0; 8], start, offset), Err(Malformed), "{start} + {offset}");
        }
        assert_eq!(complete(&mut [0; 8], 6, 0), Ok(()));
    }

    proptest::proptest! {
        #[test]
        fn sum_is_that_of_the_definition(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut expected = 0u32;
            for pair in bytes.chunks(2) {
                expected += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
                expected = (expected & 0xffff) + (expected >> 16);
            }
            proptest::prop_assert_eq!(u32::from(Sum::ZERO.plus(&bytes).folded()), expected);
            let (even, odd) = bytes.split_at(bytes.len() / 4 * 2);
            proptest::prop_assert_eq!(u32::from(Sum::ZERO.plus(even).plus(odd).folded()), expected);
        }

        #[test]
        fn adjusted_checksum_is_the_one_made_anew(
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 4..60), at in 0usize..29, new: [u8; 2]
        ) {
            // The first octet is not zero, as an IPv4 header's is not: the sum is never zero.
            bytes[0] |= 0x40;
            let at = 2 + at * 2 % (bytes.len() - 3) / 2 * 2;
            let old = [bytes[at], bytes[at + 1]];
            let before = plain(&bytes);
            bytes[at..at + 2].copy_from_slice(&new);
            proptest::prop_assert_eq!(adjusted(before, old, new), plain(&bytes));
        }

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
