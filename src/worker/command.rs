//! What control tells a lane, and the ring that carries it.
//!
//! A permit travels with every command, so that no more are in the ring than fit. A lane that has
//! ended closes the ring: whoever waits for an acknowledgement is told, then and later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::inventory::Inventory;
use super::lane::LaneGone;
use crate::boot_time::BootTime;
use crate::datapath::PortLimits;
use crate::id::{LinkSlot, PortHold, PortSlot, Spi, VtepSlot};
use crate::io::eventfd::EventFd;
use crate::io::steer::LaneSockets;
use crate::io::tap::Tap;
use crate::sa::{InboundSa, OutboundSa};

/// What control tells a lane.
#[derive(Debug)]
pub enum Command {
    /// Serve a container's TAP; its counters begin at zero.
    AddPort {
        /// Its slot in the tables.
        slot: PortSlot,
        /// What the lane calls it when it tells of it.
        hold: PortHold,
        /// The lane's queue of it.
        tap: Tap,
        /// What may pass there; lanes share it.
        limits: PortLimits,
    },
    /// Serve it no longer and close the queue.
    RemovePort(PortSlot),
    /// Open what comes for this SA, as from the link.
    InstallInbound {
        /// The link.
        link: LinkSlot,
        /// The SA.
        sa: Box<InboundSa>,
    },
    /// Send to the link with this SA, and with the previous one no more.
    InstallOutbound {
        /// The link.
        link: LinkSlot,
        /// The SA.
        sa: Box<OutboundSa>,
    },
    /// Let an inbound SA live until `at` and no longer.
    RetireInbound {
        /// Its SPI.
        spi: Spi,
        /// Its end.
        at: BootTime,
    },
    /// Forget all SAs of the link, now.
    DropLink(LinkSlot),
    /// The same, and its slot may soon be another's: its counters begin at zero.
    RemoveLink(LinkSlot),
    /// The VTEP's slot may soon be another's: its counters begin at zero.
    RemoveVtep(VtepSlot),
    /// Send and receive by other sockets, and close those before.
    Rebind {
        /// For ESP, if other than before.
        esp: Option<LaneSockets>,
        /// For plain VXLAN.
        vxlan: Option<LaneSockets>,
    },
    /// Say what there is: [`super::Lane::inventory`].
    TakeInventory(oneshot::Sender<Inventory>),
    /// Count what the kernel has dropped before the lane's sockets since the last time.
    CountOverflow,
    /// Do nothing but acknowledge: tables published before are in use, packets judged by older
    /// ones have left.
    Sync,
}

/// The ring of commands of one lane.
#[derive(Debug)]
pub(super) struct CommandRing {
    queue: ArrayQueue<Envelope>,
    permits: Arc<Semaphore>,
    wake: EventFd,
    is_closed: AtomicBool,
    is_stopping: AtomicBool,
}

impl CommandRing {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            queue: ArrayQueue::new(CAPACITY),
            permits: Arc::new(Semaphore::new(CAPACITY)),
            wake: EventFd::new()?,
            is_closed: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
        })
    }

    /// Hands a command over and waits until the lane has carried it out.
    pub(super) async fn execute(&self, command: Command) -> Result<(), LaneGone> {
        self.hand_over(command).await?.await.map_err(|_| LaneGone)
    }

    /// Hands a command over; what comes back tells when the lane has carried it out.
    pub(super) async fn hand_over(&self, command: Command) -> Result<oneshot::Receiver<()>, LaneGone> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| LaneGone)?;
        let (acknowledge, acknowledged) = oneshot::channel();
        let envelope = Envelope { command, acknowledge, _permit: permit };
        self.queue.push(envelope).map_err(|_| LaneGone)?;
        self.wake.wake();
        // The lane may have closed the ring between our permit and our push.
        if self.is_closed.load(Ordering::SeqCst) {
            self.discard();
        }
        Ok(acknowledged)
    }

    /// The next command, for the lane.
    pub(super) fn pop(&self) -> Option<Envelope> {
        self.queue.pop()
    }

    /// What the lane sleeps on.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Asks the lane to end after its turn.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.wake.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Takes no command any more and tells those who wait.
    pub(super) fn close(&self) {
        self.permits.close();
        self.is_closed.store(true, Ordering::SeqCst);
        self.discard();
    }

    fn discard(&self) {
        while self.queue.pop().is_some() {}
    }
}

/// A command under way.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) command: Command,
    pub(super) acknowledge: oneshot::Sender<()>,
    _permit: OwnedSemaphorePermit,
}

impl Envelope {
    /// The command, and what tells its sender that it was carried out.
    pub(super) fn open(self) -> (Command, oneshot::Sender<()>) {
        (self.command, self.acknowledge)
    }
}

const CAPACITY: usize = 256;
