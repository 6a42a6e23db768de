//! The members of an etcd: calls whichever answers, over gRPC, and connects anew whenever it must.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use super::access::{EtcdAccess, host_of};
use super::error::EtcdError;
use super::fault::{Fault, NotConnected, deepest};
use super::proto::{
    AUTHENTICATE, AuthenticateRequest, AuthenticateResponse, RANGE, RangeRequest, RangeResponse, TXN,
    TxnRequest, TxnResponse, WATCH, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::control::attempts;

/// The members, each with its connection, which is made at the first call.
pub(super) struct Members {
    members: Vec<Member>,
    /// The index of the one to begin with: it answered last.
    next: AtomicUsize,
    user: Option<(String, Zeroizing<String>)>,
    /// What etcd gave for the password.
    token: Mutex<Option<MetadataValue<Ascii>>>,
    prefix: String,
}

/// Why no member did what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// None was asked, or did anything: nothing has happened.
    NotAsked(String),
    /// One may have done it.
    Unknown(String),
    /// One says no.
    Refused(EtcdError),
}

impl Members {
    /// # Errors
    /// The TLS that is asked for cannot be.
    pub(super) fn new(access: &EtcdAccess) -> Result<Self, EtcdError> {
        let tls = access.tls()?.map(Arc::new);
        let members = access.address.members().iter().enumerate().map(|(index, name)| Member {
            index,
            name: name.clone(),
            channel: channel(name, tls.clone()),
            has_answered: AtomicBool::new(false),
        });
        let members: Vec<_> = members.collect();
        // It goes with this machine, and managers do not all depend on the same one.
        let beside_us = members.iter().position(|member| is_here(&member.name));
        Ok(Self {
            members,
            next: AtomicUsize::new(beside_us.unwrap_or(0)),
            user: access.user.clone(),
            token: Mutex::new(None),
            prefix: access.address.prefix().to_owned(),
        })
    }

    /// Reads, from whichever member answers first.
    pub(super) async fn range(
        &self,
        request: &RangeRequest,
        patience: Duration,
    ) -> Result<RangeResponse, EtcdError> {
        self.any(RANGE, request, patience).await
    }

    /// Has whichever member does it first carry out a transaction that may be carried out more than once.
    pub(super) async fn repeat(
        &self,
        request: &TxnRequest,
        patience: Duration,
    ) -> Result<TxnResponse, EtcdError> {
        self.any(TXN, request, patience).await
    }

    /// The answer that comes first: each member is asked a moment after the one before, and once more while the first
    /// question waits, since what a member was asked without a leader it may not answer when there is one. Each is
    /// asked again and again then, for as long as `patience` says, without waiting for the others; but where none
    /// lives there is nothing to wait for.
    async fn any<Q, R>(&self, path: &'static str, request: &Q, patience: Duration) -> Result<R, EtcdError>
    where
        Q: prost::Message + Clone + 'static,
        R: prost::Message + Default + 'static,
    {
        let faults = Mutex::new(Faults::default());
        let (now, end) = (Instant::now(), Instant::now() + patience);
        let once = self.order().map(|member| (member, now));
        let lasting = self.order().map(|member| (member, end));
        let asked = once.chain(lasting);
        let asked: Vec<_> =
            asked.map(|(member, end)| self.keep_asking(member, (path, request), end, &faults)).collect();
        if let Ok(answer) = attempts::first(asked, STAGGER).await {
            return answer;
        }
        let Faults { last, .. } = faults.into_inner().expect(NO_PANIC);
        let whys: Vec<_> = last.iter().map(|(name, fault)| format!("{name}: {fault}")).collect();
        Err(EtcdError::Unreachable { why: whys.join("; ") })
    }

    /// The answer or refusal of one member, asked until `end` as long as there is hope for any.
    async fn keep_asking<'m, Q, R>(
        &'m self,
        member: &'m Member,
        (path, request): (&'static str, &Q),
        end: Instant,
        faults: &Mutex<Faults<'m>>,
    ) -> Result<Result<R, EtcdError>, ()>
    where
        Q: prost::Message + Clone + 'static,
        R: prost::Message + Default + 'static,
    {
        loop {
            let fault = match self.ask(member, path, request).await {
                Ok(response) => return Ok(Ok(response)),
                Err(Fault::Refused(refused)) => return Ok(Err(refused)),
                Err(fault) => fault,
            };
            let is_hope = {
                let mut faults = faults.lock().expect(NO_PANIC);
                faults.is_alive |= fault.is_of_the_living();
                faults.last.insert(&member.name, fault);
                faults.is_alive || faults.last.len() < self.members.len()
            };
            if !is_hope || Instant::now() >= end {
                return Err(());
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks one member after the other for a transaction until one may have carried it out.
    pub(super) async fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, Failure> {
        let mut whys = Vec::new();
        for member in self.order() {
            let fault = match self.ask(member, TXN, request).await {
                Ok(response) => return Ok(response),
                Err(Fault::Refused(refused)) => return Err(Failure::Refused(refused)),
                Err(fault) => fault,
            };
            whys.push(format!("{}: {fault}", member.name));
            if fault.may_have_happened() {
                self.pass_over(member.index);
                return Err(Failure::Unknown(whys.join("; ")));
            }
        }
        Err(Failure::NotAsked(whys.join("; ")))
    }

    /// Begins to watch a key, as far as the member that is asked has a leader.
    pub(super) async fn watch(&self, key: Vec<u8>) -> Result<Streaming<WatchResponse>, String> {
        let member = &self.members[self.current() % self.members.len()];
        let attempt = async {
            let create = WatchRequest { create: Some(WatchCreateRequest { key }) };
            // The stream of requests stays open: etcd ends the watch with it.
            let requests = futures_util::StreamExt::chain(
                futures_util::stream::iter([create]),
                futures_util::stream::pending(),
            );
            let mut request = self.authorized(requests, member).await?;
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let mut grpc = Grpc::new(member.channel.clone());
            grpc.ready().await.map_err(|error| Fault::Unconnected(deepest(&error)))?;
            let path = PathAndQuery::from_static(WATCH);
            let answer =
                grpc.streaming(request, path, ProstCodec::<WatchRequest, WatchResponse>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.fault(member, &status))
        };
        let fault = match timeout(ATTEMPT, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(fault)) => fault,
            Err(_) => Fault::Silent,
        };
        self.pass_over(member.index);
        Err(format!("{}: {fault}", member.name))
    }

    /// Begins with another member than `index` from now on.
    pub(super) fn pass_over(&self, index: usize) {
        self.next.store(index.wrapping_add(1) % self.members.len(), Ordering::Relaxed);
    }

    /// The one that calls begin with.
    pub(super) fn current(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// The members, beginning with the one that answered last.
    fn order(&self) -> impl Iterator<Item = &Member> {
        let begin = self.current() % self.members.len();
        let (before, from) = self.members.split_at(begin);
        from.iter().chain(before)
    }

    async fn ask<Q, R>(&self, member: &Member, path: &'static str, message: &Q) -> Result<R, Fault>
    where
        Q: prost::Message + Clone + 'static,
        R: prost::Message + Default + 'static,
    {
        let request = self.authorized(message.clone(), member).await?;
        let answer = match self.unary(member, path, request).await {
            Err(Fault::StaleToken) => {
                *self.token.lock().expect(NO_PANIC) = None;
                let request = self.authorized(message.clone(), member).await?;
                self.unary(member, path, request).await
            }
            answer => answer,
        };
        if answer.is_ok() {
            self.next.store(member.index, Ordering::Relaxed);
            member.has_answered.store(true, Ordering::Relaxed);
        }
        answer
    }

    fn fault(&self, member: &Member, status: &Status) -> Fault {
        let mut fault = Fault::of(status, &self.prefix);
        if let Fault::Broken(why) = &mut fault
            && !member.has_answered.load(Ordering::Relaxed)
        {
            why.push_str("; does it want TLS, or another client certificate?");
        }
        fault
    }

    async fn unary<Q, R>(&self, member: &Member, path: &'static str, request: Request<Q>) -> Result<R, Fault>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(member.channel.clone()).max_decoding_message_size(MOST_BYTES);
        let attempt = async {
            grpc.ready().await.map_err(|error| Fault::Unconnected(deepest(&error)))?;
            let answer =
                grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<Q, R>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.fault(member, &status))
        };
        timeout(ATTEMPT, attempt).await.unwrap_or(Err(Fault::Silent))
    }

    /// A request with the token of our user, if we are one.
    async fn authorized<Q>(&self, message: Q, member: &Member) -> Result<Request<Q>, Fault> {
        let mut request = Request::new(message);
        let Some((name, password)) = &self.user else { return Ok(request) };
        let known = self.token.lock().expect(NO_PANIC).clone();
        let token = match known {
            Some(token) => token,
            None => {
                let who = AuthenticateRequest { name: name.clone(), password: password.to_string() };
                let answer = self.unary(member, AUTHENTICATE, Request::new(who)).await;
                let answer: AuthenticateResponse = answer.map_err(Fault::before_asking)?;
                let token: MetadataValue<Ascii> =
                    answer.token.parse().map_err(|_| Fault::denied("it gave no token", &self.prefix))?;
                *self.token.lock().expect(NO_PANIC) = Some(token.clone());
                token
            }
        };
        request.metadata_mut().insert("token", token);
        Ok(request)
    }
}

/// Why there is no answer yet.
#[derive(Default)]
struct Faults<'m> {
    /// Of each member that was asked.
    last: BTreeMap<&'m str, Fault>,
    /// Whether one seemed to be able to answer, at some time.
    is_alive: bool,
}

/// A member and the connection to it.
struct Member {
    index: usize,
    name: String,
    channel: Channel,
    /// So it is reached in the right way.
    has_answered: AtomicBool,
}

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

/// Whether a member is on this machine. What is bound here sends nothing.
fn is_here(member: &str) -> bool {
    let ip = host_of(member).parse::<IpAddr>();
    ip.is_ok_and(|ip| UdpSocket::bind((ip, 0)).is_ok())
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How long one call of one member may take.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Before another member is asked too for what is only read.
const STAGGER: Duration = Duration::from_millis(300);
const CONNECT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// etcd breaks connections that ask more often than every 5 s (`--grpc-keepalive-min-time`).
const KEEPALIVE: Duration = Duration::from_secs(6);
/// A page of rows.
const MOST_BYTES: usize = 256 << 20;
const NO_PANIC: &str = "nothing panics while it holds the token or what went wrong";
