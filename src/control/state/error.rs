//! Why a change of the cluster's state was refused.

use std::error::Error;
use std::net::IpAddr;

use ipnet::IpNet;

use super::issued_tokens::TokenRefusal;
use crate::control::store::{CommitError, EtcdError, StoreError};
use crate::id::{EndpointId, HostName, MacAddr, NetworkName, NodeId, TokenId};

/// What kind of refusal it is, for callers that answer by status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request can never succeed as it is.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// It is at odds with what exists.
    Conflict,
    /// The caller may not.
    Denied,
    /// It may succeed later, once something has been freed.
    Unavailable,
    /// The caller's node is not one of those that may, whoever asks and however often.
    Barred,
    /// The manager is at fault.
    Internal,
}

/// Why a change was refused; nothing of it was done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum StateError {
    // The cluster.
    #[error("this node is manager of cluster {id} already: its state is not replaced")]
    ClusterExists { id: String },
    #[error("this node keeps no cluster's state: it is no manager (overlayd init makes a cluster)")]
    NoCluster,
    #[error("address pool {pool} is not usable: {why}")]
    Pool { pool: IpNet, why: String },
    #[error("certificates must live between 10s and 20 years")]
    CertificateExpiry,

    #[error("a rotation of the root is under way: overlayd ca status says what it waits for")]
    RotationUnderWay,
    #[error("the new root is the present one already: bring another, or leave it out for one that is made")]
    SameRoot,

    // Nodes.
    #[error("node {node} is no member of this cluster, or was removed from it: let it join again")]
    UnknownNode { node: NodeId },
    #[error("there is no node {node}: overlayd node ls lists them")]
    NoNode { node: String },
    #[error("{} nodes are called {name}: name one by its id ({})", ids.len(), listed(ids))]
    AmbiguousNode { name: HostName, ids: Vec<NodeId> },
    #[error("node id {node} is taken: join again, with a new one")]
    NodeExists { node: NodeId },
    #[error(
        "node {name} ({node}) is the only manager: without it the cluster is lost; to give the cluster up, run overlayd leave --force on every node"
    )]
    LastManager { node: NodeId, name: HostName },
    #[error(
        "node {name} ({node}) has {} endpoints ({}): detach them there first, or remove it with --force, which cuts them off",
        endpoints.len() + more, joined(endpoints, *more)
    )]
    NodeInUse { node: NodeId, name: HostName, endpoints: Vec<String>, more: usize },
    #[error(
        "address {address} of node {node} lies in subnet {subnet} of network {network}: packets to the node would be taken for the network's; give the node another address, or remove that network"
    )]
    NodeInSubnet { node: HostName, address: IpAddr, subnet: IpNet, network: NetworkName },
    #[error("a node trusts the old root and the new one, and not {count}")]
    TooManyRoots { count: usize },
    #[error("node {node}, which was asked, is no manager any more: ask another")]
    Dismissed { node: NodeId },
    #[error("the manager that was asked has left the cluster: ask another")]
    Retired,
    #[error("node {node} is a worker, and {what} is for managers: ask {}", managers.join(" or "))]
    NotManager { node: HostName, what: &'static str, managers: Vec<String> },

    #[error(
        "node {node} is drained and takes no new endpoints: attach on another node, or run on a manager: overlayd node update {id} --availability active"
    )]
    Drained { node: HostName, id: NodeId },
    #[error(
        "network {network} is only for nodes that are labelled {wanted}, and node {node} is not: attach on another node, or run on a manager: overlayd node update {id}{}",
        missing.iter().map(|label| format!(" --label-add {label}")).collect::<String>(),
        wanted = missing.join(" and ")
    )]
    NodeLabels { node: HostName, id: NodeId, network: NetworkName, missing: Vec<String> },
    #[error("node {node} has no label {key:?}: {}", if has.is_empty() { "it has none".to_owned() } else { format!("it has {}", has.join(", ")) })]
    NoLabel { node: HostName, key: String, has: Vec<String> },
    #[error("label {key:?} is to be set and to be removed: ask for one of them")]
    LabelTwice { key: String },

    // Tokens.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    #[error("there is no token {id}: overlayd token ls lists them")]
    NoToken { id: TokenId },
    #[error("a token lives for 1 s to 10 years, or for ever without --ttl")]
    TokenLife,
    #[error("{most} tokens are valid, which is the most: remove some with overlayd token rm")]
    TooManyTokens { most: usize },

    // Networks.
    #[error("there is no network {name}: overlayd ls lists them")]
    NoNetwork { name: NetworkName },
    #[error("network name {name} is taken: choose another, or remove that one first")]
    NetworkExists { name: NetworkName },
    #[error("network name {name} could be the id of another network: choose another")]
    NetworkNameIsId { name: NetworkName },
    #[error(
        "node {node} carries data over {} ({data}), and network {network} over {} (node {member} at {at}), so that no packet \
         would pass between them: it has to join with a --data-addr of {}", family(*data), family(*at), family(*at)
    )]
    OtherFamily { network: NetworkName, node: HostName, data: IpAddr, member: HostName, at: IpAddr },
    #[error("network {name} is in use by {}: detach them first", joined(endpoints, *more))]
    NetworkInUse { name: NetworkName, endpoints: Vec<String>, more: usize },
    #[error(
        "network {name} has {members} member nodes, the most that a network can have: make another network"
    )]
    NetworkFull { name: NetworkName, members: usize },
    #[error("{given} subnets are too many: a network has at most {most}")]
    TooManySubnets { given: usize, most: usize },
    #[error("{what} {given} has host bits set: write {corrected}")]
    HostBits { what: &'static str, given: IpNet, corrected: IpNet },
    #[error("subnet {subnet} is too small: use /{longest} or a shorter prefix")]
    SubnetTooSmall { subnet: IpNet, longest: u8 },
    #[error("subnet {subnet} overlaps {reserved}, which is {what}: choose another")]
    SubnetReserved { subnet: IpNet, reserved: IpNet, what: &'static str },
    #[error("subnets {one} and {other} of the network overlap: choose another for one of them")]
    SubnetsOverlap { one: IpNet, other: IpNet },
    #[error("subnet {subnet} overlaps subnet {other} of network {network}: choose another")]
    SubnetTaken { subnet: IpNet, other: IpNet, network: NetworkName },
    #[error("subnet {subnet} contains the underlay address {address} of node {node}: choose another")]
    SubnetHoldsUnderlay { subnet: IpNet, address: IpAddr, node: HostName },
    #[error("gateway {gateway} does not lie in subnet {subnet}")]
    GatewayOutside { gateway: IpAddr, subnet: IpNet },
    #[error("gateway {gateway} is the {what} address of subnet {subnet}: choose another")]
    GatewayReserved { gateway: IpAddr, what: &'static str, subnet: IpNet },
    #[error("ip-range {range} does not lie in subnet {subnet}")]
    RangeOutside { range: IpNet, subnet: IpNet },
    #[error("MTU {mtu} is out of range: a network with {family} subnets takes {least} to {most} bytes")]
    Mtu { mtu: u16, family: &'static str, least: u16, most: u16 },
    #[error(
        "MTU {mtu} is too large for node {node}: its underlay carries {underlay} bytes, which leaves {fits} for a container"
    )]
    MtuOverUnderlay { mtu: u16, node: HostName, underlay: u32, fits: u32 },
    #[error("label {key:?} is not usable: {why}")]
    Label { key: String, why: &'static str },
    #[error(
        "the address pool is used up ({}): name a --subnet, or remove a network",
        pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    PoolExhausted { pools: Vec<IpNet> },
    #[error("all VNIs are in use: remove a network")]
    VnisExhausted,

    // Endpoints.
    #[error(
        "address {ip} does not lie in a subnet of network {network} ({})",
        subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    AddressOutside { ip: IpAddr, network: NetworkName, subnets: Vec<IpNet> },
    #[error("address {ip} is the {what} address of subnet {subnet}: choose another")]
    AddressReserved { ip: IpAddr, what: &'static str, subnet: IpNet },
    #[error("addresses {one} and {other} lie both in subnet {subnet}: ask for one in each subnet")]
    TwoAddresses { one: IpAddr, other: IpAddr, subnet: IpNet },
    #[error("address {ip} is taken in network {network} by {holder}: choose another")]
    AddressTaken { ip: IpAddr, network: NetworkName, holder: String },
    #[error(
        "no address is free in {range} of network {network}: detach an endpoint, or make a network with a larger subnet"
    )]
    SubnetExhausted { range: IpNet, network: NetworkName },
    #[error("MAC address {mac} is not usable: {why}")]
    Mac { mac: MacAddr, why: &'static str },
    #[error("MAC address {mac} is taken in network {network} by {holder}: choose another")]
    MacTaken { mac: MacAddr, network: NetworkName, holder: String },
    #[error("no MAC address is left for {ip} in network {network}: give one with --mac")]
    MacsExhausted { ip: IpAddr, network: NetworkName },
    #[error("endpoint name {name} is taken in network {network} by {holder}: choose another")]
    EndpointNameTaken { name: HostName, network: NetworkName, holder: String },
    #[error("endpoint {id} is attached already, as {what}: detach it first")]
    EndpointDiffers { id: EndpointId, what: String },
    #[error("endpoint {id} belongs to another node, {node}: detach it there")]
    EndpointElsewhere { id: EndpointId, node: NodeId },

    // Our own trouble.
    #[error("cannot sign the membership of network {network}: {source}")]
    Signing { network: NetworkName, source: Box<dyn Error + Send + Sync> },
    #[error("cannot sign the list of removed nodes: {source}")]
    SigningRemovals { source: Box<dyn Error + Send + Sync> },
    #[error("the cluster's state contradicts itself ({why}): restore the state file from a backup")]
    Inconsistent { why: String },
    #[error(
        "other changes of the cluster's state were in the way all the time, so nothing was changed: try again"
    )]
    Contended,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CommitError> for StateError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict => Self::Contended,
            CommitError::Store(error) => Self::Store(error),
        }
    }
}

impl StateError {
    /// What kind of refusal it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Pool { .. }
            | Self::CertificateExpiry
            | Self::TokenLife
            | Self::TooManySubnets { .. }
            | Self::HostBits { .. }
            | Self::SubnetTooSmall { .. }
            | Self::SubnetReserved { .. }
            | Self::SubnetsOverlap { .. }
            | Self::GatewayOutside { .. }
            | Self::GatewayReserved { .. }
            | Self::RangeOutside { .. }
            | Self::Mtu { .. }
            | Self::MtuOverUnderlay { .. }
            | Self::Label { .. }
            | Self::LabelTwice { .. }
            | Self::AddressOutside { .. }
            | Self::AddressReserved { .. }
            | Self::TwoAddresses { .. }
            | Self::Mac { .. }
            | Self::NetworkNameIsId { .. }
            | Self::TooManyRoots { .. } => ErrorKind::Invalid,
            Self::NoCluster
            | Self::NoNode { .. }
            | Self::NoLabel { .. }
            | Self::NoToken { .. }
            | Self::NoNetwork { .. } => ErrorKind::NotFound,
            Self::NodeLabels { .. } => ErrorKind::Barred,
            Self::ClusterExists { .. }
            | Self::RotationUnderWay
            | Self::SameRoot
            | Self::NodeExists { .. }
            | Self::AmbiguousNode { .. }
            | Self::LastManager { .. }
            | Self::NodeInUse { .. }
            | Self::TooManyTokens { .. }
            | Self::Drained { .. }
            | Self::NodeInSubnet { .. }
            | Self::NetworkExists { .. }
            | Self::OtherFamily { .. }
            | Self::NetworkInUse { .. }
            | Self::SubnetTaken { .. }
            | Self::SubnetHoldsUnderlay { .. }
            | Self::AddressTaken { .. }
            | Self::MacTaken { .. }
            | Self::EndpointNameTaken { .. }
            | Self::EndpointDiffers { .. } => ErrorKind::Conflict,
            Self::UnknownNode { .. }
            | Self::Token(_)
            | Self::NotManager { .. }
            | Self::EndpointElsewhere { .. } => ErrorKind::Denied,
            Self::Dismissed { .. }
            | Self::Retired
            | Self::PoolExhausted { .. }
            | Self::VnisExhausted
            | Self::NetworkFull { .. }
            | Self::SubnetExhausted { .. }
            | Self::MacsExhausted { .. } => ErrorKind::Unavailable,
            Self::Contended => ErrorKind::Unavailable,
            Self::Store(error) if error.is_passing() => ErrorKind::Unavailable,
            Self::Store(StoreError::Etcd(error)) => kind_of(error),
            Self::Signing { .. }
            | Self::SigningRemovals { .. }
            | Self::Inconsistent { .. }
            | Self::Store(_) => ErrorKind::Internal,
        }
    }
}

fn kind_of(error: &EtcdError) -> ErrorKind {
    match error {
        EtcdError::Address { .. } | EtcdError::Tls { .. } => ErrorKind::Invalid,
        EtcdError::Taken { .. }
        | EtcdError::InUse { .. }
        | EtcdError::Copy { .. }
        | EtcdError::Foreign { .. } => ErrorKind::Conflict,
        EtcdError::Denied { .. } | EtcdError::TooLarge { .. } => ErrorKind::Unavailable,
        EtcdError::Unreachable { .. }
        | EtcdError::Unsettled { .. }
        | EtcdError::Full { .. }
        | EtcdError::Compacted => ErrorKind::Unavailable,
        EtcdError::Newer { .. } | EtcdError::Refused { .. } | EtcdError::Key => ErrorKind::Internal,
    }
}

const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn joined(named: &[String], more: usize) -> String {
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", named.join(", "))
}

fn listed(ids: &[NodeId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
