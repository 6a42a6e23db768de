//! All that a state file holds, or etcd, in clear: for what takes its place under another key.

use std::path::Path;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use zeroize::Zeroizing;

use super::etcd::{Etcd, Snapshot};
use super::file::HEADER_TABLE;
use super::seal::Seal;
use super::{StoreError, rows_of, unopened};

/// A row in clear.
pub(super) struct RowInClear {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) json: Zeroizing<Vec<u8>>,
}

/// Every row.
pub(super) fn sealed(path: &Path, database: &Database, seal: &Seal) -> Result<Vec<RowInClear>, StoreError> {
    let failed = |e: redb::Error| StoreError::redb(path, "read", e);
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let mut all = Vec::new();
    for table in tables(path, &transaction)? {
        let rows = transaction.open_table(rows_of(&table)).map_err(|e| failed(e.into()))?;
        for row in rows.iter().map_err(|e| failed(e.into()))? {
            let (index, row) = row.map_err(|e| failed(e.into()))?;
            let row = seal
                .open(&table, index.value(), row.value())
                .map_err(|_| unopened(path, &table, index.value()))?;
            let json = Zeroizing::new(row.json().to_vec());
            all.push(RowInClear { table: table.clone(), key: row.key, json });
        }
    }
    Ok(all)
}

/// Every row in etcd.
pub(super) fn of_etcd(etcd: &Etcd, snapshot: Snapshot<'_>) -> Result<Vec<RowInClear>, StoreError> {
    let rows = snapshot.everything()?.into_iter().map(|(table, (index, sealed))| {
        let row = etcd.seal().open(&table, &index, &sealed);
        let row = row.map_err(|_| unopened(etcd.place(), &table, &index))?;
        let json = Zeroizing::new(row.json().to_vec());
        Ok(RowInClear { table, key: row.key, json })
    });
    rows.collect()
}

/// Every row of a file from before rows were sealed.
pub(super) fn unsealed(path: &Path, database: &Database) -> Result<Vec<RowInClear>, StoreError> {
    let failed = |e: redb::Error| StoreError::redb(path, "read", e);
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let mut all = Vec::new();
    for table in tables(path, &transaction)? {
        let definition = TableDefinition::<&str, &[u8]>::new(&table);
        let rows = transaction.open_table(definition).map_err(|e| failed(e.into()))?;
        for row in rows.iter().map_err(|e| failed(e.into()))? {
            let (key, json) = row.map_err(|e| failed(e.into()))?;
            let json = Zeroizing::new(json.value().to_vec());
            all.push(RowInClear { table: table.clone(), key: key.value().to_owned(), json });
        }
    }
    Ok(all)
}

/// The names of all tables but the header.
fn tables(path: &Path, transaction: &ReadTransaction) -> Result<Vec<String>, StoreError> {
    let all = transaction.list_tables().map_err(|e| StoreError::redb(path, "read", e))?;
    Ok(all.map(|table| table.name().to_owned()).filter(|name| name != HEADER_TABLE).collect())
}
