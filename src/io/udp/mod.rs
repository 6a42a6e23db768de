//! The UDP sockets that carry encrypted data and plain VXLAN.
//!
//! A run of equal datagrams leaves in one call (`UDP_SEGMENT`) and arrives in one (`UDP_GRO` in
//! `recvmmsg`); where the kernel refuses either, the same calls do the same work one datagram at a
//! time. Nothing here is encrypted, checked or routed; a lane owns the sockets and calls.
//!
//! Every datagram has DF set (`IP_PMTUDISC_PROBE`): a fragment of an encrypted packet would double
//! the loss, and RFC 4459 tells what fragmentation does to a tunnel. `PROBE` rather than `DO`,
//! because `DO` believes ICMP: anybody who can forge a "fragmentation needed" could shrink the
//! path to 552 bytes and so stop an overlay whose MTU is fixed. With `PROBE` the interface's MTU
//! alone is the limit, and a datagram above it is refused with `EMSGSIZE`.

mod receive;
mod send;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::wire::traffic_class::TrafficClass;

pub(super) use receive::split_control;
pub use receive::{Datagram, RecvRing};
pub use send::SendOutcome;

/// A bound, nonblocking UDP socket of one address family.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    offloads: OffloadWatch,
}

impl UdpSocket {
    /// Opens a socket at `local` in the calling thread's network namespace and finds out what the
    /// kernel does for it. An IPv6 socket carries no IPv4.
    ///
    /// # Errors
    /// [`UdpError::Bind`] when the address is not ours or the port is taken.
    pub fn bind(local: SocketAddr, options: &UdpOptions) -> Result<Self, UdpError> {
        let socket =
            Socket::new(Domain::for_address(local), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))
                .map_err(|source| UdpError::Option { option: "socket", source })?;
        configure(&socket, local, options)?;
        socket.bind(&local.into()).map_err(|source| UdpError::Bind { local, source })?;

        // Old kernels answer ENOPROTOOPT here; others may still refuse the first run.
        let segmentation = options.segmentation && set_udp_option(&socket, libc::UDP_SEGMENT, 0).is_ok();
        let coalescing = options.coalescing && set_udp_option(&socket, libc::UDP_GRO, 1).is_ok();
        let offloads = OffloadWatch { segmentation: Arc::new(AtomicBool::new(segmentation)), coalescing };
        Ok(Self { socket, offloads })
    }

    /// Another socket for the same work, as for another lane: what the kernel refuses one, neither tries again.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub(super) fn bind_beside(&self, local: SocketAddr, options: &UdpOptions) -> Result<Self, UdpError> {
        let mut other = Self::bind(local, options)?;
        other.offloads.segmentation = Arc::clone(&self.offloads.segmentation);
        Ok(other)
    }

    /// The address that it is bound to, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// None are known for a bound socket; passed on all the same.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What the kernel does for this socket now.
    pub fn offloads(&self) -> Offloads {
        self.offloads.now()
    }

    /// The same for others than the socket's owner, now and later.
    pub fn offload_watch(&self) -> OffloadWatch {
        self.offloads.clone()
    }

    /// Sends `bytes` to `to` as datagrams of `segment` bytes each, the last as long as what remains:
    /// at most [`MAX_RUN_DATAGRAMS`] datagrams and [`MAX_RUN_BYTES`] bytes. Their IP headers have
    /// traffic class zero.
    ///
    /// `Ok` with fewer datagrams sent than the run has means that the rest is lost.
    ///
    /// # Errors
    /// What the kernel said when it took none of them: `EMSGSIZE` when a datagram exceeds the
    /// interface's MTU, `ENETUNREACH`, `EHOSTUNREACH`, `EPERM` by a firewall, and so on.
    ///
    /// # Panics
    /// When `segment` is zero.
    pub fn send_run(&self, to: SocketAddr, bytes: &[u8], segment: u16) -> io::Result<SendOutcome> {
        self.send_run_as(to, TrafficClass::ZERO, bytes, segment)
    }

    /// As [`Self::send_run`], with `class` in the IP headers.
    ///
    /// # Errors
    /// As [`Self::send_run`].
    ///
    /// # Panics
    /// As [`Self::send_run`].
    pub fn send_run_as(
        &self,
        to: SocketAddr,
        class: TrafficClass,
        bytes: &[u8],
        segment: u16,
    ) -> io::Result<SendOutcome> {
        send::run(&self.socket, &self.offloads.segmentation, to, class, bytes, usize::from(segment))
    }

    /// Fetches what has arrived into `ring`, whose previous content goes; the number of messages
    /// (each one or more datagrams), zero when nothing is there.
    ///
    /// # Errors
    /// None are known in normal work; passed on all the same.
    pub fn recv(&self, ring: &mut RecvRing) -> io::Result<usize> {
        self.recv_some(ring, RecvRing::CAPACITY)
    }

    /// As [`Self::recv`], at most so many messages: the kernel is not asked for more in vain.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn recv_some(&self, ring: &mut RecvRing, most: usize) -> io::Result<usize> {
        ring.fill(&self.socket, most)
    }

    /// How many messages the kernel has dropped because the receive buffer was full, or a checksum
    /// wrong, since the socket was opened; it begins again at zero behind the largest number. A run that
    /// a device had merged is one.
    ///
    /// # Errors
    /// From kernels before 4.12.
    pub fn dropped(&self) -> io::Result<u32> {
        let [.., dropped] = super::socket_option::words::<SK_MEMINFO_VARS>(
            self.socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
        )?;
        Ok(dropped)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How a socket is opened; the default is right for a node's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpOptions {
    /// Other sockets that say so too may have the same port (one per lane).
    pub reuse_port: bool,
    /// Set DF and never fragment.
    pub dont_fragment: bool,
    /// Socket buffer each way, in bytes; what the system's limit leaves of it, for ordinary users.
    pub buffer_bytes: usize,
    /// Send IPv4 datagrams with a UDP checksum. Without it the kernel refuses `UDP_SEGMENT`.
    pub checksum: bool,
    /// Use `UDP_SEGMENT` where the kernel has it.
    pub segmentation: bool,
    /// Use `UDP_GRO` where the kernel has it.
    pub coalescing: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            reuse_port: false,
            dont_fragment: true,
            buffer_bytes: 8 << 20,
            checksum: true,
            segmentation: true,
            coalescing: true,
        }
    }
}

/// What the kernel does for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// A run is cut into datagrams by the kernel or the device (`UDP_SEGMENT`).
    pub segmentation: bool,
    /// Datagrams of a flow are received as one (`UDP_GRO`).
    pub coalescing: bool,
}

/// What the kernel does for a socket, for whoever does not own the socket.
#[derive(Debug, Clone)]
pub struct OffloadWatch {
    segmentation: Arc<AtomicBool>,
    coalescing: bool,
}

impl OffloadWatch {
    /// For two sockets, one of which sends and the other receives.
    pub(super) fn of(send: &UdpSocket, receive: &UdpSocket) -> Self {
        Self { coalescing: receive.offloads.coalescing, ..send.offload_watch() }
    }

    /// What the kernel does for the socket now.
    pub fn now(&self) -> Offloads {
        Offloads { segmentation: self.segmentation.load(Ordering::Relaxed), coalescing: self.coalescing }
    }
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// The address or port cannot be had.
    #[error("UDP {local}: {source}; {}", bind_hint(source))]
    Bind {
        /// The address asked for.
        local: SocketAddr,
        /// What bind(2) said.
        source: io::Error,
    },
    /// The kernel lacks something that this program cannot do without.
    #[error("UDP socket option {option}: {source}")]
    Option {
        /// The option.
        option: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn configure(socket: &Socket, local: SocketAddr, options: &UdpOptions) -> Result<(), UdpError> {
    let refused = |option| move |source: io::Error| UdpError::Option { option, source };
    if local.is_ipv6() {
        socket.set_only_v6(true).map_err(refused("IPV6_V6ONLY"))?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true).map_err(refused("SO_REUSEPORT"))?;
    }
    if options.dont_fragment {
        dont_fragment(socket, local).map_err(refused("IP_MTU_DISCOVER"))?;
    }
    let class = match local {
        SocketAddr::V4(_) => set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
        SocketAddr::V6(_) => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
    };
    class.map_err(refused("IP_RECVTOS"))?;
    if !options.checksum {
        set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).map_err(refused("SO_NO_CHECK"))?;
    }
    // The forced variants pass net.core.{r,w}mem_max, but need CAP_NET_ADMIN on the host.
    if sockopt::set_socket_recv_buffer_size_force(socket, options.buffer_bytes).is_err() {
        socket.set_recv_buffer_size(options.buffer_bytes).map_err(refused("SO_RCVBUF"))?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, options.buffer_bytes).is_err() {
        socket.set_send_buffer_size(options.buffer_bytes).map_err(refused("SO_SNDBUF"))?;
    }
    Ok(())
}

fn dont_fragment(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    match local {
        SocketAddr::V4(_) => {
            set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        }
        SocketAddr::V6(_) => {
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            // Without it the sender itself fragments what exceeds the MTU.
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
        }
    }
}

fn set_udp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, option, value)
}

fn set_option(
    socket: &Socket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    super::socket_option::set(socket.as_raw_fd(), level, option, value)
}

fn bind_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "another process has this port (`ss -lunp` names it): stop it",
        Some(libc::EADDRNOTAVAIL) => "no interface of this host has this address",
        Some(libc::EACCES) => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE, which this process does not have"
        }
        _ => "check the address",
    }
}

/// include/uapi/asm-generic/socket.h; its value is the words of include/uapi/linux/sock_diag.h, of which
/// the last counts drops (`sk_get_meminfo` in net/core/sock.c).
const SO_MEMINFO: libc::c_int = 55;
const SK_MEMINFO_VARS: usize = 9;

/// The most datagrams in a run (`UDP_MAX_SEGMENTS` of older kernels).
pub const MAX_RUN_DATAGRAMS: usize = 64;

/// The most bytes in a run: an IPv4 packet less its headers.
pub const MAX_RUN_BYTES: usize = 65_507;

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(sender: &UdpOptions, receiver: &UdpOptions, local: &str) -> UdpSocket {
        let from = exchange_as(TrafficClass::ZERO, sender, receiver, local);
        exchange_as(TrafficClass::new(0xbb), sender, receiver, local);
        from
    }

    fn exchange_as(
        class: TrafficClass,
        sender: &UdpOptions,
        receiver: &UdpOptions,
        local: &str,
    ) -> UdpSocket {
        let from = UdpSocket::bind(local.parse().unwrap(), sender).unwrap();
        let to = UdpSocket::bind(local.parse().unwrap(), receiver).unwrap();
        let bytes: Vec<u8> = (0..5_300u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        let outcome = from.send_run_as(to.local_addr().unwrap(), class, &bytes, 1_000).unwrap();
        assert_eq!(outcome.datagrams, 6);
        assert_eq!(outcome.gave_up_segmentation, !sender.checksum);
        let single = from.send_run_as(to.local_addr().unwrap(), class, &bytes[..7], 1_000).unwrap();
        assert_eq!(single, SendOutcome { datagrams: 1, gave_up_segmentation: false });

        let mut ring = RecvRing::new();
        let mut seen = Vec::new();
        while to.recv(&mut ring).unwrap() > 0 {
            for datagram in ring.datagrams() {
                assert_eq!((datagram.from, datagram.class), (from.local_addr().unwrap(), class));
                seen.push(datagram.bytes.to_vec());
            }
        }
        assert_eq!(seen.pop().as_deref(), Some(&bytes[..7]));
        assert_eq!(seen, bytes.chunks(1_000).map(<[u8]>::to_vec).collect::<Vec<_>>());
        from
    }

    #[test]
    fn a_run_arrives_with_its_boundaries_and_its_class_whatever_the_kernel_offers() {
        let plain = UdpOptions { segmentation: false, coalescing: false, ..UdpOptions::default() };
        for local in ["127.0.0.1:0", "[::1]:0"] {
            for sender in [&UdpOptions::default(), &plain] {
                for receiver in [&UdpOptions::default(), &plain] {
                    exchange(sender, receiver, local);
                }
            }
        }
    }

    #[test]
    fn an_empty_datagram_arrives_as_one() {
        let any = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let (from, to) = (any(), any());
        for bytes in [&b""[..], b"more", b""] {
            assert_eq!(from.send_run(to.local_addr().unwrap(), bytes, 4).unwrap().datagrams, 1);
        }
        let (mut ring, mut seen) = (RecvRing::new(), Vec::new());
        while to.recv(&mut ring).unwrap() > 0 {
            seen.extend(ring.datagrams().map(|datagram| (datagram.from, datagram.bytes.to_vec())));
        }
        let from = from.local_addr().unwrap();
        assert_eq!(seen, [(from, vec![]), (from, b"more".to_vec()), (from, vec![])]);
    }

    #[test]
    fn segmentation_is_given_up_at_the_first_refusal_and_the_run_still_arrives() {
        // udp_send_skb refuses UDP_SEGMENT to sockets that send no checksum.
        let refused = UdpOptions { checksum: false, ..UdpOptions::default() };
        let from = exchange(&refused, &UdpOptions::default(), "127.0.0.1:0");
        assert!(!from.offloads().segmentation);
        let again = from.send_run(from.local_addr().unwrap(), &[0; 2_000], 1_000).unwrap();
        assert_eq!(again, SendOutcome { datagrams: 2, gave_up_segmentation: false });
        let from = exchange(&UdpOptions::default(), &UdpOptions::default(), "127.0.0.1:0");
        assert!(from.offloads().segmentation);
    }

    #[test]
    fn a_datagram_above_the_mtu_is_refused_and_segmentation_kept() {
        let from = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let to = "127.0.0.1:9".parse().unwrap();
        let error = from.send_run(to, &[0; 65_537], 65_535).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert!(from.offloads().segmentation);
    }

    #[test]
    fn a_taken_port_and_a_foreign_address_are_named_as_such() {
        let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let taken = UdpSocket::bind(first.local_addr().unwrap(), &UdpOptions::default()).unwrap_err();
        assert!(taken.to_string().contains("another process"), "{taken}");
        let foreign = UdpSocket::bind("192.0.2.254:0".parse().unwrap(), &UdpOptions::default()).unwrap_err();
        assert!(foreign.to_string().contains("no interface"), "{foreign}");
    }

    #[test]
    fn datagrams_that_find_the_receive_buffer_full_are_counted() {
        let local = "127.0.0.1:0".parse().unwrap();
        let small = UdpOptions { buffer_bytes: 1 << 12, ..UdpOptions::default() };
        let from = UdpSocket::bind(local, &UdpOptions::default()).unwrap();
        let to = UdpSocket::bind(local, &small).unwrap();
        assert_eq!(to.dropped().unwrap(), 0);
        for _ in 0..200 {
            assert_eq!(from.send_run(to.local_addr().unwrap(), &[7; 100], 100).unwrap().datagrams, 1);
        }
        let (mut ring, mut received) = (RecvRing::new(), 0);
        while to.recv(&mut ring).unwrap() > 0 {
            received += u32::try_from(ring.datagrams().count()).unwrap();
        }
        assert_eq!(received + to.dropped().unwrap(), 200);
        assert!(to.dropped().unwrap() > 0 && received > 0);
    }

    #[test]
    fn sockets_that_allow_it_share_a_port() {
        let shared = UdpOptions { reuse_port: true, ..UdpOptions::default() };
        let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &shared).unwrap();
        UdpSocket::bind(first.local_addr().unwrap(), &shared).unwrap();
    }
}
