//! The lanes and what they look up, kept equal to the view of the cluster.
//!
//! Changes are made in an order that fails closed: what goes is taken out of the tables before
//! the lanes forget its keys, and a slot is given out again only after they did.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};

use super::placement::{LinkKey, PeerSpec, Placement};
use crate::cluster::View;
use crate::control::identity::NodeIdentity;
use crate::forward::Tables;
use crate::id::{EndpointId, LinkSlot, NodeId, PortSlot, Version};
use crate::io::tap::Tap;
use crate::membership::SignedMembership;
use crate::worker::{Command, Lane, LaneGone};

/// The lanes of this node and their tables.
pub(crate) struct DataPlane {
    lanes: Vec<Arc<Lane>>,
    tables: Arc<ArcSwap<Tables>>,
    placement: Mutex<Placement>,
    peers: watch::Sender<BTreeMap<NodeId, PeerSpec>>,
    followed: watch::Sender<Version>,
}

impl DataPlane {
    /// Takes over running lanes that look things up in `tables`.
    pub(crate) fn new(identity: &NodeIdentity, lanes: Vec<Arc<Lane>>, tables: Arc<ArcSwap<Tables>>) -> Self {
        Self {
            lanes,
            tables,
            placement: Mutex::new(Placement::new(identity)),
            peers: watch::Sender::default(),
            followed: watch::Sender::default(),
        }
    }

    /// The lanes.
    pub(crate) fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// The peers that keys are needed with, whenever they change.
    pub(crate) fn peers(&self) -> watch::Receiver<BTreeMap<NodeId, PeerSpec>> {
        self.peers.subscribe()
    }

    /// The version of the view that the lanes forward by.
    pub(crate) fn followed(&self) -> watch::Receiver<Version> {
        self.followed.subscribe()
    }

    /// The view that the lanes forward by.
    pub(crate) async fn view(&self) -> Arc<View> {
        Arc::clone(self.placement.lock().await.view())
    }

    /// Follows a new view; returns once every lane forwards by it.
    pub(crate) async fn follow(&self, view: Arc<View>) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        let version = view.version;
        placement.follow(view);
        self.publish(&mut placement).await?;
        self.peers.send_replace(placement.peers());
        self.followed.send_replace(version);
        Ok(())
    }

    /// Gives a local endpoint's interface to the lanes.
    pub(crate) async fn add_port(&self, endpoint: EndpointId, tap: Tap) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        let slot = placement.hold_port(endpoint);
        self.publish(&mut placement).await?;
        let [lane] = self.lanes.as_slice() else { unreachable!("a TAP has one queue, so there is one lane") };
        lane.execute(Command::AddPort { slot, tap }).await
    }

    /// Takes a local endpoint's interface from the lanes; returns once no lane has it open.
    pub(crate) async fn remove_port(&self, endpoint: EndpointId) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        let Some(slot) = placement.port(endpoint) else { return Ok(()) };
        for lane in &self.lanes {
            lane.execute(Command::RemovePort(slot)).await?;
        }
        placement.release_port(endpoint);
        self.publish(&mut placement).await
    }

    /// Follows a membership that a peer passed on, if it is signed and newer than the one known.
    pub(crate) async fn adopt(&self, signed: &SignedMembership) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        match placement.adopt(signed) {
            Ok(true) => {
                self.publish(&mut placement).await?;
                self.peers.send_replace(placement.peers());
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "refused a membership that a peer passed on"),
        }
        Ok(())
    }

    /// Makes every lane forget a link's keys.
    pub(crate) async fn forget_keys(&self, slot: LinkSlot) -> Result<(), LaneGone> {
        for lane in &self.lanes {
            lane.execute(Command::DropLink(slot)).await?;
        }
        Ok(())
    }

    /// Ends a link: no lane knows a key of it, and its slot is free unless it is wanted again.
    pub(crate) async fn end_link(&self, key: LinkKey, slot: LinkSlot) -> Result<(), LaneGone> {
        let mut placement = self.placement.lock().await;
        for lane in &self.lanes {
            lane.execute(Command::RemoveLink(slot)).await?;
        }
        placement.release_link(key);
        Ok(())
    }

    /// The link in a slot, as lanes report it.
    pub(crate) async fn link(&self, slot: LinkSlot) -> Option<LinkKey> {
        self.placement.lock().await.link(slot)
    }

    /// Every link with its slot.
    pub(crate) async fn links(&self) -> BTreeMap<LinkKey, LinkSlot> {
        self.placement.lock().await.links()
    }

    /// The local endpoint in a slot, as lanes report it.
    pub(crate) async fn endpoint(&self, slot: PortSlot) -> Option<EndpointId> {
        self.placement.lock().await.endpoint(slot)
    }

    /// The slot of a local endpoint.
    pub(crate) async fn port(&self, endpoint: EndpointId) -> Option<PortSlot> {
        self.placement.lock().await.port(endpoint)
    }

    async fn publish(&self, placement: &mut Placement) -> Result<(), LaneGone> {
        self.tables.store(Arc::new(placement.tables()));
        for lane in &self.lanes {
            lane.execute(Command::Sync).await?;
        }
        Ok(())
    }
}
