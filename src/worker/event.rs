//! What a lane tells control.
//!
//! The ring is bounded and a full one loses the event: what traffic causes is repeated while the
//! cause lasts, and control looks at ports and ages of keys by itself as well.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use tokio::sync::Notify;

use crate::datapath::Notice;
use crate::id::{LinkSlot, PortHold, PortSlot, Spi};

/// What a lane tells control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneEvent {
    /// An SA of the link crossed a soft limit, told again every 2^20 packets, or is at a hard one, told at
    /// most once a second.
    RekeyWanted {
        /// The link.
        link: LinkSlot,
        /// The SA; it may have been replaced meanwhile.
        spi: Spi,
    },
    /// Traffic waits for a key; told by each lane at most once a second for each link.
    NoKey {
        /// The link.
        link: LinkSlot,
    },
    /// A packet came for an SA that is not here; told by each lane at most once a second.
    UnknownSpi {
        /// The SPI in the packet.
        spi: Spi,
        /// Who sent it; not authenticated.
        from: SocketAddr,
    },
    /// The kernel has refused `UDP_SEGMENT`; told once for each socket.
    SegmentationGivenUp {
        /// Which.
        socket: DataSocket,
    },
    /// The TAP's device is gone, or the lane cannot use its queue of it, and has closed that.
    PortGone {
        /// The port's slot.
        slot: PortSlot,
        /// Whose it was then.
        hold: PortHold,
    },
}

/// A socket of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataSocket {
    /// Of encrypted networks.
    Esp,
    /// Of unencrypted networks.
    Vxlan,
}

impl From<Notice> for LaneEvent {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::RekeyWanted { link, spi } => Self::RekeyWanted { link, spi },
            Notice::NoKey { link } => Self::NoKey { link },
            Notice::UnknownSpi { spi, from } => Self::UnknownSpi { spi, from },
        }
    }
}

/// The ring of events of one lane.
#[derive(Debug)]
pub(super) struct EventRing {
    queue: ArrayQueue<LaneEvent>,
    arrived: Notify,
    is_closed: AtomicBool,
}

impl EventRing {
    pub(super) fn new() -> Self {
        Self { queue: ArrayQueue::new(CAPACITY), arrived: Notify::new(), is_closed: AtomicBool::new(false) }
    }

    /// Tells control, if the ring has room.
    pub(super) fn push(&self, event: LaneEvent) {
        if self.queue.push(event).is_ok() {
            self.arrived.notify_one();
        }
    }

    /// The next event; `None` when the lane has ended and all have been fetched.
    pub(super) async fn next(&self) -> Option<LaneEvent> {
        loop {
            let is_closed = self.is_closed.load(Ordering::SeqCst);
            let event = self.queue.pop();
            if event.is_some() || is_closed {
                return event;
            }
            self.arrived.notified().await;
        }
    }

    /// No event will follow.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.arrived.notify_one();
    }
}

const CAPACITY: usize = 4096;
