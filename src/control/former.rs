//! Proof that a machine which joins is a node already, whose certificate has expired: it holds the key.
//!
//! It shows the certificate, and signs with its key
//! ```text
//! "overlayd-return/1 "  |  exporter of the TLS connection, 32 bytes (RFC 8446 §7.5)  |  request, PEM
//! ```
//! which is neither a TLS handshake nor a statement of a manager (`membership::signed`), and is worth
//! nothing on another connection or for another request. Who may come back is `agent::manager`'s business.

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::identity::{CertificateName, IdentityError, NodeIdentity, base64_der_list};
use super::tls::verify_chain;
use super::trust::{Refusal, Trust};

/// What only the two ends of one TLS connection know.
pub(super) type ChannelBinding = [u8; 32];

/// The certificate that a node had, and its signature for one request on one connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FormerCertificate {
    #[serde(with = "base64_der_list")]
    chain: Vec<CertificateDer<'static>>,
    signature: String,
}

impl FormerCertificate {
    /// Proves that this machine is the node of `identity`.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub(super) fn prove(
        identity: &NodeIdentity,
        binding: &ChannelBinding,
        csr: &str,
    ) -> Result<Self, IdentityError> {
        let signature = BASE64.encode(&identity.sign(&statement(binding, csr))?);
        Ok(Self { chain: identity.chain().to_vec(), signature })
    }

    /// Whether who sent `csr` on the connection of `binding` holds the certificate's key.
    pub(super) fn is_held(&self, binding: &ChannelBinding, csr: &str) -> bool {
        let Some(leaf) = self.chain.first() else { return false };
        let Ok((_, leaf)) = x509_parser::parse_x509_certificate(leaf) else { return false };
        let Ok(signature) = BASE64.decode(self.signature.as_bytes()) else { return false };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &leaf.public_key().subject_public_key.data)
            .verify(&statement(binding, csr), &signature)
            .is_ok()
    }

    /// Whose certificate it is: one that the cluster has issued, expired by `now` or not, of a node that is
    /// still a member.
    ///
    /// # Errors
    /// As a connection with it would be refused, were it not for the clock.
    pub fn verify(&self, trust: Arc<Trust>, now: OffsetDateTime) -> Result<CertificateName, Refusal> {
        let name = CertificateName::parse(self.chain.first().ok_or(IdentityError::NotX509)?)?;
        let last = name.not_after - time::Duration::SECOND;
        verify_chain(&self.chain, trust, now.min(last).max(name.not_before))
    }
}

fn statement(binding: &ChannelBinding, csr: &str) -> Vec<u8> {
    [b"overlayd-return/1 ".as_slice(), binding, csr.as_bytes()].concat()
}

/// The label of the exporter.
pub(super) const BINDING_LABEL: &[u8] = b"EXPORTER-overlayd-return";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Role;
    use crate::control::ca::CertificateAuthority;
    use crate::control::identity::NodeKey;
    use crate::id::{ClusterId, NodeId};
    use crate::membership::Roots;
    use time::Duration;

    #[test]
    fn proof_is_good_for_one_connection_and_one_request_of_the_holder() {
        let ca = authority();
        let (ours, other) = (identity(&ca), identity(&ca));
        let proof = FormerCertificate::prove(&ours, &[7; 32], "request").expect("signed");
        assert!(proof.is_held(&[7; 32], "request"));
        assert!(!proof.is_held(&[8; 32], "request"), "on another connection");
        assert!(!proof.is_held(&[7; 32], "another"), "for another key");
        let stolen = FormerCertificate { chain: other.chain().to_vec(), ..proof.clone() };
        assert!(!stolen.is_held(&[7; 32], "request"), "with the certificate of another");
        for broken in [
            FormerCertificate { chain: Vec::new(), ..proof.clone() },
            FormerCertificate { chain: vec![vec![0x30].into()], ..proof.clone() },
            FormerCertificate { signature: "!".into(), ..proof },
        ] {
            assert!(!broken.is_held(&[7; 32], "request"));
        }
    }

    #[test]
    fn expired_certificate_of_a_member_is_believed_and_nothing_else_is() {
        let ca = authority();
        let proof = FormerCertificate::prove(&identity(&ca), &[7; 32], "request").expect("signed");
        let trust = Trust::new(ca.cluster(), Roots::sole(ca.root().to_vec())).expect("a trust");
        let at = |days: i64| proof.verify(Arc::new(trust.clone()), now() + Duration::days(days));
        for days in [0, 1, 400] {
            assert_eq!(at(days).expect("believed").node, node());
        }
        let removed = trust.clone().with_removed([node()].into());
        let refused = proof.verify(Arc::new(removed), now() + Duration::days(400));
        assert_eq!(refused, Err(Refusal::RemovedNode { node: node() }));
        let unknown = trust.with_known([].into());
        let refused = proof.verify(Arc::new(unknown), now() + Duration::days(400));
        assert_eq!(refused, Err(Refusal::UnknownNode { node: node() }));
        let forged = FormerCertificate::prove(&identity(&authority()), &[7; 32], "request").expect("signed");
        let trust = Trust::new(ca.cluster(), Roots::sole(ca.root().to_vec())).expect("a trust");
        assert_eq!(forged.verify(Arc::new(trust), now()), Err(Refusal::WrongCa));
    }

    fn identity(ca: &CertificateAuthority) -> NodeIdentity {
        let key = NodeKey::generate().expect("a key");
        let csr = key.request_pem().expect("a request");
        let leaf = ca.issue(&csr, node(), Role::Worker, now(), Duration::DAY).expect("a certificate");
        NodeIdentity::new(vec![leaf], &key, ca.root().clone()).expect("an identity")
    }

    fn authority() -> CertificateAuthority {
        CertificateAuthority::create(ClusterId::from_entropy([1; 16]), now()).expect("an authority")
    }

    fn node() -> NodeId {
        NodeId::from_entropy([2; 16])
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
    }
}
