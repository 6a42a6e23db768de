//! What this node hears of its cluster and belongs in the audit log: who is a manager, who was removed, which
//! roots are trusted. Each node tells it for itself, so that it is known where no manager's log is at hand.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::dataplane::Removed;
use super::standing::Told;
use crate::cluster::{Node, View};
use crate::control::rpc::messages::RootStanding;
use crate::events::{Event, Events};
use crate::id::{NodeId, Version};

/// Records who becomes a manager, who is one no more, and who is removed.
pub(super) async fn tell_cluster(
    mut views: watch::Receiver<Arc<View>>,
    mut removed: watch::Receiver<Removed>,
    events: Events,
) {
    // What was so before this node was told of the cluster is no news.
    let is_known = |view: &Arc<View>| view.version > Version::default();
    let Ok(first) = views.wait_for(is_known).await.map(|view| Arc::clone(&view)) else {
        return std::future::pending().await;
    };
    let mut known: BTreeSet<NodeId> = &first.removed | &*removed.borrow_and_update().nodes;
    let mut managers = first.managers.clone();
    loop {
        let changed = tokio::select! {
            changed = views.changed() => changed,
            changed = removed.changed() => changed,
        };
        if changed.is_err() {
            // The tasks that tell are missed by whoever watches them.
            return std::future::pending().await;
        }
        let now = views.borrow_and_update().managers.clone();
        office_news(&managers, &now).into_iter().for_each(|event| events.record(event));
        managers = now;
        let now = Arc::clone(&removed.borrow_and_update().nodes);
        for node in now.difference(&known) {
            events.record(Event::NodeRemoved { node: *node });
        }
        // What is forgotten meanwhile comes no more.
        known.extend(now.iter());
    }
}

/// Records which roots this node trusts, and that of its certificate, whenever either changes.
pub(super) async fn tell_roots(mut told: watch::Receiver<Told>, events: Events) {
    let mut before = told.borrow_and_update().roots.clone();
    while told.changed().await.is_ok() {
        let now = told.borrow_and_update().roots.clone();
        if now != before {
            let RootStanding { trusted, issuer } = &now;
            let trusted = trusted.iter().map(ToString::to_string).collect();
            events.record(Event::RootsChanged { trusted, issuer: issuer.to_string() });
        }
        before = now;
    }
    std::future::pending().await
}

/// Who has become a manager, and who is none any more.
fn office_news(before: &[Node], now: &[Node]) -> Vec<Event> {
    let is_in = |node: &Node, nodes: &[Node]| nodes.iter().any(|other| other.id == node.id);
    let added = now.iter().filter(|node| !is_in(node, before));
    let added = added.map(|node| Event::ManagerAdded { node: node.id, name: node.name.clone() });
    let gone = before.iter().filter(|node| !is_in(node, now));
    let gone = gone.map(|node| Event::ManagerGone { node: node.id, name: node.name.clone() });
    added.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::super::manager::tests::node;
    use super::*;
    use crate::cluster::Role;
    use crate::events::Told as Heard;

    #[tokio::test]
    async fn what_changes_of_the_cluster_is_told_and_what_was_so_before_is_not() {
        let manager = |n: u8| node(NodeId::from_entropy([n; 16]), Role::Manager, n);
        let (one, two) = (manager(1), manager(2));
        let view = |version, managers: &[&Node]| {
            let managers = managers.iter().copied().cloned().collect();
            Arc::new(View { version: Version::new(version), managers, ..View::default() })
        };
        let removed = |numbers: &[u8]| {
            let nodes = numbers.iter().map(|n| NodeId::from_entropy([*n; 16])).collect();
            Removed { nodes: Arc::new(nodes), ..Removed::default() }
        };
        let (views, heard) = watch::channel(Arc::new(View::default()));
        let (removals, refused) = watch::channel(removed(&[7]));
        let events = Events::default();
        let mut told = events.reader(None);
        tokio::spawn(tell_cluster(heard, refused, events));
        let mut next = async || match told.next().await {
            Some(Heard::Event(event)) => event.event,
            other => panic!("{other:?}"),
        };
        let first = View {
            removed: BTreeSet::from([NodeId::from_entropy([8; 16])]),
            ..View::clone(&view(1, &[&one]))
        };
        views.send_replace(Arc::new(first));
        // On this one thread the other task has taken it when it has had its turn.
        tokio::task::yield_now().await;
        views.send_replace(view(2, &[&one, &two]));
        assert_eq!(next().await, Event::ManagerAdded { node: two.id, name: two.name.clone() });
        removals.send_replace(removed(&[7, 8, 9]));
        assert_eq!(next().await, Event::NodeRemoved { node: NodeId::from_entropy([9; 16]) });
        views.send_replace(view(3, &[&two]));
        assert_eq!(next().await, Event::ManagerGone { node: one.id, name: one.name.clone() });
    }
}
