//! Every refusal, by its words: what was wrong, where, and what to do.

use super::*;
use crate::cluster::Availability;
use crate::id::NetworkId;

#[test]
pub(super) fn network_name_that_is_taken() {
    let cluster = TestCluster::with_web();
    cluster.refuses_network(
        new_network("web", &[]),
        ErrorKind::Conflict,
        "network name web is taken: choose another, or remove that one first",
    );
}

#[test]
pub(super) fn network_name_that_could_be_an_id() {
    let cluster = TestCluster::with_web();
    let id = NetworkId::from_entropy([1; 16]);
    cluster.refuses_network(
        new_network(id.as_str(), &[]),
        ErrorKind::Invalid,
        &format!("network name {id} could be the id of another network: choose another"),
    );
}

#[test]
pub(super) fn endpoint_of_a_node_that_carries_data_over_the_other_family() {
    let cluster = TestCluster::with_web();
    cluster.state.attach(node_id(1), &request(1, "web")).unwrap();
    cluster.state.add_node(Node { data: "[2001:db8::7]:4500".parse().unwrap(), ..node(7) }).unwrap();
    let message = "node host-7 carries data over IPv6 (2001:db8::7), and network web over IPv4 (node host-1 at 192.0.2.1), so that no packet would pass between them: it has to join with a --data-addr of IPv4";
    refused(cluster.state.attach(node_id(7), &request(2, "web")), ErrorKind::Conflict, message);
    cluster.state.detach(node_id(1), endpoint_id(1)).unwrap();
    cluster.state.attach(node_id(7), &request(2, "web")).unwrap();
}

#[test]
pub(super) fn subnet_that_overlaps_another_networks() {
    let cluster = TestCluster::with_web();
    for subnet in ["10.1.0.0/25", "10.1.0.0/16", "10.1.0.0/24"] {
        cluster.refuses_network(
            new_network("new", &[subnet]),
            ErrorKind::Conflict,
            &format!("subnet {subnet} overlaps subnet 10.1.0.0/24 of network web: choose another"),
        );
    }
}

#[test]
pub(super) fn subnet_that_holds_an_underlay_address() {
    let cluster = TestCluster::new();
    cluster.refuses_network(
        new_network("new", &["192.0.2.0/24"]),
        ErrorKind::Conflict,
        "subnet 192.0.2.0/24 contains the underlay address 192.0.2.1 of node host-1: choose another",
    );
}

#[test]
pub(super) fn node_whose_address_lies_in_a_networks_subnet() {
    let cluster = TestCluster::with_web();
    let mut inside = node(3);
    inside.data = "10.1.0.77:4500".parse().unwrap();
    let message = "address 10.1.0.77 of node host-3 lies in subnet 10.1.0.0/24 of network web: packets to the node would be taken for the network's; give the node another address, or remove that network";
    refused(cluster.state.add_node(inside.clone()), ErrorKind::Conflict, message);
    cluster.state.add_node(node(3)).unwrap();
    let moved = cluster.state.update_node(node_id(3), node(3).advertise, inside.data, 1500);
    refused(moved, ErrorKind::Conflict, message);
}

#[test]
pub(super) fn subnets_of_one_network_that_overlap() {
    TestCluster::new().refuses_network(
        new_network("new", &["10.1.0.0/16", "10.1.2.0/24"]),
        ErrorKind::Invalid,
        "subnets 10.1.0.0/16 and 10.1.2.0/24 of the network overlap: choose another for one of them",
    );
}

#[test]
pub(super) fn nine_subnets() {
    let subnets: Vec<_> = (0..9).map(|n| format!("10.1.{n}.0/24")).collect();
    let subnets: Vec<_> = subnets.iter().map(String::as_str).collect();
    TestCluster::new().refuses_network(
        new_network("new", &subnets),
        ErrorKind::Invalid,
        "9 subnets are too many: a network has at most 8",
    );
}

#[test]
pub(super) fn subnet_with_host_bits() {
    TestCluster::new().refuses_network(
        new_network("new", &["10.1.2.3/24"]),
        ErrorKind::Invalid,
        "subnet 10.1.2.3/24 has host bits set: write 10.1.2.0/24",
    );
}

#[test]
pub(super) fn subnet_without_room() {
    let cluster = TestCluster::new();
    for (subnet, longest) in [("10.1.0.0/31", 30), ("10.1.0.0/32", 30), ("fd00::/127", 126)] {
        cluster.refuses_network(
            new_network("new", &[subnet]),
            ErrorKind::Invalid,
            &format!("subnet {subnet} is too small: use /{longest} or a shorter prefix"),
        );
    }
}

#[test]
pub(super) fn subnet_that_has_another_meaning() {
    let cluster = TestCluster::new();
    for (subnet, reserved, what) in [
        ("0.0.0.0/0", "0.0.0.0/8", "\"this network\""),
        ("127.1.0.0/16", "127.0.0.0/8", "loopback"),
        ("224.1.0.0/16", "224.0.0.0/4", "multicast"),
        ("fe80::/64", "fe80::/10", "link-local"),
        ("ff02::/64", "ff00::/8", "multicast"),
    ] {
        cluster.refuses_network(
            new_network("new", &[subnet]),
            ErrorKind::Invalid,
            &format!("subnet {subnet} overlaps {reserved}, which is {what}: choose another"),
        );
    }
}

#[test]
pub(super) fn gateway_that_no_container_could_use() {
    let cluster = TestCluster::new();
    for (subnet, gateway, message) in [
        ("10.1.0.0/24", "10.2.0.1", "gateway 10.2.0.1 does not lie in subnet 10.1.0.0/24"),
        ("10.1.0.0/24", "fd00::1", "gateway fd00::1 does not lie in subnet 10.1.0.0/24"),
        (
            "10.1.0.0/24",
            "10.1.0.0",
            "gateway 10.1.0.0 is the network address of subnet 10.1.0.0/24: choose another",
        ),
        (
            "10.1.0.0/24",
            "10.1.0.255",
            "gateway 10.1.0.255 is the broadcast address of subnet 10.1.0.0/24: choose another",
        ),
        (
            "fd00::/64",
            "fd00::",
            "gateway fd00:: is the subnet-router anycast address of subnet fd00::/64: choose another",
        ),
    ] {
        let mut new = new_network("new", &[subnet]);
        new.subnets[0].gateway = Some(gateway.parse().unwrap());
        cluster.refuses_network(new, ErrorKind::Invalid, message);
    }
}

#[test]
pub(super) fn range_outside_the_subnet() {
    let cluster = TestCluster::new();
    for (range, message) in [
        ("10.2.0.0/28", "ip-range 10.2.0.0/28 does not lie in subnet 10.1.0.0/24"),
        ("10.1.0.0/16", "ip-range 10.1.0.0/16 does not lie in subnet 10.1.0.0/24"),
        ("10.1.0.9/28", "ip-range 10.1.0.9/28 has host bits set: write 10.1.0.0/28"),
    ] {
        let mut new = new_network("new", &["10.1.0.0/24"]);
        new.subnets[0].ip_range = Some(net(range));
        cluster.refuses_network(new, ErrorKind::Invalid, message);
    }
}

#[test]
pub(super) fn mtu_out_of_range() {
    let cluster = TestCluster::new();
    for (subnet, mtu, message) in [
        ("10.1.0.0/24", 575, "MTU 575 is out of range: a network with IPv4 subnets takes 576 to 65443 bytes"),
        (
            "fd00::/64",
            1279,
            "MTU 1279 is out of range: a network with IPv6 subnets takes 1280 to 65443 bytes",
        ),
        (
            "10.1.0.0/24",
            65444,
            "MTU 65444 is out of range: a network with IPv4 subnets takes 576 to 65443 bytes",
        ),
        (
            "10.1.0.0/24",
            1409,
            "MTU 1409 is too large for node host-1: its underlay carries 1500 bytes, which leaves 1408 for a container",
        ),
    ] {
        let mut new = new_network("new", &[subnet]);
        new.mtu = Some(mtu);
        cluster.refuses_network(new, ErrorKind::Invalid, message);
    }
    let mut fits = new_network("fits", &["10.1.0.0/24"]);
    fits.mtu = Some(1408);
    cluster.state.create_network(fits).unwrap();
}

#[test]
pub(super) fn label_that_no_listing_could_show() {
    let cluster = TestCluster::new();
    let mut new = new_network("new", &["10.1.0.0/24"]);
    new.labels.insert("a\nb".to_owned(), String::new());
    cluster.refuses_network(
        new,
        ErrorKind::Invalid,
        r#"label "a\nb" is not usable: it contains a control character"#,
    );
}

#[test]
pub(super) fn pool_that_is_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let new = NewCluster {
        pools: vec![AddressPool { base: net("10.9.0.0/23"), subnet_prefix_length: 24 }],
        ..new_cluster()
    };
    let state = ClusterState::create(Store::create(dir.path()).unwrap(), new, signer()).unwrap();
    for name in ["a", "b"] {
        state.create_network(new_network(name, &[])).unwrap();
    }
    refused(
        state.create_network(new_network("c", &[])),
        ErrorKind::Unavailable,
        "the address pool is used up (10.9.0.0/23): name a --subnet, or remove a network",
    );
}

#[test]
pub(super) fn pool_that_cannot_be_cut_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    let pool = |base, subnet_prefix_length| AddressPool { base: net(base), subnet_prefix_length };
    for (pools, message) in [
        (
            vec![pool("10.0.0.0/24", 16)],
            "address pool 10.0.0.0/24 is not usable: its subnets have /16, which must lie between /24 and /30",
        ),
        (
            vec![pool("10.0.0.0/8", 24), pool("10.1.0.0/16", 24)],
            "address pool 10.1.0.0/16 is not usable: it overlaps address pool 10.0.0.0/8",
        ),
        (vec![pool("10.0.0.1/8", 24)], "address pool 10.0.0.1/8 has host bits set: write 10.0.0.0/8"),
    ] {
        let new = NewCluster { pools, ..new_cluster() };
        refused(ClusterState::create(store.clone(), new, signer()), ErrorKind::Invalid, message);
    }
    assert!(!ClusterState::exists(&store).unwrap());
}

#[test]
pub(super) fn certificates_that_live_too_short_or_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    for certificate_life in [Duration::from_secs(9), Duration::from_hours(24 * 365 * 20 + 1)] {
        let new = NewCluster { certificate_life, ..new_cluster() };
        let message = "certificates must live between 10s and 20 years";
        refused(ClusterState::create(store.clone(), new, signer()), ErrorKind::Invalid, message);
    }
}

#[test]
pub(super) fn network_that_does_not_exist() {
    let cluster = TestCluster::new();
    let message = "there is no network web: overlayd ls lists them";
    refused(cluster.state.remove_network(&name("web")), ErrorKind::NotFound, message);
    refused(cluster.state.inspect(&name("web")), ErrorKind::NotFound, message);
    refused(cluster.state.attach(node_id(1), &request(1, "web")), ErrorKind::NotFound, message);
}

#[test]
pub(super) fn network_in_use_is_not_removed_and_its_endpoints_are_named() {
    let cluster = TestCluster::with_web();
    let mut named = request(0, "web");
    named.name = Some("db".parse().unwrap());
    cluster.state.attach(node_id(2), &named).unwrap();
    refused(
        cluster.state.remove_network(&name("web")),
        ErrorKind::Conflict,
        &format!(
            "network web is in use by endpoint {} (db) on node {}: detach them first",
            endpoint_id(0),
            node_id(2)
        ),
    );
    for n in 1..13 {
        cluster.attach(n, "web");
    }
    let message = cluster.state.remove_network(&name("web")).unwrap_err().to_string();
    assert!(message.ends_with(" and 3 more: detach them first"), "{message}");
    assert_eq!(message.matches("endpoint ").count(), 10);
}

#[test]
pub(super) fn address_outside_the_subnets() {
    let cluster = TestCluster::with_web();
    cluster.refuses_attach(
        |r| r.ips = vec!["10.2.0.1".parse().unwrap()],
        ErrorKind::Invalid,
        "address 10.2.0.1 does not lie in a subnet of network web (10.1.0.0/24)",
    );
}

#[test]
pub(super) fn address_that_no_endpoint_may_have() {
    let cluster = TestCluster::with_web();
    for (ip, what) in [("10.1.0.0", "network"), ("10.1.0.255", "broadcast")] {
        cluster.refuses_attach(
            |r| r.ips = vec![ip.parse().unwrap()],
            ErrorKind::Invalid,
            &format!("address {ip} is the {what} address of subnet 10.1.0.0/24: choose another"),
        );
    }
}

#[test]
pub(super) fn address_mac_and_name_that_are_taken_and_by_whom() {
    let cluster = TestCluster::with_web();
    let mut holder = request(1, "web");
    holder.name = Some("db".parse().unwrap());
    cluster.state.attach(node_id(2), &holder).unwrap();
    let by = format!("by endpoint {} (db) on node {}: choose another", endpoint_id(1), node_id(2));
    cluster.refuses_attach(
        |r| r.ips = vec!["10.1.0.1".parse().unwrap()],
        ErrorKind::Conflict,
        &format!("address 10.1.0.1 is taken in network web {by}"),
    );
    cluster.refuses_attach(
        |r| r.mac = Some("02:42:0a:01:00:01".parse().unwrap()),
        ErrorKind::Conflict,
        &format!("MAC address 02:42:0a:01:00:01 is taken in network web {by}"),
    );
    cluster.refuses_attach(
        |r| r.name = Some("db".parse().unwrap()),
        ErrorKind::Conflict,
        &format!("endpoint name db is taken in network web {by}"),
    );
}

#[test]
pub(super) fn two_addresses_in_one_subnet() {
    let cluster = TestCluster::with_web();
    cluster.refuses_attach(
        |r| r.ips = vec!["10.1.0.5".parse().unwrap(), "10.1.0.6".parse().unwrap()],
        ErrorKind::Invalid,
        "addresses 10.1.0.5 and 10.1.0.6 lie both in subnet 10.1.0.0/24: ask for one in each subnet",
    );
}

#[test]
pub(super) fn mac_that_no_interface_may_have() {
    let cluster = TestCluster::with_web();
    for (mac, why) in [
        ("01:00:5e:00:00:01", "it is a group address; clear the lowest bit of the first octet"),
        ("ff:ff:ff:ff:ff:ff", "it is a group address; clear the lowest bit of the first octet"),
        ("00:00:00:00:00:00", "the kernel takes all zeros for none"),
    ] {
        cluster.refuses_attach(
            |r| r.mac = Some(mac.parse().unwrap()),
            ErrorKind::Invalid,
            &format!("MAC address {mac} is not usable: {why}"),
        );
    }
}

#[test]
pub(super) fn subnet_that_is_exhausted() {
    let cluster = TestCluster::new();
    let mut new = new_network("web", &["10.1.0.0/24"]);
    new.subnets[0].ip_range = Some(net("10.1.0.16/31"));
    cluster.state.create_network(new).unwrap();
    cluster.attach(1, "web");
    cluster.attach(2, "web");
    cluster.refuses_attach(
        |_| {},
        ErrorKind::Unavailable,
        "no address is free in 10.1.0.16/31 of network web: detach an endpoint, or make a network with a larger subnet",
    );
}

#[test]
pub(super) fn endpoint_that_is_attached_otherwise_already() {
    let cluster = TestCluster::with_web();
    cluster.attach(77, "web");
    cluster.refuses_attach(
        |r| r.ips = vec!["10.1.0.9".parse().unwrap()],
        ErrorKind::Conflict,
        &format!(
            "endpoint {} is attached already, as 10.1.0.1/24 (02:42:0a:01:00:01) in web: detach it first",
            endpoint_id(77)
        ),
    );
}

#[test]
pub(super) fn endpoint_of_another_node() {
    let cluster = TestCluster::with_web();
    cluster.attach(1, "web");
    let message =
        format!("endpoint {} belongs to another node, {}: detach it there", endpoint_id(1), node_id(1));
    refused(cluster.state.detach(node_id(2), endpoint_id(1)), ErrorKind::Denied, &message);
    refused(cluster.state.attach(node_id(2), &request(1, "web")), ErrorKind::Denied, &message);
}

#[test]
pub(super) fn node_that_is_no_member() {
    let cluster = TestCluster::with_web();
    let message = format!(
        "node {} is no member of this cluster, or was removed from it: let it join again",
        node_id(9)
    );
    refused(cluster.state.attach(node_id(9), &request(1, "web")), ErrorKind::Denied, &message);
    refused(cluster.state.detach(node_id(9), endpoint_id(1)), ErrorKind::Denied, &message);
    refused(cluster.state.require_manager(node_id(9), "creating a network"), ErrorKind::Denied, &message);
    let message = format!("there is no node {}: overlayd node ls lists them", node_id(9));
    refused(cluster.state.remove_node(node_id(9), 0, Takes::Endpoints), ErrorKind::NotFound, &message);
}

#[test]
pub(super) fn worker_that_asks_what_is_for_managers() {
    let cluster = TestCluster::new();
    cluster.state.require_manager(node_id(1), "creating a network").unwrap();
    refused(
        cluster.state.require_manager(node_id(2), "creating a network"),
        ErrorKind::Denied,
        "node host-2 is a worker, and creating a network is for managers: ask host-1 (192.0.2.1:2377)",
    );
}

#[test]
pub(super) fn only_manager_that_would_be_removed() {
    let cluster = TestCluster::new();
    refused(
        cluster.state.remove_node(node_id(1), 0, Takes::Endpoints),
        ErrorKind::Conflict,
        &format!(
            "node host-1 ({}) is the only manager: without it the cluster is lost; to give the cluster up, run overlayd leave --force on every node",
            node_id(1)
        ),
    );
}

#[test]
pub(super) fn node_with_endpoints_that_would_be_removed() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    cluster.state.attach(node_id(2), &request(7, "web")).unwrap();
    refused(
        cluster.state.remove_node(node_id(2), 0, Takes::Nothing),
        ErrorKind::Conflict,
        &format!(
            "node host-2 ({}) has 1 endpoints ({}): detach them there first, or remove it with --force, which cuts them off",
            node_id(2),
            endpoint_id(7)
        ),
    );
    cluster.state.detach(node_id(2), endpoint_id(7)).unwrap();
    cluster.state.remove_node(node_id(2), 0, Takes::Nothing).unwrap();
}

#[test]
pub(super) fn node_id_that_is_or_was_in_use() {
    let cluster = TestCluster::new();
    let message = format!("node id {} is taken: join again, with a new one", node_id(2));
    refused(cluster.state.add_node(node(2)), ErrorKind::Conflict, &message);
    cluster.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    refused(cluster.state.add_node(node(2)), ErrorKind::Conflict, &message);
}

#[test]
pub(super) fn node_that_is_drained_or_not_labelled_for_a_network() {
    let cluster = TestCluster::with_web();
    cluster.attach(1, "web");
    let mut only = new_network("only", &["10.2.0.0/24"]);
    only.node_labels = labels(&[("disk", "ssd"), ("zone", "a")]);
    cluster.state.create_network(only).unwrap();
    let update = |change: ProfileChange| cluster.state.change_profile(&node(1).name, &change);
    update(ProfileChange { label_add: labels(&[("disk", "hdd")]), ..ProfileChange::default() }).unwrap();
    refused(
        cluster.state.attach(node_id(1), &request(2, "only")),
        ErrorKind::Barred,
        &format!(
            "network only is only for nodes that are labelled disk=ssd and zone=a, and node host-1 is not: attach on \
             another node, or run on a manager: overlayd node update {} --label-add disk=ssd --label-add zone=a",
            node_id(1)
        ),
    );
    let drain = || ProfileChange { availability: Some(Availability::Drain), ..ProfileChange::default() };
    let drained = update(drain()).unwrap();
    assert_eq!((drained.endpoints, drained.lost.len()), (1, 0));
    refused(
        cluster.state.attach(node_id(1), &request(2, "web")),
        ErrorKind::Conflict,
        &format!(
            "node host-1 is drained and takes no new endpoints: attach on another node, or run on a manager: overlayd \
             node update {} --availability active",
            node_id(1)
        ),
    );
    cluster.state.attach(node_id(1), &request(1, "web")).expect("it has that one already");
    let version = cluster.state.version();
    update(drain()).expect("nothing new");
    assert_eq!(cluster.state.version(), version);
}

#[test]
pub(super) fn label_that_is_not_there_or_twice_or_unusable() {
    let cluster = TestCluster::with_web();
    let refuses = |add: &[(&str, &str)], remove: &str, kind, message: &str| {
        let before = cluster.settled();
        let label_remove =
            Some(remove).filter(|key| !key.is_empty()).map(str::to_owned).into_iter().collect();
        let change = ProfileChange { label_add: labels(add), label_remove, availability: None };
        refused(cluster.state.change_profile(&node(1).name, &change), kind, message);
        assert_eq!(cluster.settled(), before);
    };
    refuses(&[], "zone", ErrorKind::NotFound, "node host-1 has no label \"zone\": it has none");
    let zone = &[("zone", "a")];
    let change = ProfileChange { label_add: labels(zone), ..ProfileChange::default() };
    cluster.state.change_profile(&node(1).name, &change).unwrap();
    refuses(&[], "zome", ErrorKind::NotFound, "node host-1 has no label \"zome\": it has zone");
    let twice = "label \"zone\" is to be set and to be removed: ask for one of them";
    refuses(zone, "zone", ErrorKind::Invalid, twice);
    let control = "label \"zone\" is not usable: it contains a control character";
    refuses(&[("zone", "a\n")], "", ErrorKind::Invalid, control);
    let mut network = new_network("only", &[]);
    network.node_labels = labels(&[("", "a")]);
    cluster.refuses_network(
        network,
        ErrorKind::Invalid,
        "label \"\" is not usable: a key has 1 to 128 bytes",
    );
}

#[test]
pub(super) fn state_that_contradicts_itself() {
    let cluster = TestCluster::with_web();
    let mut twin = cluster.attach(1, "web").endpoint;
    twin.id = endpoint_id(2);
    let dir = cluster.close();
    let store = Store::open(dir.path()).unwrap();
    let endpoints = crate::control::store::Table::new("endpoints");
    store.write(|w| w.put(&endpoints, twin.id.as_str(), &twin)).unwrap();
    refused(
        ClusterState::open(store.clone(), signer()),
        ErrorKind::Internal,
        "the cluster's state contradicts itself (address 10.1.0.1 is given twice): restore the state file from a backup",
    );
    twin.network = NetworkId::from_entropy([9; 16]);
    store.write(|w| w.put(&endpoints, twin.id.as_str(), &twin)).unwrap();
    let message = ClusterState::open(store, signer()).unwrap_err().to_string();
    assert!(
        message.contains(&format!("a row names network {}, which does not exist", twin.network)),
        "{message}"
    );
}

impl TestCluster {
    fn with_web() -> Self {
        let cluster = Self::new();
        cluster.create("web", &["10.1.0.0/24"]);
        cluster
    }

    fn refuses_network(&self, new: NewNetwork, kind: ErrorKind, message: &str) {
        let before = self.settled();
        refused(self.state.create_network(new), kind, message);
        assert_eq!(self.settled(), before);
    }

    fn refuses_attach(&self, ask: impl Fn(&mut AttachRequest), kind: ErrorKind, message: &str) {
        let before = self.settled();
        let mut request = request(77, "web");
        ask(&mut request);
        refused(self.state.attach(node_id(1), &request), kind, message);
        assert_eq!(self.settled(), before);
    }
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn refused<T: fmt::Debug>(result: Result<T, StateError>, kind: ErrorKind, message: &str) {
    let error = result.expect_err(message);
    assert_eq!((error.to_string().as_str(), error.kind()), (message, kind));
}
