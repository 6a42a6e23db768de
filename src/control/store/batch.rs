//! The rows that a change writes and removes, in clear, on their way into one transaction.

use std::collections::BTreeMap;

use serde::Serialize;
use zeroize::Zeroizing;

use super::{StoreError, Table};

/// Rows to be written and removed together; of two words on the same row the later one counts.
#[derive(Default)]
pub struct Batch {
    rows: BTreeMap<(String, String), Option<Zeroizing<Vec<u8>>>>,
}

impl Batch {
    /// Sets the row of `key`.
    ///
    /// # Errors
    /// When `value` has no JSON form.
    pub fn put<V: Serialize>(&mut self, table: &Table<V>, key: &str, value: &V) -> Result<(), StoreError> {
        // What a vector leaves behind when it moves is not wiped: most rows fit at once.
        let mut json = Zeroizing::new(Vec::with_capacity(8192));
        serde_json::to_writer(&mut *json, value).map_err(|source| StoreError::Unwritable {
            table: table.name,
            key: key.to_owned(),
            source,
        })?;
        self.put_json(table.name, key, json);
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

    /// Table, key and JSON of each row; without JSON it is removed.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&str, &str, Option<&[u8]>)> {
        self.rows.iter().map(|((table, key), json)| {
            (table.as_str(), key.as_str(), json.as_ref().map(|json| json.as_slice()))
        })
    }
}

/// What is written may be secret.
impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}
