//! The tasks of all peers: begun and ended as the view says, told what happens.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::keys::Keys;
use super::peer::{Peer, PeerEvent};
use super::placement::PeerSpec;
use crate::control::key_channel::KeyChannel;
use crate::id::NodeId;
use crate::worker::{LaneEvent, LaneGone};

/// Keeps a task for every peer that keys are needed with; ends when a lane has.
pub(crate) async fn keep(
    keys: Arc<Keys>,
    mut channels: mpsc::Receiver<KeyChannel>,
    mut events: mpsc::Receiver<LaneEvent>,
) -> LaneGone {
    let mut wanted = keys.dataplane.peers();
    let mut peers = Peers { keys, tasks: JoinSet::new(), running: HashMap::new() };
    loop {
        let specs = wanted.borrow_and_update().clone();
        peers.follow(&specs);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return LaneGone },
            Some(channel) = channels.recv() => peers.connected(channel),
            Some(event) = events.recv() => peers.happened(event, &specs).await,
            Some(ended) = peers.tasks.join_next() => match ended {
                // Begun again by the next turn if it is wanted meanwhile.
                Ok((node, Ok(()))) => { peers.running.remove(&node); }
                Ok((_, Err(gone))) => return gone,
                Err(error) => {
                    tracing::error!(%error, "the task of a peer died");
                    peers.running.retain(|_, task| !task.events.is_closed());
                }
            },
        }
    }
}

struct Peers {
    keys: Arc<Keys>,
    tasks: JoinSet<(NodeId, Result<(), LaneGone>)>,
    running: HashMap<NodeId, Running>,
}

struct Running {
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
                self.running.insert(*node, Running { spec: sender, events });
                let (node, keys) = (*node, Arc::clone(&self.keys));
                self.tasks.spawn(async move { (node, Peer::run(keys, receiver, happened).await) });
            }
        }
    }

    fn connected(&self, channel: KeyChannel) {
        let node = channel.peer().node;
        match self.running.get(&node) {
            Some(running) => {
                // The task may have ended this moment, or be busy with all the channels that the peer
                // opened before, which must not hold up other peers. It will connect again.
                let _ = running.events.try_send(PeerEvent::Channel(Box::new(channel)));
            }
            None => tracing::info!(%node, "a node with which no encrypted network is shared (yet) connected"),
        }
    }

    async fn happened(&self, event: LaneEvent, specs: &BTreeMap<NodeId, PeerSpec>) {
        let (node, event) = match event {
            LaneEvent::RekeyWanted { link } => match self.keys.dataplane.link(link).await {
                Some((network, node)) => (node, PeerEvent::RekeyWanted(network)),
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
            LaneEvent::PortGone { .. } => return,
        };
        if let Some(running) = self.running.get(&node) {
            // A full queue loses an event: what traffic causes is repeated while the cause lasts.
            let _ = running.events.try_send(event);
        }
    }
}

/// The peer whose data comes from this address.
fn peer_at(specs: &BTreeMap<NodeId, PeerSpec>, address: IpAddr) -> Option<NodeId> {
    let peer = specs.values().find(|spec| spec.node.data.ip().to_canonical() == address.to_canonical())?;
    Some(peer.node.id)
}

/// Events that may wait for one peer's task.
const EVENTS: usize = 64;
