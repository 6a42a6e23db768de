//! Where nodes say that they are, laid over the view: a manager may hear of a move later than the
//! peers do, or be the one that has moved.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::{Node, View};
use crate::control::store::local::Moved;
use crate::id::NodeId;
use crate::negotiate::Whereabouts;

/// What nodes have said since a view last changed it.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    said: BTreeMap<NodeId, Moved>,
    /// The view as it came.
    view: Arc<View>,
}

impl Heard {
    /// A new view, with what nodes have said since.
    pub(crate) fn follow(&mut self, view: Arc<View>) -> Arc<View> {
        self.view = view;
        self.said.retain(|node, moved| whereabouts(&self.view, *node) == Some(moved.viewed));
        self.corrected()
    }

    /// What nodes said to the last agent of this node, as far as the view is none the wiser; the view with it.
    pub(crate) fn recall(&mut self, said: BTreeMap<NodeId, Moved>) -> Arc<View> {
        self.said = said;
        self.follow(Arc::clone(&self.view))
    }

    /// What nodes have said that the view has not.
    pub(crate) const fn said(&self) -> &BTreeMap<NodeId, Moved> {
        &self.said
    }

    /// Takes what a node says of itself; the view with it, where that makes a difference.
    pub(crate) fn hear(&mut self, node: NodeId, at: Whereabouts) -> Option<Arc<View>> {
        let viewed = whereabouts(&self.view, node)?;
        let before = self.said.get(&node).map_or(viewed, |moved| moved.at);
        if at == before {
            return None;
        }
        if at == viewed {
            self.said.remove(&node);
        } else {
            self.said.insert(node, Moved { at, viewed });
        }
        Some(self.corrected())
    }

    fn corrected(&self) -> Arc<View> {
        if self.said.is_empty() {
            return Arc::clone(&self.view);
        }
        let mut view = View::clone(&self.view);
        for node in view.networks.values_mut().flat_map(|network| &mut network.nodes) {
            if let Some(Moved { at, .. }) = self.said.get(&node.id) {
                (node.advertise, node.data) = (at.advertise, at.data);
            }
        }
        Arc::new(view)
    }
}

fn whereabouts(view: &View, id: NodeId) -> Option<Whereabouts> {
    let node = view.networks.values().flat_map(|network| &network.nodes).find(|node| node.id == id);
    node.map(|Node { advertise, data, .. }| Whereabouts { advertise: *advertise, data: *data })
}

#[cfg(test)]
mod tests {
    use super::super::testbed::{PaperCluster, network_id, peer};
    use super::*;

    #[test]
    fn node_is_where_it_says_until_a_view_has_it_elsewhere() {
        let mut cluster = PaperCluster::new();
        let mut heard = Heard::default();
        let view = |cluster: &mut PaperCluster, epoch| {
            let network = cluster.network(1, epoch, &[2, 3]);
            cluster.view(vec![network], &[])
        };
        let first = view(&mut cluster, 1);
        assert!(Arc::ptr_eq(&heard.follow(Arc::clone(&first)), &first));
        let moved = heard.hear(peer(2), at(77)).expect("it makes a difference");
        assert_eq!(whereabouts(&moved, peer(2)), Some(at(77)));
        assert_eq!(whereabouts(&moved, peer(3)), Some(at(3)));
        assert!(heard.hear(peer(2), at(77)).is_none(), "said again");
        // A view that has not heard of it yet changes nothing.
        let unaware = heard.follow(view(&mut cluster, 2));
        assert_eq!(whereabouts(&unaware, peer(2)), Some(at(77)));
        // One that has it elsewhere is newer.
        let mut newer = View::clone(&view(&mut cluster, 3));
        for node in &mut newer.networks.get_mut(&network_id(1)).expect("the network").nodes {
            node.data = at(88).data;
        }
        let newer = heard.follow(Arc::new(newer));
        assert_eq!(whereabouts(&newer, peer(2)).expect("a node").data, at(88).data);
        assert!(heard.said.is_empty());
    }

    #[test]
    fn node_that_returns_to_where_the_view_has_it_and_one_that_is_none_of_ours_leave_nothing() {
        let mut cluster = PaperCluster::new();
        let mut heard = Heard::default();
        let network = cluster.network(1, 1, &[2]);
        heard.follow(cluster.view(vec![network], &[]));
        assert!(heard.hear(peer(2), at(77)).is_some());
        let back = heard.hear(peer(2), at(2)).expect("it makes a difference");
        assert_eq!(whereabouts(&back, peer(2)), Some(at(2)));
        assert!(heard.hear(peer(9), at(9)).is_none());
        assert!(heard.said.is_empty());
    }

    #[test]
    fn what_the_last_agent_was_told_counts_unless_the_view_is_newer() {
        let mut cluster = PaperCluster::new();
        let network = cluster.network(1, 1, &[2, 3]);
        let view = cluster.view(vec![network], &[]);
        let mut heard = Heard::default();
        heard.follow(view);
        let said = [
            (peer(2), Moved { at: at(77), viewed: at(2) }),
            (peer(3), Moved { at: at(88), viewed: at(33) }),
            (peer(9), Moved { at: at(99), viewed: at(9) }),
        ];
        let recalled = heard.recall(BTreeMap::from(said));
        assert_eq!(whereabouts(&recalled, peer(2)), Some(at(77)));
        assert_eq!(whereabouts(&recalled, peer(3)), Some(at(3)), "the view came after it");
        assert_eq!(heard.said().keys().copied().collect::<Vec<_>>(), [peer(2)]);
    }

    fn at(host: u8) -> Whereabouts {
        let at = |port| std::net::SocketAddr::from(([192, 0, 2, host], port));
        Whereabouts { advertise: at(2377), data: at(4500) }
    }
}
