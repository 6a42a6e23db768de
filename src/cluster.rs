//! The things of a cluster as managers, agents and the command line all see them.
//!
//! Plain data with serde; every field is already a checked newtype, so what parses is meaningful.
//! Who may change them and how is `control::state`'s business.

mod managers;
mod mtu;
mod rotation;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{
    EndpointId, Epoch, HostName, MacAddr, NetworkId, NetworkName, NodeId, RuntimeName, Version, Vni,
};
use crate::membership::{Roots, SignedMembership, SignedRemovals};

pub use managers::ManagerState;
pub use mtu::{inner_mtu, overhead};
pub use rotation::RotationStep;

pub use self::tokens::{TokenInfo, TokenName, TokenState};

/// What a node may do; the organisational unit (OU) of its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Keeps the cluster's state and signs certificates and memberships.
    Manager,
    /// Carries containers.
    Worker,
}

impl Role {
    /// The OU in a certificate.
    pub const fn organizational_unit(self) -> &'static str {
        match self {
            Self::Manager => "overlayd-manager",
            Self::Worker => "overlayd-worker",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        })
    }
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id, also the CN of its certificate.
    pub id: NodeId,
    /// Its host name, for people.
    pub name: HostName,
    /// What it may do.
    pub role: Role,
    /// Where its TLS port is reached.
    pub advertise: SocketAddr,
    /// Where its encrypted data is reached (UDP); plain VXLAN uses the same address on port 4789.
    pub data: SocketAddr,
    /// MTU of the interface that holds the data address, in bytes.
    pub underlay_mtu: u32,
}

/// What managers say of a node. It is kept apart from [`Node`], so that nothing that the node says of itself
/// touches it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeProfile {
    /// Whether endpoints may be attached there.
    #[serde(default)]
    pub availability: Availability,
    /// Its labels, by which networks choose their nodes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Whether a node takes endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It does.
    #[default]
    Active,
    /// It takes no new ones; those that it has stay.
    Drain,
}

impl std::fmt::Display for Availability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Drain => "drain",
        })
    }
}

/// What shall be said of a node, in words.
pub fn profile_words(
    availability: Option<Availability>,
    label_add: &BTreeMap<String, String>,
    label_remove: &BTreeSet<String>,
) -> String {
    let availability = availability.map(|availability| availability.to_string());
    let added = label_add.iter().map(|(key, value)| format!("label-add {key}={value}"));
    let removed = label_remove.iter().map(|key| format!("label-rm {key}"));
    availability.into_iter().chain(added).chain(removed).collect::<Vec<_>>().join(" ")
}

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet, host bits zero.
    pub cidr: IpNet,
    /// Where containers send what is outside the subnets; reserved, given out only by request.
    pub gateway: Option<IpAddr>,
    /// Part of the subnet from which addresses are given without request.
    pub ip_range: Option<IpNet>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique in the cluster.
    pub name: NetworkName,
    /// Its VNI, unique in the cluster, on the wire.
    pub vni: Vni,
    /// Whether frames leave a node only inside ESP. Fixed at creation.
    pub encrypted: bool,
    /// Its subnets, at least one.
    pub subnets: Vec<Subnet>,
    /// MTU of the containers' interfaces when given by the operator, in bytes.
    pub mtu: Option<u16>,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
    /// The labels that a node must have to be a member; none for every node. Fixed at creation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
}

impl Network {
    /// Whether that is its name, or its id, which does for one.
    pub fn is_called(&self, name: &NetworkName) -> bool {
        self.name == *name || self.id.as_str() == name.as_str()
    }
}

/// A container's attachment to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id, minted by the attaching agent.
    pub id: EndpointId,
    /// The network.
    pub network: NetworkId,
    /// The node that the container runs on: where frames from this endpoint may come from.
    pub node: NodeId,
    /// The operator's name for it.
    pub name: Option<HostName>,
    /// Its MAC address, unique in the network.
    pub mac: MacAddr,
    /// Its addresses, one for each subnet, with the subnet's prefix length; unique in the network.
    pub addresses: Vec<IpNet>,
}

/// What an attachment is to the container runtime that asked for it, beside the interface's name (CNI SPEC 1.1.0,
/// section 3): whatever else becomes of the container, the runtime calls it so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniAttachment {
    /// The name of the runtime's network configuration.
    pub config: RuntimeName,
    /// The container (`CNI_CONTAINERID`).
    pub container: RuntimeName,
}

/// The nodes that may hold keys of a network: those with an endpoint in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The network.
    pub network: NetworkId,
    /// Its VNI.
    pub vni: Vni,
    /// Grows with every change; an older membership never replaces a newer one.
    pub epoch: Epoch,
    /// The members.
    pub nodes: BTreeSet<NodeId>,
}

/// All that a member knows of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The network.
    pub network: Network,
    /// Who may hold its keys, signed by a manager.
    pub membership: SignedMembership,
    /// Its endpoints on all nodes.
    pub endpoints: Vec<Endpoint>,
    /// The member nodes, this one among them.
    pub nodes: Vec<Node>,
}

/// All that a node is told of the cluster: only the networks that it is a member of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct View {
    /// The cluster's state that this was made from.
    pub version: Version,
    /// The managers.
    pub managers: Vec<Node>,
    /// Nodes that were removed and whose certificates have not expired yet.
    pub removed: BTreeSet<NodeId>,
    /// The same as nodes pass it on to one another, signed by a manager, once there was one.
    #[serde(default)]
    pub removals: Option<SignedRemovals>,
    /// The roots that the cluster trusts; empty until a manager has told.
    #[serde(default)]
    pub roots: Roots,
    /// The networks that the node is a member of, by id.
    pub networks: BTreeMap<NetworkId, NetworkView>,
}
