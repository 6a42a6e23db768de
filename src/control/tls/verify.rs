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
    DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore, SignatureScheme,
};
use time::OffsetDateTime;

use super::{Outcome, provider};
use crate::cluster::Role;
use crate::control::ca::fingerprint;
use crate::control::identity::{CertificateName, IdentityError, NodeIdentity};
use crate::control::trust::{Expected, Refusal, Trust};
use crate::membership::JoinToken;

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

    /// Judges a certificate whose chain rustls found to be good or not.
    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        chain: Result<(), Error>,
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
        chain: Result<(), Error>,
    ) -> Result<CertificateName, Refusal> {
        let name = CertificateName::parse(certificate)?;
        if let Err(error) = chain {
            let refusal = Refusal::from_chain(error, &name, moment(now));
            // What an unverified certificate says of itself decides only which refusal is printed.
            if refusal == Refusal::WrongCa && name.cluster != self.trust.cluster() {
                return Err(Refusal::WrongCluster { theirs: name.cluster, ours: self.trust.cluster() });
            }
            return Err(refusal);
        }
        self.trust.admit(&name)?;
        self.expected.check(&name)?;
        Ok(name)
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
        let chain = server_chain(end_entity, intermediates, &self.trust.roots(), now);
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
        let chain = WebPkiClientVerifier::builder_with_provider(self.trust.roots(), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))
            .and_then(|verifier| verifier.verify_client_cert(end_entity, intermediates, now));
        self.judge(end_entity, now, chain.map(|_verified| ())).map(|()| ClientCertVerified::assertion())
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
    ) -> Result<CertificateName, Refusal> {
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
        Ok(name)
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
    let trust = Trust::of(identity)?;
    let (leaf, intermediates) = identity.chain().split_first().ok_or(IdentityError::NotX509)?;
    let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let chain = server_chain(leaf, intermediates, &trust.roots(), now);
    NodeVerifier::new(Arc::new(trust), Expected::Node(identity.node())).admit(leaf, now, chain)?;
    Ok(())
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
