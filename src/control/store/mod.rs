//! The state file of one node: everything that must outlive the agent, in one `redb` file.
//!
//! Rows are JSON in typed tables. A change that was acknowledged is on the disk; a change that
//! failed left nothing behind. It decides nothing: what a manager may write is `control::state`'s
//! business, what a node keeps for itself is in [`local`]. The agent opens it once and shares it;
//! calls block on the disk, so async callers use `spawn_blocking`.

mod error;
mod file;
pub mod local;

use std::fs::File;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::error::StoreError;
pub use self::file::{LOCK_FILE, STATE_FILE};

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
        file::create(dir, &path)?;
        Self::over(path, lock)
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
        Self::over(path, lock)
    }

    /// Opens the state file of `dir`, or makes an empty one if there is no file of that name at all.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::create`]; a file that cannot be read is never replaced.
    pub fn open_or_create(dir: &Path) -> Result<Self, StoreError> {
        let lock = file::lock(dir)?;
        let path = dir.join(STATE_FILE);
        if !file::exists(&path)? {
            file::create(dir, &path)?;
        }
        Self::over(path, lock)
    }

    fn over(path: PathBuf, lock: File) -> Result<Self, StoreError> {
        let database = file::open(&path)?;
        let inner = Inner { file: path, _lock: lock, database: RwLock::new(Some(database)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The state file, for messages.
    pub fn file(&self) -> &Path {
        &self.inner.file
    }

    /// Runs `read` on one snapshot of the file.
    ///
    /// # Errors
    /// What `read` returns, or that the file could not be read.
    pub fn read<T>(&self, read: impl FnOnce(&Reading<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.inner.with_database(|database| {
            let transaction =
                database.begin_read().map_err(|e| StoreError::redb(&self.inner.file, "read", e))?;
            read(&Reading { file: &self.inner.file, transaction })
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
        self.inner.with_database(|database| file::commit(&self.inner.file, database, write))
    }
}

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    /// Held, never read: closing it gives the directory free.
    _lock: File,
    /// `None` after a failed write: redb refuses everything after one until it is opened again.
    database: RwLock<Option<Database>>,
}

impl Inner {
    fn with_database<T>(
        &self,
        run: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = run(self.opened()?.as_ref().expect("just opened"));
        if result.as_ref().is_err_and(StoreError::needs_reopening) {
            *self.database.write().expect(NO_PANIC) = None;
        }
        result
    }

    fn opened(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, StoreError> {
        loop {
            let guard = self.database.read().expect(NO_PANIC);
            if guard.is_some() {
                return Ok(guard);
            }
            drop(guard);
            let mut slot = self.database.write().expect(NO_PANIC);
            if slot.is_none() {
                *slot = Some(file::open(&self.file)?);
            }
        }
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

    fn definition(&self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name)
    }
}

/// One snapshot of the state file.
pub struct Reading<'s> {
    file: &'s Path,
    transaction: ReadTransaction,
}

impl Reading<'_> {
    /// The row of `key`.
    ///
    /// # Errors
    /// When the file cannot be read or the row is no `V`.
    pub fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &str) -> Result<Option<V>, StoreError> {
        let rows = match self.transaction.open_table(table.definition()) {
            Ok(rows) => rows,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(StoreError::redb(self.file, "read", e)),
        };
        let row = rows.get(key).map_err(|e| StoreError::redb(self.file, "read", e))?;
        row.map(|row| parse(self.file, table.name, key, row.value())).transpose()
    }

    /// Every row, in the order of the keys.
    ///
    /// # Errors
    /// When the file cannot be read or a row is no `V`.
    pub fn all<V: DeserializeOwned>(&self, table: &Table<V>) -> Result<Vec<(String, V)>, StoreError> {
        let failed = |e: redb::StorageError| StoreError::redb(self.file, "read", e);
        let rows = match self.transaction.open_table(table.definition()) {
            Ok(rows) => rows,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(e) => return Err(StoreError::redb(self.file, "read", e)),
        };
        let mut all = Vec::new();
        for row in rows.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let key = key.value();
            all.push((key.to_owned(), parse(self.file, table.name, key, value.value())?));
        }
        Ok(all)
    }
}

/// One transaction; nothing of it counts before it is committed.
pub struct Writing<'s> {
    file: &'s Path,
    transaction: redb::WriteTransaction,
}

impl<'s> Writing<'s> {
    fn begin(file: &'s Path, database: &Database) -> Result<Self, StoreError> {
        let failed = |e: redb::Error| StoreError::redb(file, "write", e);
        let mut transaction = database.begin_write().map_err(|e| failed(e.into()))?;
        transaction.set_durability(Durability::Immediate).map_err(|e| failed(e.into()))?;
        // With one phase, a page of the last commit that is damaged after a crash looks like a commit
        // under way, and redb goes back to the one before it: an acknowledged change would be gone
        // without a word. It costs a second fsync.
        transaction.set_two_phase_commit(true);
        Ok(Self { file, transaction })
    }

    fn commit(self) -> Result<(), StoreError> {
        let Self { file, transaction } = self;
        transaction.commit().map_err(|e| StoreError::redb(file, "write", e))
    }

    /// Sets the row of `key`.
    ///
    /// # Errors
    /// When the file cannot be written or `value` has no JSON form.
    pub fn put<V: Serialize>(&self, table: &Table<V>, key: &str, value: &V) -> Result<(), StoreError> {
        let json = serde_json::to_vec(value).map_err(|source| StoreError::Unwritable {
            table: table.name,
            key: key.to_owned(),
            source,
        })?;
        let failed = |e: redb::Error| StoreError::redb(self.file, "write", e);
        let mut rows = self.transaction.open_table(table.definition()).map_err(|e| failed(e.into()))?;
        rows.insert(key, json.as_slice()).map_err(|e| failed(e.into()))?;
        Ok(())
    }

    /// Removes the row of `key`, if there is one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove<V>(&self, table: &Table<V>, key: &str) -> Result<(), StoreError> {
        let failed = |e: redb::Error| StoreError::redb(self.file, "write", e);
        let mut rows = self.transaction.open_table(table.definition()).map_err(|e| failed(e.into()))?;
        rows.remove(key).map_err(|e| failed(e.into()))?;
        Ok(())
    }

    /// Removes every table but the header, leaving the file as [`Store::create`] made it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn clear(&self) -> Result<(), StoreError> {
        let failed = |e: redb::Error| StoreError::redb(self.file, "write", e);
        let tables = self.transaction.list_tables().map_err(|e| failed(e.into()))?;
        for table in tables.collect::<Vec<_>>() {
            if redb::TableHandle::name(&table) != file::HEADER_TABLE {
                self.transaction.delete_table(table).map_err(|e| failed(e.into()))?;
            }
        }
        Ok(())
    }
}

fn parse<V: DeserializeOwned>(
    file: &Path,
    table: &'static str,
    key: &str,
    json: &[u8],
) -> Result<V, StoreError> {
    serde_json::from_slice(json).map_err(|source| StoreError::Row {
        file: file.to_owned(),
        table,
        key: key.to_owned(),
        source,
    })
}

const NO_PANIC: &str = "nothing panics while the state file is being opened";

#[cfg(test)]
mod tests;
