//! Changes of the rows in etcd: each is one transaction that is brought to its end, whatever answer is lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::batch::Batch;
use super::super::rows::{CommitError, Revision};
use super::error::EtcdError;
use super::members::Failure;
use super::proto::{
    Compare, DeleteRangeRequest, EQUAL, MOD, PutRequest, Request, RequestOp, TargetUnion, TxnRequest, VALUE,
};
use super::turn::Turn;
use super::{Etcd, FORMAT, Head, MAGIC, State, changed_at, end_of, one};
use crate::id::{ChangeId, ClusterId};

impl Etcd {
    /// Makes the changes of `batch`, if the rows are as they were at `since` and, unless the caller has it, nobody has
    /// the turn.
    pub(in super::super) fn commit(
        &self,
        since: Revision,
        batch: &Batch,
        turn: Option<&Turn>,
    ) -> Result<Revision, CommitError> {
        // Who was passed over may be early enough yet, and nobody takes turns at what is not there.
        let is_free = turn.is_some() || since == Revision::NOTHING;
        let nobody_waits = (!is_free).then(|| self.nobody_in_line());
        self.commit_as(State::Truth, since, batch, nobody_waits)
    }

    /// The same to rows that nobody is to believe yet.
    pub(in super::super) fn commit_draft(
        &self,
        since: Revision,
        batch: &Batch,
    ) -> Result<Revision, CommitError> {
        self.commit_as(State::Draft, since, batch, None)
    }

    fn commit_as(
        &self,
        state: State,
        since: Revision,
        batch: &Batch,
        condition: Option<Compare>,
    ) -> Result<Revision, CommitError> {
        let change = ChangeId::from_entropy(rand::random());
        let record = self.record(change, since, batch);
        let version = record.as_ref().map(|(version, _)| *version);
        let cluster = self.inner.cluster.get().ok_or_else(|| self.foreign("it was not read before"))?;
        let (magic, key) = (MAGIC.to_owned(), self.inner.key.clone());
        let head =
            Head { magic, format: FORMAT, cluster: *cluster, key, state, change: Some(change), version };
        let head = serde_json::to_vec(&head).expect("text and numbers have a JSON form");
        let name = change.to_string().into_bytes();
        let mut operations =
            vec![put(self.key("head"), head), put(self.last(), name.clone()), put(self.last_of_all(), name)];
        if since == Revision::NOTHING {
            // Whoever stands there waits for nothing any more.
            operations.push(delete(self.line(), end_of(&self.line())));
        }
        operations.extend(record.map(|(_, put)| put));
        let rows = batch.rows().map(|(table, key, json)| {
            let index = self.inner.seal.index(table, key);
            let place = self.row(table, &index);
            match json {
                Some(json) => put(place, self.inner.seal.seal_json(table, key, json)),
                None => delete(place, Vec::new()),
            }
        });
        operations.extend(nested(rows.collect()));
        let compare = self.unchanged(since).chain(condition).collect();
        let request = TxnRequest { compare, success: operations };
        let this = self.clone();
        let settled = self.run(async move { this.settle(request, change, since).await })??;
        settled.ok_or(CommitError::Conflict)
    }

    /// Removes all rows if they are `cluster`'s, and under our key or, of a draft, under any.
    pub(in super::super) fn discard(&self, cluster: ClusterId) -> Result<(), CommitError> {
        let answer = self.range(one(self.key("head")))?;
        let Some(head) = answer.kvs.first() else { return Ok(()) };
        let Ok(head) = serde_json::from_slice::<Head>(&head.value) else { return Ok(()) };
        if head.cluster == cluster && (head.key == self.inner.key || head.state == State::Draft) {
            self.clear(changed_at(&answer))?;
        }
        Ok(())
    }

    /// Removes all rows, if their head was last changed at that revision of etcd.
    fn clear(&self, at: i64) -> Result<(), CommitError> {
        // Another cluster's prefix may begin as ours does.
        let below = ["last/", "rows/", "turns/"].map(|rest| self.key(rest)).map(|all| {
            let end = end_of(&all);
            delete(all, end)
        });
        let head = delete(self.key("head"), Vec::new());
        let success = below.into_iter().chain([head]).collect();
        let request = TxnRequest { compare: vec![last_changed(self.key("head"), at)], success };
        let members = Arc::clone(&self.inner.members);
        match self.run(async move { members.txn(&request).await })? {
            Ok(answer) if answer.succeeded => Ok(()),
            Ok(_) => Err(CommitError::Conflict),
            Err(Failure::Refused(error)) => Err(error.into()),
            Err(Failure::NotAsked(why)) => Err(EtcdError::Unreachable { why }.into()),
            Err(Failure::Unknown(why)) => Err(EtcdError::Unsettled { why }.into()),
        }
    }

    /// What brings a transaction to its end: `None` when the rows had been changed before.
    async fn settle(
        &self,
        mut request: TxnRequest,
        change: ChangeId,
        since: Revision,
    ) -> Result<Option<Revision>, EtcdError> {
        let members = &self.inner.members;
        let deadline = Instant::now() + PATIENCE;
        // Whether an attempt before may have been carried out, or may be yet.
        let mut sent = false;
        loop {
            let why = match members.txn(&request).await {
                Ok(done) if done.succeeded => {
                    let at = done.header.unwrap_or_default().revision;
                    return Ok(Some(Revision::new(at, Some(change))));
                }
                Ok(_) if !sent => return Ok(None),
                Err(Failure::NotAsked(why)) if !sent => return Err(EtcdError::Unreachable { why }),
                Err(Failure::Refused(error)) if !sent => return Err(error),
                Ok(_) => String::new(),
                Err(Failure::Refused(error)) => error.into_reason(),
                Err(Failure::NotAsked(why) | Failure::Unknown(why)) => why,
            };
            sent = true;
            // Only a change of the head settles it, and who has the turn may be waiting for us or be dead.
            request.compare = self.unchanged(since).collect();
            let why = match self.read_back(change, since).await {
                Ok(Landed::Yes(revision)) => return Ok(Some(revision)),
                Ok(Landed::Never) => return Ok(None),
                // The same transaction again: both cannot be carried out, as the first changes the head.
                Ok(Landed::NotYet) => why,
                Err(error) => error.into_reason(),
            };
            if Instant::now() > deadline {
                return Err(EtcdError::Unsettled { why });
            }
            sleep(PAUSE).await;
        }
    }

    async fn read_back(&self, change: ChangeId, since: Revision) -> Result<Landed, EtcdError> {
        // In this order: what has not landed while the head is another's never will, and then the
        // row of the writer, which nobody else writes, tells for good.
        let read = |key| async { self.inner.members.range(&one(key), Duration::ZERO).await };
        let head = read(self.key("head")).await?;
        let name = read(self.last_of_all()).await?.kvs.into_iter().next();
        let has_name = since
            .change()
            .is_none_or(|change| name.is_some_and(|name| name.value == change.as_str().as_bytes()));
        let is_unchanged = changed_at(&head) == since.at() && has_name;
        let last = read(self.last()).await?;
        match last.kvs.first() {
            Some(row) if row.value == change.as_str().as_bytes() => {
                Ok(Landed::Yes(Revision::new(row.mod_revision, Some(change))))
            }
            Some(_) | None if is_unchanged => Ok(Landed::NotYet),
            Some(_) | None => Ok(Landed::Never),
        }
    }

    fn unchanged(&self, since: Revision) -> impl Iterator<Item = Compare> {
        let name = since.change().map(|change| {
            let value = TargetUnion::Value(change.to_string().into_bytes());
            Compare { target: VALUE, target_union: Some(value), ..last_changed(self.last_of_all(), NEVER) }
        });
        [last_changed(self.key("head"), since.at())].into_iter().chain(name)
    }

    fn last_of_all(&self) -> Vec<u8> {
        self.key("last/change")
    }
}

/// What became of a transaction whose answer was lost.
enum Landed {
    Yes(Revision),
    NotYet,
    Never,
}

/// That the last change of a key was made at that revision of etcd.
pub(super) const fn last_changed(key: Vec<u8>, at: i64) -> Compare {
    let target_union = Some(TargetUnion::ModRevision(at));
    Compare { result: EQUAL, target: MOD, key, target_union, range_end: Vec::new() }
}

pub(super) fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Request::Put(PutRequest { key, value })) }
}

pub(super) fn delete(key: Vec<u8>, range_end: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Request::DeleteRange(DeleteRangeRequest { key, range_end })) }
}

/// As many operations as etcd takes in one list (`--max-txn-ops`, 128), the others within transactions
/// in it: `checkTxnRequest` of etcd's `api/v3rpc/key.go` allows a list within a list what the outer one
/// has left over.
fn nested(operations: Vec<RequestOp>) -> Vec<RequestOp> {
    if operations.len() <= MOST_OUTER {
        return operations;
    }
    let within = operations.chunks(MOST_INNER).map(|some| {
        let inner = TxnRequest { compare: Vec::new(), success: some.to_vec() };
        RequestOp { request: Some(Request::Txn(inner)) }
    });
    within.collect()
}

/// When a key that does not exist was changed last.
pub(super) const NEVER: i64 = 0;
const MOST_OUTER: usize = 100;
const MOST_INNER: usize = 60;
/// How long a transaction whose answer was lost is followed up: together with the reading before it, where no turn is
/// waited for, shorter than agents wait for a manager.
const PATIENCE: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(100);
