//! UDP (RFC 768), as the inner header between ESP and VXLAN, and the ports of a flow.
//!
//! ```text
//!  0  2  source port    2  2  destination port    4  2  length, header on    6  2  checksum
//! ```
//! The inner checksum is zero: ESP's ICV covers it (RFC 3948 §3.1.2 has the receiver ignore it,
//! and RFC 6935 allows zero for tunnels). Called by `datapath`.

use super::{Malformed, octets, put};

/// Octets of the header.
pub const HEADER_LEN: usize = 8;

/// The first of the 16,384 dynamic ports (RFC 6335 §6) that carry a flow's entropy.
const FIRST_DYNAMIC_PORT: u16 = 49152;

/// Writes a header for a payload of `payload_len` octets, without checksum.
///
/// # Panics
/// When `bytes` is shorter than the header, or the datagram longer than 65,535 octets.
pub fn write_header(bytes: &mut [u8], source_port: u16, destination_port: u16, payload_len: usize) {
    let length =
        u16::try_from(HEADER_LEN + payload_len).expect("a frame is shorter than a UDP datagram may be");
    put(bytes, 0, source_port.to_be_bytes());
    put(bytes, 2, destination_port.to_be_bytes());
    put(bytes, 4, length.to_be_bytes());
    put(bytes, 6, [0, 0]);
}

/// The destination port and the payload that the length field bounds; octets behind it are
/// traffic-flow-confidentiality padding (RFC 4303 §2.7) and are cut off.
///
/// # Errors
/// When the header is short or its length does not fit the bytes.
pub fn parse(datagram: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let destination_port = u16::from_be_bytes(octets(datagram, 2)?);
    let length = usize::from(u16::from_be_bytes(octets(datagram, 4)?));
    Ok((destination_port, datagram.get(HEADER_LEN..length).ok_or(Malformed)?))
}

/// A source port that carries `flow_hash`, so that the path sees flows (RFC 7348 §5).
pub fn entropy_port(flow_hash: u64) -> u16 {
    let [low, high, ..] = flow_hash.to_le_bytes();
    FIRST_DYNAMIC_PORT | u16::from_le_bytes([low, high])
}

/// Both ports of a TCP, UDP, DCCP, SCTP or UDP-Lite payload, else zero.
pub(super) fn ports(protocol: u8, payload: &[u8]) -> [u8; 4] {
    match protocol {
        6 | 17 | 33 | 132 | 136 => octets(payload, 0).unwrap_or_default(),
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_behind_the_length_is_cut_off() {
        let mut datagram = [7; 20];
        write_header(&mut datagram, 50000, 4789, 5);
        assert_eq!(parse(&datagram), Ok((4789, &[7u8; 5][..])));
    }

    #[test]
    fn length_below_the_header_or_beyond_the_bytes_is_malformed() {
        for length in [0u16, 7, 21, 0xffff] {
            let mut datagram = [0; 20];
            write_header(&mut datagram, 1, 2, 12);
            datagram[4..6].copy_from_slice(&length.to_be_bytes());
            assert_eq!(parse(&datagram), Err(Malformed), "length {length}");
        }
        assert_eq!(parse(&[0; 5]), Err(Malformed));
    }

    proptest::proptest! {
        #[test]
        fn entropy_port_is_a_dynamic_port(hash: u64) {
            proptest::prop_assert!(entropy_port(hash) >= 49152);
            proptest::prop_assert_eq!(u64::from(entropy_port(hash) - 49152), hash % 16384);
        }
    }
}
