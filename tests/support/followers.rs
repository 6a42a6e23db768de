//! Simulated nodes with sessions, which keep what they are told.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use overlayd::cluster::View;
use overlayd::control::rpc::ManagerClient;
use overlayd::control::rpc::messages::{Attach, Detach, SessionRequest, ViewUpdate};
use overlayd::id::{EndpointId, NodeId};
use overlayd::membership::JoinToken;
use tokio::sync::watch;

use super::simulated::SimulatedNode;

/// A node with a session.
pub(crate) struct Follower {
    id: NodeId,
    client: ManagerClient,
    own: Mutex<Vec<EndpointId>>,
    heard: Arc<Heard>,
}

/// What a node knows of its network.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) endpoints: HashSet<EndpointId>,
    pub(crate) nodes: HashSet<NodeId>,
    pub(crate) removed: HashSet<NodeId>,
    has_begun: bool,
}

#[derive(Default)]
struct Heard {
    known: watch::Sender<Known>,
    /// Of a node that keeps all of it.
    view: Option<Mutex<View>>,
    ended: AtomicUsize,
    is_to_end: AtomicBool,
}

impl Follower {
    /// Joins, and has a session from then on.
    pub(crate) async fn join(manager: SocketAddr, token: &JoinToken, number: usize) -> Self {
        let SimulatedNode { node, client, .. } = SimulatedNode::join(manager, token, number).await;
        let view = number.is_multiple_of(WHOLE_VIEWS).then(Mutex::default);
        let heard = Arc::new(Heard { view, ..Heard::default() });
        let mut known = heard.known.subscribe();
        let id = node.id;
        let request = SessionRequest { node, standing: None };
        tokio::spawn(Arc::clone(&heard).follow(client.clone(), request));
        known.wait_for(|known| known.has_begun).await.unwrap();
        Self { id, client, own: Mutex::default(), heard }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Attaches so many endpoints, one after the other.
    pub(crate) async fn attach(&self, count: usize) -> Vec<EndpointId> {
        let mut attached = Vec::new();
        for _ in 0..count {
            let id = EndpointId::from_entropy(rand::random());
            let network = "red".parse().unwrap();
            let request = Attach { id, network, name: None, ips: vec![], mac: None };
            self.client.attach(request).await.unwrap();
            self.own.lock().unwrap().push(id);
            attached.push(id);
        }
        attached
    }

    pub(crate) async fn detach(&self, endpoint: EndpointId) {
        self.client.detach(Detach { endpoint }).await.unwrap();
        self.own.lock().unwrap().retain(|own| *own != endpoint);
    }

    /// The endpoints that it has.
    pub(crate) fn endpoints(&self) -> Vec<EndpointId> {
        self.own.lock().unwrap().clone()
    }

    pub(crate) fn is_member(&self) -> bool {
        !self.own.lock().unwrap().is_empty()
    }

    /// All that it was told, if it is one of those that keep that.
    pub(crate) fn view(&self) -> Option<View> {
        self.heard.view.as_ref().map(|view| view.lock().unwrap().clone())
    }

    /// How often its session ended and was not to.
    pub(crate) fn ended(&self) -> usize {
        self.heard.ended.load(Ordering::Relaxed)
    }

    /// Its session may end from now on.
    pub(crate) fn is_to_end(&self) {
        self.heard.is_to_end.store(true, Ordering::Relaxed);
    }
}

/// Waits until all these nodes know something.
pub(crate) async fn known_to_all(nodes: &[Arc<Follower>], what: &str, knows: impl Fn(&Known) -> bool) {
    let knows = &knows;
    let all = join_all(nodes.iter().map(|node| async move {
        node.heard.known.subscribe().wait_for(knows).await.map(drop).unwrap();
    }));
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        let ignorant: Vec<_> = nodes.iter().filter(|node| !knows(&node.heard.known.borrow())).collect();
        let ended: usize = ignorant.iter().map(|node| node.ended()).sum();
        panic!("{} of {} nodes do not know {what}; {ended} sessions ended", ignorant.len(), nodes.len());
    }
}

impl Heard {
    async fn follow(self: Arc<Self>, client: ManagerClient, request: SessionRequest) {
        loop {
            match client.session(request.clone()).await {
                Ok(mut updates) => {
                    while let Ok(Some(update)) = updates.message().await {
                        self.learn(update);
                    }
                    self.end();
                }
                Err(_) if self.known.borrow().has_begun => self.end(),
                // The manager has many to serve at once.
                Err(_) => {}
            }
            if self.is_to_end.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(rand::random_range(200..600))).await;
        }
    }

    fn end(&self) {
        if !self.is_to_end.load(Ordering::Relaxed) {
            self.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn learn(&self, update: ViewUpdate) {
        if let Some(view) = &self.view {
            let mut view = view.lock().unwrap();
            let next = update.clone().apply(&view);
            *view = next.unwrap();
        }
        self.known.send_modify(|known| known.learn(update));
    }
}

impl Known {
    fn learn(&mut self, update: ViewUpdate) {
        if update.outline.full || !update.outline.gone.is_empty() {
            self.endpoints.clear();
            self.nodes.clear();
        }
        for network in update.networks {
            self.endpoints = network.endpoints.iter().map(|endpoint| endpoint.id).collect();
            self.nodes = network.nodes.iter().map(|node| node.id).collect();
        }
        for change in update.changes {
            self.endpoints.extend(change.endpoints.iter().map(|endpoint| endpoint.id));
            self.nodes.extend(change.nodes.iter().map(|node| node.id));
            change.endpoints_gone.iter().for_each(|id| _ = self.endpoints.remove(id));
            change.nodes_gone.iter().for_each(|id| _ = self.nodes.remove(id));
        }
        if let Some(roster) = update.outline.roster {
            self.removed = roster.removed.into_iter().collect();
        }
        self.has_begun = true;
    }
}

/// One node of so many keeps the whole view.
const WHOLE_VIEWS: usize = 50;
const PATIENCE: Duration = Duration::from_mins(2);
