//! The messages of the manager API: plain serde data, JSON on the wire.
//!
//! Fields may be added with `#[serde(default)]`; unknown ones are ignored, so that nodes of
//! neighbouring versions understand each other.

mod managers;
mod node;
mod tokens;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use super::pieces::Piece;

pub use self::managers::{Presence, PresenceRequest, StoreAccess, StoreAccessRequest};
pub use self::node::{ChangeNode, ChangedNode, InspectNode, NodeChange, NodeDetail, RemoveNode, RemovedNode};
use crate::cluster::{ManagerState, Network, NetworkView, Node, NodeProfile, Role};
use crate::control::identity::base64_der_list;
pub use crate::control::state::{
    AttachRequest as Attach, Attached, ChangedProfile, Documents, NetworkChange, NetworkSummary, NewNetwork,
    ProfileChange, RootStanding, ViewUpdate,
};
use crate::id::{EndpointId, NetworkName};
use crate::membership::Root;

mod ca;

pub use ca::{CaStatus, CaStatusRequest, RotateCa, RotationStatus, WaitedFor};

pub use self::tokens::{IssueToken, IssuedToken, ListTokens, RemoveToken, TokenList};

/// Begins a session: who the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRequest {
    /// The node as it is now; its addresses or MTU may have changed since it joined.
    pub node: Node,
    /// Which roots it trusts, and which signed its certificate.
    #[serde(default)]
    pub standing: Option<RootStanding>,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReply {
    /// The network.
    pub network: Network,
}

/// Removes a network without endpoints. Managers only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveNetwork {
    /// Its name.
    pub name: NetworkName,
}

/// Lists the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListNetworks {}

/// All networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    /// By name.
    pub networks: Vec<NetworkSummary>,
}

/// Describes a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectNetwork {
    /// Its name.
    pub name: NetworkName,
}

/// All of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDetail {
    /// What its members know of it.
    pub view: NetworkView,
}

/// Ends an endpoint of the calling node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// The endpoint.
    pub endpoint: EndpointId,
}

/// Asks for the join token of a role. Managers only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// The role.
    pub role: Role,
    /// Whether the old token shall be void.
    pub rotate: bool,
}

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its text.
    pub token: Zeroizing<String>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token([redacted])")
    }
}

/// Lists the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListNodes {}

/// All nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// By name.
    pub nodes: Vec<NodeStatus>,
}

/// A node and how the manager sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: Node,
    /// Whether it has a session.
    pub connected: bool,
    /// What managers say of it.
    #[serde(default)]
    pub profile: NodeProfile,
    /// How many endpoints it has.
    #[serde(default)]
    pub endpoints: usize,
    /// Whether it can be asked, if it is a manager.
    #[serde(default)]
    pub manager: Option<ManagerState>,
}

/// Asks for a new certificate of the calling node, with the role that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// A certificate request, PEM.
    pub csr: String,
}

/// A new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// The certificates, leaf first, without the root.
    #[serde(with = "base64_der_list")]
    pub chain: Vec<CertificateDer<'static>>,
    /// The root that they lead to, if not the one of before.
    #[serde(default)]
    pub root: Option<Root>,
}

/// Removes the calling node from the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leave {}

/// It is done and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}
