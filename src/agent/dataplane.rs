//! The lanes and what they look up, kept equal to the view of the cluster.
//!
//! Changes are made in an order that fails closed: what goes is taken out of the tables, then the
//! lanes forget its keys, then its slot may be another's, all before the next change and whatever a
//! peer's task is busy with. Keys that such a task brings afterwards are for a hold that has ended,
//! and are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};

use super::heard::Heard;
use super::placement::{LinkKey, NotCarried, PeerSpec, Placement};
use super::slots::Hold;
use super::underlay::Narrow;
use crate::boot_time::BootTime;
use crate::cluster::{NetworkView, View};
use crate::control::identity::NodeIdentity;
use crate::control::store::local::{Hearsay, Moved};
use crate::forward::Tables;
use crate::id::{
    EndpointId, Epoch, LaneCount, LaneId, LinkSlot, NetworkId, NodeId, PortHold, PortSlot, Version, VtepSlot,
};
use crate::io::steer::Group;
use crate::io::tap::Tap;
use crate::membership::{MembershipError, SignedMembership, SignedRemovals};
use crate::negotiate::Whereabouts;
use crate::rate::RateLimits;
use crate::worker::{Command, Inventory, Lane, LaneGone, PortLimits};

/// The lanes of this node and their tables.
pub(crate) struct DataPlane {
    lanes: Vec<Arc<Lane>>,
    tables: Arc<ArcSwap<Tables>>,
    placement: Mutex<Placement>,
    /// Used while the placement is locked.
    heard: std::sync::Mutex<Heard>,
    peers: watch::Sender<BTreeMap<NodeId, PeerSpec>>,
    followed: watch::Sender<Version>,
    removed: watch::Sender<Removed>,
    hearsay: watch::Sender<Hearsay>,
    /// When a peer was asked for a membership of a network.
    asked: std::sync::Mutex<BTreeMap<NetworkId, BootTime>>,
}

/// The nodes that were removed, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Removed {
    /// Who is refused.
    pub(crate) nodes: Arc<BTreeSet<NodeId>>,
    /// Who is a manager no more by any certificate that was issued until then.
    pub(crate) demoted: BTreeMap<NodeId, Version>,
    /// The newest signed list, to be passed on.
    pub(crate) signed: Option<Arc<SignedRemovals>>,
}

impl DataPlane {
    /// Takes over running lanes that look things up in `tables`.
    pub(crate) fn new(identity: &NodeIdentity, lanes: Vec<Arc<Lane>>, tables: Arc<ArcSwap<Tables>>) -> Self {
        Self {
            lanes,
            tables,
            placement: Mutex::new(Placement::new(identity)),
            heard: std::sync::Mutex::default(),
            peers: watch::Sender::default(),
            followed: watch::Sender::default(),
            removed: watch::Sender::default(),
            hearsay: watch::Sender::default(),
            asked: std::sync::Mutex::default(),
        }
    }

    /// The lanes.
    pub(crate) fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// How many there are: the queues of an interface.
    pub(crate) fn lane_count(&self) -> LaneCount {
        LaneCount::clamped(self.lanes.len())
    }

    /// The peers that keys are needed with, whenever they change.
    pub(crate) fn peers(&self) -> watch::Receiver<BTreeMap<NodeId, PeerSpec>> {
        self.peers.subscribe()
    }

    /// The version of the view that the lanes forward by, told anew when they forward otherwise by it.
    pub(crate) fn followed(&self) -> watch::Receiver<Version> {
        self.followed.subscribe()
    }

    /// The removed nodes, whenever they change.
    pub(crate) fn removed(&self) -> watch::Receiver<Removed> {
        self.removed.subscribe()
    }

    /// What peers have told and the view has not, whenever it changes.
    pub(crate) fn hearsay(&self) -> watch::Receiver<Hearsay> {
        self.hearsay.subscribe()
    }

    /// The view that the lanes forward by.
    pub(crate) async fn view(&self) -> Arc<View> {
        Arc::clone(self.placement.lock().await.view())
    }

    /// Follows a new view; returns once every lane forwards by it.
    pub(crate) async fn follow(&self, view: Arc<View>) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        let version = view.version;
        placement.follow(self.heard().follow(view));
        self.tell_removed(&placement);
        self.tell_hearsay(&placement);
        self.settle(&mut placement).await?;
        self.followed.send_replace(version);
        Ok(())
    }

    /// Follows what a node says of where it is; false where that is known, or of no use here.
    pub(crate) async fn hear(&self, node: NodeId, at: Whereabouts) -> Result<bool, LaneGone> {
        let mut placement = self.placement.lock().await;
        let Some(view) = self.heard().hear(node, at) else { return Ok(false) };
        placement.follow(view);
        self.tell_hearsay(&placement);
        self.settle(&mut placement).await?;
        Ok(true)
    }

    /// Follows what nodes told the last agent of this node, where the view is not newer; of those alone that it has keys
    /// with, for only they say it again.
    pub(crate) async fn recall(&self, mut moved: BTreeMap<NodeId, Moved>) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        let peers = placement.peers();
        moved.retain(|node, _| peers.contains_key(node));
        placement.follow(self.heard().recall(moved));
        self.tell_hearsay(&placement);
        self.settle(&mut placement).await
    }

    /// Has every lane send and receive by its share of these sockets from now on; without new ones for ESP, by those that
    /// it has.
    pub(crate) async fn rebind(&self, esp: Option<Group>, vxlan: Option<Group>) -> Result<(), LaneGone> {
        let [esp, vxlan] = [esp, vxlan].map(|group| {
            group.into_iter().flat_map(|group| group.lanes).map(Some).chain(std::iter::repeat(None))
        });
        for ((lane, esp), vxlan) in self.lanes.iter().zip(esp).zip(vxlan) {
            lane.rebind(esp, vxlan).await?;
        }
        Ok(())
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a new MTU of this node's underlay; returns once every lane forwards by it.
    pub(crate) async fn follow_underlay(&self, mtu: u32) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        placement.follow_underlay(mtu);
        self.publish(&mut placement).await?;
        // What is made of the view is another now.
        self.followed.send_modify(|_| {});
        Ok(())
    }

    /// The MTU of the containers' interfaces in each network of the view, in bytes.
    pub(crate) async fn mtus(&self) -> BTreeMap<NetworkId, u16> {
        let placement = self.placement.lock().await;
        placement.view().networks.iter().map(|(id, view)| (*id, placement.mtu(view))).collect()
    }

    /// The MTU of the containers' interfaces in a network, in bytes.
    pub(crate) async fn mtu(&self, network: &NetworkView) -> u16 {
        self.placement.lock().await.mtu(network)
    }

    /// Gives a local endpoint's interface to the lanes, a queue to each; `rates` hold for all together.
    pub(crate) async fn add_port(
        &self,
        endpoint: EndpointId,
        queues: Vec<Tap>,
        rates: RateLimits,
    ) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        placement.hold_port(endpoint);
        let Some((slot, hold)) = placement.port(endpoint) else { return Ok(()) };
        self.publish(&mut placement).await?;
        let limits = PortLimits::new(rates);
        for (lane, tap) in self.lanes.iter().zip(queues) {
            lane.execute(Command::AddPort { slot, hold, tap, limits: limits.clone() }).await?;
        }
        Ok(())
    }

    /// As [`Self::remove_port`], of whoever holds the slot, if it still is the one that is meant.
    pub(crate) async fn remove_lost_port(
        &self,
        (slot, hold): (PortSlot, PortHold),
        tell: impl FnOnce(EndpointId),
    ) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        let Some(endpoint) = placement.endpoint(slot) else { return Ok(()) };
        if placement.port(endpoint) != Some((slot, hold)) {
            return Ok(());
        }
        tell(endpoint);
        self.release_port(&mut placement, endpoint, slot).await
    }

    /// Takes a local endpoint's interface from the lanes; returns once no lane has it open.
    pub(crate) async fn remove_port(&self, endpoint: EndpointId) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        let Some((slot, _)) = placement.port(endpoint) else { return Ok(()) };
        self.release_port(&mut placement, endpoint, slot).await
    }

    async fn release_port(
        &self,
        placement: &mut Placement,
        endpoint: EndpointId,
        slot: PortSlot,
    ) -> Result<(), LaneGone> {
        for lane in &self.lanes {
            lane.execute(Command::RemovePort(slot)).await?;
        }
        placement.release_port(endpoint);
        self.publish(placement).await
    }

    /// Follows a membership that a peer passed on, if it is signed and newer than the one known.
    pub(crate) async fn adopt(&self, signed: &SignedMembership) -> Result<Adopted, LaneGone> {
        let mut placement = self.placement.lock().await;
        let adopted = placement.adopt(signed);
        if adopted == Ok(true) {
            self.tell_hearsay(&placement);
            self.settle(&mut placement).await?;
        }
        Ok(adopted.map(|_| ()))
    }

    /// Follows a list of removed nodes that a peer passed on, if it is signed and newer than the one known.
    pub(crate) async fn adopt_removals(
        self: &Arc<Self>,
        signed: SignedRemovals,
    ) -> Result<Adopted, LaneGone> {
        let this = Arc::clone(self);
        // Whoever heard of it may be cut off meanwhile, and some lanes would keep a removed node's keys.
        let adopting = tokio::spawn(async move {
            let mut placement = this.placement.lock().await;
            let adopted = placement.adopt_removals(&signed);
            if adopted == Ok(true) {
                this.tell_removed(&placement);
                this.settle(&mut placement).await?;
            }
            Ok(adopted.map(|_| ()))
        });
        adopting.await.unwrap_or(Err(LaneGone))
    }

    /// The newest membership of a network, to be passed on.
    pub(crate) async fn signed_membership(&self, network: NetworkId) -> Option<SignedMembership> {
        self.placement.lock().await.signed_membership(network).cloned()
    }

    /// The same, if it leaves this node out.
    pub(crate) async fn membership_without(
        &self,
        network: NetworkId,
        node: NodeId,
    ) -> Option<SignedMembership> {
        self.placement.lock().await.membership_without(network, node).cloned()
    }

    /// The epoch of the newest membership of a network.
    pub(crate) async fn membership_epoch(&self, network: NetworkId) -> Option<Epoch> {
        self.placement.lock().await.membership_epoch(network)
    }

    /// Whether some peer may be asked for a newer membership of a network: one at a time.
    pub(crate) fn may_ask(&self, network: NetworkId, now: BootTime) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        asked.retain(|_, at| now < *at + ANSWER_TIME);
        let is_free = !asked.contains_key(&network);
        if is_free {
            asked.insert(network, now);
        }
        is_free
    }

    /// The networks of the view that are not carried, and why.
    pub(crate) async fn refused(&self) -> BTreeMap<NetworkId, NotCarried> {
        self.placement.lock().await.refused().clone()
    }

    /// The networks of the view whose packets do not fit through an underlay.
    pub(crate) async fn narrow(&self) -> Vec<Narrow> {
        self.placement.lock().await.narrow()
    }

    /// Has lanes carry out commands for a link, in order; false if that hold of it has ended, and then
    /// none is carried out.
    pub(crate) async fn command_link(
        &self,
        (key, hold): (LinkKey, Hold),
        commands: impl FnOnce(LinkSlot) -> Vec<(LaneId, Command)>,
    ) -> Result<bool, LaneGone> {
        // Held to the end, so that the link cannot end between two commands.
        let placement = self.placement.lock().await;
        let Some(slot) = placement.held_link(key, hold) else { return Ok(false) };
        for (lane, command) in commands(slot) {
            self.lanes.get(lane.index()).ok_or(LaneGone)?.execute(command).await?;
        }
        Ok(true)
    }

    /// Makes every lane forget a link's keys, if that hold of it has not ended.
    pub(crate) async fn forget_keys(&self, link: (LinkKey, Hold)) -> Result<(), LaneGone> {
        let drop = |slot| self.lanes.iter().map(|lane| (lane.id(), Command::DropLink(slot))).collect();
        self.command_link(link, drop).await.map(|_had_ended| ())
    }

    /// The link in a slot, as lanes report it.
    pub(crate) async fn link(&self, slot: LinkSlot) -> Option<LinkKey> {
        self.placement.lock().await.link(slot)
    }

    /// Every link with its slot.
    pub(crate) async fn links(&self) -> BTreeMap<LinkKey, LinkSlot> {
        self.placement.lock().await.links()
    }

    /// Every VTEP with its slot.
    pub(crate) async fn vteps(&self) -> BTreeMap<LinkKey, VtepSlot> {
        self.placement.lock().await.vteps()
    }

    /// The slot of a local endpoint.
    pub(crate) async fn port(&self, endpoint: EndpointId) -> Option<PortSlot> {
        self.placement.lock().await.port(endpoint).map(|(slot, _)| slot)
    }

    /// What is made of what every lane has, and of the placement that it has it by.
    pub(crate) async fn take_inventory<T>(
        &self,
        of: impl FnOnce(&Placement, Vec<Inventory>) -> T,
    ) -> Result<T, LaneGone> {
        // Held to the end: a change that came between would look like a fault of the lanes.
        let placement = self.placement.lock().await;
        let mut inventories = Vec::with_capacity(self.lanes.len());
        for lane in &self.lanes {
            inventories.push(lane.inventory().await?);
        }
        Ok(of(&placement, inventories))
    }

    /// Has every lane look things up in tables that are made anew, of the view alone.
    pub(crate) async fn publish_anew(&self) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        placement.forget_tables();
        self.publish(&mut placement).await
    }

    /// Makes every lane forget the keys in a slot that no link holds; does nothing to those of a link.
    pub(crate) async fn forget_stray_keys(&self, slot: LinkSlot) -> Result<(), LaneGone> {
        // Held to the end, so that no link is given the slot meanwhile.
        let placement = self.placement.lock().await;
        if placement.link(slot).is_none() {
            for lane in &self.lanes {
                lane.execute(Command::DropLink(slot)).await?;
            }
        }
        Ok(())
    }

    /// Has others refuse who was removed; before the lanes, which may take their time.
    fn tell_removed(&self, placement: &Placement) {
        self.removed.send_if_modified(|told| {
            let is_news =
                *told.nodes != *placement.removed() || told.signed.as_deref() != placement.signed_removals();
            if is_news {
                *told = Removed {
                    nodes: Arc::new(placement.removed().clone()),
                    demoted: placement.demoted(),
                    signed: placement.signed_removals().cloned().map(Arc::new),
                };
            }
            is_news
        });
    }

    fn tell_hearsay(&self, placement: &Placement) {
        let now = Hearsay { memberships: placement.passed_on(), moved: self.heard().said().clone() };
        self.hearsay.send_if_modified(|told| {
            let is_news = *told != now;
            *told = now;
            is_news
        });
    }

    /// Makes lanes and peers follow the placement.
    async fn settle(&self, placement: &mut Placement) -> Result<(), LaneGone> {
        self.publish(placement).await?;
        for (key, slot) in placement.ended_links() {
            for lane in &self.lanes {
                lane.execute(Command::RemoveLink(slot)).await?;
            }
            placement.release_link(key);
        }
        for (key, slot) in placement.ended_vteps() {
            for lane in &self.lanes {
                lane.execute(Command::RemoveVtep(slot)).await?;
            }
            placement.release_vtep(key);
        }
        self.peers.send_replace(placement.peers());
        Ok(())
    }

    async fn publish(&self, placement: &mut Placement) -> Result<(), LaneGone> {
        self.tables.store(Arc::new(placement.tables()));
        for lane in &self.lanes {
            lane.execute(Command::Sync).await?;
        }
        Ok(())
    }
}

/// Whether what a peer passed on was believed.
pub(crate) type Adopted = Result<(), MembershipError>;

/// How long a peer that was asked for a membership has it to itself.
pub(crate) const ANSWER_TIME: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::testbed::{PaperCluster, endpoint_id, network_id, peer};
    use super::*;

    #[tokio::test]
    async fn keys_that_come_after_their_link_ended_reach_no_lane() {
        let mut cluster = PaperCluster::new();
        let dataplane = cluster.dataplane();
        let view = cluster.view(vec![cluster.network(1, 1, &[2])], &[]);
        dataplane.follow(view).await.expect("followed");
        let key = (network_id(1), peer(2));
        let hold = dataplane.peers().borrow()[&peer(2)].links[&network_id(1)].hold;
        let drop = |slot| vec![(dataplane.lanes[0].id(), Command::DropLink(slot))];
        assert_eq!(dataplane.command_link((key, hold), drop).await, Ok(true));

        dataplane.follow(cluster.view(Vec::new(), &[])).await.expect("followed");
        assert!(dataplane.links().await.is_empty(), "a link that no task knew of keeps its slot for ever");
        let refused = |_| -> Vec<_> { panic!("the slot may be another's") };
        assert_eq!(dataplane.command_link((key, hold), refused).await, Ok(false));

        // Another peer gets the slot; the late task of the first must not touch its keys.
        let view = cluster.view(vec![cluster.network(1, 2, &[3])], &[]);
        dataplane.follow(view).await.expect("followed");
        let next = dataplane.peers().borrow()[&peer(3)].links[&network_id(1)].hold;
        assert_eq!(next.slot, hold.slot);
        assert_eq!(dataplane.command_link((key, hold), refused).await, Ok(false));
    }

    #[tokio::test]
    async fn removal_is_followed_to_the_end_though_whoever_heard_of_it_is_cut_off() {
        let mut cluster = PaperCluster::new();
        let dataplane = Arc::new(cluster.dataplane());
        let view = cluster.view(vec![cluster.network(1, 1, &[2])], &[]);
        dataplane.follow(view).await.expect("followed");
        let mut peers = dataplane.peers();
        assert!(peers.borrow().contains_key(&peer(2)));

        let removals = cluster.sign_removals(1, &[2]);
        // Polled once, in which no lane answers, and dropped.
        assert!(dataplane.adopt_removals(removals).now_or_never().is_none(), "it was done in one go");

        let settled = peers.wait_for(|peers| peers.is_empty());
        let settled = tokio::time::timeout(Duration::from_secs(10), settled).await;
        assert!(matches!(settled, Ok(Ok(_))), "the removed node is still a peer: {settled:?}");
        assert!(dataplane.links().await.is_empty());
    }

    #[tokio::test]
    async fn one_peer_at_a_time_is_asked_for_a_membership() {
        let dataplane = PaperCluster::new().dataplane();
        let at = |milliseconds: u64| BootTime::from_nanos(milliseconds * 1_000_000);
        assert!(dataplane.may_ask(network_id(1), at(0)) && dataplane.may_ask(network_id(2), at(100)));
        assert!(!dataplane.may_ask(network_id(1), at(249)));
        assert!(dataplane.may_ask(network_id(1), at(250)) && !dataplane.may_ask(network_id(2), at(300)));
    }

    #[tokio::test]
    async fn late_word_of_a_port_that_is_gone_takes_no_later_one_away() {
        let (cluster, mut told) = (PaperCluster::new(), 0);
        let dataplane = cluster.dataplane();
        let [one, two] = [1, 2].map(|network| endpoint_id(network, 1));
        let hold = async || dataplane.placement.lock().await.port(one).expect("held").1;
        dataplane.add_port(one, Vec::new(), RateLimits::default()).await.expect("a lane");
        let (slot, first) = (dataplane.port(one).await.expect("a slot"), hold().await);
        dataplane.remove_lost_port((slot, first), |id| told += usize::from(id == one)).await.expect("a lane");
        assert_eq!((dataplane.port(one).await, told), (None, 1));
        for again in [two, one] {
            dataplane.add_port(again, Vec::new(), RateLimits::default()).await.expect("a lane");
            assert_eq!(dataplane.port(again).await, Some(slot));
            dataplane.remove_lost_port((slot, first), |_| told += 1).await.expect("a lane");
            assert_eq!((dataplane.port(again).await, told), (Some(slot), 1));
            dataplane.remove_port(again).await.expect("a lane");
        }
    }
}
