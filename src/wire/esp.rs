//! ESP in UDP (RFC 3948, RFC 4303), as the receiver and the arithmetic of sizes see it.
//!
//! ```text
//!  0  4  SPI                    4  4  sequence number          8  8  IV
//! 16  8  inner UDP header \
//! 24  8  VXLAN header      |
//! 32  n  Ethernet frame    | ciphertext
//!     p  padding 1,2,3     |
//!     1  padding length    |
//!     1  next header = 17 /
//!    16  ICV
//! ```
//! Sealing and opening are `sa`'s. Called by `datapath` for what arrives on the ESP port and for
//! where a frame has to lie, and by whoever sets an MTU.

use super::{Malformed, octets, udp, vxlan};
use crate::id::Spi;

/// Octets of SPI and sequence number.
pub const HEADER_LEN: usize = 8;
/// Octets of the explicit IV.
pub const IV_LEN: usize = 8;
/// Octets of the integrity check value.
pub const ICV_LEN: usize = 16;
/// Octets in front of a frame in a sealed packet: ESP header, IV, inner UDP and VXLAN.
pub const HEADROOM: usize = HEADER_LEN + IV_LEN + udp::HEADER_LEN + vxlan::HEADER_LEN;
/// The most octets behind a frame: padding, its length, next header and ICV.
pub const MAX_TRAILER_LEN: usize = 3 + 2 + ICV_LEN;
/// IP protocol number of the inner UDP header, ESP's next header.
pub const NEXT_HEADER_UDP: u8 = 17;

/// What arrived on the ESP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram {
    /// A single octet 0xff (RFC 3948 §2.3).
    NatKeepalive,
    /// Four zero octets first: IKE's place on this port (RFC 3948 §2.2), which nobody serves here.
    NonEspMarker,
    /// An ESP packet of the SA with this SPI.
    Esp(Spi),
}

/// Tells what a datagram of the ESP port is.
///
/// # Errors
/// When it is too short for ESP, or its SPI is a reserved one.
pub fn classify(datagram: &[u8]) -> Result<Datagram, Malformed> {
    if datagram == [0xff] {
        return Ok(Datagram::NatKeepalive);
    }
    let spi = u32::from_be_bytes(octets(datagram, 0)?);
    if spi == 0 {
        return Ok(Datagram::NonEspMarker);
    }
    if datagram.len() < HEADER_LEN + IV_LEN + 2 + ICV_LEN {
        return Err(Malformed);
    }
    Spi::new(spi).map(Datagram::Esp).ok_or(Malformed)
}

/// Octets of padding behind `plain_len` octets, so that padding length and next header end on a
/// multiple of four (RFC 4303 §2.4).
pub const fn padding_len(plain_len: usize) -> usize {
    (4 - (plain_len + 2) % 4) % 4
}

/// Octets of the whole UDP payload that carries a frame of `frame_len` octets.
pub const fn sealed_len(frame_len: usize) -> usize {
    let plain_len = udp::HEADER_LEN + vxlan::HEADER_LEN + frame_len;
    HEADER_LEN + IV_LEN + plain_len + padding_len(plain_len) + 2 + ICV_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepalive_marker_and_esp_are_told_apart() {
        assert_eq!(classify(&[0xff]), Ok(Datagram::NatKeepalive));
        assert_eq!(classify(&[0, 0, 0, 0, 1, 2, 3]), Ok(Datagram::NonEspMarker));
        let mut esp = [0; 34];
        esp[2] = 1;
        assert_eq!(classify(&esp), Ok(Datagram::Esp(Spi::new(256).expect("valid"))));
        assert_eq!(classify(&esp[..33]), Err(Malformed));
    }

    #[test]
    fn empty_short_and_reserved_are_malformed() {
        let mut reserved = [0; 40];
        reserved[3] = 255;
        for bad in [&[][..], &[0xfe], &[0, 0, 0], &reserved] {
            assert_eq!(classify(bad), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn trailer_is_aligned_and_within_its_bound() {
        for frame_len in 0..64 {
            assert_eq!((sealed_len(frame_len) - HEADER_LEN - IV_LEN - ICV_LEN) % 4, 0);
            assert!(sealed_len(frame_len) <= HEADROOM + frame_len + MAX_TRAILER_LEN);
        }
    }
}
