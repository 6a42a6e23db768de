//! The queue of this manager's own changes: one at a time, in the order in which they were asked for. Who waits in it
//! does not keep those waiting who only want to know the state.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{FairMutex, FairMutexGuard};

use crate::control::store::Turn;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The turn among the managers, if we have it: whoever comes next in the queue need not wait for it.
    turn: FairMutex<Option<Turn>>,
    waiting: AtomicUsize,
}

/// That no other change of ours is under way.
pub(super) struct Place<'q> {
    queue: &'q Queue,
    /// The turn among the managers, if we have it.
    pub(super) turn: FairMutexGuard<'q, Option<Turn>>,
}

impl Queue {
    pub(super) fn wait(&self) -> Place<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let turn = self.turn.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Place { queue: self, turn }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.queue.waiting.load(Ordering::Relaxed) == 0 || self.turn.as_ref().is_some_and(Turn::is_used_up)
        {
            *self.turn = None;
        }
    }
}
