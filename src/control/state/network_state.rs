//! One network in the model, with its indices: who has which address, and which node has how many endpoints.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::addresses::SubnetAddresses;
use super::change_log::{ChangeLog, Touched};
use super::model::MembershipRow;
use crate::cluster::{Endpoint, Membership, Network};
use crate::id::{EndpointId, Epoch, HostName, MacAddr, NodeId, Version};

/// One network, with its indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetworkState {
    pub(super) network: Network,
    pub(super) membership: Option<MembershipRow>,
    pub(super) endpoints: BTreeMap<EndpointId, Endpoint>,
    /// How many endpoints each member has.
    pub(super) members: BTreeMap<NodeId, usize>,
    pub(super) addresses: HashMap<IpAddr, EndpointId>,
    pub(super) macs: HashMap<MacAddr, EndpointId>,
    pub(super) names: HashMap<HostName, EndpointId>,
    /// In the order of the network's subnets.
    pub(super) subnets: Vec<SubnetAddresses>,
    /// What changed of the network's view lately.
    pub(super) log: ChangeLog,
}

impl NetworkState {
    pub(super) fn new(network: Network, version: Version) -> Self {
        let subnets = network.subnets.iter().map(SubnetAddresses::new).collect();
        Self {
            network,
            membership: None,
            endpoints: BTreeMap::new(),
            members: BTreeMap::new(),
            addresses: HashMap::new(),
            macs: HashMap::new(),
            names: HashMap::new(),
            subnets,
            log: ChangeLog::new(version),
        }
    }

    pub(super) fn note(&mut self, version: Version, touched: Touched) {
        self.log.note(version, touched, self.endpoints.len() + self.members.len());
    }

    /// The membership that follows the present one, with these nodes.
    pub(super) fn next_membership(&self, nodes: std::collections::BTreeSet<NodeId>) -> Membership {
        let epoch = self.membership.as_ref().map_or(0, |m| m.epoch.get()) + 1;
        Membership { network: self.network.id, vni: self.network.vni, epoch: Epoch::new(epoch), nodes }
    }

    /// The endpoint as an operator knows it: its id, name and node.
    pub(super) fn describe(&self, id: &EndpointId) -> String {
        let Some(endpoint) = self.endpoints.get(id) else { return format!("endpoint {id}") };
        let name = endpoint.name.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
        format!("endpoint {id}{name} on node {}", endpoint.node)
    }

    pub(super) fn put(&mut self, endpoint: Endpoint, version: Version) -> Result<(), String> {
        for net in &endpoint.addresses {
            let address = net.addr();
            let subnet = self.network.subnets.iter().position(|s| s.cidr.contains(&address));
            let Some(subnet) = subnet.and_then(|i| self.subnets.get_mut(i)) else {
                return Err(format!("address {address} of endpoint {} is in no subnet", endpoint.id));
            };
            if !subnet.take(address) {
                return Err(format!("address {address} is given twice"));
            }
            self.addresses.insert(address, endpoint.id);
        }
        if self.macs.insert(endpoint.mac, endpoint.id).is_some() {
            return Err(format!("MAC address {} is given twice", endpoint.mac));
        }
        if let Some(name) = &endpoint.name
            && self.names.insert(name.clone(), endpoint.id).is_some()
        {
            return Err(format!("endpoint name {name} is given twice"));
        }
        let (id, node) = (endpoint.id, endpoint.node);
        *self.members.entry(node).or_default() += 1;
        self.endpoints.insert(id, endpoint);
        self.note(version, Touched::Endpoint(id));
        if self.members.get(&node) == Some(&1) {
            self.note(version, Touched::Node(node));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, endpoint: &Endpoint, version: Version) {
        for net in &endpoint.addresses {
            for (subnet, addresses) in self.network.subnets.iter().zip(&mut self.subnets) {
                if subnet.cidr.contains(&net.addr()) {
                    addresses.give_back(net.addr());
                }
            }
            self.addresses.remove(&net.addr());
        }
        self.macs.remove(&endpoint.mac);
        if let Some(name) = &endpoint.name {
            self.names.remove(name);
        }
        if let Some(count) = self.members.get_mut(&endpoint.node) {
            *count -= 1;
            if *count == 0 {
                self.members.remove(&endpoint.node);
            }
        }
        self.endpoints.remove(&endpoint.id);
        self.note(version, Touched::Endpoint(endpoint.id));
        if !self.members.contains_key(&endpoint.node) {
            self.note(version, Touched::Node(endpoint.node));
        }
    }
}
