//! The records of the latest changes: whoever knows what was before takes those in, and need not read all rows again.
//!
//! Each names the change that it follows. They are believed as far as they lead in one chain from the change that is
//! known to that of the head; otherwise, as after a change that was too long to be recorded or was made by an overlayd
//! that kept no records, all rows are read.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::StoreError;
use super::super::batch::{Batch, LOG};
use super::super::rows::Revision;
use super::Etcd;
use super::error::EtcdError;
use super::proto::{KeyValue, RequestOp};
use super::transaction::put;
use crate::id::{ChangeId, Version};

/// A record with its place in the chain.
#[derive(Serialize, Deserialize)]
struct Entry<R> {
    after: ChangeId,
    change: ChangeId,
    record: R,
}

impl Etcd {
    /// Records the change of that name in place of the one that is too long ago: the version that it leads to.
    pub(super) fn record(
        &self,
        change: ChangeId,
        since: Revision,
        batch: &Batch,
    ) -> Option<(Version, RequestOp)> {
        let (after, recorded) = (since.change()?, batch.recorded()?);
        if recorded.json.len() > MOST_BYTES {
            return None;
        }
        let record = serde_json::from_slice::<&RawValue>(&recorded.json).ok()?;
        let entry = Entry { after, change, record };
        let version = recorded.version;
        let sealed = self.inner.seal.seal(LOG, &version.to_string(), |to| serde_json::to_writer(to, &entry));
        Some((version, put(self.slot(version.get() % KEPT), sealed.ok()?)))
    }

    /// The records of all changes since `known`, which led to that version, and the moment that they lead to.
    pub(in super::super) fn records<R: DeserializeOwned>(
        &self,
        known: Revision,
        version: Version,
    ) -> Result<Option<(Vec<R>, Revision)>, StoreError> {
        let head = self.read_head()?;
        if head.cluster.is_some() && head.revision == known {
            return Ok(Some((Vec::new(), known)));
        }
        let (Some(mut last), Some(latest)) = (known.change(), head.version) else { return Ok(None) };
        let (next, end) = (version.get().saturating_add(1), latest.get());
        if !(next..next.saturating_add(KEPT)).contains(&end) {
            return Ok(None);
        }
        let rows = match self.slots(next % KEPT, end % KEPT, head.at) {
            Err(EtcdError::Compacted) => return Ok(None),
            rows => rows?,
        };
        let mut records = Vec::new();
        for (version, row) in (next..=end).zip(rows) {
            let entry = self.open_entry(version, &row).filter(|entry| entry.after == last);
            let Some(Entry { change, record, .. }) = entry else { return Ok(None) };
            last = change;
            records.push(record);
        }
        Ok((head.revision.change() == Some(last)).then_some((records, head.revision)))
    }

    /// What lies in the ring from `first` to `last`, in this order.
    fn slots(&self, first: u64, last: u64, at: i64) -> Result<Vec<KeyValue>, EtcdError> {
        if first <= last {
            return self.pages(self.slot(first), self.slot(last + 1), at, PAGE);
        }
        let mut rows = self.pages(self.slot(first), self.slot(KEPT), at, PAGE)?;
        rows.extend(self.pages(self.slot(0), self.slot(last + 1), at, PAGE)?);
        Ok(rows)
    }

    fn open_entry<R: DeserializeOwned>(&self, version: u64, row: &KeyValue) -> Option<Entry<R>> {
        let (seal, key) = (self.seal(), version.to_string());
        let entry = seal.open(LOG, &seal.index(LOG, &key), &row.value).ok()?;
        serde_json::from_slice(entry.json()).ok()
    }

    /// The key of a place in the ring; they lie in the order of the numbers.
    fn slot(&self, number: u64) -> Vec<u8> {
        self.key(&format!("last/changes/{number:03}"))
    }
}

/// So many changes are recorded: more than are made while a manager looks away. They take each other's places: of keys
/// that are removed etcd remembers that they were there, which costs whoever passes over them.
const KEPT: u64 = 256;
/// Of a record, which etcd keeps beside the rows until it is compacted.
const MOST_BYTES: usize = 64 << 10;
/// Records in one answer, which has to arrive before the member counts as silent.
const PAGE: i64 = 32;
