//! Joining: a machine with a token becomes a node with a certificate.
//!
//! ```text
//! client                                            manager
//! TLS, no client certificate      ---------->       certificate chain with the root
//! SHA-256(root) == token's digest, or nothing is said
//! {secret, the digest, CSR, host, ---------->       checks the secret, that the root is trusted still,
//!  addresses, former certificate,                   and who it says it was; signs
//!  if any}
//!                                 <----------       {certificate, root, managers} or a refusal
//! ```
//! One message each way, JSON, framed as `control::frame`. What the secret admits to, and the new
//! node's record, are the business of whoever implements [`Enrol`]. A machine that goes before it is answered is
//! taken out again, as nobody would be its node.

mod count;
mod limit;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use self::limit::{Attempt, Ending, JoinLimit};
use super::former::{BINDING_LABEL, ChannelBinding, FormerCertificate};
use super::frame::Frames;
use super::identity::{IdentityError, NodeIdentity, NodeKey, base64_der, base64_der_list};
use super::listener::{EnrolStream, source_of};
use super::refusal_log::RefusalLog;
use super::tls::peer::{CONNECT_TIMEOUT, ConnectError, dial};
use super::tls::{Clock, connect_with_token, verify_identity};
use super::trust::Refusal;
use crate::cluster::Role;
use crate::events::{Event, Events, Reason};
use crate::id::{HostName, NodeId};
use crate::io::clock::boot_time;
use crate::membership::{JoinToken, Roots, TokenSecret};

pub use self::count::JoinCounts;

/// What a machine tells of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// Its host name.
    pub host: HostName,
    /// Where its TLS port is reached; without it, the address that the manager sees.
    pub advertise: Option<IpAddr>,
    /// Its TLS port.
    pub advertise_port: u16,
    /// Where its encrypted data is reached; without it, the same as `advertise`.
    pub data: Option<IpAddr>,
    /// MTU of its underlay interface, in bytes.
    pub underlay_mtu: u32,
    /// The usual UDP port of encrypted data, where somebody else has it there. The cluster's may be another, which the
    /// machine does not know yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<u16>,
}

/// A machine's wish to join.
#[derive(Clone, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The secret of the token.
    pub secret: TokenSecret,
    /// A certificate request, PEM.
    pub csr: String,
    /// The machine.
    pub machine: Joining,
    /// The node that it is already. Whoever decides is asked only once the machine has proved that it holds
    /// the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<FormerCertificate>,
    /// SHA-256 of the root that the token names; machines with an earlier version do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_hash: Option<[u8; 32]>,
}

impl EnrolRequest {
    /// Whether the machine would believe a certificate by `issuer`, given with `roots`. One that would not must not be
    /// admitted: it would be a node that nobody is.
    pub fn would_believe(&self, issuer: &[u8], roots: &Roots) -> bool {
        self.root_hash
            .is_none_or(|hash| follows(issuer, roots, |root| Sha256::digest(root).as_slice() == hash))
    }
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").field("secret", &"[redacted]").field("machine", &self.machine).finish()
    }
}

/// What a new node needs to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its id.
    pub node: NodeId,
    /// What the token admits to.
    pub role: Role,
    /// Its certificates, leaf first, without the root.
    #[serde(with = "base64_der_list")]
    pub chain: Vec<CertificateDer<'static>>,
    /// The root.
    #[serde(with = "base64_der")]
    pub root: CertificateDer<'static>,
    /// All roots that the cluster trusts; while one takes the other's place, `root` may not be the one
    /// that the token names.
    #[serde(default)]
    pub roots: Roots,
    /// Where the managers are reached.
    pub managers: Vec<SocketAddr>,
    /// Where others will reach this node, as the manager recorded it.
    pub advertise: SocketAddr,
    /// Where others will send it encrypted data.
    pub data: SocketAddr,
}

impl Enrolled {
    /// Whether the root that the token names is that of the certificate, or has signed it. What other
    /// root is trusted meanwhile is the word of the manager, which has proved itself by the token's.
    fn follows_from(&self, token: &JoinToken) -> bool {
        follows(&self.root, &self.roots, |root| token.is_of_root(root))
    }
}

fn follows(issuer: &[u8], roots: &Roots, is_named: impl Fn(&[u8]) -> bool) -> bool {
    let issuing = roots.iter().find(|root| root.der() == issuer);
    match (issuing, roots.iter().find(|root| is_named(root.der()))) {
        (Some(issuing), Some(named)) => {
            issuing == named || Roots::from(issuing.clone()).follow_from(&Roots::sole(named.der())).is_ok()
        }
        (None, _) | (_, None) => roots.is_empty() && is_named(issuer),
    }
}

/// Decides who joins.
pub trait Enrol: Send + Sync + 'static {
    /// Admits the machine at `from`, or says why not.
    fn enrol(
        &self,
        request: EnrolRequest,
        from: SocketAddr,
    ) -> impl Future<Output = Result<Enrolled, EnrolRefusal>> + Send;

    /// Takes back a node that was admitted to a machine which has never heard of it.
    fn take_back(&self, node: NodeId) -> impl Future<Output = ()> + Send;
}

/// Why a manager does not admit a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum EnrolRefusal {
    /// No token has this secret.
    #[error(
        "the token is of this cluster but not (or no longer) valid; ask a manager for it: overlayd token worker"
    )]
    WrongSecret,
    /// The token's time is over.
    #[error("the token has expired; make another on a manager: overlayd token worker --ttl 2h")]
    TokenExpired,
    /// The token worked once.
    #[error(
        "the token works once, and node {node} has joined with it; if that is not this machine's own attempt, remove that node; make another token on a manager: overlayd token worker --once"
    )]
    TokenUsed {
        /// Who joined with it.
        node: NodeId,
    },
    /// An operator removed the token.
    #[error("the token was removed; make another on a manager: overlayd token worker --once")]
    TokenRemoved,
    /// Too many wrong secrets came from the address.
    #[error("too many failed attempts to join from this address; try again in {retry_seconds} s")]
    TooManyAttempts {
        /// When it will be heard again.
        retry_seconds: u64,
    },
    /// The machine shows a certificate whose key it does not hold.
    #[error(
        "this machine does not hold the key of the certificate that it shows: overlayd leave, and join anew"
    )]
    NotTheHolder,
    /// More machines join than the manager serves at a time.
    #[error("too many machines join at once; try again in {retry_seconds} s")]
    Busy {
        /// When there may be room.
        retry_seconds: u64,
    },
    /// What the machine says of itself cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The manager cannot do it now.
    #[error("the manager cannot admit nodes now: {0}; try again")]
    Unavailable(String),
}

/// The UDP port of encrypted data unless a cluster has another: RFC 3948's.
pub const USUAL_DATA_PORT: u16 = 4500;

/// Joins the cluster of `token` by the manager at `manager`.
///
/// The key of the new node is drawn here and never leaves it.
///
/// # Errors
/// The manager cannot be reached or is of another cluster (then nothing was sent), refuses the
/// token or the machine, or answers with a certificate that is not for our key.
pub async fn enrol(
    manager: SocketAddr,
    token: &JoinToken,
    machine: Joining,
    clock: Clock,
) -> Result<(NodeIdentity, Enrolled), EnrolError> {
    ask(manager, token, machine, None, clock).await
}

/// As [`enrol`], as the node of `former`, whose certificate has expired.
///
/// # Errors
/// As [`enrol`]; the node was removed, or the manager takes this machine for another node.
pub async fn enrol_again(
    manager: SocketAddr,
    token: &JoinToken,
    machine: Joining,
    former: &NodeIdentity,
    clock: Clock,
) -> Result<(NodeIdentity, Enrolled), EnrolError> {
    let (identity, enrolled) = ask(manager, token, machine, Some(former), clock).await?;
    if (identity.cluster(), identity.node()) != (former.cluster(), former.node()) {
        return Err(EnrolError::Contradiction);
    }
    Ok((identity, enrolled))
}

async fn ask(
    manager: SocketAddr,
    token: &JoinToken,
    machine: Joining,
    former: Option<&NodeIdentity>,
    clock: Clock,
) -> Result<(NodeIdentity, Enrolled), EnrolError> {
    let key = NodeKey::generate()?;
    let (secret, csr) = (token.secret().clone(), key.request_pem()?);
    let handshake = connect_with_token(token.clone(), clock);
    let outcome = handshake.outcome.clone();
    let tls = timeout(CONNECT_TIMEOUT, dial(manager, handshake))
        .await
        .map_err(|_elapsed| ConnectError::TimedOut { address: manager })??;
    let binding = bind(tls.get_ref().1);
    let former = former.map(|identity| FormerCertificate::prove(identity, &binding, &csr)).transpose()?;
    let request = EnrolRequest { secret, csr, machine, former, root_hash: Some(token.root_hash()) };
    let exchange = async {
        let mut frames = Frames::new(tls, MAX_MESSAGE_BYTES);
        frames.send(&Zeroizing::new(to_json(&request))).await?;
        frames.receive().await
    };
    let answer = timeout(ANSWER_TIMEOUT, exchange)
        .await
        .map_err(|_elapsed| EnrolError::Silent)?
        .map_err(|source| ConnectError::of(manager, source, &outcome))?
        .ok_or(EnrolError::NoAnswer)?;
    let enrolled: Enrolled = serde_json::from_slice::<Result<Enrolled, EnrolRefusal>>(&answer)
        .map_err(EnrolError::Malformed)??;
    let identity = NodeIdentity::new(enrolled.chain.clone(), &key, enrolled.root.clone())?;
    let named = (identity.node(), identity.role());
    if named != (enrolled.node, enrolled.role) || !enrolled.follows_from(token) {
        return Err(EnrolError::Contradiction);
    }
    verify_identity(&identity, clock())?;
    Ok((identity, enrolled))
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The manager cannot be reached, or is not one of the token's cluster.
    #[error("cannot join: {0}")]
    Connect(#[from] ConnectError),
    /// The manager refuses.
    #[error("the manager refuses: {0}")]
    Refused(#[from] EnrolRefusal),
    /// The manager said nothing.
    #[error("the manager closed the connection without an answer; its log says why")]
    NoAnswer,
    /// The manager kept us waiting.
    #[error(
        "the manager has not answered for {} s: its disk or its etcd may be slow; try again",
        ANSWER_TIMEOUT.as_secs()
    )]
    Silent,
    /// The manager's answer does not parse.
    #[error("the manager's answer is not understood ({0}); are both of the same version?")]
    Malformed(serde_json::Error),
    /// The certificate in the answer is not ours.
    #[error("the manager's certificate for this node cannot be used: {0}")]
    Identity(#[from] IdentityError),
    /// The certificate in the answer would be refused by others.
    #[error("the manager's certificate for this node would be refused: {0}")]
    Unusable(#[from] Refusal),
    /// The answer and the certificate in it disagree.
    #[error("the manager's answer and the certificate in it disagree; is it the right manager?")]
    Contradiction,
}

/// Serves enrolment for ever, or until no more streams come.
pub async fn serve<E: Enrol>(
    service: Arc<E>,
    mut streams: mpsc::Receiver<EnrolStream>,
    events: Events,
    counts: Arc<JoinCounts>,
) {
    let mut exchanges = JoinSet::new();
    let mut limit = JoinLimit::default();
    let mut log = RefusalLog::default();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            stream = streams.recv(), if exchanges.len() < MAX_EXCHANGES => match stream {
                Some(stream) => {
                    let begun = limit.begin(source_of(stream.from.ip()), boot_time());
                    exchanges.spawn(exchange(Arc::clone(&service), stream, begun));
                }
                None => break,
            },
            Some(ended) = exchanges.join_next() => match ended {
                Ok(Exchange { attempt, from, outcome }) => {
                    if let Some(attempt) = attempt {
                        limit.end(attempt, ending(outcome.as_ref()), boot_time());
                    }
                    let Some(outcome) = outcome else { continue };
                    counts.count(&outcome);
                    if let Err(refusal) = outcome {
                        log.note(from, "join", &refusal);
                        events.record(Event::JoinRefused { from, reason: Reason::of(refusal) });
                    }
                }
                Err(error) => tracing::error!(%error, "an enrolment task died"),
            },
            _ = second.tick() => log.next_second(),
        }
    }
}

/// An exchange that is over.
struct Exchange {
    attempt: Option<Attempt>,
    from: SocketAddr,
    /// Nothing where the machine said nothing.
    outcome: Option<Result<(), EnrolRefusal>>,
}

async fn exchange<E: Enrol>(
    service: Arc<E>,
    stream: EnrolStream,
    begun: Result<Attempt, EnrolRefusal>,
) -> Exchange {
    let from = stream.from;
    let (attempt, outcome) = match begun {
        Ok(attempt) => (Some(attempt), answer(&*service, stream).await),
        // Who is only told to come later is not left to hold one of the few exchanges.
        Err(refusal) => {
            let told = timeout(Duration::from_secs(1), turn_away(stream, refusal)).await;
            (None, told.unwrap_or(None))
        }
    };
    Exchange { attempt, from, outcome }
}

/// Answers one request. What is decided is waited for, however long it takes: it is carried out even if nobody does,
/// and then the machine that it is for may have gone.
async fn answer<E: Enrol>(service: &E, stream: EnrolStream) -> Option<Result<(), EnrolRefusal>> {
    let EnrolStream { mut frames, from } = stream;
    let binding = bind(frames.get_ref().get_ref().1);
    let request = timeout(EXCHANGE_TIMEOUT, hear(&mut frames, from)).await.ok().flatten()?;
    let (mut is_new, mut has_gone) = (false, false);
    let outcome = match serde_json::from_slice::<EnrolRequest>(&request) {
        Ok(EnrolRequest { former: Some(former), csr, .. }) if !former.is_held(&binding, &csr) => {
            Err(EnrolRefusal::NotTheHolder)
        }
        Ok(request) => {
            is_new = request.former.is_none();
            let mut decision = pin!(service.enrol(request, from));
            tokio::select! {
                biased;
                // It has nothing more to say, so this is its end.
                _ = frames.receive() => {
                    has_gone = true;
                    decision.await
                }
                decided = &mut decision => decided,
            }
        }
        Err(error) => Err(EnrolRefusal::Invalid(format!("the request is not understood: {error}"))),
    };
    let is_told = !has_gone && tell(&mut frames, from, &outcome).await;
    match outcome {
        Ok(Enrolled { node, role, .. }) if is_told => {
            tracing::info!(%from, %node, %role, "node joined");
            Some(Ok(()))
        }
        Ok(Enrolled { node, .. }) => {
            tracing::warn!(%from, %node, "a machine had gone before it was told that it is a node");
            if is_new {
                service.take_back(node).await;
            }
            Some(Err(EnrolRefusal::Unavailable("the machine had gone before it was answered".to_owned())))
        }
        Err(refusal) => Some(Err(refusal)),
    }
}

async fn turn_away(stream: EnrolStream, refusal: EnrolRefusal) -> Option<Result<(), EnrolRefusal>> {
    let EnrolStream { mut frames, from } = stream;
    hear(&mut frames, from).await?;
    let outcome = Err(refusal);
    tell(&mut frames, from, &outcome).await;
    Some(outcome.map(|_| ()))
}

/// What the machine has to say, if it says anything.
async fn hear(frames: &mut Frames<TlsStream<TcpStream>>, from: SocketAddr) -> Option<Bytes> {
    frames.receive().await.unwrap_or_else(|error| {
        tracing::debug!(%from, %error, "enrolment broke off");
        None
    })
}

/// Tells the machine; whether it can have heard all of it.
async fn tell(
    frames: &mut Frames<TlsStream<TcpStream>>,
    from: SocketAddr,
    outcome: &Result<Enrolled, EnrolRefusal>,
) -> bool {
    let within =
        |sent: Result<io::Result<()>, _>| sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let sent = within(timeout(EXCHANGE_TIMEOUT, frames.send(&to_json(outcome))).await);
    let is_told = sent.is_ok();
    // Who closes first has what it wanted.
    let closed = match sent {
        Ok(()) => within(timeout(EXCHANGE_TIMEOUT, frames.close()).await),
        Err(error) => Err(error),
    };
    if let Err(error) = closed {
        tracing::debug!(%from, %error, "the answer to a join was not delivered");
    }
    is_told
}

fn ending(outcome: Option<&Result<(), EnrolRefusal>>) -> Ending {
    match outcome {
        Some(Ok(()) | Err(EnrolRefusal::Unavailable(_))) => Ending::Honest,
        // A request that nothing can be done with shows no token, as far as it is known here.
        None
        | Some(Err(
            EnrolRefusal::Invalid(_)
            | EnrolRefusal::WrongSecret
            | EnrolRefusal::TokenExpired
            | EnrolRefusal::TokenUsed { .. }
            | EnrolRefusal::TokenRemoved
            | EnrolRefusal::NotTheHolder
            | EnrolRefusal::TooManyAttempts { .. }
            | EnrolRefusal::Busy { .. },
        )) => Ending::Failed,
    }
}

/// What ties a proof to this connection.
fn bind<Data>(tls: &rustls::ConnectionCommon<Data>) -> ChannelBinding {
    let exported = tls.export_keying_material([0; 32], BINDING_LABEL, None);
    exported.expect("the handshake is over and the output is not empty")
}

fn to_json<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("these messages have string keys only and no failing serializer")
}

/// For a message to be said, or heard.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a machine waits to hear what a manager has decided: longer than a change of the cluster's state takes
/// with all that it waits for, if it comes to pass at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
const MAX_EXCHANGES: usize = 64;
/// Whoever can reach the port may send as much before it is known who that is.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 << 10;
