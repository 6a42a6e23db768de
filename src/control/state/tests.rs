//! Tests of the state as a whole, with a fake signer; each module's own are beside it.

#[path = "../../../tests/support/etcd.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod etcd;
mod histories;
mod managers;
mod over_etcd;
mod put_back;
mod records;
mod refusals;
mod restored;
mod rotation;
mod sharing;
mod telling;
mod tokens;

use super::model::RemovalsRow;
use super::*;
use crate::cluster::{Membership, Network, Node, Role, Subnet, View};
use crate::id::{EndpointId, NetworkName};
use crate::membership::Removals;
use ipnet::IpNet;
use std::path::Path;
use tempfile::TempDir;

#[test]
fn cluster_made_once_is_there_after_opening_again() {
    let cluster = TestCluster::new();
    assert_eq!(cluster.state.certificate_life(), Duration::from_hours(2160));
    assert_eq!(cluster.state.pools(), vec![AddressPool::standard()]);
    let dir = cluster.close();

    let store = Store::open(dir.path()).unwrap();
    assert!(ClusterState::exists(&store).unwrap());
    let rows = store.cluster_rows().unwrap();
    let again = ClusterState::create(rows.clone(), new_cluster(), signer()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    let state = ClusterState::open(rows, signer()).unwrap();
    assert_eq!(state.ca().unwrap().as_slice(), b"root and key");
    assert_eq!(state.id(), new_cluster().id);
}

#[test]
fn node_without_a_cluster_is_told_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = ClusterState::open(Store::create(dir.path()).unwrap(), signer()).unwrap_err();
    assert!(error.to_string().contains("overlayd init makes a cluster"), "{error}");
}

#[test]
fn addresses_and_macs_are_given_as_docker_gives_them() {
    let cluster = TestCluster::new();
    cluster.create("dual", &["10.1.0.0/24", "fd00:1::/64"]);

    let first = cluster.attach(1, "dual").endpoint;
    let second = cluster.attach(2, "dual").endpoint;

    assert_eq!(first.addresses, nets(&["10.1.0.1/24", "fd00:1::1/64"]));
    assert_eq!(first.mac.to_string(), "02:42:0a:01:00:01");
    assert_eq!(second.addresses, nets(&["10.1.0.2/24", "fd00:1::2/64"]));
}

#[test]
fn mac_of_an_ipv6_network_ends_as_the_address_does() {
    let cluster = TestCluster::new();
    cluster.create("six", &["fd00:1::/64"]);
    let mut request = request(1, "six");
    request.ips = vec!["fd00:1::a:b0c:d".parse().unwrap()];
    let endpoint = cluster.state.attach(node_id(1), &request).unwrap().endpoint;
    assert_eq!(endpoint.mac.to_string(), "02:42:0b:0c:00:0d");
}

#[test]
fn derived_mac_avoids_one_that_somebody_asked_for() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    let mut thief = request(9, "web");
    thief.ips = vec!["10.1.0.200".parse().unwrap()];
    thief.mac = Some("02:42:0a:01:00:01".parse().unwrap());
    cluster.state.attach(node_id(1), &thief).unwrap();
    assert_eq!(cluster.attach(1, "web").endpoint.mac.to_string(), "02:43:0a:01:00:01");
}

#[test]
fn gateway_is_given_only_by_request() {
    let cluster = TestCluster::new();
    let mut new = new_network("web", &["10.1.0.0/29"]);
    new.subnets[0].gateway = Some("10.1.0.1".parse().unwrap());
    cluster.state.create_network(new).unwrap();
    assert_eq!(cluster.attach(1, "web").endpoint.addresses, nets(&["10.1.0.2/29"]));
    let mut router = request(2, "web");
    router.ips = vec!["10.1.0.1".parse().unwrap()];
    let router = cluster.state.attach(node_id(1), &router).unwrap().endpoint;
    assert_eq!(router.addresses, nets(&["10.1.0.1/29"]));
}

#[test]
fn attaching_twice_gives_the_same_endpoint_and_no_new_version() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    let first = cluster.attach(1, "web");
    let version = cluster.state.version();
    assert_eq!(cluster.attach(1, "web"), first);
    assert_eq!(cluster.attach(1, first.network.id.as_str()), first, "an id does for a name");
    assert_eq!(cluster.state.version(), version);
}

#[test]
fn detaching_frees_the_address_and_is_done_twice_without_harm() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/30"]);
    cluster.attach(1, "web");
    cluster.attach(2, "web");
    cluster.state.detach(node_id(1), endpoint_id(1)).unwrap();
    cluster.state.detach(node_id(1), endpoint_id(1)).unwrap();
    assert_eq!(cluster.attach(3, "web").endpoint.addresses, nets(&["10.1.0.1/30"]));
}

#[test]
fn membership_is_the_nodes_with_endpoints_and_its_epoch_grows_with_every_change() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    assert_eq!(cluster.membership("web"), (1, vec![]));
    cluster.state.attach(node_id(1), &request(1, "web")).unwrap();
    cluster.state.attach(node_id(1), &request(2, "web")).unwrap();
    assert_eq!(cluster.membership("web"), (2, vec![node_id(1)]));
    cluster.state.attach(node_id(2), &request(3, "web")).unwrap();
    assert_eq!(cluster.membership("web"), (3, vec![node_id(1), node_id(2)]));
    cluster.state.detach(node_id(1), endpoint_id(1)).unwrap();
    assert_eq!(cluster.membership("web").0, 3);
    cluster.state.detach(node_id(1), endpoint_id(2)).unwrap();
    assert_eq!(cluster.membership("web"), (4, vec![node_id(2)]));
    cluster.state.sign_again().unwrap();
    assert_eq!(cluster.membership("web"), (5, vec![node_id(2)]));
}

#[test]
fn removed_node_loses_endpoints_and_memberships_and_is_told_of_until_its_certificate_expires() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    cluster.state.attach(node_id(1), &request(1, "web")).unwrap();
    cluster.state.attach(node_id(2), &request(2, "web")).unwrap();

    cluster.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();

    assert_eq!(cluster.membership("web"), (4, vec![node_id(1)]));
    assert_eq!(cluster.state.endpoint(endpoint_id(2)), None);
    assert_eq!(cluster.state.view_for(node_id(1)).removed, [node_id(2)].into());
    assert_eq!(cluster.passed_on(), (1, vec![node_id(2)]));
    cluster.state.sign_again().unwrap();
    assert_eq!(cluster.passed_on(), (2, vec![node_id(2)]));
    let error = cluster.state.attach(node_id(2), &request(5, "web")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    cluster.state.forget_expired(1000).unwrap();
    assert_eq!(cluster.state.removed_nodes().len(), 1);
    assert_eq!(cluster.passed_on().0, 2, "nobody was forgotten");
    cluster.state.forget_expired(1001).unwrap();
    assert_eq!(cluster.state.removed_nodes().len(), 0);
    assert_eq!(cluster.passed_on(), (3, vec![]));
    let dir = cluster.close();
    assert!(open_state(dir.path()).view_for(node_id(1)).removals.is_some());
}

#[test]
fn list_that_nodes_pass_on_has_those_that_are_refused_for_longest_and_fits_in_a_message() {
    let cluster = TestCluster::new();
    let id = |n: u64| NodeId::from_entropy(u128::from(n).to_le_bytes());
    let removed = (0..2100).map(|n| (id(n), n)).collect();
    let change = cluster.state.removals(&cluster.state.model(), &removed, &BTreeMap::new()).unwrap();
    let Change::PutRemovals(RemovalsRow { signed, .. }) = change else { panic!("another change") };
    let list: Removals = serde_json::from_str(&signed.payload).unwrap();
    assert_eq!(list.nodes, (100..2100).map(id).collect());
    assert!(signed.payload.len() < 60 * 1024, "{}", signed.payload.len());
}

#[test]
fn node_is_found_by_name_or_id_and_named_by_id_where_names_are_alike() {
    let cluster = TestCluster::new();
    let find = |name: &str| cluster.state.find_node(&name.parse().unwrap()).map(|node| node.id);
    assert_eq!(find("host-2").unwrap(), node_id(2));
    assert_eq!(find(node_id(2).as_str()).unwrap(), node_id(2));
    cluster.state.add_node(Node { name: "host-2".parse().unwrap(), ..node(3) }).unwrap();
    let error = find("host-2").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("2 nodes are called host-2: name one by its id ({}, {})", node_id(2), node_id(3))
    );
    assert_eq!(find(node_id(3).as_str()).unwrap(), node_id(3));
}

#[test]
fn vnis_and_pool_subnets_follow_one_another_and_a_freed_vni_rests() {
    let cluster = TestCluster::new();
    let a = cluster.create("a", &[]);
    assert_eq!((a.vni.get(), a.subnets[0].cidr), (4096, net("10.128.0.0/24")));
    cluster.state.remove_network(&name("a")).unwrap();
    cluster.create("taken", &["10.128.0.0/16"]);
    let b = cluster.create("b", &[]);
    assert_eq!((b.vni.get(), b.subnets[0].cidr), (4098, net("10.129.0.0/24")));
}

#[test]
fn pool_passes_over_the_addresses_of_nodes() {
    let cluster = TestCluster::new();
    let mut node = node(7);
    node.data = "10.128.0.9:4500".parse().unwrap();
    cluster.state.add_node(node).unwrap();
    assert_eq!(cluster.create("a", &[]).subnets[0].cidr, net("10.128.1.0/24"));
}

#[test]
fn node_is_told_of_the_networks_that_it_is_a_member_of_alone() {
    let cluster = TestCluster::new();
    cluster.create("one", &["10.1.0.0/24"]);
    cluster.create("two", &["10.2.0.0/24"]);
    cluster.state.attach(node_id(1), &request(1, "one")).unwrap();
    cluster.state.attach(node_id(2), &request(2, "two")).unwrap();

    let view = cluster.state.view_for(node_id(1));

    let names: Vec<_> = view.networks.values().map(|n| n.network.name.to_string()).collect();
    assert_eq!(names, ["one"]);
    assert_eq!(view.managers, vec![node(1)]);
    assert_eq!(view.version, cluster.state.version());
}

#[test]
fn update_carries_what_changed_alone_and_leads_to_the_whole_view() {
    let cluster = TestCluster::new();
    for (n, subnet) in [("one", "10.1.0.0/24"), ("two", "10.2.0.0/24")] {
        cluster.create(n, &[subnet]);
    }
    cluster.state.attach(node_id(1), &request(1, "one")).unwrap();
    cluster.state.attach(node_id(1), &request(2, "two")).unwrap();
    let mut told = Told::default();
    let first = hear(&cluster.state, node_id(1), &mut told).unwrap();
    assert!(first.outline.full && first.networks.len() == 2);
    let mut view = first.apply(&View::default()).unwrap();
    assert_eq!(hear(&cluster.state, node_id(1), &mut told), None);

    cluster.state.attach(node_id(2), &request(3, "two")).unwrap();
    let update = hear(&cluster.state, node_id(1), &mut told).unwrap();
    assert!(!update.outline.full && update.networks.is_empty() && update.outline.gone.is_empty());
    let [change] = &update.changes[..] else { panic!("{update:?}") };
    assert_eq!(change.endpoints.iter().map(|e| e.id).collect::<Vec<_>>(), [endpoint_id(3)]);
    assert_eq!(change.nodes.iter().map(|n| n.id).collect::<Vec<_>>(), [node_id(2)]);
    assert!(change.membership.is_some());
    view = update.apply(&view).unwrap();
    assert_eq!(view, cluster.state.view_for(node_id(1)));

    cluster.state.detach(node_id(1), endpoint_id(1)).unwrap();
    let moved = cluster.state.update_node(
        node_id(2),
        "198.51.100.2:2377".parse().unwrap(),
        "198.51.100.2:4500".parse().unwrap(),
        9000,
    );
    moved.unwrap();
    let update = hear(&cluster.state, node_id(1), &mut told).unwrap();
    assert_eq!((update.changes.len(), update.outline.gone.len()), (1, 1));
    view = update.apply(&view).unwrap();
    assert_eq!(view, cluster.state.view_for(node_id(1)));
    assert_eq!(hear(&cluster.state, node_id(1), &mut told), None);
}

#[test]
fn node_that_leaves_a_network_and_comes_back_is_told_all_of_it() {
    let cluster = TestCluster::new();
    cluster.create("one", &["10.1.0.0/24"]);
    cluster.state.attach(node_id(1), &request(1, "one")).unwrap();
    let mut told = Told::default();
    hear(&cluster.state, node_id(1), &mut told).unwrap();
    cluster.state.detach(node_id(1), endpoint_id(1)).unwrap();
    cluster.state.attach(node_id(1), &request(2, "one")).unwrap();
    let update = hear(&cluster.state, node_id(1), &mut told).unwrap();
    assert_eq!((update.networks.len(), update.changes.len()), (1, 0));
}

#[test]
fn versions_are_told_after_the_change_is_written() {
    let cluster = TestCluster::new();
    let mut versions = cluster.state.versions();
    let before = *versions.borrow_and_update();
    cluster.create("web", &["10.1.0.0/24"]);
    assert!(versions.has_changed().unwrap());
    assert_eq!(versions.borrow_and_update().get(), before.get() + 1);
}

#[test]
fn token_secrets_name_their_role_until_they_are_rotated() {
    let cluster = TestCluster::new();
    let role = |secret: [u8; 16]| cluster.state.role_for_secret(&secret, 0).ok();
    assert_eq!(role([1; 16]), Some(Role::Worker));
    assert_eq!(role([2; 16]), Some(Role::Manager));
    assert_eq!(role([3; 16]), None);
    cluster.state.rotate_token(Role::Worker, [3; 16]).unwrap();
    assert_eq!(role([1; 16]), None);
    assert_eq!(role([3; 16]), Some(Role::Worker));
    assert_eq!(cluster.state.token(Role::Manager), [2; 16]);
    assert_eq!(format!("{:?}", new_cluster().tokens), "Tokens([redacted])");
}

#[test]
fn nodes_are_listed_with_when_they_were_seen() {
    let cluster = TestCluster::new();
    cluster.state.saw_node(node_id(2), BootTime::from_nanos(5));
    let seen: Vec<_> = cluster.state.nodes().into_iter().map(|n| (n.node.id, n.last_seen)).collect();
    assert!(seen.contains(&(node_id(2), Some(BootTime::from_nanos(5)))));
    assert!(seen.contains(&(node_id(1), None)));
}

#[test]
fn signer_that_fails_leaves_the_network_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let refuse: Box<SignPayload> = Box::new(|payload| {
        let is_empty = String::from_utf8_lossy(payload).contains("\"nodes\":[]");
        if is_empty { signer()(payload) } else { Err("the key is gone".into()) }
    });
    let state = ClusterState::create(new_rows(dir.path()), new_cluster(), refuse).unwrap();
    state.add_node(node(1)).unwrap();
    state.create_network(new_network("web", &["10.1.0.0/24"])).unwrap();
    let error = state.attach(node_id(1), &request(1, "web")).unwrap_err();
    assert_eq!(error.to_string(), "cannot sign the membership of network web: the key is gone");
    assert!(state.inspect(&name("web")).unwrap().endpoints.is_empty());
}

#[test]
fn agents_that_ask_at_the_same_time_get_different_addresses() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    let ask = |from: u32| {
        let state = cluster.state.clone();
        move || (from..from + 25).map(|n| state.attach(node_id(1), &request(n, "web")).unwrap()).collect()
    };
    let threads: Vec<_> = (0..4).map(|t| std::thread::spawn::<_, Vec<Attached>>(ask(t * 25))).collect();
    let given: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    let addresses: BTreeSet<_> = given.iter().map(|a| a.endpoint.addresses[0]).collect();
    assert_eq!(addresses.len(), 100);
    let dir = cluster.close();
    assert_eq!(open_state(dir.path()).networks()[0].endpoints, 100);
}

#[test]
fn ten_thousand_endpoints_attach_in_one_network_and_are_there_after_opening_again() {
    let cluster = TestCluster::in_memory();
    cluster.create("big", &["10.64.0.0/16"]);
    let mut given = BTreeSet::new();
    for n in 0..10_000u32 {
        let endpoint = cluster.state.attach(node_id(1), &request(n, "big")).unwrap().endpoint;
        assert!(given.insert(endpoint.addresses[0]), "{} was given twice", endpoint.addresses[0]);
    }
    let before = cluster.settled();
    let dir = cluster.close();
    assert_eq!(TestCluster::open(dir).settled(), before);
}

/// A cluster of two nodes, 1 the manager and 2 a worker.
struct TestCluster {
    state: ClusterState,
    dir: TempDir,
}

impl TestCluster {
    fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    /// On a file system in memory: what the disk takes to sync is no business of the test.
    fn in_memory() -> Self {
        Self::within(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn within(dir: TempDir) -> Self {
        let state = ClusterState::create(new_rows(dir.path()), new_cluster(), signer()).unwrap();
        state.add_node(node(1)).unwrap();
        state.add_node(Node { role: Role::Worker, ..node(2) }).unwrap();
        Self { state, dir }
    }

    fn open(dir: TempDir) -> Self {
        let state = open_state(dir.path());
        Self { state, dir }
    }

    fn close(self) -> TempDir {
        self.dir
    }

    fn create(&self, name: &str, subnets: &[&str]) -> Network {
        self.state.create_network(new_network(name, subnets)).unwrap()
    }

    fn attach(&self, n: u32, network: &str) -> Attached {
        self.state.attach(node_id(1), &request(n, network)).unwrap()
    }

    fn membership(&self, network: &str) -> (u64, Vec<NodeId>) {
        let signed = self.state.inspect(&name(network)).unwrap().membership;
        let membership: Membership = serde_json::from_str(&signed.payload).unwrap();
        (membership.epoch.get(), membership.nodes.into_iter().collect())
    }

    /// Epoch and nodes of the list of removed nodes that node 1 is told to pass on.
    fn passed_on(&self) -> (u64, Vec<NodeId>) {
        let signed = self.state.view_for(node_id(1)).removals.unwrap();
        let removals: Removals = serde_json::from_str(&signed.payload).unwrap();
        (removals.epoch.get(), removals.nodes.into_iter().collect())
    }

    /// The model as it is after a restart.
    fn settled(&self) -> Model {
        settled(&self.state)
    }
}

fn settled(state: &ClusterState) -> Model {
    let mut model = state.model().clone();
    model.roster_changed = model.counters.version;
    model.roots_changed = model.counters.version;
    model.members_changed = model.counters.version;
    for state in model.networks.values_mut() {
        state.log = super::change_log::ChangeLog::new(model.counters.version);
    }
    model
}

/// The rows of a cluster that is to be: in a state file, or in etcd where the test is run over that.
fn new_rows(dir: &Path) -> ClusterRows {
    let store = Store::create(dir).unwrap();
    if let Some(shared) = over_etcd::shared() {
        store.put_shared_store(&shared).unwrap();
    }
    store.cluster_rows().unwrap()
}

fn open_state(dir: &Path) -> ClusterState {
    ClusterState::open(Store::open(dir).unwrap().cluster_rows().unwrap(), signer()).unwrap()
}

fn new_cluster() -> NewCluster {
    NewCluster {
        id: ClusterId::from_entropy([7; 16]),
        ca: b"root and key".to_vec().into(),
        root: b"root".to_vec(),
        pools: Vec::new(),
        certificate_life: Duration::from_hours(2160),
        tokens: Tokens { worker: [1; 16], manager: [2; 16] },
    }
}

fn signer() -> Box<SignPayload> {
    Box::new(|_| Ok(Signature { certificate: "certificate".to_owned(), signature: "signature".to_owned() }))
}

fn new_network(name_: &str, subnets: &[&str]) -> NewNetwork {
    let subnet = |cidr: &&str| Subnet { cidr: net(cidr), gateway: None, ip_range: None };
    NewNetwork {
        name: name(name_),
        encrypted: true,
        subnets: subnets.iter().map(subnet).collect(),
        mtu: None,
        labels: BTreeMap::new(),
        node_labels: BTreeMap::new(),
    }
}

fn request(n: u32, network: &str) -> AttachRequest {
    AttachRequest { id: endpoint_id(n), network: name(network), name: None, ips: Vec::new(), mac: None }
}

fn node(n: u8) -> Node {
    Node {
        id: node_id(n),
        name: format!("host-{n}").parse().unwrap(),
        role: Role::Manager,
        advertise: format!("192.0.2.{n}:2377").parse().unwrap(),
        data: format!("192.0.2.{n}:4500").parse().unwrap(),
        underlay_mtu: 1500,
    }
}

fn node_id(n: u8) -> NodeId {
    NodeId::from_entropy([n; 16])
}

fn endpoint_id(n: u32) -> EndpointId {
    EndpointId::from_entropy(u128::from(n).to_le_bytes())
}

fn name(name: &str) -> NetworkName {
    name.parse().unwrap()
}

fn net(net: &str) -> IpNet {
    net.parse().unwrap()
}

fn nets(all: &[&str]) -> Vec<IpNet> {
    all.iter().map(|n| net(n)).collect()
}

/// What a session of a node is told by now.
fn hear(state: &ClusterState, node: NodeId, told: &mut Told) -> Option<ViewUpdate> {
    state.update_for(node, told, state.version()).map(|documents| documents.read().unwrap())
}
