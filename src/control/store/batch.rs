//! The rows that a change writes and removes, in clear, on their way into one transaction.

use std::collections::BTreeMap;

use serde::Serialize;
use zeroize::Zeroizing;

use super::{StoreError, Table};
use crate::id::Version;

/// Rows to be written and removed together; of two words on the same row the later one counts.
#[derive(Default)]
pub struct Batch {
    rows: BTreeMap<(String, String), Option<Zeroizing<Vec<u8>>>>,
    record: Option<Record>,
}

/// What other managers are told of a change.
pub(super) struct Record {
    /// That it leads to.
    pub(super) version: Version,
    pub(super) json: Zeroizing<Vec<u8>>,
}

impl Batch {
    /// Sets the row of `key`.
    ///
    /// # Errors
    /// When `value` has no JSON form.
    pub fn put<V: Serialize>(&mut self, table: &Table<V>, key: &str, value: &V) -> Result<(), StoreError> {
        self.put_json(table.name, key, json_of(table.name, key, value)?);
        Ok(())
    }

    /// Says what managers who know the version before need to know of the change to this one.
    ///
    /// # Errors
    /// When `record` has no JSON form.
    pub fn record<R: Serialize>(&mut self, version: Version, record: &R) -> Result<(), StoreError> {
        let json = json_of(LOG, &version.to_string(), record)?;
        self.record = Some(Record { version, json });
        Ok(())
    }

    /// Removes the row of `key`, if there is one.
    pub fn remove<V>(&mut self, table: &Table<V>, key: &str) {
        self.rows.insert((table.name.to_owned(), key.to_owned()), None);
    }

    /// Sets a row to JSON that there is already.
    pub(super) fn put_json(&mut self, table: &str, key: &str, json: Zeroizing<Vec<u8>>) {
        self.rows.insert((table.to_owned(), key.to_owned()), Some(json));
    }

    pub(super) const fn recorded(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Table, key and JSON of each row; without JSON it is removed.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&str, &str, Option<&[u8]>)> {
        self.rows.iter().map(|((table, key), json)| {
            (table.as_str(), key.as_str(), json.as_ref().map(|json| json.as_slice()))
        })
    }
}

fn json_of<V: Serialize>(
    table: &'static str,
    key: &str,
    value: &V,
) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    // What a vector leaves behind when it moves is not wiped: most rows fit at once.
    let mut json = Zeroizing::new(Vec::with_capacity(8192));
    let written = serde_json::to_writer(&mut *json, value);
    written.map_err(|source| StoreError::Unwritable { table, key: key.to_owned(), source })?;
    Ok(json)
}

/// What is written may be secret.
impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

/// What the records are called where rows are by their table.
pub(super) const LOG: &str = "log";
