use super::*;
use crate::agent::testbed::{PaperCluster, THIS, endpoint_id, mac, network_id, peer, vni};
use crate::forward::Carrier;

const OTHER_ROOT: MembershipError = MembershipError::OtherRoot;

#[test]
fn link_that_is_not_wanted_is_out_of_the_tables_while_its_slot_is_still_held() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 1, &[2, 3])]);
    let key = (network_id(1), peer(2));
    let slot = placement.links()[&key];
    assert!(placement.tables().link(slot).is_some());
    let view = cluster.view(vec![cluster.network(1, 2, &[3])], &[]);
    placement.follow(view);
    assert!(placement.tables().link(slot).is_none());
    assert_eq!(placement.ended_links(), [(key, slot)]);
    assert_eq!(placement.peers().keys().copied().collect::<Vec<_>>(), [peer(3)]);
    assert_eq!(placement.link(slot), Some(key), "the slot is not free before the lanes know");
}

#[test]
fn link_that_ended_and_began_again_is_another_hold() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 1, &[2])]);
    let key = (network_id(1), peer(2));
    let first = placement.peers()[&peer(2)].links[&network_id(1)].hold;
    assert!(placement.held_link(key, first).is_some());
    placement.follow(cluster.view(Vec::new(), &[]));
    placement.release_link(key);
    assert!(placement.held_link(key, first).is_none());
    let view = cluster.view(vec![cluster.network(1, 3, &[2])], &[]);
    placement.follow(view);
    let second = placement.peers()[&peer(2)].links[&network_id(1)].hold;
    assert_eq!(second.slot, first.slot);
    assert!(placement.held_link(key, first).is_none(), "late keys are for the first hold");
    assert!(placement.held_link(key, second).is_some());
}

#[test]
fn network_is_carried_only_by_a_membership_that_a_manager_signed() {
    let mut cluster = PaperCluster::new();
    let other = PaperCluster::new();
    let mut foreign = cluster.network(1, 1, &[2]);
    foreign.membership = other.sign(&cluster.membership(1, 1, &[2]));
    let mut swapped = cluster.network(2, 1, &[2]);
    swapped.membership = cluster.sign(&cluster.membership(3, 1, &[2]));
    let mut renumbered = cluster.network(4, 1, &[2]);
    renumbered.network.vni = vni(9);
    let mut placement = Placement::new(&cluster.identity);
    placement.follow(cluster.view(vec![foreign, swapped, renumbered], &[]));
    assert!(matches!(placement.refused()[&network_id(1)], NotCarried::Membership(_)));
    assert!(matches!(placement.refused()[&network_id(2)], NotCarried::OtherNetwork { .. }));
    assert!(matches!(placement.refused()[&network_id(4)], NotCarried::OtherNetwork { .. }));
    assert!(placement.peers().is_empty() && placement.links().is_empty());
    assert!(placement.tables().network(NetSlot::new(0)).is_none());
}

#[test]
fn network_that_was_encrypted_is_never_carried_in_the_clear() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 1, &[2])]);
    let mut plain = cluster.network(1, 2, &[2]);
    plain.network.encrypted = false;
    for view in [vec![plain.clone()], vec![], vec![plain]] {
        placement.follow(cluster.view(view, &[]));
        assert!(placement.tables().plain_network(vni(1)).is_none());
        assert!(placement.peers().is_empty());
    }
    assert_eq!(placement.refused()[&network_id(1)], NotCarried::Encryption { encrypted: false });
}

#[test]
fn removal_that_a_peer_passed_on_holds_against_an_older_view_and_is_never_taken_back_by_one() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 1, &[2, 3])]);
    let slot = placement.links()[&(network_id(1), peer(2))];
    assert_eq!(placement.adopt_removals(&PaperCluster::new().sign_removals(9, &[3])), Err(OTHER_ROOT));
    assert_eq!(placement.adopt_removals(&cluster.sign_removals(2, &[2])), Ok(true));
    assert_eq!(placement.adopt_removals(&cluster.sign_removals(2, &[2])), Ok(false));
    assert!(placement.tables().link(slot).is_none());
    assert_eq!(placement.ended_links(), [((network_id(1), peer(2)), slot)]);
    placement.release_link((network_id(1), peer(2)));

    // A manager that was cut off meanwhile knows it not.
    let mut view = View::clone(&cluster.view(vec![cluster.network(1, 2, &[2, 3])], &[]));
    view.removals = Some(cluster.sign_removals(1, &[]));
    placement.follow(Arc::new(view.clone()));
    assert_eq!(placement.peers().keys().copied().collect::<Vec<_>>(), [peer(3)]);
    // A newer list may forget who needs not be refused any more.
    view.removals = Some(cluster.sign_removals(3, &[]));
    placement.follow(Arc::new(view));
    assert!(placement.removed().is_empty());
}

#[test]
fn removed_node_has_no_link_even_where_a_membership_still_names_it() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 1, &[2, 3])]);
    let slot = placement.links()[&(network_id(1), peer(2))];
    let view = cluster.view(vec![cluster.network(1, 1, &[2, 3])], &[2]);
    placement.follow(view);
    let tables = placement.tables();
    assert!(tables.link(slot).is_none());
    assert_eq!(placement.peers().keys().copied().collect::<Vec<_>>(), [peer(3)]);
    let Carrier::Esp(directory) = tables.network(NetSlot::new(0)).expect("carried").carrier() else {
        panic!("an encrypted network");
    };
    assert!(directory.by_mac(mac(2)).is_none(), "its endpoints lead to a slot that may be another's");
    assert!(directory.by_mac(mac(3)).is_some());
}

#[test]
fn membership_from_a_peer_counts_if_it_is_newer_and_is_what_is_passed_on() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 5, &[2, 3])]);
    let older = cluster.sign(&cluster.membership(1, 4, &[2]));
    assert_eq!(placement.adopt(&older), Ok(false));
    let newer = cluster.sign(&cluster.membership(1, 6, &[3]));
    assert_eq!(placement.adopt(&newer), Ok(true));
    assert_eq!(placement.ended_links().len(), 1);
    assert_eq!(placement.signed_membership(network_id(1)), Some(&newer));
    let elsewhere = cluster.sign(&cluster.membership(9, 1, &[2]));
    assert_eq!(placement.adopt(&elsewhere), Ok(false));
    assert_eq!(placement.signed_membership(network_id(9)), None);
    let forged = PaperCluster::new().sign(&cluster.membership(1, 7, &[2, 3, 4]));
    assert!(placement.adopt(&forged).is_err());
    assert_eq!(placement.signed_membership(network_id(1)), Some(&newer));
}

#[test]
fn node_that_is_no_member_any_more_carries_nothing_of_the_network() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 5, &[2])]);
    let port = placement.hold_port(endpoint_id(1, THIS));
    assert!(placement.tables().port(port).is_some());
    let mut without = cluster.membership(1, 6, &[2, 3]);
    without.nodes.remove(&cluster.this());
    assert_eq!(placement.adopt(&cluster.sign(&without)), Ok(true));
    let tables = placement.tables();
    assert!(tables.port(port).is_none() && tables.network(NetSlot::new(0)).is_none());
    assert!(placement.peers().is_empty());
}

#[test]
fn vtep_has_a_slot_of_its_own_until_the_lanes_know_that_it_ended() {
    let plain = |cluster: &PaperCluster, id, epoch, others: &[u8]| {
        let mut view = cluster.network(id, epoch, others);
        view.network.encrypted = false;
        view
    };
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| {
        vec![plain(c, 1, 1, &[2, 3]), plain(c, 2, 1, &[2]), c.network(3, 1, &[2])]
    });
    let slots = placement.vteps();
    let key = |network, number| (network_id(network), peer(number));
    assert_eq!(slots.keys().copied().collect::<Vec<_>>(), [key(1, 2), key(1, 3), key(2, 2)]);
    assert_eq!(slots.values().collect::<BTreeSet<_>>().len(), 3, "one slot for each, in all networks");
    let (slot, other) = (slots[&key(1, 2)], slots[&key(1, 3)]);
    let tables = placement.tables();
    let remote = SocketAddr::from(([192, 0, 2, 2], 4789));
    assert_eq!(tables.vtep(slot).map(|row| row.remote), Some(remote));
    assert_eq!(tables.vtep(slots[&key(2, 2)]).map(|row| row.remote), Some(remote));

    placement.follow(cluster.view(vec![plain(&cluster, 1, 2, &[3])], &[]));
    let tables = placement.tables();
    assert_eq!(tables.vtep(slot), None);
    let Carrier::Vxlan(carrier) = tables.network(NetSlot::new(0)).expect("carried").carrier() else {
        panic!("an unencrypted network");
    };
    assert_eq!(carrier.sender([192, 0, 2, 2].into()), None);
    assert_eq!(carrier.sender([192, 0, 2, 3].into()), Some(other));
    assert!(carrier.directory().by_mac(mac(2)).is_none() && carrier.directory().by_mac(mac(3)).is_some());
    assert!(placement.ended_vteps().contains(&(key(1, 2), slot)));
    placement.follow(cluster.view(vec![plain(&cluster, 1, 3, &[3, 4])], &[]));
    assert_ne!(placement.vteps()[&key(1, 4)], slot, "its numbers are still another's");
    for (ended, _) in placement.ended_vteps() {
        placement.release_vtep(ended);
    }
    placement.follow(cluster.view(vec![plain(&cluster, 1, 4, &[3, 4, 5])], &[]));
    assert!(slots.values().any(|freed| *freed == placement.vteps()[&key(1, 5)]), "slots are given out again");
}

#[test]
fn interface_here_of_an_endpoint_that_is_placed_elsewhere_is_no_port() {
    let mut cluster = PaperCluster::new();
    let mut placement = followed(&mut cluster, |c| vec![c.network(1, 1, &[2])]);
    let port = placement.hold_port(endpoint_id(1, THIS));
    assert!(placement.tables().port(port).is_some());
    let mut moved = cluster.network(1, 1, &[2]);
    let this = cluster.this();
    for endpoint in moved.endpoints.iter_mut().filter(|endpoint| endpoint.node == this) {
        endpoint.node = peer(2);
    }
    placement.follow(cluster.view(vec![moved], &[]));
    assert!(placement.tables().port(port).is_none());
}

#[test]
fn network_that_did_not_change_is_carried_over() {
    let mut cluster = PaperCluster::new();
    let (one, two) = (cluster.network(1, 1, &[2]), cluster.network(2, 1, &[2]));
    let mut placement = Placement::new(&cluster.identity);
    placement.follow(cluster.view(vec![one.clone(), two], &[]));
    let before = placement.tables();
    let two = cluster.network(2, 2, &[2, 3]);
    placement.follow(cluster.view(vec![one, two], &[]));
    let after = placement.tables();
    let first = placement.networks.get(&network_id(1)).map(NetSlot::new).expect("held");
    let second = placement.networks.get(&network_id(2)).map(NetSlot::new).expect("held");
    let same = |before: &Tables, after: &Tables| {
        [first, second].map(|slot| {
            let both = before.shared_network(slot).zip(after.shared_network(slot)).expect("carried");
            Arc::ptr_eq(both.0, both.1)
        })
    };
    assert_eq!(same(&before, &after), [true, false]);
    // Nor is any other when an interface comes or goes.
    let port = placement.hold_port(endpoint_id(2, THIS));
    let held = placement.tables();
    assert_eq!(same(&after, &held), [true, false]);
    assert!(held.port(port).is_some());
    placement.release_port(endpoint_id(2, THIS));
    let released = placement.tables();
    assert_eq!(same(&held, &released), [true, false]);
    assert!(released.port(port).is_none());
}

fn followed(
    cluster: &mut PaperCluster,
    networks: impl FnOnce(&PaperCluster) -> Vec<NetworkView>,
) -> Placement {
    let networks = networks(cluster);
    let mut placement = Placement::new(&cluster.identity);
    placement.follow(cluster.view(networks, &[]));
    placement
}
