//! The state file of one node: everything that must outlive the agent, in one `redb` file. A cluster with
//! several managers has its own rows in [`etcd`](self::Etcd) instead; [`ClusterRows`] is either.
//!
//! Rows are JSON in typed tables, sealed (`seal`) under a key that lies in a file of its own
//! (`key_file`), which on a manager may take an unlock key (`autolock`). A change that was acknowledged is on the disk; a change that failed left nothing
//! behind. It decides nothing: what a manager may write is `control::state`'s
//! business, what a node keeps for itself is in [`local`]. The agent opens it once and shares it;
//! calls block on the disk, so async callers use `spawn_blocking`.

mod autolock;
mod backup;
mod batch;
mod contents;
mod error;
mod etcd;
mod file;
mod key_file;
pub mod local;
mod reading;
mod rows;
mod seal;
mod shared;

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use serde::Serialize;

use self::autolock::Autolock;
pub use self::backup::{Backup, BackupError};
pub use self::batch::Batch;
pub use self::error::StoreError;
pub use self::etcd::{Etcd, EtcdAccess, EtcdAddress, EtcdError, SharedStore, Turn};
pub use self::file::{LOCK_FILE, STATE_FILE};
pub use self::key_file::KEY_FILE;
pub use self::reading::Reading;
pub use self::rows::{ClusterRows, CommitError, Revision};
use self::seal::Seal;
pub(in crate::control) use self::shared::Kept;
use crate::file_lock::FileLock;

/// The open state file; clones share it. While one exists no other agent can open its directory.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Makes the state directory and an empty state file in it.
    ///
    /// # Errors
    /// When the directory is in use, already holds a state file, or cannot be written.
    pub fn create(dir: &Path) -> Result<Self, StoreError> {
        let lock = file::lock(dir)?;
        let path = dir.join(STATE_FILE);
        if file::exists(&path)? {
            return Err(StoreError::Exists { file: path });
        }
        file::create(dir)?;
        Self::over(dir, lock)
    }

    /// Opens the state file of `dir`, checking every page of it; never makes or replaces one.
    ///
    /// # Errors
    /// When the directory is in use, or its state file is missing, damaged, foreign or newer.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(STATE_FILE);
        if !file::exists(&path)? {
            return Err(StoreError::Missing { file: path });
        }
        let lock = file::lock(dir)?;
        Self::over(dir, lock)
    }

    /// Opens the state file of `dir`, or makes an empty one if there is no file of that name at all.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::create`]; a file that cannot be read is never replaced.
    pub fn open_or_create(dir: &Path) -> Result<Self, StoreError> {
        let lock = file::lock(dir)?;
        let path = dir.join(STATE_FILE);
        if !file::exists(&path)? {
            file::create(dir)?;
        }
        Self::over(dir, lock)
    }

    fn over(dir: &Path, lock: FileLock) -> Result<Self, StoreError> {
        let slot = match file::open(dir, None) {
            Ok(opened) => Slot { opened: Some(opened), autolock: Autolock::Off },
            Err(StoreError::Locked { .. }) => Slot { opened: None, autolock: Autolock::Locked },
            Err(refused) => return Err(refused),
        };
        let inner =
            Inner { dir: dir.to_owned(), file: dir.join(STATE_FILE), slot: RwLock::new(slot), _lock: lock };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The state file, for messages.
    pub fn file(&self) -> &Path {
        &self.inner.file
    }

    /// Removes what a crash has left of files that were being replaced, and says which there were.
    pub fn remove_drafts(&self) -> Vec<PathBuf> {
        file::drafts(&self.inner.dir)
            .into_iter()
            .filter(|draft| std::fs::remove_file(draft).is_ok())
            .collect()
    }

    /// Runs `read` on one snapshot of the file.
    ///
    /// # Errors
    /// What `read` returns, or that the file could not be read.
    pub fn read<T>(&self, read: impl FnOnce(&Reading<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.inner.with_database(|database, seal| {
            let transaction =
                database.begin_read().map_err(|e| StoreError::redb(&self.inner.file, "read", e))?;
            read(&Reading::of_file(&self.inner.file, seal, transaction))
        })
    }

    /// Runs `write` in one transaction; when this returns `Ok`, all of it is on the disk, otherwise
    /// none of it is in the file.
    ///
    /// # Errors
    /// What `write` returns, or that the file could not be written.
    pub fn write<T>(
        &self,
        write: impl FnOnce(&Writing<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.with_database(|database, seal| file::commit(&self.inner.file, database, seal, write))
    }
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    file: PathBuf,
    slot: RwLock<Slot>,
    /// Held, never read; the last to be dropped, as it gives the directory free.
    _lock: FileLock,
}

#[derive(Debug)]
struct Slot {
    /// `None` while it is locked, and after a failed write: redb refuses everything after one until
    /// it is opened again.
    opened: Option<(Database, Seal)>,
    autolock: Autolock,
}

impl Inner {
    fn with_database<T>(
        &self,
        run: impl FnOnce(&Database, &Seal) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = {
            let slot = self.opened()?;
            let (database, seal) = slot.opened.as_ref().expect("just opened");
            run(database, seal)
        };
        if result.as_ref().is_err_and(StoreError::needs_reopening) {
            self.slot.write().expect(NO_PANIC).opened = None;
        }
        result
    }

    fn opened(&self) -> Result<RwLockReadGuard<'_, Slot>, StoreError> {
        loop {
            let slot = self.slot.read().expect(NO_PANIC);
            if slot.opened.is_some() {
                return Ok(slot);
            }
            drop(slot);
            self.open(&mut self.slot.write().expect(NO_PANIC))?;
        }
    }

    /// Opens the file, unless it is open.
    fn open(&self, slot: &mut Slot) -> Result<(), StoreError> {
        if slot.opened.is_none() {
            if matches!(slot.autolock, Autolock::Locked) {
                return Err(StoreError::Locked { file: self.file.clone() });
            }
            slot.opened = Some(file::open(&self.dir, slot.autolock.key())?);
        }
        Ok(())
    }
}

/// A table of JSON rows of type `V`, keyed by text.
#[derive(Debug)]
pub struct Table<V> {
    name: &'static str,
    rows: PhantomData<fn() -> V>,
}

impl<V> Table<V> {
    /// Names a table.
    pub const fn new(name: &'static str) -> Self {
        Self { name, rows: PhantomData }
    }
}

/// One transaction; nothing of it counts before it is committed.
pub struct Writing<'s> {
    file: &'s Path,
    seal: &'s Seal,
    transaction: redb::WriteTransaction,
}

impl<'s> Writing<'s> {
    fn begin(file: &'s Path, database: &Database, seal: &'s Seal) -> Result<Self, StoreError> {
        let failed = |e: redb::Error| StoreError::redb(file, "write", e);
        let mut transaction = database.begin_write().map_err(|e| failed(e.into()))?;
        transaction.set_durability(Durability::Immediate).map_err(|e| failed(e.into()))?;
        // With one phase, a page of the last commit that is damaged after a crash looks like a commit
        // under way, and redb goes back to the one before it: an acknowledged change would be gone
        // without a word. It costs a second fsync.
        transaction.set_two_phase_commit(true);
        Ok(Self { file, seal, transaction })
    }

    fn commit(self) -> Result<(), StoreError> {
        let Self { file, transaction, .. } = self;
        transaction.commit().map_err(|e| StoreError::redb(file, "write", e))
    }

    /// Sets the row of `key`.
    ///
    /// # Errors
    /// When the file cannot be written or `value` has no JSON form.
    pub fn put<V: Serialize>(&self, table: &Table<V>, key: &str, value: &V) -> Result<(), StoreError> {
        let sealed = self.seal.seal(table.name, key, |to| serde_json::to_writer(to, value));
        let sealed = sealed.map_err(|source| StoreError::Unwritable {
            table: table.name,
            key: key.to_owned(),
            source,
        })?;
        self.insert(table.name, key, &sealed)
    }

    /// Sets a row to JSON that there is already.
    fn put_json(&self, table: &str, key: &str, json: &[u8]) -> Result<(), StoreError> {
        self.insert(table, key, &self.seal.seal_json(table, key, json))
    }

    fn insert(&self, table: &str, key: &str, sealed: &[u8]) -> Result<(), StoreError> {
        let failed = |e: redb::Error| StoreError::redb(self.file, "write", e);
        let mut rows = self.transaction.open_table(rows_of(table)).map_err(|e| failed(e.into()))?;
        rows.insert(self.seal.index(table, key).as_slice(), sealed).map_err(|e| failed(e.into()))?;
        Ok(())
    }

    /// Removes the row of `key`, if there is one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove<V>(&self, table: &Table<V>, key: &str) -> Result<(), StoreError> {
        self.remove_row(table.name, key)
    }

    fn remove_row(&self, table: &str, key: &str) -> Result<(), StoreError> {
        let failed = |e: redb::Error| StoreError::redb(self.file, "write", e);
        let mut rows = self.transaction.open_table(rows_of(table)).map_err(|e| failed(e.into()))?;
        rows.remove(self.seal.index(table, key).as_slice()).map_err(|e| failed(e.into()))?;
        Ok(())
    }

    /// Removes every table but the header, leaving the file as [`Store::create`] made it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn clear(&self) -> Result<(), StoreError> {
        self.delete_tables(|table| table != file::HEADER_TABLE)
    }

    /// Removes the cluster's rows, leaving those that the node keeps for itself.
    fn clear_cluster(&self) -> Result<(), StoreError> {
        self.delete_tables(|table| table != file::HEADER_TABLE && !local::is_of_the_node(table))
    }

    fn delete_tables(&self, which: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let failed = |e: redb::Error| StoreError::redb(self.file, "write", e);
        let tables = self.transaction.list_tables().map_err(|e| failed(e.into()))?;
        for table in tables.collect::<Vec<_>>() {
            if which(redb::TableHandle::name(&table)) {
                self.transaction.delete_table(table).map_err(|e| failed(e.into()))?;
            }
        }
        Ok(())
    }
}

fn unopened(file: &Path, table: &str, index: &[u8]) -> StoreError {
    let row = data_encoding::HEXLOWER.encode(index);
    StoreError::Unopened { file: file.to_owned(), table: table.to_owned(), row }
}

fn rows_of(table: &str) -> Definition<'_> {
    TableDefinition::new(table)
}

/// A table as redb has it: sealed rows by what their keys were made into.
type Definition<'t> = TableDefinition<'t, &'static [u8], &'static [u8]>;

const NO_PANIC: &str = "nothing panics while the state file is being opened";

#[cfg(test)]
mod tests;
