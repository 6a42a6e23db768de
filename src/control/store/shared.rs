//! What a manager keeps of a store that it shares with others: where it is, how it is entered, its data
//! key. It lies sealed in the manager's own state file, and under autolock takes its unlock key with it.

use serde::{Deserialize, Serialize};

use super::etcd::{Etcd, SharedStore};
use super::local::NODE_TABLE;
use super::{ClusterRows, Store, StoreError, Table};
use crate::id::Version;

/// A shared store as this manager uses it.
#[derive(Serialize, Deserialize)]
pub(in crate::control) struct Kept {
    shared: SharedStore,
    /// Under which this manager's transactions are known there.
    writer: String,
}

impl Kept {
    /// That a manager begins to use it.
    pub(in crate::control) fn new(shared: SharedStore) -> Self {
        Self { shared, writer: data_encoding::HEXLOWER.encode(&rand::random::<[u8; 8]>()) }
    }

    /// The rows there. Nothing is asked of etcd yet.
    ///
    /// # Errors
    /// When it is not usable, or there are no descriptors left.
    pub(in crate::control) fn rows(&self) -> Result<ClusterRows, StoreError> {
        Ok(ClusterRows::Etcd(Etcd::open(self.shared.clone(), self.writer.clone())?))
    }
}

impl Store {
    /// Where the rows of the cluster are that this node manages. Nothing is asked of etcd yet.
    ///
    /// # Errors
    /// When the state file cannot be read, or what it says of etcd is not usable.
    pub fn cluster_rows(&self) -> Result<ClusterRows, StoreError> {
        let kept = self.read(|r| r.get(&SHARED, KEPT))?;
        kept.map_or_else(|| Ok(self.clone().into()), |kept| kept.rows())
    }

    /// The store that this manager shares with others, if its cluster's rows are in one.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn shared_store(&self) -> Result<Option<SharedStore>, StoreError> {
        Ok(self.read(|r| r.get(&SHARED, KEPT))?.map(|kept| kept.shared))
    }

    /// From now on the cluster's rows are in `shared`, and not in this file.
    ///
    /// # Errors
    /// When it cannot be written; then they are where they were.
    pub fn put_shared_store(&self, shared: &SharedStore) -> Result<(), StoreError> {
        self.keep(&Kept::new(shared.clone()))
    }

    /// As [`Self::put_shared_store`], for who has opened the rows there before.
    ///
    /// # Errors
    /// When it cannot be written; then they are where they were.
    pub(in crate::control) fn keep(&self, kept: &Kept) -> Result<(), StoreError> {
        self.write(|w| {
            w.clear_cluster()?;
            w.put(&SHARED, KEPT, kept)
        })
    }

    /// Forgets the store that this node shared with others, when it is no manager any more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn forget_shared_store(&self) -> Result<(), StoreError> {
        self.write(|w| {
            w.remove(&HIGH_WATER, MARK)?;
            w.remove(&SHARED, KEPT)
        })
    }

    /// Keeps the version that the state in the shared store has come to, by which one is known that was put back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_high_water(&self, version: Version) -> Result<(), StoreError> {
        self.write(|w| w.put(&HIGH_WATER, MARK, &version))
    }

    /// The version that the state in the shared store had come to, as far as this manager wrote it down.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn high_water(&self) -> Result<Option<Version>, StoreError> {
        self.read(|r| r.get(&HIGH_WATER, MARK))
    }
}

const HIGH_WATER: Table<Version> = Table::new(NODE_TABLE);
pub(super) const MARK: &str = "high_water";

const SHARED: Table<Kept> = Table::new(NODE_TABLE);
pub(super) const KEPT: &str = "shared_store";
