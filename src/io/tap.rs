//! TAP devices: the interface of a container is one (tun(4), `drivers/net/tun.c`).
//!
//! One [`Tap`] is one queue of a device. The device is made or found in the network namespace of
//! the calling thread, and a move of the device to another namespace leaves the queue working.
//! What this program can do for the kernel is announced to it ([`TapOffloads`]): checksums may be
//! left partial then, and frames be super-frames of up to 64 KiB, as the [`VnetHeader`] of each
//! says. A kernel that refuses gives whole frames of at most the device's MTU; the calls are the same.
//!
//! Not here: addresses, MTU, namespaces ([`super::netlink`], [`super::netns`]). The agent makes the
//! devices, a lane reads and writes them.
//!
//! An open queue holds a reference to the namespace that the thread was in when it opened
//! `/dev/net/tun` (`tun_chr_open` allocates its socket there), not to the one that the device is in.
//! So a device made in the agent's namespace and moved into a container's dies with that container;
//! one that was opened again *inside* the container's namespace (after a restart of the agent) keeps
//! the namespace alive until the queue is closed: the agent has to watch the namespace's path.

#![expect(unsafe_code, reason = "the ioctls of /dev/net/tun have no safe wrapper")]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::id::IfName;
use crate::wire::vnet_hdr::{self, VnetHeader};

/// One queue of a TAP device.
///
/// The device lasts while a queue of it is open, or until it is deleted if it is persistent.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    offloads: TapOffloads,
}

impl Tap {
    /// Makes a device with this name, with this as its first queue. It is down, has a random MAC
    /// and goes with its last queue.
    ///
    /// # Errors
    /// [`TapError::Taken`] when the namespace has an interface of this name.
    pub fn create(name: &IfName) -> Result<Self, TapError> {
        Self::attach(name, libc::IFF_TUN_EXCL)
    }

    /// Adds a queue to the device with this name: of a persistent one after a restart, or one more
    /// of an open one. Frames are spread over the open queues by flow.
    ///
    /// # Errors
    /// [`TapError::NoSuchInterface`] when there is none; [`TapError::NotSuchTap`] when it is no TAP
    /// of this program's kind.
    pub fn open(name: &IfName) -> Result<Self, TapError> {
        // TUNSETIFF makes what it does not find, so look first, and see that it found the same.
        let wanted = interface_index(name)?;
        let tap = Self::attach(name, 0)?;
        if interface_index(name)? == wanted {
            Ok(tap)
        } else {
            Err(TapError::NoSuchInterface { name: name.clone() })
        }
    }

    /// Whether the device stays when its last queue is closed.
    ///
    /// # Errors
    /// [`TapError::Ioctl`] when the device is gone.
    pub fn set_persistent(&self, persistent: bool) -> Result<(), TapError> {
        // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
        let status =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) };
        check(status).map_err(|source| TapError::Ioctl { ioctl: "TUNSETPERSIST", source })
    }

    /// The device's name where it is now.
    ///
    /// # Errors
    /// [`TapError::Ioctl`] when the device is gone, or has a name that this program refuses.
    pub fn name(&self) -> Result<IfName, TapError> {
        let request = self.interface().map_err(|source| TapError::Ioctl { ioctl: "TUNGETIFF", source })?;
        let bytes = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).parse().map_err(|refused| TapError::Ioctl {
            ioctl: "TUNGETIFF",
            source: io::Error::new(io::ErrorKind::InvalidData, refused),
        })
    }

    /// Whether the device was deleted, or went with its namespace. Reading it says so too; the kernel
    /// tells nobody who does not wait for frames (`tun_detach_all` in drivers/net/tun.c).
    pub fn is_gone(&self) -> bool {
        self.interface().is_err_and(|error| is_gone(&error))
    }

    /// What the kernel leaves to this program.
    pub fn offloads(&self) -> TapOffloads {
        self.offloads
    }

    /// Has the kernel leave this much and no more to this program; it holds for all queues of the
    /// device.
    ///
    /// # Errors
    /// [`TapError::Ioctl`] when this kernel cannot leave so much, or the device is gone.
    pub fn set_offloads(&mut self, offloads: TapOffloads) -> Result<(), TapError> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        let status = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, offloads.flags()) };
        check(status).map_err(|source| TapError::Ioctl { ioctl: "TUNSETOFFLOAD", source })?;
        self.offloads = offloads;
        Ok(())
    }

    /// As [`Self::set_offloads`], with what `wanted` and the kernel both have.
    ///
    /// # Errors
    /// As [`Self::set_offloads`].
    pub fn limit_offloads(&mut self, wanted: TapOffloads) -> Result<(), TapError> {
        let TapOffloads { checksum, tcp, udp } = self.offloads;
        let limited = TapOffloads {
            checksum: checksum && wanted.checksum,
            tcp: tcp && wanted.tcp,
            udp: udp && wanted.udp,
        };
        if limited == self.offloads { Ok(()) } else { self.set_offloads(limited) }
    }

    /// Reads one frame that the container sent, into `head` and what is longer into `rest`; `None`
    /// when there is none now.
    ///
    /// The kernel cuts a frame that is longer than both without a word, so give it 64 KiB plus 18
    /// bytes (Ethernet header and one VLAN tag); without offloads the MTU plus 18 will do.
    ///
    /// # Errors
    /// The device is gone if [`is_gone`] says so of the error.
    pub fn read_frame(&self, head: &mut [u8], rest: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        let mut header = [0u8; vnet_hdr::HEADER_LEN];
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(head), IoSliceMut::new(rest)];
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        match rustix::io::readv(&self.fd, &mut parts) {
            Ok(length) => {
                let frame_len = length.checked_sub(vnet_hdr::HEADER_LEN);
                let frame_len = frame_len.ok_or_else(|| invalid("the TAP gave less than a vnet header"))?;
                let header = VnetHeader::parse(&header)
                    .map_err(|_| invalid("the TAP gave a kind of super-frame that was not asked for"))?;
                Ok(Some((header, frame_len)))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Delivers one frame, in at most [`MAX_PIECES`] pieces that follow each other, to the
    /// container; false when the kernel has no room for it or the container has set the interface
    /// down, and the frame is lost.
    ///
    /// # Errors
    /// The device is gone if [`is_gone`] says so of the error; `InvalidInput` for a frame without
    /// a whole Ethernet header, or one that the header contradicts.
    ///
    /// # Panics
    /// When there are more pieces.
    pub fn write_frame(&self, header: &VnetHeader, pieces: &[&[u8]]) -> io::Result<bool> {
        let header = header.to_bytes();
        let mut parts = [IoSlice::new(&[]); 1 + MAX_PIECES];
        parts[0] = IoSlice::new(&header);
        for (part, piece) in parts[1..=pieces.len()].iter_mut().zip(pieces) {
            *part = IoSlice::new(piece);
        }
        match rustix::io::writev(&self.fd, &parts[..=pieces.len()]) {
            Ok(_) => Ok(true),
            // tun_get_user gives EIO for an interface that is down.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM | Errno::IO) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds out whether this process can use `/dev/net/tun` at all, and makes nothing.
    ///
    /// # Errors
    /// [`TapError::NoDriver`] or [`TapError::DriverForbidden`].
    pub fn check_driver() -> Result<(), TapError> {
        open_driver().map(drop)
    }

    fn interface(&self) -> io::Result<InterfaceRequest> {
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, _unused: [0; 22] };
        // SAFETY: `request` has the size and layout of `struct ifreq`, which TUNGETIFF fills.
        let status = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        check(status).map(|()| request)
    }

    fn attach(name: &IfName, extra_flags: libc::c_int) -> Result<Self, TapError> {
        let fd = open_driver()?;
        let mut request = InterfaceRequest::new(name, FLAGS | extra_flags);
        // SAFETY: `request` has the size and layout of `struct ifreq`, which TUNSETIFF reads and fills.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        check(status).map_err(|source| TapError::attaching(name, source))?;

        let header_len = libc::c_int::try_from(vnet_hdr::HEADER_LEN).expect("it is 12");
        // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_len) };
        check(status).map_err(|source| TapError::Ioctl { ioctl: "TUNSETVNETHDRSZ", source })?;

        let mut tap = Self { fd, offloads: TapOffloads::NONE };
        // EINVAL for all when one is unknown (set_offload in drivers/net/tun.c): USO came with Linux 6.2.
        tap.set_offloads(TapOffloads::ALL)
            .or_else(|_| tap.set_offloads(TapOffloads { udp: false, ..TapOffloads::ALL }))
            .or_else(|_| tap.set_offloads(TapOffloads { checksum: true, ..TapOffloads::NONE }))
            .or_else(|_| tap.set_offloads(TapOffloads::NONE))?;
        Ok(tap)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a kernel leaves to the reader of a TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOffloads {
    /// Checksums of TCP and UDP; without it, neither of the others.
    pub checksum: bool,
    /// Segmentation of TCP.
    pub tcp: bool,
    /// Segmentation of UDP (`UDP_SEGMENT`).
    pub udp: bool,
}

impl TapOffloads {
    /// Everything that this program can do.
    pub const ALL: Self = Self { checksum: true, tcp: true, udp: true };
    /// Nothing: every frame is as it would be on a wire.
    pub const NONE: Self = Self { checksum: false, tcp: false, udp: false };

    fn flags(self) -> libc::c_ulong {
        let tcp = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        [(self.checksum, libc::TUN_F_CSUM), (self.tcp, tcp), (self.udp, udp)]
            .into_iter()
            .filter(|(is_wanted, _)| *is_wanted)
            .fold(0, |flags, (_, more)| flags | libc::c_ulong::from(more))
    }
}

/// True for what [`Tap::read_frame`] and [`Tap::write_frame`] give once the device was deleted, or
/// went with its namespace.
pub fn is_gone(error: &io::Error) -> bool {
    // __tun_get finds no device behind the queue. (EFAULT is for those who wait inside the read.)
    error.raw_os_error() == Some(libc::EBADFD)
}

/// True for what [`Tap::read_frame`] gives for a frame that it cannot make out; it is lost, and the
/// next one may be read.
pub fn is_unreadable_frame(error: &io::Error) -> bool {
    // tun_put_user gives EINVAL for a kind of super-frame that it cannot describe.
    error.kind() == io::ErrorKind::InvalidData || error.raw_os_error() == Some(libc::EINVAL)
}

/// Why a TAP could not be made, found or changed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no TUN/TAP driver, or this mount namespace does not show it.
    #[error(
        "{DEVICE} cannot be opened ({source}): load the driver with `modprobe tun`, \
         or pass the device into this container"
    )]
    NoDriver {
        /// What open(2) said.
        source: io::Error,
    },
    /// The device node is there, but not for this user.
    #[error("{DEVICE} cannot be opened ({source}): run as root, or give this user access to it")]
    DriverForbidden {
        /// What open(2) said.
        source: io::Error,
    },
    /// The caller is not root in the network namespace.
    #[error("TUNSETIFF refuses {name}: CAP_NET_ADMIN in this network namespace is needed")]
    NotPermitted {
        /// The interface.
        name: IfName,
    },
    /// The name is in use.
    #[error("TUNSETIFF refuses {name}: an interface of this name exists, or another process has it open")]
    Taken {
        /// The interface.
        name: IfName,
    },
    /// There is no interface of this name.
    #[error("there is no interface {name} in this network namespace")]
    NoSuchInterface {
        /// The interface.
        name: IfName,
    },
    /// The interface is something else, or was made with other flags.
    #[error("TUNSETIFF refuses {name}: it exists, but is not a multi-queue TAP as this program makes them")]
    NotSuchTap {
        /// The interface.
        name: IfName,
    },
    /// Anything else.
    #[error("{ioctl}: {source}")]
    Ioctl {
        /// The ioctl that failed.
        ioctl: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TapError {
    fn opening(error: Errno) -> Self {
        let source = io::Error::from(error);
        if matches!(error, Errno::ACCESS | Errno::PERM) {
            Self::DriverForbidden { source }
        } else {
            Self::NoDriver { source }
        }
    }

    fn attaching(name: &IfName, source: io::Error) -> Self {
        let name = name.clone();
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted { name },
            Some(libc::EBUSY) => Self::Taken { name },
            Some(libc::EINVAL) => Self::NotSuchTap { name },
            _ => Self::Ioctl { ioctl: "TUNSETIFF", source },
        }
    }
}

/// `struct ifreq` as the TUN ioctls use it: the name, the flags, 22 bytes of the union unused.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    _unused: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: &IfName, flags: libc::c_int) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags: wrap_flags(flags), _unused: [0; 22] };
        let name = name.as_str().as_bytes();
        request.name[..name.len()].copy_from_slice(name);
        request
    }
}

#[expect(clippy::cast_possible_truncation, reason = "ifr_flags is a short that holds 16 flag bits")]
const fn wrap_flags(flags: libc::c_int) -> libc::c_short {
    flags as libc::c_short
}

fn open_driver() -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(TapError::opening)
}

fn interface_index(name: &IfName) -> Result<u32, TapError> {
    let failed = |error: Errno| TapError::Ioctl { ioctl: "SIOCGIFINDEX", source: error.into() };
    let family = rustix::net::AddressFamily::INET;
    let socket = rustix::net::socket(family, rustix::net::SocketType::DGRAM, None).map_err(failed)?;
    match rustix::net::netdevice::name_to_index(&socket, name.as_str()) {
        Ok(index) => Ok(index),
        Err(Errno::NODEV) => Err(TapError::NoSuchInterface { name: name.clone() }),
        Err(error) => Err(failed(error)),
    }
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const DEVICE: &str = "/dev/net/tun";

const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// The most pieces of which a frame may consist: as many as segments can be merged.
pub const MAX_PIECES: usize = 64;

// `struct ifreq` is 40 bytes where pointers have 8, and a copy of 40 is asked for.
const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());
