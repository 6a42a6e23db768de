//! The tests of the state once more, with its rows in a real etcd; but for those that are about the state
//! file or about numbers.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::etcd::Etcd;
use crate::control::store::{EtcdAccess, SharedStore};

/// What a cluster is to share that the test makes now; `None` in a test over the state file.
pub(super) fn shared() -> Option<SharedStore> {
    IS_OVER_ETCD.get().then(|| SharedStore::new(access(etcd())))
}

/// The etcd of all tests of this process.
pub(super) fn etcd() -> &'static Etcd {
    static ETCD: OnceLock<Etcd> = OnceLock::new();
    ETCD.get_or_init(Etcd::start)
}

/// A prefix that nobody else has.
pub(super) fn access(etcd: &Etcd) -> EtcdAccess {
    static PREFIXES: AtomicU32 = AtomicU32::new(0);
    let prefix = PREFIXES.fetch_add(1, Ordering::Relaxed);
    let address = format!("{}/test-{prefix}", etcd.url()).parse().expect("an address");
    EtcdAccess { address, ca_pem: None, client_pem: None, user: None }
}

fn over_etcd(test: fn()) {
    IS_OVER_ETCD.set(true);
    test();
    IS_OVER_ETCD.set(false);
}

thread_local! {
    static IS_OVER_ETCD: Cell<bool> = const { Cell::new(false) };
}

macro_rules! over_etcd {
    ($($name:ident: $module:path { $($test:ident)* })*) => {$(
        mod $name {
            use $module as suite;

            $(#[test]
            fn $test() {
                super::over_etcd(suite::$test);
            })*
        }
    )*};
}

over_etcd! {
    whole: super::super {
        cluster_made_once_is_there_after_opening_again
        addresses_and_macs_are_given_as_docker_gives_them
        mac_of_an_ipv6_network_ends_as_the_address_does
        derived_mac_avoids_one_that_somebody_asked_for
        gateway_is_given_only_by_request
        update_carries_what_changed_alone_and_leads_to_the_whole_view
        node_that_leaves_a_network_and_comes_back_is_told_all_of_it
        attaching_twice_gives_the_same_endpoint_and_no_new_version
        detaching_frees_the_address_and_is_done_twice_without_harm
        membership_is_the_nodes_with_endpoints_and_its_epoch_grows_with_every_change
        removed_node_loses_endpoints_and_memberships_and_is_told_of_until_its_certificate_expires
        node_is_found_by_name_or_id_and_named_by_id_where_names_are_alike
        vnis_and_pool_subnets_follow_one_another_and_a_freed_vni_rests
        pool_passes_over_the_addresses_of_nodes
        node_is_told_of_the_networks_that_it_is_a_member_of_alone
        versions_are_told_after_the_change_is_written
        token_secrets_name_their_role_until_they_are_rotated
        nodes_are_listed_with_when_they_were_seen
        signer_that_fails_leaves_the_network_as_it_was
        agents_that_ask_at_the_same_time_get_different_addresses
    }
    refused: super::super::refusals {
        network_name_that_is_taken
        subnet_that_overlaps_another_networks
        subnet_that_holds_an_underlay_address
        node_whose_address_lies_in_a_networks_subnet
        subnets_of_one_network_that_overlap
        nine_subnets
        subnet_with_host_bits
        subnet_without_room
        subnet_that_has_another_meaning
        gateway_that_no_container_could_use
        range_outside_the_subnet
        mtu_out_of_range
        label_that_no_listing_could_show
        network_that_does_not_exist
        network_in_use_is_not_removed_and_its_endpoints_are_named
        address_outside_the_subnets
        address_that_no_endpoint_may_have
        address_mac_and_name_that_are_taken_and_by_whom
        two_addresses_in_one_subnet
        mac_that_no_interface_may_have
        subnet_that_is_exhausted
        endpoint_that_is_attached_otherwise_already
        endpoint_of_another_node
        node_that_is_no_member
        worker_that_asks_what_is_for_managers
        only_manager_that_would_be_removed
        node_with_endpoints_that_would_be_removed
        node_id_that_is_or_was_in_use
        node_that_is_drained_or_not_labelled_for_a_network
        label_that_is_not_there_or_twice_or_unusable
    }
    roots: super::super::rotation {
        rotation_takes_each_step_when_every_node_has_done_its_part_and_not_before
        rotation_is_where_it_was_after_opening_again_in_each_step
        removed_node_is_waited_for_no_more_and_one_that_joins_meanwhile_is
        second_rotation_and_the_present_root_are_refused
        stranger_has_no_say_in_a_rotation
    }
    joining: super::super::tokens {
        one_time_token_admits_exactly_one_of_twenty_that_try_at_once
        node_that_never_heard_of_itself_is_barred_and_its_token_is_as_good_as_new
        join_that_fails_does_not_use_the_token_up
        expired_token_stays_expired_when_the_clock_is_set_back
        removed_token_says_so_to_its_holder_and_nothing_to_others
        standing_tokens_are_listed_first_and_work_as_before
        tokens_are_bounded_and_ended_ones_are_forgotten
        lives_too_short_or_too_long_are_refused
    }
}
