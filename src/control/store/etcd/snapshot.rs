//! The rows of one moment in etcd, page by page.

use std::cell::OnceCell;
use std::collections::HashMap;

use super::error::EtcdError;
use super::proto::{KeyValue, RangeRequest};
use super::{Etcd, end_of, one};

/// The rows of one moment.
#[derive(Debug)]
pub(in crate::control::store) struct Snapshot<'e> {
    etcd: &'e Etcd,
    at: i64,
    /// All of them by table, once a table was asked for: whoever reads one reads the others too, and
    /// every question is a way to the majority of etcd's members and back.
    rows: OnceCell<HashMap<String, Vec<Sealed>>>,
}

impl<'e> Snapshot<'e> {
    /// The rows at revision `at` of etcd.
    pub(super) const fn new(etcd: &'e Etcd, at: i64) -> Self {
        Self { etcd, at, rows: OnceCell::new() }
    }

    /// The sealed row of that place.
    pub(in crate::control::store) fn get(
        &self,
        table: &str,
        index: &[u8],
    ) -> Result<Option<Vec<u8>>, EtcdError> {
        if let Some(rows) = self.rows.get() {
            let row = rows.get(table).and_then(|rows| rows.iter().find(|(at, _)| at == index));
            return Ok(row.map(|(_, row)| row.clone()));
        }
        let request = RangeRequest { revision: self.at, ..one(self.etcd.row(table, index)) };
        Ok(self.etcd.range(request)?.kvs.into_iter().next().map(|row| row.value))
    }

    /// All sealed rows of a table, each with its place.
    pub(in crate::control::store) fn all(&self, table: &str) -> Result<Vec<Sealed>, EtcdError> {
        if self.rows.get().is_none() {
            let mut rows: HashMap<_, Vec<_>> = HashMap::new();
            for (table, row) in self.everything()? {
                rows.entry(table).or_default().push(row);
            }
            self.rows.get_or_init(|| rows);
        }
        Ok(self.rows.get().and_then(|rows| rows.get(table)).cloned().unwrap_or_default())
    }

    /// All sealed rows, each with its table and place.
    pub(in crate::control::store) fn everything(&self) -> Result<Vec<(String, Sealed)>, EtcdError> {
        let start = self.etcd.key("rows/");
        let end = end_of(&start);
        let rows = self.etcd.pages(start, end, self.at, PAGE)?.into_iter();
        let opened = rows.map(|row| {
            let (table, index) = self.place_of(&row)?;
            Ok((table, (index, row.value)))
        });
        opened.collect()
    }

    fn place_of(&self, row: &KeyValue) -> Result<(String, Vec<u8>), EtcdError> {
        let below = self.etcd.key("rows/");
        let place = row.key.strip_prefix(below.as_slice()).and_then(|rest| {
            let (table, index) = std::str::from_utf8(rest).ok()?.rsplit_once('/')?;
            Some((table.to_owned(), data_encoding::HEXLOWER.decode(index.as_bytes()).ok()?))
        });
        place.ok_or_else(|| self.etcd.foreign("a key below it is not one of ours"))
    }
}

impl Etcd {
    /// What lies from `start` to before `end` at revision `at`, so many in one answer.
    pub(super) fn pages(
        &self,
        start: Vec<u8>,
        end: Vec<u8>,
        at: i64,
        limit: i64,
    ) -> Result<Vec<KeyValue>, EtcdError> {
        let mut request = RangeRequest { key: start, range_end: end, limit, revision: at };
        let mut all = Vec::new();
        loop {
            let page = self.range(request.clone())?;
            let last = page.kvs.last().map(|row| row.key.clone());
            all.extend(page.kvs);
            match last.filter(|_| page.more) {
                Some(mut last) => {
                    last.push(0);
                    request.key = last;
                }
                None => return Ok(all),
            }
        }
    }
}

/// A row's place in its table, and the row.
pub(in crate::control::store) type Sealed = (Vec<u8>, Vec<u8>);

/// Rows in one answer.
const PAGE: i64 = 1000;
