//! Frames of TCP and UDP flows with everything that real ones have, drawn at random.

use std::ops::Range;

use overlayd::wire::checksum;
use overlayd::wire::transport::{ACK, CWR, ECE, FIN, PSH, Protocol, Transport};
use rand::RngExt;
use rand::rngs::StdRng;

/// The headers of a frame; its lengths and checksums follow from them.
#[derive(Debug, Clone)]
pub(crate) struct Headers {
    pub(crate) is_ipv6: bool,
    pub(crate) protocol: Protocol,
    /// Traffic class, ECN included.
    pub(crate) class: u8,
    pub(crate) flow_label: u32,
    pub(crate) hops: u8,
    pub(crate) id: u16,
    /// Reserved, DF and MF, in the upper octet of the fragment field.
    pub(crate) flags: u8,
    /// Options of IPv4, or an extension header of IPv6 whose first octet is the next header's place.
    pub(crate) ip_options: Vec<u8>,
    pub(crate) source_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) reserved: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) tcp_options: Vec<u8>,
}

impl Headers {
    /// A flow as the kernel might make one.
    pub(crate) fn random(rng: &mut StdRng) -> Self {
        let is_ipv6 = rng.random();
        let ip_options = match rng.random_range(0..6) {
            // Destination options: 8 octets of padding.
            0 if is_ipv6 => vec![0, 0, 1, 4, 0, 0, 0, 0],
            0 => vec![1, 1, 1, 0],
            _ => Vec::new(),
        };
        let [a, b, c, d, e, f, g, h]: [u8; 8] = rng.random();
        let tcp_options = match rng.random_range(0..4) {
            0 => Vec::new(),
            1 => vec![1, 1, 5, 10, a, b, c, d, e, f, g, h],
            2 => vec![1, 1, 8, 10, a, b, c, d, e, f, g, h, 1, 1, 5, 10, h, g, f, e, d, c, b, a],
            _ => vec![1, 1, 8, 10, a, b, c, d, e, f, g, h],
        };
        Self {
            is_ipv6,
            protocol: if rng.random_bool(0.6) { Protocol::Tcp } else { Protocol::Udp },
            class: if rng.random() { 0 } else { rng.random() },
            flow_label: if rng.random() { 0 } else { rng.random_range(0..1 << 20) },
            hops: rng.random_range(2..=255),
            id: rng.random(),
            flags: if rng.random_bool(0.7) { DF } else { 0 },
            ip_options,
            source_port: rng.random(),
            sequence: rng.random(),
            acknowledgment: rng.random(),
            reserved: 0,
            tcp_flags: ACK | if rng.random_bool(0.1) { ECE } else { 0 },
            window: rng.random(),
            urgent: 0,
            tcp_options,
        }
    }

    /// A flow as bulk transfers have it: nothing rare, TCP with time stamps.
    pub(crate) fn plain(is_ipv6: bool, protocol: Protocol) -> Self {
        Self {
            is_ipv6,
            protocol,
            class: 0,
            flow_label: 0,
            hops: 64,
            id: 0xfffe,
            flags: DF,
            ip_options: Vec::new(),
            source_port: 40_000,
            sequence: u32::MAX - 500,
            acknowledgment: 7,
            reserved: 0,
            tcp_flags: ACK,
            window: 500,
            urgent: 0,
            tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        }
    }

    /// Flags that a sender may put on a train of segments.
    pub(crate) fn draw_train_flags(&mut self, rng: &mut StdRng) {
        for (flag, chance) in [(PSH, 0.5), (FIN, 0.2), (CWR, 0.2), (URG, 0.05)] {
            self.tcp_flags |= if rng.random_bool(chance) { flag } else { 0 };
        }
        self.reserved = if rng.random_bool(0.1) { rng.random_range(0..16) } else { 0 };
        self.urgent = if self.tcp_flags & URG != 0 { rng.random() } else { 0 };
    }

    /// Octets in front of the payload.
    pub(crate) fn len(&self) -> usize {
        self.transport() + self.transport_len()
    }

    /// Where the transport header begins.
    pub(crate) fn transport(&self) -> usize {
        14 + if self.is_ipv6 { 40 } else { 20 } + self.ip_options.len()
    }

    fn transport_len(&self) -> usize {
        match self.protocol {
            Protocol::Tcp => 20 + self.tcp_options.len(),
            Protocol::Udp => 8,
        }
    }

    /// The frame as it would be on a wire.
    pub(crate) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.unfinished(payload);
        let (start, offset) = (self.transport(), self.protocol.checksum_offset());
        checksum::complete(&mut frame, start, offset).unwrap();
        frame
    }

    /// The frame with nothing but the pseudo header in its transport checksum.
    pub(crate) fn unfinished(&self, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(self.transport_len() + payload.len()).unwrap();
        let mut frame = [TO, FROM].concat();
        if self.is_ipv6 {
            let extension = u16::try_from(self.ip_options.len()).unwrap();
            frame.extend([0x86, 0xdd]);
            frame.extend((6 << 28 | u32::from(self.class) << 20 | self.flow_label).to_be_bytes());
            frame.extend((length + extension).to_be_bytes());
            frame.extend([if extension > 0 { 60 } else { self.protocol.number() }, self.hops]);
            frame.extend([FROM_V6, TO_V6].concat());
            frame.extend(&self.ip_options);
            if extension > 0 {
                frame[54] = self.protocol.number();
            }
        } else {
            let header_len = u16::try_from(20 + self.ip_options.len()).unwrap();
            let [words, _] = ((header_len / 4) << 8).to_be_bytes();
            frame.extend([8, 0, 0x40 | words, self.class]);
            frame.extend((header_len + length).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([self.flags, 0, self.hops, self.protocol.number(), 0, 0]);
            frame.extend([FROM_V4, TO_V4].concat());
            frame.extend(&self.ip_options);
            let sum = checksum::plain(&frame[14..]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend(self.source_port.to_be_bytes());
        frame.extend(PORT.to_be_bytes());
        match self.protocol {
            Protocol::Tcp => {
                frame.extend(self.sequence.to_be_bytes());
                frame.extend(self.acknowledgment.to_be_bytes());
                let words = u8::try_from(self.transport_len() / 4).unwrap();
                frame.extend([words << 4 | self.reserved, self.tcp_flags]);
                frame.extend(self.window.to_be_bytes());
                frame.extend([0, 0]);
                frame.extend(self.urgent.to_be_bytes());
                frame.extend(&self.tcp_options);
            }
            Protocol::Udp => {
                frame.extend(length.to_be_bytes());
                frame.extend([0, 0]);
            }
        }
        frame.extend(payload);
        let start = self.transport();
        let (protocol, is_ipv6) = (self.protocol, self.is_ipv6);
        let found = Transport { protocol, is_ipv6, network: 14, start, payload: 0, end: 0 };
        let sum = found.pseudo_header(&frame, length).folded();
        let field = start + self.protocol.checksum_offset();
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}

/// The payload of a frame that these headers, or a kernel by them, could have made.
pub(crate) fn payload_of(frame: &[u8]) -> Range<usize> {
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (protocol, start, end) = match word(12) {
        0x0800 => (frame[23], 14 + usize::from(frame[14] & 15) * 4, 14 + word(16)),
        0x86dd if frame[20] == 60 => (frame[54], 62, 54 + word(18)),
        0x86dd => (frame[20], 54, 54 + word(18)),
        other => panic!("EtherType {other:04x}"),
    };
    let payload = start + if protocol == 6 { usize::from(frame[start + 12] >> 4) * 4 } else { 8 };
    payload..end
}

pub(crate) const TO: [u8; 6] = [2, 0x42, 10, 8, 0, 2];
pub(crate) const FROM: [u8; 6] = [2, 0x42, 10, 8, 0, 3];
pub(crate) const TO_V4: [u8; 4] = [10, 8, 0, 2];
const FROM_V4: [u8; 4] = [10, 8, 0, 3];
pub(crate) const TO_V6: [u8; 16] = [0xfd, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const FROM_V6: [u8; 16] = [0xfd, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
pub(crate) const PORT: u16 = 5_000;
pub(crate) const DF: u8 = 0x40;
pub(crate) const MF: u8 = 0x20;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const URG: u8 = 0x20;
