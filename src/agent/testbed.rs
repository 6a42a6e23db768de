//! A cluster on paper: its manager signs memberships, and views are put together by hand.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::authority::first_identity;
use super::dataplane::DataPlane;
use crate::cluster::{Endpoint, Membership, Network, NetworkView, Node, Role, Subnet, View};
use crate::control::ca::CertificateAuthority;
use crate::control::identity::NodeIdentity;
use crate::datapath::FloodLimit;
use crate::forward::Tables;
use crate::id::{ClusterId, EndpointId, Epoch, LaneId, MacAddr, NetworkId, NodeId, Version, Vni};
use crate::io::clock::wall_clock;
use crate::io::udp::{UdpOptions, UdpSocket};
use crate::membership::{Removals, Roots, SignedMembership, SignedRemovals};
use crate::wire::traffic_class::Dscp;
use crate::wire::vxlan::LeftChecksums;
use crate::worker::{self, LaneConfig};

pub(super) struct PaperCluster {
    /// Of the manager, which is the node under test as well.
    pub(super) identity: NodeIdentity,
    version: u64,
}

impl PaperCluster {
    pub(super) fn new() -> Self {
        let cluster = ClusterId::from_entropy([7; 16]);
        let authority = CertificateAuthority::create(cluster, wall_clock()).expect("an authority");
        let identity = first_identity(&authority, Duration::from_secs(7200)).expect("an identity");
        Self { identity, version: 0 }
    }

    pub(super) fn this(&self) -> NodeId {
        self.identity.node()
    }

    /// A data plane of this node with one lane.
    pub(super) fn dataplane(&self) -> DataPlane {
        self.dataplane_over(&Arc::default())
    }

    /// The same, whose lane looks things up in `tables`.
    pub(super) fn dataplane_over(&self, tables: &Arc<ArcSwap<Tables>>) -> DataPlane {
        let config = LaneConfig {
            id: LaneId::new(0).expect("a lane"),
            esp: UdpSocket::bind(([127, 0, 0, 1], 0).into(), &UdpOptions::default())
                .expect("a socket")
                .into(),
            vxlan: None,
            tables: Arc::clone(tables),
            flood: FloodLimit { frames_per_second: 1, burst: 1 }.into(),
            busy_poll: Duration::ZERO,
            vigil: None,
            precedence: None,
            dscp: Dscp::Hidden,
            checksums: LeftChecksums::Passed,
        };
        let lane = Arc::new(worker::spawn(config).expect("a lane"));
        DataPlane::new(&self.identity, vec![lane], Arc::clone(tables))
    }

    pub(super) fn sign(&self, membership: &Membership) -> SignedMembership {
        SignedMembership::sign(membership, |payload| self.identity.signature(payload)).expect("signed")
    }

    pub(super) fn sign_removals(&self, epoch: u64, removed: &[u8]) -> SignedRemovals {
        let nodes = removed.iter().map(|number| peer(*number)).collect();
        let removals = Removals { epoch: Epoch::new(epoch), nodes, demoted: Default::default() };
        SignedRemovals::sign(&removals, |payload| self.identity.signature(payload)).expect("signed")
    }

    pub(super) fn membership(&self, id: u8, epoch: u64, others: &[u8]) -> Membership {
        Membership {
            network: network_id(id),
            vni: vni(id),
            epoch: Epoch::new(epoch),
            nodes: others.iter().map(|other| peer(*other)).chain([self.this()]).collect(),
        }
    }

    /// A network of this node and `others`, with one endpoint on each, numbered as they are.
    pub(super) fn network(&self, id: u8, epoch: u64, others: &[u8]) -> NetworkView {
        let network = Network {
            id: network_id(id),
            name: format!("net-{id}").parse().expect("a name"),
            vni: vni(id),
            encrypted: true,
            subnets: vec![Subnet {
                cidr: "10.0.0.0/24".parse().expect("a subnet"),
                gateway: None,
                ip_range: None,
            }],
            mtu: None,
            labels: std::collections::BTreeMap::new(),
            node_labels: std::collections::BTreeMap::new(),
        };
        let node = |id, number: u8| Node {
            id,
            name: format!("node-{number}").parse().expect("a name"),
            role: Role::Worker,
            advertise: SocketAddr::from(([192, 0, 2, number], 2377)),
            data: SocketAddr::from(([192, 0, 2, number], 4500)),
            underlay_mtu: 1500,
        };
        let numbered = |number: &u8| (peer(*number), *number);
        let everybody: Vec<_> = others.iter().map(numbered).chain([(self.this(), THIS)]).collect();
        NetworkView {
            membership: self.sign(&self.membership(id, epoch, others)),
            endpoints: everybody.iter().map(|(at, number)| endpoint(id, *number, *at)).collect(),
            nodes: everybody.iter().map(|(at, number)| node(*at, *number)).collect(),
            network,
        }
    }

    pub(super) fn view(&mut self, networks: Vec<NetworkView>, removed: &[u8]) -> Arc<View> {
        self.version += 1;
        Arc::new(View {
            version: Version::new(self.version),
            managers: Vec::new(),
            removed: removed.iter().map(|number| peer(*number)).collect::<BTreeSet<_>>(),
            removals: None,
            roots: Roots::default(),
            networks: networks.into_iter().map(|network| (network.network.id, network)).collect(),
        })
    }
}

pub(super) fn peer(number: u8) -> NodeId {
    NodeId::from_entropy([number; 16])
}

pub(super) fn network_id(number: u8) -> NetworkId {
    NetworkId::from_entropy([number; 16])
}

pub(super) fn endpoint_id(network: u8, number: u8) -> EndpointId {
    EndpointId::from_entropy([network, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

pub(super) fn mac(number: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, number])
}

pub(super) fn vni(network: u8) -> Vni {
    Vni::new(4096 + u32::from(network)).expect("a VNI")
}

fn endpoint(network: u8, number: u8, node: NodeId) -> Endpoint {
    Endpoint {
        id: endpoint_id(network, number),
        network: network_id(network),
        node,
        name: None,
        mac: mac(number),
        addresses: vec![format!("10.0.0.{number}/24").parse().expect("an address")],
    }
}

/// The number of the node under test.
pub(super) const THIS: u8 = 200;
