//! Several managers on one state in etcd, etcd that goes away, and the way there from the state file.

use super::etcd::Etcd;
use super::over_etcd::{access, etcd};
use super::*;
use crate::cluster::View;
use crate::control::store::{Batch, CommitError, EtcdAccess, EtcdError, StoreError};
use crate::io::clock::boot_time;

/// A manager with a state directory of its own.
pub(super) struct Manager {
    store: Store,
    pub(super) state: ClusterState,
    _dir: TempDir,
}

impl Manager {
    /// The first one of a cluster.
    pub(super) fn first(access: EtcdAccess) -> Self {
        Self::signing(access, signer())
    }

    fn signing(access: EtcdAccess, sign: Box<SignPayload>) -> Self {
        let shared = SharedStore::new(access);
        Self::with(&shared, |rows| ClusterState::create(rows, new_cluster(), sign).unwrap())
    }

    /// Another one.
    pub(super) fn another(&self) -> Self {
        self.another_signing(signer())
    }

    fn another_signing(&self, sign: Box<SignPayload>) -> Self {
        Self::with(&self.state.shared_store().unwrap(), |rows| ClusterState::open(rows, sign).unwrap())
    }

    pub(super) fn with(shared: &SharedStore, open: impl FnOnce(ClusterRows) -> ClusterState) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        store.put_shared_store(shared).unwrap();
        let state = open(store.cluster_rows().unwrap());
        Self { store, state, _dir: dir }
    }

    fn version(&self) -> u64 {
        self.state.version().get()
    }
}

#[test]
fn change_of_one_manager_is_seen_by_the_others_and_wakes_who_waits_for_it() {
    let one = Manager::first(access(etcd()));
    let other = one.another();
    let mut versions = other.state.versions();
    versions.borrow_and_update();
    one.state.add_node(node(1)).unwrap();
    assert!(eventually(|| other.version() == one.version()), "{} {}", other.version(), one.version());
    assert!(versions.has_changed().unwrap());
    assert_eq!(other.state.node(node_id(1)), Some(node(1)));
    // And back, by whom has changed nothing before.
    other.state.create_network(new_network("web", &["10.1.0.0/24"])).unwrap();
    assert!(eventually(|| one.state.inspect(&name("web")).is_ok()));
}

#[test]
fn nodes_are_told_of_what_another_manager_changed_and_of_nothing_else() {
    let one = Manager::first(access(etcd()));
    for n in 1..4 {
        one.state.add_node(node(n)).unwrap();
    }
    for (network, subnet) in [("web", "10.1.0.0/24"), ("still", "10.2.0.0/24")] {
        one.state.create_network(new_network(network, &[subnet])).unwrap();
    }
    one.state.attach(node_id(1), &request(1, "web")).unwrap();
    one.state.attach(node_id(2), &request(2, "web")).unwrap();
    one.state.attach(node_id(1), &request(3, "still")).unwrap();
    let other = one.another();
    let mut told = Told::default();
    let mut view = hear(&other.state, node_id(1), &mut told).unwrap().apply(&View::default()).unwrap();
    let mut hears = |what: &str| {
        other.state.catch_up().unwrap();
        let update = hear(&other.state, node_id(1), &mut told).unwrap();
        assert!(!update.outline.full && update.networks.is_empty(), "{what}: {update:?}");
        view = update.clone().apply(&view).unwrap();
        assert_eq!(view, one.state.view_for(node_id(1)), "{what}");
        update
    };
    one.state.attach(node_id(2), &request(4, "web")).unwrap();
    let update = hears("one more endpoint");
    assert_eq!((update.changes.len(), update.changes[0].endpoints.len()), (1, 1));
    assert!(
        update.outline.roots.is_none()
            && update.changes[0].nodes.is_empty()
            && update.changes[0].membership.is_none()
    );
    one.state.detach(node_id(2), endpoint_id(4)).unwrap();
    one.state.attach(node_id(3), &request(5, "web")).unwrap();
    let update = hears("two changes, one of them a new member");
    let change = &update.changes[0];
    assert_eq!((change.endpoints_gone.len(), change.nodes.len()), (1, 1));
    assert!(change.membership.is_some());
    one.state.update_node(node_id(3), node(9).advertise, node(9).data, 1400).unwrap();
    assert_eq!(hears("a node that has moved").changes[0].nodes.len(), 1);
    one.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    assert!(hears("a node that is removed").outline.roster.is_some());
    // What is of no concern to it is no news, and nor is what it knows.
    one.state.rotate_token(Role::Worker, [9; 16]).unwrap();
    other.state.catch_up().unwrap();
    assert_eq!(hear(&other.state, node_id(1), &mut told), None);
}

#[test]
fn managers_that_decide_at_the_same_time_give_nothing_twice_and_lose_nothing() {
    let one = Manager::first(access(etcd()));
    one.state.add_node(node(1)).unwrap();
    one.state.create_network(new_network("web", &["10.1.0.0/24"])).unwrap();
    let managers = [one.another(), one.another(), one];
    let given = std::thread::scope(|scope| {
        let threads: Vec<_> = managers
            .iter()
            .zip([0, 100, 200])
            .map(|(manager, first)| {
                scope.spawn(move || {
                    let attach = |n| manager.state.attach(node_id(1), &request(n, "web")).unwrap().endpoint;
                    (first..first + 20).map(attach).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let addresses: BTreeSet<_> = given.iter().map(|endpoint| endpoint.addresses[0]).collect();
    assert_eq!(addresses.len(), 60);
    for manager in &managers {
        manager.state.catch_up().unwrap();
        assert_eq!(manager.state.networks()[0].endpoints, 60);
        assert_eq!(settled(&manager.state), settled(&managers[0].another().state), "memory and rows differ");
    }
}

#[test]
fn manager_that_has_to_read_first_comes_through_beside_one_that_never_does() {
    let one = Manager::signing(access(etcd()), long_signer());
    one.state.add_node(node(1)).unwrap();
    one.state.add_node(node(2)).unwrap();
    one.state.create_network(new_network("web", &["10.1.0.0/21"])).unwrap();
    // So that reading takes longer than a change.
    (0..400).for_each(|n| drop(one.state.attach(node_id(1), &request(n, "web")).unwrap()));
    let other = one.another();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut changes = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // A node comes and goes, so that the membership is signed anew.
                one.state.attach(node_id(2), &request(1000, "web")).unwrap();
                one.state.detach(node_id(2), endpoint_id(1000)).unwrap();
                changes += 2;
            }
            changes
        });
        let mut took = Vec::new();
        for n in 2000..2020 {
            let begin = boot_time();
            let given = other.state.attach(node_id(1), &request(n, "web"));
            took.push((boot_time().since(begin), given.err()));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let changes = busy.join().unwrap();
        let is_fair = took.iter().all(|(took, refusal)| refusal.is_none() && *took < Duration::from_secs(2));
        assert!(is_fair, "beside {changes} changes: {took:?}");
        assert!(changes >= 5, "only {changes} beside it");
    });
}

#[test]
fn who_has_the_turn_keeps_the_others_waiting_for_as_long_as_it_lives() {
    let access = access(etcd());
    let one = Manager::first(access.clone());
    let other = one.another();
    let change = |manager: &Manager, n| {
        let begin = boot_time();
        manager.state.add_node(node(n)).unwrap();
        boot_time().since(begin)
    };
    let rows = one.state.rows();
    let turn = rows.take_turn(LONG).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            change(&other, 1);
            boot_time()
        });
        // Longer than the silence of a dead one is waited for.
        std::thread::sleep(Duration::from_secs(4));
        let begin = boot_time();
        other.state.catch_up().unwrap();
        assert!(boot_time().since(begin) < Duration::from_millis(500), "who only reads waits for it too");
        assert_eq!(one.another().state.node(node_id(1)), None);
        let dropped = boot_time();
        drop(turn);
        assert!(waits.join().unwrap().since(dropped) < Duration::from_millis(1400), "it is not told");
    });
    // For ever it does not wait.
    let turn = rows.take_turn(LONG).unwrap();
    let begin = boot_time();
    let refused = other.state.add_node(node(2)).unwrap_err();
    assert!(matches!(refused, StateError::Contended), "{refused}");
    assert!(boot_time().since(begin) < Duration::from_secs(8), "{:?}", boot_time().since(begin));
    drop(turn);
    // Of a manager that died with it.
    etcd().ctl(&["put", &dead_turn_in(&access), "dead"]);
    let waited = change(&other, 2);
    assert!(Duration::from_millis(1500) <= waited && waited < Duration::from_secs(3), "{waited:?}");
    assert!(change(&one, 3) < Duration::from_secs(1), "it is free again");
}

#[test]
fn change_of_who_was_passed_over_is_made_if_nobody_was_faster() {
    let access = access(etcd());
    let (line, one) = (dead_turn_in(&access).replace("dead", ""), Manager::first(access));
    let rows = one.state.rows();
    let (_, before) = rows.read(|_| Ok(())).unwrap();
    let turn = rows.take_turn(LONG).unwrap();
    let late = rows.commit(before, &Batch::default(), None);
    assert!(matches!(late, Err(CommitError::Conflict)), "{late:?}");
    etcd().ctl(&["del", "--prefix", &line]);
    let next = rows.take_turn(LONG).unwrap();
    let at = rows.commit(before, &Batch::default(), turn.as_ref()).unwrap();
    assert!(at != before);
    let late = rows.commit(before, &Batch::default(), next.as_ref());
    assert!(matches!(late, Err(CommitError::Conflict)), "{late:?}");
    drop(turn);
    std::thread::sleep(Duration::from_millis(300));
    let late = rows.commit(at, &Batch::default(), None);
    assert!(matches!(late, Err(CommitError::Conflict)), "it has ended a turn that was not its own: {late:?}");
}

#[test]
fn turn_that_was_left_where_there_is_no_state_keeps_nobody_from_making_a_cluster() {
    let access = access(etcd());
    etcd().ctl(&["put", &dead_turn_in(&access), "dead"]);
    Manager::first(access).state.add_node(node(1)).unwrap();
}

#[test]
fn changes_asked_of_every_manager_at_once_are_all_made_soon() {
    let one = Manager::signing(access(etcd()), long_signer());
    (1..26).for_each(|n| one.state.add_node(node(n)).unwrap());
    one.state.create_network(new_network("web", &["10.1.0.0/20"])).unwrap();
    // So that reading takes longer than a change.
    (0..400).for_each(|n| drop(one.state.attach(node_id(1), &request(n, "web")).unwrap()));
    let managers = [one.another_signing(long_signer()), one.another_signing(long_signer()), one];
    let begin = boot_time();
    // Each of these makes the membership another.
    let attach = |manager: &Manager, n: u8| {
        manager.state.attach(node_id(n), &request(1000 + u32::from(n), "web")).unwrap();
        manager.state.detach(node_id(n), endpoint_id(1000 + u32::from(n))).unwrap();
        manager.state.attach(node_id(n), &request(1000 + u32::from(n), "web")).unwrap();
    };
    std::thread::scope(|scope| {
        for (manager, first) in managers.iter().zip([2, 10, 18]) {
            (first..first + 8).for_each(|n| drop(scope.spawn(move || attach(manager, n))));
        }
    });
    assert!(boot_time().since(begin) < Duration::from_secs(12), "{:?}", boot_time().since(begin));
    managers[0].state.catch_up().unwrap();
    assert_eq!(managers[0].state.networks()[0].endpoints, 424);
}

#[test]
fn what_another_manager_did_a_moment_ago_counts_before_anything_was_heard_of_it() {
    let one = Manager::first(access(etcd()));
    one.state.add_node(node(1)).unwrap();
    one.state.create_network(new_network("web", &["10.1.0.0/24"])).unwrap();
    let other = one.another();
    for n in 0..20 {
        one.state.attach(node_id(1), &request(n, "web")).unwrap();
        // A memory of before would say that there is nothing to detach.
        other.state.detach(node_id(1), endpoint_id(n)).unwrap();
        one.state.catch_up().unwrap();
        assert_eq!(one.state.endpoint(endpoint_id(n)), None);
    }
}

#[test]
fn compaction_while_nothing_is_heard_is_survived() {
    let etcd = Etcd::start();
    let one = Manager::first(access(&etcd));
    let other = one.another();
    for n in 1..4 {
        one.state.add_node(node(n)).unwrap();
        let head: serde_json::Value =
            serde_json::from_str(&etcd.ctl(&["endpoint", "status", "-w", "json"])).unwrap();
        etcd.ctl(&["compact", &head[0]["Status"]["header"]["revision"].to_string()]);
    }
    assert!(eventually(|| other.version() == one.version()));
    other.state.remove_node(node_id(3), 1000, Takes::Nothing).unwrap();
    assert!(eventually(|| one.state.node(node_id(3)).is_none()));
}

#[test]
fn etcd_that_is_away_refuses_changes_and_keeps_what_was_read_and_comes_back_by_itself() {
    let mut etcd = Etcd::start();
    let one = Manager::first(access(&etcd));
    let other = one.another();
    one.state.add_node(node(1)).unwrap();
    etcd.kill(0);
    let version = one.version();
    let reachable = one.state.reachable();
    assert!(eventually(|| !*reachable.borrow()), "nobody noticed");
    for manager in [&one, &other] {
        let refused = manager.state.create_network(new_network("web", &["10.1.0.0/24"])).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        assert!(refused.to_string().contains("nothing was changed"), "{refused}");
    }
    // Nothing is acknowledged that was only guessed, and a session may begin all the same.
    assert!(one.state.detach(node_id(1), endpoint_id(1)).is_err());
    one.state.update_node(node_id(1), node(1).advertise, node(1).data, 1500).unwrap();
    assert_eq!((one.version(), one.state.nodes().len()), (version, 1));
    etcd.restart(0);
    etcd.wait();
    assert!(eventually(|| *reachable.borrow()), "it is not noticed that etcd is back");
    one.state.create_network(new_network("web", &["10.1.0.0/24"])).unwrap();
    assert!(eventually(|| other.state.inspect(&name("web")).is_ok()), "the watch is not taken up again");
}

#[test]
fn changes_under_way_while_etcd_is_killed_are_made_or_not_and_never_said_wrongly() {
    let mut etcd = Etcd::start();
    let one = Manager::first(access(&etcd));
    let state = &one.state;
    state.add_node(node(1)).unwrap();
    state.create_network(new_network("web", &["10.1.0.0/24"])).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut acknowledged, mut open) = (BTreeSet::new(), BTreeSet::new());
            for n in 0.. {
                if done.load(std::sync::atomic::Ordering::Relaxed) || n == 250 {
                    break;
                }
                match state.attach(node_id(1), &request(n, "web")) {
                    Ok(_) => drop(acknowledged.insert(endpoint_id(n))),
                    Err(error) if error.to_string().contains("nothing was changed") => {}
                    Err(StateError::Store(StoreError::Etcd(EtcdError::Unsettled { .. }))) => {
                        open.insert(endpoint_id(n));
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            (acknowledged, open)
        });
        for _ in 0..6 {
            std::thread::sleep(Duration::from_millis(rand::random_range(0..150)));
            etcd.kill(0);
            etcd.restart(0);
            etcd.wait();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let (acknowledged, open) = writer.join().unwrap();
        let reader = one.another();
        let there: BTreeSet<_> = reader
            .state
            .inspect(&name("web"))
            .unwrap()
            .endpoints
            .iter()
            .map(|endpoint| endpoint.id)
            .collect();
        assert!(acknowledged.len() > 6, "hardly anything was done: {}", acknowledged.len());
        assert!(acknowledged.is_subset(&there), "lost: {:?}", acknowledged.difference(&there));
        let more: BTreeSet<_> = there.difference(&acknowledged).copied().collect();
        assert!(more.is_subset(&open), "made, and said not to be: {:?}", more.difference(&open));
    });
}

#[test]
fn change_of_more_rows_than_etcd_takes_in_one_list_is_one_transaction() {
    let one = Manager::first(access(etcd()));
    one.state.add_node(node(1)).unwrap();
    one.state.add_node(node(2)).unwrap();
    one.state.create_network(new_network("web", &["10.1.0.0/22"])).unwrap();
    for n in 0..400 {
        one.state.attach(node_id(2), &request(n, "web")).unwrap();
    }
    let version = one.version();
    one.state.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    assert_eq!(one.version(), version + 1);
    assert_eq!(settled(&one.another().state), settled(&one.state));
}

#[test]
fn etcd_that_takes_a_change_and_says_nothing_is_given_up_before_agents_give_up_their_manager() {
    // Its kernel answers for it.
    let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("etcd://{}", hung.local_addr().unwrap()).parse().unwrap();
    let access = EtcdAccess { address, ca_pem: None, client_pem: None, user: None };
    let rows = ClusterRows::over(&SharedStore::new(access)).unwrap();
    rows.found(ClusterId::from_entropy([7; 16]));
    let begin = boot_time();
    let given_up = rows.commit(Revision::NOTHING, &Batch::default(), None).unwrap_err();
    assert!(boot_time().since(begin) < Duration::from_secs(13), "{:?}", boot_time().since(begin));
    assert!(given_up.to_string().contains("it is not known yet whether it was made"), "{given_up}");
}

#[test]
fn change_whose_answer_was_lost_is_settled_though_another_has_the_turn() {
    let sound = access(etcd());
    let (_hung, both) = behind_hung_member(&sound);
    let [one, other] = [both, sound].map(|access| ClusterRows::over(&SharedStore::new(access)).unwrap());
    for rows in [&one, &other] {
        rows.found(ClusterId::from_entropy([7; 16]));
    }
    let at = other.commit(Revision::NOTHING, &Batch::default(), None).unwrap();
    let _turn = other.take_turn(LONG).unwrap();
    let begin = boot_time();
    one.commit(at, &Batch::default(), None).unwrap();
    assert!(boot_time().since(begin) < Duration::from_secs(4), "{:?}", boot_time().since(begin));
}

#[test]
fn member_that_starts_while_another_says_nothing_is_asked_again() {
    let mut etcd = Etcd::start();
    let sound = access(&etcd);
    let _founder = Manager::first(sound.clone());
    let (_hung, both) = behind_hung_member(&sound);
    let rows = ClusterRows::over(&SharedStore::new(both)).unwrap();
    etcd.kill(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| rows.look());
        // Until each has been asked as often as it is without hope.
        std::thread::sleep(Duration::from_secs(2));
        etcd.restart(0);
        // That it is of another key is an answer.
        let refused = reading.join().unwrap().unwrap_err();
        assert!(matches!(refused, StoreError::Etcd(EtcdError::Taken { .. })), "{refused}");
    });
}

#[test]
fn prefix_of_another_cluster_is_refused_and_left_alone() {
    let access = access(etcd());
    let one = Manager::first(access.clone());
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.put_shared_store(&SharedStore::new(access)).unwrap();
    let refused = ClusterState::create(store.cluster_rows().unwrap(), new_cluster(), signer()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("choose another prefix"), "{refused}");
    one.state.catch_up().unwrap();
    one.state.add_node(node(1)).unwrap();
}

#[test]
fn nothing_that_is_written_can_be_read_in_etcd() {
    let etcd = Etcd::start();
    let one = Manager::first(access(&etcd));
    one.state.add_node(node(1)).unwrap();
    let mut new = new_network("name-of-the-network", &["10.1.0.0/24"]);
    new.labels.insert("label-of-the-network".to_owned(), "its-value".to_owned());
    one.state.create_network(new).unwrap();
    one.state.remove_network(&name("name-of-the-network")).unwrap();
    let bytes = etcd.bytes(0);
    let holds = |text: &str| memchr::memmem::find(&bytes, text.as_bytes()).is_some();
    assert!(holds("overlayd state"), "the head is in clear");
    let id = node_id(1);
    for secret in
        ["name-of-the-network", "label-of-the", "its-value", "host-1", id.as_str(), "192.0.2.1", "726f6f74"]
    {
        assert!(!holds(secret), "{secret}");
    }
}

#[test]
fn state_moves_from_the_file_to_etcd_as_it_is_and_goes_on_there() {
    let access = access(etcd());
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    cluster.attach(1, "web");
    let ClusterRows::File(store) = cluster.state.rows() else { panic!("it is in a file") };
    let before = cluster.settled();

    let moved = cluster.state.relocate(&store, SharedStore::new(access.clone())).unwrap();

    assert!(matches!(moved, Relocated::Moved { rows } if rows > 5), "{moved:?}");
    assert_eq!(cluster.settled(), before);
    cluster.attach(2, "web");
    assert_eq!(cluster.state.ca().unwrap().as_slice(), b"root and key");
    let shared = cluster.state.shared_store().unwrap();
    let other = Manager::with(&shared, |rows| ClusterState::open(rows, signer()).unwrap());
    assert_eq!(settled(&other.state), cluster.settled());
    other.state.attach(node_id(1), &request(3, "web")).unwrap();
    assert!(
        eventually(|| cluster.state.endpoint(endpoint_id(3)).is_some()),
        "changes of others are followed"
    );
    // There already: the access is exchanged, and another place is none.
    let again = cluster.state.relocate(&store, SharedStore::new(access)).unwrap();
    assert_eq!(again, Relocated::AccessChanged);
    cluster.attach(4, "web");
    let elsewhere = SharedStore::new(super::over_etcd::access(etcd()));
    let refused = cluster.state.relocate(&store, elsewhere).unwrap_err();
    assert!(refused.to_string().contains("cannot be moved from one etcd to another"), "{refused}");
    drop(store);
    let settled = {
        cluster.state.catch_up().unwrap();
        cluster.settled()
    };
    let dir = cluster.close();
    assert_eq!(TestCluster::open(dir).settled(), settled);
}

#[test]
fn backup_has_the_state_wherever_that_went_and_there_is_none_without() {
    let cluster = TestCluster::new();
    let ClusterRows::File(store) = cluster.state.rows() else { panic!("it is in a file") };
    cluster.state.relocate(&store, SharedStore::new(access(etcd()))).unwrap();
    let nodes = ClusterState::nodes_of(&cluster.state.backup(&store, 7).unwrap()).unwrap();
    assert_eq!(nodes.len(), cluster.state.nodes().len());

    // The file has none any more, and it is not heard of yet that it is elsewhere.
    let cluster = TestCluster::new();
    let ClusterRows::File(store) = cluster.state.rows() else { panic!("it is in a file") };
    store.put_shared_store(&SharedStore::new(access(etcd()))).unwrap();
    let refused = cluster.state.backup(&store, 7).unwrap_err();
    assert!(matches!(refused, StateError::NoCluster), "{refused}");
}

#[test]
fn copy_of_the_state_is_refused_while_that_is_there_and_taken_when_it_is_gone() {
    let mut original = Etcd::start();
    let one = Manager::first(access(&original));
    let shared = one.state.shared_store().unwrap();
    one.state.add_node(node(1)).unwrap();
    original.kill(0);
    original.keep(0);
    original.restart(0);
    original.wait();
    let copy = original.copy_of_kept();
    let address = shared.access.address.to_string().replace(&original.url(), &copy.url());
    let copied = SharedStore::new(EtcdAccess { address: address.parse().unwrap(), ..shared.access.clone() });
    assert!(eventually(|| one.state.catch_up().is_ok()), "it is back");

    let refused = one.state.relocate(&one.store, copied.clone()).unwrap_err();
    assert!(refused.to_string().contains("holds a copy"), "{refused}");
    assert_eq!(one.store.shared_store().unwrap().as_ref(), Some(&shared));
    let same = one.state.relocate(&one.store, SharedStore::new(shared.access.clone())).unwrap();
    assert_eq!(same, Relocated::AccessChanged);
    one.state.add_node(node(2)).unwrap();

    original.kill(0);
    assert_eq!(one.state.relocate(&one.store, copied).unwrap(), Relocated::AccessChanged);
    one.state.catch_up().unwrap();
    assert_eq!(one.state.nodes().len(), 1, "what the copy is older than is gone");
    one.state.add_node(node(3)).unwrap();
}

#[test]
fn state_stays_in_the_file_where_etcd_is_away_or_holds_another_cluster() {
    let taken = access(etcd());
    let other = Manager::with(&SharedStore::new(taken.clone()), |rows| {
        let new = NewCluster { id: ClusterId::from_entropy([8; 16]), ..new_cluster() };
        ClusterState::create(rows, new, signer()).unwrap()
    });
    let away = EtcdAccess { address: "etcd://127.0.0.1:1".parse().unwrap(), ..taken.clone() };
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    let ClusterRows::File(store) = cluster.state.rows() else { panic!("it is in a file") };
    for (access, words) in [(away, "cannot be reached"), (taken, "choose another prefix")] {
        let refused = cluster.state.relocate(&store, SharedStore::new(access)).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        assert_eq!(store.shared_store().unwrap(), None);
        assert!(matches!(cluster.state.rows(), ClusterRows::File(_)));
    }
    cluster.attach(1, "web");
    other.state.catch_up().unwrap();
    other.state.add_node(node(1)).unwrap();
    assert!(other.store.shared_store().unwrap().is_some());
}

/// The same etcd behind a member whose kernel alone answers, for as long as it is kept.
fn behind_hung_member(sound: &EtcdAccess) -> (std::net::TcpListener, EtcdAccess) {
    let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let first = format!("etcd://{},", hung.local_addr().unwrap());
    let address = sound.address.to_string().replace("etcd://", &first).parse().unwrap();
    (hung, EtcdAccess { address, ..sound.clone() })
}

/// Signs so long that a membership is too long to be recorded: the other managers have to read all rows.
fn long_signer() -> Box<SignPayload> {
    let signature = Signature { certificate: "certificate".repeat(6000), signature: "signature".to_owned() };
    Box::new(move |_| Ok(signature.clone()))
}

/// What a manager that died with the turn has left.
fn dead_turn_in(access: &EtcdAccess) -> String {
    let address = access.address.to_string();
    format!("{}/turns/dead", address.rsplit('/').next().unwrap())
}

/// Patience that does not end.
const LONG: Duration = Duration::from_secs(60);

pub(super) fn eventually(condition: impl FnMut() -> bool) -> bool {
    crate::lab::eventually(Duration::from_secs(10), condition)
}
