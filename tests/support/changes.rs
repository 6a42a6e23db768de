//! Changes of a cluster by several at once, and what was acknowledged of them: what must be there after
//! the manager was killed, and what may be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use overlayd::api::types::{
    Call, ChangeNodeRequest, CreateNetworkRequest, InspectNetworkRequest, IssueTokenRequest,
    ListNetworksRequest, ListNodesRequest, ListTokensRequest, NodeChange, NodeUpdate, RemoveNetworkRequest,
    RemoveNodeRequest, RemoveTokenRequest, TokenRequest,
};
use overlayd::api::{Client, ClientError, ErrorKind as Kind};
use overlayd::cluster::{NodeProfile, Role, TokenState};
use overlayd::control::enrol::{EnrolError, EnrolRefusal};
use overlayd::control::rpc::messages::{Attach, Detach, ListNetworks};
use overlayd::control::rpc::{ErrorKind, ManagerError};
use overlayd::id::{EndpointId, Epoch, NetworkId};
use rand::seq::IteratorRandom;
use serde::Serialize;

use super::simulated::SimulatedNode;

/// Who changes a cluster with one manager: nodes, each its endpoints of the network `red`, and operators,
/// all at once.
pub(crate) struct Changers {
    manager: SocketAddr,
    operator: Client,
    nodes: Vec<SimulatedNode>,
    ledger: Mutex<Ledger>,
    is_over: AtomicBool,
    is_enough: AtomicBool,
}

impl Changers {
    /// Of a cluster as it is.
    pub(crate) async fn of(manager: SocketAddr, operator: Client, nodes: Vec<SimulatedNode>) -> Self {
        let Found { things, epochs } = Found::read(&operator).await;
        let ledger = Mutex::new(Ledger { known: things, epochs, ..Ledger::default() });
        Self {
            manager,
            operator,
            nodes,
            ledger,
            is_over: AtomicBool::default(),
            is_enough: AtomicBool::default(),
        }
    }

    /// Each goes on until a change of its own fails, as [`Self::end`] says that they may, or [`Self::stop`].
    pub(crate) async fn change_until_it_dies(&self) {
        let goes_on = || !self.is_enough.load(Ordering::Relaxed);
        let endpoints = self
            .nodes
            .iter()
            .map(|node| async move { while goes_on() && self.change_endpoint(node).await.is_ok() {} });
        tokio::join!(
            join_all(endpoints),
            async { while goes_on() && self.change_network().await.is_ok() {} },
            async { while goes_on() && self.change_guests().await.is_ok() {} },
            async { while goes_on() && self.rotate_token().await.is_ok() {} },
            async { while goes_on() && self.change_label().await.is_ok() {} },
        );
    }

    /// All is well: changes must not fail.
    pub(crate) fn begin(&self) {
        self.is_over.store(false, Ordering::Relaxed);
        self.is_enough.store(false, Ordering::Relaxed);
    }

    /// The manager, or what its state is in, is about to be killed.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// It was killed and started again, and whatever did not fail is enough.
    pub(crate) fn stop(&self) {
        self.is_enough.store(true, Ordering::Relaxed);
    }

    /// Waits until everybody is served again, and whatever was asked for before is done or not: a manager makes
    /// one change after the other.
    pub(crate) async fn settle(&self) {
        let last = TokenRequest { role: Role::Worker, rotate: true };
        while let Err(error) = self.operator.call(&last).await {
            assert!(lives_through(&error), "{error}");
            tokio::time::sleep(PAUSE).await;
        }
        for node in &self.nodes {
            while let Err(error) = node.client.list_networks(ListNetworks {}).await {
                assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Compares what the manager has, now that it was started again, with what it acknowledged.
    pub(crate) async fn check(&self) {
        let found = Found::read(&self.operator).await;
        self.ledger().check(found);
    }

    /// What there was to check.
    pub(crate) fn tally(&self) -> Tally {
        self.ledger().tally
    }

    async fn change_endpoint(&self, node: &SimulatedNode) -> Result<(), Died> {
        let of_node = format!("endpoint {} ", node.node.id);
        if let Some(key) = self.one_of_many(&of_node) {
            let detach = Detach { endpoint: key[of_node.len()..].parse().unwrap() };
            let gone = async { node.client.detach(detach).await.map_err(|e| self.of_manager(&e)) };
            return self.remove(key, gone).await;
        }
        let id = EndpointId::from_entropy(rand::random());
        let network = "red".parse().unwrap();
        let attach = Attach { id, network, name: None, ips: vec![], mac: None };
        let made = async {
            let made = node.client.attach(attach).await.map_err(|e| self.of_manager(&e))?;
            Ok(json(&made.endpoint))
        };
        self.make(format!("{of_node}{id}"), made).await
    }

    async fn change_network(&self) -> Result<(), Died> {
        if let Some(key) = self.one_of_many("network net-") {
            let network = key["network ".len()..].parse().unwrap();
            return self.remove(key, self.call(RemoveNetworkRequest { network })).await;
        }
        let name = format!("net-{:08x}", rand::random::<u32>());
        let request = CreateNetworkRequest {
            name: name.parse().unwrap(),
            encrypted: rand::random(),
            subnets: vec![],
            mtu: None,
            labels: BTreeMap::from([("of".to_owned(), name.clone())]),
            node_labels: BTreeMap::new(),
        };
        self.make(format!("network {name}"), async { Ok(json(&self.call(request).await?.network)) }).await
    }

    async fn rotate_token(&self) -> Result<(), Died> {
        let request = TokenRequest { role: Role::Manager, rotate: true };
        self.make(MANAGER_TOKEN.to_owned(), async { Ok(self.call(request).await?.token) }).await
    }

    async fn change_label(&self) -> Result<(), Died> {
        let node = &self.nodes[0].node.name;
        let labels = BTreeMap::from([("turn".to_owned(), rand::random::<u64>().to_string())]);
        let update = NodeUpdate { label_add: labels.clone(), ..NodeUpdate::default() };
        let request = ChangeNodeRequest { node: node.clone(), change: NodeChange::Update(update) };
        let (key, profile) = (format!("profile {node}"), NodeProfile { labels, ..NodeProfile::default() });
        let change = vec![(key.clone(), Outcome::Is(json(&profile)))];
        self.change(change, async { Ok(vec![(key, Some(json(&self.call(request).await?.profile)))]) }).await
    }

    /// Guests: a token that works once, a node that joins with it and is removed.
    async fn change_guests(&self) -> Result<(), Died> {
        if let Some(key) = self.one_of_many("node guest") {
            let node = key["node ".len()..].parse().unwrap();
            return self.remove(key, self.call(RemoveNodeRequest { node, force: true })).await;
        }
        let unused = self.ledger().unused_token();
        if let Some((key, text)) = unused {
            return match text.filter(|_| rand::random_ratio(3, 4)) {
                Some(text) => self.join(key, &text).await,
                None => self.remove_token(key).await,
            };
        }
        let request = IssueTokenRequest { role: Role::Worker, once: true, life_seconds: None };
        // The manager draws its name: without an answer nobody knows it.
        self.change(vec![("token ".to_owned(), Outcome::Another)], async {
            let issued = self.call(request).await?;
            let key = format!("token {}", issued.info.name);
            self.ledger().texts.insert(key.clone(), issued.token);
            Ok(vec![(key, Some(format!("{:?}", issued.info.state)))])
        })
        .await
    }

    /// It stays, as one that admits nobody.
    async fn remove_token(&self, key: String) -> Result<(), Died> {
        let removed = format!("{:?}", TokenState::Removed);
        self.change(vec![(key.clone(), Outcome::Is(removed.clone()))], async {
            self.call(RemoveTokenRequest { token: key["token ".len()..].parse().unwrap() }).await?;
            Ok(vec![(key, Some(removed))])
        })
        .await
    }

    async fn join(&self, token: String, text: &str) -> Result<(), Died> {
        let number = rand::random_range(1_000..60_000);
        let name = format!("guest-{number}");
        let node = format!("node {name}");
        let change = vec![(node.clone(), Outcome::Changed), (token.clone(), Outcome::Changed)];
        self.change(change, async {
            loop {
                match SimulatedNode::try_join(self.manager, &text.parse().unwrap(), number, &name).await {
                    Ok(guest) => {
                        let id = guest.node.id;
                        let used = format!("{:?}", TokenState::Used(id));
                        return Ok(vec![(node, Some(id.to_string())), (token, Some(used))]);
                    }
                    Err(EnrolError::Refused(EnrolRefusal::Busy { retry_seconds })) => {
                        tokio::time::sleep(Duration::from_secs(retry_seconds)).await;
                    }
                    Err(
                        EnrolError::Connect(_)
                        | EnrolError::NoAnswer
                        | EnrolError::Refused(EnrolRefusal::Unavailable(_)),
                    ) => return Err(self.died("joining")),
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
    }

    async fn make(&self, key: String, act: impl Future<Output = Result<String, Died>>) -> Result<(), Died> {
        self.change(vec![(key.clone(), Outcome::Changed)], async { Ok(vec![(key, Some(act.await?))]) }).await
    }

    async fn remove<T>(&self, key: String, act: impl Future<Output = Result<T, Died>>) -> Result<(), Died> {
        self.change(vec![(key.clone(), Outcome::Gone)], async {
            act.await?;
            Ok(vec![(key, None)])
        })
        .await
    }

    /// Makes a change that leaves things so, all of them or none; `act` says what they are in the end.
    async fn change(
        &self,
        change: Vec<(String, Outcome)>,
        act: impl Future<Output = Result<Vec<(String, Option<String>)>, Died>>,
    ) -> Result<(), Died> {
        let number = self.ledger().begin(change);
        let things = act.await?;
        self.ledger().acknowledge(number, things);
        Ok(())
    }

    async fn call<C: Call>(&self, call: C) -> Result<C::Response, Died> {
        self.operator.call(&call).await.map_err(|error| {
            assert!(lives_through(&error), "{}: {error:?}", C::PATH);
            self.died(&error.to_string())
        })
    }

    fn of_manager(&self, error: &ManagerError) -> Died {
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        self.died(&error.to_string())
    }

    fn died(&self, why: &str) -> Died {
        assert!(self.is_over.load(Ordering::Relaxed), "the manager lives, but: {why}");
        Died
    }

    /// One of the things whose key begins so, to be removed, where there are many.
    fn one_of_many(&self, prefix: &str) -> Option<String> {
        let ledger = self.ledger();
        let keys = || ledger.known.keys().filter(|key| key.starts_with(prefix));
        (keys().count() >= MANY).then(|| keys().choose(&mut rand::rng()).cloned()).flatten()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }
}

/// How often what happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Changes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Changes that had no answer when the manager was killed.
    pub(crate) unanswered: u64,
    /// Those of them that were made.
    pub(crate) made: u64,
}

/// The manager was killed before it answered.
#[derive(Debug)]
struct Died;

/// What a thing is after a change.
#[derive(Debug)]
enum Outcome {
    Gone,
    Is(String),
    /// There, and other than before.
    Changed,
    /// There is one more whose key begins so.
    Another,
}

/// All that was acknowledged, by key.
#[derive(Default)]
struct Ledger {
    known: BTreeMap<String, String>,
    unanswered: BTreeMap<u64, Vec<(String, Outcome)>>,
    epochs: BTreeMap<NetworkId, Epoch>,
    /// The tokens of which somebody was told the text.
    texts: BTreeMap<String, String>,
    begun: u64,
    tally: Tally,
}

impl Ledger {
    fn begin(&mut self, change: Vec<(String, Outcome)>) -> u64 {
        self.begun += 1;
        self.unanswered.insert(self.begun, change);
        self.begun
    }

    fn acknowledge(&mut self, number: u64, things: Vec<(String, Option<String>)>) {
        self.unanswered.remove(&number);
        self.tally.acknowledged += 1;
        for (key, thing) in things {
            match thing {
                Some(thing) => drop(self.known.insert(key, thing)),
                None => drop(self.known.remove(&key)),
            }
        }
    }

    /// A token that admits, and its text if somebody was told it.
    fn unused_token(&self) -> Option<(String, Option<String>)> {
        let admits = format!("{:?}", TokenState::Valid);
        let mut tokens = self.known.iter().filter(|(key, _)| key.starts_with("token "));
        let (key, _) = tokens.find(|(_, state)| **state == admits)?;
        Some((key.clone(), self.texts.get(key).cloned()))
    }

    fn check(&mut self, Found { things, epochs }: Found) {
        for (_, change) in std::mem::take(&mut self.unanswered) {
            let is_undone = change.iter().all(|(key, outcome)| match outcome {
                Outcome::Another => self.strangers(&things, key).is_empty(),
                Outcome::Gone | Outcome::Is(_) | Outcome::Changed => things.get(key) == self.known.get(key),
            });
            let is_done = change.iter().all(|(key, outcome)| {
                let (before, after) = (self.known.get(key), things.get(key));
                match outcome {
                    Outcome::Gone => after.is_none(),
                    Outcome::Is(thing) => after == Some(thing),
                    Outcome::Changed => after.is_some() && after != before,
                    Outcome::Another => self.strangers(&things, key).len() == 1,
                }
            });
            assert!(is_undone || is_done, "half done: {change:?}\nof {:#?}\nto {things:#?}", self.known);
            self.tally.unanswered += 1;
            self.tally.made += u64::from(!is_undone);
            for (key, outcome) in change {
                let keys = match outcome {
                    Outcome::Another => self.strangers(&things, &key),
                    Outcome::Gone | Outcome::Is(_) | Outcome::Changed => vec![key],
                };
                for key in keys {
                    match things.get(&key) {
                        Some(thing) => drop(self.known.insert(key, thing.clone())),
                        None => drop(self.known.remove(&key)),
                    }
                }
            }
        }
        // Of the tokens that have ended, managers remember the last ones.
        if things.keys().filter(|key| key.starts_with("token ")).count() >= REMEMBERED_TOKENS {
            let admits = format!("{:?}", TokenState::Valid);
            self.known.retain(|key, state| {
                !key.starts_with("token ") || *state == admits || things.contains_key(key)
            });
        }
        let keys: BTreeSet<_> = things.keys().chain(self.known.keys()).collect();
        let differences: Vec<_> = keys
            .into_iter()
            .map(|key| (key, self.known.get(key), things.get(key)))
            .filter(|(_, known, found)| known != found)
            .collect();
        assert!(differences.is_empty(), "acknowledged and found differ: {differences:#?}");
        for (network, epoch) in epochs {
            let last = self.epochs.insert(network, epoch);
            assert!(last <= Some(epoch), "{network} went back from {last:?} to {epoch:?}");
        }
    }

    /// Things whose key begins so and that nobody was told of.
    fn strangers(&self, things: &BTreeMap<String, String>, prefix: &str) -> Vec<String> {
        let of_prefix = things.keys().filter(|key| key.starts_with(prefix));
        of_prefix.filter(|key| !self.known.contains_key(*key)).cloned().collect()
    }
}

/// What a manager has.
struct Found {
    things: BTreeMap<String, String>,
    epochs: BTreeMap<NetworkId, Epoch>,
}

impl Found {
    /// All of it, which is checked to be whole.
    async fn read(operator: &Client) -> Self {
        let (mut things, mut epochs, mut vnis) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for listed in operator.call(&ListNetworksRequest {}).await.unwrap().networks {
            let network = listed.network.name.clone();
            let found = operator.call(&InspectNetworkRequest { network }).await.unwrap();
            assert!(vnis.insert(found.network.vni), "{} was given twice", found.network.vni);
            let addresses: BTreeSet<_> = found.endpoints.iter().flat_map(|e| &e.addresses).collect();
            let macs: BTreeSet<_> = found.endpoints.iter().map(|endpoint| endpoint.mac).collect();
            let all = found.endpoints.len();
            assert_eq!((addresses.len(), macs.len()), (all, all), "given twice: {:#?}", found.endpoints);
            let members: BTreeSet<_> = found.nodes.iter().map(|node| node.id).collect();
            let owners: BTreeSet<_> = found.endpoints.iter().map(|endpoint| endpoint.node).collect();
            assert_eq!(members, owners, "the membership of {} is not its endpoints'", found.network.name);
            epochs.insert(found.network.id, found.epoch);
            things.insert(format!("network {}", found.network.name), json(&found.network));
            let endpoints = found.endpoints.iter();
            things.extend(endpoints.map(|one| (format!("endpoint {} {}", one.node, one.id), json(one))));
        }
        for listed in operator.call(&ListNodesRequest {}).await.unwrap().nodes {
            things.insert(format!("node {}", listed.node.name), listed.node.id.to_string());
            if !listed.profile.labels.is_empty() {
                things.insert(format!("profile {}", listed.node.name), json(&listed.profile));
            }
        }
        for token in operator.call(&ListTokensRequest {}).await.unwrap().tokens {
            if token.once {
                things.insert(format!("token {}", token.name), format!("{:?}", token.state));
            }
        }
        let token = operator.call(&TokenRequest { role: Role::Manager, rotate: false }).await.unwrap().token;
        things.insert(MANAGER_TOKEN.to_owned(), token);
        Self { things, epochs }
    }
}

/// Whether an answer is one of somebody who does not find the manager, or of a manager that does not find its state.
fn lives_through(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(error) => error.kind == Kind::Unavailable,
        ClientError::NotPermitted { .. } => false,
        ClientError::NoAgent { .. }
        | ClientError::Unreachable { .. }
        | ClientError::Silent { .. }
        | ClientError::Garbled { .. } => true,
    }
}

fn json(thing: &impl Serialize) -> String {
    serde_json::to_string(thing).unwrap()
}

const PAUSE: Duration = Duration::from_millis(20);
const MANAGER_TOKEN: &str = "the managers' token";
/// So many that have ended are remembered.
const REMEMBERED_TOKENS: usize = 256;
/// So many of a kind, and one of them is removed.
const MANY: usize = 4;
