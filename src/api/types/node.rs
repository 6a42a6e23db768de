//! Calls about one node of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::NodeSummary;
use crate::cluster::{Availability, Endpoint, Node, NodeProfile, profile_words};
use crate::id::{HostName, NetworkName};

/// Removes another node from the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveNodeRequest {
    /// Its name, or its id.
    pub node: HostName,
    /// Removes it though it is connected or has endpoints, which it loses.
    pub force: bool,
}

/// The removed node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveNodeResponse {
    /// The node as it was.
    pub node: Node,
    /// How many endpoints went with it.
    pub endpoint_count: u64,
}

/// Asks for everything about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectNodeRequest {
    /// Its name, or its id.
    pub node: HostName,
}

/// Everything about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectNodeResponse {
    /// The node.
    #[serde(flatten)]
    pub summary: NodeSummary,
    /// How long ago its last session with a manager ended, where it has none now and that is known.
    pub last_seen_seconds: Option<u64>,
    /// Its endpoints, by network.
    pub endpoints: Vec<NodeEndpoint>,
}

/// An endpoint of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEndpoint {
    /// The network's name.
    pub network_name: NetworkName,
    /// The endpoint.
    pub endpoint: Endpoint,
}

/// Changes what a node is to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeNodeRequest {
    /// Its name, or its id.
    pub node: HostName,
    /// What shall be.
    pub change: NodeChange,
}

/// What a node shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NodeChange {
    /// A manager.
    Promote,
    /// A worker.
    Demote,
    /// What managers say of it.
    Update(NodeUpdate),
}

/// As the audit log has it.
impl std::fmt::Display for NodeChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Promote => f.write_str("promote"),
            Self::Demote => f.write_str("demote"),
            Self::Update(NodeUpdate { availability, label_add, label_remove }) => {
                f.write_str(&profile_words(*availability, label_add, label_remove))
            }
        }
    }
}

/// What managers shall say of a node; the rest stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeUpdate {
    /// Whether it takes endpoints.
    pub availability: Option<Availability>,
    /// Labels to have, in the place of what they were.
    #[serde(default)]
    pub label_add: BTreeMap<String, String>,
    /// Labels to have no more.
    #[serde(default)]
    pub label_remove: BTreeSet<String>,
}

/// The node after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeNodeResponse {
    /// The node.
    pub node: Node,
    /// What managers say of it.
    #[serde(flatten)]
    pub profile: NodeProfile,
    /// The endpoints that it lost, as it has not the labels of their networks any more.
    pub lost: Vec<NodeEndpoint>,
    /// How many endpoints it has.
    pub endpoint_count: u64,
}
