//! How the state changes: planned in memory, written under the condition that the memory was right, then
//! seen. And how the changes of other managers come into the memory.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::managers::Demoted;
use super::model::{COUNTERS, Change, Counters, Model, ONLY, Record};
use super::{ClusterState, Inner, NO_PANIC, StateError};
use crate::control::store::{Batch, ClusterRows, CommitError, Revision};
use crate::id::Version;
use crate::io::clock::{boot_time, wall_clock};
use crate::membership::Removals;

/// What the model is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// The moment that it is of.
    pub(super) revision: Revision,
    /// What is written may be something else: others have changed it, or a write has failed late.
    pub(super) is_stale: bool,
}

impl Memory {
    /// Of no moment: changes are being made in it, or one could not be made.
    pub(super) const UNKNOWN: Self = Self { revision: Revision::NOTHING, is_stale: true };

    /// What was read at that moment.
    pub(super) const fn new(revision: Revision) -> Self {
        Self { revision, is_stale: false }
    }
}

/// What an operation that changes nothing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// That the memory on which it was decided is right.
    Wanted,
    /// None: it is asked for again, or after a look.
    Spared,
}

impl ClusterState {
    /// Plans against the state, writes the changes, applies them. No changes, no new version. What was
    /// decided on a state that others have changed meanwhile is decided again.
    pub(super) fn change<T>(
        &self,
        plan: impl Fn(&Model) -> Result<(T, Vec<Change>), StateError>,
    ) -> Result<T, StateError> {
        self.change_with(Proof::Wanted, plan)
    }

    /// The same for what is asked only in case it was not so already: where nothing is to be done by what is known
    /// here, nobody else is asked.
    pub(super) fn change_if_needed<T>(
        &self,
        plan: impl Fn(&Model) -> Result<(T, Vec<Change>), StateError>,
    ) -> Result<T, StateError> {
        self.change_with(Proof::Spared, plan)
    }

    fn change_with<T>(
        &self,
        proof: Proof,
        plan: impl Fn(&Model) -> Result<(T, Vec<Change>), StateError>,
    ) -> Result<T, StateError> {
        loop {
            let decided = self.decide(proof, |model| {
                // Nodes know later ones than what would be made of this state, and would take no notice.
                if self.lost(model).is_some() {
                    return Ok((None, Vec::new()));
                }
                plan(model).map(|(answer, changes)| (Some(answer), changes))
            });
            match decided? {
                Some(answer) => return Ok(answer),
                None => self.regain()?,
            }
        }
    }

    /// Makes a state that was put back to an earlier one later than all that nodes have heard, unless another manager
    /// has: whoever knows of it first does it for all.
    fn regain(&self) -> Result<(), StateError> {
        if self.lost(&self.model()).is_none() {
            return Ok(());
        }
        let now = u64::try_from(wall_clock().unix_timestamp()).unwrap_or(0);
        self.decide(Proof::Wanted, |model| Ok(((), self.regained(model, now)?)))
    }

    fn decide<T>(
        &self,
        proof: Proof,
        plan: impl Fn(&Model) -> Result<(T, Vec<Change>), StateError>,
    ) -> Result<T, StateError> {
        let deadline = boot_time() + PATIENCE;
        let mut place = (proof == Proof::Wanted).then(|| self.inner.queue.wait());
        let mut memory = self.inner.changing.lock().expect(NO_PANIC);
        // Whether the memory is right as of a moment since this was asked for.
        let mut is_fresh = false;
        loop {
            // They may be brought elsewhere while nobody has the memory.
            let rows = self.rows();
            let mut unread = None;
            if memory.is_stale {
                // Those before us were kept waiting by etcd for so long that hardly anybody waits for our answer.
                if rows.shared().is_some() && boot_time() > deadline + PATIENCE {
                    return Err(StateError::Contended);
                }
                match self.reload(&rows, &mut memory) {
                    Err(StateError::Store(error)) if proof == Proof::Spared && error.is_passing() => {
                        unread = Some(error);
                    }
                    reloaded => is_fresh = reloaded.map(|()| true)?,
                }
            }
            let planned = plan(&self.model());
            let (answer, changes) = match planned {
                Ok((answer, changes)) if !changes.is_empty() => {
                    if let Some(error) = unread {
                        return Err(error.into());
                    }
                    self.require_office(&self.model())?;
                    (answer, changes)
                }
                decided if is_fresh || proof == Proof::Spared => return decided.map(|(answer, _)| answer),
                decided => {
                    if rows.is_current(memory.revision)? {
                        return decided.map(|(answer, _)| answer);
                    }
                    memory.is_stale = true;
                    continue;
                }
            };
            let Some(place) = &mut place else {
                drop(memory);
                place = Some(self.inner.queue.wait());
                memory = self.inner.changing.lock().expect(NO_PANIC);
                continue;
            };
            let (counters, batch) = self.batch(&rows, &changes)?;
            if let Some(turn) = place.turn.as_mut() {
                turn.use_now();
            }
            match rows.commit(memory.revision, &batch, place.turn.as_ref()) {
                Ok(revision) => {
                    *memory = Memory::UNKNOWN;
                    let made = self.take_in(vec![Record { counters, changes }]);
                    made.map_err(|why| StateError::Inconsistent { why })?;
                    *memory = Memory::new(revision);
                    return Ok(answer);
                }
                Err(CommitError::Conflict) => {
                    drop(memory);
                    // Where we had it, another has passed us over, or was at it since before.
                    *place.turn = None;
                    *place.turn = rows.take_turn(deadline.since(boot_time()))?;
                    memory = self.inner.changing.lock().expect(NO_PANIC);
                    memory.is_stale = true;
                }
                Err(CommitError::Store(refused)) => {
                    // A disk that fails late may have taken the change all the same.
                    memory.is_stale = true;
                    if matches!(rows, ClusterRows::File(_)) {
                        // What fails now is tried again by the next change.
                        let _ = self.reload(&rows, &mut memory);
                    }
                    return Err(refused.into());
                }
            }
        }
    }

    fn batch(&self, rows: &ClusterRows, changes: &[Change]) -> Result<(Counters, Batch), StateError> {
        let mut counters = self.model().counters;
        counters.version = Version::new(counters.version.get() + 1);
        let mut batch = Batch::default();
        for change in changes {
            if let Change::SetNextVni(next) = change {
                counters.next_vni = *next;
            }
            if let Change::RaiseVersion(version) = change {
                counters.version = counters.version.max(*version);
            }
            change.write(&mut batch)?;
        }
        batch.put(&COUNTERS, ONLY, &counters)?;
        if rows.shared().is_some() {
            batch.record(counters.version, &Record::of(counters, changes))?;
        }
        Ok((counters, batch))
    }

    /// Takes what is written for the truth, if it is not what we have.
    pub(super) fn reload(&self, rows: &ClusterRows, memory: &mut Memory) -> Result<(), StateError> {
        if let Some((records, revision)) = rows.records(memory.revision, self.version())? {
            *memory = Memory::UNKNOWN;
            match self.take_in(records) {
                Ok(()) => {
                    *memory = Memory::new(revision);
                    return Ok(());
                }
                Err(why) => tracing::error!(
                    %why,
                    "the record of a change contradicts the state, which is read anew: it is a bug of overlayd, please report it"
                ),
            }
        }
        let (mut truth, revision) = Self::load_present(rows)?;
        let version = truth.counters.version;
        let mut model = self.inner.model.write().expect(NO_PANIC);
        let known = model.counters.version;
        if version < known && rows.shared().is_some() {
            tracing::error!(
                %version, %known,
                "the cluster's state in etcd was put back to an earlier one: it goes on from there, beyond all that \
                 nodes have heard since; who was removed since stays so"
            );
            let demoted = model.demoted.iter().map(|(id, row)| (*id, *row));
            self.lose(known, model.removed.clone(), demoted);
        }
        // Of what followed a state that is lost nodes are told as if they knew nothing.
        if self.lost(&model).is_none() {
            truth.inherit(&model);
        }
        *model = truth;
        drop(model);
        self.inner.versions.send_replace(version);
        *memory = Memory::new(revision);
        Ok(())
    }

    fn take_in(&self, records: Vec<Record<Change>>) -> Result<(), String> {
        let Some(version) = records.last().map(|last| last.counters.version) else { return Ok(()) };
        let mut model = self.inner.model.write().expect(NO_PANIC);
        records.into_iter().try_for_each(|record| model.follow(record.counters, record.changes))?;
        drop(model);
        self.inner.versions.send_replace(version);
        Ok(())
    }

    /// The model in the rows, which are those of a cluster.
    pub(super) fn load_present(rows: &ClusterRows) -> Result<(Model, Revision), StateError> {
        let (model, revision) = Self::load(rows)?;
        Ok((model.ok_or_else(|| Self::missing(rows))?, revision))
    }

    /// That there is no cluster in the rows.
    pub(super) fn missing(rows: &ClusterRows) -> StateError {
        match rows {
            ClusterRows::File(_) => StateError::NoCluster,
            ClusterRows::Etcd(etcd) => StateError::Store(etcd.empty().into()),
        }
    }

    pub(super) fn load(rows: &ClusterRows) -> Result<(Option<Model>, Revision), StateError> {
        let (model, revision) = rows.read(Model::load)?;
        Ok((model.map_err(|why| StateError::Inconsistent { why })?, revision))
    }

    /// Brings the changes of other managers into the memory from now on, where there can be others.
    pub(super) fn follow(&self) {
        let rows = self.rows();
        if rows.shared().is_none() {
            return;
        }
        let follower = self.inner.follower.get_or_init(|| {
            let inner = Arc::downgrade(&self.inner);
            let following = thread::Builder::new().name("state".to_owned()).spawn(move || {
                while let Some(inner) = inner.upgrade() {
                    // Waiting for an answer eats what wakes this thread, so it sleeps only after there was no news.
                    if !(Self { inner }).hear() {
                        thread::park();
                    }
                }
            });
            following.map(|following| following.thread().clone()).ok()
        });
        match follower {
            Some(follower) => rows.wake(follower.clone()),
            None => tracing::error!("no thread: changes of other managers are seen with the next of our own"),
        }
    }

    /// Brings the memory up to what all managers together have acknowledged by now.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn catch_up(&self) -> Result<(), StateError> {
        let mut memory = self.inner.changing.lock().expect(NO_PANIC);
        let rows = self.rows();
        if rows.shared().is_none() && !memory.is_stale {
            return Ok(());
        }
        self.reload(&rows, &mut memory)?;
        drop(memory);
        // Who is no manager any more leaves that to the others.
        if self.is_in_office() { self.regain() } else { Ok(()) }
    }

    /// Takes note of the version of the state that was acknowledged when this manager ran last, and of the list of removed
    /// nodes that this node knew then: one that was put back to an earlier one since goes on beyond that, without them.
    ///
    /// # Errors
    /// As for a change.
    pub fn recall(&self, version: Version, removals: Option<Removals>) -> Result<(), StateError> {
        if version > self.version() {
            let life = self.model().founding.certificate_life_seconds;
            let expiry = u64::try_from(wall_clock().unix_timestamp()).unwrap_or(0).saturating_add(life);
            let (nodes, demoted) = removals.map(|list| (list.nodes, list.demoted)).unwrap_or_default();
            let removed = nodes.into_iter().map(|id| (id, expiry));
            self.lose(version, removed, demoted.into_iter().map(|(id, at)| (id, Demoted { at })));
        }
        self.regain()
    }

    /// Looks whether the state can be read, and has changes heard that the watch of it has not told of.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look(&self) -> Result<(), StateError> {
        let rows = self.rows();
        // While a change of our own is under way, what it comes to is not known.
        let known = self.inner.changing.try_lock().ok().map(|memory| memory.revision);
        let is_current = rows.is_current(known.unwrap_or(Revision::NOTHING))?;
        if known.is_some() && !is_current {
            rows.again();
        }
        Ok(())
    }

    /// Whether the state can be reached, as far as is known: without it nothing can be changed.
    pub fn reachable(&self) -> watch::Receiver<bool> {
        self.inner.reachable.subscribe()
    }

    /// Takes in the changes of other managers; whether there may have been any.
    fn hear(&self) -> bool {
        let rows = self.rows();
        let is_reachable = rows.trouble().is_none();
        self.inner.reachable.send_if_modified(|known| std::mem::replace(known, is_reachable) != is_reachable);
        let known = self.inner.changing.lock().expect(NO_PANIC).revision;
        if !rows.news(known) {
            return false;
        }
        if let Err(error) = self.catch_up() {
            tracing::warn!(%error, "the changes of other managers cannot be read");
            thread::sleep(PAUSE);
            rows.again();
        }
        true
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(Some(follower)) = self.follower.get() {
            follower.unpark();
        }
    }
}

/// How long after it was asked for a change still waits for its turn; what it takes then comes on top, as agents wait
/// longer than this for an answer.
const PATIENCE: Duration = Duration::from_secs(6);
/// Before changes that could not be read are read again.
const PAUSE: Duration = Duration::from_secs(1);
