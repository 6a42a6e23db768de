//! From the cluster's view to the lanes' tables: which network, endpoint and peer has which slot.
//!
//! It decides and does no I/O; [`super::dataplane`] publishes what it builds. A network whose part
//! of the view did not change is carried over as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::slots::{Hold, Slots};
use super::underlay::{Narrow, effective_mtu};
use crate::cluster::{Endpoint, Membership, NetworkView, Node, View};
use crate::control::identity::NodeIdentity;
use crate::forward::{EndpointSpec, NetworkTable, Place, Tables, TablesBuilder};
use crate::id::{
    EndpointId, Epoch, LinkSlot, NetSlot, NetworkId, NetworkName, NodeId, PortHold, PortSlot, Version, Vni,
    VtepSlot,
};
use crate::membership::{
    KnownMemberships, KnownRemovals, MembershipError, News, Roots, SignedMembership, SignedRemovals,
};
use crate::wire::vxlan;

/// One peer in one network: a link if the network is encrypted, a VTEP if not.
pub(crate) type LinkKey = (NetworkId, NodeId);

/// A network that a peer shares with this node, as its key exchange needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkSpec {
    /// The link's slot in tables and lanes, for as long as the link lives: another hold is another link.
    pub(crate) hold: Hold,
    /// The network's name, for the log.
    pub(crate) name: NetworkName,
    /// Who may hold its keys.
    pub(crate) membership: Arc<Membership>,
    /// The epoch with which a member was left out last.
    pub(crate) narrowed: Epoch,
}

/// A peer and the encrypted networks that it shares with this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSpec {
    /// The peer.
    pub(crate) node: Node,
    /// The networks.
    pub(crate) links: BTreeMap<NetworkId, LinkSpec>,
}

/// Who has which slot, and what the tables were made from.
#[derive(Debug)]
pub(crate) struct Placement {
    node: NodeId,
    /// Of this node, as it is now; the view may not know it yet.
    underlay_mtu: Option<u32>,
    view: Arc<View>,
    memberships: KnownMemberships,
    removals: KnownRemovals,
    /// Who was removed by the view or by a newer list that a peer passed on.
    removed: BTreeSet<NodeId>,
    networks: Slots<NetworkId>,
    ports: Slots<EndpointId>,
    links: Slots<LinkKey>,
    vteps: Slots<LinkKey>,
    built: HashMap<NetworkId, (NetworkView, Arc<NetworkTable>)>,
    /// How each network that was ever seen is carried: encryption is fixed for the life of an id.
    is_encrypted: HashMap<NetworkId, bool>,
    refused: BTreeMap<NetworkId, NotCarried>,
}

/// Why a network of the view is not carried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotCarried {
    /// Its membership is not to be believed, and no older one is known.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The signed membership is of another network or VNI.
    #[error("its signed membership is of network {network} with VNI {vni}")]
    OtherNetwork {
        /// The network that was signed.
        network: NetworkId,
        /// Its VNI.
        vni: Vni,
    },
    /// It was encrypted and is to be plain, or the other way round.
    #[error("it is said to be {} now, and was not", if *encrypted { "encrypted" } else { "unencrypted" })]
    Encryption {
        /// What it is said to be.
        encrypted: bool,
    },
}

impl Placement {
    /// Nothing is placed yet; `identity` is this node's.
    pub(crate) fn new(identity: &NodeIdentity) -> Self {
        let roots = Roots::sole(identity.root().to_vec());
        Self {
            node: identity.node(),
            underlay_mtu: None,
            view: Arc::default(),
            memberships: KnownMemberships::new(roots.clone(), identity.cluster()),
            removals: KnownRemovals::new(roots, identity.cluster()),
            removed: BTreeSet::new(),
            networks: Slots::default(),
            ports: Slots::default(),
            links: Slots::default(),
            vteps: Slots::default(),
            built: HashMap::new(),
            is_encrypted: HashMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The view that the tables follow.
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The MTU of the containers' interfaces in a network of the view.
    pub(crate) fn mtu(&self, view: &NetworkView) -> u16 {
        effective_mtu(view, self.node, self.underlay_mtu)
    }

    /// The networks of the view whose packets do not fit through an underlay.
    pub(crate) fn narrow(&self) -> Vec<Narrow> {
        let networks = self.view.networks.values();
        networks.filter_map(|view| Narrow::of(view, self.node, self.underlay_mtu)).collect()
    }

    /// Takes note of the MTU of this node's underlay.
    pub(crate) fn follow_underlay(&mut self, mtu: u32) {
        self.underlay_mtu = Some(mtu);
        self.built.clear();
    }

    /// The networks of the view that are not carried, and why.
    pub(crate) fn refused(&self) -> &BTreeMap<NetworkId, NotCarried> {
        &self.refused
    }

    /// Takes a new view. A network whose membership is not signed as it should be, or that
    /// contradicts what is known of it, is not carried.
    pub(crate) fn follow(&mut self, view: Arc<View>) {
        for network in self.view.networks.keys().filter(|network| !view.networks.contains_key(network)) {
            self.memberships.forget(*network);
        }
        if !view.roots.is_empty() {
            self.memberships.trust(view.roots.clone());
            self.removals.trust(view.roots.clone());
        }
        if let Some(Err(error)) = view.removals.as_ref().map(|list| self.removals.accept(list, &view.removed))
        {
            tracing::warn!(%error, "the manager's list of removed nodes is not believed, nor passed on");
        }
        self.unite_removed(&view);
        let mut refused = BTreeMap::new();
        for (id, network) in &view.networks {
            if let Err(error) = self.examine(*id, network) {
                if self.refused.get(id) != Some(&error) {
                    tracing::error!(network = %network.network.name, %error, "the network is not carried");
                }
                refused.insert(*id, error);
            }
        }
        self.refused = refused;
        self.view = view;
        self.settle();
    }

    fn examine(&mut self, id: NetworkId, view: &NetworkView) -> Result<(), NotCarried> {
        let encrypted = view.network.encrypted;
        if *self.is_encrypted.entry(id).or_insert(encrypted) != encrypted {
            return Err(NotCarried::Encryption { encrypted });
        }
        let believed = self.memberships.accept(&view.membership, &self.removed);
        let Some(membership) = self.memberships.get(id) else {
            let (network, _) = believed?;
            let vni = self.memberships.get(network).map_or(view.network.vni, |signed| signed.vni);
            return Err(NotCarried::OtherNetwork { network, vni });
        };
        if membership.vni != view.network.vni {
            return Err(NotCarried::OtherNetwork { network: id, vni: membership.vni });
        }
        if let Err(error) = believed {
            tracing::warn!(network = %view.network.name, %error, "an older membership stays in force");
        }
        Ok(())
    }

    /// Takes a membership that a peer passed on; false if it is of no network of this node or not
    /// newer than the one known.
    ///
    /// # Errors
    /// It is not signed as it should be.
    pub(crate) fn adopt(&mut self, signed: &SignedMembership) -> Result<bool, MembershipError> {
        let (network, news) = self.memberships.accept(signed, &self.removed)?;
        if !self.view.networks.contains_key(&network) {
            self.memberships.forget(network);
            return Ok(false);
        }
        self.built.remove(&network);
        self.settle();
        Ok(news == News::Newer)
    }

    /// Takes a list of removed nodes that a peer passed on; false if it is not newer than the one known.
    ///
    /// # Errors
    /// It is not signed as it should be.
    pub(crate) fn adopt_removals(&mut self, signed: &SignedRemovals) -> Result<bool, MembershipError> {
        if self.removals.accept(signed, &self.removed)? != News::Newer {
            return Ok(false);
        }
        let view = Arc::clone(&self.view);
        self.unite_removed(&view);
        self.settle();
        Ok(true)
    }

    /// The nodes that were removed, as far as this node knows.
    pub(crate) fn removed(&self) -> &BTreeSet<NodeId> {
        &self.removed
    }

    /// The nodes that are managers no more, as far as this node knows.
    pub(crate) fn demoted(&self) -> BTreeMap<NodeId, Version> {
        self.removals.demoted()
    }

    /// The newest list of them, as a manager signed it.
    pub(crate) fn signed_removals(&self) -> Option<&SignedRemovals> {
        self.removals.signed()
    }

    /// A list that a peer passed on may be newer than the view, so neither counts alone.
    fn unite_removed(&mut self, view: &View) {
        let removed = view.removed.iter().copied().chain(self.removals.nodes()).collect();
        if self.removed != removed {
            self.removed = removed;
            self.built.clear();
        }
        self.memberships.demote(self.removals.demoted());
    }

    /// The newest membership of a network, by which this node may carry it; nothing if it may not.
    pub(crate) fn carried_by(&self, network: NetworkId) -> Option<&Arc<Membership>> {
        let membership = self.memberships.get(network)?;
        (!self.refused.contains_key(&network) && membership.nodes.contains(&self.node)).then_some(membership)
    }

    /// The newest membership of a network, as a manager signed it.
    pub(crate) fn signed_membership(&self, network: NetworkId) -> Option<&SignedMembership> {
        self.memberships.signed(network)
    }

    /// The same, if it leaves this node out.
    pub(crate) fn membership_without(&self, network: NetworkId, node: NodeId) -> Option<&SignedMembership> {
        let membership = self.memberships.get(network)?;
        let is_out = !membership.nodes.contains(&node) && !self.removed.contains(&node);
        self.memberships.signed(network).filter(|_| is_out)
    }

    /// Those that are in force and that the view has not: peers passed them on.
    pub(crate) fn passed_on(&self) -> BTreeMap<NetworkId, SignedMembership> {
        let networks = self.view.networks.iter().filter_map(|(id, view)| {
            let signed =
                self.memberships.signed(*id).filter(|signed| signed.payload != view.membership.payload)?;
            Some((*id, signed.clone()))
        });
        networks.collect()
    }

    /// The epoch of the newest membership of a network.
    pub(crate) fn membership_epoch(&self, network: NetworkId) -> Option<Epoch> {
        self.memberships.get(network).map(|membership| membership.epoch)
    }

    fn settle(&mut self) {
        let links: Vec<LinkKey> = self.wanted_links().map(|(key, ..)| key).collect();
        for key in links {
            self.links.hold(key);
        }
        for key in self.wanted_vteps() {
            self.vteps.hold(key);
        }
        let held: Vec<NetworkId> = self.networks.iter().map(|(id, _)| *id).collect();
        for id in held {
            if self.carried_by(id).is_none() {
                self.networks.release(&id);
                self.built.remove(&id);
            }
        }
        let carried: Vec<NetworkId> =
            self.view.networks.keys().copied().filter(|id| self.carried_by(*id).is_some()).collect();
        for id in carried {
            self.networks.hold(id);
        }
    }

    /// Gives a local endpoint its slot.
    pub(crate) fn hold_port(&mut self, endpoint: EndpointId) -> PortSlot {
        self.forget_table_of(endpoint);
        PortSlot::new(self.ports.hold(endpoint))
    }

    /// Takes a local endpoint's slot back, once no lane knows it.
    pub(crate) fn release_port(&mut self, endpoint: EndpointId) {
        self.forget_table_of(endpoint);
        self.ports.release(&endpoint);
    }

    /// Of all tables, those of other networks know nothing of an endpoint's slot.
    fn forget_table_of(&mut self, endpoint: EndpointId) {
        self.built.retain(|_, (view, _)| view.endpoints.iter().all(|known| known.id != endpoint));
    }

    /// The slot of a local endpoint, and which hold of it that is.
    pub(crate) fn port(&self, endpoint: EndpointId) -> Option<(PortSlot, PortHold)> {
        self.ports.held(&endpoint).map(|hold| (PortSlot::new(hold.slot), PortHold::new(hold.number)))
    }

    /// The local endpoint in a slot.
    pub(crate) fn endpoint(&self, port: PortSlot) -> Option<EndpointId> {
        self.ports.iter().find(|(_, slot)| *slot == port.get()).map(|(id, _)| *id)
    }

    /// The links that hold a slot and are not wanted any more.
    pub(crate) fn ended_links(&self) -> Vec<(LinkKey, LinkSlot)> {
        let wanted: BTreeSet<LinkKey> = self.wanted_links().map(|(key, ..)| key).collect();
        let ended = self.links.iter().filter(|(key, _)| !wanted.contains(key));
        ended.map(|(key, slot)| (*key, LinkSlot::new(slot))).collect()
    }

    /// Takes an ended link's slot back, once no lane knows it.
    pub(crate) fn release_link(&mut self, key: LinkKey) {
        self.links.release(&key);
    }

    /// The VTEPs that hold a slot and are not wanted any more.
    pub(crate) fn ended_vteps(&self) -> Vec<(LinkKey, VtepSlot)> {
        let wanted = self.wanted_vteps();
        let ended = self.vteps.iter().filter(|(key, _)| !wanted.contains(key));
        ended.map(|(key, slot)| (*key, VtepSlot::new(slot))).collect()
    }

    /// Takes an ended VTEP's slot back, once no lane knows it.
    pub(crate) fn release_vtep(&mut self, key: LinkKey) {
        self.vteps.release(&key);
    }

    /// Every VTEP with its slot.
    pub(crate) fn vteps(&self) -> BTreeMap<LinkKey, VtepSlot> {
        self.vteps.iter().map(|(key, slot)| (*key, VtepSlot::new(slot))).collect()
    }

    /// The slot of a link, if this hold of it has not ended.
    pub(crate) fn held_link(&self, key: LinkKey, hold: Hold) -> Option<LinkSlot> {
        self.links.held(&key).filter(|held| *held == hold).map(|held| LinkSlot::new(held.slot))
    }

    /// The link in a slot.
    pub(crate) fn link(&self, slot: LinkSlot) -> Option<LinkKey> {
        self.links.iter().find(|(_, held)| *held == slot.get()).map(|(key, _)| *key)
    }

    /// Every link with its slot.
    pub(crate) fn links(&self) -> BTreeMap<LinkKey, LinkSlot> {
        self.links.iter().map(|(key, slot)| (*key, LinkSlot::new(slot))).collect()
    }

    /// The peers that keys are needed with.
    pub(crate) fn peers(&self) -> BTreeMap<NodeId, PeerSpec> {
        let mut peers = BTreeMap::new();
        for ((network, peer), node, view) in self.wanted_links() {
            let Some(hold) = self.links.held(&(network, peer)) else { continue };
            let Some(membership) = self.memberships.get(network) else { continue };
            let spec = LinkSpec {
                hold,
                name: view.network.name.clone(),
                membership: Arc::clone(membership),
                narrowed: self.memberships.narrowed(network).unwrap_or_default(),
            };
            peers
                .entry(peer)
                .or_insert_with(|| PeerSpec { node: node.clone(), links: BTreeMap::new() })
                .links
                .insert(network, spec);
        }
        peers
    }

    /// Carries nothing over: the next tables are made of the view alone.
    pub(crate) fn forget_tables(&mut self) {
        self.built.clear();
    }

    /// Every local endpoint's slot, and which hold of it that is.
    pub(crate) fn ports(&self) -> BTreeMap<EndpointId, (PortSlot, PortHold)> {
        self.ports.iter().filter_map(|(endpoint, _)| Some((*endpoint, self.port(*endpoint)?))).collect()
    }

    /// The tables for the lanes.
    pub(crate) fn tables(&mut self) -> Tables {
        let mut builder = TablesBuilder::default();
        let view = Arc::clone(&self.view);
        for (id, network) in &view.networks {
            let Some(slot) = self.networks.get(id).map(NetSlot::new) else { continue };
            let table = match self.built.get(id) {
                Some((from, table)) if from == network => Arc::clone(table),
                Some(_) | None => {
                    let table = Arc::new(self.network_table(network));
                    self.built.insert(*id, (network.clone(), Arc::clone(&table)));
                    table
                }
            };
            builder = builder.network(slot, table);
        }
        for ((network, peer), node, _) in self.wanted_links() {
            let slots = (self.networks.get(&network), self.links.get(&(network, peer)));
            let (Some(net), Some(link)) = slots else { continue };
            builder = builder.link(LinkSlot::new(link), NetSlot::new(net), node.data);
        }
        builder.build()
    }

    fn network_table(&self, view: &NetworkView) -> NetworkTable {
        let (network, mtu) = (&view.network, self.mtu(view));
        if network.encrypted {
            let members: BTreeSet<NodeId> = self.other_members(view).map(|node| node.id).collect();
            let link = |node| self.links.get(&(network.id, node)).map(LinkSlot::new);
            let place = |node| members.contains(&node).then(|| link(node)).flatten();
            return NetworkTable::encrypted(network.vni, mtu, self.endpoints(view, place));
        }
        let slot = |node: &Node| Some((node.id, VtepSlot::new(self.vteps.get(&(network.id, node.id))?)));
        let slots: BTreeMap<NodeId, VtepSlot> = self.other_members(view).filter_map(slot).collect();
        let vteps = self.other_members(view).filter_map(|node| Some((*slots.get(&node.id)?, vtep_of(node))));
        let place = |node| slots.get(&node).copied();
        NetworkTable::plain(network.vni, mtu, vteps.collect(), self.endpoints(view, place))
    }

    /// The endpoints that can be placed: here, or on a member.
    fn endpoints<R>(&self, view: &NetworkView, remote: impl Fn(NodeId) -> Option<R>) -> Vec<EndpointSpec<R>> {
        let place = |endpoint: &Endpoint| {
            if endpoint.node == self.node {
                return self.port(endpoint.id).map(|(slot, _)| Place::Local(slot));
            }
            remote(endpoint.node).map(Place::Remote)
        };
        let gateways: Vec<IpAddr> = view.network.subnets.iter().filter_map(|subnet| subnet.gateway).collect();
        view.endpoints
            .iter()
            .filter_map(|endpoint| {
                let addresses: Vec<IpAddr> = endpoint.addresses.iter().map(ipnet::IpNet::addr).collect();
                let is_gateway = addresses.iter().any(|address| gateways.contains(address));
                Some(EndpointSpec { mac: endpoint.mac, addresses, place: place(endpoint)?, is_gateway })
            })
            .collect()
    }

    fn wanted_links(&self) -> impl Iterator<Item = (LinkKey, &Node, &NetworkView)> {
        self.wanted_peers(true)
    }

    fn wanted_vteps(&self) -> BTreeSet<LinkKey> {
        self.wanted_peers(false).map(|(key, ..)| key).collect()
    }

    /// The peers in all networks that are encrypted, or in all that are not.
    fn wanted_peers(&self, encrypted: bool) -> impl Iterator<Item = (LinkKey, &Node, &NetworkView)> {
        let networks = self.view.networks.values().filter(move |view| view.network.encrypted == encrypted);
        networks.flat_map(|view| {
            self.other_members(view).map(move |node| ((view.network.id, node.id), node, view))
        })
    }

    /// The other nodes that packets of a network are exchanged with: its members that were not removed.
    pub(crate) fn other_members<'v>(&'v self, view: &'v NetworkView) -> impl Iterator<Item = &'v Node> {
        let membership = self.carried_by(view.network.id);
        view.nodes.iter().filter(move |node| {
            node.id != self.node
                && !self.removed.contains(&node.id)
                && membership.is_some_and(|membership| membership.nodes.contains(&node.id))
        })
    }
}

/// Where a node's plain VXLAN goes to.
pub(crate) fn vtep_of(node: &Node) -> SocketAddr {
    SocketAddr::new(node.data.ip(), vxlan::PORT)
}

#[cfg(test)]
mod tests;
