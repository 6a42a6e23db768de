//! The attached containers of a node, as container runtimes ask for them.

use serde::{Deserialize, Serialize};

use super::NetnsReference;
use crate::cluster::{CniAttachment, Endpoint};
use crate::id::{EndpointId, IfName, NetworkName};

/// Lists the attached containers of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListAttachmentsRequest {}

/// The attached containers of this node, in the order of their endpoints; none where it is in no cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListAttachmentsResponse {
    /// All of them.
    pub attachments: Vec<AttachedContainer>,
}

/// A container of this node in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// Its endpoint; without one it is being attached.
    pub endpoint: Option<Endpoint>,
    /// The network's name.
    pub network: NetworkName,
    /// Its namespace, as it was attached.
    pub netns: NetnsReference,
    /// The interface in it, as it was asked for.
    pub ifname: IfName,
    /// What it is to the runtime that had it attached, if one had.
    pub cni: Option<CniAttachment>,
}

/// Detaches what a runtime had attached, in whatever network, also when its namespace is gone or it was detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// What it is to the runtime.
    pub attachment: CniAttachment,
    /// The interface, as it was asked for.
    pub ifname: IfName,
}

/// What was detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseResponse {
    /// The ids; none where there was nothing.
    pub endpoints: Vec<EndpointId>,
}
