//! Frames of one TCP or UDP flow for tests, whole and as super-frames; etherparse makes and checks
//! what it can, so that no checksum is checked by the code that made it.

use etherparse::{
    IpHeaders, Ipv4Header, Ipv6Header, NetHeaders, PacketHeaders, SlicedPacket, TcpHeader, TcpSlice,
    TransportHeader, TransportSlice,
};

use super::testbed::Container;
use crate::wire::checksum::{self, Sum};
use crate::wire::transport::{CWR, Protocol, Transport};
use crate::wire::vnet_hdr::{Checksum, Kind, Segmentation, VnetHeader};

/// A flow and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) from: Container,
    pub(super) to: Container,
    pub(super) is_ipv6: bool,
    pub(super) protocol: Protocol,
    pub(super) sequence: u32,
    pub(super) flags: u8,
    pub(super) id: u16,
    pub(super) dont_fragment: bool,
    /// Of TCP.
    pub(super) has_timestamps: bool,
    /// Octets of payload in a segment.
    pub(super) size: u16,
}

impl Flow {
    pub(super) fn new(from: Container, to: Container, is_ipv6: bool, protocol: Protocol) -> Self {
        Self {
            from,
            to,
            is_ipv6,
            protocol,
            sequence: 0xffff_f000,
            flags: 0x10,
            id: 0xfff0,
            dont_fragment: true,
            has_timestamps: true,
            size: 1000,
        }
    }

    /// A frame as it would be on a wire.
    pub(super) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let ip = if self.is_ipv6 {
            let (source, destination) = (self.from.v6().octets(), self.to.v6().octets());
            IpHeaders::Ipv6(
                Ipv6Header { source, destination, hop_limit: 64, ..Ipv6Header::default() },
                etherparse::Ipv6Extensions::default(),
            )
        } else {
            let number = etherparse::IpNumber(self.protocol.number());
            let mut ip = Ipv4Header::new(0, 64, number, self.from.v4(), self.to.v4()).unwrap();
            ip.identification = self.id;
            ip.dont_fragment = self.dont_fragment;
            IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
        };
        let builder =
            etherparse::PacketBuilder::ethernet2(self.from.mac().octets(), self.to.mac().octets()).ip(ip);
        let mut frame = Vec::new();
        match self.protocol {
            Protocol::Tcp => {
                let mut tcp = TcpHeader::new(4000, 5000, self.sequence, 777);
                tcp.acknowledgment_number = 99;
                let is_set = |bit: u8| self.flags & bit != 0;
                (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (is_set(1), is_set(2), is_set(4), is_set(8));
                (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (is_set(16), is_set(32), is_set(64), is_set(128));
                if self.has_timestamps {
                    tcp.set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
                }
                builder.tcp_header(tcp).write(&mut frame, payload)
            }
            Protocol::Udp => builder.udp(4000, 5000).write(&mut frame, payload),
        }
        .expect("a frame");
        frame
    }

    /// All of `payload` as a kernel gives it to a device that can do the rest.
    pub(super) fn super_frame(&self, payload: &[u8]) -> (VnetHeader, Vec<u8>) {
        let mut frame = self.frame(payload);
        let transport = Transport::locate(&frame).unwrap().unwrap();
        leave_checksum(&mut frame, &transport);
        let kind = match (self.protocol, self.is_ipv6) {
            (Protocol::Tcp, false) => Kind::Tcp4,
            (Protocol::Tcp, true) => Kind::Tcp6,
            (Protocol::Udp, _) => Kind::Udp,
        };
        let has_cwr = self.protocol == Protocol::Tcp && self.flags & CWR != 0;
        let segmentation = Some(Segmentation { kind, has_cwr, size: self.size.try_into().unwrap() });
        (VnetHeader { segmentation, ..partial(&transport) }, frame)
    }

    /// The segments of `payload`, made one by one.
    pub(super) fn segments(&self, payload: &[u8]) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(self.size.into());
        let pieces = payload.chunks(self.size.into()).enumerate();
        pieces
            .map(|(index, piece)| {
                let ahead = u32::try_from(index).unwrap() * u32::from(self.size);
                let mut segment = self.clone();
                segment.sequence = self.sequence.wrapping_add(ahead);
                segment.id = self.id.wrapping_add(u16::try_from(index).unwrap());
                segment.flags &=
                    !(if index + 1 < count { 0x09 } else { 0 } | if index > 0 { CWR } else { 0 });
                segment.frame(piece)
            })
            .collect()
    }
}

/// What a kernel says of a frame whose checksum it left.
pub(super) fn partial(transport: &Transport) -> VnetHeader {
    let start = u16::try_from(transport.start).unwrap();
    let offset = u16::try_from(transport.protocol.checksum_offset()).unwrap();
    let header_len = u16::try_from(transport.payload).unwrap();
    VnetHeader { checksum: Checksum::Partial { start, offset }, segmentation: None, header_len }
}

/// Leaves the sum of the pseudo header in the field, as a kernel does.
pub(super) fn leave_checksum(frame: &mut [u8], transport: &Transport) {
    let field = transport.start + transport.protocol.checksum_offset();
    frame[field..field + 2].fill(0);
    // Everything but the pseudo header, taken from the whole checksum.
    let whole = etherparse_checksum(frame).unwrap();
    let rest = checksum::plain(&frame[transport.start..transport.end]);
    let sum = Sum::ZERO.plus_word(!whole).plus_word(rest).folded();
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Makes all checksums right after a change.
pub(super) fn mend(frame: &mut [u8]) {
    if let Ok(Some(transport)) = Transport::locate(frame) {
        let field = transport.start + transport.protocol.checksum_offset();
        frame[field..field + 2].fill(0);
        let whole = etherparse_checksum(frame).unwrap();
        frame[field..field + 2].copy_from_slice(&whole.to_be_bytes());
    }
    if frame[12] == 8 {
        frame[24..26].fill(0);
        let end = 14 + usize::from(frame[14] & 15) * 4;
        let sum = checksum::plain(&frame[14..end]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Whether etherparse finds every checksum right.
pub(super) fn are_checksums_right(frame: &[u8]) -> bool {
    let packet = PacketHeaders::from_ethernet_slice(frame).expect("a packet");
    let is_header_right = match &packet.net {
        Some(NetHeaders::Ipv4(ip, _)) => ip.header_checksum == ip.calc_header_checksum(),
        Some(NetHeaders::Ipv6(..)) => true,
        other => panic!("no IP: {other:?}"),
    };
    let claimed = match &packet.transport {
        Some(TransportHeader::Tcp(tcp)) => tcp.checksum,
        Some(TransportHeader::Udp(udp)) => udp.checksum,
        other => panic!("no transport: {other:?}"),
    };
    is_header_right && Some(claimed) == etherparse_checksum(frame)
}

fn etherparse_checksum(frame: &[u8]) -> Option<u16> {
    let packet = PacketHeaders::from_ethernet_slice(frame).expect("a packet");
    let payload = packet.payload.slice();
    match (packet.net?, packet.transport?) {
        (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(_)) => {
            tcp_slice(frame)?.calc_checksum_ipv4(ip.source, ip.destination).ok()
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(_)) => {
            tcp_slice(frame)?.calc_checksum_ipv6(ip.source, ip.destination).ok()
        }
        (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => udp.calc_checksum_ipv4(&ip, payload).ok(),
        (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => udp.calc_checksum_ipv6(&ip, payload).ok(),
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}

/// The octets as they are: etherparse's `TcpHeader` has no place for the reserved bits.
fn tcp_slice(frame: &[u8]) -> Option<TcpSlice<'_>> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    if let Some(TransportSlice::Tcp(tcp)) = packet.transport { Some(tcp) } else { None }
}
