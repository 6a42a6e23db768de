//! The octet of an IP header with the class of a packet and the state of congestion (RFC 2474,
//! RFC 3168), and what becomes of it in a tunnel (RFC 6040).
//!
//! ```text
//! bits 7-2  DSCP    bits 1-0  ECN: 00 not ECT, 10 ECT(0), 01 ECT(1), 11 CE
//! IPv4: octet 1 of the header      IPv6: the low half of octet 0, the high half of octet 1
//! ```
//! Frames are Ethernet here, as they are in the overlay; what carries no IP has no such octet and
//! is left alone. Called by `datapath` for each frame that crosses a tunnel, and by `io::udp`, which
//! reads and sets the octet of the outer header.

use super::{checksum, ethernet, put};
use crate::drop_reason::DropReason;

/// DSCP and ECN of one IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrafficClass(u8);

impl TrafficClass {
    /// Best effort, and a sender that knows no ECN.
    pub const ZERO: Self = Self(0);

    /// From the octet of the header.
    pub const fn new(octet: u8) -> Self {
        Self(octet)
    }

    /// The octet of the header.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Of the IP header in an Ethernet frame; zero where there is none.
    #[inline]
    pub fn of_frame(frame: &[u8]) -> Self {
        Field::locate(frame).map_or(Self::ZERO, |field| field.class)
    }

    /// What the outer header says of a packet with this class (RFC 6040 §4.1, normal mode): ECN as
    /// it is; the DSCP, which tells strangers what kind of traffic it is, only where it was asked for.
    #[inline]
    #[must_use]
    pub const fn outer(self, dscp: Dscp) -> Self {
        match dscp {
            Dscp::Hidden => Self(self.0 & ECN),
            Dscp::Copied => self,
        }
    }

    /// Carries the outer header's ECN over into the frame that came in the packet (RFC 6040
    /// §4.2, figure 4). The DSCP of the frame stays (RFC 2983's pipe model).
    ///
    /// # Errors
    /// [`DropReason::EcnIncapable`] where congestion was marked and the frame has no place to say so:
    /// its loss is what tells the sender.
    #[inline]
    pub fn enter(self, frame: &mut [u8]) -> Result<(), DropReason> {
        if self.0 & ECN == NOT_ECT { Ok(()) } else { self.combine(frame) }
    }

    fn combine(self, frame: &mut [u8]) -> Result<(), DropReason> {
        let Some(Field { network, is_ipv6, class: Self(inner), octets: [first, second] }) =
            Field::locate(frame)
        else {
            return Ok(());
        };
        let combined = match (inner & ECN, self.0 & ECN) {
            (NOT_ECT, CE) => return Err(DropReason::EcnIncapable),
            (ECT_0 | ECT_1, CE) => CE,
            (ECT_0, ECT_1) => ECT_1,
            (_, _) => return Ok(()),
        };
        let octet = inner & !ECN | combined;
        let packet = &mut frame[network..];
        if is_ipv6 {
            put(packet, 0, [first & 0xf0 | octet >> 4, octet << 4 | second & 0x0f]);
            return Ok(());
        }
        let Some(field) = packet.get(IPV4_CHECKSUM..IPV4_CHECKSUM + 2) else { return Ok(()) };
        let before = u16::from_be_bytes([field[0], field[1]]);
        let after = checksum::adjusted(before, [first, second], [first, octet]);
        put(packet, 1, [octet]);
        put(packet, IPV4_CHECKSUM, after.to_be_bytes());
        Ok(())
    }
}

/// Where the octet stands in a frame.
struct Field {
    /// Where the IP header begins.
    network: usize,
    is_ipv6: bool,
    class: TrafficClass,
    /// The first two of the header.
    octets: [u8; 2],
}

impl Field {
    #[inline]
    fn locate(frame: &[u8]) -> Option<Self> {
        let header = ethernet::Header::parse(frame).ok()?;
        let network = header.end();
        let [first, second] = *frame[network..].first_chunk()?;
        let (is_ipv6, octet) = match header.ether_type {
            ethernet::EtherType::Ipv4 => (false, second),
            ethernet::EtherType::Ipv6 => (true, first << 4 | second >> 4),
            ethernet::EtherType::Arp | ethernet::EtherType::Other(_) => return None,
        };
        Some(Self { network, is_ipv6, class: TrafficClass(octet), octets: [first, second] })
    }
}

/// Whether an outer header shows the DSCP of the inner one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dscp {
    /// All packets look alike on the underlay.
    #[default]
    Hidden,
    /// The underlay can prefer some to others, and sees which.
    Copied,
}

/// The bits of ECN.
const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;
const IPV4_CHECKSUM: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 6040 figure 4: rows are inner, columns outer: not ECT, ECT(0), ECT(1), CE.
    const FIGURE_4: [(u8, [Option<u8>; 4]); 4] = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
        (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];

    fn frame(is_ipv6: bool, octet: u8, options: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if is_ipv6 {
            frame.extend([0x86, 0xdd, 0x60 | octet >> 4, octet << 4 | 0x0a, 0xbc, 0xde]);
            frame.extend([0, 0, 59, 64]);
            frame.extend([7; 32]);
        } else {
            let header = 20 + 4 * options;
            frame.extend([8, 0, 0x40 | u8::try_from(header / 4).expect("short"), octet]);
            frame.extend([0, u8::try_from(header).expect("short"), 1, 2, 0x40, 0, 64, 59, 0, 0]);
            frame.extend([9; 8]);
            frame.extend(vec![1; 4 * options]);
            let sum = checksum::plain(&frame[14..]);
            put(&mut frame, 14 + IPV4_CHECKSUM, sum.to_be_bytes());
        }
        frame
    }

    #[test]
    fn inner_and_outer_combine_as_figure_4_has_it() {
        for is_ipv6 in [false, true] {
            for (inner, row) in FIGURE_4 {
                for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                    let mut bytes = frame(is_ipv6, 0xb8 | inner, 0);
                    let entered = TrafficClass::new(0x28 | outer).enter(&mut bytes);
                    assert_eq!(entered.is_ok(), expected.is_some(), "{inner:02b} in {outer:02b}");
                    assert_eq!(entered.err(), expected.is_none().then_some(DropReason::EcnIncapable));
                    let expected = frame(is_ipv6, 0xb8 | expected.unwrap_or(inner), 0);
                    assert_eq!(bytes, expected, "{inner:02b} in {outer:02b}, IPv6 {is_ipv6}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_ip_has_no_class_and_passes_with_any_mark() {
        let mut arp = vec![0xff; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        let before = arp.clone();
        assert_eq!(TrafficClass::of_frame(&arp), TrafficClass::ZERO);
        assert_eq!(TrafficClass::new(CE).enter(&mut arp), Ok(()));
        assert_eq!(arp, before);
    }

    proptest! {
        #[test]
        fn class_is_read_where_it_was_written_and_dscp_is_shown_on_request_alone(
            is_ipv6: bool, octet: u8, options in 0usize..11
        ) {
            let class = TrafficClass::of_frame(&frame(is_ipv6, octet, options));
            prop_assert_eq!(class.get(), octet);
            prop_assert_eq!(class.outer(Dscp::Hidden).get(), octet & 3);
            prop_assert_eq!(class.outer(Dscp::Copied).get(), octet);
        }

        #[test]
        fn nothing_changes_but_ecn_and_the_checksum_stays_right(
            is_ipv6: bool, is_tagged: bool, octet: u8, options in 0usize..11, outer: u8
        ) {
            let sent = |octet| {
                let mut bytes = frame(is_ipv6, octet, options);
                bytes.splice(12..12, [0x81, 0, 0, 5].into_iter().filter(|_| is_tagged));
                bytes
            };
            let mut bytes = sent(octet);
            let entered = TrafficClass::new(outer).enter(&mut bytes);
            let now = TrafficClass::of_frame(&bytes).get();
            prop_assert_eq!(now & !ECN, octet & !ECN);
            prop_assert_eq!(&bytes, &sent(now));
            prop_assert_eq!(entered.is_err(), octet & ECN == NOT_ECT && outer & ECN == CE);
        }

        #[test]
        fn hostile_frames_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..34), ip in 0usize..4) {
            if bytes.len() >= 14 {
                bytes[12..14].copy_from_slice(&[[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]][ip]);
            }
            let _ = TrafficClass::new(CE).enter(&mut bytes);
        }
    }
}
