//! Raw Ethernet on an interface (packet(7)): what a capture sees and what a hostile host sends.
//!
//! For the laboratory, the demo and tests; the data plane never uses it.

#![expect(unsafe_code, reason = "sockaddr_ll has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

/// A nonblocking socket that sees every frame of one interface, each way.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
}

impl PacketSocket {
    /// Opens the interface with this index in the calling thread's network namespace.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_RAW; `ENODEV` when there is no such interface.
    pub fn open(interface: u32) -> io::Result<Self> {
        // Protocol 0: nothing is delivered before bind says from which interface.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(BUFFER_BYTES)?;
        }
        let interface = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
        bind(&socket, interface)?;
        Ok(Self { socket })
    }

    /// Leaves out the frames that this host sends.
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 4.20.
    pub fn ignore_outgoing(&self) -> io::Result<()> {
        super::socket_option::set(self.socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
    }

    /// The next frame, from its Ethernet header on, cut to the length of `frame`; `None` when there
    /// is none now.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface has been set down.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(&self.socket, frame, rustix::net::RecvFlags::empty()) {
            Ok((length, _)) => Ok(Some(length)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame as it is, from its Ethernet header on.
    ///
    /// # Errors
    /// `EMSGSIZE` above the interface's MTU; `ENOBUFS` when its queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.socket, frame, rustix::net::SendFlags::empty())?;
        Ok(())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(socket: &Socket, interface: i32) -> io::Result<()> {
    let every_protocol = u16::try_from(libc::ETH_P_ALL).expect("0x0003").to_be();
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).expect("17"),
        sll_protocol: every_protocol,
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("20 bytes");
    // SAFETY: the kernel reads `length` bytes of `address`, which outlives the call.
    let status = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Room for a burst while the reader is busy, in bytes.
const BUFFER_BYTES: usize = 16 << 20;
