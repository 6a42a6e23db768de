//! The way of a frame through a lane, without I/O: from a container to the wire and back.
//!
//! ```text
//! TAP -> Egress::reserve/submit: policy -> table -> local TAP | cut, seal in place -> SendArena -> Outlet
//! ESP -> Ingress::receive_esp:   SPI -> open in place -> VXLAN -> policy -> Coalescer -> Outlet::deliver
//! ```
//! A container's kernel gives and takes super-frames of up to 64 KiB (`segment`, `coalesce`); policy
//! is decided once on such a frame's headers, which all of its segments share. Between nodes there
//! are frames of the network's MTU alone.
//!
//! Nothing here allocates, locks or waits per packet. Time is an argument, and what leaves goes
//! through the caller's [`Outlet`]: the worker's is sockets and TAPs, a test's is a list. Every
//! frame ends delivered, sent, answered, absorbed, or in a counter of [`LaneCounters`].

mod arena;
mod bucket;
mod coalesce;
mod counters;
mod egress;
mod flood;
mod gathered;
mod ingress;
mod limit;
mod reply;
mod segment;
mod shaper;
mod stage;
mod tunnel;

#[cfg(test)]
mod congestion_tests;
#[cfg(test)]
mod flows;
#[cfg(test)]
mod left_checksum_tests;
#[cfg(test)]
mod merging_tests;
#[cfg(test)]
mod pipeline_tests;
#[cfg(test)]
mod spoofing_tests;
#[cfg(test)]
mod super_frame_tests;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod too_big_tests;
#[cfg(test)]
mod vlan_tests;

use std::net::SocketAddr;

pub use arena::{Encapsulated, MAX_FRAME_LEN, MAX_MTU, Run, SendArena, SendToken};
pub use coalesce::{Arrived, Coalescer, Merging, Origin};
pub use counters::{LaneCounters, PeerCounters, PortCounters};
pub use egress::Egress;
pub use flood::{Flood, FloodLimit};
pub use ingress::Ingress;
pub use limit::{PortLimits, RateLimit};
pub use segment::SuperFrame;
pub use shaper::{Admission, Shaper};
pub use stage::Place;

use crate::boot_time::BootTime;
use crate::drop_reason::DropReason;
use crate::forward::Tables;
use crate::id::{LinkSlot, PortSlot, Spi};
use crate::sa::Sealed;
use crate::wire::vnet_hdr::VnetHeader;

/// What a batch of frames is judged by: looked up once, the same for all of them.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The snapshot in force.
    pub tables: &'a Tables,
    /// The lane's counters.
    pub counters: &'a LaneCounters,
    /// Now.
    pub now: BootTime,
}

/// Where frames and packets leave the datapath.
pub trait Outlet {
    /// Sends sealed packets. There is no way to hand it anything else.
    fn send_esp(&mut self, run: &Run<'_, Sealed>);
    /// Sends plain VXLAN packets of an unencrypted network.
    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>);
    /// Hands a frame, in pieces that follow each other, to a container, with what its kernel has
    /// to know of it. At most 64 pieces.
    fn deliver(&mut self, port: PortSlot, header: &VnetHeader, pieces: &[&[u8]]) -> Delivery;
    /// What is to be handed to it as super-frames.
    fn merging(&self, port: PortSlot) -> Merging;
    /// Tells the control plane.
    fn notice(&mut self, notice: Notice);
}

/// What became of a frame for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a frame is counted where it ends"]
pub enum Delivery {
    /// The container's kernel has it.
    Taken,
    /// It waits for its turn; the outlet counts it when it has come.
    Waits,
    /// It was dropped.
    Dropped(DropReason),
}

/// What the control plane has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An SA of the link crossed a soft limit, told again every 2^20 packets, or is at a hard one, told at
    /// most once a second.
    RekeyWanted {
        /// The link.
        link: LinkSlot,
        /// The SA.
        spi: Spi,
    },
    /// Traffic waits for a key; told at most once a second for each link.
    NoKey {
        /// The link.
        link: LinkSlot,
    },
    /// A packet came for an SA that is not here; told at most once a second.
    UnknownSpi {
        /// The SPI in the packet.
        spi: Spi,
        /// Who sent it; not authenticated.
        from: SocketAddr,
    },
}

/// How often a notice that traffic causes is repeated at most.
const NOTICE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// Lets one notice through per [`NOTICE_INTERVAL`].
#[derive(Debug, Clone, Copy, Default)]
struct NoticeLimit(Option<BootTime>);

impl NoticeLimit {
    fn permits(&mut self, now: BootTime) -> bool {
        let is_due = self.0.is_none_or(|last| now.since(last) >= NOTICE_INTERVAL);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}
