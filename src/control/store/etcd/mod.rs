//! A cluster's rows in etcd, sealed as in a state file, shared by all managers of the cluster.
//!
//! ```text
//! PREFIX/head                  in clear: what this is, whose it is, the name of the data key
//! PREFIX/last/WRITER           the last transaction of each manager
//! PREFIX/last/change           the last one of all
//! PREFIX/last/changes/NUMBER   sealed: a ring of records, so that managers need not read all rows after each change
//! PREFIX/turns/NAME            managers that came in each other's way: the first may change something, the others wait
//! PREFIX/rows/TABLE/INDEX      sealed rows; INDEX is the row's key in `seal`, hexadecimal
//! ```
//! Every change is one transaction that writes the head and stands under the condition that the head's
//! last change is the one that it was decided on: was made then, and has that name. What became of a transaction whose answer was lost
//! is read from the row of its writer. Rows are read at one revision of etcd.
//! It was made, was not, or may be yet: then it is sent again until one of the first two holds, and
//! where that cannot be told in time, the caller hears that it is not known.
//!
//! Calls block until etcd has answered, on whatever thread; the connections live on a thread of
//! their own (`etcd`). How rows are sealed is the business of `seal`.

mod access;
mod error;
mod fault;
mod log;
mod members;
mod proto;
mod snapshot;
mod transaction;
mod turn;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::access::{EtcdAccess, EtcdAddress, SharedStore};
pub use self::error::EtcdError;
use self::members::Members;
use self::proto::{RangeRequest, RangeResponse};
pub(super) use self::snapshot::{Sealed, Snapshot};
use self::turn::Line;
pub use self::turn::Turn;
use self::watch::Watch;
use super::StoreError;
use super::rows::Revision;
use super::seal::Seal;
use crate::id::{ChangeId, ClusterId, Version};

/// The rows of one cluster; clones share the connections.
#[derive(Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Option<tokio::runtime::Runtime>,
    members: Arc<Members>,
    shared: SharedStore,
    seal: Seal,
    /// The name of the data key.
    key: String,
    /// The address, for messages.
    place: PathBuf,
    /// Under which this manager's transactions are known.
    writer: String,
    cluster: OnceLock<ClusterId>,
    watch: Arc<Watch>,
    line: Line,
}

impl Etcd {
    /// Opens the rows in `shared`. Nothing is asked of etcd yet.
    ///
    /// # Errors
    /// The TLS that is asked for cannot be, or the data key is none.
    pub(super) fn open(shared: SharedStore, writer: String) -> Result<Self, EtcdError> {
        shared.access.check()?;
        let key = shared.data_key()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(|error| EtcdError::Refused { why: format!("no thread for its connections: {error}") })?;
        // Connections belong to the runtime in which they were described.
        let members = {
            let _entered = runtime.enter();
            Arc::new(Members::new(&shared.access)?)
        };
        let address = &shared.access.address;
        let inner = Inner {
            members,
            seal: key.seal(),
            key: key.id().to_string(),
            place: PathBuf::from(address.to_string()),
            writer,
            cluster: OnceLock::new(),
            watch: Arc::default(),
            line: Line::default(),
            runtime: Some(runtime),
            shared,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// All that another manager needs to use the same rows.
    pub fn shared(&self) -> &SharedStore {
        &self.inner.shared
    }

    /// Where it is.
    pub fn address(&self) -> &EtcdAddress {
        &self.inner.shared.access.address
    }

    pub(super) fn place(&self) -> &Path {
        &self.inner.place
    }

    pub(super) fn seal(&self) -> &Seal {
        &self.inner.seal
    }

    /// Tells who is at home there: `None` for nobody.
    ///
    /// # Errors
    /// etcd cannot be asked, or others are there.
    pub(super) fn head(&self) -> Result<(Option<ClusterId>, Revision), EtcdError> {
        let seen = self.read_head()?;
        Ok((seen.cluster, seen.revision))
    }

    /// Runs `read` on the rows of one moment.
    pub(super) fn read<T>(
        &self,
        mut read: impl FnMut(Snapshot<'_>) -> Result<T, StoreError>,
    ) -> Result<(T, Revision), StoreError> {
        let mut attempts = 0;
        loop {
            let Seen { revision, at, .. } = self.read_head()?;
            match read(Snapshot::new(self, at)) {
                Err(StoreError::Etcd(EtcdError::Compacted)) if attempts < 3 => attempts += 1,
                Err(error) => return Err(error),
                Ok(done) => return Ok((done, revision)),
            }
        }
    }

    /// Says whose the rows will be that are made first.
    pub(super) fn found(&self, cluster: ClusterId) {
        // Known already, it is the same.
        let _ = self.inner.cluster.set(cluster);
    }

    /// Whether the rows of `shared` would be in the same place of the same etcd, as far as the address tells.
    pub(in crate::control) fn is_at(&self, shared: &SharedStore) -> bool {
        self.address().prefix() == shared.access.address.prefix()
    }

    /// Whether the last change by our writer is `made` behind that door too.
    pub(super) fn is_last_change_in(&self, other: &Self, made: Revision) -> Result<bool, EtcdError> {
        let answer = other.range(one(self.last()))?;
        let (last, made) = (answer.kvs.first().map(|row| row.value.as_slice()), made.change());
        Ok(last.is_some() && last == made.as_ref().map(|made| made.as_str().as_bytes()))
    }

    fn read_head(&self) -> Result<Seen, EtcdError> {
        let answer = self.range(one(self.key("head")))?;
        let changed_at = changed_at(&answer);
        let at = answer.header.unwrap_or_default().revision;
        let Some(row) = answer.kvs.into_iter().next() else {
            return Ok(Seen { cluster: None, revision: Revision::NOTHING, version: None, at });
        };
        let format: Format =
            serde_json::from_slice(&row.value).map_err(|_| self.foreign("another program wrote it"))?;
        if format.magic != MAGIC {
            return Err(self.foreign("another program wrote it"));
        }
        if format.format > FORMAT {
            let address = self.address().to_string();
            return Err(EtcdError::Newer { address, found: format.format, known: FORMAT });
        }
        let head: Head = serde_json::from_slice(&row.value)
            .map_err(|_| self.foreign("what it says of itself is damaged"))?;
        if head.key != self.inner.key {
            return Err(EtcdError::Taken {
                address: self.address().to_string(),
                prefix: self.address().prefix().to_owned(),
                cluster: head.cluster.to_string(),
            });
        }
        self.found(head.cluster);
        let revision = Revision::new(changed_at, head.change);
        Ok(Seen { cluster: Some(head.cluster), revision, version: head.version, at })
    }

    /// That there is nothing where a cluster's rows should be.
    pub(in crate::control) fn empty(&self) -> EtcdError {
        self.foreign("there is nothing")
    }

    fn foreign(&self, why: &str) -> EtcdError {
        EtcdError::Foreign { address: self.address().to_string(), why: why.to_owned() }
    }

    fn range(&self, request: RangeRequest) -> Result<RangeResponse, EtcdError> {
        let members = Arc::clone(&self.inner.members);
        self.run(async move { members.range(&request, READING).await })?
    }

    pub(super) fn wake(&self, listener: std::thread::Thread) {
        self.inner.watch.wake(listener);
        let kept = Arc::clone(&self.inner.watch).keep(Arc::clone(&self.inner.members), self.key("head"));
        self.runtime().spawn(kept);
    }

    pub(super) fn news(&self, known: Revision) -> bool {
        self.inner.watch.news(known)
    }

    pub(super) fn again(&self) {
        self.inner.watch.again();
    }

    /// Why changes of other managers are not heard of at present, if that is so.
    pub fn trouble(&self) -> Option<String> {
        self.inner.watch.trouble()
    }

    /// Waits for what runs on the thread of the connections.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, EtcdError> {
        let (done, answer) = mpsc::sync_channel(1);
        self.runtime().spawn(async move {
            // Nobody waits for it any more.
            let _ = done.send(work.await);
        });
        answer.recv().map_err(|_| EtcdError::Unsettled { why: "a task of the agent died".to_owned() })
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.inner.runtime.as_ref().expect("it is there until the end")
    }

    fn key(&self, rest: &str) -> Vec<u8> {
        format!("{}/{rest}", self.address().prefix()).into_bytes()
    }

    fn last(&self) -> Vec<u8> {
        self.key(&format!("last/{}", self.inner.writer))
    }

    fn row(&self, table: &str, index: &[u8]) -> Vec<u8> {
        self.key(&format!("rows/{table}/{}", data_encoding::HEXLOWER.encode(index)))
    }
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("address", self.address()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: it may be dropped by a task of another runtime.
            runtime.shutdown_background();
        }
    }
}

/// What the head told.
struct Seen {
    cluster: Option<ClusterId>,
    /// Of the last change.
    revision: Revision,
    /// That the last change led to, if that was recorded.
    version: Option<Version>,
    /// The revision of etcd at which all this is so.
    at: i64,
}

/// What is said in clear.
#[derive(Serialize, Deserialize)]
struct Head {
    magic: String,
    format: u32,
    cluster: ClusterId,
    key: String,
    state: State,
    /// The last change; overlayd named none before it kept records.
    #[serde(default)]
    change: Option<ChangeId>,
    /// That it led to, if that was recorded.
    #[serde(default)]
    version: Option<Version>,
}

/// What rows are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// They are the state of the cluster.
    Truth,
    /// They are being copied from the state file, which is the truth meanwhile.
    Draft,
}

/// What every head tells first.
#[derive(Deserialize)]
struct Format {
    magic: String,
    format: u32,
}

fn one(key: Vec<u8>) -> RangeRequest {
    RangeRequest { key, range_end: Vec::new(), limit: 0, revision: 0 }
}

/// The end of the range of all keys that begin with `start`, which ends with a slash.
fn end_of(start: &[u8]) -> Vec<u8> {
    let mut end = start.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// When the only row of the answer was changed last.
fn changed_at(answer: &RangeResponse) -> i64 {
    answer.kvs.first().map_or(transaction::NEVER, |row| row.mod_revision)
}

const MAGIC: &str = "overlayd state";
const FORMAT: u32 = 1;
/// How long reading goes on while the members cannot.
const READING: Duration = Duration::from_secs(5);
