//! The rows of a cluster, wherever its managers keep them: one interface over two stores.
//!
//! In the state file there is one manager, whose directory's lock keeps others out. In etcd there may be
//! several: a change is made only if nobody has changed anything since the moment that it was decided on.

use std::thread::Thread;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::batch::Batch;
use super::contents::{self, RowInClear};
use super::etcd::{Etcd, EtcdError, SharedStore, Turn};
use super::{Reading, Store, StoreError};
use crate::id::{ChangeId, ClusterId, Version};

/// Where the rows of a cluster are; clones share it.
#[derive(Debug, Clone)]
pub enum ClusterRows {
    /// In the state file of the only manager.
    File(Store),
    /// In etcd, for several managers.
    Etcd(Etcd),
}

impl ClusterRows {
    /// Runs `read` on the rows of one moment, and says which moment that is. It may be run again when that
    /// moment is forgotten meanwhile.
    ///
    /// # Errors
    /// What `read` returns, or that the rows could not be read.
    pub fn read<T>(
        &self,
        mut read: impl FnMut(&Reading<'_>) -> Result<T, StoreError>,
    ) -> Result<(T, Revision), StoreError> {
        match self {
            Self::File(store) => Ok((store.read(read)?, Revision::FILE)),
            Self::Etcd(etcd) => etcd.read(|snapshot| read(&Reading::of_etcd(etcd, snapshot))),
        }
    }

    /// Makes the changes of `batch`, all or none, if the rows are as they were at `since` and, unless the caller has it,
    /// nobody has the turn.
    ///
    /// # Errors
    /// Others have changed the rows, or are about to, or they could not be written. After
    /// [`EtcdError::Unsettled`] alone it is open whether they were.
    pub fn commit(
        &self,
        since: Revision,
        batch: &Batch,
        turn: Option<&Turn>,
    ) -> Result<Revision, CommitError> {
        match self {
            Self::File(store) => {
                store.write(|w| {
                    batch.rows().try_for_each(|(table, key, json)| match json {
                        Some(json) => w.put_json(table, key, json),
                        None => w.remove_row(table, key),
                    })
                })?;
                Ok(Revision::FILE)
            }
            Self::Etcd(etcd) => etcd.commit(since, batch, turn),
        }
    }

    /// The records of all changes since `known`, which led to that version, and the moment that they lead to; `None`
    /// where not all were kept, so that the rows have to be read.
    ///
    /// # Errors
    /// When they could not be read.
    pub fn records<R: DeserializeOwned>(
        &self,
        known: Revision,
        version: Version,
    ) -> Result<Option<(Vec<R>, Revision)>, StoreError> {
        match self {
            Self::File(_) => Ok(None),
            Self::Etcd(etcd) => etcd.records(known, version),
        }
    }

    /// Waits, for as long as `patience` says, until the others wait with their changes; in a file there are none.
    ///
    /// # Errors
    /// Others had the turn all the time, or it cannot be told.
    pub fn take_turn(&self, patience: Duration) -> Result<Option<Turn>, CommitError> {
        match self {
            Self::File(_) => Ok(None),
            Self::Etcd(etcd) => etcd.take_turn(patience).map(Some),
        }
    }

    /// Whether the rows are as they were at `known`.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn is_current(&self, known: Revision) -> Result<bool, StoreError> {
        match self {
            Self::File(_) => Ok(true),
            Self::Etcd(etcd) => Ok(etcd.head()?.1 == known),
        }
    }

    /// Whether `made`, the last change that was made here, is there in `others` as well: whether they are the same.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn is_last_change_in(&self, others: &Self, made: Revision) -> Result<bool, StoreError> {
        match (self, others) {
            (Self::Etcd(ours), Self::Etcd(others)) => Ok(ours.is_last_change_in(others, made)?),
            (Self::File(_), _) | (_, Self::File(_)) => Ok(false),
        }
    }

    /// Wakes `listener` from now on whenever others may have changed the rows; in a file nobody does.
    pub fn wake(&self, listener: Thread) {
        if let Self::Etcd(etcd) = self {
            etcd.wake(listener);
        }
    }

    /// Whether others may have changed the rows since `known`; asked once, it is taken to be looked at.
    pub fn news(&self, known: Revision) -> bool {
        match self {
            Self::File(_) => false,
            Self::Etcd(etcd) => etcd.news(known),
        }
    }

    /// Has [`Self::news`] tell again what could not be looked at.
    pub fn again(&self) {
        if let Self::Etcd(etcd) = self {
            etcd.again();
        }
    }

    /// Why the changes of others are not heard of at present, if that is so.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::File(_) => None,
            Self::Etcd(etcd) => etcd.trouble(),
        }
    }

    /// Says whose the rows will be that are made first.
    pub fn found(&self, cluster: ClusterId) {
        if let Self::Etcd(etcd) = self {
            etcd.found(cluster);
        }
    }

    /// What another manager needs to use the same rows; `None` where there can be no other.
    pub fn shared(&self) -> Option<&SharedStore> {
        match self {
            Self::File(_) => None,
            Self::Etcd(etcd) => Some(etcd.shared()),
        }
    }

    /// The rows in a shared store that this node does not use yet.
    ///
    /// # Errors
    /// What the store is reached with is not usable.
    pub fn over(shared: &SharedStore) -> Result<Self, StoreError> {
        Ok(Self::Etcd(Etcd::open(shared.clone(), format!("draft-{:016x}", rand::random::<u64>()))?))
    }

    /// Copies every row to `other`, where nobody believes them yet; how many there are.
    ///
    /// # Errors
    /// When they cannot be read or written, or somebody else is there.
    pub fn copy_to(&self, other: &Self, cluster: ClusterId) -> Result<usize, CommitError> {
        let Self::Etcd(etcd) = other else { return Err(CommitError::Conflict) };
        // What an earlier attempt has left.
        etcd.discard(cluster)?;
        let (_, mut at) = etcd.head()?;
        etcd.found(cluster);
        let rows = self.contents()?;
        let mut batch = Batch::default();
        let mut bytes = 0;
        for row in &rows {
            batch.put_json(&row.table, &row.key, row.json.clone());
            bytes += row.json.len() + ROW_BYTES;
            if bytes > BATCH_BYTES {
                at = etcd.commit_draft(at, &std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        etcd.commit_draft(at, &batch)?;
        if other.contents()?.len() == rows.len() { Ok(rows.len()) } else { Err(CommitError::Conflict) }
    }

    /// Looks whether the rows can be read.
    ///
    /// # Errors
    /// Why not.
    pub fn look(&self) -> Result<(), StoreError> {
        match self {
            Self::File(store) => store.read(|_| Ok(())),
            Self::Etcd(etcd) => match etcd.head()? {
                (Some(_), _) => Ok(()),
                (None, _) => Err(etcd.empty().into()),
            },
        }
    }

    /// Whose the rows in etcd are, if there are any under our key.
    ///
    /// # Errors
    /// When etcd cannot be reached or refuses.
    pub fn owner(&self) -> Result<Option<ClusterId>, StoreError> {
        match self {
            Self::File(_) => Ok(None),
            Self::Etcd(etcd) => Ok(etcd.head()?.0),
        }
    }

    /// Removes `cluster`'s rows for good, if they are under the key that we know or were never believed.
    ///
    /// # Errors
    /// When etcd cannot be reached or refuses.
    pub fn discard(&self, cluster: ClusterId) -> Result<(), CommitError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Etcd(etcd) => etcd.discard(cluster),
        }
    }

    /// Every row of one moment, in clear, but for those that the node keeps for itself.
    pub(super) fn contents(&self) -> Result<Vec<RowInClear>, StoreError> {
        match self {
            Self::File(store) => {
                let mut rows = store
                    .inner
                    .with_database(|database, seal| contents::sealed(store.file(), database, seal))?;
                rows.retain(|row| !super::local::is_of_the_node(&row.table));
                Ok(rows)
            }
            Self::Etcd(etcd) => Ok(etcd.read(|snapshot| contents::of_etcd(etcd, snapshot))?.0),
        }
    }
}

impl From<Store> for ClusterRows {
    fn from(store: Store) -> Self {
        Self::File(store)
    }
}

/// A moment in the life of a cluster's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    /// Grows with every change.
    at: i64,
    /// The change that led here, as far as it told: an etcd that was restored counts again from where its snapshot was
    /// made.
    change: Option<ChangeId>,
}

impl Revision {
    /// Of the rows in a file, which nobody else changes.
    const FILE: Self = Self::NOTHING;
    /// Before there were any rows.
    pub const NOTHING: Self = Self { at: 0, change: None };

    pub(super) const fn new(at: i64, change: Option<ChangeId>) -> Self {
        Self { at, change }
    }

    pub(super) const fn at(self) -> i64 {
        self.at
    }

    pub(super) const fn change(self) -> Option<ChangeId> {
        self.change
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Others have changed the rows since: it has to be decided again.
    #[error("other managers have changed the cluster's state in between: try again")]
    Conflict,
    /// They could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<EtcdError> for CommitError {
    fn from(error: EtcdError) -> Self {
        Self::Store(error.into())
    }
}

/// What etcd takes in one transaction is 1.5 MiB (`--max-request-bytes`).
const BATCH_BYTES: usize = 512 << 10;
/// What a row takes beside its JSON.
const ROW_BYTES: usize = 256;
