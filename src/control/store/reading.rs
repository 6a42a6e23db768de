//! Reading rows of one moment, in the state file or in etcd.

use std::path::Path;

use redb::{ReadTransaction, ReadableTable};
use serde::de::DeserializeOwned;

use super::etcd::{Etcd, Sealed, Snapshot};
use super::seal::{self, Seal};
use super::{StoreError, Table, rows_of, unopened};

/// The rows of one moment.
pub struct Reading<'s> {
    /// Where they are, for messages.
    place: &'s Path,
    seal: &'s Seal,
    rows: Rows<'s>,
}

enum Rows<'s> {
    File(ReadTransaction),
    Etcd(Snapshot<'s>),
}

impl<'s> Reading<'s> {
    pub(super) fn of_file(file: &'s Path, seal: &'s Seal, transaction: ReadTransaction) -> Self {
        Self { place: file, seal, rows: Rows::File(transaction) }
    }

    pub(super) fn of_etcd(etcd: &'s Etcd, snapshot: Snapshot<'s>) -> Self {
        Self { place: etcd.place(), seal: etcd.seal(), rows: Rows::Etcd(snapshot) }
    }

    /// The row of `key`.
    ///
    /// # Errors
    /// When it cannot be read or is no `V`.
    pub fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &str) -> Result<Option<V>, StoreError> {
        let index = self.seal.index(table.name, key);
        let row = match &self.rows {
            Rows::File(transaction) => in_file(self.place, transaction, table.name, &index)?,
            Rows::Etcd(snapshot) => snapshot.get(table.name, &index)?,
        };
        row.map(|row| Ok(self.open(table, &index, &row)?.1)).transpose()
    }

    /// Every row, in the order of the keys.
    ///
    /// # Errors
    /// When they cannot be read or one is no `V`.
    pub fn all<V: DeserializeOwned>(&self, table: &Table<V>) -> Result<Vec<(String, V)>, StoreError> {
        let rows = match &self.rows {
            Rows::File(transaction) => all_in_file(self.place, transaction, table.name)?,
            Rows::Etcd(snapshot) => snapshot.all(table.name)?,
        };
        let opened = rows.iter().map(|(index, row)| self.open(table, index, row));
        let mut all = opened.collect::<Result<Vec<_>, _>>()?;
        // They lie in the order of what their keys were made into.
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(all)
    }

    fn open<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        index: &[u8],
        sealed: &[u8],
    ) -> Result<(String, V), StoreError> {
        let row = self
            .seal
            .open(table.name, index, sealed)
            .map_err(|seal::Unopened| unopened(self.place, table.name, index))?;
        let value = serde_json::from_slice(row.json()).map_err(|source| StoreError::Row {
            file: self.place.to_owned(),
            table: table.name,
            key: row.key.clone(),
            source,
        })?;
        Ok((row.key, value))
    }
}

fn in_file(
    file: &Path,
    transaction: &ReadTransaction,
    table: &str,
    index: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let rows = match transaction.open_table(rows_of(table)) {
        Ok(rows) => rows,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(e) => return Err(StoreError::redb(file, "read", e)),
    };
    let row = rows.get(index).map_err(|e| StoreError::redb(file, "read", e))?;
    Ok(row.map(|row| row.value().to_vec()))
}

fn all_in_file(file: &Path, transaction: &ReadTransaction, table: &str) -> Result<Vec<Sealed>, StoreError> {
    let failed = |e: redb::StorageError| StoreError::redb(file, "read", e);
    let rows = match transaction.open_table(rows_of(table)) {
        Ok(rows) => rows,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::redb(file, "read", e)),
    };
    let mut all = Vec::new();
    for row in rows.iter().map_err(failed)? {
        let (index, row) = row.map_err(failed)?;
        all.push((index.value().to_vec(), row.value().to_vec()));
    }
    Ok(all)
}
