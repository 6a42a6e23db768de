//! Sending a run of datagrams: one call with `UDP_SEGMENT`, else `sendmmsg`. A traffic class goes with
//! the call, and costs nothing where it is zero.

#![expect(unsafe_code, reason = "sendmmsg has no safe wrapper that works without allocation")]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{MsgHdr, SockAddr, Socket};

use super::MAX_RUN_DATAGRAMS;
use crate::wire::traffic_class::TrafficClass;

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "datagrams that were not sent have to be counted"]
pub struct SendOutcome {
    /// How many datagrams the kernel took; it took those first in the run.
    pub datagrams: usize,
    /// The kernel refused `UDP_SEGMENT` for the first time; the socket will not ask for it again.
    pub gave_up_segmentation: bool,
}

impl SendOutcome {
    fn of(datagrams: usize) -> Self {
        Self { datagrams, gave_up_segmentation: false }
    }
}

/// Sends one run; `segmentation` is cleared when the kernel shows that it cannot do it.
pub(super) fn run(
    socket: &Socket,
    segmentation: &AtomicBool,
    to: SocketAddr,
    class: TrafficClass,
    bytes: &[u8],
    segment: usize,
) -> io::Result<SendOutcome> {
    let to = SockAddr::from(to);
    let mut control = Control::of_class(&to, class);
    let is_run = bytes.len() > segment;
    if !is_run && class == TrafficClass::ZERO {
        return blocked_is_none_sent(retry(|| socket.send_to(bytes, &to)).map(|_| 1));
    }
    if is_run && !segmentation.load(Ordering::Relaxed) {
        return blocked_is_none_sent(one_by_one(socket, &to, &control, bytes, segment));
    }
    if is_run {
        control.add_segment(segment);
    }
    let message = [IoSlice::new(bytes)];
    let message = MsgHdr::new().with_addr(&to).with_buffers(&message).with_control(control.bytes());
    match retry(|| socket.sendmsg(&message, 0)) {
        Ok(_) => Ok(SendOutcome::of(bytes.len().div_ceil(segment))),
        // EIO: the route's device cannot checksum a run. EINVAL: no checksum on this socket, or
        // more segments than this kernel takes, but also, before Linux 6.14, a segment above the
        // MTU (udp_send_skb in net/ipv4/udp.c). Only the datagrams themselves can tell.
        Err(error) if is_run && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
            let sent = one_by_one(socket, &to, &Control::of_class(&to, class), bytes, segment);
            // Other lanes' sockets, which share this, meet the same refusal: one of them tells.
            let gave_up_segmentation = sent.is_ok() && segmentation.swap(false, Ordering::Relaxed);
            blocked_is_none_sent(sent).map(|outcome| SendOutcome { gave_up_segmentation, ..outcome })
        }
        Err(error) => blocked_is_none_sent(Err(error)),
    }
}

/// Sends each datagram as a message of its own; the number that the kernel took, if any.
fn one_by_one(
    socket: &Socket,
    to: &SockAddr,
    control: &Control,
    bytes: &[u8],
    segment: usize,
) -> io::Result<usize> {
    let mut sent = 0;
    for group in bytes.chunks(segment * MAX_RUN_DATAGRAMS) {
        match retry(|| send_group(socket, to, control.bytes(), group, segment)) {
            Ok(taken) => {
                sent += taken;
                if taken < group.len().div_ceil(segment) {
                    break;
                }
            }
            Err(error) if sent == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(sent)
}

fn send_group(
    socket: &Socket,
    to: &SockAddr,
    control: &[u8],
    group: &[u8],
    segment: usize,
) -> io::Result<usize> {
    // SAFETY: all zero is a valid mmsghdr: null pointers with zero lengths.
    let mut messages: [libc::mmsghdr; MAX_RUN_DATAGRAMS] = unsafe { std::mem::zeroed() };
    let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_RUN_DATAGRAMS];
    let mut count = 0;
    for ((datagram, piece), message) in group.chunks(segment).zip(&mut pieces).zip(&mut messages) {
        *piece = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
        message.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = to.len();
        message.msg_hdr.msg_iov = piece;
        message.msg_hdr.msg_iovlen = 1;
        if !control.is_empty() {
            message.msg_hdr.msg_control = control.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_controllen = control.len() as _;
        }
        count += 1;
    }
    // SAFETY: the first `count` messages point to live pieces, datagrams, control and an address, all
    // of which the kernel only reads; it writes their `msg_len` alone.
    let taken = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    usize::try_from(taken).map_err(|_| io::Error::last_os_error())
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A full socket buffer, or no memory for a packet, is congestion, hence loss, not an error. A full queue
/// of the device is not told at all: without `IP_RECVERR`, `udp_send_skb` (`udp_v6_send_skb`) makes success of
/// its ENOBUFS, and `SndbufErrors` in /proc/net/snmp (`Udp6SndbufErrors` in snmp6) alone counts it.
fn blocked_is_none_sent(sent: io::Result<usize>) -> io::Result<SendOutcome> {
    match sent {
        Ok(datagrams) => Ok(SendOutcome::of(datagrams)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => {
            Ok(SendOutcome::of(0))
        }
        Err(error) => Err(error),
    }
}

/// The control messages of one call, `struct cmsghdr` and a value each; none where nothing is to be said.
struct Control {
    bytes: [u8; Self::SPACE * 2],
    len: usize,
}

impl Control {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    /// Of one message, aligned.
    const SPACE: usize = Self::HEADER + size_of::<usize>();

    /// The traffic class for `to`, but for zero, which is what the socket has.
    fn of_class(to: &SockAddr, class: TrafficClass) -> Self {
        let mut control = Self { bytes: [0; Self::SPACE * 2], len: 0 };
        if class != TrafficClass::ZERO {
            let (level, kind) = match to.is_ipv6() {
                true => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
                false => (libc::IPPROTO_IP, libc::IP_TOS),
            };
            control.add(level, kind, libc::c_int::from(class.get()).to_ne_bytes());
        }
        control
    }

    /// `UDP_SEGMENT` with the length of a segment.
    fn add_segment(&mut self, segment: usize) {
        let segment = u16::try_from(segment).expect("a segment's length came as a u16");
        self.add(libc::SOL_UDP, libc::UDP_SEGMENT, segment.to_ne_bytes());
    }

    fn add<const N: usize>(&mut self, level: libc::c_int, kind: libc::c_int, value: [u8; N]) {
        let (length, rest) = self.bytes[self.len..].split_at_mut(size_of::<usize>());
        length.copy_from_slice(&(Self::HEADER + N).to_ne_bytes());
        rest[..4].copy_from_slice(&level.to_ne_bytes());
        rest[4..8].copy_from_slice(&kind.to_ne_bytes());
        rest[8..8 + N].copy_from_slice(&value);
        self.len += Self::SPACE;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
