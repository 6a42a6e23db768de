//! Starting, commanding, watching and stopping the thread of a lane.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use super::command::{Command, CommandRing};
use super::event::{EventRing, LaneEvent};
use super::precedence::Precedence;
use super::turn::Turns;
use super::wish::Wish;
use crate::datapath::{Flood, LaneCounters};
use crate::forward::Tables;
use crate::id::LaneId;
use crate::io::steer::LaneSockets;
use crate::io::udp::{OffloadWatch, Offloads};
use crate::wire::traffic_class::Dscp;
use crate::wire::vxlan::LeftChecksums;

/// What a lane is made of.
#[derive(Debug)]
pub struct LaneConfig {
    /// Its number; the low bits of the SPIs that it receives on.
    pub id: LaneId,
    /// Where ESP leaves and arrives.
    pub esp: LaneSockets,
    /// Where plain VXLAN leaves and arrives. A lane that has none drops the frames of unencrypted
    /// networks as `SendFailed`.
    pub vxlan: Option<LaneSockets>,
    /// Where the agent publishes tables.
    pub tables: Arc<ArcSwap<Tables>>,
    /// Broadcast and multicast that one container may cause by all lanes together.
    pub flood: Flood,
    /// The longest that it looks for more before it sleeps; zero for never.
    pub busy_poll: Duration,
    /// Who keeps the processors awake while it is woken often; nobody where that does not pay.
    pub vigil: Option<Wish>,
    /// What is asked for more of the processors while streams are carried; nothing where there is none.
    pub precedence: Option<Precedence>,
    /// Whether the underlay sees the DSCP of what containers send.
    pub dscp: Dscp,
    /// Whether checksums that containers leave are left to the receivers' kernels.
    pub checksums: LeftChecksums,
}

/// Starts a lane's thread.
///
/// # Errors
/// When the process has no descriptor or thread left.
pub fn spawn(config: LaneConfig) -> io::Result<Lane> {
    let shared = Arc::new(Shared::new()?);
    let id = config.id;
    let offloads = Mutex::new(watches(&config.esp, config.vxlan.as_ref()));
    let turns = Turns::new(config, shared.clone())?;
    let thread = std::thread::Builder::new().name(format!("lane-{id}")).spawn(move || turns.run())?;
    Ok(Lane { id, shared, offloads, thread: Some(thread) })
}

/// A running lane. Dropping it stops the thread, closes its TAP queues and forgets its keys.
#[derive(Debug)]
pub struct Lane {
    id: LaneId,
    shared: Arc<Shared>,
    /// Of its sockets for ESP, and of those for plain VXLAN.
    offloads: Mutex<(OffloadWatch, Option<OffloadWatch>)>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    /// Its number.
    pub fn id(&self) -> LaneId {
        self.id
    }

    /// Has the lane carry out a command; resolves once it has. A command whose future is dropped
    /// may be carried out all the same.
    ///
    /// # Errors
    /// [`LaneGone`] when the lane has ended.
    pub async fn execute(&self, command: Command) -> Result<(), LaneGone> {
        self.shared.commands.execute(command).await
    }

    /// Hands a command over, and does not wait until the lane has carried it out.
    pub(super) async fn hand_over(&self, command: Command) -> Result<oneshot::Receiver<()>, LaneGone> {
        self.shared.commands.hand_over(command).await
    }

    /// The next thing that the lane has to tell; `None` once it has ended. For one reader.
    pub async fn next_event(&self) -> Option<LaneEvent> {
        self.shared.events.next().await
    }

    /// What the lane has counted so far; it goes on counting.
    pub fn counters(&self) -> &Arc<LaneCounters> {
        &self.shared.counters
    }

    /// What the kernel does now for its sockets of encrypted networks, and for those of unencrypted ones.
    pub fn offloads(&self) -> (Offloads, Option<Offloads>) {
        let (esp, vxlan) = &*self.offloads.lock().unwrap_or_else(PoisonError::into_inner);
        (esp.now(), vxlan.as_ref().map(OffloadWatch::now))
    }

    /// Has the lane send and receive by other sockets from now on; those before are closed. Without new ones for ESP,
    /// those stay.
    ///
    /// # Errors
    /// [`LaneGone`] when the lane has ended.
    pub async fn rebind(&self, esp: Option<LaneSockets>, vxlan: Option<LaneSockets>) -> Result<(), LaneGone> {
        let watched = esp.as_ref().map(LaneSockets::offload_watch);
        let vxlan_watched = vxlan.as_ref().map(LaneSockets::offload_watch);
        self.execute(Command::Rebind { esp, vxlan }).await?;
        let mut offloads = self.offloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = watched {
            offloads.0 = watched;
        }
        offloads.1 = vxlan_watched;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn end_thread_for_test(&self) {
        self.shared.commands.stop();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            std::thread::yield_now();
        }
    }

    /// Stops the thread and waits for its end, at most one turn.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.commands.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the lane has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

fn watches(esp: &LaneSockets, vxlan: Option<&LaneSockets>) -> (OffloadWatch, Option<OffloadWatch>) {
    (esp.offload_watch(), vxlan.map(LaneSockets::offload_watch))
}

/// The lane has ended, by command or by a failure of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lane has ended; restart the agent")]
pub struct LaneGone;

/// What the thread and its owner share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) commands: CommandRing,
    pub(super) events: EventRing,
    pub(super) counters: Arc<LaneCounters>,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        let (commands, events) = (CommandRing::new()?, EventRing::new());
        Ok(Self { commands, events, counters: Arc::new(LaneCounters::new()) })
    }

    /// Tells everybody who waits that the lane has ended.
    pub(super) fn close(&self) {
        self.commands.close();
        self.events.close();
    }
}
