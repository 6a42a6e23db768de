//! A container's interface, from nothing to ready: the TAP, its move into the container's network
//! namespace, its addresses and routes, as one step that leaves nothing behind when it fails.
//!
//! Which addresses and what MTU is the agent's business; frames are the lane's.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;

use super::netlink::{Handover, Netlink, NetlinkError};
use super::netns::{NetNs, NetNsError};
use super::tap::{Tap, TapError};
use super::udp::MAX_RUN_BYTES;
use crate::id::{IfName, LaneCount, MacAddr};

/// What an interface is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name in the container.
    pub name: IfName,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses with the prefixes of their subnets.
    pub addresses: Vec<IpNet>,
    /// Default routes, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// What waits in it for this program.
    pub queue: TapQueue,
    /// A remark for whoever looks at it with `ip link`.
    pub alias: String,
}

impl ContainerPort {
    /// Makes the interface in `container`, ready for traffic when this returns, and gives its queues,
    /// one for each lane.
    ///
    /// The device is made in the calling thread's namespace and moved, with all queues open already,
    /// so none of them keeps the container's namespace alive, and each tells by
    /// [`super::tap::is_gone`] when it has ended. It is persistent: a process that dies leaves the
    /// container its interface.
    ///
    /// # Errors
    /// [`PortError::NameTaken`] when the container has an interface of this name; in every case
    /// nothing is left in either namespace.
    pub fn create(&self, container: &NetNs, lanes: LaneCount) -> Result<Vec<Tap>, PortError> {
        // Until it is persistent, the device goes with these descriptors.
        let queues = self.make(container, lanes)?;
        Netlink::within(container, |netlink| {
            let link = netlink.link(&self.name)?;
            netlink.configure(&link, &self.addresses, &self.gateways)
        })?;
        persistent(queues)
    }

    /// As [`Self::create`], but where this program is, down, without addresses, and without a queue that is open: for a
    /// container runtime that moves the interface itself, and gives it its addresses.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_here(&self) -> Result<(), PortError> {
        persistent(self.make(&NetNs::current()?, LaneCount::ONE)?).map(drop)
    }

    fn make(&self, home: &NetNs, lanes: LaneCount) -> Result<Vec<Tap>, PortError> {
        let tap = create_nameless()?;
        let name = tap.name()?;
        let others = lanes.ids().skip(1).map(|_| Tap::open(&name)).collect::<Result<Vec<_>, _>>()?;
        self.hand_over(&name, home)?;
        Ok(std::iter::once(tap).chain(others).collect())
    }

    /// Opens queues of the interface again, one for each lane, after the process that made it has
    /// died; it may have had more lanes or fewer.
    ///
    /// Unlike [`Self::create`]'s, these queues keep the namespace alive (see [`super::tap`]): watch
    /// [`NetNs::is_at`] and close them when the container has gone.
    ///
    /// # Errors
    /// [`TapError::NoSuchInterface`] when the container or somebody else has removed it.
    pub fn reopen(name: &IfName, container: &NetNs, lanes: LaneCount) -> Result<Vec<Tap>, PortError> {
        Ok(container.run_in(|| lanes.ids().map(|_| Tap::open(name)).collect::<Result<Vec<_>, _>>())??)
    }

    /// Removes the interface; fine if it is gone already.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(name: &IfName, container: &NetNs) -> Result<(), PortError> {
        let removed = Netlink::within(container, |netlink| netlink.delete(&netlink.link(name)?));
        match removed {
            Ok(()) | Err(NetlinkError::NoSuchInterface { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// [`Self::remove`] by the namespace's path; fine if that is gone as well.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove_at(name: &IfName, container: &Path) -> Result<(), PortError> {
        match NetNs::open(container) {
            Ok(container) => Self::remove(name, &container),
            Err(NetNsError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn hand_over(&self, temporary: &IfName, container: &NetNs) -> Result<(), PortError> {
        let here = NetNs::current()?;
        let moved = Netlink::within(&here, |netlink| {
            let link = netlink.link(temporary)?;
            let dress = Handover {
                name: &self.name,
                mac: self.mac,
                mtu: self.mtu,
                gso_max_size: Some(self.queue.gso_max_size),
                queue_frames: self.queue.frames,
                alias: &self.alias,
            };
            netlink.hand_over(&link, container, &dress)
        });
        match moved {
            Err(refused) if refused.is_exists() => Err(PortError::NameTaken { name: self.name.clone() }),
            result => Ok(result?),
        }
    }
}

/// What a container's kernel may have waiting for this program, in each queue of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapQueue {
    /// Bytes of the longest super-frame.
    pub gso_max_size: u32,
    /// Frames and super-frames; the kernel drops what is more (`tx_dropped` of the interface). As many
    /// as the kernel likes (1000) if absent.
    pub frames: Option<u32>,
}

impl Default for TapQueue {
    fn default() -> Self {
        Self { gso_max_size: GSO_MAX_SIZE, frames: None }
    }
}

/// Why a container's interface could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] NetNsError),
    /// The configuration.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The container has one of this name.
    #[error("the container has an interface {name} already: choose another with --ifname")]
    NameTaken {
        /// The name.
        name: IfName,
    },
}

fn persistent(queues: Vec<Tap>) -> Result<Vec<Tap>, PortError> {
    // It is the device that is persistent.
    if let Some(first) = queues.first() {
        first.set_persistent(true)?;
    }
    Ok(queues)
}

/// A TAP under a name that nobody else uses, for the moment before its move.
fn create_nameless() -> Result<Tap, TapError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % 0x1_0000;
        let name = format!("ovl{:x}-{number:x}", std::process::id());
        let name: IfName = name.parse().expect("at most 15 letters, digits and a dash");
        match Tap::create(&name) {
            // Another process with this id, in another PID namespace.
            Err(TapError::Taken { .. }) => {}
            result => return result,
        }
    }
}

/// So that a super-frame, cut and sealed, is one run of `UDP_SEGMENT`: at an MTU of 1408 it is 44
/// packets of 1,472 bytes, and one more would not fit.
const GSO_MAX_SIZE: u32 = 60_000;

/// TCP keeps `MAX_TCP_HEADER` and a byte of the size to itself (`sk_dst_gso_max_size` in net/core/sock.c);
/// its segments have 1,356 bytes of payload with timestamps, and 1,336 over IPv6.
const _: () = {
    let payload = GSO_MAX_SIZE as usize - 321;
    assert!(payload / 1356 == 44 && payload / 1336 == 44);
    assert!(44 * 1472 <= MAX_RUN_BYTES && 45 * 1472 > MAX_RUN_BYTES);
};
