//! The agent's side: calls whichever manager answers, and connects anew whenever it must.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::sync::Notify;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::dialer::Dialer;
use super::error::ManagerError;
use super::generated::manager_client;
use super::messages::{
    Attach, Attached, CaStatus, CaStatusRequest, ChangeNode, ChangedNode, Detach, Done, InspectNetwork,
    InspectNode, Leave, ListNetworks, ListNodes, NetworkDetail, NetworkReply, Networks, NewNetwork,
    NodeDetail, Nodes, RemoveNetwork, RemoveNode, RemovedNode, Renew, Renewed, RotateCa, SessionRequest,
    Token, TokenRequest,
};
use super::messages::{IssueToken, IssuedToken, ListTokens, RemoveToken, TokenList};
use super::messages::{Presence, PresenceRequest, StoreAccess, StoreAccessRequest};
use super::pieces::Updates;
use crate::control::tls::Credentials;
use crate::control::tls::peer::{ConnectError, PeerStream};
use crate::control::trust::Refusal;

/// Calls the managers. Clones share the connection.
///
/// Nothing connects before the first call. A call that finds the connection broken connects once to
/// the managers, beginning with the one that last worked.
#[derive(Debug, Clone)]
pub struct ManagerClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dialer: Arc<Dialer>,
    channel: ArcSwap<Channel>,
    /// Somebody knows where a manager is that the last call could not know of.
    pointed: Notify,
}

impl ManagerClient {
    /// A client of the managers at `addresses`.
    pub fn new(credentials: Arc<Credentials>, addresses: Vec<SocketAddr>) -> Self {
        let dialer = Arc::new(Dialer::new(credentials, addresses));
        let channel = ArcSwap::from_pointee(channel(&dialer));
        Self { shared: Arc::new(Shared { dialer, channel, pointed: Notify::new() }) }
    }

    /// Where the managers are from now on; a connection that works stays.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        self.shared.dialer.addresses.store(Arc::new(addresses));
    }

    /// A manager is at `address`: it is asked first from now on, over a new connection, and whoever waits
    /// for [`Self::pointed`] is told.
    pub fn point_to(&self, address: SocketAddr) {
        let others = self.addresses().into_iter().filter(|other| *other != address);
        self.set_addresses(std::iter::once(address).chain(others).take(MOST_ADDRESSES).collect());
        self.shared.dialer.prefer(address);
        self.reconnect();
        self.shared.pointed.notify_one();
    }

    /// The manager that last worked is of no use now: later calls begin with the one after it, over a new connection.
    pub fn move_on(&self) {
        self.shared.dialer.move_on();
        // The connection that there is may be to one that is not among the managers any more.
        self.reconnect();
    }

    /// Resolves once [`Self::point_to`] was called, for one who waits.
    pub async fn pointed(&self) {
        self.shared.pointed.notified().await;
    }

    /// The manager that is asked first.
    pub fn preferred(&self) -> Option<SocketAddr> {
        self.shared.dialer.preferred()
    }

    /// Where the managers are.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.shared.dialer.addresses.load().to_vec()
    }

    /// Makes later calls use a new connection, with the certificate of that time.
    pub fn reconnect(&self) {
        self.shared.channel.store(Arc::new(channel(&self.shared.dialer)));
    }

    /// Begins a session: the full view and then its changes.
    ///
    /// # Errors
    /// No manager can be reached, or it refuses.
    pub async fn session(&self, request: SessionRequest) -> Result<Updates, ManagerError> {
        Ok(Updates::new(self.client().session(request).await?.into_inner()))
    }

    /// Removes this node from the cluster.
    ///
    /// The manager cuts the connections of a node that it has removed, so its answer may be lost;
    /// the next connection tells.
    ///
    /// # Errors
    /// No manager can be reached, or it refuses.
    pub async fn leave(&self, request: Leave) -> Result<Done, ManagerError> {
        let Err(lost) = self.client().leave(request).await else { return Ok(Done {}) };
        // The connection that was cut may not have noticed yet; only a new one tells, to any manager.
        for _ in self.addresses() {
            self.reconnect();
            match self.client().leave(request).await {
                Ok(_) => return Ok(Done {}),
                Err(status) if NoManager::in_status(&status).is_some_and(NoManager::has_removed_us) => {
                    return Ok(Done {});
                }
                Err(_) => self.move_on(),
            }
        }
        Err(lost.into())
    }

    fn client(&self) -> manager_client::ManagerClient<Channel> {
        let channel = Channel::clone(&self.shared.channel.load());
        manager_client::ManagerClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES)
    }
}

macro_rules! unary {
    ($($(#[$doc:meta])* $method:ident($request:ty) -> $reply:ty;)*) => {
        impl ManagerClient {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// No manager can be reached, or it refuses.
            pub async fn $method(&self, request: $request) -> Result<$reply, ManagerError> {
                Ok(self.client().$method(request).await?.into_inner())
            }
        )*}
    };
}

unary! {
    /// Creates a network. Managers only.
    create_network(NewNetwork) -> NetworkReply;
    /// Removes a network without endpoints. Managers only.
    remove_network(RemoveNetwork) -> Done;
    /// Lists the networks.
    list_networks(ListNetworks) -> Networks;
    /// Describes a network.
    inspect_network(InspectNetwork) -> NetworkDetail;
    /// Makes an endpoint on this node.
    attach(Attach) -> Attached;
    /// Ends an endpoint of this node.
    detach(Detach) -> Done;
    /// Gives a join token. Managers only.
    token(TokenRequest) -> Token;
    /// Makes a join token to order. Managers only.
    issue_token(IssueToken) -> IssuedToken;
    /// Lists the join tokens. Managers only.
    list_tokens(ListTokens) -> TokenList;
    /// Makes a join token void. Managers only.
    remove_token(RemoveToken) -> Done;
    /// Lists the nodes.
    list_nodes(ListNodes) -> Nodes;
    /// Signs a new certificate for this node.
    renew(Renew) -> Renewed;
    /// Removes another node. Managers only.
    remove_node(RemoveNode) -> RemovedNode;
    /// Describes a node. Managers only.
    inspect_node(InspectNode) -> NodeDetail;
    /// Changes what a node is to the cluster. Managers only.
    change_node(ChangeNode) -> ChangedNode;
    /// Begins to replace the root. Managers only.
    rotate_ca(RotateCa) -> Done;
    /// Which nodes a manager has sessions with. Managers only.
    presence(PresenceRequest) -> Presence;
    /// Gives what a new manager needs to reach the cluster's state. Managers only.
    store_access(StoreAccessRequest) -> StoreAccess;
    /// How far the replacement of the root is.
    ca_status(CaStatusRequest) -> CaStatus;
}

/// None of the managers could be connected to.
#[derive(Debug, thiserror::Error)]
#[error("no manager can be reached: {}", list(.0))]
pub struct NoManager(pub(super) Vec<ConnectError>);

impl NoManager {
    /// The failure to connect behind a status, if it is one.
    pub(super) fn in_status(status: &Status) -> Option<&Self> {
        let mut error: &dyn Error = status;
        loop {
            error = error.source()?;
            if let Some(unreached) = error.downcast_ref() {
                return Some(unreached);
            }
        }
    }

    /// Whether a manager, and nobody else, said that this node was removed.
    pub(super) fn has_removed_us(&self) -> bool {
        self.0.iter().any(ConnectError::has_removed_us)
    }

    /// Whether a manager has a certificate of a root that this node does not trust, or the other way round.
    pub(super) fn has_another_root(&self) -> bool {
        self.0.iter().any(|error| {
            matches!(error.refusal(), Some(Refusal::WrongCa | Refusal::ByPeer(AlertDescription::UnknownCA)))
        })
    }
}

fn channel(dialer: &Arc<Dialer>) -> Channel {
    let dialer = Arc::clone(dialer);
    Endpoint::from_static("http://manager")
        .timeout(CALL_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(tower::service_fn(move |_uri| connect(Arc::clone(&dialer))))
}

async fn connect(dialer: Arc<Dialer>) -> Result<TokioIo<PeerStream>, NoManager> {
    dialer.dial().await.map(TokioIo::new)
}

fn list(failures: &[ConnectError]) -> String {
    if failures.is_empty() {
        return "no address of one is known".to_owned();
    }
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Longer than connecting to two dead managers and then a third.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a manager is asked whether it is there, beside what it says: nodes are to be with another within
/// five seconds of its end, also of one that does not run though its host answers for it.
const PING_INTERVAL: Duration = Duration::from_millis(750);
/// One that has much to do answers later.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// A full view of a network with a million endpoints fits.
const MAX_REPLY_BYTES: usize = 512 << 20;
/// A manager that keeps moving must not make the search for others last for ever.
const MOST_ADDRESSES: usize = 8;
