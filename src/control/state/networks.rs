//! Creating, removing and looking at networks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::model::{Change, Model};
use super::network_state::NetworkState;
use super::{ClusterState, StateError, labels, pool, subnets, views};
use crate::cluster::{Network, NetworkView, Subnet};
use crate::id::{NetworkId, NetworkName, Vni};

/// What an operator asks of a new network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Whether its frames leave a node only inside ESP.
    pub encrypted: bool,
    /// Its subnets; empty to take one from the pool.
    pub subnets: Vec<Subnet>,
    /// MTU of the containers' interfaces, in bytes.
    pub mtu: Option<u16>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The labels that its member nodes must have.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
}

/// A network and how much it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSummary {
    /// The network.
    pub network: Network,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// How many nodes have an endpoint in it.
    pub members: usize,
}

impl ClusterState {
    /// Creates a network.
    ///
    /// # Errors
    /// When the name is taken, a subnet, gateway, range, MTU or label is not usable, or nothing is left
    /// to give.
    pub fn create_network(&self, new: NewNetwork) -> Result<Network, StateError> {
        let id = NetworkId::from_entropy(rand::random());
        self.change(|model| {
            let new = new.clone();
            if model.network_names.contains_key(&new.name) {
                return Err(StateError::NetworkExists { name: new.name });
            }
            if new.name.as_str().parse::<NetworkId>().is_ok() {
                return Err(StateError::NetworkNameIsId { name: new.name });
            }
            labels::check(&new.labels)?;
            labels::check(&new.node_labels)?;
            subnets::check(model, &new.subnets)?;
            let subnets = if new.subnets.is_empty() { vec![pool::take(model)?] } else { new.subnets };
            if let Some(mtu) = new.mtu {
                subnets::check_mtu(model, &subnets, new.encrypted, mtu)?;
            }
            let vni = next_vni(model)?;
            let network = Network {
                id,
                name: new.name,
                vni,
                encrypted: new.encrypted,
                subnets,
                mtu: new.mtu,
                labels: new.labels,
                node_labels: new.node_labels,
            };
            let empty = NetworkState::new(network.clone(), model.counters.version);
            let changes = vec![
                Change::SetNextVni(vni.get() + 1),
                Change::PutNetwork(network.clone()),
                self.membership(&empty, BTreeSet::new())?,
            ];
            Ok((network, changes))
        })
    }

    /// Removes a network without endpoints.
    ///
    /// # Errors
    /// When there is none of that name, or it has endpoints.
    pub fn remove_network(&self, name: &NetworkName) -> Result<(), StateError> {
        self.change(|model| {
            let state = model.network(name)?;
            if !state.endpoints.is_empty() {
                let named = state.endpoints.keys().take(MOST_NAMED).map(|id| state.describe(id));
                return Err(StateError::NetworkInUse {
                    name: name.clone(),
                    endpoints: named.collect(),
                    more: state.endpoints.len().saturating_sub(MOST_NAMED),
                });
            }
            Ok(((), vec![Change::DropNetwork(state.network.id)]))
        })
    }

    /// All networks, by name.
    pub fn networks(&self) -> Vec<NetworkSummary> {
        let model = self.model();
        let states = model.network_names.values().filter_map(|id| model.networks.get(id));
        states
            .map(|state| NetworkSummary {
                network: state.network.clone(),
                endpoints: state.endpoints.len(),
                members: state.members.len(),
            })
            .collect()
    }

    /// All about one network.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn inspect(&self, name: &NetworkName) -> Result<NetworkView, StateError> {
        let model = self.model();
        let state = model.network(name)?;
        views::network_view(&model, state)
            .ok_or_else(|| StateError::Inconsistent { why: format!("network {name} has no membership") })
    }
}

impl Model {
    /// The network of that name, or else of that id.
    pub(super) fn network(&self, name: &NetworkName) -> Result<&NetworkState, StateError> {
        let by_name = self.network_names.get(name).copied();
        by_name
            .or_else(|| name.as_str().parse().ok())
            .as_ref()
            .and_then(|id| self.networks.get(id))
            .ok_or_else(|| StateError::NoNetwork { name: name.clone() })
    }
}

/// The next VNI that no network has; one that was freed rests until all others were used.
fn next_vni(model: &Model) -> Result<Vni, StateError> {
    let used: BTreeSet<u32> = model.networks.values().map(|state| state.network.vni.get()).collect();
    let free_from = |from: u32| (from..=Vni::MAX).find(|vni| !used.contains(vni)).and_then(Vni::new);
    let next = model.counters.next_vni.max(FIRST_VNI);
    free_from(next).or_else(|| free_from(FIRST_VNI)).ok_or(StateError::VnisExhausted)
}

/// VNIs below are left to those who number by hand, as with Docker.
pub(super) const FIRST_VNI: u32 = 4096;
/// How many endpoints an error names.
pub(super) const MOST_NAMED: usize = 10;
