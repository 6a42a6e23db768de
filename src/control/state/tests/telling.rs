//! What many sessions are told of one network.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;

use super::histories::{perform, step};
use crate::control::state::view_update::Misfit;

#[test]
fn change_is_as_long_in_a_large_network_as_in_a_small_one() {
    let length = |members: u8| {
        let cluster = in_network(members);
        let mut told = Told::default();
        hear(&cluster.state, node_id(1), &mut told).unwrap();
        cluster.state.attach(node_id(members), &request(900, "web")).unwrap();
        let version = cluster.state.version();
        let update = cluster.state.update_for(node_id(1), &mut told, version).unwrap();
        assert!(update.read().unwrap().changes[0].membership.is_some());
        update.iter().map(Bytes::len).sum::<usize>()
    };
    let (small, large) = (length(3), length(200));
    assert!(large.abs_diff(small) < 20, "{small} and {large} bytes");
    assert!(large < 1500, "{large} bytes");
}

#[test]
fn sessions_share_what_they_are_told_though_the_state_moves_on_meanwhile() {
    let cluster = in_network(50);
    let mut sessions: Vec<_> = (1..50).map(|n| (node_id(n), Told::default(), View::default())).collect();
    for round in 0..5u32 {
        cluster.state.attach(node_id(1), &request(1000 + round, "web")).unwrap();
        let at = cluster.state.version();
        let mut said: Vec<(usize, Bytes)> = Vec::new();
        for (i, (node, told, view)) in sessions.iter_mut().enumerate() {
            if i % 10 == 9 {
                cluster
                    .state
                    .attach(node_id(2), &request(2000 + 100 * round + u32::try_from(i).unwrap(), "web"))
                    .unwrap();
            }
            let documents = cluster.state.update_for(*node, told, at).unwrap();
            // The last one is of the session.
            let shared = documents.iter().take(documents.iter().count() - 1).cloned();
            said.extend(shared.map(|document| (document.as_ptr().addr(), document)));
            *view = documents.read().unwrap().apply(view).unwrap();
        }
        let made: BTreeSet<usize> = said.iter().map(|(address, _)| *address).collect();
        assert!(made.len() <= 2, "{} documents for {} sessions", made.len(), sessions.len());
    }
    let at = cluster.state.version();
    for (node, told, view) in &mut sessions {
        let documents = cluster.state.update_for(*node, told, at).unwrap();
        *view = documents.read().unwrap().apply(view).unwrap();
        assert_eq!(*view, cluster.state.view_for(*node));
    }
}

#[test]
fn change_that_does_not_fit_is_no_view() {
    let cluster = in_network(4);
    let mut told = Told::default();
    let first = hear(&cluster.state, node_id(1), &mut told).unwrap();
    let mut view = first.apply(&View::default()).unwrap();
    let network = *view.networks.keys().next().unwrap();
    view.networks.get_mut(&network).unwrap().nodes.retain(|node| node.id != node_id(2));
    cluster.state.detach(node_id(3), endpoint_id(3)).unwrap();
    let update = hear(&cluster.state, node_id(1), &mut told).unwrap();
    assert_eq!(update.apply(&view), Err(Misfit { network }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn sessions_that_are_told_at_the_same_moments_have_the_view_that_a_snapshot_gives(
        steps in prop::collection::vec(step(), 1..60),
        moments in any::<u64>(),
        slow in any::<u64>(),
    ) {
        let cluster = TestCluster::in_memory();
        cluster.state.add_node(Node { role: Role::Worker, ..node(3) }).unwrap();
        let mut sessions: Vec<_> = (1..=3).map(|n| (node_id(n), View::default(), Told::default())).collect();
        let mut at = cluster.state.version();
        for (i, step) in steps.iter().enumerate() {
            let _ = perform(&cluster.state, step);
            if moments >> (i % 64) & 1 == 1 {
                at = cluster.state.version();
            }
            for (n, (node, view, told)) in sessions.iter_mut().enumerate() {
                if slow >> ((i * 3 + n) % 64) & 1 == 1
                    && let Some(update) = cluster.state.update_for(*node, told, at)
                {
                    *view = update.read().unwrap().apply(view).unwrap();
                }
            }
        }
        for (node, view, told) in &mut sessions {
            if let Some(update) = hear(&cluster.state, *node, told) {
                *view = update.apply(view).unwrap();
            }
            let whole = cluster.state.view_for(*node);
            prop_assert_eq!(&View { version: whole.version, ..view.clone() }, &whole);
        }
    }
}

/// A network with an endpoint on each of so many nodes, numbered alike.
fn in_network(members: u8) -> TestCluster {
    let cluster = TestCluster::in_memory();
    cluster.create("web", &["10.1.0.0/16"]);
    for n in 1..=members {
        if n > 2 {
            cluster.state.add_node(Node { role: Role::Worker, ..node(n) }).unwrap();
        }
        if n < members {
            cluster.state.attach(node_id(n), &request(u32::from(n), "web")).unwrap();
        }
    }
    cluster
}
