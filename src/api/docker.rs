//! Docker's plugin socket: the agent as a network driver and IPAM driver of Docker Engine's
//! (moby `daemon/libnetwork/docs/remote.md` and `ipam.md`).
//!
//! Every call is a POST with JSON, or with nothing where there is nothing to say; refusals are JSON as well, under the
//! name that the half of Docker that asked looks for. What a driver need not know is answered with 404, which Docker
//! takes for that.

mod ipam;
mod network;

use std::io;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::error::ApiError;
use super::server::{admit_caller, serve_router};
use super::socket::{ApiListener, Caller};
use crate::events::{Event, Events, Noted, Reason};

pub use self::ipam::{ADDRESS_SPACE, Address, AddressRequest, GATEWAY, Pool, PoolRequest, ReleasedAddress};
pub use self::network::{
    CreatedEndpoint, EndpointRequest, Given, Interface, InterfaceName, IpamData, Joined, NetworkGone,
    NetworkRequest, NewEndpoint, PublishRequest, SandboxRequest,
};

/// What Docker asks for.
trait Request: DeserializeOwned {
    /// What it is about, for the audit log.
    fn subject(&self) -> String;
}

/// Done, and nothing to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Done {}

macro_rules! driver {
    ($($(#[doc = $doc:literal])* $path:literal $name:ident: $request:ident -> $response:ident;)*) => {
        /// What a driver does for Docker.
        pub trait Driver: Send + Sync + 'static {$(
            $(#[doc = $doc])*
            ///
            /// # Errors
            /// With a message that Docker shows to its caller.
            fn $name(
                &self,
                request: $request,
            ) -> impl Future<Output = Result<$response, ApiError>> + Send;
        )*

            /// The audit log, which Docker's calls are noted in.
            fn events(&self) -> &Events;
        }

        fn calls<D: Driver>() -> Router<Arc<D>> {
            Router::new()$(.route(
                concat!("/", $path),
                post(async |caller: ConnectInfo<Caller>, driver: State<Arc<D>>, body: Bytes| {
                    let State(driver) = driver;
                    let request: $request = match serde_json::from_slice(&body) {
                        Ok(request) => request,
                        Err(error) => return refused($path, &format!("the call is not understood: {error}")),
                    };
                    let noted = note(driver.events(), caller.0, $path, &request);
                    let answer = driver.$name(request).await;
                    noted.end(answer.as_ref().err().map(Reason::of));
                    match answer {
                        Ok(answer) => Json(answer).into_response(),
                        Err(error) => refused($path, &error),
                    }
                }),
            ))*
        }
    };
}

driver! {
    /// Says which subnet a network of Docker's has.
    "IpamDriver.RequestPool" request_pool: PoolRequest -> Pool;
    /// Gives an address of it.
    "IpamDriver.RequestAddress" request_address: AddressRequest -> Address;
    /// Takes an address back.
    "IpamDriver.ReleaseAddress" release_address: ReleasedAddress -> Done;
    /// Makes a network of Docker's mean one of the cluster's.
    "NetworkDriver.CreateNetwork" create_network: NetworkRequest -> Done;
    /// Forgets a network of Docker's.
    "NetworkDriver.DeleteNetwork" delete_network: NetworkGone -> Done;
    /// Makes an endpoint of addresses.
    "NetworkDriver.CreateEndpoint" create_endpoint: NewEndpoint -> CreatedEndpoint;
    /// Ends an endpoint.
    "NetworkDriver.DeleteEndpoint" delete_endpoint: EndpointRequest -> Done;
    /// Makes the interface of an endpoint.
    "NetworkDriver.Join" join: SandboxRequest -> Joined;
    /// Has an endpoint carry nothing any more.
    "NetworkDriver.Leave" leave: EndpointRequest -> Done;
    /// Has ports of the host lead to an endpoint.
    "NetworkDriver.ProgramExternalConnectivity" publish: PublishRequest -> Done;
}

/// Answers Docker until `stop` resolves and the calls in flight are done.
///
/// # Errors
/// When the socket fails for good.
pub async fn serve<D: Driver>(
    listener: ApiListener,
    driver: Arc<D>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_router(listener, router(driver), stop).await
}

fn router<D: Driver>(driver: Arc<D>) -> Router {
    let constants = [
        ("/Plugin.Activate", json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
        // Docker refuses drivers of scope "global" where it is no swarm, and plugins of this kind where it is one.
        ("/NetworkDriver.GetCapabilities", json!({ "Scope": "local", "ConnectivityScope": "global" })),
        // With "RequiresMACAddress" Docker makes MAC addresses up, and a container that comes again with its IP address
        // has another one each time.
        ("/IpamDriver.GetCapabilities", json!({})),
        (
            "/IpamDriver.GetDefaultAddressSpaces",
            json!({ "LocalDefaultAddressSpace": ADDRESS_SPACE, "GlobalDefaultAddressSpace": "overlayd-global" }),
        ),
        ("/IpamDriver.ReleasePool", json!({})),
        ("/NetworkDriver.EndpointOperInfo", json!({ "Value": {} })),
        ("/NetworkDriver.RevokeExternalConnectivity", json!({})),
        ("/NetworkDriver.DiscoverNew", json!({})),
        ("/NetworkDriver.DiscoverDelete", json!({})),
    ];
    let constants = constants.into_iter().fold(Router::new(), |router, (path, answer)| {
        router.route(path, post(async move || Json(answer.clone())))
    });
    calls::<D>()
        .merge(constants)
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(middleware::from_fn_with_state(Arc::clone(&driver), admit::<D>))
        .with_state(driver)
}

async fn admit<D: Driver>(
    State(driver): State<Arc<D>>,
    caller: ConnectInfo<Caller>,
    request: axum::extract::Request,
    next: middleware::Next,
) -> Response {
    admit_caller(driver.events(), caller, request, next).await
}

fn note(events: &Events, caller: Caller, path: &str, request: &impl Request) -> Noted {
    let request = Event::LocalRequest {
        uid: caller.uid,
        pid: caller.pid,
        request: path.to_owned(),
        subject: Some(Reason::from(request.subject())),
        failure: None,
    };
    Noted::begin(events, Some(request))
}

/// Docker looks for an error by another name in each half of itself, and only in answers that are in order.
fn refused(path: &str, error: &impl std::fmt::Display) -> Response {
    let name = if path.starts_with("IpamDriver") { "Error" } else { "Err" };
    Json(json!({ name: error.to_string() })).into_response()
}
