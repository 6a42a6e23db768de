//! VXLAN (RFC 7348 §5).
//!
//! ```text
//!  0  1  flags, 0x08 = VNI valid    1  3  reserved    4  3  VNI    7  1  reserved
//! ```
//! Reserved bits are ignored on receipt, as the RFC has it, but for those which extensions give a
//! meaning that would change what the payload is (GPE's next protocol): they are refused.
//! Called by `datapath`.

use super::{Malformed, octets, put};
use crate::id::Vni;

/// Octets of the header.
pub const HEADER_LEN: usize = 8;
/// The destination port, on the wire and inside ESP.
pub const PORT: u16 = 4789;

const FLAG_VNI_VALID: u8 = 0x08;
/// VXLAN-GPE's P and O bits (draft-ietf-nvo3-vxlan-gpe §3.1): the payload is no Ethernet frame.
const FLAGS_OTHER_PAYLOAD: u8 = 0x05;

/// Writes the header.
///
/// # Panics
/// When `bytes` is shorter than the header.
pub fn write_header(bytes: &mut [u8], vni: Vni) {
    let [_, a, b, c] = vni.get().to_be_bytes();
    put(bytes, 0, [FLAG_VNI_VALID, 0, 0, 0, a, b, c, 0]);
}

/// The VNI and the Ethernet frame.
///
/// # Errors
/// When the header is short, the VNI is not marked valid or zero, or the payload is no Ethernet.
pub fn parse(bytes: &[u8]) -> Result<(Vni, &[u8]), Malformed> {
    let [flags, _, _, _, a, b, c, _] = octets::<HEADER_LEN>(bytes, 0)?;
    if flags & FLAG_VNI_VALID == 0 || flags & FLAGS_OTHER_PAYLOAD != 0 {
        return Err(Malformed);
    }
    let vni = Vni::new(u32::from_be_bytes([0, a, b, c])).ok_or(Malformed)?;
    Ok((vni, &bytes[HEADER_LEN..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_vni_round_trips(number in 1..=Vni::MAX) {
            let vni = Vni::new(number).expect("in range");
            let mut bytes = [0; 9];
            write_header(&mut bytes, vni);
            proptest::prop_assert_eq!(parse(&bytes), Ok((vni, &[0u8][..])));
        }
    }

    #[test]
    fn header_without_valid_vni_is_malformed() {
        let good = [8, 0, 0, 0, 0, 0, 1, 0];
        assert!(parse(&good).is_ok());
        for bad in [[0, 0, 0, 0, 0, 0, 1, 0], [8, 0, 0, 0, 0, 0, 0, 0], [0x0c, 0, 0, 3, 0, 0, 1, 0]] {
            assert_eq!(parse(&bad), Err(Malformed), "{bad:?}");
        }
        assert_eq!(parse(&good[..7]), Err(Malformed));
    }
}
