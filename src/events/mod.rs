//! The audit log: what happened on this node and who asked for it, to be read live and afterwards.
//!
//! Anybody in the control plane says [`Events::record`] and is never kept waiting: events go into a ring in
//! memory, from which readers take them at their own pace, and learn how many they were too slow for. One
//! reader is `journal`, which keeps them in the state directory over restarts. What others can cause at
//! will is recorded up to a limit (`quota`) and counted beyond. No event has a secret in it.

mod event;
mod journal;
mod noted;
mod quota;
mod ring;

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::journal::Journal;
use self::quota::Quotas;
use self::ring::Ring;
use crate::io::clock::{boot_time, wall_clock};

pub use self::event::{Event, Reason};
pub use self::journal::FILES;
pub use self::noted::Noted;

/// The events of this node; clones share them.
#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    kept: Mutex<Kept>,
    /// What follows the newest event; closed when no more will come.
    progress: watch::Sender<Progress>,
    /// Why events are not written to the disk, if they are not.
    trouble: Mutex<Option<String>>,
    /// What earlier runs left, for readers of the past; none without a directory.
    journal: Mutex<Option<Journal>>,
    dir: Option<std::path::PathBuf>,
}

struct Kept {
    ring: Ring,
    quotas: Quotas,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    next: u64,
    closed: bool,
}

/// An event, numbered and dated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its number, one more than that of the event before it, over restarts too.
    #[serde(rename = "seq")]
    pub number: u64,
    /// When it was recorded, by the wall clock.
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.time, self.event)
    }
}

/// What a reader is told next, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Told {
    /// An event.
    Event(Box<Recorded>),
    /// The reader was too slow for as many.
    Lost {
        /// How many.
        lost: u64,
    },
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(recorded) => recorded.fmt(f),
            Self::Lost { lost } => write!(f, "lost {lost} events: they came faster than they were read"),
        }
    }
}

/// A moment by the wall clock, in milliseconds; as text in RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// Now.
    pub fn now() -> Self {
        Self(wall_clock().into())
    }

    /// The moment that long before this one.
    pub fn before(self, age: Duration) -> Self {
        Self(self.0.checked_sub(age).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Years beyond 9999 have no form in RFC 3339.
        write!(f, "{}", humantime::format_rfc3339_millis(self.0.clamp(UNIX_EPOCH, UNIX_EPOCH + LATEST)))
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339_weak(text).map(Self)
    }
}

impl TryFrom<String> for Timestamp {
    type Error = humantime::TimestampError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(moment: Timestamp) -> Self {
        moment.to_string()
    }
}

impl Events {
    /// The events of a node whose state is in `dir`, after those that were kept there.
    ///
    /// They are kept in memory alone where the directory cannot be read or written; [`Self::trouble`]
    /// tells.
    pub fn open(dir: &Path) -> Self {
        match Journal::open(dir) {
            Ok((journal, past)) => Self::over(Ring::going_on(journal.next(), past), Some(journal), dir),
            Err(error) => {
                let events = Self::over(Ring::default(), None, dir);
                events.note_trouble(Some(&error));
                events
            }
        }
    }

    fn over(ring: Ring, journal: Option<Journal>, dir: &Path) -> Self {
        let (progress, _) = watch::channel(Progress { next: ring.next(), closed: false });
        let dir = journal.is_some().then(|| dir.to_owned());
        let shared = Shared {
            kept: Mutex::new(Kept { ring, quotas: Quotas::default() }),
            progress,
            trouble: Mutex::default(),
            journal: Mutex::new(journal),
            dir,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Records an event, at once and without waiting for anybody.
    pub fn record(&self, event: Event) {
        let (now, time) = (boot_time(), Timestamp::now());
        let mut kept = self.kept();
        for due in kept.quotas.due(now) {
            kept.ring.push(time, due);
        }
        if kept.quotas.admit(&event, now) {
            kept.ring.push(time, event);
        }
        self.publish(kept);
    }

    /// Reads events from a moment on, or those that are still to come.
    pub fn reader(&self, since: Option<Timestamp>) -> Reader {
        let changes = self.shared.progress.subscribe();
        let kept = self.kept();
        let next = since.map_or(kept.ring.next(), |moment| kept.ring.first_since(moment));
        drop(kept);
        Reader { events: self.clone(), next, changes }
    }

    /// Events since a moment that are on the disk and not in memory any more; blocks on the disk.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn past(&self, since: Timestamp) -> io::Result<Vec<Recorded>> {
        let Some(dir) = &self.shared.dir else { return Ok(Vec::new()) };
        let oldest = self.kept().ring.oldest();
        let mut past = journal::read(dir)?;
        past.retain(|recorded| recorded.number < oldest && recorded.time >= since);
        Ok(past)
    }

    /// Writes events to the disk as they come, until [`Self::close`]. A disk that refuses is tried again.
    pub async fn keep(self) {
        let Some(mut journal) = self.shared.journal.lock().expect(NO_PANIC).take() else { return };
        let mut reader = self.reader(None);
        reader.next = journal.next();
        loop {
            let before = reader.next;
            let Some(first) = reader.next().await else { return };
            let mut batch = vec![first];
            while batch.len() < LARGEST_BATCH
                && let Some(told) = reader.take()
            {
                batch.push(told);
            }
            let written = tokio::task::spawn_blocking(move || {
                let written = journal.append(&batch);
                (journal, written)
            });
            let Ok((returned, written)) = written.await else { return };
            journal = returned;
            self.note_trouble(written.as_ref().err());
            if written.is_err() {
                reader.next = before;
                if self.shared.progress.borrow().closed {
                    return;
                }
                self.pause().await;
            }
        }
    }

    /// Tells now and again how many events were too many for their quota; for ever.
    pub async fn count_suppressed(self) {
        loop {
            tokio::time::sleep(quota::REPORT_INTERVAL).await;
            let (now, time) = (boot_time(), Timestamp::now());
            let mut kept = self.kept();
            for due in kept.quotas.due(now) {
                kept.ring.push(time, due);
            }
            self.publish(kept);
        }
    }

    /// No more events come: readers end when they have read what there is.
    pub fn close(&self) {
        self.shared.progress.send_modify(|progress| progress.closed = true);
    }

    /// Why events are not kept over a restart, if they are not.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().expect(NO_PANIC).clone()
    }

    fn note_trouble(&self, error: Option<&io::Error>) {
        let mut trouble = self.shared.trouble.lock().expect(NO_PANIC);
        match (error, trouble.is_some()) {
            (Some(error), false) => tracing::warn!(%error, "events are kept in memory alone"),
            (None, true) => tracing::info!("events are written to the state directory again"),
            (Some(_), true) | (None, false) => {}
        }
        *trouble =
            error.map(|error| format!("events are kept in memory alone and gone after a restart: {error}"));
    }

    /// A while, but no longer than events may come.
    async fn pause(&self) {
        let mut changes = self.shared.progress.subscribe();
        let closed = changes.wait_for(|progress| progress.closed);
        let _closed_or_not = tokio::time::timeout(RETRY_INTERVAL, closed).await;
    }

    fn publish(&self, kept: MutexGuard<'_, Kept>) {
        let next = kept.ring.next();
        drop(kept);
        self.shared.progress.send_if_modified(|progress| {
            // Another may have been faster.
            let is_news = progress.next < next;
            progress.next = progress.next.max(next);
            is_news
        });
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shared.kept.lock().expect(NO_PANIC)
    }
}

/// Events in memory alone.
impl Default for Events {
    fn default() -> Self {
        Self::over(Ring::default(), None, Path::new(""))
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("next", &self.shared.progress.borrow().next).finish_non_exhaustive()
    }
}

/// Takes events at its own pace.
#[derive(Debug)]
pub struct Reader {
    events: Events,
    next: u64,
    changes: watch::Receiver<Progress>,
}

impl Reader {
    /// The next event; waits for one. `None` when no more will come.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            let progress = *self.changes.borrow_and_update();
            if let Some(told) = self.take() {
                return Some(told);
            }
            if progress.closed {
                return None;
            }
            self.changes.changed().await.ok()?;
        }
    }

    /// The next event, if there is one already.
    pub fn take(&mut self) -> Option<Told> {
        let kept = self.events.kept();
        let oldest = kept.ring.oldest();
        if self.next < oldest {
            let lost = oldest - self.next;
            self.next = oldest;
            return Some(Told::Lost { lost });
        }
        let recorded = kept.ring.get(self.next)?;
        self.next += 1;
        Some(Told::Event(Box::new(recorded)))
    }
}

const LARGEST_BATCH: usize = 256;
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// 9999-12-31.
const LATEST: Duration = Duration::from_secs(253_402_214_400);
const NO_PANIC: &str = "nothing panics while it records an event";

#[cfg(test)]
mod tests;
