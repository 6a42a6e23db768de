//! The node as Docker's network and IPAM driver: networks of Docker's mean networks of the cluster, whose managers give
//! the addresses.
//!
//! Docker calls its networks by ids of its own, other ones on each host, and does not tell their names: which network
//! is meant follows from the subnet, or is said with `--ipam-opt network=NAME`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::attachments::blocking;
use super::backend::Daemon;
use super::member::Member;
use crate::api::docker::{
    ADDRESS_SPACE, Address, AddressRequest, CreatedEndpoint, Done, Driver, EndpointRequest, GATEWAY, Given,
    InterfaceName, Joined, NetworkGone, NetworkRequest, NewEndpoint, Pool, PoolRequest, PublishRequest,
    ReleasedAddress, SandboxRequest,
};
use crate::api::{ApiError, Backend};
use crate::cluster::{Network, Subnet};
use crate::control::rpc::messages::{InspectNetwork, ListNetworks};
use crate::control::session::SessionStatus;
use crate::events::Events;
use crate::id::{NetworkId, NetworkName, RuntimeName};

impl Driver for Daemon {
    fn events(&self) -> &Events {
        Backend::events(self)
    }

    async fn request_pool(&self, request: PoolRequest) -> Result<Pool, ApiError> {
        let member = self.member().await?;
        if let Some(range) = request.sub_pool {
            return Err(ApiError::invalid(format!(
                "the cluster gives the addresses: leave --ip-range {range} out, or give it to `overlayd create`"
            )));
        }
        let network = meant(&member, named(&request.options)?, request.pool).await?;
        let subnet = only_subnet(&network, request.v6)?;
        if let Some(pool) = request.pool.filter(|pool| pool.trunc() != subnet.cidr) {
            return Err(other_subnet(&network, pool, subnet.cidr));
        }
        // Docker wants one for each subnet, and shows it; containers have a route there only if there is one.
        let gateway = subnet.gateway.unwrap_or(subnet.cidr.network());
        let gateway = format!("{gateway}/{}", subnet.cidr.prefix_len());
        let pool = PoolId { network: network.id, subnet: subnet.cidr };
        let data = BTreeMap::from([(GATEWAY.to_owned(), gateway)]);
        Ok(Pool { pool_id: pool.to_string(), pool: subnet.cidr, data })
    }

    async fn request_address(&self, request: AddressRequest) -> Result<Address, ApiError> {
        let PoolId { network, subnet } = request.pool_id.parse()?;
        let member = self.connected().await?;
        if request.is_gateway() {
            return gateway(&inspect(&member, network.into()).await?, subnet, request.address);
        }
        let wanted = (subnet, request.address);
        let given = self
            .change(async move |_| member.attachments.take_address(&member.client, network, wanted).await);
        Ok(Address { address: given.await? })
    }

    async fn release_address(&self, request: ReleasedAddress) -> Result<Done, ApiError> {
        let PoolId { network, .. } = request.pool_id.parse()?;
        self.change(async move |inner| {
            if let (Some(member), Some(address)) = (inner.member_if_any().await?, request.address) {
                let manager = member.connected_client();
                member.attachments.give_back_address(manager, network, address).await?;
            }
            Ok(Done {})
        })
        .await
    }

    async fn create_network(&self, request: NetworkRequest) -> Result<Done, ApiError> {
        let member = self.member().await?;
        let options = request.options();
        if let Some(unknown) = options.keys().find(|key| **key != ENCRYPTED) {
            return Err(ApiError::invalid(format!(
                "--opt {unknown} is not known: there is --opt {ENCRYPTED}"
            )));
        }
        let data = || request.ipv4_data.iter().chain(&request.ipv6_data);
        if data().any(|data| data.address_space != ADDRESS_SPACE) {
            return Err(ApiError::invalid(
                "the cluster gives the addresses, and not each host by itself: add --ipam-driver overlayd",
            ));
        }
        if let Some(name) = data().find_map(|data| data.aux_addresses.keys().next()) {
            return Err(ApiError::invalid(format!(
                "overlayd gives addresses to containers only: leave --aux-address {name} out"
            )));
        }
        let pools: Vec<IpNet> = data().filter_map(|data| data.pool).map(|pool| pool.trunc()).collect();
        let network = meant(&member, None, pools.first().copied()).await?;
        check_encryption(&network, options.get(ENCRYPTED).map(String::as_str))?;
        check_subnets(&network, &pools)?;
        let (store, id) = (self.inner.store.clone(), request.network_id);
        blocking(move || store.put_docker_network(&id, &network.id)).await?;
        Ok(Done {})
    }

    async fn delete_network(&self, request: NetworkGone) -> Result<Done, ApiError> {
        let store = self.inner.store.clone();
        blocking(move || store.remove_docker_network(&request.network_id)).await?;
        Ok(Done {})
    }

    async fn create_endpoint(&self, request: NewEndpoint) -> Result<CreatedEndpoint, ApiError> {
        let NewEndpoint { endpoint: EndpointRequest { network_id, endpoint_id }, interface: has } = request;
        let network = self.docker_network(&network_id).await?;
        let member = self.connected().await?;
        let wanted = (has.addresses(), has.mac_address);
        let claimed = self.change(async move |_| {
            member.attachments.claim(&member.client, endpoint_id, network, wanted).await
        });
        let mac = claimed.await?.mac;
        let interface = Given { mac_address: has.mac_address.is_none().then_some(mac) };
        Ok(CreatedEndpoint { interface })
    }

    async fn delete_endpoint(&self, request: EndpointRequest) -> Result<Done, ApiError> {
        self.change(async move |inner| {
            if let Some(member) = inner.member_if_any().await? {
                let manager = member.connected_client();
                member.attachments.dismiss(manager, &request.endpoint_id).await?;
            }
            Ok(Done {})
        })
        .await
    }

    async fn join(&self, request: SandboxRequest) -> Result<Joined, ApiError> {
        let member = self.member().await?;
        let placed = self.change(async move |_| {
            let SandboxRequest { endpoint, sandbox_key: sandbox } = request;
            let placed = member.attachments.place(&endpoint.endpoint_id, sandbox.clone()).await?;
            member.keys.settle(placed.network).await;
            let (attachments, id) = (Arc::clone(&member.attachments), placed.id);
            tokio::spawn(async move { attachments.follow(id, sandbox).await });
            Ok(placed)
        });
        let placed = placed.await?;
        let gateway =
            |is_v4: bool| placed.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == is_v4);
        Ok(Joined {
            gateway: gateway(true),
            gateway_ipv6: gateway(false),
            interface_name: InterfaceName { src_name: placed.ifname, dst_prefix: PREFIX },
        })
    }

    async fn leave(&self, request: EndpointRequest) -> Result<Done, ApiError> {
        self.change(async move |inner| {
            if let Some(member) = inner.member_if_any().await? {
                member.attachments.withdraw(&request.endpoint_id).await?;
            }
            Ok(Done {})
        })
        .await
    }

    async fn publish(&self, request: PublishRequest) -> Result<Done, ApiError> {
        // Docker asks only where the way out of the container is through this network.
        if request.has_ports() {
            return Err(ApiError::invalid(
                "ports cannot be published in a network with a gateway, as that is where they would have to be: leave \
                 -p out, or use a network without one",
            ));
        }
        Ok(Done {})
    }
}

impl Daemon {
    /// The member, once it has a manager: what waits for one would keep the others waiting.
    async fn connected(&self) -> Result<Arc<Member>, ApiError> {
        let member = self.member().await?;
        let mut session = member.session.clone();
        let connected = session.wait_for(|session| *session == SessionStatus::Connected);
        match tokio::time::timeout(PATIENCE, connected).await {
            Ok(Ok(_)) => Ok(member),
            Ok(Err(_)) | Err(_) => Err(ApiError::unavailable(
                "no manager can be reached, and only managers give addresses: `overlayd status` says why",
            )),
        }
    }

    async fn docker_network(&self, id: &RuntimeName) -> Result<NetworkId, ApiError> {
        let (store, asked) = (self.inner.store.clone(), id.clone());
        blocking(move || store.docker_network(&asked)).await?.ok_or_else(|| {
            ApiError::not_found(format!(
                "overlayd does not know Docker's network {id}, as after `overlayd leave`: remove it and create it again"
            ))
        })
    }
}

/// A subnet of a network, as Docker hands it back.
struct PoolId {
    network: NetworkId,
    subnet: IpNet,
}

impl std::fmt::Display for PoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.subnet)
    }
}

impl FromStr for PoolId {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, ApiError> {
        let parsed = text.split_once('/').and_then(|(network, subnet)| {
            Some(Self { network: network.parse().ok()?, subnet: subnet.parse().ok()? })
        });
        parsed.ok_or_else(|| ApiError::invalid(format!("{text:?} is no pool of overlayd's")))
    }
}

/// The network that options name, if they do; no other option is known.
fn named(options: &BTreeMap<String, String>) -> Result<Option<NetworkName>, ApiError> {
    if let Some(unknown) = options.keys().find(|key| *key != NETWORK) {
        return Err(ApiError::invalid(format!(
            "--ipam-opt {unknown} is not known: there is --ipam-opt {NETWORK}=NAME"
        )));
    }
    let name = options.get(NETWORK).map(|name| name.parse()).transpose();
    name.map_err(|error| ApiError::invalid(format!("--ipam-opt {NETWORK}: {error}")))
}

/// The network of the cluster that is called so, or has this subnet, which no other one has.
async fn meant(
    member: &Member,
    named: Option<NetworkName>,
    subnet: Option<IpNet>,
) -> Result<Network, ApiError> {
    if let Some(name) = named {
        return inspect(member, name).await;
    }
    let Some(subnet) = subnet.map(|subnet| subnet.trunc()) else {
        return Err(ApiError::invalid(format!(
            "say which network is meant, with its --subnet or with --ipam-opt {NETWORK}=NAME: `overlayd ls` lists them"
        )));
    };
    let networks = member.client.list_networks(ListNetworks {}).await?.networks;
    let mut networks = networks.into_iter().map(|summary| summary.network);
    networks.find(|network| network.subnets.iter().any(|s| s.cidr == subnet)).ok_or_else(|| {
        ApiError::not_found(format!(
            "no network has subnet {subnet}: create it with `overlayd create --encrypted --subnet {subnet} NAME`"
        ))
    })
}

/// By its name or id.
async fn inspect(member: &Member, name: NetworkName) -> Result<Network, ApiError> {
    Ok(member.client.inspect_network(InspectNetwork { name }).await?.view.network)
}

/// Docker's networks have one subnet of a family that endpoints have addresses in.
fn only_subnet(network: &Network, v6: bool) -> Result<&Subnet, ApiError> {
    let mut subnets = network.subnets.iter().filter(|subnet| subnet.cidr.addr().is_ipv6() == v6);
    let family = if v6 { "IPv6" } else { "IPv4" };
    match (subnets.next(), subnets.next()) {
        (Some(subnet), None) => Ok(subnet),
        (None, _) => Err(ApiError::invalid(format!("network {} has no subnet of {family}", network.name))),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!(
            "network {} has several subnets of {family}, and a container of Docker's can have an address in one only",
            network.name
        ))),
    }
}

/// The address that Docker may show as a subnet's gateway.
fn gateway(network: &Network, subnet: IpNet, wanted: Option<IpAddr>) -> Result<Address, ApiError> {
    let of_network = network.subnets.iter().find(|s| s.cidr == subnet).and_then(|s| s.gateway);
    let given = of_network.unwrap_or(subnet.network());
    match wanted.filter(|wanted| *wanted != given) {
        None => Ok(Address { address: IpNet::new(given, subnet.prefix_len()).unwrap_or(subnet) }),
        Some(wanted) => Err(ApiError::invalid(format!(
            "{wanted} is not the gateway of network {}: leave --gateway out here, and give it to `overlayd create`",
            network.name
        ))),
    }
}

/// Refuses what would be in plaintext though encryption is asked for, and what is encrypted though it is not to be.
fn check_encryption(network: &Network, wanted: Option<&str>) -> Result<(), ApiError> {
    let wanted = match wanted {
        None => return Ok(()),
        Some("" | "true" | "1") => true,
        Some("false" | "0") => false,
        Some(other) => {
            return Err(ApiError::invalid(format!("--opt {ENCRYPTED}={other}: it is true or false")));
        }
    };
    if network.encrypted == wanted {
        return Ok(());
    }
    let is = if network.encrypted { "encrypted" } else { "not encrypted" };
    Err(ApiError::conflict(format!(
        "network {} is {is}, and stays so: `overlayd create` makes another",
        network.name
    )))
}

/// A container has an address in each subnet of its network, in Docker's eyes too.
fn check_subnets(network: &Network, pools: &[IpNet]) -> Result<(), ApiError> {
    if let Some(pool) = pools.iter().find(|pool| network.subnets.iter().all(|subnet| subnet.cidr != **pool)) {
        let subnets: Vec<_> = network.subnets.iter().map(|subnet| subnet.cidr.to_string()).collect();
        return Err(ApiError::invalid(format!(
            "{pool} is no subnet of network {}, which has {}",
            network.name,
            subnets.join(", ")
        )));
    }
    for v6 in [false, true] {
        if network.subnets.iter().any(|subnet| subnet.cidr.addr().is_ipv6() == v6) {
            only_subnet(network, v6)?;
        }
    }
    match network.subnets.iter().find(|subnet| !pools.contains(&subnet.cidr)) {
        None => Ok(()),
        Some(Subnet { cidr, .. }) if cidr.addr().is_ipv6() => {
            Err(ApiError::invalid(format!("network {} has IPv6: add --ipv6 --subnet {cidr}", network.name)))
        }
        Some(Subnet { cidr, .. }) => {
            Err(ApiError::invalid(format!("network {} has IPv4: add --subnet {cidr}", network.name)))
        }
    }
}

fn other_subnet(network: &Network, pool: IpNet, subnet: IpNet) -> ApiError {
    ApiError::invalid(format!("network {} has {subnet}, not {pool}: leave --subnet out", network.name))
}

/// A session begins within it, as after a start of the host, or there is no manager.
const PATIENCE: Duration = Duration::from_secs(10);
/// What interfaces are called in containers, with a number: as Docker's own drivers have it.
const PREFIX: &str = "eth";
const NETWORK: &str = "network";
const ENCRYPTED: &str = "encrypted";
