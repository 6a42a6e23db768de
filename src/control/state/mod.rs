//! The truth about a cluster, as its manager keeps it: nodes, networks, endpoints, memberships.
//!
//! Every operation is checked against the state in memory, written to the state file in one
//! transaction, and only then seen by anybody. Calls block on the disk (async callers use
//! `spawn_blocking`); [`ClusterState::versions`] wakes whoever passes changes on to the nodes. Who may
//! call what is decided by the caller's certificate in `control::rpc`; here it is checked only that
//! a node touches nothing of another's.

mod addresses;
mod authority;
mod change_log;
mod endpoints;
mod error;
mod issued_tokens;
mod labels;
mod model;
mod networks;
mod nodes;
mod overtake;
mod pool;
mod profiles;
mod rotation;
mod subnets;
mod tokens;
mod view_update;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::watch;
use zeroize::Zeroizing;

use self::model::{COUNTERS, Change, Counters, Founding, MembershipRow, Model, NetworkState, ONLY};
use crate::boot_time::BootTime;
use crate::cluster::Node;
use crate::control::store::Store;
use crate::id::{ClusterId, NodeId, Version};
use crate::membership::{Roots, Signature, SignedMembership};

pub use self::endpoints::{AttachRequest, Attached};
pub use self::error::{ErrorKind, StateError};
pub use self::issued_tokens::{NewToken, TokenRefusal};
pub use self::networks::{NetworkSummary, NewNetwork};
pub use self::nodes::{NodeStatus, Takes};
pub use self::overtake::Whereabouts;
pub(crate) use self::overtake::is_overtaken;
pub use self::pool::AddressPool;
pub use self::profiles::{ChangedProfile, ProfileChange};
pub use self::rotation::{Advance, NewRotation, RootStanding, Rotation};
pub use self::tokens::Tokens;
pub use self::view_update::{NetworkChange, ViewUpdate};
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
    store: Store,
    sign: Box<SignPayload>,
    /// One change at a time; readers are not kept waiting by its way to the disk.
    changing: Mutex<Memory>,
    model: RwLock<Model>,
    versions: watch::Sender<Version>,
    last_seen: Mutex<BTreeMap<NodeId, BootTime>>,
}

/// Whether the model is what the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Current,
    /// The disk failed and could not be read since: what it holds is the truth.
    Stale,
}

impl ClusterState {
    /// Makes a cluster in the state file of this node.
    ///
    /// # Errors
    /// When the node keeps a cluster's state already, a pool is not usable, or the disk refuses.
    pub fn create(store: Store, new: NewCluster, sign: Box<SignPayload>) -> Result<Self, StateError> {
        if let Some(present) = Self::load(&store)? {
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
        store.write(|w| model.write_founding(w, &new.ca))?;
        Ok(Self::over(store, model, sign))
    }

    /// Opens the state of the cluster that this node manages.
    ///
    /// # Errors
    /// When the node keeps no cluster's state, or the state cannot be read or contradicts itself.
    pub fn open(store: Store, sign: Box<SignPayload>) -> Result<Self, StateError> {
        let model = Self::load(&store)?.ok_or(StateError::NoCluster)?;
        authority::set_apart(&store, &model.founding)?;
        Ok(Self::over(store, model, sign))
    }

    /// Whether the node keeps a cluster's state, that is, whether it is a manager.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn exists(store: &Store) -> Result<bool, StateError> {
        Ok(Self::load(store)?.is_some())
    }

    /// The nodes of the cluster in a state file, none where there is no cluster.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn nodes_in(store: &Store) -> Result<Vec<Node>, StateError> {
        Ok(Self::load(store)?.into_iter().flat_map(|model| model.nodes.into_values()).collect())
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
        let all = model.networks.values();
        let changes = all.map(|state| self.membership(state, state.members.keys().copied().collect()));
        let mut changes = changes.collect::<Result<Vec<_>, _>>()?;
        if model.removals.is_some() {
            changes.push(self.removals(model, &model.removed)?);
        }
        Ok(changes)
    }

    fn over(store: Store, model: Model, sign: Box<SignPayload>) -> Self {
        let (versions, _) = watch::channel(model.counters.version);
        let inner = Inner {
            store,
            sign,
            changing: Mutex::new(Memory::Current),
            model: RwLock::new(model),
            versions,
            last_seen: Mutex::new(BTreeMap::new()),
        };
        Self { inner: Arc::new(inner) }
    }

    fn load(store: &Store) -> Result<Option<Model>, StateError> {
        store.read(Model::load)?.map_err(|why| StateError::Inconsistent { why })
    }

    fn model(&self) -> RwLockReadGuard<'_, Model> {
        self.inner.model.read().expect(NO_PANIC)
    }

    /// Plans against the state, writes the changes, applies them. No changes, no new version.
    fn change<T>(
        &self,
        plan: impl FnOnce(&Model) -> Result<(T, Vec<Change>), StateError>,
    ) -> Result<T, StateError> {
        let mut memory = self.inner.changing.lock().expect(NO_PANIC);
        if *memory == Memory::Stale {
            self.reload()?;
            *memory = Memory::Current;
        }
        let (answer, counters, changes) = {
            let model = self.model();
            let (answer, changes) = plan(&model)?;
            let mut counters = model.counters;
            counters.version = Version::new(counters.version.get() + 1);
            for change in &changes {
                if let Change::SetNextVni(next) = change {
                    counters.next_vni = *next;
                }
            }
            (answer, counters, changes)
        };
        if changes.is_empty() {
            return Ok(answer);
        }
        let written = self.inner.store.write(|w| {
            w.put(&COUNTERS, ONLY, &counters)?;
            changes.iter().try_for_each(|change| change.write(w))
        });
        if let Err(refused) = written {
            // A disk that fails late may have taken the change all the same.
            *memory = Memory::Stale;
            if self.reload().is_ok() {
                *memory = Memory::Current;
            }
            return Err(refused.into());
        }
        let mut model = self.inner.model.write().expect(NO_PANIC);
        model.counters = counters;
        for change in changes {
            model.apply(change).map_err(|why| StateError::Inconsistent { why })?;
        }
        drop(model);
        self.inner.versions.send_replace(counters.version);
        Ok(answer)
    }

    /// Takes what the file holds for the truth, if it is not what we have.
    fn reload(&self) -> Result<(), StateError> {
        let truth = Self::load(&self.inner.store)?.ok_or(StateError::NoCluster)?;
        let mut model = self.inner.model.write().expect(NO_PANIC);
        if truth.counters != model.counters {
            self.inner.versions.send_replace(truth.counters.version);
            *model = truth;
        }
        Ok(())
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
