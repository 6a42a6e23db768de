//! The tasks of all peers: begun and ended as the view says, told what happens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinError, JoinSet};

use super::announcement;
use super::keys::Keys;
use super::log_limit::LogLimit;
use super::peer::{Peer, PeerEvent};
use super::placement::PeerSpec;
use super::rekey::Wished;
use crate::control::key_channel::KeyChannel;
use crate::id::NodeId;
use crate::io::clock::boot_time;
use crate::worker::{LaneEvent, LaneGone};

/// Keeps a task for every peer that keys are needed with; ends when a lane has.
pub(crate) async fn keep(
    keys: Arc<Keys>,
    mut channels: mpsc::Receiver<KeyChannel>,
    mut events: mpsc::Receiver<LaneEvent>,
    mut wished: mpsc::Receiver<Wished>,
) -> Result<Infallible, LaneGone> {
    let (mut wanted, mut underlay) = (keys.dataplane.peers(), keys.underlay.clone());
    let mut at = underlay.borrow().at;
    let mut peers = Peers {
        keys,
        tasks: JoinSet::new(),
        running: HashMap::new(),
        died: BTreeSet::new(),
        strangers: JoinSet::new(),
        unwanted: LogLimit::default(),
    };
    loop {
        let specs = wanted.borrow_and_update().clone();
        peers.follow(&specs);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Err(LaneGone) },
            Some(channel) = channels.recv() => peers.connected(channel),
            Some(event) = events.recv() => peers.happened(event, &specs).await,
            Some((node, wishes)) = wished.recv() => peers.tell(node, PeerEvent::Wished(wishes)),
            Some(stranger) = peers.strangers.join_next() => peers.heard_out(stranger),
            Ok(()) = underlay.changed() => {
                let now = underlay.borrow_and_update().at;
                if std::mem::replace(&mut at, now) != now {
                    peers.running.keys().for_each(|node| peers.tell(*node, PeerEvent::Moved));
                }
            }
            Some(ended) = peers.tasks.join_next_with_id() => peers.ended(ended)?,
        }
    }
}

struct Peers {
    keys: Arc<Keys>,
    tasks: JoinSet<Result<(), LaneGone>>,
    running: HashMap<NodeId, Running>,
    /// Peers whose task died, and has not been begun again.
    died: BTreeSet<NodeId>,
    /// Channels that are for no task, on which the other side may say where it is.
    strangers: JoinSet<Option<NodeId>>,
    unwanted: LogLimit,
}

struct Running {
    task: task::Id,
    spec: watch::Sender<Option<PeerSpec>>,
    events: mpsc::Sender<PeerEvent>,
}

impl Peers {
    fn follow(&mut self, specs: &BTreeMap<NodeId, PeerSpec>) {
        for (node, running) in &self.running {
            let spec = specs.get(node);
            running.spec.send_if_modified(|current| {
                let changed = current.as_ref() != spec;
                if changed {
                    *current = spec.cloned();
                }
                changed
            });
        }
        for (node, spec) in specs {
            if !self.running.contains_key(node) {
                let (sender, receiver) = watch::channel(Some(spec.clone()));
                let (events, happened) = mpsc::channel(EVENTS);
                let keys = Arc::clone(&self.keys);
                let pause = if self.died.remove(node) { RESTART_PAUSE } else { Duration::ZERO };
                let task = self.tasks.spawn(async move {
                    tokio::time::sleep(pause).await;
                    Peer::run(keys, receiver, happened).await
                });
                self.running.insert(*node, Running { task: task.id(), spec: sender, events });
            }
        }
    }

    /// A task has ended; it is begun again by the next turn if its peer is wanted.
    fn ended(&mut self, ended: Result<(task::Id, Result<(), LaneGone>), JoinError>) -> Result<(), LaneGone> {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let node = self.running.iter().find(|(_, running)| running.task == id).map(|(node, _)| *node);
        if let Some(node) = node {
            self.running.remove(&node);
        }
        match ended {
            Ok((_, result)) => result,
            Err(error) => {
                tracing::error!(peer = ?node, %error, "the task of a peer died and is begun again");
                self.died.extend(node);
                Ok(())
            }
        }
    }

    fn connected(&mut self, channel: KeyChannel) {
        let node = channel.peer().node;
        match self.running.get(&node) {
            Some(running) if self.keys.node < node => {
                // Full: its task is busy or ending, and the peer will connect again.
                let _taken_or_not = running.events.try_send(PeerEvent::Channel(Box::new(channel)));
            }
            _ if self.strangers.len() < STRANGERS => {
                self.strangers.spawn(announcement::hear_out(channel, Arc::clone(&self.keys)));
            }
            _ => self.complain(node),
        }
    }

    fn heard_out(&mut self, stranger: Result<Option<NodeId>, JoinError>) {
        match stranger {
            Ok(None) => {}
            Ok(Some(node)) => self.complain(node),
            Err(error) => tracing::error!(%error, "the task of a key channel died"),
        }
    }

    fn complain(&mut self, node: NodeId) {
        let why = match self.running.get(&node) {
            Some(_) => "it is for this node to connect to that one",
            None => "no encrypted network is shared with it (yet)",
        };
        if self.unwanted.permits(boot_time()) {
            tracing::info!(%node, why, "a key channel is not wanted");
        }
    }

    async fn happened(&self, event: LaneEvent, specs: &BTreeMap<NodeId, PeerSpec>) {
        let (node, event) = match event {
            LaneEvent::RekeyWanted { link, spi } => match self.keys.dataplane.link(link).await {
                Some((network, node)) => (node, PeerEvent::RekeyWanted(network, spi)),
                None => return,
            },
            LaneEvent::NoKey { link } => match self.keys.dataplane.link(link).await {
                Some((network, node)) => (node, PeerEvent::TrafficWaiting(network)),
                None => return,
            },
            LaneEvent::UnknownSpi { spi, from } => match peer_at(specs, from.ip()) {
                Some(node) => (node, PeerEvent::UnknownSpi(spi)),
                None => return,
            },
            LaneEvent::PortGone { .. } | LaneEvent::SegmentationGivenUp { .. } => return,
        };
        self.tell(node, event);
    }

    fn tell(&self, node: NodeId, event: PeerEvent) {
        if let Some(running) = self.running.get(&node) {
            // A full queue loses an event: what traffic causes is repeated while the cause lasts, and
            // an operator hears that nobody answers.
            let _ = running.events.try_send(event);
        }
    }
}

/// The peer whose data comes from this address.
fn peer_at(specs: &BTreeMap<NodeId, PeerSpec>, address: IpAddr) -> Option<NodeId> {
    let peer = specs.values().find(|spec| spec.node.data.ip().to_canonical() == address.to_canonical())?;
    Some(peer.node.id)
}

/// Channels at a time that are heard out though nothing is shared with their nodes.
const STRANGERS: usize = 64;
/// Events that may wait for one peer's task.
const EVENTS: usize = 64;
/// A task that dies again and again does so slowly.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
