//! Attaching containers to networks: who gets which address, and which nodes are members by it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::model::{Change, Model};
use super::network_state::NetworkState;
use super::{ClusterState, StateError, addresses};
use crate::cluster::{Endpoint, Network, Subnet};
use crate::id::{EndpointId, HostName, MacAddr, NetworkName, NodeId};

/// What an agent asks for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The endpoint's id, minted by the agent; asking again with it gives the same endpoint.
    pub id: EndpointId,
    /// The network.
    pub network: NetworkName,
    /// The operator's name for the endpoint.
    pub name: Option<HostName>,
    /// Addresses to have; in the other subnets one is chosen.
    pub ips: Vec<IpAddr>,
    /// MAC address to have.
    pub mac: Option<MacAddr>,
}

/// What an agent gets for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Its network.
    pub network: Network,
}

impl ClusterState {
    /// Gives a container on `node` an endpoint; the node is a member of the network from then on.
    /// The same request again gives the same endpoint.
    ///
    /// # Errors
    /// When the node or network is unknown, what is asked for is taken or unusable, or nothing is left
    /// to give.
    pub fn attach(&self, node: NodeId, request: &AttachRequest) -> Result<Attached, StateError> {
        self.change(|model| {
            model.member(node)?;
            if let Some(attached) = model.attached(node, request)? {
                return Ok((attached, Vec::new()));
            }
            let state = model.network(&request.network)?;
            model.admit(node, state.network.id)?;
            check_room(state, node)?;
            let chosen = choose_addresses(state, &request.ips)?;
            let addresses = &chosen.addresses;
            let first = addresses.iter().find(|address| address.addr().is_ipv4()).or(addresses.first());
            let first = *first.expect("a network has a subnet");
            let mac = match request.mac {
                Some(mac) => check_mac(state, mac)?,
                None => derive_mac(state, first.addr())?,
            };
            if let Some(name) = &request.name
                && let Some(holder) = state.names.get(name)
            {
                return Err(StateError::EndpointNameTaken {
                    name: name.clone(),
                    network: state.network.name.clone(),
                    holder: state.describe(holder),
                });
            }
            let endpoint = Endpoint {
                id: request.id,
                network: state.network.id,
                node,
                name: request.name.clone(),
                mac,
                addresses: chosen.addresses,
            };
            let mut changes = vec![
                Change::PutEndpoint(endpoint.clone()),
                Change::PutLastGiven(state.network.id, chosen.last_given),
            ];
            if !state.members.contains_key(&node) {
                let members = state.members.keys().copied().chain([node]).collect();
                changes.push(self.membership(state, members)?);
            }
            Ok((Attached { endpoint, network: state.network.clone() }, changes))
        })
    }

    /// Takes an endpoint of `node` back; nothing to do if there is none of that id.
    ///
    /// # Errors
    /// When it is another node's.
    pub fn detach(&self, node: NodeId, id: EndpointId) -> Result<(), StateError> {
        self.change(|model| {
            model.member(node)?;
            let Some(state) = model.endpoints.get(&id).and_then(|network| model.networks.get(network)) else {
                return Ok(((), Vec::new()));
            };
            let Some(endpoint) = state.endpoints.get(&id) else { return Ok(((), Vec::new())) };
            if endpoint.node != node {
                return Err(StateError::EndpointElsewhere { id, node: endpoint.node });
            }
            let mut changes = vec![Change::DropEndpoint(endpoint.clone())];
            if state.members.get(&node) == Some(&1) {
                changes.push(self.membership_without(state, node)?);
            }
            Ok(((), changes))
        })
    }

    /// The endpoint of that id.
    pub fn endpoint(&self, id: EndpointId) -> Option<Endpoint> {
        self.model().endpoint(id).cloned()
    }

    /// The changes that take back the endpoints of `node` that `dead` picks.
    pub(super) fn drop_endpoints(
        &self,
        model: &Model,
        node: NodeId,
        dead: impl Fn(&Endpoint) -> bool,
    ) -> Result<Vec<Change>, StateError> {
        let mut changes = Vec::new();
        for state in model.networks.values() {
            let Some(&count) = state.members.get(&node) else { continue };
            let before = changes.len();
            let gone = state.endpoints.values().filter(|e| e.node == node && dead(e));
            changes.extend(gone.cloned().map(Change::DropEndpoint));
            if changes.len() - before == count {
                changes.push(self.membership_without(state, node)?);
            }
        }
        Ok(changes)
    }

    fn membership_without(&self, state: &NetworkState, node: NodeId) -> Result<Change, StateError> {
        self.membership(state, state.members.keys().copied().filter(|member| *member != node).collect())
    }
}

impl Model {
    fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.networks.get(self.endpoints.get(&id)?)?.endpoints.get(&id)
    }

    pub(super) fn endpoints_of(&self, node: NodeId) -> impl Iterator<Item = &Endpoint> {
        let networks = self.networks.values().filter(move |state| state.members.contains_key(&node));
        networks.flat_map(|state| state.endpoints.values()).filter(move |e| e.node == node)
    }

    /// What the same request was answered with before, if it was.
    fn attached(&self, node: NodeId, request: &AttachRequest) -> Result<Option<Attached>, StateError> {
        let Some(state) = self.endpoints.get(&request.id).and_then(|id| self.networks.get(id)) else {
            return Ok(None);
        };
        let Some(endpoint) = state.endpoints.get(&request.id) else { return Ok(None) };
        if endpoint.node != node {
            return Err(StateError::EndpointElsewhere { id: endpoint.id, node: endpoint.node });
        }
        let same = state.network.is_called(&request.network)
            && endpoint.name == request.name
            && request.mac.is_none_or(|mac| mac == endpoint.mac)
            && request.ips.iter().all(|ip| endpoint.addresses.iter().any(|net| net.addr() == *ip));
        if !same {
            let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
            let what = format!("{} ({}) in {}", addresses.join(", "), endpoint.mac, state.network.name);
            return Err(StateError::EndpointDiffers { id: endpoint.id, what });
        }
        Ok(Some(Attached { endpoint: endpoint.clone(), network: state.network.clone() }))
    }
}

/// Refuses one member more than a membership can name that nodes pass on to one another.
fn check_room(state: &NetworkState, node: NodeId) -> Result<(), StateError> {
    if state.members.len() >= MOST_MEMBERS && !state.members.contains_key(&node) {
        return Err(StateError::NetworkFull { name: state.network.name.clone(), members: MOST_MEMBERS });
    }
    Ok(())
}

/// One address for each subnet.
struct Chosen {
    addresses: Vec<IpNet>,
    /// The address given last without request in each subnet, these among them.
    last_given: Vec<Option<IpAddr>>,
}

fn choose_addresses(state: &NetworkState, requested: &[IpAddr]) -> Result<Chosen, StateError> {
    let network = &state.network;
    if let Some(&ip) = requested.iter().find(|ip| !network.subnets.iter().any(|s| s.cidr.contains(*ip))) {
        let subnets = network.subnets.iter().map(|s| s.cidr).collect();
        return Err(StateError::AddressOutside { ip, network: network.name.clone(), subnets });
    }
    let mut chosen = Chosen { addresses: Vec::new(), last_given: Vec::new() };
    for (subnet, given) in network.subnets.iter().zip(&state.subnets) {
        let mut wanted = requested.iter().copied().filter(|ip| subnet.cidr.contains(ip));
        let address = match (wanted.next(), wanted.next()) {
            (Some(one), Some(other)) => {
                return Err(StateError::TwoAddresses { one, other, subnet: subnet.cidr });
            }
            (Some(ip), None) => {
                check_address(state, subnet, ip)?;
                chosen.last_given.push(given.last_given());
                ip
            }
            (None, _) => {
                let ip = given.next().ok_or_else(|| StateError::SubnetExhausted {
                    range: subnet.ip_range.unwrap_or(subnet.cidr),
                    network: network.name.clone(),
                })?;
                chosen.last_given.push(Some(ip));
                ip
            }
        };
        let address = IpNet::new(address, subnet.cidr.prefix_len());
        chosen.addresses.push(address.expect("the prefix length is the subnet's"));
    }
    Ok(chosen)
}

fn check_address(state: &NetworkState, subnet: &Subnet, ip: IpAddr) -> Result<(), StateError> {
    if let Some(what) = addresses::reserved(subnet.cidr, ip) {
        return Err(StateError::AddressReserved { ip, what, subnet: subnet.cidr });
    }
    match state.addresses.get(&ip) {
        None => Ok(()),
        Some(holder) => Err(StateError::AddressTaken {
            ip,
            network: state.network.name.clone(),
            holder: state.describe(holder),
        }),
    }
}

fn check_mac(state: &NetworkState, mac: MacAddr) -> Result<MacAddr, StateError> {
    if mac.is_multicast() {
        return Err(StateError::Mac {
            mac,
            why: "it is a group address; clear the lowest bit of the first octet",
        });
    }
    if mac == MacAddr::new([0; 6]) {
        return Err(StateError::Mac { mac, why: "the kernel takes all zeros for none" });
    }
    match state.macs.get(&mac) {
        None => Ok(mac),
        Some(holder) => Err(StateError::MacTaken {
            mac,
            network: state.network.name.clone(),
            holder: state.describe(holder),
        }),
    }
}

/// `02:42` and the IPv4 address as Docker does, or the last four bytes of the IPv6 address; the second
/// octet is another where somebody asked for just that one.
fn derive_mac(state: &NetworkState, ip: IpAddr) -> Result<MacAddr, StateError> {
    let [a, b, c, d] = match ip {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
    };
    (0x42..=0xff)
        .map(|second| MacAddr::new([0x02, second, a, b, c, d]))
        .find(|mac| !state.macs.contains_key(mac))
        .ok_or_else(|| StateError::MacsExhausted { ip, network: state.network.name.clone() })
}

/// As many as fit in a message between nodes, which is a megabyte (`negotiate::MAX_FRAME_LEN`).
const MOST_MEMBERS: usize = 30_000;
