//! Joining: a machine with a token becomes a node with a certificate.
//!
//! ```text
//! client                                            manager
//! TLS, no client certificate      ---------->       certificate chain with the root
//! SHA-256(root) == token's digest, or nothing is said
//! {secret, CSR, host, addresses,  ---------->       checks the secret, and who it says it was;
//!  former certificate, if any}                      signs
//!                                 <----------       {certificate, root, managers} or a refusal
//! ```
//! One message each way, JSON, framed as `control::frame`. What the secret admits to, and the new
//! node's record, are the business of whoever implements [`Enrol`].

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::former::{BINDING_LABEL, ChannelBinding, FormerCertificate};
use super::frame::Frames;
use super::identity::{IdentityError, NodeIdentity, NodeKey, base64_der, base64_der_list};
use super::listener::{EnrolStream, source_of};
use super::tls::peer::{CONNECT_TIMEOUT, ConnectError, dial};
use super::tls::{Clock, connect_with_token, verify_identity};
use super::trust::Refusal;
use crate::cluster::Role;
use crate::events::{Event, Events, Reason};
use crate::id::{HostName, NodeId};
use crate::membership::{JoinToken, Roots, TokenSecret};

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
        let issuer = self.roots.iter().find(|root| root.der() == self.root.as_ref());
        match (issuer, self.roots.iter().find(|root| token.is_of_root(root.der()))) {
            (Some(issuer), Some(named)) => {
                issuer == named || Roots::from(issuer.clone()).follow_from(&Roots::sole(named.der())).is_ok()
            }
            (None, _) | (_, None) => self.roots.is_empty() && token.is_of_root(&self.root),
        }
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
        "the token works once, and node {node} has joined with it; if that is not this machine's own attempt,          remove that node; make another token on a manager: overlayd token worker --once"
    )]
    TokenUsed {
        /// Who joined with it.
        node: NodeId,
    },
    /// An operator removed the token.
    #[error("the token was removed; make another on a manager: overlayd token worker --once")]
    TokenRemoved,
    /// Too many wrong secrets came from the address.
    #[error("too many failed attempts to join from this address; try again in a minute")]
    TooManyAttempts,
    /// The machine shows a certificate whose key it does not hold.
    #[error(
        "this machine does not hold the key of the certificate that it shows: overlayd leave, and join anew"
    )]
    NotTheHolder,
    /// What the machine says of itself cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The manager cannot do it now.
    #[error("the manager cannot admit nodes now: {0}; try again")]
    Unavailable(String),
}

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
    let tls = tokio::time::timeout(CONNECT_TIMEOUT, dial(manager, handshake))
        .await
        .map_err(|_elapsed| ConnectError::TimedOut { address: manager })??;
    let binding = bind(tls.get_ref().1);
    let former = former.map(|identity| FormerCertificate::prove(identity, &binding, &csr)).transpose()?;
    let request = EnrolRequest { secret, csr, machine, former };
    let exchange = async {
        let mut frames = Frames::new(tls);
        frames.send(&Zeroizing::new(to_json(&request))).await?;
        frames.receive().await
    };
    let answer = tokio::time::timeout(EXCHANGE_TIMEOUT, exchange)
        .await
        .map_err(|_elapsed| EnrolError::NoAnswer)?
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
pub async fn serve<E: Enrol>(service: Arc<E>, mut streams: mpsc::Receiver<EnrolStream>, events: Events) {
    let mut exchanges = JoinSet::new();
    let mut failures = Failures::default();
    let mut minute = tokio::time::interval(Duration::from_secs(60));
    // The first tick would come at once, whenever the loop first looks.
    minute.reset();
    loop {
        tokio::select! {
            stream = streams.recv(), if exchanges.len() < MAX_EXCHANGES => match stream {
                Some(stream) => {
                    let source = source_of(stream.from.ip());
                    let welcome = failures.begin(source);
                    let (service, events) = (Arc::clone(&service), events.clone());
                    // Who failed too often is not left to hold one of the few exchanges.
                    let patience = if welcome { EXCHANGE_TIMEOUT } else { Duration::from_secs(1) };
                    exchanges.spawn(async move {
                        let exchange = answer(&*service, stream, welcome, &events);
                        (source, tokio::time::timeout(patience, exchange).await.unwrap_or(false))
                    });
                }
                None => break,
            },
            Some(ended) = exchanges.join_next() => match ended {
                Ok((source, true)) => failures.forgive(source),
                Ok((_, false)) => {}
                Err(error) => tracing::error!(%error, "an enrolment task died"),
            },
            _ = minute.tick() => failures = Failures::default(),
        }
    }
}

/// Answers one request; true when the token was one that admits.
async fn answer<E: Enrol>(service: &E, stream: EnrolStream, welcome: bool, events: &Events) -> bool {
    let EnrolStream { mut frames, from } = stream;
    let binding = bind(frames.get_ref().get_ref().1);
    let request = match frames.receive().await {
        Ok(Some(request)) => serde_json::from_slice::<EnrolRequest>(&request),
        Ok(None) => return false,
        Err(error) => {
            tracing::debug!(%from, %error, "enrolment broke off");
            return false;
        }
    };
    let outcome = match request {
        _ if !welcome => Err(EnrolRefusal::TooManyAttempts),
        Ok(EnrolRequest { former: Some(former), csr, .. }) if !former.is_held(&binding, &csr) => {
            Err(EnrolRefusal::NotTheHolder)
        }
        Ok(request) => service.enrol(request, from).await,
        Err(error) => Err(EnrolRefusal::Invalid(format!("the request is not understood: {error}"))),
    };
    match &outcome {
        Ok(enrolled) => tracing::info!(%from, node = %enrolled.node, role = %enrolled.role, "node joined"),
        Err(refusal) => {
            tracing::warn!(%from, reason = %refusal, "join refused");
            events.record(Event::JoinRefused { from, reason: Reason::of(refusal) });
        }
    }
    let sent = frames.send(&to_json(&outcome)).await;
    if let Err(error) = sent.and(frames.close().await) {
        tracing::debug!(%from, %error, "the answer to a join was not delivered");
    }
    match outcome {
        Ok(_) | Err(EnrolRefusal::Invalid(_) | EnrolRefusal::Unavailable(_)) => true,
        Err(
            EnrolRefusal::WrongSecret
            | EnrolRefusal::TokenExpired
            | EnrolRefusal::TokenUsed { .. }
            | EnrolRefusal::TokenRemoved
            | EnrolRefusal::NotTheHolder
            | EnrolRefusal::TooManyAttempts,
        ) => false,
    }
}

/// Attempts of the current minute that did not show a right secret.
#[derive(Debug, Default)]
struct Failures(HashMap<IpAddr, u32>);

impl Failures {
    /// Counts an attempt as failed until it is forgiven; false when there were too many.
    fn begin(&mut self, source: IpAddr) -> bool {
        let failed = self.0.entry(source).or_default();
        if *failed >= MAX_FAILURES_PER_MINUTE {
            return false;
        }
        *failed += 1;
        true
    }

    fn forgive(&mut self, source: IpAddr) {
        if let Some(failed) = self.0.get_mut(&source) {
            *failed = failed.saturating_sub(1);
        }
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

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_EXCHANGES: usize = 64;
const MAX_FAILURES_PER_MINUTE: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleventh_failure_in_a_minute_is_turned_away_and_successes_do_not_count() {
        let mut failures = Failures::default();
        let source = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..100 {
            assert!(failures.begin(source));
            failures.forgive(source);
        }
        assert_eq!((0..20).filter(|_| failures.begin(source)).count(), 10);
    }
}
