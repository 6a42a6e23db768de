//! Random histories: the state against a naive model of it, and against itself after a restart.

use super::*;
use crate::cluster::Availability;
use proptest::prelude::*;
use std::net::IpAddr;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Create(usize),
    Remove(usize),
    Attach {
        node: u8,
        endpoint: u32,
        network: usize,
        ip: Option<u8>,
    },
    Detach {
        node: u8,
        endpoint: u32,
    },
    RemoveNode(u8),
    /// Gives the node the label that network 1 asks for, or takes it.
    Label {
        node: u8,
        has: bool,
    },
    Availability {
        node: u8,
        availability: Availability,
    },
    Rotate([u8; 16]),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_history_ends_as_the_naive_model_says_and_survives_a_restart_after_each_step(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut cluster = TestCluster::in_memory();
        cluster.state.add_node(Node { role: Role::Worker, ..node(3) }).unwrap();
        let mut naive = Naive { nodes: [1, 2, 3].into(), ..Naive::default() };
        for step in steps {
            let version = cluster.state.version();
            let before = cluster.settled();
            let outcome = naive.expect(&step);
            let result = perform(&cluster.state, &step);
            prop_assert_eq!(result.as_ref().err().map(StateError::kind), outcome, "{:?}: {:?}", step, result);
            naive.learn(&cluster.state);
            naive.check(&cluster.state)?;
            let after = cluster.settled();
            if result.is_err() {
                prop_assert_eq!(&before, &after, "{:?} left something", step);
            }
            prop_assert_eq!(before == after, version == cluster.state.version(), "{:?}: wrong version", step);
            cluster = TestCluster::open(cluster.close());
            prop_assert_eq!(after, cluster.settled(), "{:?} was forgotten", step);
        }
    }

    #[test]
    fn deltas_lead_to_the_view_that_a_snapshot_gives(steps in prop::collection::vec(step(), 1..40), told in any::<u64>()) {
        let cluster = TestCluster::in_memory();
        cluster.state.add_node(Node { role: Role::Worker, ..node(3) }).unwrap();
        let mut sessions: Vec<_> = (1..=3).map(|n| (node_id(n), View::default(), Told::default())).collect();
        for (i, step) in steps.iter().enumerate() {
            // What was refused has changed nothing, which is as good a step.
            let _ = perform(&cluster.state, step);
            for (n, (node, view, heard)) in sessions.iter_mut().enumerate() {
                // Some sessions are slow and hear of several changes at once.
                if told >> ((i * 3 + n) % 64) & 1 == 1 {
                    if let Some(update) = hear(&cluster.state, *node, heard) {
                        *view = update.apply(view).unwrap();
                    }
                    let whole = cluster.state.view_for(*node);
                    // Of what is no news to it, a node does not hear the version either.
                    prop_assert_eq!(&View { version: whole.version, ..view.clone() }, &whole);
                }
            }
        }
    }
}

/// What ought to be, without any index.
#[derive(Debug, Default)]
struct Naive {
    nodes: BTreeSet<u8>,
    labelled: BTreeSet<u8>,
    drained: BTreeSet<u8>,
    networks: BTreeSet<usize>,
    endpoints: BTreeMap<u32, Held>,
    epochs: BTreeMap<usize, (u64, BTreeSet<NodeId>)>,
}

#[derive(Debug, Clone)]
struct Held {
    node: u8,
    network: usize,
    /// Unknown until the state has chosen one.
    ip: Option<IpAddr>,
}

impl Naive {
    /// Takes the step and says with which kind of error the state must refuse it, if it must.
    fn expect(&mut self, step: &Step) -> Option<ErrorKind> {
        match *step {
            Step::Create(n) => (!self.networks.insert(n)).then_some(ErrorKind::Conflict),
            Step::Remove(n) => {
                if !self.networks.contains(&n) {
                    return Some(ErrorKind::NotFound);
                }
                if self.endpoints.values().any(|held| held.network == n) {
                    return Some(ErrorKind::Conflict);
                }
                self.networks.remove(&n);
                self.epochs.remove(&n);
                None
            }
            Step::Attach { node, endpoint, network, ip } => self.expect_attach(node, endpoint, network, ip),
            Step::Detach { node, endpoint } => {
                if !self.nodes.contains(&node) {
                    return Some(ErrorKind::Denied);
                }
                match self.endpoints.get(&endpoint) {
                    Some(held) if held.node != node => Some(ErrorKind::Denied),
                    Some(_) | None => {
                        self.endpoints.remove(&endpoint);
                        None
                    }
                }
            }
            Step::RemoveNode(node) => {
                if !self.nodes.contains(&node) {
                    return Some(ErrorKind::NotFound);
                }
                if node == 1 {
                    return Some(ErrorKind::Conflict);
                }
                self.nodes.remove(&node);
                self.endpoints.retain(|_, held| held.node != node);
                None
            }
            Step::Label { node, .. } | Step::Availability { node, .. } if !self.nodes.contains(&node) => {
                Some(ErrorKind::NotFound)
            }
            Step::Label { node, has: true } => {
                self.labelled.insert(node);
                None
            }
            Step::Label { node, has: false } => {
                self.endpoints.retain(|_, held| (held.node, held.network) != (node, LABELLED));
                (!self.labelled.remove(&node)).then_some(ErrorKind::NotFound)
            }
            Step::Availability { node, availability: Availability::Drain } => {
                self.drained.insert(node);
                None
            }
            Step::Availability { node, availability: Availability::Active } => {
                self.drained.remove(&node);
                None
            }
            Step::Rotate(_) => None,
        }
    }

    fn expect_attach(&mut self, node: u8, id: u32, network: usize, ip: Option<u8>) -> Option<ErrorKind> {
        let ip = ip.map(|last| address(network, last));
        if !self.nodes.contains(&node) {
            return Some(ErrorKind::Denied);
        }
        if let Some(held) = self.endpoints.get(&id) {
            if held.node != node {
                return Some(ErrorKind::Denied);
            }
            let same = held.network == network && (ip.is_none() || ip == held.ip);
            return (!same).then_some(ErrorKind::Conflict);
        }
        if !self.networks.contains(&network) {
            return Some(ErrorKind::NotFound);
        }
        if network == LABELLED && !self.labelled.contains(&node) {
            return Some(ErrorKind::Barred);
        }
        if self.drained.contains(&node) {
            return Some(ErrorKind::Conflict);
        }
        let used: Vec<_> = self.endpoints.values().filter(|h| h.network == network).map(|h| h.ip).collect();
        let reserved = [address(network, 0), address(network, 7)];
        match ip {
            Some(ip) if reserved.contains(&ip) => return Some(ErrorKind::Invalid),
            Some(ip) if used.contains(&Some(ip)) => return Some(ErrorKind::Conflict),
            Some(_) => {}
            None if (1..7).all(|last| used.contains(&Some(address(network, last)))) => {
                return Some(ErrorKind::Unavailable);
            }
            None => {}
        }
        self.endpoints.insert(id, Held { node, network, ip });
        None
    }

    /// Takes note of the addresses that the state has chosen.
    fn learn(&mut self, state: &ClusterState) {
        for (id, held) in &mut self.endpoints {
            if held.ip.is_none() {
                held.ip = state.endpoint(endpoint_id(*id)).map(|e| e.addresses[0].addr());
            }
        }
    }

    fn check(&mut self, state: &ClusterState) -> Result<(), TestCaseError> {
        let names: BTreeSet<_> = state.networks().into_iter().map(|n| n.network.name).collect();
        prop_assert_eq!(names, self.networks.iter().map(|&n| network(n)).collect());
        for &n in &self.networks {
            let view = state.inspect(&network(n)).unwrap();
            let mine = self.endpoints.iter().filter(|(_, held)| held.network == n);
            let mut expected: Vec<_> =
                mine.map(|(&id, held)| (endpoint_id(id), node_id(held.node), held.ip.unwrap())).collect();
            expected.sort();
            let found: Vec<_> =
                view.endpoints.iter().map(|e| (e.id, e.node, e.addresses[0].addr())).collect();
            prop_assert_eq!(found, expected.clone());
            let addresses: BTreeSet<_> = expected.iter().map(|(.., ip)| *ip).collect();
            prop_assert_eq!(addresses.len(), expected.len(), "an address was given twice");
            let macs: BTreeSet<_> = view.endpoints.iter().map(|e| e.mac).collect();
            prop_assert_eq!(macs.len(), expected.len(), "a MAC address was given twice");

            let members: BTreeSet<_> = expected.iter().map(|(_, node, _)| *node).collect();
            let signed: Membership = serde_json::from_str(&view.membership.payload).unwrap();
            prop_assert_eq!(&signed.nodes, &members);
            let before = self.epochs.insert(n, (signed.epoch.get(), members.clone()));
            let epoch = before.map_or(1, |(epoch, nodes)| epoch + u64::from(nodes != members));
            prop_assert_eq!(signed.epoch.get(), epoch);
            for node in 1..=3 {
                let told = state.view_for(node_id(node)).networks.contains_key(&view.network.id);
                prop_assert_eq!(told, members.contains(&node_id(node)));
            }
        }
        Ok(())
    }
}

pub(super) fn perform(state: &ClusterState, step: &Step) -> Result<(), StateError> {
    match *step {
        Step::Create(n) => {
            let mut new = new_network(network(n).as_str(), &[&format!("10.1.{n}.0/29")]);
            if n == LABELLED {
                new.node_labels = label(true);
            }
            state.create_network(new).map(drop)
        }
        Step::Remove(n) => state.remove_network(&network(n)),
        Step::Attach { node, endpoint, network: n, ip } => {
            let mut request = request(endpoint, network(n).as_str());
            request.ips = ip.map(|last| address(n, last)).into_iter().collect();
            state.attach(node_id(node), &request).map(drop)
        }
        Step::Detach { node, endpoint } => state.detach(node_id(node), endpoint_id(endpoint)),
        Step::RemoveNode(node) => state.remove_node(node_id(node), 1000, Takes::Endpoints),
        Step::Label { node: n, has } => {
            let label_remove = label(!has).into_keys().collect();
            let change = ProfileChange { label_add: label(has), label_remove, ..ProfileChange::default() };
            state.change_profile(&node(n).name, &change).map(drop)
        }
        Step::Availability { node: n, availability } => {
            let change = ProfileChange { availability: Some(availability), ..ProfileChange::default() };
            state.change_profile(&node(n).name, &change).map(drop)
        }
        Step::Rotate(secret) => state.rotate_token(Role::Worker, secret),
    }
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let attach = (1u8..=3, 0u32..12, 0usize..2, prop::option::weighted(0.3, 0u8..8));
    prop_oneof![
        3 => (0usize..2).prop_map(Step::Create),
        1 => (0usize..2).prop_map(Step::Remove),
        16 => attach.prop_map(|(node, endpoint, network, ip)| Step::Attach { node, endpoint, network, ip }),
        4 => (1u8..=3, 0u32..12).prop_map(|(node, endpoint)| Step::Detach { node, endpoint }),
        1 => (1u8..=3).prop_map(Step::RemoveNode),
        4 => (1u8..=3, prop::bool::weighted(0.7)).prop_map(|(node, has)| Step::Label { node, has }),
        2 => (1u8..=3, prop::bool::weighted(0.7)).prop_map(|(node, takes)| {
            let availability = if takes { Availability::Active } else { Availability::Drain };
            Step::Availability { node, availability }
        }),
        1 => any::<[u8; 16]>().prop_map(Step::Rotate),
    ]
}

fn label(has: bool) -> BTreeMap<String, String> {
    has.then(|| ("zone".to_owned(), "a".to_owned())).into_iter().collect()
}

fn network(n: usize) -> NetworkName {
    name(&format!("net-{n}"))
}

fn address(network: usize, last: u8) -> IpAddr {
    format!("10.1.{network}.{last}").parse().unwrap()
}

/// The network that only labelled nodes may be in.
const LABELLED: usize = 1;
