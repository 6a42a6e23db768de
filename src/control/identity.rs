//! Who a node is: its name in a certificate, and the certificate with the key that proves it.
//!
//! [`CertificateName`] reads a name; it verifies no signature (`control::tls` does, before anyone
//! believes the name). [`NodeIdentity`] is what a node keeps on disk and shows to others.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rand::RngExt;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};
use zeroize::Zeroizing;

use super::ca::BACKDATE;
use crate::cluster::Role;
use crate::id::{ClusterId, NodeId, Version};
use crate::membership::Signature;
use crate::membership::signed::issued_at;

/// A node's certificate chain, its private key and the root it trusts.
///
/// Key and leaf belong together and the leaf names a node: that was checked when it was made.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "StoredIdentity", into = "StoredIdentity")]
pub struct NodeIdentity {
    name: CertificateName,
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
    root: CertificateDer<'static>,
    root_expires: OffsetDateTime,
}

impl NodeIdentity {
    /// Joins a certificate chain (leaf first, without the root), its key and the root.
    ///
    /// # Errors
    /// The leaf names no node, its cluster is not the root's, or the key is of another certificate.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &NodeKey,
        root: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        Self::from_parts(chain, key.pkcs8.clone(), root)
    }

    fn from_parts(
        chain: Vec<CertificateDer<'static>>,
        key: Zeroizing<Vec<u8>>,
        root: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let name = CertificateName::parse(chain.first().ok_or(IdentityError::NotX509)?)?;
        if CertificateName::cluster_of_root(&root)?.is_some_and(|named| named != name.cluster) {
            return Err(IdentityError::RootOfAnother);
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(&root).map_err(|_| IdentityError::NotX509)?;
        let root_expires = parsed.validity().not_after.to_datetime();
        let identity = Self { name, chain, key, root, root_expires };
        identity.certified_key()?;
        Ok(identity)
    }

    /// The cluster.
    pub const fn cluster(&self) -> ClusterId {
        self.name.cluster
    }

    /// The node.
    pub const fn node(&self) -> NodeId {
        self.name.node
    }

    /// What the node may do.
    pub const fn role(&self) -> Role {
        self.name.role
    }

    /// The version of the cluster's state at which the certificate was issued, if it is a manager's.
    pub const fn issued_at(&self) -> Version {
        self.name.issued_at
    }

    /// When the certificate begins to be valid.
    pub const fn begins(&self) -> OffsetDateTime {
        self.name.not_before
    }

    /// When the certificate ends.
    pub const fn expires(&self) -> OffsetDateTime {
        self.name.not_after
    }

    /// When the root ends, and with it all that it has signed.
    pub const fn root_expires(&self) -> OffsetDateTime {
        self.root_expires
    }

    /// How long the certificate lives from when it was signed; nothing, or less, if it is of an earlier
    /// overlayd, which backdated less.
    pub fn life(&self) -> time::Duration {
        self.name.not_after - self.signed()
    }

    fn signed(&self) -> OffsetDateTime {
        self.name.not_before + BACKDATE
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The root.
    pub const fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Signs `message` with the certificate's key: ECDSA P-256 with SHA-256, ASN.1.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.key)
            .map_err(|_| IdentityError::NotAKey)?;
        let signature = key.sign(&SystemRandom::new(), message).map_err(|_| IdentityError::NotAKey)?;
        Ok(signature.as_ref().to_vec())
    }

    /// Signs a statement to other nodes, which they check by the certificate that comes with it.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn signature(&self, payload: &[u8]) -> Result<Signature, IdentityError> {
        let leaf = self.chain().first().ok_or(IdentityError::NotX509)?;
        Ok(Signature::new(leaf, &self.sign(payload)?))
    }

    /// A moment between 50 and 80 % of the certificate's life, drawn so that nodes that joined
    /// together do not renew together.
    pub fn renew_at(&self, random: &mut impl rand::CryptoRng) -> OffsetDateTime {
        let life = self.life();
        if !life.is_positive() {
            return self.name.not_before;
        }
        self.signed() + life * random.random_range(0.5..0.8)
    }

    /// The chain and key as rustls signs with them.
    pub(super) fn certified_key(&self) -> Result<CertifiedKey, IdentityError> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.to_vec()));
        let key = any_ecdsa_type(&key).map_err(|_| IdentityError::NotAKey)?;
        let certified = CertifiedKey::new(self.chain.clone(), key);
        certified.keys_match().map_err(|_| IdentityError::KeyOfAnother)?;
        Ok(certified)
    }
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity").field("name", &self.name).field("key", &"[redacted]").finish()
    }
}

/// What a node certificate says of its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateName {
    /// The cluster (O).
    pub cluster: ClusterId,
    /// The node (CN).
    pub node: NodeId,
    /// What it may do (OU).
    pub role: Role,
    /// The version of the cluster's state at which a manager's was issued (serialNumber).
    pub issued_at: Version,
    /// When the certificate begins.
    pub not_before: OffsetDateTime,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

impl CertificateName {
    /// Reads the name from a node certificate; whether it is true is for the caller to verify.
    ///
    /// # Errors
    /// It is no X.509 certificate, or one of the fields is missing, doubled or not one of ours.
    pub fn parse(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (rest, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| IdentityError::NotX509)?;
        if !rest.is_empty() {
            return Err(IdentityError::NotX509);
        }
        let subject = parsed.subject();
        let cluster = cluster_of(subject)?;
        let unit = single(subject.iter_organizational_unit(), "OU")?;
        let role = [Role::Manager, Role::Worker]
            .into_iter()
            .find(|role| role.organizational_unit() == unit)
            .ok_or_else(|| IdentityError::Role { found: unit.to_owned() })?;
        let common = single(subject.iter_common_name(), "CN")?;
        let node = common.parse().map_err(|_| IdentityError::Node { found: common.to_owned() })?;
        let validity = parsed.validity();
        Ok(Self {
            cluster,
            node,
            role,
            issued_at: issued_at(subject),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
        })
    }

    /// The cluster that a root certificate was made for, if it names one: a root that the operator
    /// brought names none.
    ///
    /// # Errors
    /// It is no X.509 certificate.
    pub fn cluster_of_root(root: &CertificateDer<'_>) -> Result<Option<ClusterId>, IdentityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(root).map_err(|_| IdentityError::NotX509)?;
        Ok(cluster_of(parsed.subject()).ok())
    }
}

/// A private key that has no certificate yet.
pub struct NodeKey {
    pkcs8: Zeroizing<Vec<u8>>,
}

impl NodeKey {
    /// Draws an ECDSA P-256 key.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| IdentityError::NotAKey)?;
        Ok(Self { pkcs8: Zeroizing::new(key.serialize_der()) })
    }

    /// A certificate request that proves possession of the key and asks for no name, PEM.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn request_pem(&self) -> Result<String, IdentityError> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| IdentityError::NotAKey)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(|_| IdentityError::NotAKey)
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey([redacted])")
    }
}

/// Why a certificate is not one of a node of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It does not parse.
    #[error("it is not an X.509 certificate")]
    NotX509,
    /// A field is missing or there twice.
    #[error("its subject has not exactly one {field}")]
    Field {
        /// `O`, `OU` or `CN`.
        field: &'static str,
    },
    /// The organisation is no cluster id.
    #[error("its organisation (O) {found:?} is not a cluster id")]
    Cluster {
        /// What stands there.
        found: String,
    },
    /// The organisational unit is no role.
    #[error("its organisational unit (OU) {found:?} is not a role of overlayd")]
    Role {
        /// What stands there.
        found: String,
    },
    /// The common name is no node id.
    #[error("its common name (CN) {found:?} is not a node id")]
    Node {
        /// What stands there.
        found: String,
    },
    /// The root is of another cluster.
    #[error("the certificate and the root are of different clusters")]
    RootOfAnother,
    /// The key is of another certificate.
    #[error("the private key does not belong to the certificate")]
    KeyOfAnother,
    /// The key is not ECDSA.
    #[error("the private key is not an ECDSA key in PKCS#8")]
    NotAKey,
}

/// A [`NodeIdentity`] as the store keeps it.
#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    #[serde(with = "base64_der_list")]
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<String>,
    #[serde(with = "base64_der")]
    root: CertificateDer<'static>,
}

impl TryFrom<StoredIdentity> for NodeIdentity {
    type Error = IdentityError;

    fn try_from(stored: StoredIdentity) -> Result<Self, IdentityError> {
        let key = data_encoding::BASE64.decode(stored.key.as_bytes());
        let key = Zeroizing::new(key.map_err(|_| IdentityError::NotAKey)?);
        Self::from_parts(stored.chain, key, stored.root)
    }
}

impl From<NodeIdentity> for StoredIdentity {
    fn from(identity: NodeIdentity) -> Self {
        Self {
            chain: identity.chain,
            key: Zeroizing::new(data_encoding::BASE64.encode(&identity.key)),
            root: identity.root,
        }
    }
}

/// A certificate in JSON: base64 of its DER.
pub(super) mod base64_der {
    use rustls::pki_types::CertificateDer;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(der: &CertificateDer<'_>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&data_encoding::BASE64.encode(der))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<CertificateDer<'static>, D::Error> {
        let text = String::deserialize(from)?;
        data_encoding::BASE64.decode(text.as_bytes()).map(CertificateDer::from).map_err(de::Error::custom)
    }
}

/// Certificates in JSON: a list of base64 of their DER.
pub(super) mod base64_der_list {
    use rustls::pki_types::CertificateDer;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(chain: &[CertificateDer<'_>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(chain.iter().map(|der| data_encoding::BASE64.encode(der)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<CertificateDer<'static>>, D::Error> {
        Vec::<String>::deserialize(from)?
            .iter()
            .map(|text| data_encoding::BASE64.decode(text.as_bytes()).map(CertificateDer::from))
            .collect::<Result<_, _>>()
            .map_err(de::Error::custom)
    }
}

fn cluster_of(subject: &X509Name<'_>) -> Result<ClusterId, IdentityError> {
    let organization = single(subject.iter_organization(), "O")?;
    organization.parse().map_err(|_| IdentityError::Cluster { found: organization.to_owned() })
}

fn single<'a>(
    mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
    field: &'static str,
) -> Result<&'a str, IdentityError> {
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_str().map_err(|_| IdentityError::Field { field }),
        (None, _) | (Some(_), Some(_)) => Err(IdentityError::Field { field }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Membership;
    use crate::control::ca::CertificateAuthority;
    use crate::id::{Epoch, NetworkId, Vni};
    use crate::membership::SignedMembership;
    use time::Duration;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
    }

    fn identity(role: Role, lifetime: Duration) -> NodeIdentity {
        let ca = CertificateAuthority::create(ClusterId::from_entropy([1; 16]), now()).expect("an authority");
        let key = NodeKey::generate().expect("a key");
        let leaf = ca
            .issue(
                &key.request_pem().expect("a request"),
                NodeId::from_entropy([2; 16]),
                role,
                now(),
                lifetime,
            )
            .expect("a certificate");
        NodeIdentity::new(vec![leaf], &key, ca.root().clone()).expect("an identity")
    }

    fn named(subject: &[(rcgen::DnType, &str)]) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    #[test]
    fn identity_survives_the_store() {
        let first = identity(Role::Worker, Duration::DAY);
        let stored = serde_json::to_string(&first).expect("JSON");
        let again: NodeIdentity = serde_json::from_str(&stored).expect("what was stored");
        assert_eq!(again.chain(), first.chain());
        assert_eq!(again.key, first.key);
        assert_eq!(
            (again.node(), again.role(), again.cluster()),
            (first.node(), first.role(), first.cluster())
        );
    }

    #[test]
    fn membership_signed_by_a_manager_verifies_under_the_root() {
        let manager = identity(Role::Manager, Duration::DAY);
        let membership = Membership {
            network: NetworkId::from_entropy([3; 16]),
            vni: Vni::new(7).expect("a VNI"),
            epoch: Epoch::new(1),
            nodes: [manager.node()].into(),
        };
        let signed = SignedMembership::sign(&membership, |bytes| manager.signature(bytes));
        let verified = signed.expect("signed").verify(
            &crate::membership::Roots::sole(manager.root().to_vec()),
            manager.cluster(),
            &std::collections::BTreeSet::new(),
        );
        assert_eq!(verified, Ok(membership));
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let (one, other) = (identity(Role::Worker, Duration::DAY), NodeKey::generate().expect("a key"));
        let refused = NodeIdentity::new(one.chain().to_vec(), &other, one.root().clone());
        assert_eq!(refused.err(), Some(IdentityError::KeyOfAnother));
    }

    #[test]
    fn debug_output_never_shows_the_key() {
        assert!(format!("{:?}", identity(Role::Worker, Duration::DAY)).contains("[redacted]"));
    }

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_life() {
        let identity = identity(Role::Worker, Duration::hours(100));
        let mut random = rand::rng();
        for _ in 0..100 {
            let at = identity.renew_at(&mut random) - now();
            assert!(at >= Duration::hours(50) && at <= Duration::hours(80), "{at}");
        }
    }

    #[test]
    fn each_foreign_field_of_a_subject_has_its_own_error() {
        use rcgen::DnType::{CommonName, OrganizationName, OrganizationalUnitName};
        let cluster = ClusterId::from_entropy([1; 16]);
        let node = NodeId::from_entropy([2; 16]);
        let (cluster, node, worker) = (cluster.as_str(), node.as_str(), "overlayd-worker");
        let cases = [
            (vec![(OrganizationalUnitName, worker), (CommonName, node)], "exactly one O"),
            (
                vec![(OrganizationName, "x"), (OrganizationalUnitName, worker), (CommonName, node)],
                "cluster id",
            ),
            (vec![(OrganizationName, cluster), (CommonName, node)], "exactly one OU"),
            (vec![(OrganizationName, cluster), (OrganizationalUnitName, "x"), (CommonName, node)], "role"),
            (vec![(OrganizationName, cluster), (OrganizationalUnitName, worker)], "exactly one CN"),
            (
                vec![(OrganizationName, cluster), (OrganizationalUnitName, worker), (CommonName, "x")],
                "node id",
            ),
        ];
        for (subject, message) in cases {
            let error = CertificateName::parse(&named(&subject)).expect_err("a foreign subject").to_string();
            assert!(error.contains(message), "{error:?} lacks {message:?}");
        }
        let garbage = CertificateName::parse(&CertificateDer::from(vec![0x30, 0x00]));
        assert_eq!(garbage, Err(IdentityError::NotX509));
    }
}
