//! Whose turn it is, where managers come in each other's way: who has it reads what the others have changed, decides
//! anew and changes the rows, and the others wait. Without it, those who are up to date would win every time.
//!
//! Managers stand in line, each with a row, written anew every now and then to show that it lives; the first one has
//! the turn. The line says only who comes next: whether a change is made, the head alone decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::rows::CommitError;
use super::error::EtcdError;
use super::members::Members;
use super::proto::{Compare, GREATER, KeyValue, RangeRequest, TxnRequest};
use super::transaction::{NEVER, delete, last_changed, put};
use super::{Etcd, READING, end_of};

/// That the other managers wait with their changes, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    etcd: Etcd,
    /// Of our row.
    key: Vec<u8>,
    pulse: JoinHandle<()>,
    /// Since when changes are made in it.
    used_since: Option<Instant>,
}

impl Turn {
    /// A change is about to be made in it; what others have changed was read before, however long that took.
    pub fn use_now(&mut self) {
        self.used_since.get_or_insert_with(Instant::now);
    }

    /// Whether changes were made in it for as long as others are to be kept waiting.
    pub fn is_used_up(&self) -> bool {
        self.used_since.is_some_and(|since| since.elapsed() > SHARE)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pulse.abort();
        self.etcd.runtime().spawn(leave(self.etcd.clone(), std::mem::take(&mut self.key)));
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
        let turn = Turn { etcd: self.clone(), key: key.clone(), pulse, used_since: None };
        let this = self.clone();
        if !self.run(async move { this.stand_in_line(key, patience).await })?? {
            return Err(CommitError::Conflict);
        }
        Ok(turn)
    }

    /// Whether whoever has that key came to be the first.
    async fn stand_in_line(&self, key: Vec<u8>, patience: Duration) -> Result<bool, EtcdError> {
        let members = &self.inner.members;
        let line = RangeRequest { key: self.line(), range_end: end_of(&self.line()), limit: 0, revision: 0 };
        let step_in = TxnRequest {
            compare: vec![last_changed(key.clone(), NEVER)],
            success: vec![put(key.clone(), Vec::new())],
        };
        let deadline = Instant::now() + patience;
        loop {
            let left = READING.min(deadline.saturating_duration_since(Instant::now()));
            let rows = members.range(&line, left).await?.kvs;
            if let Some(ours) = rows.iter().find(|row| row.key == key) {
                if rows.iter().all(|row| row.create_revision >= ours.create_revision) {
                    return Ok(true);
                }
                let silent = self.inner.line.silent(&rows, Instant::now());
                let others = silent.into_iter().filter(|row| row.key != key);
                join_all(others.map(|row| self.pass_over(row))).await;
            } else {
                members.repeat(&step_in, left).await?;
                continue;
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Removes a row, if it was not written anew.
    async fn pass_over(&self, row: &KeyValue) {
        let remove = TxnRequest {
            compare: vec![last_changed(row.key.clone(), row.mod_revision)],
            success: vec![delete(row.key.clone(), Vec::new())],
        };
        let done = self.inner.members.repeat(&remove, Duration::ZERO).await;
        if done.is_ok_and(|done| done.succeeded) {
            tracing::warn!("a manager was passed over that kept the others from changing the state");
        }
    }

    /// That no manager has the turn, or waits for it.
    pub(super) fn nobody_in_line(&self) -> Compare {
        Compare { range_end: end_of(&self.line()), ..last_changed(self.line(), NEVER) }
    }

    /// What all keys of the line begin with.
    pub(super) fn line(&self) -> Vec<u8> {
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
        drop(members.repeat(&write, Duration::ZERO).await);
    }
}

/// Removes a row that nobody needs any more; until then it keeps others waiting, who pass over it in the end.
async fn leave(etcd: Etcd, key: Vec<u8>) {
    let remove = TxnRequest { compare: vec![exists(key.clone())], success: vec![delete(key, Vec::new())] };
    let end = Instant::now() + LONGEST;
    while etcd.inner.members.repeat(&remove, Duration::ZERO).await.is_err() && Instant::now() < end {
        sleep(PULSE / 5).await;
    }
}

fn exists(key: Vec<u8>) -> Compare {
    Compare { result: GREATER, ..last_changed(key, NEVER) }
}

/// What is known of those who stand in the line.
#[derive(Default)]
pub(super) struct Line {
    silences: Mutex<HashMap<Vec<u8>, Silence>>,
}

impl Line {
    /// The rows of those who have shown no sign of life for too long, now that `rows` are seen.
    fn silent<'r>(&self, rows: &'r [KeyValue], now: Instant) -> Vec<&'r KeyValue> {
        let mut before = self.silences.lock().expect(NO_PANIC);
        let seen = rows.iter().map(|row| {
            let silence = before.get(&row.key).copied().unwrap_or_default();
            (row, silence.until(row, now))
        });
        let seen: Vec<_> = seen.collect();
        *before = seen.iter().map(|(row, silence)| (row.key.clone(), *silence)).collect();
        seen.into_iter().filter(|(_, silence)| silence.lasts > LONGEST_SILENCE).map(|(row, _)| row).collect()
    }
}

/// For how long somebody has shown no sign of life, and could have.
#[derive(Debug, Clone, Copy, Default)]
struct Silence {
    /// When the row was written, and when that was seen last.
    seen: Option<(i64, Instant)>,
    lasts: Duration,
}

impl Silence {
    fn until(self, row: &KeyValue, now: Instant) -> Self {
        let lasts = match self.seen {
            // While etcd keeps us waiting, it may do so with others; and we may not have looked.
            Some((revision, then)) if revision == row.mod_revision => {
                self.lasts + now.duration_since(then).min(PULSE / 2)
            }
            Some(_) | None => Duration::ZERO,
        };
        Self { seen: Some((row.mod_revision, now)), lasts }
    }
}

const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const PULSE: Duration = Duration::from_millis(500);
/// After which somebody is taken to be dead; if that is wrong, he only loses his place.
const LONGEST_SILENCE: Duration = Duration::from_millis(1500);
/// For which one manager makes its changes while others wait.
const SHARE: Duration = Duration::from_millis(100);
/// Longer than a change takes with all that it waits for.
const LONGEST: Duration = Duration::from_secs(30);
const NO_PANIC: &str = "nothing panics while it counts the silent";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_as_long_as_the_row_stays_the_same_but_for_when_nobody_could_have_written_it() {
        let row = |mod_revision| KeyValue { mod_revision, ..KeyValue::default() };
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let line = Line::default();
        let lasts = |row: &KeyValue| line.silences.lock().unwrap()[&row.key].lasts;
        let silence = |revision, millis| {
            let rows = [row(revision)];
            let dead = line.silent(&rows, at(millis)).len();
            (lasts(&rows[0]).as_millis(), dead)
        };
        assert_eq!(silence(7, 100), (0, 0), "seen for the first time");
        assert_eq!(silence(7, 200), (100, 0));
        assert_eq!(silence(7, 300), (200, 0));
        assert_eq!(silence(9, 400), (0, 0), "it lives");
        assert_eq!(silence(9, 500), (100, 0));
        assert_eq!(silence(9, 60_000), (350, 0), "etcd was away");
        let after = (1..=5).map(|n| silence(9, 60_000 + 250 * n));
        assert_eq!(after.fold((0, 0), |_, last| last), (1600, 1));
        assert_eq!(line.silent(&[], at(70_000)).len(), 0);
        assert!(line.silences.lock().unwrap().is_empty(), "who has gone is forgotten");
    }
}
