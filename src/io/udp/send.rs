//! Sending a run of datagrams: one call with `UDP_SEGMENT`, else `sendmmsg`.

#![expect(unsafe_code, reason = "sendmmsg has no safe wrapper that works without allocation")]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{MsgHdr, SockAddr, Socket};

use super::MAX_RUN_DATAGRAMS;

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
    bytes: &[u8],
    segment: usize,
) -> io::Result<SendOutcome> {
    let to = SockAddr::from(to);
    if bytes.len() <= segment {
        return blocked_is_none_sent(retry(|| socket.send_to(bytes, &to)).map(|_| 1));
    }
    if !segmentation.load(Ordering::Relaxed) {
        return blocked_is_none_sent(one_by_one(socket, &to, bytes, segment));
    }
    let control = SegmentControl::new(segment);
    let message = [IoSlice::new(bytes)];
    let message = MsgHdr::new().with_addr(&to).with_buffers(&message).with_control(control.bytes());
    match retry(|| socket.sendmsg(&message, 0)) {
        Ok(_) => Ok(SendOutcome::of(bytes.len().div_ceil(segment))),
        // EIO: the route's device cannot checksum a run. EINVAL: no checksum on this socket, or
        // more segments than this kernel takes, but also, before Linux 6.14, a segment above the
        // MTU (udp_send_skb in net/ipv4/udp.c). Only the datagrams themselves can tell.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
            let sent = one_by_one(socket, &to, bytes, segment);
            let gave_up_segmentation = sent.is_ok();
            if gave_up_segmentation {
                segmentation.store(false, Ordering::Relaxed);
            }
            blocked_is_none_sent(sent).map(|outcome| SendOutcome { gave_up_segmentation, ..outcome })
        }
        Err(error) => blocked_is_none_sent(Err(error)),
    }
}

/// Sends each datagram as a message of its own; the number that the kernel took, if any.
fn one_by_one(socket: &Socket, to: &SockAddr, bytes: &[u8], segment: usize) -> io::Result<usize> {
    let mut sent = 0;
    for group in bytes.chunks(segment * MAX_RUN_DATAGRAMS) {
        match retry(|| send_group(socket, to, group, segment)) {
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

fn send_group(socket: &Socket, to: &SockAddr, group: &[u8], segment: usize) -> io::Result<usize> {
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
        count += 1;
    }
    // SAFETY: the first `count` messages point to live pieces, datagrams and an address, all of
    // which the kernel only reads; it writes their `msg_len` alone.
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

/// A full socket buffer or device queue is congestion, hence loss, not an error.
fn blocked_is_none_sent(sent: io::Result<usize>) -> io::Result<SendOutcome> {
    match sent {
        Ok(datagrams) => Ok(SendOutcome::of(datagrams)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => {
            Ok(SendOutcome::of(0))
        }
        Err(error) => Err(error),
    }
}

/// The control message `UDP_SEGMENT` with the length of a segment: `struct cmsghdr`, then a u16.
struct SegmentControl([u8; Self::SPACE]);

impl SegmentControl {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const SPACE: usize = Self::HEADER + size_of::<usize>();

    fn new(segment: usize) -> Self {
        let segment = u16::try_from(segment).expect("a segment's length came as a u16");
        let mut bytes = [0; Self::SPACE];
        let (length, rest) = bytes.split_at_mut(size_of::<usize>());
        length.copy_from_slice(&(Self::HEADER + size_of::<u16>()).to_ne_bytes());
        rest[..4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        rest[4..8].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        rest[8..10].copy_from_slice(&segment.to_ne_bytes());
        Self(bytes)
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}
