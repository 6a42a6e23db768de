//! The agent's side of the socket: routes, limits, and refusals as JSON.
//!
//! It knows HTTP and nothing of networks: every call goes to a [`Backend`].

use std::io;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::error::{ApiError, ErrorKind};
use super::events;
use super::metrics;
use super::socket::{ApiListener, Caller};
use super::types::{
    AttachRequest, AttachResponse, CaRequest, CaResponse, CaStatusRequest, CaStatusResponse, Call,
    ChangeNodeRequest, ChangeNodeResponse, CreateNetworkRequest, CreateNetworkResponse, DetachRequest,
    DetachResponse, InitRequest, InitResponse, InspectNetworkRequest, InspectNetworkResponse,
    InspectNodeRequest, InspectNodeResponse, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse,
    ListAttachmentsRequest, ListAttachmentsResponse, ListNetworksRequest, ListNetworksResponse,
    ListNodesRequest, ListNodesResponse, PeersRequest, PeersResponse, RekeyRequest, RekeyResponse,
    ReleaseRequest, ReleaseResponse, RemoveNetworkRequest, RemoveNetworkResponse, RemoveNodeRequest,
    RemoveNodeResponse, RotateCaRequest, StatsRequest, StatsResponse, StatusRequest, StatusResponse,
    TokenRequest, TokenResponse,
};
use super::types::{BackupRequest, BackupResponse, MOST_BACKUP_BYTES, RestoreRequest, RestoreResponse};
use super::types::{
    EventsRequest, IssueTokenRequest, IssueTokenResponse, ListTokensRequest, ListTokensResponse,
    RemoveTokenRequest, RemoveTokenResponse,
};
use super::types::{MigrateStoreRequest, MigrateStoreResponse, StoreRequest, StoreResponse};
use super::types::{UnlockKeyRequest, UnlockKeyResponse, UnlockRequest, UnlockResponse};
use super::types::{VerifyRequest, VerifyResponse};
use crate::events::{Event, Events, Reason};

macro_rules! backend {
    ($($(#[doc = $doc:literal])* $name:ident: $request:ident -> $response:ident;)*) => {
        /// What the agent does for its callers.
        pub trait Backend: Send + Sync + 'static {$(
            $(#[doc = $doc])*
            ///
            /// # Errors
            /// With a message that says what to do next.
            fn $name(
                &self,
                request: $request,
            ) -> impl Future<Output = Result<$response, ApiError>> + Send;
        )*

            /// The audit log, which the callers are noted in too.
            fn events(&self) -> &Events;
        }

        fn calls<B: Backend>() -> Router<Arc<B>> {
            Router::new()$(.route(
                $request::PATH,
                post(async |caller: ConnectInfo<Caller>, backend: State<Arc<B>>, request: Body<$request>| {
                    let (State(backend), Body(request)) = (backend, request);
                    let noted = events::note(backend.events(), caller.0, &request);
                    let answer = backend.$name(request).await;
                    noted.end(answer.as_ref().err().map(Reason::of));
                    answer.map(Json)
                }),
            ))*
        }
    };
}

backend! {
    /// Makes a new cluster with this node as its manager.
    init: InitRequest -> InitResponse;
    /// Makes this node a member of an existing cluster.
    join: JoinRequest -> JoinResponse;
    /// Takes this node out of its cluster.
    leave: LeaveRequest -> LeaveResponse;
    /// Backs this manager up.
    backup: BackupRequest -> BackupResponse;
    /// Makes this node the manager that was backed up.
    restore: RestoreRequest -> RestoreResponse;
    /// Lets a locked manager go on.
    unlock: UnlockRequest -> UnlockResponse;
    /// Shows, and if asked changes, a manager's unlock key.
    unlock_key: UnlockKeyRequest -> UnlockKeyResponse;
    /// Says where the cluster's state is.
    store: StoreRequest -> StoreResponse;
    /// Moves the cluster's state to etcd.
    migrate_store: MigrateStoreRequest -> MigrateStoreResponse;
    /// Shows, and if asked renews, a join token.
    token: TokenRequest -> TokenResponse;
    /// Makes a join token that expires or works once.
    issue_token: IssueTokenRequest -> IssueTokenResponse;
    /// Lists the join tokens, without their secrets.
    list_tokens: ListTokensRequest -> ListTokensResponse;
    /// Makes a join token void.
    remove_token: RemoveTokenRequest -> RemoveTokenResponse;
    /// Creates a network.
    create_network: CreateNetworkRequest -> CreateNetworkResponse;
    /// Lists the networks, by name.
    list_networks: ListNetworksRequest -> ListNetworksResponse;
    /// Everything about one network.
    inspect_network: InspectNetworkRequest -> InspectNetworkResponse;
    /// Removes a network without endpoints.
    remove_network: RemoveNetworkRequest -> RemoveNetworkResponse;
    /// Gives a namespace an interface in a network; returns when it is ready for traffic.
    attach: AttachRequest -> AttachResponse;
    /// Takes an endpoint out of a network.
    detach: DetachRequest -> DetachResponse;
    /// Lists the attached containers of this node.
    list_attachments: ListAttachmentsRequest -> ListAttachmentsResponse;
    /// Detaches what a container runtime had attached.
    release: ReleaseRequest -> ReleaseResponse;
    /// How the agent is.
    status: StatusRequest -> StatusResponse;
    /// Holds what there is against what should be.
    verify: VerifyRequest -> VerifyResponse;
    /// Lists the nodes of the cluster.
    list_nodes: ListNodesRequest -> ListNodesResponse;
    /// Everything about one node.
    inspect_node: InspectNodeRequest -> InspectNodeResponse;
    /// Removes another node.
    remove_node: RemoveNodeRequest -> RemoveNodeResponse;
    /// Changes what a node is to the cluster.
    change_node: ChangeNodeRequest -> ChangeNodeResponse;
    /// Lists the peers, one row for each network shared with them.
    peers: PeersRequest -> PeersResponse;
    /// Has new keys made now, and waits for them.
    rekey: RekeyRequest -> RekeyResponse;
    /// The counters.
    stats: StatsRequest -> StatsResponse;
    /// The cluster's root certificate.
    ca: CaRequest -> CaResponse;
    /// Begins to replace the root.
    rotate_ca: RotateCaRequest -> CaStatusResponse;
    /// How far the replacement of the root is.
    ca_status: CaStatusRequest -> CaStatusResponse;
}

/// Answers calls until `stop` resolves and the calls in flight are done.
///
/// # Errors
/// When the socket fails for good.
pub async fn serve<B: Backend>(
    listener: ApiListener,
    backend: Arc<B>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_router(listener, router(backend), stop).await
}

/// Answers by `router`, which is told of each caller.
pub(super) async fn serve_router(
    listener: ApiListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = router.into_make_service_with_connect_info::<Caller>();
    axum::serve(Callers(listener), service).with_graceful_shutdown(stop).await
}

pub(super) fn router<B: Backend>(backend: Arc<B>) -> Router {
    calls::<B>()
        .route("/metrics", get(scrape::<B>))
        .route(EventsRequest::PATH, post(stream::<B>))
        .fallback(async |request: Request| {
            ApiError::not_found(format!(
                "the agent has no call {}; are overlayd and its agent of the same version?",
                request.uri().path()
            ))
        })
        .method_not_allowed_fallback(async || ApiError::invalid("calls are POST, /metrics is GET"))
        .layer(middleware::from_fn_with_state(Arc::clone(&backend), admit::<B>))
        .with_state(backend)
}

/// Answers a scraper.
pub(super) async fn scrape<B: Backend>(State(backend): State<Arc<B>>) -> Result<Response, ApiError> {
    let status = backend.status(StatusRequest {}).await?;
    let member = match status.cluster {
        Some(cluster) => {
            Some((cluster, backend.stats(StatsRequest {}).await?, backend.peers(PeersRequest {}).await?))
        }
        None => None,
    };
    let text = metrics::render(metrics::Scrape { is_locked: status.locked, member })
        .map_err(|_| ApiError::internal("the metrics cannot be written"))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn stream<B: Backend>(
    State(backend): State<Arc<B>>,
    Body(request): Body<EventsRequest>,
) -> Result<Response, ApiError> {
    events::stream(backend.events(), request).await
}

async fn admit<B: Backend>(
    State(backend): State<Arc<B>>,
    caller: ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    admit_caller(backend.events(), caller, request, next).await
}

/// Lets a request through if its caller may make it.
pub(super) async fn admit_caller(
    events: &Events,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    if caller.allowed {
        return next.run(request).await;
    }
    events.record(Event::CallerDenied { uid: caller.uid, pid: caller.pid });
    tracing::warn!(uid = caller.uid, "refused a caller that is neither root nor of the socket's group");
    ApiError::denied(format!(
        "user {} may not use this agent; use sudo, or add the user to the group overlayd",
        caller.uid
    ))
    .into_response()
}

/// The JSON body of a request, whatever its content type says.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, ApiError> {
        let most = most_bytes(request.uri().path());
        DefaultBodyLimit::max(most).apply(&mut request);
        let bytes = Bytes::from_request(request, state).await.map_err(|e| refuse_body(&e, most))?;
        let Json(request) = Json::from_bytes(&bytes).map_err(|e| ApiError::invalid(refuse_json(&e)))?;
        Ok(Self(request))
    }
}

fn most_bytes(path: &str) -> usize {
    if path == RestoreRequest::PATH { MAX_RESTORE_BYTES } else { MAX_REQUEST_BYTES }
}

fn refuse_body(rejection: &BytesRejection, most: usize) -> ApiError {
    let message = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        format!("the request is larger than {most} bytes")
    } else {
        rejection.body_text()
    };
    ApiError { kind: ErrorKind::Invalid, message }
}

fn refuse_json(rejection: &JsonRejection) -> String {
    // The source names the field's path and the place in the text.
    let cause =
        std::error::Error::source(rejection).map_or_else(|| rejection.body_text(), ToString::to_string);
    format!("the request is not understood: {cause}")
}

/// The listener as axum takes it, each connection with its caller.
struct Callers(ApiListener);

impl axum::serve::Listener for Callers {
    type Io = tokio::net::UnixStream;
    type Addr = Caller;

    async fn accept(&mut self) -> (Self::Io, Caller) {
        loop {
            match self.0.next().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a caller");
                    // Out of descriptors, most likely: the next attempt would fail at once too.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Caller> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

impl axum::extract::connect_info::Connected<IncomingStream<'_, Callers>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Callers>) -> Self {
        *stream.remote_addr()
    }
}

/// The largest request is a network with many labels; an honest one has a few hundred bytes.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// A backup in base64, and what is told beside it.
const MAX_RESTORE_BYTES: usize = MOST_BACKUP_BYTES / 3 * 4 + MAX_REQUEST_BYTES;
pub(super) const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);
