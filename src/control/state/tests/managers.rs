//! Managers that come and go: what they signed, and what of their certificates is believed.

use super::*;
use crate::cluster::Role;
use crate::id::{HostName, Version};
use crate::membership::Removals;

#[test]
fn promoted_node_is_a_manager_and_promoting_it_again_changes_nothing() {
    let cluster = TestCluster::new();
    let promoted = cluster.state.promote(&host(2)).unwrap();
    assert_eq!((promoted.id, promoted.role), (node_id(2), Role::Manager));
    assert_eq!(cluster.managers(), [node_id(1), node_id(2)]);
    let version = cluster.state.version();
    cluster.state.promote(&host(2)).unwrap();
    assert_eq!(cluster.state.version(), version);
    assert!(cluster.state.demoted().is_empty());
}

#[test]
fn demoted_manager_is_named_to_all_and_everything_that_it_may_have_signed_is_signed_anew() {
    let cluster = TestCluster::new();
    for network in ["web", "db"] {
        cluster.create(network, &[]);
    }
    cluster.attach(1, "web");
    cluster.state.promote(&host(2)).unwrap();
    let before = ["web", "db"].map(|network| cluster.membership(network));

    let demoted = cluster.state.demote(&host(2)).unwrap();

    assert_eq!((demoted.id, demoted.role), (node_id(2), Role::Worker));
    let at = cluster.state.version();
    assert_eq!(cluster.state.demoted(), [(node_id(2), at)].into());
    assert_eq!(cluster.demoted_in_list(), [(node_id(2), at)]);
    let after = ["web", "db"].map(|network| cluster.membership(network));
    assert_eq!(after, before.map(|(epoch, nodes)| (epoch + 1, nodes)));
    // It stays named when it is a manager again: its certificate of then is a later one.
    cluster.state.promote(&host(2)).unwrap();
    assert_eq!(cluster.state.demoted(), [(node_id(2), at)].into());
    assert!(cluster.state.version() > at);
    let dir = cluster.close();
    assert_eq!(open_state(dir.path()).demoted(), [(node_id(2), at)].into());
}

#[test]
fn who_was_a_manager_stays_named_when_its_certificate_has_expired_as_its_signatures_do_not() {
    let cluster = TestCluster::new();
    cluster.state.add_node(node(3)).unwrap();
    for id in [2, 3] {
        cluster.state.promote(&host(id)).unwrap();
    }
    cluster.state.demote(&host(2)).unwrap();
    let of_two = cluster.state.version();
    cluster.state.remove_node(node_id(3), 1000, Takes::Endpoints).unwrap();
    let of_three = cluster.state.version();
    cluster.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    cluster.state.forget_expired(1001).unwrap();
    assert!(cluster.state.removed_nodes().is_empty());
    let named = [(node_id(2), of_two), (node_id(3), of_three)];
    assert_eq!((cluster.state.demoted(), cluster.demoted_in_list()), (named.into(), named.into()));
}

#[test]
fn last_manager_is_neither_demoted_nor_removed() {
    let cluster = TestCluster::new();
    let version = cluster.state.version();
    let error = cluster.state.demote(&host(1)).unwrap_err();
    assert!(matches!(error, StateError::LastManager { .. }), "{error}");
    let error = cluster.state.remove_node(node_id(1), 1000, Takes::Endpoints).unwrap_err();
    assert!(matches!(error, StateError::LastManager { .. }), "{error}");
    assert_eq!(cluster.state.version(), version);
}

#[test]
fn removal_of_a_manager_signs_anew_what_it_is_no_member_of_too() {
    let cluster = TestCluster::new();
    for network in ["web", "db"] {
        cluster.create(network, &[]);
    }
    cluster.attach(1, "web");
    cluster.state.attach(node_id(2), &request(2, "web")).unwrap();
    cluster.state.promote(&host(2)).unwrap();
    let before = ["web", "db"].map(|network| cluster.membership(network).0);
    cluster.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    assert_eq!(cluster.membership("web"), (before[0] + 1, vec![node_id(1)]));
    assert_eq!(cluster.membership("db"), (before[1] + 1, vec![]));
}

impl TestCluster {
    fn managers(&self) -> Vec<NodeId> {
        self.state.managers().into_iter().map(|node| node.id).collect()
    }

    fn demoted_in_list(&self) -> Vec<(NodeId, Version)> {
        let signed = self.state.view_for(node_id(1)).removals.unwrap();
        let removals: Removals = serde_json::from_str(&signed.payload).unwrap();
        removals.demoted.into_iter().collect()
    }
}

fn host(n: u8) -> HostName {
    node(n).name
}
