//! Certificate checks of one handshake: rustls' own first, then node, role, cluster and removal.
//!
//! A verifier serves one handshake and leaves what it found in its [`Outcome`], because rustls'
//! errors cannot carry both the alert for the other side and our reason.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use time::OffsetDateTime;

use super::{Outcome, provider};
use crate::cluster::Role;
use crate::control::ca::fingerprint;
use crate::control::identity::{CertificateName, IdentityError, NodeIdentity};
use crate::control::trust::{Expected, Proof, Refusal, Trust};
use crate::membership::{JoinToken, RootFingerprint};

/// Verifies that the other side is a node of the cluster, and the one that is wanted.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    trust: Arc<Trust>,
    expected: Expected,
    outcome: Outcome,
}

impl NodeVerifier {
    pub(super) fn new(trust: Arc<Trust>, expected: Expected) -> Self {
        Self { trust, expected, outcome: Outcome::default() }
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    /// Judges a certificate; `chain` is rustls' word on whether it leads to a root.
    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        chain: impl Fn(&Arc<RootCertStore>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let outcome = self.admit(certificate, now, chain);
        let answer = outcome.as_ref().map(|_| ()).map_err(Refusal::to_tls);
        self.outcome.set(outcome);
        answer
    }

    fn admit(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        chain: impl Fn(&Arc<RootCertStore>) -> Result<(), Error>,
    ) -> Result<Proof, Refusal> {
        let name = CertificateName::parse(certificate)?;
        let (mut roots, mut failure) = (Vec::new(), None);
        for anchor in self.trust.anchors() {
            match chain(&anchor.store) {
                Ok(()) => roots.push(anchor.root),
                Err(error) => failure = Some(more_telling(failure, error)),
            }
        }
        if roots.is_empty() {
            let error = failure.unwrap_or(CertificateError::UnknownIssuer.into());
            let refusal = Refusal::from_chain(error, &name, moment(now));
            // What an unverified certificate says of itself decides only which refusal is printed.
            if refusal == Refusal::WrongCa && name.cluster != self.trust.cluster() {
                return Err(Refusal::WrongCluster { theirs: name.cluster, ours: self.trust.cluster() });
            }
            return Err(refusal);
        }
        self.trust.admit(&name)?;
        self.trust.expect(self.expected, &name)?;
        Ok(Proof { name, roots })
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = |roots: &Arc<RootCertStore>| server_chain(end_entity, intermediates, roots, now);
        self.judge(end_entity, now, chain).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = |roots: &Arc<RootCertStore>| {
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
                .build()
                .map_err(|error| Error::General(error.to_string()))
                .and_then(|verifier| verifier.verify_client_cert(end_entity, intermediates, now))
                .map(|_verified| ())
        };
        self.judge(end_entity, now, chain).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Verifies that a manager answers whose root is the one that a join token names.
#[derive(Debug)]
pub(super) struct RootVerifier {
    token: JoinToken,
    outcome: Outcome,
}

impl RootVerifier {
    pub(super) fn new(token: JoinToken) -> Self {
        Self { token, outcome: Outcome::default() }
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    fn admit(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Proof, Refusal> {
        let root = intermediates.iter().find(|root| self.token.is_of_root(root));
        let root = root.ok_or_else(|| Refusal::WrongRoot {
            found: fingerprint(intermediates.last().unwrap_or(end_entity)),
        })?;
        let name = CertificateName::parse(end_entity)?;
        let cluster = CertificateName::cluster_of_root(root)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned()).map_err(Refusal::Tls)?;
        server_chain(end_entity, intermediates, &roots, now)
            .map_err(|error| Refusal::from_chain(error, &name, moment(now)))?;
        if let Some(ours) = cluster.filter(|named| *named != name.cluster) {
            return Err(Refusal::WrongCluster { theirs: name.cluster, ours });
        }
        if name.role != Role::Manager {
            return Err(Refusal::NotAManager { node: name.node });
        }
        Ok(Proof { name, roots: vec![RootFingerprint::of(root)] })
    }
}

impl ServerCertVerifier for RootVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let outcome = self.admit(end_entity, intermediates, now);
        let answer = outcome.as_ref().map(|_| ServerCertVerified::assertion()).map_err(Refusal::to_tls);
        self.outcome.set(outcome);
        answer
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Whether an identity would be accepted by its own cluster at `now`: its chain leads to its root,
/// and the clock lies within it.
///
/// # Errors
/// It would be refused, for the reason that others would give.
pub fn verify_identity(identity: &NodeIdentity, now: OffsetDateTime) -> Result<(), Refusal> {
    let name = verify_chain(identity.chain(), Arc::new(Trust::of(identity)?), now)?;
    Expected::Node(identity.node()).check(&name)
}

/// The node that a certificate chain (leaf first) names, if `trust` accepts it at `now`.
///
/// # Errors
/// It is refused.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    trust: Arc<Trust>,
    now: OffsetDateTime,
) -> Result<CertificateName, Refusal> {
    let (leaf, intermediates) = chain.split_first().ok_or(IdentityError::NotX509)?;
    let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let chain = |roots: &Arc<RootCertStore>| server_chain(leaf, intermediates, roots, now);
    Ok(NodeVerifier::new(trust, Expected::AnyNode).admit(leaf, now, chain)?.name)
}

/// That a root is not the signer's says nothing of what is wrong under the one that is.
fn more_telling(first: Option<Error>, second: Error) -> Error {
    let foreign = CertificateError::UnknownIssuer.into();
    first
        .filter(|first| *first != foreign && *first != CertificateError::BadSignature.into())
        .unwrap_or(second)
}

fn server_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(end_entity)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms().all)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

fn moment(at: UnixTime) -> OffsetDateTime {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
