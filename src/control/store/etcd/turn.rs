//! Whose turn it is, where managers come in each other's way: who has it reads what the others have changed, decides
//! anew and changes the rows, and the others wait. Without it, those who are up to date would win every time.
//!
//! The row `turn` is there while somebody has it; the change that it was taken for removes it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::rows::{CommitError, Revision};
use super::error::EtcdError;
use super::members::Failure;
use super::proto::TxnRequest;
use super::transaction::{delete, last_changed, put};
use super::{Etcd, READING, one};

/// That no other manager changes the rows. It is given back with a change, or by being dropped.
#[derive(Debug)]
pub struct Turn {
    etcd: Etcd,
    /// At which it was taken.
    revision: Revision,
    has_ended: bool,
}

impl Turn {
    pub(super) const fn revision(&self) -> Revision {
        self.revision
    }

    /// A change has ended it.
    pub(super) fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let (members, request) = (Arc::clone(&self.etcd.inner.members), self.etcd.ending(self.revision));
        // Where that fails, others pass over it.
        self.etcd.runtime().spawn(async move { drop(members.txn(&request).await) });
    }
}

impl Etcd {
    /// Waits for the turn. Who has it for longer than `longest` is taken to be dead.
    ///
    /// # Errors
    /// It is a conflict when others have it again and again.
    pub(in super::super) fn take_turn(&self, longest: Duration) -> Result<Turn, CommitError> {
        let this = self.clone();
        let taken = self.run(async move { this.wait_for_turn(longest).await })??;
        let revision = taken.ok_or(CommitError::Conflict)?;
        Ok(Turn { etcd: self.clone(), revision, has_ended: false })
    }

    async fn wait_for_turn(&self, longest: Duration) -> Result<Option<Revision>, EtcdError> {
        let members = &self.inner.members;
        let key = self.key("turn");
        let name = rand::random::<[u8; 16]>().to_vec();
        let is_free = vec![last_changed(key.clone(), Revision::NOTHING)];
        let take = TxnRequest { compare: is_free, success: vec![put(key.clone(), name.clone())] };
        let deadline = Instant::now() + longest * 3;
        let mut holder = (Revision::NOTHING, Instant::now());
        while Instant::now() < deadline {
            match members.txn(&take).await {
                Ok(done) if done.succeeded => {
                    return Ok(Some(Revision::new(done.header.unwrap_or_default().revision)));
                }
                // Whether it was taken is seen below.
                Ok(_) | Err(Failure::Unknown(_)) => {}
                Err(Failure::NotAsked(why)) => return Err(EtcdError::Unreachable { why }),
                Err(Failure::Refused(error)) => return Err(error),
            }
            let row = members.range(&one(key.clone()), READING).await?.kvs.into_iter().next();
            let Some(row) = row else { continue };
            let revision = Revision::new(row.mod_revision);
            if row.value == name {
                return Ok(Some(revision));
            }
            if holder.0 != revision {
                holder = (revision, Instant::now());
            } else if holder.1.elapsed() > longest {
                tracing::warn!("a manager is passed over that keeps the others from changing the state");
                drop(members.txn(&self.ending(revision)).await);
                continue;
            }
            // None is always a little too late.
            sleep(LOOK_INTERVAL.mul_f64(rand::random_range(0.5..1.5))).await;
        }
        Ok(None)
    }

    /// Ends the turn that was taken at `revision`, if it has not ended.
    fn ending(&self, revision: Revision) -> TxnRequest {
        let key = self.key("turn");
        TxnRequest {
            compare: vec![last_changed(key.clone(), revision)],
            success: vec![delete(key, Vec::new())],
        }
    }
}

const LOOK_INTERVAL: Duration = Duration::from_millis(20);
