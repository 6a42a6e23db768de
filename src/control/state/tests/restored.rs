//! A state from a backup, against what nodes have heard since.

use std::net::IpAddr;

use super::*;
use crate::control::store::Backup;

#[test]
fn restored_state_is_later_than_all_that_happened_since_the_backup() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    cluster.attach(1, "web");
    let sealed = back_up(&cluster.state);
    for n in 2..20 {
        cluster.attach(n, "web");
        cluster.state.detach(node_id(1), endpoint_id(n)).unwrap();
    }
    cluster.state.attach(node_id(2), &request(30, "web")).unwrap();
    cluster.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    let (version, membership) = (cluster.state.version(), cluster.membership("web"));
    let passed_on = cluster.passed_on();
    assert_eq!(passed_on.1, [node_id(2)]);

    let restored = restore(&sealed, NOW);

    assert!(restored.state.version() > version);
    assert!(restored.membership("web").0 > membership.0);
    assert_eq!(restored.membership("web").1, [node_id(1)]);
    assert!(restored.passed_on().0 > passed_on.0, "a list that knows of fewer removals is newer");
    assert_eq!(restored.passed_on().1, []);
    let newest = crate::id::Epoch::new(restored.passed_on().0);
    assert!(cluster.state.is_overtaken_by(newest), "what was backed up is an old copy now");
    assert!(
        !restored.state.is_overtaken_by(newest) && !restored.state.is_overtaken_by(crate::id::Epoch::new(1))
    );
    let nodes: Vec<_> = restored.state.nodes().into_iter().map(|status| status.node).collect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[0].data, "192.0.2.99:4500".parse().unwrap());
    assert_eq!((nodes[0].role, nodes[0].name.to_string()), (node(1).role, "another".to_owned()));
    // What goes on from there is later again.
    let epoch = restored.membership("web").0;
    restored.state.attach(node_id(2), &request(40, "web")).unwrap();
    assert_eq!(restored.membership("web"), (epoch + 1, vec![node_id(1), node_id(2)]));
}

#[test]
fn state_that_is_restored_again_is_later_than_the_one_that_was_restored_before() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    let older = back_up(&cluster.state);
    cluster.attach(1, "web");
    let newer = back_up(&cluster.state);
    let before = restore(&newer, NOW);
    // Nodes follow it for a while, and it is lost or was not what was wanted.
    for n in 2..20 {
        before.state.attach(node_id(2), &request(n, "web")).unwrap();
        before.state.detach(node_id(2), endpoint_id(n)).unwrap();
    }
    before.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    let its_own = back_up(&before.state);
    // The clock of the third is behind.
    for (sealed, now) in [(&newer, NOW + 1), (&older, NOW + 1), (&its_own, NOW - 86_400)] {
        let again = restore(sealed, now);
        assert!(again.state.version() > before.state.version());
        assert!(again.membership("web").0 > before.membership("web").0);
        assert!(again.passed_on().0 > before.passed_on().0);
        let newest = crate::id::Epoch::new(again.passed_on().0);
        assert!(before.state.is_overtaken_by(newest), "of two that live one ends");
        let newest = crate::id::Epoch::new(before.passed_on().0);
        assert!(!again.state.is_overtaken_by(newest), "of two that live the later one goes on");
    }
}

#[test]
fn restored_manager_is_the_only_one_and_what_the_others_sign_is_believed_no_more() {
    let cluster = TestCluster::new();
    cluster.state.promote(&node(2).name).unwrap();
    assert_eq!(cluster.state.managers().len(), 2);
    let sealed = Backup::open(&back_up(&cluster.state), "a passphrase").unwrap();
    let nodes = ClusterState::nodes_of(&sealed).unwrap();
    assert_eq!(nodes.iter().filter(|node| node.role == Role::Manager).count(), 2);

    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.take_over(&sealed).unwrap();
    ClusterState::overtake(store, signer(), here("192.0.2.99"), NOW).unwrap();
    let restored = TestCluster { state: open_state(dir.path()), dir };

    let managers: Vec<NodeId> = restored.state.managers().into_iter().map(|node| node.id).collect();
    assert_eq!(managers, [node_id(1)]);
    assert_eq!(restored.state.demoted(), [(node_id(2), restored.state.version())].into());
    assert!(restored.state.demote(&node(1).name).is_err(), "it is the last");
}

#[test]
fn manager_that_nodes_know_to_be_removed_is_restored_as_another_node_and_stays_removed() {
    let cluster = TestCluster::new();
    for network in ["web", "still"] {
        cluster.create(network, &[]);
    }
    cluster.attach(1, "web");
    cluster.state.attach(node_id(2), &request(2, "web")).unwrap();
    let labels =
        ProfileChange { label_add: [("zone".to_owned(), "a".to_owned())].into(), ..ProfileChange::default() };
    cluster.state.change_profile(&node(1).name, &labels).unwrap();
    let profile = cluster.state.profile(node_id(1));
    let sealed = back_up(&cluster.state);

    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.take_over(&Backup::open(&sealed, "a passphrase").unwrap()).unwrap();
    let another = Whereabouts { node: node_id(9), ..here("192.0.2.99") };
    ClusterState::overtake(store, signer(), another, NOW).unwrap();
    let restored = TestCluster { state: open_state(dir.path()), dir };

    let managers: Vec<NodeId> = restored.state.managers().into_iter().map(|node| node.id).collect();
    assert_eq!((managers, restored.state.nodes().len()), (vec![node_id(9)], 2));
    assert_eq!(restored.state.profile(node_id(9)), profile);
    assert_eq!(restored.state.removed_nodes(), [node_id(1)].into());
    assert_eq!(restored.passed_on().1, [node_id(1)]);
    assert_eq!(restored.state.demoted(), [(node_id(1), restored.state.version())].into());
    for (network, members) in [("web", vec![node_id(2)]), ("still", vec![])] {
        let (epoch, nodes) = restored.membership(network);
        assert_eq!(nodes, members);
        assert!(epoch > cluster.membership(network).0, "{network}");
    }
    restored.state.forget_expired(NOW + 2160 * 3600).unwrap();
    assert_eq!(restored.passed_on().1, [node_id(1)], "a certificate of it may live");
}

#[test]
fn manager_is_not_restored_where_a_network_is() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    let version = cluster.state.version();
    let dir = cluster.close();
    let refused = ClusterState::overtake(Store::open(dir.path()).unwrap(), signer(), here("10.1.0.9"), NOW);
    assert!(matches!(refused, Err(StateError::NodeInSubnet { .. })), "{refused:?}");
    assert_eq!(open_state(dir.path()).version(), version);
}

/// What a backup becomes at that time.
fn restore(sealed: &[u8], now: u64) -> TestCluster {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.take_over(&Backup::open(sealed, "a passphrase").unwrap()).unwrap();
    ClusterState::overtake(store, signer(), here("192.0.2.99"), now).unwrap();
    TestCluster { state: open_state(dir.path()), dir }
}

fn here(address: &str) -> Whereabouts {
    let address: IpAddr = address.parse().unwrap();
    Whereabouts {
        node: node_id(1),
        in_place_of: node_id(1),
        name: "another".parse().unwrap(),
        advertise: (address, 2377).into(),
        data: (address, 4500).into(),
        underlay_mtu: 1500,
    }
}

fn back_up(state: &ClusterState) -> Vec<u8> {
    let ClusterRows::File(store) = state.rows() else { panic!("it is in a file") };
    state.backup(&store, 7).unwrap().sealed("a passphrase")
}

/// Seconds since 1970.
const NOW: u64 = 1_767_225_600;
