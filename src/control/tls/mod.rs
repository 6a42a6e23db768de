//! TLS as every connection of the control plane uses it: 1.3 only, mutual, never resumed.
//!
//! [`Credentials`] holds what a node shows ([`NodeIdentity`]) and whom it believes ([`Trust`]); both
//! can be replaced while connections live. Every handshake has its own rustls configuration, made
//! here, so that a failed one can say precisely why. There are no tickets, no resumption and no
//! 0-RTT: a resumed session would skip the certificate check (RFC 8446 §2.2, §2.3).

pub mod peer;
mod verify;

use std::sync::{Arc, LazyLock, OnceLock};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use time::OffsetDateTime;
use tokio::sync::watch;

use self::verify::{NodeVerifier, RootVerifier};
pub use self::verify::{verify_chain, verify_identity};
use super::identity::{IdentityError, NodeIdentity};
use super::trust::{Expected, Proof, Refusal, Trust};
use crate::membership::{JoinToken, Root, Roots};
use crate::sa;

/// Reads the wall clock; `io::clock::wall_clock` outside tests.
pub type Clock = fn() -> OffsetDateTime;

/// What this node shows to others and whom it believes, shared by all connections.
pub struct Credentials {
    shown: ArcSwap<Shown>,
    trust: watch::Sender<Arc<Trust>>,
    clock: Clock,
}

impl Credentials {
    /// Shares `identity` and `trust`.
    ///
    /// # Errors
    /// The key of the identity cannot sign.
    pub fn new(identity: NodeIdentity, trust: Trust, clock: Clock) -> Result<Arc<Self>, IdentityError> {
        let shown = ArcSwap::from_pointee(Shown::new(identity)?);
        Ok(Arc::new(Self { shown, trust: watch::Sender::new(Arc::new(trust)), clock }))
    }

    /// The identity that new connections show.
    pub fn identity(&self) -> Arc<NodeIdentity> {
        Arc::clone(&self.shown.load().identity)
    }

    /// Shows a renewed identity from now on; connections that live keep the old one.
    ///
    /// # Errors
    /// It is of another node or cluster, or its key cannot sign.
    pub fn replace_identity(&self, identity: NodeIdentity) -> Result<(), IdentityError> {
        let old = self.identity();
        if (old.node(), old.cluster()) != (identity.node(), identity.cluster()) {
            return Err(IdentityError::Node { found: identity.node().to_string() });
        }
        self.shown.store(Arc::new(Shown::new(identity)?));
        Ok(())
    }

    /// Whom this node believes now.
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.borrow())
    }

    /// Believes in `trust` from now on: new handshakes are held against it, and live connections to
    /// nodes that it refuses are cut.
    pub fn replace_trust(&self, trust: Trust) {
        self.trust.send_if_modified(|present| {
            // A thousand connections need not wake for each node that joins.
            let cuts = !trust.admits_all_of(present);
            *present = Arc::new(trust);
            cuts
        });
    }

    /// As [`Self::replace_trust`], by what `change` makes of whom this node believes now.
    pub fn change_trust(&self, change: impl FnOnce(Trust) -> Trust) {
        self.trust.send_modify(|trust| *trust = Arc::new(change(Trust::clone(trust))));
    }

    /// Changes of the trust, for connections that live longer than one.
    pub(super) fn watch_trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// The wall clock that certificates are held against.
    pub fn now(&self) -> OffsetDateTime {
        (self.clock)()
    }

    /// A client's side of one handshake.
    pub(super) fn connect(&self, protocol: Protocol, expected: Expected) -> OneHandshake<ClientConfig> {
        let verifier = NodeVerifier::new(self.trust(), expected);
        let outcome = verifier.outcome();
        let builder = ClientConfig::builder_with_details(provider(), Arc::new(ClockOf(self.clock)))
            .with_protocol_versions(TLS_1_3)
            .expect("the provider has cipher suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let shown = self.shown.load().key.clone();
        let mut config = builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        harden_client(&mut config, protocol);
        OneHandshake { config: Arc::new(config), outcome }
    }

    /// A server's side of one handshake. Enrolment asks for no certificate and shows the roots too, and
    /// what the old one signed for the new: a token of either is good while one takes the other's place.
    pub(super) fn accept(&self, protocol: Protocol) -> OneHandshake<ServerConfig> {
        let verifier = NodeVerifier::new(self.trust(), Expected::AnyNode);
        let outcome = verifier.outcome();
        let builder = ServerConfig::builder_with_details(provider(), Arc::new(ClockOf(self.clock)))
            .with_protocol_versions(TLS_1_3)
            .expect("the provider has cipher suites of TLS 1.3");
        let (shown, trust) = (self.shown.load(), self.trust());
        let (builder, key) = match protocol {
            Protocol::Enrol => (builder.with_no_client_auth(), shown.key_with(trust.roots())),
            Protocol::Manager | Protocol::Key => {
                (builder.with_client_cert_verifier(Arc::new(verifier)), shown.key.clone())
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        OneHandshake { config: Arc::new(config), outcome }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.shown.load().identity)
            .field("trust", &self.trust.borrow())
            .finish_non_exhaustive()
    }
}

/// What a TLS connection carries, named by ALPN (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Joining the cluster: only the server has a certificate.
    Enrol,
    /// The manager API, gRPC.
    Manager,
    /// The peer key channel.
    Key,
}

impl Protocol {
    /// The protocol that a client's offer names, our own before `h2`.
    pub(super) fn offered<'a>(mut alpn: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        alpn.find_map(|offer| {
            [Self::Enrol, Self::Manager, Self::Key].into_iter().find(|protocol| protocol.alpn() == offer)
        })
    }

    /// The protocol's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enrol => "overlayd-enrol/1",
            Self::Manager => "h2",
            Self::Key if sa::ENCRYPTS => "overlayd-key/1",
            // Not to be confused with a node that encrypts.
            Self::Key => "overlayd-key/null",
        }
    }

    const fn alpn(self) -> &'static [u8] {
        self.name().as_bytes()
    }
}

/// A configuration for one handshake, and what its verifier found.
pub(super) struct OneHandshake<C> {
    pub(super) config: Arc<C>,
    pub(super) outcome: Outcome,
}

/// What the verifier of one handshake found, once it has run.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome(Arc<OnceLock<Result<Proof, Refusal>>>);

impl Outcome {
    fn set(&self, outcome: Result<Proof, Refusal>) {
        // A second certificate cannot come in one handshake of TLS 1.3, so the first stands.
        let _already_set = self.0.set(outcome);
    }

    /// What was verified; `None` before, after a refusal and for anonymous clients.
    pub(super) fn proof(&self) -> Option<Proof> {
        self.0.get().and_then(|outcome| outcome.as_ref().ok()).cloned()
    }

    /// Why the handshake that ended in `error` was refused, if it was: an error of the network is `None`.
    pub(super) fn refusal(&self, error: &std::io::Error) -> Option<Refusal> {
        if let Some(Err(refusal)) = self.0.get() {
            return Some(refusal.clone());
        }
        refusal_in(error)
    }
}

/// The refusal that an I/O error of a TLS stream stands for.
pub(super) fn refusal_in(error: &std::io::Error) -> Option<Refusal> {
    let inner = error.get_ref()?;
    if let Some(refusal) = inner.downcast_ref::<Refusal>() {
        return Some(refusal.clone());
    }
    inner.downcast_ref::<rustls::Error>().cloned().map(Refusal::from_tls)
}

/// The client's side of enrolment: it has no certificate, and believes the root that `token` names.
pub(super) fn connect_with_token(token: JoinToken, clock: Clock) -> OneHandshake<ClientConfig> {
    let verifier = RootVerifier::new(token);
    let outcome = verifier.outcome();
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(ClockOf(clock)))
        .with_protocol_versions(TLS_1_3)
        .expect("the provider has cipher suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    harden_client(&mut config, Protocol::Enrol);
    OneHandshake { config: Arc::new(config), outcome }
}

struct Shown {
    identity: Arc<NodeIdentity>,
    key: Arc<CertifiedKey>,
}

impl Shown {
    fn new(identity: NodeIdentity) -> Result<Self, IdentityError> {
        let key = identity.certified_key()?;
        Ok(Self { identity: Arc::new(identity), key: Arc::new(key) })
    }

    /// With the cross-signatures and then the roots, which the other side does not have.
    fn key_with(&self, roots: &Roots) -> Arc<CertifiedKey> {
        let mut key = CertifiedKey::clone(&self.key);
        let crossed = roots.iter().filter_map(Root::cross);
        let shown = crossed.chain(roots.iter().map(Root::der));
        key.cert.extend(shown.map(|der| CertificateDer::from(der.to_vec())));
        Arc::new(key)
    }
}

struct ClockOf(Clock);

impl TimeProvider for ClockOf {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from((self.0)().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

impl std::fmt::Debug for ClockOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClockOf")
    }
}

fn harden_client(config: &mut ClientConfig, protocol: Protocol) {
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                cipher_suite::TLS13_AES_128_GCM_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
            ..default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

const TLS_1_3: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
