//! Messages about one node of the cluster, for operators on a manager.

use serde::{Deserialize, Serialize};

use super::{ChangedProfile, NodeStatus, ProfileChange};
use crate::cluster::{Endpoint, Node, profile_words};
use crate::id::{HostName, NetworkName};

/// Removes a node other than the calling one. Managers only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveNode {
    /// Its name or id.
    pub node: HostName,
    /// Whether to remove it though it is connected or has endpoints.
    pub force: bool,
}

/// The removed node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNode {
    /// The node as it was.
    pub node: Node,
    /// How many endpoints went with it.
    pub endpoints: usize,
}

/// Describes a node. Managers only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectNode {
    /// Its name or id.
    pub node: HostName,
}

/// All of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// The node.
    pub status: NodeStatus,
    /// How long ago its last session ended, in seconds, if it has none and this manager saw one.
    pub last_seen_seconds: Option<u64>,
    /// Its endpoints, by network.
    pub endpoints: Vec<(NetworkName, Endpoint)>,
}

/// Changes what a node is to the cluster. Managers only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeNode {
    /// Its name or id.
    pub node: HostName,
    /// What shall be.
    pub change: NodeChange,
}

/// What a node shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeChange {
    /// A manager.
    Promote,
    /// A worker.
    Demote,
    /// What its profile says.
    Update(ProfileChange),
}

/// As the audit log has it.
impl std::fmt::Display for NodeChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Promote => f.write_str("promote"),
            Self::Demote => f.write_str("demote"),
            Self::Update(ProfileChange { availability, label_add, label_remove }) => {
                f.write_str(&profile_words(*availability, label_add, label_remove))
            }
        }
    }
}

/// The node after a change.
pub type ChangedNode = ChangedProfile;
