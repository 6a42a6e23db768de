//! From the cluster's view to the lanes' tables: which network, endpoint and peer has which slot.
//!
//! It decides and does no I/O; [`super::dataplane`] publishes what it builds. A network whose part
//! of the view did not change is carried over as it is.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::slots::Slots;
use crate::cluster::{Endpoint, Membership, NetworkView, Node, View};
use crate::control::identity::NodeIdentity;
use crate::datapath::MAX_MTU;
use crate::forward::{EndpointSpec, NetworkTable, Place, Tables, TablesBuilder};
use crate::id::{EndpointId, LinkSlot, NetSlot, NetworkId, NetworkName, NodeId, PortSlot, VtepSlot};
use crate::membership::{KnownMemberships, MembershipError, News, SignedMembership};
use crate::wire::vxlan;

/// A link: one peer in one encrypted network.
pub(crate) type LinkKey = (NetworkId, NodeId);

/// A network that a peer shares with this node, as its key exchange needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkSpec {
    /// The slot of the link in tables and lanes.
    pub(crate) slot: LinkSlot,
    /// The network's name, for the log.
    pub(crate) name: NetworkName,
    /// Who may hold its keys.
    pub(crate) membership: Membership,
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
    view: Arc<View>,
    memberships: KnownMemberships,
    networks: Slots<NetworkId>,
    ports: Slots<EndpointId>,
    links: Slots<LinkKey>,
    built: HashMap<NetworkId, (NetworkView, Arc<NetworkTable>)>,
}

impl Placement {
    /// Nothing is placed yet; `identity` is this node's.
    pub(crate) fn new(identity: &NodeIdentity) -> Self {
        Self {
            node: identity.node(),
            view: Arc::default(),
            memberships: KnownMemberships::new(identity.root().to_vec(), identity.cluster()),
            networks: Slots::default(),
            ports: Slots::default(),
            links: Slots::default(),
            built: HashMap::new(),
        }
    }

    /// The view that the tables follow.
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Takes a new view. A network whose membership is not signed as it should be is not carried.
    pub(crate) fn follow(&mut self, view: Arc<View>) {
        for network in view.networks.values() {
            let believed = self.memberships.accept(&network.membership, &view.removed);
            if let Err(error) = believed {
                tracing::error!(network = %network.network.name, %error, "the network is not carried");
            }
        }
        for network in self.view.networks.keys().filter(|network| !view.networks.contains_key(network)) {
            self.memberships.forget(*network);
        }
        self.view = view;
        self.settle();
    }

    /// Takes a membership that a peer passed on; false if it is of no network of this node or not
    /// newer than the one known.
    ///
    /// # Errors
    /// It is not signed as it should be.
    pub(crate) fn adopt(&mut self, signed: &SignedMembership) -> Result<bool, MembershipError> {
        let (network, news) = self.memberships.accept(signed, &self.view.removed)?;
        if !self.view.networks.contains_key(&network) {
            self.memberships.forget(network);
            return Ok(false);
        }
        self.built.remove(&network);
        self.settle();
        Ok(news == News::Newer)
    }

    /// Whether this node may carry a network: by the newest membership it is a member.
    fn is_member(&self, network: NetworkId) -> bool {
        self.memberships.get(network).is_some_and(|membership| membership.nodes.contains(&self.node))
    }

    fn settle(&mut self) {
        let links: Vec<LinkKey> = self.wanted_links().map(|(key, ..)| key).collect();
        for key in links {
            self.links.hold(key);
        }
        let held: Vec<NetworkId> = self.networks.iter().map(|(id, _)| *id).collect();
        for id in held {
            if !self.is_member(id) {
                self.networks.release(&id);
                self.built.remove(&id);
            }
        }
        let carried: Vec<NetworkId> =
            self.view.networks.keys().copied().filter(|id| self.is_member(*id)).collect();
        for id in carried {
            self.networks.hold(id);
        }
    }

    /// Gives a local endpoint its slot.
    pub(crate) fn hold_port(&mut self, endpoint: EndpointId) -> PortSlot {
        self.built.clear();
        PortSlot::new(self.ports.hold(endpoint))
    }

    /// Takes a local endpoint's slot back, once no lane knows it.
    pub(crate) fn release_port(&mut self, endpoint: EndpointId) {
        self.built.clear();
        self.ports.release(&endpoint);
    }

    /// The slot of a local endpoint.
    pub(crate) fn port(&self, endpoint: EndpointId) -> Option<PortSlot> {
        self.ports.get(&endpoint).map(PortSlot::new)
    }

    /// The local endpoint in a slot.
    pub(crate) fn endpoint(&self, port: PortSlot) -> Option<EndpointId> {
        self.ports.iter().find(|(_, slot)| *slot == port.get()).map(|(id, _)| *id)
    }

    /// Takes a link's slot back, once no lane knows it; refused while the view wants the link.
    pub(crate) fn release_link(&mut self, key: LinkKey) {
        if !self.wanted_links().any(|(wanted, ..)| wanted == key) {
            self.links.release(&key);
        }
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
            let Some(slot) = self.links.get(&(network, peer)) else { continue };
            let Some(membership) = self.memberships.get(network) else { continue };
            let spec = LinkSpec {
                slot: LinkSlot::new(slot),
                name: view.network.name.clone(),
                membership: membership.clone(),
            };
            peers
                .entry(peer)
                .or_insert_with(|| PeerSpec { node: node.clone(), links: BTreeMap::new() })
                .links
                .insert(network, spec);
        }
        peers
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
        let (network, mtu) = (&view.network, effective_mtu(view));
        if network.encrypted {
            let place = |node| self.links.get(&(network.id, node)).map(LinkSlot::new);
            return NetworkTable::encrypted(network.vni, mtu, self.endpoints(view, place));
        }
        let remotes: Vec<&Node> = self.other_members(view).collect();
        let vteps = remotes.iter().map(|node| SocketAddr::new(node.data.ip(), vxlan::PORT)).collect();
        let place = |wanted| {
            let slot = remotes.iter().position(|node| node.id == wanted)?;
            Some(VtepSlot::new(u32::try_from(slot).ok()?))
        };
        NetworkTable::plain(network.vni, mtu, vteps, self.endpoints(view, place))
    }

    /// The endpoints that can be placed: here, or on a member.
    fn endpoints<R>(&self, view: &NetworkView, remote: impl Fn(NodeId) -> Option<R>) -> Vec<EndpointSpec<R>> {
        let place = |endpoint: &Endpoint| {
            if endpoint.node == self.node {
                return self.port(endpoint.id).map(Place::Local);
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
        let encrypted = self.view.networks.values().filter(|view| view.network.encrypted);
        encrypted.flat_map(|view| {
            self.other_members(view).map(move |node| ((view.network.id, node.id), node, view))
        })
    }

    fn other_members<'v>(&self, view: &'v NetworkView) -> impl Iterator<Item = &'v Node> {
        let id = view.network.id;
        let members = self.memberships.get(id).filter(|_| self.is_member(id)).map(|m| m.nodes.clone());
        let this = self.node;
        view.nodes
            .iter()
            .filter(move |node| node.id != this && members.as_ref().is_some_and(|m| m.contains(&node.id)))
    }
}

/// MTU of the containers' interfaces in a network, in bytes: the operator's, or what fits through
/// the smallest underlay of its members without a fragment.
pub(crate) fn effective_mtu(view: &NetworkView) -> u16 {
    if let Some(mtu) = view.network.mtu {
        return mtu.min(MAX_MTU);
    }
    let underlay = view.nodes.iter().map(|node| node.underlay_mtu).min().unwrap_or(DEFAULT_UNDERLAY_MTU);
    let over_ipv6 = view.nodes.iter().any(|node| node.data.is_ipv6());
    let overhead = match (view.network.encrypted, over_ipv6) {
        (true, false) => 92,
        (true, true) => 112,
        (false, false) => 50,
        (false, true) => 70,
    };
    u16::try_from(underlay.saturating_sub(overhead)).unwrap_or(MAX_MTU).min(MAX_MTU)
}

/// Ethernet's: what a network without a member that says more is cut to.
const DEFAULT_UNDERLAY_MTU: u32 = 1500;
