//! What a lane has, for whoever holds it against what it should have.

use std::sync::Arc;

use tokio::sync::oneshot;

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
    /// # Errors
    /// [`LaneGone`] when the lane has ended.
    pub async fn inventory(&self) -> Result<Inventory, LaneGone> {
        let (answer, answered) = oneshot::channel();
        self.execute(Command::TakeInventory(answer)).await?;
        answered.await.map_err(|_| LaneGone)
    }
}
