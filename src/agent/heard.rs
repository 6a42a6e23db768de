//! Where nodes say that they are, laid over the view: a manager may hear of a move later than the
//! peers do, or be the one that has moved.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::{Node, View};
use crate::id::NodeId;
use crate::negotiate::Whereabouts;

/// What nodes have said since a view last changed it.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    said: BTreeMap<NodeId, Claim>,
    /// The view as it came.
    view: Arc<View>,
}

#[derive(Debug)]
struct Claim {
    at: Whereabouts,
    /// Where the view had the node then. As soon as it has it elsewhere, the view is newer.
    viewed: Whereabouts,
}

impl Heard {
    /// A new view, with what nodes have said since.
    pub(crate) fn follow(&mut self, view: Arc<View>) -> Arc<View> {
        self.view = view;
        self.said.retain(|node, claim| whereabouts(&self.view, *node) == Some(claim.viewed));
        self.corrected()
    }

    /// Takes what a node says of itself; the view with it, where that makes a difference.
    pub(crate) fn hear(&mut self, node: NodeId, at: Whereabouts) -> Option<Arc<View>> {
        let viewed = whereabouts(&self.view, node)?;
        let before = self.said.get(&node).map_or(viewed, |claim| claim.at);
        if at == before {
            return None;
        }
        if at == viewed {
            self.said.remove(&node);
        } else {
            self.said.insert(node, Claim { at, viewed });
        }
        Some(self.corrected())
    }

    fn corrected(&self) -> Arc<View> {
        if self.said.is_empty() {
            return Arc::clone(&self.view);
        }
        let mut view = View::clone(&self.view);
        for node in view.networks.values_mut().flat_map(|network| &mut network.nodes) {
            if let Some(claim) = self.said.get(&node.id) {
                (node.advertise, node.data) = (claim.at.advertise, claim.at.data);
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

    fn at(host: u8) -> Whereabouts {
        let at = |port| std::net::SocketAddr::from(([192, 0, 2, host], port));
        Whereabouts { advertise: at(2377), data: at(4500) }
    }
}
