//! The cluster's state in memory, and the changes that lead from one state to the next.
//!
//! An operation looks at the model and answers with changes; they are written to the file in one
//! transaction and only then applied here. Loading applies the same changes from the file's rows,
//! so the model after a restart is the model before it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::change_log::{ChangeLog, Touched};
use super::issued_tokens::IssuedToken;
use super::managers::{DEMOTED, Demoted};
use super::network_state::NetworkState;
use super::pool::AddressPool;
use super::rotation::{COMING_CA, ROOTS, RootStanding, RootsRow, STANDINGS, SecretDigits};
use super::tokens::Tokens;
use crate::cluster::{Endpoint, Network, Node, NodeProfile, Role};
use crate::control::store::{Batch, Reading, StoreError, Table};
use crate::id::{ClusterId, EndpointId, Epoch, NetworkId, NetworkName, NodeId, TokenId, Version};
use crate::membership::{Roots, SignedMembership, SignedRemovals};

/// What was fixed when the cluster was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Founding {
    pub(super) id: ClusterId,
    pub(super) pools: Vec<AddressPool>,
    pub(super) certificate_life_seconds: u64,
}

/// A [`Founding`] of earlier state files, as far as it differs.
#[derive(Serialize, Deserialize)]
pub(super) struct FoundingWithAuthority {
    #[serde(default)]
    pub(super) ca: Zeroizing<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counters {
    /// Grows with every change.
    pub(super) version: Version,
    /// Where the search for the next network's VNI begins.
    pub(super) next_vni: u32,
}

/// A membership as agreed: what was signed, beside the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MembershipRow {
    pub(super) epoch: Epoch,
    pub(super) signed: SignedMembership,
}

/// The list of removed nodes as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemovalsRow {
    pub(super) epoch: Epoch,
    pub(super) signed: SignedRemovals,
}

/// What led to a version, as managers tell one another.
#[derive(Serialize, Deserialize)]
pub(super) struct Record<C> {
    pub(super) counters: Counters,
    /// Those that are of the model, in order.
    pub(super) changes: Vec<C>,
}

/// One row that changes. Managers of other versions are told of it in this form: one that does not know a variant
/// reads all rows, so none may come to mean another thing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Change {
    SetTokens(Tokens),
    PutToken(IssuedToken),
    ForgetToken(TokenId),
    SetNextVni(u32),
    /// Goes on from a later version, as what nodes know of this state is of one that was lost; the last of its changes.
    #[serde(skip)]
    RaiseVersion(Version),
    /// The certificate authority that signs, as hexadecimal digits.
    #[serde(skip)]
    PutCa(SecretDigits),
    #[serde(skip)]
    PutComingCa(SecretDigits),
    DropComingCa,
    PutRoots(RootsRow),
    PutStanding(NodeId, RootStanding),
    PutNode(Node),
    PutProfile(NodeId, NodeProfile),
    /// Holds the end of its certificate's life, in seconds since 1970.
    RemoveNode(NodeId, u64),
    /// Its certificate has expired, so nobody has to be told of its removal any more.
    ForgetRemoved(NodeId),
    PutRemovals(RemovalsRow),
    PutDemoted(NodeId, Demoted),
    PutNetwork(Network),
    DropNetwork(NetworkId),
    PutMembership(NetworkId, MembershipRow),
    /// The address given last in each subnet.
    PutLastGiven(NetworkId, Vec<Option<IpAddr>>),
    PutEndpoint(Endpoint),
    DropEndpoint(Endpoint),
}

impl Change {
    /// Whether there is anything of it in the model.
    const fn is_in_model(&self) -> bool {
        !matches!(self, Self::PutCa(_) | Self::PutComingCa(_) | Self::DropComingCa | Self::RaiseVersion(_))
    }

    /// Adds the row to what is to be written.
    pub(super) fn write(&self, to: &mut Batch) -> Result<(), StoreError> {
        match self {
            Self::SetTokens(tokens) => to.put(&TOKENS, ONLY, tokens)?,
            Self::PutToken(token) => to.put(&ISSUED_TOKENS, token.id.as_str(), token)?,
            Self::ForgetToken(id) => to.remove(&ISSUED_TOKENS, id.as_str()),
            // Written with the version, by the operation.
            Self::SetNextVni(_) | Self::RaiseVersion(_) => {}
            Self::PutCa(ca) => to.put(&AUTHORITY, ONLY, &ca.0)?,
            Self::PutComingCa(ca) => to.put(&COMING_CA, ONLY, &ca.0)?,
            Self::DropComingCa => to.remove(&COMING_CA, ONLY),
            Self::PutRoots(row) => to.put(&ROOTS, ONLY, row)?,
            Self::PutStanding(id, standing) => to.put(&STANDINGS, id.as_str(), standing)?,
            Self::PutNode(node) => to.put(&NODES, node.id.as_str(), node)?,
            Self::PutProfile(id, profile) => to.put(&PROFILES, id.as_str(), profile)?,
            Self::RemoveNode(id, expiry) => {
                to.remove(&NODES, id.as_str());
                to.remove(&STANDINGS, id.as_str());
                to.remove(&PROFILES, id.as_str());
                to.put(&REMOVED, id.as_str(), expiry)?;
            }
            Self::ForgetRemoved(id) => to.remove(&REMOVED, id.as_str()),
            Self::PutDemoted(id, row) => to.put(&DEMOTED, id.as_str(), row)?,
            Self::PutRemovals(row) => to.put(&REMOVALS, ONLY, row)?,
            Self::PutNetwork(network) => to.put(&NETWORKS, network.id.as_str(), network)?,
            Self::DropNetwork(id) => {
                to.remove(&LAST_GIVEN, id.as_str());
                to.remove(&MEMBERSHIPS, id.as_str());
                to.remove(&NETWORKS, id.as_str());
            }
            Self::PutMembership(id, row) => to.put(&MEMBERSHIPS, id.as_str(), row)?,
            Self::PutLastGiven(id, last) => to.put(&LAST_GIVEN, id.as_str(), last)?,
            Self::PutEndpoint(endpoint) => to.put(&ENDPOINTS, endpoint.id.as_str(), endpoint)?,
            Self::DropEndpoint(endpoint) => to.remove(&ENDPOINTS, endpoint.id.as_str()),
        }
        Ok(())
    }
}

impl<'c> Record<&'c Change> {
    /// Of these changes. The authority is in none: it would be kept for longer than it is in use.
    pub(super) fn of(counters: Counters, changes: &'c [Change]) -> Self {
        Self { counters, changes: changes.iter().filter(|change| change.is_in_model()).collect() }
    }
}

/// The whole state, with its indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) founding: Founding,
    pub(super) tokens: Tokens,
    pub(super) issued_tokens: BTreeMap<TokenId, IssuedToken>,
    pub(super) counters: Counters,
    pub(super) roots: RootsRow,
    pub(super) standings: BTreeMap<NodeId, RootStanding>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// Of the nodes that a manager has said something of.
    pub(super) profiles: BTreeMap<NodeId, NodeProfile>,
    pub(super) removed: BTreeMap<NodeId, u64>,
    /// The removed nodes as nodes pass them on to one another, once there was one.
    pub(super) removals: Option<RemovalsRow>,
    /// The nodes whose certificates may still say that they are managers.
    pub(super) demoted: BTreeMap<NodeId, Demoted>,
    pub(super) networks: BTreeMap<NetworkId, NetworkState>,
    pub(super) network_names: BTreeMap<NetworkName, NetworkId>,
    /// The network of every endpoint.
    pub(super) endpoints: HashMap<EndpointId, NetworkId>,
    /// When a manager was added or changed or a node removed last; after a restart, the version of then.
    pub(super) roster_changed: Version,
    /// The same of the roots that nodes are to trust.
    pub(super) roots_changed: Version,
    /// When a node was added or removed last; after a restart, the version of then.
    pub(super) members_changed: Version,
}

impl Model {
    /// The state of a cluster that was just made.
    pub(super) fn founded(founding: Founding, tokens: Tokens, counters: Counters, root: Roots) -> Self {
        Self {
            founding,
            roots: RootsRow { root, rotation: None },
            standings: BTreeMap::new(),
            roots_changed: counters.version,
            tokens,
            issued_tokens: BTreeMap::new(),
            counters,
            nodes: BTreeMap::new(),
            profiles: BTreeMap::new(),
            removed: BTreeMap::new(),
            removals: None,
            demoted: BTreeMap::new(),
            networks: BTreeMap::new(),
            network_names: BTreeMap::new(),
            endpoints: HashMap::new(),
            roster_changed: counters.version,
            members_changed: counters.version,
        }
    }

    /// Writes what is written once; the authority stays out of memory from then on.
    pub(super) fn founding(&self, ca: &[u8]) -> Result<Batch, StoreError> {
        let mut batch = Batch::default();
        batch.put(&FOUNDING, ONLY, &self.founding)?;
        batch.put(&AUTHORITY, ONLY, &Zeroizing::new(data_encoding::HEXLOWER.encode(ca)))?;
        batch.put(&ROOTS, ONLY, &self.roots)?;
        batch.put(&TOKENS, ONLY, &self.tokens)?;
        batch.put(&COUNTERS, ONLY, &self.counters)?;
        Ok(batch)
    }

    /// The state in the file; `None` if the node keeps no cluster's state. The error of the inner
    /// result says what contradicts what.
    pub(super) fn load(r: &Reading<'_>) -> Result<Result<Option<Self>, String>, StoreError> {
        // A whole table first: out of etcd it brings all the others.
        let issued_tokens = r.all(&ISSUED_TOKENS)?;
        let Some(founding) = r.get(&FOUNDING, ONLY)? else { return Ok(Ok(None)) };
        let (Some(tokens), Some(counters)) = (r.get(&TOKENS, ONLY)?, r.get(&COUNTERS, ONLY)?) else {
            return Ok(Err("tokens or counters are missing".to_owned()));
        };
        let mut changes = Vec::new();
        changes.extend(issued_tokens.into_iter().map(|(_, token)| Change::PutToken(token)));
        changes.extend(r.get(&ROOTS, ONLY)?.map(Change::PutRoots));
        changes.extend(r.all(&NODES)?.into_iter().map(|(_, node)| Change::PutNode(node)));
        for (id, profile) in r.all(&PROFILES)? {
            let Ok(id) = id.parse() else { return Ok(Err(format!("{id:?} is no node id"))) };
            changes.push(Change::PutProfile(id, profile));
        }
        changes.extend(r.all(&NETWORKS)?.into_iter().map(|(_, network)| Change::PutNetwork(network)));
        for (id, expiry) in r.all(&REMOVED)? {
            let Ok(id) = id.parse() else { return Ok(Err(format!("{id:?} is no node id"))) };
            changes.push(Change::RemoveNode(id, expiry));
        }
        changes.extend(r.get(&REMOVALS, ONLY)?.map(Change::PutRemovals));
        for (id, row) in r.all(&DEMOTED)? {
            let Ok(id) = id.parse() else { return Ok(Err(format!("{id:?} is no node id"))) };
            changes.push(Change::PutDemoted(id, row));
        }
        for (id, standing) in r.all(&STANDINGS)? {
            let Ok(id) = id.parse() else { return Ok(Err(format!("{id:?} is no node id"))) };
            changes.push(Change::PutStanding(id, standing));
        }
        for (id, row) in r.all(&MEMBERSHIPS)? {
            let Ok(id) = id.parse() else { return Ok(Err(format!("{id:?} is no network id"))) };
            changes.push(Change::PutMembership(id, row));
        }
        for (id, last) in r.all(&LAST_GIVEN)? {
            let Ok(id) = id.parse() else { return Ok(Err(format!("{id:?} is no network id"))) };
            changes.push(Change::PutLastGiven(id, last));
        }
        changes.extend(r.all(&ENDPOINTS)?.into_iter().map(|(_, endpoint)| Change::PutEndpoint(endpoint)));
        let mut model = Self::founded(founding, tokens, counters, Roots::default());
        for change in changes {
            if let Err(why) = model.apply(change) {
                return Ok(Err(why));
            }
        }
        for state in model.networks.values_mut() {
            state.log = ChangeLog::new(counters.version);
        }
        Ok(Ok(Some(model)))
    }

    /// Makes the changes that lead to the version of these counters.
    ///
    /// An error means that they contradict the state, and that it is neither as before nor as after them.
    pub(super) fn follow(&mut self, counters: Counters, changes: Vec<Change>) -> Result<(), String> {
        self.counters = counters;
        changes.into_iter().try_for_each(|change| self.apply(change))
    }

    /// Makes a change; the counters' version is that of after the change.
    ///
    /// An error means that the change contradicts the state, which no operation's changes do.
    pub(super) fn apply(&mut self, change: Change) -> Result<(), String> {
        let version = self.counters.version;
        match change {
            Change::SetTokens(tokens) => self.tokens = tokens,
            Change::PutToken(token) => drop(self.issued_tokens.insert(token.id, token)),
            Change::ForgetToken(id) => drop(self.issued_tokens.remove(&id)),
            Change::SetNextVni(next) => self.counters.next_vni = next,
            Change::RaiseVersion(_) => self.forget_history(),
            Change::PutCa(_) | Change::PutComingCa(_) | Change::DropComingCa => {}
            Change::PutRoots(row) => {
                self.roots = row;
                self.roots_changed = version;
            }
            Change::PutStanding(id, standing) => {
                self.standings.insert(id, standing);
            }
            Change::PutNode(node) => {
                for state in self.networks.values_mut().filter(|s| s.members.contains_key(&node.id)) {
                    state.note(version, Touched::Node(node.id));
                }
                let (id, role) = (node.id, node.role);
                let before = self.nodes.insert(id, node);
                if role == Role::Manager || before.as_ref().is_some_and(|node| node.role == Role::Manager) {
                    self.roster_changed = version;
                }
                if before.is_none() {
                    self.members_changed = version;
                }
            }
            Change::PutProfile(id, profile) => {
                self.profiles.insert(id, profile);
            }
            Change::RemoveNode(id, expiry) => {
                self.nodes.remove(&id);
                self.standings.remove(&id);
                self.profiles.remove(&id);
                self.removed.insert(id, expiry);
                (self.roster_changed, self.members_changed) = (version, version);
            }
            Change::ForgetRemoved(id) => {
                self.removed.remove(&id);
                (self.roster_changed, self.members_changed) = (version, version);
            }
            Change::PutDemoted(id, row) => {
                self.demoted.insert(id, row);
                self.members_changed = version;
            }
            Change::PutRemovals(row) => {
                self.removals = Some(row);
                self.roster_changed = version;
            }
            Change::PutNetwork(network) => {
                self.network_names.insert(network.name.clone(), network.id);
                self.networks.insert(network.id, NetworkState::new(network, version));
            }
            Change::DropNetwork(id) => {
                let state = self.networks.remove(&id).ok_or_else(|| unknown(id))?;
                self.network_names.remove(&state.network.name);
            }
            Change::PutMembership(id, row) => {
                let state = self.network_mut(id)?;
                state.membership = Some(row);
                state.note(version, Touched::Membership);
            }
            Change::PutLastGiven(id, last) => {
                let state = self.network_mut(id)?;
                for (subnet, last) in state.subnets.iter_mut().zip(last) {
                    if let Some(last) = last {
                        subnet.set_last_given(last);
                    }
                }
            }
            Change::PutEndpoint(endpoint) => {
                if !self.nodes.contains_key(&endpoint.node) {
                    return Err(format!("endpoint {} is on unknown node {}", endpoint.id, endpoint.node));
                }
                self.endpoints.insert(endpoint.id, endpoint.network);
                let state = self.network_mut(endpoint.network)?;
                state.put(endpoint, version)?;
            }
            Change::DropEndpoint(endpoint) => {
                self.endpoints.remove(&endpoint.id);
                let state = self.network_mut(endpoint.network)?;
                state.remove(&endpoint, version);
            }
        }
        Ok(())
    }

    fn network_mut(&mut self, id: NetworkId) -> Result<&mut NetworkState, String> {
        self.networks.get_mut(&id).ok_or_else(|| unknown(id))
    }
}

fn unknown(id: NetworkId) -> String {
    format!("a row names network {id}, which does not exist")
}

/// The key of a table's only row.
pub(super) const ONLY: &str = "cluster";
pub(super) const FOUNDING: Table<Founding> = Table::new("founding");
/// The certificate authority, opaque, as hexadecimal digits.
pub(super) const AUTHORITY: Table<Zeroizing<String>> = Table::new("authority");
/// Where it was in earlier state files.
pub(super) const FOUNDING_WITH_AUTHORITY: Table<FoundingWithAuthority> = Table::new("founding");
const TOKENS: Table<Tokens> = Table::new("tokens");
const ISSUED_TOKENS: Table<IssuedToken> = Table::new("issued_tokens");
pub(super) const COUNTERS: Table<Counters> = Table::new("counters");
pub(super) const NODES: Table<Node> = Table::new("nodes");
const PROFILES: Table<NodeProfile> = Table::new("node_profiles");
const REMOVED: Table<u64> = Table::new("removed");
const REMOVALS: Table<RemovalsRow> = Table::new("removals");
const NETWORKS: Table<Network> = Table::new("networks");
const MEMBERSHIPS: Table<MembershipRow> = Table::new("memberships");
const LAST_GIVEN: Table<Vec<Option<IpAddr>>> = Table::new("last_given");
const ENDPOINTS: Table<Endpoint> = Table::new("endpoints");
