//! An etcd that is put back to what it was before, against what nodes have heard since.

use super::etcd::Etcd;
use super::over_etcd::access;
use super::sharing::{Manager, eventually};
use super::*;
use crate::cluster::View;
use crate::id::Epoch;
use crate::membership::Removals;

#[test]
fn state_that_was_put_back_goes_on_beyond_what_nodes_have_heard_and_is_told_to_them_as_a_whole() {
    let mut lab = Lab::new();
    let (one, other) = (lab.one.state.clone(), lab.other.state.clone());
    let mut sessions = [&one, &other].map(|state| (state, View::default(), Told::default()));
    one.attach(node_id(1), &request(1, "web")).unwrap();
    lab.keep();
    lab.change_much();
    other.catch_up().unwrap();
    for (state, view, told) in &mut sessions {
        *view = hear(state, node_id(1), told).unwrap().apply(view).unwrap();
        assert_eq!(view.networks.len(), 2);
    }
    let before = Numbers::of(&one);

    lab.etcd.go_back(0);
    other.attach(node_id(1), &request(90, "still")).unwrap();
    assert!(eventually(|| Numbers::of(&one).version > before.version && one.version() == other.version()));
    let after = Numbers::of(&one);
    assert!(after.is_beyond(&before), "{after:?} {before:?}");
    assert_eq!(settled(&one), settled(&other));
    // Each of them knows of it, and one does it for both.
    assert_eq!(lab.changes(), lab.kept + 2, "and the change that was asked for");
    assert_eq!(one.node(node_id(3)), None, "it was removed since");
    assert!(other.model().removed.contains_key(&node_id(3)));
    for (state, view, told) in &mut sessions {
        *view = hear(state, node_id(1), told).unwrap().apply(view).unwrap();
        assert_eq!(*view, state.view_for(node_id(1)));
    }
    // And so once more, to the same.
    lab.etcd.go_back(0);
    let before = after;
    assert!(eventually(|| Numbers::of(&one).is_beyond(&before) && Numbers::of(&other).is_beyond(&before)));
    assert!(eventually(|| settled(&one) == settled(&other)));
}

#[test]
fn state_that_was_put_back_while_no_manager_ran_is_known_by_what_was_written_down() {
    let mut lab = Lab::new();
    lab.keep();
    lab.change_much();
    let (before, shared) = (Numbers::of(&lab.one.state), lab.one.state.shared_store().unwrap());
    let Lab { mut etcd, one, other, .. } = lab;
    drop((one, other));
    etcd.go_back(0);
    let start = || Manager::with(&shared, |rows| ClusterState::open(rows, signer()).unwrap());
    let (started, late) = (start(), start());
    let state = &started.state;
    let now = state.version();
    assert!(now.get() < before.version);
    state.recall(now, None).unwrap();
    assert_eq!(state.version(), now, "nothing is lost");
    let removals = Removals { epoch: Epoch::new(1), nodes: [node_id(3)].into(), demoted: [].into() };
    state.recall(Version::new(before.version), Some(removals)).unwrap();
    assert_eq!(state.node(node_id(3)), None, "it was removed since");
    let after = Numbers::of(state);
    assert!(after.is_beyond(&before), "{after:?} {before:?}");
    // Another one that starts finds it done.
    late.state.catch_up().unwrap();
    late.state.recall(Version::new(before.version), None).unwrap();
    assert_eq!(Numbers::of(&late.state), after);
}

#[test]
fn high_water_mark_is_of_this_machine_and_forgotten_with_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.put_high_water(Version::new(70)).unwrap();
    assert_eq!(store.high_water().unwrap(), Some(Version::new(70)));
    store.put_identity(&"who I am").unwrap();
    let backup = store.backup_of(&store.clone().into(), 7).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let restored = Store::create(elsewhere.path()).unwrap();
    restored.take_over(&backup).unwrap();
    assert_eq!(restored.high_water().unwrap(), None);
    store.forget_shared_store().unwrap();
    assert_eq!(store.high_water().unwrap(), None);
}

/// Two managers of three nodes and two networks, in an etcd of their own.
struct Lab {
    etcd: Etcd,
    one: Manager,
    other: Manager,
    head: String,
    /// Changes in what etcd is put back to.
    kept: u64,
}

impl Lab {
    fn new() -> Self {
        let etcd = Etcd::start();
        let access = access(&etcd);
        let head = format!("{}/head", access.address.to_string().rsplit('/').next().unwrap());
        let one = Manager::first(access);
        for n in 1..4 {
            let role = if n == 3 { Role::Worker } else { Role::Manager };
            one.state.add_node(Node { role, ..node(n) }).unwrap();
        }
        for (network, subnet) in [("web", "10.1.0.0/24"), ("still", "10.2.0.0/24")] {
            one.state.create_network(new_network(network, &[subnet])).unwrap();
        }
        let other = one.another();
        Self { etcd, one, other, head, kept: 0 }
    }

    /// What etcd is put back to.
    fn keep(&mut self) {
        self.kept = self.changes();
        self.etcd.kill(0);
        self.etcd.keep(0);
        self.etcd.restart(0);
        self.etcd.wait();
    }

    /// The changes that there were, all told.
    fn changes(&self) -> u64 {
        let head = self.etcd.ctl(&["get", &self.head, "-w", "json"]);
        let head: serde_json::Value = serde_json::from_str(&head).unwrap();
        head["kvs"][0]["version"].as_u64().unwrap()
    }

    fn change_much(&self) {
        let state = &self.one.state;
        state.attach(node_id(1), &request(2, "still")).unwrap();
        for n in 10..15 {
            state.attach(node_id(2), &request(n, "web")).unwrap();
            state.detach(node_id(2), endpoint_id(n)).unwrap();
        }
        state.attach(node_id(1), &request(20, "web")).unwrap();
        state.remove_node(node_id(3), 1000, Takes::Endpoints).unwrap();
    }
}

/// All that nodes keep the newest of.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    version: u64,
    memberships: Vec<Epoch>,
    removals: Option<Epoch>,
}

impl Numbers {
    fn of(state: &ClusterState) -> Self {
        let model = state.model();
        let memberships = model.networks.values().filter_map(|network| network.membership.as_ref());
        Self {
            version: model.counters.version.get(),
            memberships: memberships.map(|row| row.epoch).collect(),
            removals: model.removals.as_ref().map(|row| row.epoch),
        }
    }

    fn is_beyond(&self, before: &Self) -> bool {
        self.version > before.version
            && self.memberships.len() == before.memberships.len()
            && self.memberships.iter().zip(&before.memberships).all(|(after, before)| after > before)
            && self.removals > before.removals
    }
}
