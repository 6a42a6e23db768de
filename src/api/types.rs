//! The requests and responses of the agent's socket.
//!
//! Plain data. Requests refuse unknown fields, so that a newer command line never has a wish
//! silently ignored by an older agent; responses tolerate them. A field that counts time or size
//! has its unit in the name.

mod attachments;
mod autolock;
mod backup;
mod ca;
mod events;
mod joins;
mod machine;
mod node;
mod rekey;
mod stats;
mod store;
mod tokens;
mod verify;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::{CniAttachment, Endpoint, ManagerState, Network, Node, NodeProfile, Role, Subnet};
use crate::drop_reason::DropReason;
use crate::id::{
    ClusterId, EndpointId, Epoch, HostName, IfName, MacAddr, NetworkId, NetworkName, NodeId, Spi, Version,
};
use crate::rate::RateLimits;
use crate::sa::Suite;
use crate::unlock_key::UnlockKey;

pub use self::attachments::{
    AttachedContainer, ListAttachmentsRequest, ListAttachmentsResponse, ReleaseRequest, ReleaseResponse,
};
pub use self::autolock::{UnlockKeyRequest, UnlockKeyResponse, UnlockRequest, UnlockResponse};
pub use self::backup::{BACKUP_BEGINNING, MOST_BACKUP_BYTES};
pub use self::backup::{BackupRequest, BackupResponse, Passphrase, RestoreRequest, RestoreResponse};
pub use self::store::{
    EtcdRequest, MigrateStoreRequest, MigrateStoreResponse, StoreKind, StoreRequest, StoreResponse,
};

pub use self::events::EventsRequest;
pub use self::joins::JoinTotals;
pub use self::machine::{Offload, OffloadStatus, ProcessorStatus};
pub use self::node::{
    ChangeNodeRequest, ChangeNodeResponse, InspectNodeRequest, InspectNodeResponse, NodeChange, NodeEndpoint,
    NodeUpdate, RemoveNodeRequest, RemoveNodeResponse,
};
pub use self::stats::{DropCount, EndpointTraffic, PeerTraffic, StatsRequest, StatsResponse, Traffic};
pub use self::tokens::{
    IssueTokenRequest, IssueTokenResponse, ListTokensRequest, ListTokensResponse, RemoveTokenRequest,
    RemoveTokenResponse,
};
pub use self::verify::{MendedBy, Verdict, Verified, VerifiedItem, VerifyRequest, VerifyResponse};
pub use ca::{
    BroughtAuthority, CaRequest, CaResponse, CaRoot, CaRotation, CaStatusRequest, CaStatusResponse,
    RotateCaRequest, WaitingNode,
};
pub use rekey::{RekeyRequest, RekeyResponse, RekeyedLink};

/// A request type: knows its path and what it is answered with.
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    /// The answer.
    type Response: Serialize + DeserializeOwned + Send + 'static;
    /// The path of the URL.
    const PATH: &'static str;
    /// Whether it only looks, and is no matter for the audit log.
    const LOOKS: bool;

    /// What it is about, for the audit log: never a secret.
    fn subject(&self) -> Option<String>;
}

macro_rules! calls {
    ($($request:ident -> $response:ident at $path:literal $(, looks $looks:literal)?
        $(, about |$call:ident| $subject:expr)?;)*) => {
        $(impl Call for $request {
            type Response = $response;
            const PATH: &'static str = concat!("/v1/", $path);
            const LOOKS: bool = false $(|| $looks)?;

            fn subject(&self) -> Option<String> {
                let subject = None;
                $(let $call = self; let subject = subject.or_else(|| Some($subject.to_string()));)?
                subject
            }
        })*
    };
}

calls! {
    InitRequest -> InitResponse at "init";
    JoinRequest -> JoinResponse at "join", about |call| call.manager;
    LeaveRequest -> LeaveResponse at "leave";
    BackupRequest -> BackupResponse at "backup";
    RestoreRequest -> RestoreResponse at "restore";
    UnlockRequest -> UnlockResponse at "unlock";
    UnlockKeyRequest -> UnlockKeyResponse at "unlock-key";
    StoreRequest -> StoreResponse at "store", looks true;
    MigrateStoreRequest -> MigrateStoreResponse at "store/migrate";
    TokenRequest -> TokenResponse at "token", about |call| format_args!("{}{}", call.role, if call.rotate { " rotate" } else { "" });
    IssueTokenRequest -> IssueTokenResponse at "token/issue", about |call| call.role;
    ListTokensRequest -> ListTokensResponse at "token/list", looks true;
    RemoveTokenRequest -> RemoveTokenResponse at "token/remove", about |call| call.token;
    CreateNetworkRequest -> CreateNetworkResponse at "network/create", about |call| call.name;
    ListNetworksRequest -> ListNetworksResponse at "network/list", looks true;
    InspectNetworkRequest -> InspectNetworkResponse at "network/inspect", looks true;
    RemoveNetworkRequest -> RemoveNetworkResponse at "network/remove", about |call| call.network;
    AttachRequest -> AttachResponse at "attach", about |call| call.network;
    DetachRequest -> DetachResponse at "detach", about |call| call.network;
    ListAttachmentsRequest -> ListAttachmentsResponse at "attachment/list", looks true;
    ReleaseRequest -> ReleaseResponse at "attachment/release", about |call| call.attachment.container;
    StatusRequest -> StatusResponse at "status", looks true;
    VerifyRequest -> VerifyResponse at "verify", looks true;
    ListNodesRequest -> ListNodesResponse at "node/list", looks true;
    InspectNodeRequest -> InspectNodeResponse at "node/inspect", looks true;
    RemoveNodeRequest -> RemoveNodeResponse at "node/remove",
        about |call| format_args!("{}{}", call.node, if call.force { " by force" } else { "" });
    ChangeNodeRequest -> ChangeNodeResponse at "node/change",
        about |call| format_args!("{} {}", call.node, call.change);
    PeersRequest -> PeersResponse at "peers", looks true;
    RekeyRequest -> RekeyResponse at "rekey", about |call| call.links();
    StatsRequest -> StatsResponse at "stats", looks true;
    CaRequest -> CaResponse at "ca", looks true;
    RotateCaRequest -> CaStatusResponse at "ca/rotate";
    CaStatusRequest -> CaStatusResponse at "ca/status", looks true;
}

/// Makes a new cluster with this node as its manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// Where other nodes reach this node's TLS port.
    pub advertise: SocketAddr,
    /// Where the TLS port listens; every address with the advertised port when absent.
    pub listen: Option<SocketAddr>,
    /// The underlay address that carries data; the advertised one when absent.
    pub data_ip: Option<IpAddr>,
    /// The UDP port of encrypted data, the same on all nodes of the cluster.
    pub data_port: u16,
    /// Where subnets are taken from when a network is created without one; the agent's own choice
    /// when empty.
    pub default_addr_pools: Vec<IpNet>,
    /// How long a node's certificate lives.
    pub cert_expiry_seconds: u64,
    /// The cluster's certificate authority; a new one is made when absent.
    #[serde(default)]
    pub authority: Option<BroughtAuthority>,
    /// The key that this manager is to be unlocked with after each start of its agent; it is not
    /// locked when absent. The caller draws it: one that got no answer still has it.
    #[serde(default)]
    pub autolock: Option<UnlockKey>,
    /// The etcd that the cluster's state is to be in; in this node's state file when absent.
    #[serde(default)]
    pub store: Option<EtcdRequest>,
}

/// The new cluster, and what a worker needs to join it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitResponse {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// The join token for workers.
    pub worker_token: String,
    /// Where to join.
    pub manager: SocketAddr,
    /// What this manager is to be unlocked with, if it is locked at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlock_key: Option<UnlockKey>,
}

/// Makes this node a member of an existing cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token, as `overlayd token` printed it.
    pub token: String,
    /// A manager, `HOST:PORT`; the agent resolves the name.
    pub manager: String,
    /// Where other nodes reach this node's TLS port; the address that the route to the manager
    /// leaves from when absent.
    pub advertise: Option<SocketAddr>,
    /// The underlay address that carries data; the advertised one when absent.
    pub data_ip: Option<IpAddr>,
}

/// The membership that a join made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node, as the cluster knows it from now on.
    pub node: Node,
}

/// Takes this node out of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Takes it out though it has endpoints, is the only manager of others, or no manager can hear of it.
    pub force: bool,
}

/// What was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveResponse {
    /// The cluster.
    pub cluster: ClusterId,
    /// The id that this node had in it.
    pub node: NodeId,
    /// Why no manager heard of it, where none did: it is listed there until somebody removes it.
    pub untold: Option<String>,
}

/// Asks for the join token of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What a node that joins with it may do.
    pub role: Role,
    /// Makes a new token first, so that the old one is void.
    pub rotate: bool,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// What a node that joins with it may do.
    pub role: Role,
    /// The token.
    pub token: String,
    /// Where to join.
    pub manager: SocketAddr,
}

/// Creates a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNetworkRequest {
    /// Its name.
    pub name: NetworkName,
    /// Whether frames leave a node only inside ESP.
    pub encrypted: bool,
    /// Its subnets; one is taken from the pool when empty.
    pub subnets: Vec<SubnetRequest>,
    /// MTU of the containers' interfaces, in bytes; from the underlay when absent.
    pub mtu: Option<u16>,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
    /// The labels that a node must have to be a member; none for every node.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
}

/// A subnet as requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetRequest {
    /// The subnet.
    pub cidr: IpNet,
    /// The gateway address within it.
    pub gateway: Option<IpAddr>,
    /// The part of it from which addresses are given.
    pub ip_range: Option<IpNet>,
}

impl From<SubnetRequest> for Subnet {
    fn from(request: SubnetRequest) -> Self {
        Self { cidr: request.cidr, gateway: request.gateway, ip_range: request.ip_range }
    }
}

/// The created network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNetworkResponse {
    /// The network.
    pub network: Network,
}

/// Lists the networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListNetworksRequest {}

/// The networks, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListNetworksResponse {
    /// The networks.
    pub networks: Vec<NetworkSummary>,
}

/// A network in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSummary {
    /// The network.
    pub network: Network,
    /// How many endpoints it has on all nodes.
    pub endpoint_count: u64,
}

/// Asks for everything about one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectNetworkRequest {
    /// Its name, or its id.
    pub network: NetworkName,
}

/// Everything about one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectNetworkResponse {
    /// The network.
    pub network: Network,
    /// MTU of its containers' interfaces, in bytes, where it is settled.
    pub effective_mtu: Option<u16>,
    /// Version of its membership.
    pub epoch: Epoch,
    /// Its member nodes.
    pub nodes: Vec<Node>,
    /// Its endpoints on all nodes.
    pub endpoints: Vec<Endpoint>,
}

/// Removes a network without endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveNetworkRequest {
    /// Its name, or its id.
    pub network: NetworkName,
}

/// The removed network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveNetworkResponse {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: NetworkName,
}

/// A network namespace as the caller sees it: the agent refuses it when the path leads elsewhere
/// in the agent's own view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetnsReference {
    /// Absolute path.
    pub path: PathBuf,
    /// `st_dev` of what is there.
    pub device: u64,
    /// `st_ino` of what is there.
    pub inode: u64,
}

/// Gives a network namespace an interface in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The network's name, or its id.
    pub network: NetworkName,
    /// The container's namespace.
    pub netns: NetnsReference,
    /// What the interface is called in it.
    pub ifname: IfName,
    /// The operator's name for the endpoint.
    pub name: Option<HostName>,
    /// What it is to the runtime that has it attached, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<CniAttachment>,
    /// Wanted addresses, at most one for each subnet; the rest is chosen.
    pub addresses: Vec<IpAddr>,
    /// The wanted MAC address.
    pub mac: Option<MacAddr>,
    /// What it may send and receive.
    #[serde(default)]
    pub rates: RateLimits,
}

/// The endpoint, ready for traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachResponse {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The network's name.
    pub network_name: NetworkName,
    /// The interface in the container.
    pub ifname: IfName,
    /// Its MTU, in bytes.
    pub mtu: u16,
    /// What it may send and receive.
    #[serde(default)]
    pub rates: RateLimits,
    /// The gateways that it has default routes to.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
}

/// Takes an endpoint out of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// The network's name, or its id.
    pub network: NetworkName,
    /// Which endpoint.
    pub target: DetachTarget,
}

/// How the endpoint to detach is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DetachTarget {
    /// The one in this namespace.
    Netns(NetnsReference),
    /// The one with this id; works when the namespace is gone.
    Endpoint(EndpointId),
}

/// The detached endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachResponse {
    /// Its id.
    pub endpoint: EndpointId,
}

/// Asks how the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusRequest {}

/// How the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusResponse {
    /// The agent's version.
    pub agent_version: String,
    /// Its process id.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Where its state is.
    pub state_dir: PathBuf,
    /// The file that it appends every key to (`--esp-key-log`).
    pub esp_key_log: Option<PathBuf>,
    /// What the operator should know or mend, one sentence each.
    pub warnings: Vec<String>,
    /// Whether it waits for its unlock key (`overlayd unlock`).
    #[serde(default)]
    pub locked: bool,
    /// The cluster that it is a member of; of one that is locked, it cannot be told.
    pub cluster: Option<ClusterStatus>,
}

/// How the agent stands in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub id: ClusterId,
    /// This node.
    pub node: Node,
    /// The cluster's state that this node has.
    pub version: Version,
    /// Whether a manager says that this node was removed from the cluster.
    #[serde(default)]
    pub removed: bool,
    /// The managers.
    pub managers: Vec<ManagerStatus>,
    /// When this node's certificate expires, in seconds since 1970 UTC.
    pub certificate_expires_unix_seconds: u64,
    /// When the root that signed it expires, in seconds since 1970 UTC.
    #[serde(default)]
    pub root_expires_unix_seconds: u64,
    /// Threads of this node that carry packets.
    pub lane_count: u8,
    /// What they ask of the processors.
    #[serde(default)]
    pub processors: ProcessorStatus,
    /// Networks that this node is a member of.
    pub network_count: u64,
    /// Endpoints on this node.
    pub endpoint_count: u64,
    /// What the kernel does for many packets at once.
    #[serde(default)]
    pub offloads: Vec<OffloadStatus>,
}

/// A manager as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// The manager.
    pub node: Node,
    /// Whether this node has a session with it (or is it).
    pub connected: bool,
}

/// Lists the nodes of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListNodesRequest {}

/// The nodes of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListNodesResponse {
    /// The nodes.
    pub nodes: Vec<NodeSummary>,
}

/// A node in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSummary {
    /// The node.
    pub node: Node,
    /// Whether it is the one that answers.
    pub is_self: bool,
    /// Whether a manager has a session with it.
    pub state: NodeState,
    /// What managers say of it.
    #[serde(flatten)]
    pub profile: NodeProfile,
    /// How many endpoints it has.
    pub endpoint_count: u64,
    /// Whether it can be asked, if it is a manager.
    #[serde(default)]
    pub manager: Option<ManagerState>,
}

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It has a session with a manager.
    Ready,
    /// It has none.
    Down,
    /// The answering node cannot tell.
    Unknown,
}

/// Lists the peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeersRequest {}

/// The peers, one row for each network shared with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersResponse {
    /// The rows.
    pub peers: Vec<PeerStatus>,
}

/// A peer in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: HostName,
    /// The network.
    pub network: NetworkId,
    /// Its name.
    pub network_name: NetworkName,
    /// Where its packets of this network go to.
    pub remote: SocketAddr,
    /// How far the keys are.
    pub state: PeerState,
    /// Why there is no key, when the last attempt failed.
    pub failure: Option<String>,
    /// The suite of the newest keys.
    pub suite: Option<Suite>,
    /// Age of the newest keys.
    pub key_age_seconds: Option<u64>,
    /// SPIs of the SAs that this node sends on, one for each lane.
    pub outbound_spis: Vec<Spi>,
    /// SPIs of the newest SAs that this node receives on.
    pub inbound_spis: Vec<Spi>,
    /// SPIs of those before them, which this node receives on for some seconds more.
    #[serde(default)]
    pub lingering_spis: Vec<Spi>,
    /// What was sent to it.
    pub sent: Traffic,
    /// What was received from it and delivered.
    pub received: Traffic,
    /// Why the last dropped packet to or from it was dropped.
    #[serde(with = "stats::optional_drop_reason")]
    pub last_drop: Option<DropReason>,
}

/// How far the keys of a peer and network are, if there are to be any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// No TLS channel to the peer yet.
    Connecting,
    /// The channel is there, the keys are being agreed on.
    Negotiating,
    /// Keys are installed in both directions.
    Established,
    /// The last attempt failed and will be repeated.
    Failed,
    /// The network is not encrypted.
    Plain,
}

impl PeerState {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Connecting, Self::Negotiating, Self::Established, Self::Failed, Self::Plain];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Negotiating => "negotiating",
            Self::Established => "established",
            Self::Failed => "failed",
            Self::Plain => "plain",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_refuse_fields_that_they_do_not_know() {
        let error = serde_json::from_str::<TokenRequest>(r#"{"role":"worker","rotate":false,"ttl":1}"#)
            .expect_err("an unknown field was taken");
        assert!(error.to_string().contains("`ttl`"), "{error}");
    }

    #[test]
    fn detach_names_its_target_in_two_ways() {
        let json = r#"{"network":"red","target":{"netns":{"path":"/run/netns/c1","device":4,"inode":9}}}"#;
        let request: DetachRequest = serde_json::from_str(json).expect("a request");
        assert_eq!(serde_json::to_string(&request).expect("JSON"), json);
        let json = r#"{"network":"red","target":{"endpoint":"0123456789012345678901234"}}"#;
        let request: DetachRequest = serde_json::from_str(json).expect("a request");
        assert!(matches!(request.target, DetachTarget::Endpoint(_)));
    }
}
