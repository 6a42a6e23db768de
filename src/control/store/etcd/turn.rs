//! Whose turn it is, where managers come in each other's way: who has it reads what the others have changed, decides
//! anew and changes the rows, and the others wait. Without it, those who are up to date would win every time.
//!
//! Managers stand in line, each with a row, written anew every now and then to show that it lives; the first one has
//! the turn. The line says only who comes next: whether a change is made, the head alone decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::rows::{CommitError, Revision};
use super::error::EtcdError;
use super::members::{Failure, Members};
use super::proto::{Compare, GREATER, KeyValue, RangeRequest, TxnRequest};
use super::transaction::{delete, last_changed, put};
use super::{Etcd, READING, end_of};

/// That the other managers wait with their changes, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    etcd: Etcd,
    /// Of our row.
    key: Vec<u8>,
    pulse: JoinHandle<()>,
    since: Instant,
}

impl Turn {
    /// Whether it has lasted for as long as others are to be kept waiting.
    pub fn is_long(&self) -> bool {
        self.since.elapsed() > SHARE
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pulse.abort();
        let members = Arc::clone(&self.etcd.inner.members);
        let leave = TxnRequest {
            compare: vec![exists(self.key.clone())],
            success: vec![delete(self.key.clone(), Vec::new())],
        };
        // Where that fails, others pass over it.
        self.etcd.runtime().spawn(async move { drop(members.txn(&leave).await) });
    }
}

impl Etcd {
    /// Waits for the turn, for as long as `patience` says.
    ///
    /// # Errors
    /// It is a conflict when others had it all the time.
    pub(in super::super) fn take_turn(&self, patience: Duration) -> Result<Turn, CommitError> {
        let key = self.key(&format!("turns/{:016x}", rand::random::<u64>()));
        let pulse = self.runtime().spawn(show_life(Arc::clone(&self.inner.members), key.clone()));
        let mut turn = Turn { etcd: self.clone(), key: key.clone(), pulse, since: Instant::now() };
        let this = self.clone();
        if !self.run(async move { this.stand_in_line(key, patience).await })?? {
            return Err(CommitError::Conflict);
        }
        turn.since = Instant::now();
        Ok(turn)
    }

    /// Whether whoever has that key came to be the first.
    async fn stand_in_line(&self, key: Vec<u8>, patience: Duration) -> Result<bool, EtcdError> {
        let members = &self.inner.members;
        let line = RangeRequest { key: self.line(), range_end: end_of(&self.line()), limit: 0, revision: 0 };
        let step_in = TxnRequest {
            compare: vec![last_changed(key.clone(), Revision::NOTHING)],
            success: vec![put(key.clone(), Vec::new())],
        };
        let deadline = Instant::now() + patience;
        let mut silences = HashMap::new();
        loop {
            let mut lost = None;
            let reading = READING.min(deadline.saturating_duration_since(Instant::now()));
            let rows = members.range(&line, reading).await?.kvs;
            if let Some(ours) = rows.iter().find(|row| row.key == key) {
                let mut is_first = true;
                for row in rows.iter().filter(|row| row.create_revision < ours.create_revision) {
                    is_first = false;
                    let silence = silences.entry(row.key.clone()).or_insert_with(Silence::default);
                    if silence.of(row, Instant::now()) > LONGEST_SILENCE {
                        tracing::warn!(
                            "a manager is passed over that keeps the others from changing the state"
                        );
                        drop(members.txn(&passing_over(row)).await);
                    }
                }
                if is_first {
                    return Ok(true);
                }
            } else {
                match members.txn(&step_in).await {
                    // The answer may have been lost, or somebody has passed us over: it is seen below.
                    Ok(_) => {}
                    Err(Failure::Unknown(why)) => lost = Some(why),
                    Err(Failure::NotAsked(why)) => return Err(EtcdError::Unreachable { why }),
                    Err(Failure::Refused(error)) => return Err(error),
                }
            }
            if Instant::now() > deadline {
                return lost.map_or(Ok(false), |why| Err(EtcdError::Unreachable { why }));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// That no manager has the turn, or waits for it.
    pub(super) fn nobody_in_line(&self) -> Compare {
        Compare { range_end: end_of(&self.line()), ..last_changed(self.line(), Revision::NOTHING) }
    }

    /// What all keys of the line begin with.
    fn line(&self) -> Vec<u8> {
        self.key("turns/")
    }
}

/// Writes a row anew again and again, if it is there, for as long as anybody may need it.
async fn show_life(members: Arc<Members>, key: Vec<u8>) {
    let write = TxnRequest { compare: vec![exists(key.clone())], success: vec![put(key, Vec::new())] };
    let end = Instant::now() + LONGEST;
    while Instant::now() < end {
        sleep(PULSE).await;
        // The next one follows.
        drop(members.txn(&write).await);
    }
}

fn exists(key: Vec<u8>) -> Compare {
    Compare { result: GREATER, ..last_changed(key, Revision::NOTHING) }
}

/// Removes a row, if it was not written anew.
fn passing_over(row: &KeyValue) -> TxnRequest {
    TxnRequest {
        compare: vec![last_changed(row.key.clone(), Revision::new(row.mod_revision))],
        success: vec![delete(row.key.clone(), Vec::new())],
    }
}

/// For how long somebody in the line has shown no sign of life, and could have.
#[derive(Debug, Default)]
struct Silence {
    /// When the row was written, and when that was seen last.
    seen: Option<(i64, Instant)>,
    lasts: Duration,
}

impl Silence {
    /// What it comes to with what is seen now.
    fn of(&mut self, row: &KeyValue, now: Instant) -> Duration {
        let before = self.seen.replace((row.mod_revision, now));
        self.lasts = match before {
            // While etcd keeps us waiting, it may do so with others.
            Some((revision, then)) if revision == row.mod_revision => {
                self.lasts + now.duration_since(then).min(PULSE / 2)
            }
            Some(_) | None => Duration::ZERO,
        };
        self.lasts
    }
}

const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const PULSE: Duration = Duration::from_millis(500);
/// After which somebody is taken to be dead.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);
/// For which one manager makes its changes while others wait.
const SHARE: Duration = Duration::from_millis(250);
/// Longer than any change takes with all that it waits for.
const LONGEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_as_long_as_the_row_stays_the_same_but_for_when_nobody_could_have_written_it() {
        let row = |mod_revision| KeyValue { mod_revision, ..KeyValue::default() };
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut silence = Silence::default();
        assert_eq!(silence.of(&row(7), at(100)), Duration::ZERO, "seen for the first time");
        assert_eq!(silence.of(&row(7), at(200)), Duration::from_millis(100));
        assert_eq!(silence.of(&row(7), at(300)), Duration::from_millis(200));
        assert_eq!(silence.of(&row(9), at(400)), Duration::ZERO, "it lives");
        assert_eq!(silence.of(&row(9), at(500)), Duration::from_millis(100));
        assert_eq!(silence.of(&row(9), at(60_000)), Duration::from_millis(350), "etcd was away");
    }
}
