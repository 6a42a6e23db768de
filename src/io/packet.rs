//! Raw Ethernet on an interface (packet(7)): what a capture sees and what a hostile host sends.
//!
//! For the laboratory, the demo and tests; the data plane never uses it.

#![expect(unsafe_code, reason = "sockaddr_ll and PACKET_AUXDATA have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, Socket, Type};

use super::udp::split_control;
use crate::wire::ethernet;

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
        super::socket_option::set(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
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
    /// is none now. A VLAN tag is where it was on the wire, though the kernel keeps it elsewhere.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface has been set down.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let mut control = [0; CONTROL_BYTES];
        let mut piece = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: every field of `msghdr` may be zero: null pointers with lengths of 0.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len() as _;
        // SAFETY: `message` points to one piece and a control buffer with the lengths given, alive and
        // borrowed by nothing else.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            let nothing_there = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
            return if nothing_there { Ok(None) } else { Err(error) };
        };
        let control_length = message.msg_controllen as _;
        let Some(tag) = tag(control.get(..control_length).unwrap_or_default()) else {
            return Ok(Some(length));
        };
        let tagged_length = (length + tag.len()).min(frame.len());
        let Some(behind) = frame[..tagged_length].get_mut(ethernet::ADDRESSES_LEN..) else {
            return Ok(Some(length));
        };
        let room = tag.len().min(behind.len());
        behind.copy_within(..behind.len() - room, room);
        behind[..room].copy_from_slice(&tag[..room]);
        Ok(Some(tagged_length))
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

/// The tag that a control message names (`struct tpacket_auxdata`), as it stands in a frame.
fn tag(control: &[u8]) -> Option<[u8; ethernet::TAG_LEN]> {
    let (level, kind, value, _) = split_control(control)?;
    if (level, kind) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    let status = u32::from_ne_bytes(*value.first_chunk()?);
    let &[.., a, b, c, d] = value.first_chunk::<{ size_of::<libc::tpacket_auxdata>() }>()?;
    let [[a, b], [c, d]] = [[c, d], [a, b]].map(|field| u16::from_ne_bytes(field).to_be_bytes());
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some([a, b, c, d])
}

/// One message of `tpacket_auxdata` takes 40.
const CONTROL_BYTES: usize = 64;

/// Room for a burst while the reader is busy, in bytes.
const BUFFER_BYTES: usize = 16 << 20;
