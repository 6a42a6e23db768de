//! Where nodes are, said by themselves on their key channels.
//!
//! A node that has moved says so to every node that it shares a network with. A manager says it to
//! each node that has no session with it: after a move of its own, or when its state was restored at
//! another address, nobody could find it otherwise. Certificates prove who speaks, as on every key
//! channel; an address that a manager says is one more to try, where its certificate is asked for again.
//!
//! A peer that is to connect to this node and does not may look for it where it was before. It is told as well.
//!
//! A node that does not connect to a peer by itself dials it once for this. A manager is believed once it has
//! been told who was removed and says so again: one that was replaced meanwhile ends by that list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::dataplane::DataPlane;
use super::keys::Keys;
use super::office::Office;
use super::superseded;
use super::underlay::Underlay;
use crate::boot_time::BootTime;
use crate::cluster::{Node, Role};
use crate::control::key_channel::KeyChannel;
use crate::control::rpc::ManagerClient;
use crate::control::session::SessionStatus;
use crate::control::tls::peer::{ConnectError, PeerIdentity};
use crate::control::trust::Trust;
use crate::id::{Epoch, NodeId};
use crate::io::clock::boot_time;
use crate::membership::SignedRemovals;
use crate::negotiate::{Message, Whereabouts};

/// What a node has said of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) node: NodeId,
    /// By its certificate, as far as that is believed.
    pub(crate) role: Role,
    pub(crate) at: Whereabouts,
}

impl Said {
    /// What the node at the other end of a key channel says.
    pub(crate) fn by(peer: &PeerIdentity, at: Whereabouts, trust: &Trust) -> Self {
        let role = if trust.is_demoted(peer.node, peer.issued_at) { Role::Worker } else { peer.role };
        Self { node: peer.node, role, at }
    }
}

/// Follows what other nodes say.
pub(crate) async fn listen(
    mut said: mpsc::Receiver<Said>,
    dataplane: Arc<DataPlane>,
    (client, session): (ManagerClient, watch::Receiver<SessionStatus>),
) {
    while let Some(Said { node, role, at }) = said.recv().await {
        // A lane that has ended is told by others.
        if dataplane.hear(node, at).await == Ok(true) {
            tracing::info!(%node, data = %at.data, "a peer is elsewhere now");
        }
        if is_to_be_tried(role, !client.addresses().contains(&at.advertise), &session.borrow()) {
            tracing::info!(%node, address = %at.advertise, "a manager says where it is");
            client.point_to(at.advertise);
        }
    }
    // The agent is ending.
    std::future::pending::<()>().await;
}

/// Whether an address is that of a manager that may be needed.
fn is_to_be_tried(role: Role, is_news: bool, session: &SessionStatus) -> bool {
    role == Role::Manager && (is_news || *session != SessionStatus::Connected)
}

/// What came on a channel that is of no other use, if it is where the other side is.
pub(crate) async fn hear_out(mut channel: KeyChannel, keys: Arc<Keys>) -> Option<NodeId> {
    let frame = tokio::time::timeout(HEAR_TIMEOUT, channel.receive()).await;
    let Ok(Ok(Some(frame))) = frame else { return Some(channel.peer().node) };
    let Ok(Message::Whereabouts(at)) = Message::decode(&frame) else {
        let node = channel.peer().node;
        // One that was replaced may share nothing with anybody any more, and hears of it from nobody else.
        if channel.peer().role == Role::Manager && tell_removals(&mut channel, &keys).await.is_some() {
            channel.close().await;
        }
        return Some(node);
    };
    let at = match channel.peer().role {
        Role::Manager => said_again(&mut channel, &keys, at).await,
        Role::Worker => Some(at),
    };
    if let Some(at) = at {
        keys.hear(channel.peer(), at);
    }
    None
}

/// Where a manager is that says so again after it was told who was removed. One that was replaced
/// meanwhile sees it by that and ends: turning to it would be turning away from the other.
async fn said_again(channel: &mut KeyChannel, keys: &Keys, at: Whereabouts) -> Option<Whereabouts> {
    if keys.dataplane.removed().borrow().signed.is_none() {
        return Some(at);
    }
    tell_removals(channel, keys).await?;
    let frame = tokio::time::timeout(HEAR_TIMEOUT, channel.receive()).await.ok()?.ok()??;
    match Message::decode(&frame) {
        Ok(Message::Whereabouts(at)) => Some(at),
        Ok(_) | Err(_) => None,
    }
}

/// Passes on who was removed, as far as anybody was and it can be.
async fn tell_removals(channel: &mut KeyChannel, keys: &Keys) -> Option<()> {
    let newest = keys.dataplane.removed().borrow().signed.clone();
    let removals = Message::Removals(Box::new(SignedRemovals::clone(&*newest?)));
    channel.send(&removals.encode()).await.ok()
}

/// Says where this node is to those who may not know.
pub(crate) struct Crier {
    keys: Arc<Keys>,
    office: Arc<Office>,
    underlay: watch::Receiver<Underlay>,
    untold: BTreeMap<NodeId, Untold>,
    dialing: JoinSet<(NodeId, bool)>,
}

struct Untold {
    node: Node,
    /// This node has moved and it has not heard of that; otherwise this node hears nothing of it.
    has_moved: bool,
    is_dialed: bool,
    due: BootTime,
    pause: Duration,
}

impl Crier {
    pub(crate) fn new(keys: Arc<Keys>, office: Arc<Office>) -> Self {
        let underlay = keys.underlay.clone();
        Self { keys, office, underlay, untold: BTreeMap::new(), dialing: JoinSet::new() }
    }

    pub(crate) async fn run(mut self) {
        let mut at = self.underlay.borrow().at;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        if self.is_viewed_elsewhere().await {
            self.moved().await;
        }
        loop {
            self.dial();
            let due = self.untold.values().filter(|untold| !untold.is_dialed).map(|untold| untold.due).min();
            let next = due.unwrap_or(BootTime::NEVER).since(boot_time()).min(LOOK_INTERVAL);
            tokio::select! {
                Ok(()) = self.underlay.changed() => {
                    let now = self.underlay.borrow_and_update().at;
                    if std::mem::replace(&mut at, now) != now {
                        self.moved().await;
                    }
                }
                _ = look.tick() => self.look().await,
                Some(told) = self.dialing.join_next() => self.told(told),
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    /// Whether the last view has this node where it was before the agent started.
    async fn is_viewed_elsewhere(&self) -> bool {
        let at = self.underlay.borrow().at;
        let view = self.keys.dataplane.view().await;
        let viewed = view.networks.values().flat_map(|network| &network.nodes).chain(&view.managers);
        let mut own = viewed.filter(|node| node.id == self.keys.node);
        own.any(|node| (node.advertise, node.data) != (at.advertise, at.data))
    }

    /// Everybody is to hear of it.
    async fn moved(&mut self) {
        // Attempts from before would say the old address.
        self.dialing.shutdown().await;
        let others = self.others().await;
        let now = boot_time();
        self.untold = others
            .into_iter()
            .map(|node| (node.id, Untold { is_dialed: false, ..Untold::new(node, true, now) }))
            .collect();
    }

    /// Every other node that may be waiting for this one, but for the peers that this node connects to
    /// anyway.
    async fn others(&self) -> Vec<Node> {
        let view = self.keys.dataplane.view().await;
        let viewed = view.networks.values().flat_map(|network| network.nodes.clone());
        let managed = self.office.manager().into_iter().flat_map(|manager| manager.others());
        let others: BTreeMap<NodeId, Node> = viewed.chain(managed).map(|node| (node.id, node)).collect();
        let peers = self.keys.dataplane.peers();
        let peers = peers.borrow();
        let connects = |id: &NodeId| self.keys.node > *id && peers.contains_key(id);
        others.into_values().filter(|node| node.id != self.keys.node && !connects(&node.id)).collect()
    }

    /// Looks for peers that have not connected, and, on a manager, for nodes that have no session with it.
    async fn look(&mut self) {
        let mut absent = self.silent();
        if let Some(manager) = self.office.manager() {
            absent.extend(manager.absent().await);
        }
        if absent.is_empty() && self.untold.is_empty() {
            return;
        }
        let others = self.others().await;
        self.untold.retain(|id, untold| {
            if untold.has_moved { others.iter().any(|node| node.id == *id) } else { absent.contains(id) }
        });
        for node in others.into_iter().filter(|node| absent.contains(&node.id)) {
            // One that has only just gone, or was never awaited, comes by itself most often.
            let due = boot_time() + LOOK_INTERVAL;
            self.untold.entry(node.id).or_insert_with(|| Untold::new(node, false, due));
        }
    }

    /// The peers that are to connect to this node, and that it has no keys with.
    fn silent(&self) -> BTreeSet<NodeId> {
        let (peers, keyed) = (self.keys.dataplane.peers(), self.keys.keyed());
        let peers = peers.borrow();
        peers.keys().filter(|id| self.keys.node < **id && !keyed.contains(*id)).copied().collect()
    }

    fn dial(&mut self) {
        let (now, free) = (boot_time(), AT_ONCE.saturating_sub(self.dialing.len()));
        let due = self.untold.values_mut().filter(|untold| !untold.is_dialed && untold.due <= now);
        for untold in due.take(free) {
            untold.is_dialed = true;
            let (keys, office, node) =
                (Arc::clone(&self.keys), Arc::clone(&self.office), untold.node.clone());
            self.dialing.spawn(async move { (node.id, say(&keys, &office, &node).await) });
        }
    }

    fn told(&mut self, told: Result<(NodeId, bool), JoinError>) {
        let Ok((node, is_told)) = told else { return };
        let Some(untold) = self.untold.get_mut(&node) else { return };
        if is_told && untold.has_moved {
            self.untold.remove(&node);
            return;
        }
        untold.is_dialed = false;
        untold.due = boot_time() + untold.pause;
        untold.pause = (untold.pause * 2).min(LONGEST_PAUSE);
    }
}

impl Untold {
    const fn new(node: Node, has_moved: bool, due: BootTime) -> Self {
        Self { node, has_moved, is_dialed: false, due, pause: SHORTEST_PAUSE }
    }
}

/// Tells one node where this one is; false when it was not reached.
async fn say(keys: &Keys, office: &Office, node: &Node) -> bool {
    let at = keys.underlay.borrow().at;
    let said = async {
        let connected = KeyChannel::connect(&keys.credentials, node.advertise, node.id).await;
        if connected.as_ref().is_err_and(ConnectError::has_removed_us) && office.manager().is_some() {
            tracing::error!(node = %node.name, "{REFUSED}");
        }
        let mut channel = connected.ok()?;
        let at = Message::Whereabouts(at).encode();
        channel.send(&at).await.ok()?;
        if keys.credentials.identity().role() == Role::Manager
            && let Some(removals) = hear_answer(keys, &mut channel).await
            && !office.manager().is_some_and(|manager| superseded::is_replaced(&manager, removals))
        {
            channel.send(&at).await.ok()?;
        }
        channel.close().await;
        Some(())
    };
    let is_told = said.await.is_some();
    tracing::debug!(node = %node.name, is_told, "said where this node is");
    is_told
}

/// The newest list of removed nodes that is known after a node has answered with its own, if it has one.
async fn hear_answer(keys: &Keys, channel: &mut KeyChannel) -> Option<Epoch> {
    let frame = tokio::time::timeout(HEAR_TIMEOUT, channel.receive()).await.ok()?.ok()??;
    let Ok(Message::Removals(signed)) = Message::decode(&frame) else { return None };
    // That lanes are gone, the agent is told by others.
    if let Err(error) = keys.dataplane.adopt_removals(*signed).await.ok()? {
        tracing::debug!(%error, "refused a list of removed nodes");
    }
    let newest = keys.dataplane.removed().borrow().signed.clone();
    Some(newest.and_then(|signed| signed.claim().ok()).map_or(Epoch::new(0), |list| list.epoch))
}

/// Of a restore that could ask nobody, a node says so later.
const REFUSED: &str = "a node knows this manager to be removed from the cluster and believes nothing that it signs: if it was \
                       restored from a backup, run overlayd leave --force here and restore it again while that node can be \
                       reached";
/// How long a node may take to say where it is.
const HEAR_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a manager looks for nodes without a session.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Nodes that are off for long are not knocked at much.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Handshakes under way at a time.
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::manager::tests::manager;
    use super::*;
    use crate::id::Version;
    use crate::io::clock::wall_clock;

    #[tokio::test]
    async fn who_is_no_manager_any_more_is_not_taken_for_one_where_it_says_that_it_is() {
        let (manager, _dir) = manager();
        let trust = Trust::clone(&manager.credentials.trust());
        let at = SocketAddr::from(([192, 0, 2, 2], 2377));
        let peer = |issued_at| PeerIdentity {
            node: NodeId::from_entropy([9; 16]),
            role: Role::Manager,
            issued_at: Version::new(issued_at),
            address: at,
            certificate_expires: wall_clock(),
        };
        let role = |peer: PeerIdentity, trust: &Trust| {
            Said::by(&peer, Whereabouts { advertise: at, data: at }, trust).role
        };
        assert_eq!(role(peer(5), &trust), Role::Manager);
        let trust = trust.clone().with_demoted([(peer(5).node, Version::new(5))].into());
        assert_eq!(role(peer(5), &trust), Role::Worker);
        // It was made one again.
        assert_eq!(role(peer(6), &trust), Role::Manager);
    }

    #[test]
    fn addresses_of_managers_alone_are_tried_and_known_ones_only_without_a_session() {
        let (lost, held) = (SessionStatus::Connecting, SessionStatus::Connected);
        for (is_news, session, expected) in
            [(true, &lost, true), (true, &held, true), (false, &lost, true), (false, &held, false)]
        {
            assert_eq!(is_to_be_tried(Role::Manager, is_news, session), expected);
            assert!(!is_to_be_tried(Role::Worker, is_news, session));
        }
    }
}
