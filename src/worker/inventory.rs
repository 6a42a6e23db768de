//! What a lane has, for whoever holds it against what it should have.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::command::Command;
use super::lane::{Lane, LaneGone};
use crate::forward::Tables;
use crate::id::{LinkSlot, PortSlot, Spi};

/// What a lane had at one moment between two turns.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// What it looks things up in.
    pub tables: Arc<Tables>,
    /// The ports whose queues it has open.
    pub ports: Vec<PortSlot>,
    /// The SAs that it receives on.
    pub inbound: Vec<(LinkSlot, Spi)>,
    /// The SAs that it sends on.
    pub outbound: Vec<(LinkSlot, Spi)>,
}

impl Lane {
    /// Has the lane say what it has.
    ///
    /// This is asked every few seconds, while packets flow. So the answer is looked for: a task that waits for
    /// it has to be woken by the lane, which is a system call (`futex`).
    ///
    /// # Errors
    /// [`LaneGone`] when the lane has ended.
    pub async fn inventory(&self) -> Result<Inventory, LaneGone> {
        let (answer, mut answered) = oneshot::channel();
        drop(self.hand_over(Command::TakeInventory(answer)).await?);
        loop {
            tokio::time::sleep(LOOK).await;
            match answered.try_recv() {
                Ok(inventory) => return Ok(inventory),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Closed) => return Err(LaneGone),
            }
        }
    }
}

const LOOK: Duration = Duration::from_millis(1);
