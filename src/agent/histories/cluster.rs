//! The manager of a history: who is in the cluster, what is attached where, signed memberships.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::authority::first_identity;
use crate::cluster::{Endpoint, Membership, Network, NetworkView, Node, Role, Subnet, View};
use crate::control::ca::CertificateAuthority;
use crate::control::identity::{NodeIdentity, NodeKey};
use crate::id::{ClusterId, EndpointId, Epoch, MacAddr, NetworkId, NodeId, Version, Vni};
use crate::io::clock::wall_clock;
use crate::membership::{Removals, SignedMembership, SignedRemovals};

/// How many nodes a cluster has.
pub(super) const NODES: usize = 5;
/// How many networks; the last is not encrypted.
pub(super) const NETWORKS: usize = 3;

/// Certificates of the manager, which carries nothing, and of the nodes; made once for all histories.
pub(super) struct Identities {
    manager: NodeIdentity,
    pub(super) nodes: Vec<NodeIdentity>,
}

impl Identities {
    pub(super) fn new() -> Self {
        let authority = CertificateAuthority::create(ClusterId::from_entropy([7; 16]), wall_clock())
            .expect("an authority");
        let manager = first_identity(&authority, Duration::from_secs(7200)).expect("an identity");
        let node = |index| {
            let key = NodeKey::generate().expect("a key");
            let csr = key.request_pem().expect("a request");
            let life = time::Duration::hours(2);
            let leaf = authority.issue(&csr, node_id(index), Role::Worker, wall_clock(), life);
            let leaf = leaf.expect("a certificate");
            NodeIdentity::new(vec![leaf], &key, authority.root().clone()).expect("an identity")
        };
        Self { manager, nodes: (0..NODES).map(node).collect() }
    }
}

/// What should be.
pub(super) struct Cluster<'i> {
    identities: &'i Identities,
    pub(super) version: u64,
    pub(super) endpoints: BTreeMap<EndpointId, Endpoint>,
    networks: Vec<(Membership, SignedMembership)>,
    pub(super) removed: BTreeSet<NodeId>,
    removals: Option<SignedRemovals>,
    attached: u8,
}

impl<'i> Cluster<'i> {
    pub(super) fn new(identities: &'i Identities) -> Self {
        let networks = (0..NETWORKS).map(|index| {
            let nodes = BTreeSet::new();
            let (network, vni) = (network_id(index), vni(index));
            sign(identities, Membership { network, vni, epoch: Epoch::new(1), nodes })
        });
        Self {
            identities,
            version: 1,
            endpoints: BTreeMap::new(),
            networks: networks.collect(),
            removed: BTreeSet::new(),
            removals: None,
            attached: 0,
        }
    }

    pub(super) fn attach(&mut self, node: usize, network: usize) -> EndpointId {
        self.attached += 1;
        let number = self.attached;
        let id = EndpointId::from_entropy([number; 16]);
        let address = format!("10.{network}.0.{number}/24").parse().expect("an address");
        let [a, b, c, d, e] = mac_prefix(network);
        self.endpoints.insert(
            id,
            Endpoint {
                id,
                network: network_id(network),
                node: node_id(node),
                name: None,
                mac: MacAddr::new([a, b, c, d, e, number]),
                addresses: vec![address],
            },
        );
        self.settle();
        id
    }

    pub(super) fn detach(&mut self, endpoint: EndpointId) {
        self.endpoints.remove(&endpoint);
        self.settle();
    }

    pub(super) fn remove(&mut self, node: usize) {
        let node = node_id(node);
        self.removed.insert(node);
        self.endpoints.retain(|_, endpoint| endpoint.node != node);
        let epoch = Epoch::new(u64::try_from(self.removed.len()).expect("few nodes"));
        let removals = Removals { epoch, nodes: self.removed.clone(), demoted: Default::default() };
        let signed = SignedRemovals::sign(&removals, |payload| self.identities.manager.signature(payload));
        self.removals = Some(signed.expect("signed"));
        self.settle();
    }

    /// The nodes that may hold keys of a network.
    pub(super) fn members(&self, network: usize) -> &BTreeSet<NodeId> {
        &self.networks[network].0.nodes
    }

    /// What a node is told.
    pub(super) fn view_for(&self, node: usize) -> Arc<View> {
        let networks = (0..NETWORKS).filter(|network| self.members(*network).contains(&node_id(node)));
        Arc::new(View {
            version: Version::new(self.version),
            managers: Vec::new(),
            removed: self.removed.clone(),
            removals: self.removals.clone(),
            roots: crate::membership::Roots::default(),
            networks: networks.map(|network| (network_id(network), self.network_view(network))).collect(),
        })
    }

    fn network_view(&self, index: usize) -> NetworkView {
        let (membership, signed) = &self.networks[index];
        let id = membership.network;
        let cidr = format!("10.{index}.0.0/24").parse().expect("a subnet");
        NetworkView {
            network: Network {
                id,
                name: format!("net-{index}").parse().expect("a name"),
                vni: membership.vni,
                encrypted: is_encrypted(index),
                subnets: vec![Subnet { cidr, gateway: None, ip_range: None }],
                mtu: None,
                labels: BTreeMap::new(),
                node_labels: BTreeMap::new(),
            },
            membership: signed.clone(),
            endpoints: self.endpoints.values().filter(|endpoint| endpoint.network == id).cloned().collect(),
            nodes: membership.nodes.iter().map(|node| node_record(index_of(*node))).collect(),
        }
    }

    /// Every change is a version, and every change of members an epoch.
    fn settle(&mut self) {
        self.version += 1;
        for (membership, signed) in &mut self.networks {
            let of_network =
                self.endpoints.values().filter(|endpoint| endpoint.network == membership.network);
            let nodes: BTreeSet<NodeId> = of_network.map(|endpoint| endpoint.node).collect();
            if nodes != membership.nodes {
                let epoch = Epoch::new(membership.epoch.get() + 1);
                let next = Membership { nodes, epoch, ..membership.clone() };
                (*membership, *signed) = sign(self.identities, next);
            }
        }
    }
}

fn sign(identities: &Identities, membership: Membership) -> (Membership, SignedMembership) {
    let signed = SignedMembership::sign(&membership, |payload| identities.manager.signature(payload));
    (membership, signed.expect("signed"))
}

pub(super) fn is_encrypted(network: usize) -> bool {
    network + 1 < NETWORKS
}

pub(super) fn node_id(index: usize) -> NodeId {
    NodeId::from_entropy([u8::try_from(index).expect("few nodes") + 1; 16])
}

pub(super) fn index_of(node: NodeId) -> usize {
    (0..NODES).find(|index| node_id(*index) == node).expect("one of ours")
}

pub(super) fn network_id(index: usize) -> NetworkId {
    NetworkId::from_entropy([u8::try_from(index).expect("few networks") + 1; 16])
}

/// How the addresses of a network's interfaces begin.
pub(super) fn mac_prefix(network: usize) -> [u8; 5] {
    [2, 0x17, 0xc4, 0x5e, u8::try_from(network).expect("few networks")]
}

fn vni(index: usize) -> Vni {
    Vni::new(4096 + u32::try_from(index).expect("few networks")).expect("a VNI")
}

fn node_record(index: usize) -> Node {
    Node {
        id: node_id(index),
        name: format!("node-{index}").parse().expect("a name"),
        role: Role::Worker,
        advertise: SocketAddr::new(data_address(index).ip(), 2377),
        data: data_address(index),
        underlay_mtu: 1500,
    }
}

/// Where a node receives encrypted data.
pub(super) fn data_address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(index).expect("few nodes") + 1], 4500))
}

/// The node at an address.
pub(super) fn index_at(address: SocketAddr) -> usize {
    (0..NODES).find(|index| data_address(*index).ip() == address.ip()).expect("one of ours")
}
