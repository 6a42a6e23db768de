//! Moving the state of a living cluster from the state file of its only manager to etcd, which several
//! can share.
//!
//! The state file says where the truth is. It is copied while nothing can be changed, as a draft; one
//! transaction of the state file makes the copy the truth; the next change in etcd makes it no draft any
//! more. Whatever dies in between leaves the file's word, and at most a draft that nobody believes.

use std::time::Duration;

use super::changes::Memory;
use super::{ClusterState, NO_PANIC, StateError};
use crate::control::store::{Batch, ClusterRows, EtcdError, Kept, SharedStore, Store, StoreError};

impl ClusterState {
    /// Makes etcd the place of the state, or, where it is that already, the access to it another.
    ///
    /// # Errors
    /// etcd cannot be reached, others are there, or the disk refuses; then all is as it was.
    pub fn relocate(&self, store: &Store, to: SharedStore) -> Result<Relocated, StateError> {
        let mut memory = self.inner.changing.lock().expect(NO_PANIC);
        match self.rows() {
            ClusterRows::File(_) => self.move_out(store, &to, &mut memory),
            ClusterRows::Etcd(etcd) => {
                if !etcd.is_at(&to) {
                    return Err(
                        StoreError::Etcd(EtcdError::InUse { address: etcd.address().to_string() }).into()
                    );
                }
                let shared = etcd.shared().with_access(to.access);
                // Through the new door: it must lead to the same rows.
                let rows = ClusterRows::over(&shared)?;
                let _ = Self::load_present(&rows)?;
                self.refuse_copy(&rows, &mut memory)?;
                self.switch(store, &shared)?;
                memory.is_stale = true;
                Ok(Relocated::AccessChanged)
            }
        }
    }

    fn move_out(
        &self,
        store: &Store,
        to: &SharedStore,
        memory: &mut Memory,
    ) -> Result<Relocated, StateError> {
        if memory.is_stale {
            self.reload(&self.rows(), memory)?;
        }
        let copy = ClusterRows::over(to)?;
        let copied = self.rows().copy_to(&copy, self.id()).map_err(StateError::from);
        let rows = copied.and_then(|rows| self.switch(store, to).map(|()| rows)).inspect_err(|_| {
            // Only if the file certainly does not say that the copy is the truth.
            if !matches!(store.shared_store(), Ok(None)) {
                return;
            }
            if let Err(error) = copy.discard(self.id()) {
                tracing::warn!(%error, "a copy of the state may be left in etcd; the next attempt replaces it");
            }
        })?;
        memory.is_stale = true;
        // The first change shows that it is no draft. Where etcd is gone in this moment, the next one does.
        let rows_now = self.rows();
        let settled = self.reload(&rows_now, memory).and_then(|()| {
            memory.revision = rows_now.commit(memory.revision, &Batch::default(), None)?;
            Ok(())
        });
        if let Err(error) = settled {
            memory.is_stale = true;
            tracing::warn!(%error, "the state is in etcd from now on, which is gone again");
        }
        Ok(Relocated::Moved { rows })
    }

    /// Refuses rows that are a copy of ours while ours are there, with which other managers would go on: what is
    /// written to ours now has to be seen in them. Ours that cannot be reached may be what the copy takes the place
    /// of, or know us no more by the access that is exchanged.
    fn refuse_copy(&self, others: &ClusterRows, memory: &mut Memory) -> Result<(), StateError> {
        let ours = self.rows();
        memory.is_stale = true;
        if self.reload(&ours, memory).is_err() {
            memory.is_stale = true;
            return Ok(());
        }
        let turn = ours.take_turn(PATIENCE)?;
        // Who was in line before us may have changed something.
        memory.is_stale = true;
        self.reload(&ours, memory)?;
        memory.is_stale = true;
        let made = ours.commit(memory.revision, &Batch::default(), turn.as_ref())?;
        *memory = Memory::new(made);
        if ours.is_last_change_in(others, made)? {
            return Ok(());
        }
        let address = others.shared().map(|shared| shared.access.address.to_string()).unwrap_or_default();
        Err(StoreError::Etcd(EtcdError::Copy { address }).into())
    }

    /// Writes down where the truth is, and goes there: once it is written, nothing is left that could fail.
    fn switch(&self, store: &Store, to: &SharedStore) -> Result<(), StateError> {
        let kept = Kept::new(to.clone());
        let rows = kept.rows()?;
        if let Err(refused) = store.keep(&kept) {
            // A disk that fails late may have it all the same.
            if store.shared_store()?.as_ref() != Some(to) {
                return Err(refused.into());
            }
        }
        *self.inner.rows.write().expect(NO_PANIC) = rows;
        self.follow();
        Ok(())
    }
}

/// What became of a state that was to be in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relocated {
    /// It is.
    Moved {
        /// So many rows were copied.
        rows: usize,
    },
    /// It was, and is reached as was said from now on.
    AccessChanged,
}

/// How long a change of the access waits for the other managers.
const PATIENCE: Duration = Duration::from_secs(6);
