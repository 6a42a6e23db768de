//! The manager's side: admits the caller by role, forwards, and turns errors into statuses.
//!
//! A handler gets its message only from `Service::admit`, which asks the table of
//! `Method::requires`; a method that is missing there does not compile.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::error::{ErrorKind, ManagerError};
use super::generated::manager_server;
use super::messages::{
    Attach, Attached, CaStatus, CaStatusRequest, ChangeNode, ChangedNode, Detach, Done, InspectNetwork,
    InspectNode, Leave, ListNetworks, ListNodes, NetworkDetail, NetworkReply, Networks, NewNetwork,
    NodeDetail, Nodes, RemoveNetwork, RemoveNode, RemovedNode, Renew, Renewed, RotateCa, SessionRequest,
    Token, TokenRequest,
};
use super::messages::{Documents, Piece};
use super::messages::{IssueToken, IssuedToken, ListTokens, RemoveToken, TokenList};
use super::messages::{Presence, PresenceRequest, StoreAccess, StoreAccessRequest};
use super::pieces;
use crate::cluster::Role;
use crate::control::tls::peer::{PeerIdentity, PeerStream};
use crate::events::{Event, Events, Noted, Reason};
use crate::id::{HostName, NodeId};

/// What a manager does for nodes. Callers are verified nodes with the role that the method requires.
pub trait ManagerApi: Send + Sync + 'static {
    /// Where managers are reached, for workers that ask for what only managers may do.
    fn manager_addresses(&self) -> Vec<SocketAddr>;

    /// Refuses everybody, if this manager serves nobody.
    ///
    /// # Errors
    /// Why it does not.
    fn serves(&self) -> Result<(), ManagerError> {
        Ok(())
    }

    /// Refuses what only managers may ask, if this manager cannot know who is one.
    ///
    /// # Errors
    /// Why it cannot.
    fn knows_managers(&self) -> impl Answer<()> {
        async { Ok(()) }
    }

    /// Brings what this manager knows up to what all of them have acknowledged.
    fn catch_up(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// What a caller may do: its certificate may be of before that was changed.
    fn role(&self, caller: &PeerIdentity) -> Role {
        caller.role
    }

    /// What a node is called, for the audit log.
    fn node_name(&self, _node: NodeId) -> Option<HostName> {
        None
    }

    /// The caller's view, whole and then what changes, as often as the caller takes it. Id and role in
    /// `request.node` are those of the certificate. The stream is dropped when the session ends; an agent
    /// that connects again begins a new session, possibly before the old one is seen to end.
    fn session(&self, caller: PeerIdentity, request: SessionRequest) -> impl Answer<Updates>;

    /// Creates a network.
    fn create_network(&self, caller: PeerIdentity, request: NewNetwork) -> impl Answer<NetworkReply>;

    /// Removes a network.
    fn remove_network(&self, caller: PeerIdentity, request: RemoveNetwork) -> impl Answer<Done>;

    /// Lists the networks.
    fn list_networks(&self, caller: PeerIdentity, request: ListNetworks) -> impl Answer<Networks>;

    /// Describes a network.
    fn inspect_network(&self, caller: PeerIdentity, request: InspectNetwork) -> impl Answer<NetworkDetail>;

    /// Makes an endpoint on the caller.
    fn attach(&self, caller: PeerIdentity, request: Attach) -> impl Answer<Attached>;

    /// Ends an endpoint of the caller.
    fn detach(&self, caller: PeerIdentity, request: Detach) -> impl Answer<Done>;

    /// Gives a join token.
    fn token(&self, caller: PeerIdentity, request: TokenRequest) -> impl Answer<Token>;

    /// Makes a join token to order.
    fn issue_token(&self, caller: PeerIdentity, request: IssueToken) -> impl Answer<IssuedToken>;

    /// Lists the join tokens, without their secrets.
    fn list_tokens(&self, caller: PeerIdentity, request: ListTokens) -> impl Answer<TokenList>;

    /// Makes a join token void.
    fn remove_token(&self, caller: PeerIdentity, request: RemoveToken) -> impl Answer<Done>;

    /// Lists the nodes.
    fn list_nodes(&self, caller: PeerIdentity, request: ListNodes) -> impl Answer<Nodes>;

    /// Removes a node other than the caller.
    fn remove_node(&self, caller: PeerIdentity, request: RemoveNode) -> impl Answer<RemovedNode>;

    /// Describes a node.
    fn inspect_node(&self, caller: PeerIdentity, request: InspectNode) -> impl Answer<NodeDetail>;

    /// Changes what a node is to the cluster.
    fn change_node(&self, caller: PeerIdentity, request: ChangeNode) -> impl Answer<ChangedNode>;

    /// Signs a new certificate for the caller, with the role that it has.
    fn renew(&self, caller: PeerIdentity, request: Renew) -> impl Answer<Renewed>;

    /// Begins to replace the root.
    fn rotate_ca(&self, caller: PeerIdentity, request: RotateCa) -> impl Answer<Done>;

    /// Says how far the replacement of the root is.
    fn ca_status(&self, caller: PeerIdentity, request: CaStatusRequest) -> impl Answer<CaStatus>;

    /// Says which nodes have, or had, a session with this manager.
    fn presence(&self, caller: PeerIdentity, request: PresenceRequest) -> impl Answer<Presence>;

    /// Gives what opens the cluster's state.
    fn store_access(&self, caller: PeerIdentity, request: StoreAccessRequest) -> impl Answer<StoreAccess>;

    /// Removes the caller from the cluster.
    fn leave(&self, caller: PeerIdentity, request: Leave) -> impl Answer<Done>;
}

/// What a session tells.
pub type Updates = Pin<Box<dyn Stream<Item = Documents> + Send>>;

/// The future of an answer.
pub trait Answer<T>: Future<Output = Result<T, ManagerError>> + Send {}

impl<T, F: Future<Output = Result<T, ManagerError>> + Send> Answer<T> for F {}

/// Serves the API on the streams that the listener accepts, until no more can come.
///
/// # Errors
/// The gRPC server fails.
pub async fn serve<M: ManagerApi>(
    api: Arc<M>,
    streams: mpsc::Receiver<PeerStream>,
    events: Events,
) -> Result<(), tonic::transport::Error> {
    let service = manager_server::ManagerServer::new(Service { api, events })
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(usize::MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(MAX_CONCURRENT_REQUESTS)
        .timeout(PATIENCE)
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(streams).map(Ok::<_, std::io::Error>))
        .await
}

/// The methods of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Session,
    CreateNetwork,
    RemoveNetwork,
    ListNetworks,
    InspectNetwork,
    Attach,
    Detach,
    Token,
    IssueToken,
    ListTokens,
    RemoveToken,
    ListNodes,
    Renew,
    Leave,
    RemoveNode,
    InspectNode,
    ChangeNode,
    RotateCa,
    CaStatus,
    Presence,
    StoreAccess,
}

impl Method {
    /// The least role that may call it.
    const fn requires(self) -> Role {
        match self {
            Self::CreateNetwork | Self::RemoveNetwork | Self::Token | Self::RotateCa => Role::Manager,
            Self::RemoveNode | Self::InspectNode | Self::ChangeNode => Role::Manager,
            Self::IssueToken | Self::ListTokens | Self::RemoveToken => Role::Manager,
            Self::Presence | Self::StoreAccess => Role::Manager,
            Self::Session
            | Self::ListNetworks
            | Self::InspectNetwork
            | Self::Attach
            | Self::Detach
            | Self::ListNodes
            | Self::Renew
            | Self::CaStatus
            | Self::Leave => Role::Worker,
        }
    }

    /// Whether the answer is this manager's own, whatever others changed a moment ago: which sessions it has. A
    /// session that begins catches up by itself.
    const fn is_of_one_manager(self) -> bool {
        matches!(self, Self::Session | Self::Presence)
    }

    /// What the caller wanted, for the refusal.
    const fn wish(self) -> &'static str {
        match self {
            Self::CreateNetwork => "create networks",
            Self::RemoveNetwork => "remove networks",
            Self::Token | Self::IssueToken => "issue join tokens",
            Self::ListTokens => "list join tokens",
            Self::RemoveToken => "remove join tokens",
            Self::Session => "begin a session",
            Self::ListNetworks => "list networks",
            Self::InspectNetwork => "inspect networks",
            Self::Attach => "attach containers",
            Self::Detach => "detach containers",
            Self::ListNodes => "list nodes",
            Self::Renew => "renew certificates",
            Self::Leave => "leave",
            Self::RemoveNode => "remove nodes",
            Self::InspectNode => "inspect nodes",
            Self::ChangeNode => "change nodes",
            Self::RotateCa => "rotate the certificate authority",
            Self::Presence => "ask which nodes are there",
            Self::StoreAccess => "reach the cluster's store",
            Self::CaStatus => "ask for the state of the certificate authority",
        }
    }
}

/// A request of the API: ties its type to its method.
trait Asks {
    const METHOD: Method;
    /// Whether it only looks, and is no matter for the audit log.
    const LOOKS: bool;

    /// What it is about, for the audit log: never a secret.
    fn subject(&self) -> Option<String>;
}

macro_rules! asks {
    ($($request:ident => $method:ident $(, looks $looks:literal)?
        $(, about |$call:ident| $subject:expr)?;)*) => {$(
        impl Asks for $request {
            const METHOD: Method = Method::$method;
            const LOOKS: bool = false $(|| $looks)?;

            fn subject(&self) -> Option<String> {
                let subject = None;
                $(let $call = self; let subject = subject.or_else(|| Some($subject.to_string()));)?
                subject
            }
        }
    )*};
}

asks! {
    // It has events of its own.
    SessionRequest => Session, looks true;
    NewNetwork => CreateNetwork, about |call| call.name;
    RemoveNetwork => RemoveNetwork, about |call| call.name;
    ListNetworks => ListNetworks, looks true;
    InspectNetwork => InspectNetwork, looks true;
    Attach => Attach, about |call| format_args!("{} to {}", call.id, call.network);
    Detach => Detach, about |call| call.endpoint;
    TokenRequest => Token, about |call| format_args!("{}{}", call.role, if call.rotate { " rotate" } else { "" });
    IssueToken => IssueToken, about |call| call.role;
    ListTokens => ListTokens, looks true;
    RemoveToken => RemoveToken, about |call| call.id;
    ListNodes => ListNodes, looks true;
    Renew => Renew;
    Leave => Leave;
    RemoveNode => RemoveNode,
        about |call| format_args!("{}{}", call.node, if call.force { " by force" } else { "" });
    InspectNode => InspectNode, looks true;
    ChangeNode => ChangeNode, about |call| format_args!("{} {}", call.node, call.change);
    RotateCa => RotateCa;
    CaStatusRequest => CaStatus, looks true;
    PresenceRequest => Presence, looks true;
    StoreAccessRequest => StoreAccess;
}

struct Service<M> {
    api: Arc<M>,
    events: Events,
}

impl<M: ManagerApi> Service<M> {
    /// The caller and its message, if the caller may ask this; when the note ends, the request is recorded.
    async fn admit<T: Asks + Send>(
        &self,
        mut request: Request<T>,
    ) -> Result<(PeerIdentity, T, Noted), ManagerError> {
        let caller = request.extensions_mut().remove::<PeerIdentity>();
        let caller = caller.ok_or_else(|| {
            ManagerError::new(ErrorKind::Denied, "the connection has no verified node at its other end")
        })?;
        let may = || T::METHOD.requires() == Role::Worker || self.api.role(&caller) == Role::Manager;
        // Who is a manager may have been changed by another a moment ago, and what is looked at too.
        let looks_at_all =
            (T::LOOKS || T::METHOD.requires() == Role::Manager) && !T::METHOD.is_of_one_manager();
        if looks_at_all || !may() {
            self.api.catch_up().await;
        }
        self.api.serves()?;
        if T::METHOD.requires() == Role::Manager && !T::METHOD.is_of_one_manager() {
            self.api.knows_managers().await?;
        }
        let enough = may();
        let request = request.into_inner();
        let asked = || Event::NodeRequest {
            node: caller.node,
            name: self.api.node_name(caller.node),
            from: caller.address,
            request: format!("{:?}", T::METHOD),
            subject: request.subject().map(Reason::from),
            failure: None,
        };
        if enough {
            let noted = Noted::begin(&self.events, (!T::LOOKS).then(asked));
            return Ok((caller, request, noted));
        }
        let noted = Noted::begin(&self.events, Some(asked()));
        noted.end(Some(Reason::of(format_args!("only managers may {}", T::METHOD.wish()))));
        let managers: Vec<_> = self.api.manager_addresses().iter().map(SocketAddr::to_string).collect();
        tracing::warn!(node = %caller.node, from = %caller.address, wish = T::METHOD.wish(), "a worker was refused");
        Err(ManagerError::new(
            ErrorKind::Denied,
            format!(
                "this node is a worker, only managers may {}; do it on a manager: {}",
                T::METHOD.wish(),
                managers.join(", ")
            ),
        ))
    }
}

macro_rules! unary {
    ($($method:ident($request:ty) -> $reply:ty;)*) => {
        #[tonic::async_trait]
        impl<M: ManagerApi> manager_server::Manager for Service<M> {
            $(
                async fn $method(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                    let (caller, request, noted) = self.admit(request).await?;
                    let api = Arc::clone(&self.api);
                    let answering = async move {
                        let answer = api.$method(caller, request).await;
                        noted.end(answer.as_ref().err().map(Reason::of));
                        answer
                    };
                    Ok(Response::new(to_its_end(answering, <$request>::LOOKS).await?))
                }
            )*

            type SessionStream = PieceStream;

            async fn session(
                &self,
                request: Request<SessionRequest>,
            ) -> Result<Response<PieceStream>, Status> {
                let (caller, mut request, _) = self.admit(request).await?;
                request.node.role = caller.role;
                if request.node.id != caller.node {
                    let message = "a session is for the node that the certificate names";
                    return Err(ManagerError::new(ErrorKind::Denied, message).into());
                }
                let updates = self.api.session(caller, request).await?;
                let pieces = updates.flat_map(|update| tokio_stream::iter(pieces::cut(&update)));
                Ok(Response::new(Box::pin(pieces.map(Ok))))
            }
        }
    };
}

unary! {
    create_network(NewNetwork) -> NetworkReply;
    remove_network(RemoveNetwork) -> Done;
    list_networks(ListNetworks) -> Networks;
    inspect_network(InspectNetwork) -> NetworkDetail;
    attach(Attach) -> Attached;
    detach(Detach) -> Done;
    token(TokenRequest) -> Token;
    issue_token(IssueToken) -> IssuedToken;
    list_tokens(ListTokens) -> TokenList;
    remove_token(RemoveToken) -> Done;
    list_nodes(ListNodes) -> Nodes;
    renew(Renew) -> Renewed;
    leave(Leave) -> Done;
    remove_node(RemoveNode) -> RemovedNode;
    inspect_node(InspectNode) -> NodeDetail;
    change_node(ChangeNode) -> ChangedNode;
    rotate_ca(RotateCa) -> Done;
    ca_status(CaStatusRequest) -> CaStatus;
    presence(PresenceRequest) -> Presence;
    store_access(StoreAccessRequest) -> StoreAccess;
}

/// Answers, to the end if it changes something, though the caller be gone: what was done may be what has cut
/// the caller's connection, as a removal does, and is done all the same for the audit log.
async fn to_its_end<T: Send + 'static>(
    answering: impl Answer<T> + 'static,
    looks: bool,
) -> Result<T, ManagerError> {
    if looks {
        return answering.await;
    }
    let ended = tokio::spawn(answering).await;
    ended.map_err(|_| ManagerError::new(ErrorKind::Internal, "a task of the manager died"))?
}

type PieceStream = Pin<Box<dyn Stream<Item = Result<Piece, Status>> + Send>>;

const KEEPALIVE: Duration = Duration::from_secs(5);
/// Twice what the command line may ask an agent for; the rest is what the agent adds.
const MAX_REQUEST_BYTES: usize = 128 * 1024;
/// How long a request may take to come and to be answered. What has begun is ended all the same.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_CONCURRENT_REQUESTS: u32 = 128;
