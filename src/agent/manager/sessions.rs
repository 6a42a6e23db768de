//! The sessions of the nodes: one for each. A newer one takes the place of an older, which is that of a
//! connection that has died unseen, or of another machine that was the same node.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::oneshot;

use super::NO_PANIC;
use crate::id::NodeId;

/// The sessions that nodes have with this manager.
#[derive(Debug, Default)]
pub(in crate::agent) struct Sessions {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    begun: u64,
    /// The number of a node's session, and what tells its task that there is a newer one.
    by_node: HashMap<NodeId, (u64, oneshot::Sender<()>)>,
}

/// A session that was begun.
#[derive(Debug)]
pub(super) struct Begun {
    number: u64,
    /// Resolves when the session's place is taken.
    pub(super) replaced: oneshot::Receiver<()>,
}

impl Sessions {
    /// Begins a session of a node, and ends the one that it had.
    pub(super) fn begin(&self, node: NodeId) -> Begun {
        let mut held = self.lock();
        held.begun += 1;
        let number = held.begun;
        let (replace, replaced) = oneshot::channel();
        held.by_node.insert(node, (number, replace));
        Begun { number, replaced }
    }

    /// Ends a session, unless a newer one has taken its place.
    pub(super) fn end(&self, node: NodeId, begun: &Begun) {
        let mut held = self.lock();
        if held.by_node.get(&node).is_some_and(|(number, _)| *number == begun.number) {
            held.by_node.remove(&node);
        }
    }

    /// The nodes that have one.
    pub(in crate::agent) fn nodes(&self) -> HashSet<NodeId> {
        self.lock().by_node.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect(NO_PANIC)
    }
}

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
