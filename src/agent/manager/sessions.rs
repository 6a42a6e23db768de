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
    by_node: HashMap<NodeId, Holder>,
}

/// The newest session of a node.
#[derive(Debug)]
struct Holder {
    number: u64,
    /// Tells it that there is a newer one, by being dropped.
    _replace: oneshot::Sender<()>,
    turn: Arc<Mutex<()>>,
}

/// A session that was begun.
#[derive(Debug)]
struct Begun {
    number: u64,
    /// Held while it is noted what the node says of itself; one for all of its sessions that there are at a time.
    turn: Arc<Mutex<()>>,
}

impl Sessions {
    /// Begins a session of a node, and ends the one that it had; what resolves when its place is taken.
    fn begin(&self, node: NodeId) -> (Begun, oneshot::Receiver<()>) {
        let mut held = self.lock();
        held.begun += 1;
        let number = held.begun;
        let (replace, replaced) = oneshot::channel();
        let turn = held.by_node.get(&node).map(|before| Arc::clone(&before.turn)).unwrap_or_default();
        held.by_node.insert(node, Holder { number, _replace: replace, turn: Arc::clone(&turn) });
        (Begun { number, turn }, replaced)
    }

    /// Notes what a node said as it began a session, after what it had said before; and not after what it has said
    /// since, of which it may have had no answer.
    fn note<E>(&self, node: NodeId, begun: &Begun, note: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let _turn = begun.turn.lock().expect(NO_PANIC);
        if self.is_newest(node, begun) { note() } else { Ok(()) }
    }

    /// Whether no newer one has taken a session's place.
    fn is_newest(&self, node: NodeId, begun: &Begun) -> bool {
        self.lock().by_node.get(&node).is_some_and(|holder| holder.number == begun.number)
    }

    /// Ends a session, unless a newer one has taken its place.
    fn end(&self, node: NodeId, begun: &Begun) {
        let mut held = self.lock();
        if held.by_node.get(&node).is_some_and(|holder| holder.number == begun.number) {
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
        let (begun, replaced) = self.sessions.begin(node);
        let place = Arc::new(Place { manager: Arc::clone(self), node, begun });
        let noting = Arc::clone(&place);
        let noted = self.on_state(move |state| {
            noting.manager.sessions.note(node, &noting.begun, || {
                let SessionRequest { node: this, standing } = request;
                state.update_node(node, this.advertise, this.data, this.underlay_mtu)?;
                standing.map_or(Ok(()), |standing| state.note_standing(node, standing))
            })
        });
        self.with_store(async {
            // A node that comes from another manager sees nothing undone that it has seen there.
            self.freshen().await?;
            noted.await
        })
        .await?;
        // Before the view is made: what changes from here on is told.
        let tell = self.sessions.tell.subscribe();
        self.events.record(Event::SessionBegun { node, from: caller.address });
        let session = Session { place, replaced, tell, told: Told::default() };
        // Who ended all sessions just now did not know of this one.
        self.require_service()?;
        Ok(Box::pin(unfold((session, true), |(mut session, is_first)| async move {
            let update = if is_first { session.first() } else { session.next().await };
            update.map(|update| (update, (session, false)))
        })))
    }
}

/// The place of a session among all, from before it is noted what the node said until the session ends by being
/// dropped.
struct Place {
    manager: Arc<Manager>,
    node: NodeId,
    begun: Begun,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.manager.sessions.end(self.node, &self.begun);
    }
}

/// One session of a node; it ends by being dropped.
struct Session {
    place: Arc<Place>,
    /// Resolves when its place is taken.
    replaced: oneshot::Receiver<()>,
    tell: watch::Receiver<Version>,
    told: Told,
}

impl Session {
    fn first(&mut self) -> Option<Documents> {
        // All that is acknowledged by now.
        let Place { manager, node, .. } = &*self.place;
        manager.state.update_for(*node, &mut self.told, manager.state.version())
    }

    /// Made when the node has taken what it was told before, of all that changed since.
    async fn next(&mut self) -> Option<Documents> {
        loop {
            tokio::select! {
                tell = self.tell.changed() => tell.ok()?,
                _ = &mut self.replaced => return None,
            }
            let version = *self.tell.borrow_and_update();
            let Place { manager, node, .. } = &*self.place;
            if let Some(update) = manager.state.update_for(*node, &mut self.told, version) {
                return Some(update);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Place { manager, node, .. } = &*self.place;
        manager.events.record(Event::SessionEnded { node: *node });
        manager.state.saw_node(*node, boot_time());
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
        let (first, mut first_replaced) = sessions.begin(node);
        let (_beside, mut beside_replaced) = sessions.begin(other);
        assert!(first_replaced.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let (second, _replaced) = sessions.begin(node);
        assert!(first_replaced.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(beside_replaced.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        sessions.end(node, &first);
        assert!(sessions.nodes().contains(&node));
        sessions.end(node, &second);
        assert_eq!(sessions.nodes(), [other].into());
    }

    #[test]
    fn what_a_node_said_is_noted_in_the_order_in_which_it_said_so() {
        let sessions = Sessions::default();
        let node = NodeId::from_entropy([1; 16]);
        let noted = Mutex::new(Vec::new());
        let say = |begun: &Begun, what: &'static str| {
            let note = || {
                noted.lock().expect(NO_PANIC).push(what);
                Ok::<_, ManagerError>(())
            };
            sessions.note(node, begun, note).expect("it is noted");
        };
        // The older one is noted while the newer one begins, and is slow.
        let ((older, _replaced), (begins, has_begun)) = (sessions.begin(node), std::sync::mpsc::channel());
        std::thread::scope(|scope| {
            let noting = || {
                begins.send(()).expect("it is waited for");
                std::thread::sleep(std::time::Duration::from_millis(50));
                noted.lock().expect(NO_PANIC).push("older");
                Ok::<_, ManagerError>(())
            };
            let (sessions, older) = (&sessions, &older);
            scope.spawn(move || sessions.note(node, older, noting).expect("it is noted"));
            has_begun.recv().expect("it begins");
            say(&sessions.begin(node).0, "newer");
        });
        // The older one comes late.
        let (older, _replaced) = sessions.begin(node);
        say(&sessions.begin(node).0, "newest");
        say(&older, "late");
        assert_eq!(*noted.lock().expect(NO_PANIC), ["older", "newer", "newest"]);
    }
}
