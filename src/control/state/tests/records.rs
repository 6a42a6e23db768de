//! What managers take over from the records of each other's changes, and when they read all rows instead.

use proptest::prelude::*;

use super::etcd::Etcd;
use super::histories::{perform, step};
use super::over_etcd::{access, etcd};
use super::rotation::{NEW, new_rotation};
use super::sharing::{Manager, eventually};
use super::*;
use crate::cluster::View;
use crate::control::state::changes::Memory;
use crate::control::state::model::{COUNTERS, ONLY, Record};
use crate::control::store::{Batch, EtcdAccess};

/// A cluster with an endpoint, and a second manager of it.
struct Pair {
    one: Manager,
    other: Manager,
    /// What the keys of its rows begin with.
    prefix: String,
}

impl Pair {
    fn new() -> Self {
        let access = access(etcd());
        let prefix = prefix(&access);
        let one = Manager::first(access);
        for n in 1..4 {
            one.state.add_node(node(n)).unwrap();
        }
        one.state.create_network(new_network("web", &["10.1.0.0/20"])).unwrap();
        one.state.attach(node_id(1), &request(1, "web")).unwrap();
        let other = one.another();
        Self { one, other, prefix }
    }

    /// From now on nobody can read all rows.
    fn spoil_rows(&self) {
        etcd().ctl(&["put", &format!("{}/rows/spoiled", self.prefix), "spoiled"]);
        let store = self.one.state.rows();
        assert!(ClusterState::open(store, signer()).is_err(), "all rows can be read");
    }

    fn mend_rows(&self) {
        etcd().ctl(&["del", &format!("{}/rows/spoiled", self.prefix)]);
    }

    fn log(&self) -> Vec<String> {
        let keys = etcd().ctl(&["get", "--prefix", "--keys-only", &format!("{}/last/changes/", self.prefix)]);
        keys.split_whitespace().map(str::to_owned).collect()
    }
}

#[test]
fn changes_of_another_are_taken_in_one_by_one_without_reading_all_rows() {
    let pair = Pair::new();
    pair.spoil_rows();
    let (one, other) = (&pair.one.state, &pair.other.state);
    let known = other.version();
    let touched = |state: &ClusterState| {
        let networks = state.model().networks.clone();
        let touched =
            networks.into_iter().map(|(id, network)| (id, network.log.after(known).map(Vec::from_iter)));
        touched.collect::<Vec<_>>()
    };
    let follows = |what: &str| {
        assert!(eventually(|| other.version() == one.version()), "{what}");
        assert_eq!(settled(one), settled(other), "{what}");
        // It made the same changes in the same order, so that nodes are told the same by both.
        assert_eq!(touched(one), touched(other), "{what}");
    };
    one.attach(node_id(2), &request(2, "web")).unwrap();
    follows("an endpoint of a new member");
    one.detach(node_id(2), endpoint_id(2)).unwrap();
    follows("an endpoint that is gone");
    one.create_network(new_network("more", &["10.2.0.0/24"])).unwrap();
    one.remove_network(&name("more")).unwrap();
    one.rotate_token(Role::Worker, [9; 16]).unwrap();
    one.update_node(node_id(3), node(9).advertise, node(9).data, 1400).unwrap();
    follows("several at once");
    one.demote(&node(3).name).unwrap();
    one.remove_node(node_id(2), 1000, Takes::Endpoints).unwrap();
    follows("nodes");
    one.begin_rotation(new_rotation(NEW)).unwrap();
    follows("the rotation of the root");
    // And who has to take them in before its own is made does so too.
    one.attach(node_id(1), &request(10, "web")).unwrap();
    other.attach(node_id(1), &request(11, "web")).unwrap();
    one.detach(node_id(1), endpoint_id(11)).unwrap();
    follows("changes of both");
    pair.mend_rows();
    assert_eq!(settled(other), settled(&pair.one.another().state), "memory and rows differ");
}

#[test]
fn records_that_are_missing_or_no_use_are_made_up_for_by_reading_all_rows() {
    let pair = Pair::new();
    let (one, other) = (&pair.one.state, &pair.other.state);
    // Of three records, those that are gone, or are something else.
    let spoilers: [(&[usize], _); 5] =
        [(&[0, 1, 2], None), (&[0], None), (&[1], None), (&[2], None), (&[1], Some("no record"))];
    let mut n = 100;
    for (what, instead) in spoilers {
        let late = ClusterState::open(other.rows(), signer()).unwrap();
        let memory = late.inner.changing.lock().unwrap();
        let known = pair.log().len();
        for _ in 0..3 {
            n += 1;
            one.attach(node_id(1), &request(n, "web")).unwrap();
        }
        let log = pair.log().split_off(known);
        for key in what.iter().map(|index| &log[*index]) {
            etcd().ctl(&instead.map_or(vec!["del", key], |instead| vec!["put", key, instead]));
        }
        drop(memory);
        late.catch_up().unwrap();
        assert_eq!(settled(&late), settled(one), "{what:?} {instead:?}");
        // From there on records are of use again.
        let memory = late.inner.changing.lock().unwrap();
        one.attach(node_id(1), &request(1000 + n, "web")).unwrap();
        pair.spoil_rows();
        drop(memory);
        late.catch_up().unwrap();
        assert_eq!(settled(&late), settled(one), "after {what:?} {instead:?}");
        pair.mend_rows();
    }
}

#[test]
fn managers_that_keep_no_records_are_followed_and_follow() {
    let pair = Pair::new();
    let (one, other) = (&pair.one.state, &pair.other.state);
    // Such a one names no change in the head.
    let forget = || {
        let key = format!("{}/head", pair.prefix);
        let head = etcd().ctl(&["get", "--print-value-only", &key]);
        let mut head: serde_json::Value = serde_json::from_str(&head).unwrap();
        let version = head["version"].as_u64().unwrap();
        for part in ["change", "version"] {
            assert!(head.as_object_mut().unwrap().remove(part).is_some());
        }
        etcd().ctl(&["put", &key, &head.to_string()]);
        etcd().ctl(&["del", &format!("{}/last/changes/{version:03}", pair.prefix)]);
    };
    for n in 10..14 {
        let late = ClusterState::open(other.rows(), signer()).unwrap();
        let memory = late.inner.changing.lock().unwrap();
        one.attach(node_id(3), &request(n + 200, "web")).unwrap();
        one.attach(node_id(1), &request(n, "web")).unwrap();
        forget();
        other.attach(node_id(2), &request(n + 100, "web")).unwrap();
        one.detach(node_id(1), endpoint_id(n)).unwrap();
        drop(memory);
        for follower in [&late, other] {
            follower.catch_up().unwrap();
            assert_eq!(settled(one), settled(follower));
        }
        assert_eq!(settled(one), settled(&pair.one.another().state), "memory and rows differ");
    }
}

#[test]
fn etcd_that_goes_back_and_makes_other_changes_is_read_anew() {
    let mut etcd = Etcd::start();
    let access = access(&etcd);
    let head = format!("{}/head", prefix(&access));
    let one = Manager::first(access);
    one.state.add_node(node(1)).unwrap();
    one.state.create_network(new_network("web", &["10.1.0.0/20"])).unwrap();
    let attach = |state: &ClusterState, n| drop(state.attach(node_id(1), &request(n, "web")).unwrap());
    let changed_at = |etcd: &Etcd| {
        let head: serde_json::Value = serde_json::from_str(&etcd.ctl(&["get", &head, "-w", "json"])).unwrap();
        head["kvs"][0]["mod_revision"].as_u64().unwrap()
    };
    let (mut ours, mut theirs) = (10, 100);
    // As many, and one more, whose record is where the next one of the manager that looks away would be.
    for more in [0, 1] {
        etcd.kill(0);
        etcd.keep(0);
        etcd.restart(0);
        etcd.wait();
        for _ in 0..3 {
            ours += 1;
            attach(&one.state, ours);
        }
        let known = changed_at(&etcd);
        let memory = one.state.inner.changing.lock().unwrap();
        etcd.go_back(0);
        let other = one.another();
        for _ in 0..3 + more {
            theirs += 1;
            attach(&other.state, theirs);
        }
        assert_eq!(changed_at(&etcd), known + more, "{more} more");
        if more == 0 {
            // A change that was decided on what is no more is not made.
            let rows = one.state.rows();
            let made = rows.commit(memory.revision, &Batch::default(), None);
            assert!(matches!(made, Err(CommitError::Conflict)), "{made:?}");
        }
        drop(memory);
        one.state.catch_up().unwrap();
        assert_eq!(settled(&one.state), settled(&other.state), "{more} more");
    }
}

#[test]
fn record_that_contradicts_the_state_is_made_up_for_by_reading_all_rows() {
    let pair = Pair::new();
    let (one, other) = (&pair.one.state, &pair.other.state);
    let memory = *one.inner.changing.lock().unwrap();
    let counters = Counters { version: Version::new(one.version().get() + 1), ..one.model().counters };
    let network = one.networks()[0].network.id;
    let changes = [
        Change::PutNode(node(9)),
        Change::PutLastGiven(network, Vec::new()),
        Change::DropNetwork(network),
        Change::DropNetwork(network),
    ];
    let mut batch = Batch::default();
    changes[0].write(&mut batch).unwrap();
    batch.put(&COUNTERS, ONLY, &counters).unwrap();
    batch.record(counters.version, &Record::of(counters, &changes)).unwrap();
    one.rows().commit(memory.revision, &batch, None).unwrap();
    for state in [one, other] {
        state.catch_up().unwrap();
        assert_eq!(settled(state), settled(&pair.one.another().state));
        assert_eq!(state.node(node_id(9)), Some(node(9)));
    }
}

#[test]
fn emptied_etcd_is_refused_by_a_manager_that_knows_nothing_for_certain() {
    let pair = Pair::new();
    let one = &pair.one.state;
    *one.inner.changing.lock().unwrap() = Memory::UNKNOWN;
    etcd().ctl(&["del", "--prefix", &format!("{}/", pair.prefix)]);
    let refused = one.add_node(node(9)).unwrap_err();
    assert!(refused.to_string().contains("there is nothing"), "{refused}");
    assert!(etcd().ctl(&["get", "--prefix", "--keys-only", &format!("{}/", pair.prefix)]).trim().is_empty());
}

#[test]
fn so_many_changes_are_recorded_and_none_that_is_too_long() {
    let pair = Pair::new();
    let (one, other) = (&pair.one.state, &pair.other.state);
    let late = [(); 2].map(|()| ClusterState::open(other.rows(), signer()).unwrap());
    let mut n = 1000;
    let mut behind = |late: &ClusterState, changes| {
        late.catch_up().unwrap();
        let memory = late.inner.changing.lock().unwrap();
        for _ in 0..changes {
            n += 1;
            one.attach(node_id(1), &request(n, "web")).unwrap();
        }
        pair.spoil_rows();
        drop(memory);
        late.catch_up()
    };
    // Each of these ends elsewhere in the ring.
    for changes in [100, 1, 256, 200, 256] {
        behind(&late[0], changes).unwrap_or_else(|error| panic!("{changes} changes: {error}"));
        pair.mend_rows();
        assert_eq!(settled(&late[0]), settled(one), "{changes} changes");
    }
    assert!(behind(&late[1], 257).is_err(), "where does it know all of them from?");
    pair.mend_rows();
    late[0].catch_up().unwrap();
    pair.spoil_rows();
    one.remove_node(node_id(1), 1000, Takes::Endpoints).unwrap();
    assert!(late[0].catch_up().is_err(), "it is too long for a record");
    // What follows it is no use without it.
    one.add_node(node(9)).unwrap();
    assert!(late[0].catch_up().is_err(), "something is missing");
    pair.mend_rows();
    for late in late {
        late.catch_up().unwrap();
        assert_eq!(settled(&late), settled(one));
    }
    assert_eq!(pair.log().len(), 256);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 20, ..ProptestConfig::default() })]
    #[test]
    fn random_histories_of_three_managers_are_the_same_to_each_of_them_and_to_the_nodes(
        steps in prop::collection::vec((step(), 0usize..3, any::<bool>()), 1..40)
    ) {
        let pair = Pair::new();
        let managers = [&pair.one, &pair.other, &pair.one.another()];
        let mut sessions = [(); 3].map(|()| [(); 3].map(|()| (View::default(), Told::default())));
        for (step, which, reads) in steps {
            // What was refused has changed nothing, which is as good a step.
            let _ = perform(&managers[which].state, &step);
            if reads {
                let reader = &managers[(which + 1) % 3].state;
                reader.catch_up().unwrap();
                for (n, (view, told)) in (1..).zip(&mut sessions[(which + 1) % 3]) {
                    if let Some(update) = hear(reader, node_id(n), told) {
                        *view = update.apply(view).unwrap();
                    }
                    let whole = reader.view_for(node_id(n));
                    prop_assert_eq!(&View { version: whole.version, ..view.clone() }, &whole);
                }
            }
        }
        let truth = settled(&pair.one.another().state);
        for manager in managers {
            manager.state.catch_up().unwrap();
            prop_assert_eq!(&settled(&manager.state), &truth);
        }
    }
}

fn prefix(access: &EtcdAccess) -> String {
    access.address.to_string().rsplit('/').next().unwrap().to_owned()
}
