//! The sessions of the nodes: one for each, which is told its view, and then what changes, at its own pace.
//!
//! A newer one takes the place of an older, which is that of a connection that has died unseen, or of
//! another machine that was the same node.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::stream::unfold;
use tokio::sync::{oneshot, watch};

use super::Manager;
use crate::control::rpc::messages::{Documents, SessionRequest};
use crate::control::rpc::{ManagerError, Updates};
use crate::control::state::Told;
use crate::control::tls::peer::PeerIdentity;
use crate::events::Event;
use crate::id::{NodeId, Version};
use crate::io::clock::boot_time;

/// The sessions that nodes have with this manager.
#[derive(Debug, Default)]
pub(in crate::agent) struct Sessions {
    held: Mutex<Held>,
    /// The version that all are to be told.
    tell: watch::Sender<Version>,
}

#[derive(Debug, Default)]
struct Held {
    begun: u64,
    /// The number of a node's session, and what tells it that there is a newer one.
    by_node: HashMap<NodeId, (u64, oneshot::Sender<()>)>,
}

/// A session that was begun.
#[derive(Debug)]
struct Begun {
    number: u64,
    /// Resolves when the session's place is taken.
    replaced: oneshot::Receiver<()>,
}

impl Sessions {
    /// Begins a session of a node, and ends the one that it had.
    fn begin(&self, node: NodeId) -> Begun {
        let mut held = self.lock();
        held.begun += 1;
        let number = held.begun;
        let (replace, replaced) = oneshot::channel();
        held.by_node.insert(node, (number, replace));
        Begun { number, replaced }
    }

    /// Ends a session, unless a newer one has taken its place.
    fn end(&self, node: NodeId, begun: &Begun) {
        let mut held = self.lock();
        if held.by_node.get(&node).is_some_and(|(number, _)| *number == begun.number) {
            held.by_node.remove(&node);
        }
    }

    /// The nodes that have one.
    pub(in crate::agent) fn nodes(&self) -> HashSet<NodeId> {
        self.lock().by_node.keys().copied().collect()
    }

    /// How many nodes have one.
    pub(super) fn count(&self) -> usize {
        self.lock().by_node.len()
    }

    /// Has all of them told what changed up to this version.
    pub(super) fn tell(&self, version: Version) {
        self.tell.send_replace(version);
    }

    /// Ends them all.
    pub(super) fn end_all(&self) {
        self.lock().by_node.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect(NO_PANIC)
    }
}

impl Manager {
    pub(super) async fn begin_session(
        self: &Arc<Self>,
        caller: PeerIdentity,
        request: SessionRequest,
    ) -> Result<Updates, ManagerError> {
        let node = caller.node;
        let noted = self.on_state(move |state| {
            let SessionRequest { node: this, standing } = request;
            state.update_node(node, this.advertise, this.data, this.underlay_mtu)?;
            standing.map_or(Ok(()), |standing| state.note_standing(node, standing))
        });
        self.with_store(async {
            // A node that comes from another manager sees nothing undone that it has seen there.
            self.freshen().await?;
            noted.await
        })
        .await?;
        let begun = self.sessions.begin(node);
        // Before the view is made: what changes from here on is told.
        let tell = self.sessions.tell.subscribe();
        self.events.record(Event::SessionBegun { node, from: caller.address });
        let manager = Arc::clone(self);
        let session = Session { manager, node, begun, tell, told: Told::default() };
        // Who ended all sessions just now did not know of this one.
        self.require_service()?;
        Ok(Box::pin(unfold((session, true), |(mut session, is_first)| async move {
            let update = if is_first { session.first() } else { session.next().await };
            update.map(|update| (update, (session, false)))
        })))
    }
}

/// One session of a node; it ends by being dropped.
struct Session {
    manager: Arc<Manager>,
    node: NodeId,
    begun: Begun,
    tell: watch::Receiver<Version>,
    told: Told,
}

impl Session {
    fn first(&mut self) -> Option<Documents> {
        // All that is acknowledged by now.
        let version = self.manager.state.version();
        self.manager.state.update_for(self.node, &mut self.told, version)
    }

    /// Made when the node has taken what it was told before, of all that changed since.
    async fn next(&mut self) -> Option<Documents> {
        loop {
            tokio::select! {
                tell = self.tell.changed() => tell.ok()?,
                _ = &mut self.begun.replaced => return None,
            }
            let version = *self.tell.borrow_and_update();
            if let Some(update) = self.manager.state.update_for(self.node, &mut self.told, version) {
                return Some(update);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.manager.events.record(Event::SessionEnded { node: self.node });
        self.manager.sessions.end(self.node, &self.begun);
        self.manager.state.saw_node(self.node, boot_time());
    }
}

const NO_PANIC: &str = "nothing panics while sessions are counted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_session_of_a_node_ends_the_older_and_is_not_ended_by_its_end() {
        let sessions = Sessions::default();
        let [node, other] = [1, 2].map(|n| NodeId::from_entropy([n; 16]));
        let mut first = sessions.begin(node);
        let mut beside = sessions.begin(other);
        assert!(first.replaced.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let second = sessions.begin(node);
        assert!(first.replaced.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(beside.replaced.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        sessions.end(node, &first);
        assert!(sessions.nodes().contains(&node));
        sessions.end(node, &second);
        assert_eq!(sessions.nodes(), [other].into());
    }
}
