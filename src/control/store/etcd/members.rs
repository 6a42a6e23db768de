//! The members of an etcd: calls whichever answers, over gRPC, and connects anew whenever it must.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use super::access::{EtcdAccess, host_of};
use super::error::EtcdError;
use super::proto::{
    AUTHENTICATE, AuthenticateRequest, AuthenticateResponse, RANGE, RangeRequest, RangeResponse, TXN,
    TxnRequest, TxnResponse, WATCH, WatchCreateRequest, WatchRequest, WatchResponse,
};

/// The members, each with its connection, which is made at the first call.
pub(super) struct Members {
    members: Vec<(String, Channel)>,
    /// The one to begin with: it answered last.
    next: AtomicUsize,
    user: Option<(String, Zeroizing<String>)>,
    /// What etcd gave for the password.
    token: Mutex<Option<MetadataValue<Ascii>>>,
    prefix: String,
}

/// Why a member did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not asked, or did nothing: nothing has happened.
    NotAsked(String),
    /// It may have done it.
    Unknown(String),
    /// It says no.
    Refused(EtcdError),
}

impl Members {
    /// # Errors
    /// The TLS that is asked for cannot be.
    pub(super) fn new(access: &EtcdAccess) -> Result<Self, EtcdError> {
        let tls = access.tls()?.map(Arc::new);
        let members =
            access.address.members().iter().map(|member| (member.clone(), channel(member, tls.clone())));
        Ok(Self {
            members: members.collect(),
            next: AtomicUsize::new(0),
            user: access.user.clone(),
            token: Mutex::new(None),
            prefix: access.address.prefix().to_owned(),
        })
    }

    /// Reads, from whichever member can.
    pub(super) async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, EtcdError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let failures = match self.round(RANGE, request, |_| false).await {
                Ok(response) => return Ok(response),
                Err(Failed { refused: Some(refused), .. }) => return Err(refused),
                Err(failed) => failed,
            };
            // Where nobody answers there is nothing to wait for.
            if !failures.is_alive || Instant::now() > deadline {
                return Err(EtcdError::Unreachable { why: failures.whys.join("; ") });
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks one member after the other for a transaction until one may have carried it out.
    pub(super) async fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, Failure> {
        self.round(TXN, request, |failure| matches!(failure, Failure::Unknown(_))).await.map_err(|failed| {
            let why = failed.whys.join("; ");
            match failed.refused {
                Some(refused) => Failure::Refused(refused),
                None if failed.may_have_happened => Failure::Unknown(why),
                None => Failure::NotAsked(why),
            }
        })
    }

    /// Begins to watch a key, as far as the member that is asked has a leader.
    pub(super) async fn watch(&self, key: Vec<u8>) -> Result<Streaming<WatchResponse>, String> {
        let begin = self.next.load(Ordering::Relaxed);
        let (name, channel) = &self.members[begin % self.members.len()];
        let attempt = async {
            let create = WatchRequest { create: Some(WatchCreateRequest { key }) };
            // The stream of requests stays open: etcd ends the watch with it.
            let requests = futures_util::StreamExt::chain(
                futures_util::stream::iter([create]),
                futures_util::stream::pending(),
            );
            let mut request = self.authorized(requests, channel).await?;
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await.map_err(|error| Failure::NotAsked(deepest(&error)))?;
            let path = PathAndQuery::from_static(WATCH);
            let answer =
                grpc.streaming(request, path, ProstCodec::<WatchRequest, WatchResponse>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.judge(&status))
        };
        let failed = match timeout(ATTEMPT, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        self.pass_over(begin);
        Err(format!("{name}: {failed}"))
    }

    /// Begins with another member than `index` from now on.
    pub(super) fn pass_over(&self, index: usize) {
        self.next.store(index.wrapping_add(1) % self.members.len(), Ordering::Relaxed);
    }

    /// The one that calls begin with.
    pub(super) fn current(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    async fn round<Q, R>(
        &self,
        path: &'static str,
        request: &Q,
        ends: impl Fn(&Failure) -> bool,
    ) -> Result<R, Failed>
    where
        Q: prost::Message + Clone + 'static,
        R: prost::Message + Default + 'static,
    {
        let begin = self.next.load(Ordering::Relaxed);
        let mut failed = Failed::default();
        for offset in 0..self.members.len() {
            let index = begin.wrapping_add(offset) % self.members.len();
            let (name, channel) = &self.members[index];
            let failure = match self.ask(channel, path, request).await {
                Ok(response) => {
                    self.next.store(index, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            failed.may_have_happened |= matches!(failure, Failure::Unknown(_));
            failed.is_alive |=
                matches!(failure, Failure::Unknown(_)) && !failure.to_string().starts_with(BROKEN);
            failed.whys.push(format!("{name}: {failure}"));
            let ended = ends(&failure);
            if let Failure::Refused(refused) = failure {
                failed.refused = Some(refused);
                return Err(failed);
            }
            if ended {
                self.pass_over(index);
                return Err(failed);
            }
        }
        Err(failed)
    }

    async fn ask<Q, R>(&self, channel: &Channel, path: &'static str, message: &Q) -> Result<R, Failure>
    where
        Q: prost::Message + Clone + 'static,
        R: prost::Message + Default + 'static,
    {
        let request = self.authorized(message.clone(), channel).await?;
        match self.unary(channel, path, request).await {
            Err(Failure::NotAsked(why)) if why == STALE_TOKEN => {
                *self.token.lock().expect(NO_PANIC) = None;
                let request = self.authorized(message.clone(), channel).await?;
                self.unary(channel, path, request).await
            }
            answer => answer,
        }
    }

    async fn unary<Q, R>(
        &self,
        channel: &Channel,
        path: &'static str,
        request: Request<Q>,
    ) -> Result<R, Failure>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MOST_BYTES);
        let attempt = async {
            grpc.ready().await.map_err(|error| Failure::NotAsked(deepest(&error)))?;
            let answer =
                grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<Q, R>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.judge(&status))
        };
        let silent = |_| Err(Failure::Unknown(format!("no answer within {} s", ATTEMPT.as_secs())));
        timeout(ATTEMPT, attempt).await.unwrap_or_else(silent)
    }

    /// A request with the token of our user, if we are one.
    async fn authorized<Q>(&self, message: Q, channel: &Channel) -> Result<Request<Q>, Failure> {
        let mut request = Request::new(message);
        let Some((name, password)) = &self.user else { return Ok(request) };
        let known = self.token.lock().expect(NO_PANIC).clone();
        let token = match known {
            Some(token) => token,
            None => {
                let who = AuthenticateRequest { name: name.clone(), password: password.to_string() };
                let answer = self.unary(channel, AUTHENTICATE, Request::new(who)).await;
                let answer: AuthenticateResponse = answer.map_err(|failure| match failure {
                    // Whatever became of it, nothing has changed.
                    Failure::Unknown(why) => Failure::NotAsked(why),
                    other @ (Failure::NotAsked(_) | Failure::Refused(_)) => other,
                })?;
                let token: MetadataValue<Ascii> =
                    answer.token.parse().map_err(|_| self.denied("it gave no token"))?;
                *self.token.lock().expect(NO_PANIC) = Some(token.clone());
                token
            }
        };
        request.metadata_mut().insert("token", token);
        Ok(request)
    }

    fn denied(&self, why: &str) -> Failure {
        Failure::Refused(EtcdError::Denied { why: why.to_owned(), prefix: format!("{}/", self.prefix) })
    }

    /// What a status means (etcd's `api/v3rpc/rpctypes/error.go`).
    fn judge(&self, status: &Status) -> Failure {
        if let Some(unconnected) = in_chain::<NotConnected>(status) {
            return Failure::NotAsked(unconnected.to_string());
        }
        let why = status.message().trim_start_matches("etcdserver: ").to_owned();
        let refused = |error| Failure::Refused(error);
        match status.code() {
            Code::Unauthenticated => Failure::NotAsked(STALE_TOKEN.to_owned()),
            Code::InvalidArgument if why.contains("revision of auth store is old") => {
                Failure::NotAsked(STALE_TOKEN.to_owned())
            }
            Code::InvalidArgument if why.contains("too many operations") || why.contains("too large") => {
                refused(EtcdError::TooLarge { why })
            }
            Code::ResourceExhausted if why.contains("space exceeded") => refused(EtcdError::Full { why }),
            Code::ResourceExhausted if why.contains("larger than max") => {
                refused(EtcdError::TooLarge { why })
            }
            Code::ResourceExhausted => Failure::NotAsked(why),
            Code::PermissionDenied => self.denied(&why),
            Code::InvalidArgument if why.contains("user name is empty") => self.denied(
                "it wants a user: give --store-user and --store-password-file, or a client certificate",
            ),
            Code::InvalidArgument if why.contains("authentication failed") => {
                self.denied("user name or password is wrong")
            }
            Code::FailedPrecondition if why.contains("authentication is not enabled") => {
                self.denied("it has no users: leave --store-user out")
            }
            Code::OutOfRange => refused(EtcdError::Compacted),
            Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::DataLoss => Failure::Unknown(explain(status, why)),
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Unimplemented => refused(EtcdError::Refused { why }),
        }
    }
}

/// What a round of all members came to.
#[derive(Debug, Default)]
struct Failed {
    whys: Vec<String>,
    may_have_happened: bool,
    /// A member answers, though it cannot do anything now.
    is_alive: bool,
    refused: Option<EtcdError>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked(why) | Self::Unknown(why) => f.write_str(why),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

/// There is no connection, so nothing was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotConnected(String);

fn channel(member: &str, tls: Option<Arc<ClientConfig>>) -> Channel {
    let (to, connecting) = (member.to_owned(), tls);
    let dial = move |_| {
        let (to, tls) = (to.clone(), connecting.clone());
        async move {
            let stream = timeout(CONNECT, connect(&to, tls)).await;
            stream.unwrap_or_else(|_| Err(NotConnected("no answer".to_owned()))).map(TokioIo::new)
        }
    };
    Endpoint::from_static("http://etcd")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(CONNECT)
        .connect_with_connector_lazy(tower::service_fn(dial))
}

async fn connect(member: &str, tls: Option<Arc<ClientConfig>>) -> Result<Box<dyn Stream>, NotConnected> {
    let failed = |error: std::io::Error| NotConnected(error.to_string());
    let tcp = TcpStream::connect(member).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let Some(tls) = tls else { return Ok(Box::new(tcp)) };
    let name =
        ServerName::try_from(host_of(member).to_owned()).map_err(|error| NotConnected(error.to_string()))?;
    match TlsConnector::from(tls).connect(name, tcp).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => {
            Err(NotConnected(format!("TLS: {error}: is --store-ca what its certificate is signed by?")))
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn in_chain<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut error = error;
    loop {
        error = error.source()?;
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
    }
}

fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What etcd says, or what became of the connection.
fn explain(status: &Status, said: String) -> String {
    if status.source().is_none() {
        return said;
    }
    format!("{BROKEN}: {}; does it want TLS, or another client certificate?", deepest(status))
}

const BROKEN: &str = "the connection broke";
const STALE_TOKEN: &str = "the token has expired";
/// How long reading goes on while members answer that they cannot, as while they elect a leader.
const PATIENCE: Duration = Duration::from_secs(5);
/// One call of one member; an election takes about one second.
const ATTEMPT: Duration = Duration::from_millis(1500);
const CONNECT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// etcd breaks connections that ask more often than every 5 s (`--grpc-keepalive-min-time`).
const KEEPALIVE: Duration = Duration::from_secs(6);
/// A page of rows.
const MOST_BYTES: usize = 256 << 20;
const NO_PANIC: &str = "nothing panics while it holds the token";
