//! What a packet of the underlay is to an onlooker. Pure; reads headers with another parser than
//! the data plane's own.

use std::net::SocketAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// A packet of the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// ESP in UDP (RFC 3948).
    Esp(EspPacket<'a>),
    /// VXLAN (RFC 7348).
    Vxlan,
    /// TCP to or from the port of the agents' TLS.
    Control {
        /// It is a TLS `ServerHello` that settles on version 1.3.
        settles_tls13: bool,
    },
    /// ARP or ICMPv6: the hosts finding each other.
    Neighbor,
    /// None of these.
    Other,
}

/// ESP in UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EspPacket<'a> {
    /// Its sender.
    pub(super) from: SocketAddr,
    /// Its receiver.
    pub(super) to: SocketAddr,
    /// Which SA it belongs to.
    pub(super) spi: u32,
    /// Its number in that SA.
    pub(super) sequence: u32,
    /// Everything after the UDP header.
    pub(super) bytes: &'a [u8],
    /// Length of the IP packet, in bytes.
    pub(super) ip_length: usize,
}

impl<'a> Packet<'a> {
    /// Reads a frame from its Ethernet header on.
    pub(super) fn read(frame: &'a [u8]) -> Self {
        let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return Self::Other };
        let (source, destination): (std::net::IpAddr, std::net::IpAddr) = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(NetSlice::Ipv6(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(NetSlice::Arp(_)) => return Self::Neighbor,
            None => return Self::Other,
        };
        match &sliced.transport {
            Some(TransportSlice::Udp(udp)) if udp.destination_port() == VXLAN_PORT => Self::Vxlan,
            Some(TransportSlice::Udp(udp)) if udp.destination_port() == ESP_PORT => {
                let bytes = udp.payload();
                // A zero SPI would be an IKE packet, and anything shorter no ESP at all.
                let [a, b, c, d, e, f, g, h, ..] = *bytes else { return Self::Other };
                let (spi, sequence) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
                if spi == 0 || bytes.len() < SHORTEST_ESP {
                    return Self::Other;
                }
                Self::Esp(EspPacket {
                    from: SocketAddr::new(source, udp.source_port()),
                    to: SocketAddr::new(destination, udp.destination_port()),
                    spi,
                    sequence,
                    bytes,
                    ip_length: frame.len() - ETHERNET_HEADER,
                })
            }
            Some(TransportSlice::Tcp(tcp))
                if [tcp.source_port(), tcp.destination_port()].contains(&TLS_PORT) =>
            {
                let settles_tls13 = tcp.source_port() == TLS_PORT && settles_tls13(tcp.payload());
                Self::Control { settles_tls13 }
            }
            Some(TransportSlice::Icmpv6(_)) => Self::Neighbor,
            Some(
                TransportSlice::Udp(_)
                | TransportSlice::Tcp(_)
                | TransportSlice::Icmpv4(_)
                | TransportSlice::Igmp(_),
            )
            | None => Self::Other,
        }
    }
}

/// A handshake record with a `ServerHello` whose `supported_versions` is TLS 1.3 (RFC 8446, 4.2.1).
fn settles_tls13(payload: &[u8]) -> bool {
    const HANDSHAKE: u8 = 22;
    const SERVER_HELLO: u8 = 2;
    let supported_versions = [0x00, 0x2b, 0x00, 0x02, 0x03, 0x04];
    payload.first() == Some(&HANDSHAKE)
        && payload.get(5) == Some(&SERVER_HELLO)
        && payload.windows(supported_versions.len()).any(|bytes| bytes == supported_versions)
}

/// How many of the frames contain `needle`.
pub(super) fn count_containing(frames: &[Vec<u8>], needle: &[u8]) -> usize {
    frames.iter().filter(|frame| frame.windows(needle.len()).any(|bytes| bytes == needle)).count()
}

const ETHERNET_HEADER: usize = 14;
const ESP_PORT: u16 = 4500;
const VXLAN_PORT: u16 = 4789;
const TLS_PORT: u16 = 2377;
/// SPI, sequence number, IV, pad length, next header, tag.
const SHORTEST_ESP: usize = 8 + 8 + 2 + 16;

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn esp_is_told_from_vxlan_and_the_rest_by_its_port_and_spi() {
        let mut payload = vec![0; 40];
        payload[..8].copy_from_slice(&[0x8f, 0, 0, 1, 0, 0, 0, 7]);
        let frame = udp(4500, &payload);
        let Packet::Esp(esp) = Packet::read(&frame) else { panic!("no ESP") };
        assert_eq!((esp.spi, esp.sequence, esp.bytes), (0x8f00_0001, 7, &payload[..]));
        assert_eq!((esp.to.to_string().as_str(), esp.ip_length), ("192.0.2.2:4500", 68));

        assert_eq!(Packet::read(&udp(4500, &[0; 40])), Packet::Other, "the marker of IKE");
        assert_eq!(Packet::read(&udp(4500, &[1; 20])), Packet::Other, "too short");
        assert_eq!(Packet::read(&udp(4789, &payload)), Packet::Vxlan);
        assert_eq!(Packet::read(&udp(53, &payload)), Packet::Other);
        assert_eq!(Packet::read(&[]), Packet::Other);
    }

    #[test]
    fn a_server_hello_of_tls_1_3_is_recognised_from_the_server_alone() {
        let mut hello = vec![22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3];
        hello.extend([9; 32]);
        assert_eq!(Packet::read(&tcp(2377, 40_000, &hello)), Packet::Control { settles_tls13: false });
        hello.extend([0, 0x2b, 0, 2, 3, 4]);
        assert_eq!(Packet::read(&tcp(2377, 40_000, &hello)), Packet::Control { settles_tls13: true });
        assert_eq!(Packet::read(&tcp(40_000, 2377, &hello)), Packet::Control { settles_tls13: false });
        assert_eq!(Packet::read(&tcp(40_000, 80, &hello)), Packet::Other);
    }

    #[test]
    fn a_needle_is_found_wherever_it_is() {
        let frames = [b"xxcanary".to_vec(), b"canarx".to_vec(), b"canary".to_vec(), Vec::new()];
        assert_eq!(count_containing(&frames, b"canary"), 2);
    }

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        builder.udp(4500, port).write(&mut frame, payload).unwrap();
        frame
    }

    fn tcp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        builder.tcp(from, to, 1, 1000).write(&mut frame, payload).unwrap();
        frame
    }
}
