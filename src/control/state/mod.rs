//! The truth about a cluster, as its manager keeps it: nodes, networks, endpoints, memberships.
//!
//! Every operation is checked against the state in memory, written to the state file or to etcd in one
//! transaction, and only then seen by anybody. Calls block on the disk or on etcd (async callers use
//! `spawn_blocking`); [`ClusterState::versions`] wakes whoever passes changes on to the nodes, those of
//! other managers too. Who may call what is decided by the caller's certificate in `control::rpc`; here
//! it is checked only that a node touches nothing of another's.

mod addresses;
mod authority;
mod change_log;
mod changes;
mod documents;
mod endpoints;
mod error;
mod history;
mod issued_tokens;
mod labels;
mod managers;
mod model;
mod network_state;
mod networks;
mod nodes;
mod overtake;
mod pool;
mod profiles;
mod queue;
mod relocation;
mod rotation;
mod subnets;
mod tokens;
mod view_update;
mod views;
mod wording;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, RwLock, RwLockReadGuard};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::watch;
use zeroize::Zeroizing;

use self::changes::Memory;
use self::model::{Change, Counters, Founding, MembershipRow, Model};
use self::network_state::NetworkState;
use self::queue::Queue;
use self::wording::Wording;
use crate::boot_time::BootTime;
use crate::cluster::Node;
use crate::control::store::{ClusterRows, CommitError, Revision, SharedStore, Store};
use crate::id::{ClusterId, NodeId, Version};
use crate::membership::{Roots, Signature, SignedMembership};

pub use self::documents::{Assembly, Documents};
pub use self::endpoints::{AttachRequest, Attached};
pub use self::error::{ErrorKind, StateError};
pub use self::issued_tokens::{NewToken, TokenRefusal};
pub use self::networks::{NetworkSummary, NewNetwork};
pub use self::nodes::{NodeStatus, Takes};
pub use self::overtake::Whereabouts;
pub(crate) use self::overtake::is_overtaken;
pub use self::pool::AddressPool;
pub use self::profiles::{ChangedProfile, ProfileChange};
pub use self::relocation::Relocated;
pub use self::rotation::{Advance, NewRotation, RootStanding, Rotation};
pub use self::tokens::Tokens;
pub use self::view_update::{Misfit, NetworkChange, NewMembership, Outline, Roster, ViewUpdate};
pub use self::views::Told;

/// Signs the payload of a membership or of a list of removed nodes with the manager's key.
pub type SignPayload = dyn Fn(&[u8]) -> Result<Signature, Box<dyn Error + Send + Sync>> + Send + Sync;

/// What a cluster is made from.
#[derive(Debug, Clone)]
pub struct NewCluster {
    /// Its id.
    pub id: ClusterId,
    /// The certificate authority with its key, opaque to the state.
    pub ca: Zeroizing<Vec<u8>>,
    /// Its root certificate, DER.
    pub root: Vec<u8>,
    /// Where subnets come from when a network is created without; empty for [`AddressPool::standard`].
    pub pools: Vec<AddressPool>,
    /// How long a node's certificate lives.
    pub certificate_life: Duration,
    /// The secrets of the join tokens.
    pub tokens: Tokens,
}

/// The state of a cluster; clones share it.
#[derive(Clone)]
pub struct ClusterState {
    inner: Arc<Inner>,
}

struct Inner {
    rows: RwLock<ClusterRows>,
    sign: Box<SignPayload>,
    office: OnceLock<managers::Office>,
    /// This node has left the cluster.
    retired: AtomicBool,
    queue: Queue,
    /// Who changes the memory or what is written; readers are not kept waiting by its way to the disk.
    changing: Mutex<Memory>,
    /// Follows the changes of other managers.
    follower: OnceLock<Option<Thread>>,
    reachable: watch::Sender<bool>,
    model: RwLock<Model>,
    /// What was acknowledged and then lost, as etcd was put back to an earlier state.
    lost: Mutex<overtake::Lost>,
    versions: watch::Sender<Version>,
    last_seen: Mutex<BTreeMap<NodeId, BootTime>>,
    /// What sessions are told.
    wording: Mutex<Wording>,
}

impl ClusterState {
    /// Makes a cluster, in the state file of this node or in etcd.
    ///
    /// # Errors
    /// When there is a cluster's state already, a pool is not usable, or the disk or etcd refuses.
    pub fn create(
        rows: impl Into<ClusterRows>,
        new: NewCluster,
        sign: Box<SignPayload>,
    ) -> Result<Self, StateError> {
        let rows = rows.into();
        if let (Some(present), _) = Self::load(&rows)? {
            return Err(StateError::ClusterExists { id: present.founding.id.to_string() });
        }
        let pools = if new.pools.is_empty() { vec![AddressPool::standard()] } else { new.pools };
        pool::check(&pools)?;
        if new.certificate_life < Duration::from_secs(10)
            || new.certificate_life > Duration::from_hours(24 * 365 * 20)
        {
            return Err(StateError::CertificateExpiry);
        }
        let founding =
            Founding { id: new.id, pools, certificate_life_seconds: new.certificate_life.as_secs() };
        let counters = Counters { version: Version::new(1), next_vni: networks::FIRST_VNI };
        let model = Model::founded(founding, new.tokens, counters, Roots::sole(new.root));
        rows.found(new.id);
        let revision = match rows.commit(Revision::NOTHING, &model.founding(&new.ca)?, None) {
            Ok(revision) => revision,
            // Somebody was faster.
            Err(CommitError::Conflict) => return Err(StateError::ClusterExists { id: "another".to_owned() }),
            Err(CommitError::Store(refused)) => return Err(refused.into()),
        };
        Ok(Self::over(rows, (model, revision), sign))
    }

    /// Opens the state of the cluster that this node manages.
    ///
    /// # Errors
    /// When there is no cluster's state, or it cannot be read or contradicts itself.
    pub fn open(rows: impl Into<ClusterRows>, sign: Box<SignPayload>) -> Result<Self, StateError> {
        let rows = rows.into();
        let (model, revision) = Self::load_present(&rows)?;
        if let ClusterRows::File(store) = &rows {
            authority::set_apart(store, &model.founding)?;
        }
        Ok(Self::over(rows, (model, revision), sign))
    }

    /// Whether the node keeps a cluster's state, itself or in etcd: whether it is a manager.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn exists(store: &Store) -> Result<bool, StateError> {
        if store.shared_store()?.is_some() {
            return Ok(true);
        }
        Ok(Self::load(&store.clone().into())?.0.is_some())
    }

    /// The nodes of the cluster in a state file, none where there is no cluster, or it is in etcd.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn nodes_in(store: &Store) -> Result<Vec<Node>, StateError> {
        let (model, _) = Self::load(&store.clone().into())?;
        Ok(model.into_iter().flat_map(|model| model.nodes.into_values()).collect())
    }

    /// Where the state is.
    pub fn rows(&self) -> ClusterRows {
        self.inner.rows.read().expect(NO_PANIC).clone()
    }

    /// What another manager needs to share this state; `None` where there can be no other.
    pub fn shared_store(&self) -> Option<SharedStore> {
        self.rows().shared().cloned()
    }

    /// The cluster's id.
    pub fn id(&self) -> ClusterId {
        self.model().founding.id
    }

    /// How long a node's certificate lives.
    pub fn certificate_life(&self) -> Duration {
        Duration::from_secs(self.model().founding.certificate_life_seconds)
    }

    /// Where subnets come from when a network is created without.
    pub fn pools(&self) -> Vec<AddressPool> {
        self.model().founding.pools.clone()
    }

    /// The state's version.
    pub fn version(&self) -> Version {
        self.model().counters.version
    }

    /// Tells of every new version once it is on the disk.
    pub fn versions(&self) -> watch::Receiver<Version> {
        self.inner.versions.subscribe()
    }

    /// Signs every membership and the list of removed nodes anew, one epoch on, as after a change of the manager's certificate.
    ///
    /// # Errors
    /// When one cannot be signed or the disk refuses.
    pub fn sign_again(&self) -> Result<(), StateError> {
        self.change(|model| Ok(((), self.signed_again(model)?)))
    }

    fn signed_again(&self, model: &Model) -> Result<Vec<Change>, StateError> {
        let mut changes = Vec::new();
        self.add_memberships_again(model, &mut changes)?;
        if model.removals.is_some() {
            changes.push(self.removals(model, &model.removed, &model.demoted)?);
        }
        Ok(changes)
    }

    /// Adds every membership that is not among the changes yet, signed anew.
    fn add_memberships_again(&self, model: &Model, changes: &mut Vec<Change>) -> Result<(), StateError> {
        let is_signed = |id| changes.iter().any(|c| matches!(c, Change::PutMembership(of, _) if *of == id));
        let left: Vec<_> = model.networks.values().filter(|state| !is_signed(state.network.id)).collect();
        for state in left {
            changes.push(self.membership(state, state.members.keys().copied().collect())?);
        }
        Ok(())
    }

    fn over(rows: ClusterRows, (model, revision): (Model, Revision), sign: Box<SignPayload>) -> Self {
        let (versions, _) = watch::channel(model.counters.version);
        let inner = Inner {
            rows: RwLock::new(rows),
            sign,
            office: OnceLock::new(),
            retired: AtomicBool::new(false),
            queue: Queue::default(),
            changing: Mutex::new(Memory::new(revision)),
            follower: OnceLock::new(),
            reachable: watch::Sender::new(true),
            model: RwLock::new(model),
            lost: Mutex::default(),
            versions,
            last_seen: Mutex::new(BTreeMap::new()),
            wording: Mutex::default(),
        };
        let state = Self { inner: Arc::new(inner) };
        state.follow();
        state
    }

    fn model(&self) -> RwLockReadGuard<'_, Model> {
        self.inner.model.read().expect(NO_PANIC)
    }

    /// The change to the next membership of a network, signed.
    fn membership(&self, state: &NetworkState, nodes: BTreeSet<NodeId>) -> Result<Change, StateError> {
        self.membership_of(state, &state.next_membership(nodes))
    }

    fn membership_of(
        &self,
        state: &NetworkState,
        membership: &crate::cluster::Membership,
    ) -> Result<Change, StateError> {
        let signed = SignedMembership::sign(membership, &self.inner.sign)
            .map_err(|source| StateError::Signing { network: state.network.name.clone(), source })?;
        let row = MembershipRow { epoch: membership.epoch, signed };
        Ok(Change::PutMembership(membership.network, row))
    }
}

impl fmt::Debug for ClusterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = self.model();
        f.debug_struct("ClusterState")
            .field("id", &model.founding.id)
            .field("version", &model.counters.version)
            .finish_non_exhaustive()
    }
}

const NO_PANIC: &str = "nothing panics while it changes the state";

#[cfg(test)]
mod tests;
