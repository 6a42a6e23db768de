//! VXLAN (RFC 7348 §5), with the remote checksum offload of draft-herbert-vxlan-rco-00 §3 inside ESP.
//!
//! ```text
//!  0  1  flags, 0x08 = VNI valid    1  1  0x20 = a checksum is left    2  2  reserved
//!  4  3  VNI    7  1  where the checksum covers from, in words of the frame; 0x80 = UDP's, else TCP's
//! ```
//! Reserved bits are ignored on receipt, as the RFC has it, but for those which extensions give a
//! meaning that would change what the payload is (GPE's next protocol): they are refused.
//! Called by `datapath`.

use super::transport::Protocol;
use super::vnet_hdr::Checksum;
use super::{Malformed, octets, put};
use crate::id::Vni;

/// Octets of the header.
pub const HEADER_LEN: usize = 8;
/// The destination port, on the wire and inside ESP.
pub const PORT: u16 = 4789;

const FLAG_VNI_VALID: u8 = 0x08;
/// VXLAN-GPE's P and O bits (draft-ietf-nvo3-vxlan-gpe §3.1): the payload is no Ethernet frame.
const FLAGS_OTHER_PAYLOAD: u8 = 0x05;
/// `VXLAN_HF_RCO` of Linux, in the second octet.
const FLAG_CHECKSUM_LEFT: u8 = 0x20;
const CHECKSUM_OF_UDP: u8 = 0x80;

/// A whole VXLAN packet behind UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The network.
    pub vni: Vni,
    /// The checksum that the sender left, if it says so.
    pub checksum: Option<RemoteChecksum>,
    /// The Ethernet frame.
    pub frame: &'a [u8],
}

/// The transport checksum of a frame that covers the pseudo header alone, as its sender's kernel left
/// it: the receiver's kernel need not have it made either, if what carries it is authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteChecksum(u8);

impl RemoteChecksum {
    /// What the header can say of a frame's checksum; `None` when it is whole, or neither TCP's nor
    /// UDP's, or too far behind.
    pub fn of(state: Checksum) -> Option<Self> {
        let Checksum::Partial { start, offset } = state else { return None };
        let words =
            u8::try_from(start / 2).ok().filter(|words| start % 2 == 0 && *words < CHECKSUM_OF_UDP)?;
        match offset {
            TCP_CHECKSUM => Some(Self(words)),
            UDP_CHECKSUM => Some(Self(words | CHECKSUM_OF_UDP)),
            _ => None,
        }
    }

    /// The same for a kernel.
    pub fn state(self) -> Checksum {
        let offset = if self.0 & CHECKSUM_OF_UDP == 0 { TCP_CHECKSUM } else { UDP_CHECKSUM };
        Checksum::Partial { start: u16::from(self.0 & !CHECKSUM_OF_UDP) * 2, offset }
    }
}

/// Whether the checksums that containers' kernels leave are left to the receivers', inside ESP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeftChecksums {
    /// They are, and nobody makes them.
    #[default]
    Passed,
    /// The sender makes them, as for a wire.
    Made,
}

const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

const _: () = assert!(Protocol::Tcp.checksum_offset() == 16 && Protocol::Udp.checksum_offset() == 6);

/// Writes the header.
///
/// # Panics
/// When `bytes` is shorter than the header.
#[inline]
pub fn write_header(bytes: &mut [u8], vni: Vni, checksum: Option<RemoteChecksum>) {
    let [_, a, b, c] = vni.get().to_be_bytes();
    let (flag, left) = checksum.map_or((0, 0), |RemoteChecksum(left)| (FLAG_CHECKSUM_LEFT, left));
    put(bytes, 0, [FLAG_VNI_VALID, flag, 0, 0, a, b, c, left]);
}

/// Reads the header.
///
/// # Errors
/// When it is short, the VNI is not marked valid or zero, or the payload is no Ethernet.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let [flags, more, _, _, a, b, c, left] = octets::<HEADER_LEN>(bytes, 0)?;
    if flags & FLAG_VNI_VALID == 0 || flags & FLAGS_OTHER_PAYLOAD != 0 {
        return Err(Malformed);
    }
    let vni = Vni::new(u32::from_be_bytes([0, a, b, c])).ok_or(Malformed)?;
    let checksum = (more & FLAG_CHECKSUM_LEFT != 0).then_some(RemoteChecksum(left));
    Ok(Packet { vni, checksum, frame: &bytes[HEADER_LEN..] })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_vni_and_checksum_round_trips(number in 1..=Vni::MAX, half in 0u16..128, is_udp: bool) {
            let vni = Vni::new(number).expect("in range");
            let mut bytes = [0; 9];
            write_header(&mut bytes, vni, None);
            let whole = Packet { vni, checksum: None, frame: &[0][..] };
            proptest::prop_assert_eq!(parse(&bytes), Ok(whole));
            let left = Checksum::Partial { start: half * 2, offset: if is_udp { 6 } else { 16 } };
            let checksum = RemoteChecksum::of(left);
            write_header(&mut bytes, vni, checksum);
            proptest::prop_assert_eq!(checksum.map(RemoteChecksum::state), Some(left));
            proptest::prop_assert_eq!(parse(&bytes), Ok(Packet { checksum, ..whole }));
        }
    }

    #[test]
    fn only_what_the_header_can_say_is_left() {
        let partial = |start, offset| Checksum::Partial { start, offset };
        for state in
            [Checksum::Complete, Checksum::Verified, partial(35, 16), partial(256, 6), partial(34, 10)]
        {
            assert_eq!(RemoteChecksum::of(state), None, "{state:?}");
        }
    }

    /// TCP behind 34 octets, as `vxlan_compute_rco` and `vxlan_build_skb` of Linux write it.
    #[test]
    fn header_with_a_checksum_left_is_that_of_linux() {
        let mut bytes = [0xff; 8];
        let left = RemoteChecksum::of(Checksum::Partial { start: 34, offset: 16 });
        write_header(&mut bytes, Vni::new(0x01_0203).expect("in range"), left);
        assert_eq!(bytes, [0x08, 0x20, 0, 0, 1, 2, 3, 17]);
        let left = RemoteChecksum::of(Checksum::Partial { start: 54, offset: 6 });
        write_header(&mut bytes, Vni::new(0x01_0203).expect("in range"), left);
        assert_eq!(bytes, [0x08, 0x20, 0, 0, 1, 2, 3, 0x80 | 27]);
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
