//! Receiving many datagrams with one call: `recvmmsg`, each message with the run that `UDP_GRO` made.
//!
//! A run has one traffic class: GRO merges no datagrams whose classes differ (`inet_gro_flush` and
//! `ipv6_gro_flush` in include/net/gro.h). Kernels before 6.9 that lack its "add flush check in
//! udp_gro_receive_segment" do merge them, and tell the first one's.

#![expect(unsafe_code, reason = "recvmmsg has no safe wrapper")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use socket2::Socket;

use crate::wire::traffic_class::TrafficClass;

/// Room for what one [`super::UdpSocket::recv`] fetches; made once, used for every call.
#[derive(Debug)]
pub struct RecvRing {
    bytes: Box<[u8]>,
    slots: Box<[Slot; MESSAGES]>,
    filled: usize,
}

impl RecvRing {
    /// An empty ring of 16 messages of up to 64 KiB.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; MESSAGES * MESSAGE_BYTES].into_boxed_slice(),
            slots: Box::new([Slot::EMPTY; MESSAGES]),
            filled: 0,
        }
    }

    /// The most messages that one call fetches; when it fetched as many, more may be waiting.
    pub const CAPACITY: usize = MESSAGES;

    /// Each datagram fetched by the last call, in the order of arrival, empty ones too.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let messages = self.bytes.chunks_exact_mut(MESSAGE_BYTES).zip(self.slots.iter());
        messages.take(self.filled).filter_map(|(bytes, slot)| Some((slot.sender()?, slot, bytes))).flat_map(
            |(from, slot, bytes)| {
                let Control { segment, class } = slot.control();
                let message = &mut bytes[..slot.length];
                let segment = segment.filter(|segment| *segment > 0).unwrap_or(slot.length.max(1));
                let empty = message.is_empty().then_some(&mut [][..]);
                let datagrams = message.chunks_mut(segment).chain(empty);
                datagrams.map(move |bytes| Datagram { from, class, bytes })
            },
        )
    }

    /// How much the last call fetched.
    pub fn bytes(&self) -> usize {
        self.slots[..self.filled].iter().map(|slot| slot.length).sum()
    }

    pub(super) fn fill(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        self.filled = 0;
        let most = most.clamp(1, MESSAGES);
        // SAFETY: all zero is a valid mmsghdr: null pointers with zero lengths.
        let mut messages: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
        let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MESSAGES];
        let buffers = self.bytes.chunks_exact_mut(MESSAGE_BYTES).zip(self.slots.iter_mut());
        for ((message, piece), (bytes, slot)) in messages[..most].iter_mut().zip(&mut pieces).zip(buffers) {
            *piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            message.msg_hdr.msg_name = slot.name.as_mut_ptr().cast();
            message.msg_hdr.msg_namelen = NAME_LEN;
            message.msg_hdr.msg_iov = piece;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = slot.control.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = slot.control.len() as _;
        }
        let (flags, no_timeout) = (libc::MSG_DONTWAIT, std::ptr::null_mut());
        let count = libc::c_uint::try_from(most).expect("it is at most MESSAGES");
        // SAFETY: each of the first `count` messages points to a name, a piece, bytes and a control
        // buffer of its own with the lengths given, all alive and borrowed by nothing else.
        let fetched =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, flags, no_timeout) };
        let Ok(fetched) = usize::try_from(fetched) else {
            let error = io::Error::last_os_error();
            let nothing_there = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
            return if nothing_there { Ok(0) } else { Err(error) };
        };
        for (slot, message) in self.slots.iter_mut().zip(&messages).take(fetched) {
            slot.length = usize::try_from(message.msg_len).map_or(0, |length| length.min(MESSAGE_BYTES));
            slot.control_length = message.msg_hdr.msg_controllen as _;
        }
        self.filled = fetched;
        Ok(fetched)
    }
}

impl Default for RecvRing {
    fn default() -> Self {
        Self::new()
    }
}

/// One datagram that arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// What its IP header said.
    pub class: TrafficClass,
    /// Its payload.
    pub bytes: &'a mut [u8],
}

/// What the kernel says of one message.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// `struct sockaddr_in` or `sockaddr_in6`.
    name: [u8; NAME_LEN as usize],
    control: [u8; CONTROL_BYTES],
    control_length: usize,
    length: usize,
}

impl Slot {
    const EMPTY: Self =
        Self { name: [0; NAME_LEN as usize], control: [0; CONTROL_BYTES], control_length: 0, length: 0 };

    fn sender(&self) -> Option<SocketAddr> {
        let family = u16::from_ne_bytes([self.name[0], self.name[1]]);
        let port = u16::from_be_bytes([self.name[2], self.name[3]]);
        match libc::c_int::from(family) {
            libc::AF_INET => {
                let address: [u8; 4] = self.name[4..8].try_into().ok()?;
                Some(SocketAddrV4::new(Ipv4Addr::from(address), port).into())
            }
            libc::AF_INET6 => {
                let address: [u8; 16] = self.name[8..24].try_into().ok()?;
                let scope = u32::from_ne_bytes(self.name[24..28].try_into().ok()?);
                Some(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
            }
            _ => None,
        }
    }

    /// What the control messages say.
    fn control(&self) -> Control {
        const INT: usize = size_of::<libc::c_int>();
        let mut found = Control { segment: None, class: TrafficClass::ZERO };
        let mut rest = self.control.get(..self.control_length).unwrap_or_default();
        while let Some((level, kind, value, following)) = split_control(rest) {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let value = value.first_chunk::<INT>().map(|value| libc::c_int::from_ne_bytes(*value));
                    found.segment = value.and_then(|value| usize::try_from(value).ok());
                }
                // One octet (ip_cmsg_recv_tos in net/ipv4/ip_sockglue.c).
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    found.class = value.first().copied().map(TrafficClass::new).unwrap_or_default();
                }
                // An int (ip6_datagram_recv_common_ctl in net/ipv6/datagram.c).
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    let value = value.first_chunk::<INT>().map(|value| libc::c_int::from_ne_bytes(*value));
                    let octet = value.and_then(|value| u8::try_from(value).ok());
                    found.class = octet.map(TrafficClass::new).unwrap_or_default();
                }
                (_, _) => {}
            }
            rest = following;
        }
        found
    }
}

/// What the control messages of one message say.
struct Control {
    /// The length of each datagram of a run but the last.
    segment: Option<usize>,
    class: TrafficClass,
}

/// Level, type and value of the first control message (`struct cmsghdr`), and what follows it.
pub(in crate::io) fn split_control(bytes: &[u8]) -> Option<(libc::c_int, libc::c_int, &[u8], &[u8])> {
    const LENGTH: usize = size_of::<usize>();
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let length = usize::from_ne_bytes(*bytes.first_chunk::<LENGTH>()?);
    let level = libc::c_int::from_ne_bytes(bytes.get(LENGTH..LENGTH + 4)?.try_into().ok()?);
    let kind = libc::c_int::from_ne_bytes(bytes.get(LENGTH + 4..LENGTH + 8)?.try_into().ok()?);
    let value = bytes.get(HEADER..length)?;
    Some((level, kind, value, bytes.get(length.next_multiple_of(LENGTH)..).unwrap_or_default()))
}

const MESSAGES: usize = 16;

/// A run that `UDP_GRO` made is an IP packet at most.
const MESSAGE_BYTES: usize = 1 << 16;

/// `struct sockaddr_in6`, the longer of the two.
const NAME_LEN: libc::socklen_t = 28;

/// One `UDP_GRO` message takes 24, one of the traffic class as much.
const CONTROL_BYTES: usize = 64;
