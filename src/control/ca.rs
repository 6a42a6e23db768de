//! The cluster's certificate authority: one ECDSA root, which signs node certificates itself.
//!
//! A root that it makes is of P-256; one that the operator brings ([`import`]) may be of P-384 too.
//! It takes nothing from a certificate request but the public key and the proof that the node holds
//! the private one: subject, names and uses are the manager's words (RFC 5280). It keeps no list of
//! what it issued; removal is by node id (`control::trust`). Managers alone hold it.

mod cross;
pub mod import;

use self::import::{Curve, moment};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use zeroize::{Zeroize, Zeroizing};

use super::identity::{CertificateName, IdentityError};
use crate::cluster::Role;
use crate::id::{ClusterId, NodeId, Version};

/// The root certificate with its private key.
pub struct CertificateAuthority {
    cluster: ClusterId,
    root: CertificateDer<'static>,
    root_expires: OffsetDateTime,
    issuer: Issuer<'static, RootKey>,
}

impl CertificateAuthority {
    /// Makes a new root for `cluster`, valid for twenty years from `now`.
    ///
    /// # Errors
    /// The cryptographic library fails to make a key.
    pub fn create(cluster: ClusterId, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(cluster, ROOT_NAME, ROOT_NAME);
        params.not_before = now - BACKDATE;
        params.not_after = now + ROOT_LIFETIME;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        let certificate = params.self_signed(&key)?;
        Self::new(cluster, certificate.der().clone(), key)
    }

    /// Reads back what [`Self::certificate_pem`] and [`Self::key_pkcs8`] gave for `cluster`.
    ///
    /// # Errors
    /// The certificate or the key is not what those functions give, or they do not belong together.
    pub fn from_stored(
        cluster: ClusterId,
        certificate_pem: &str,
        key_pkcs8: &[u8],
    ) -> Result<Self, AuthorityError> {
        let root =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| AuthorityError::NotPem)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&root).map_err(|_| AuthorityError::NotPem)?;
        let algorithm = Curve::of(&parsed).map_err(|_| AuthorityError::KeyOfAnother)?.rcgen_algorithm();
        let key = PrivatePkcs8KeyDer::from(key_pkcs8);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, algorithm)?;
        Self::new(cluster, root, key)
    }

    fn new(cluster: ClusterId, root: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&root).map_err(|_| AuthorityError::NotPem)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(AuthorityError::KeyOfAnother);
        }
        let root_expires = parsed.validity().not_after.to_datetime();
        if CertificateName::cluster_of_root(&root)?.is_some_and(|named| named != cluster) {
            return Err(AuthorityError::NotOurs(IdentityError::RootOfAnother));
        }
        let issuer = Issuer::from_ca_cert_der(&root, RootKey(key))?;
        Ok(Self { cluster, root, root_expires, issuer })
    }

    /// The cluster that the root belongs to.
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The root certificate.
    pub const fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// SHA-256 of the root's DER, which a join token carries.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.root)
    }

    /// The root certificate for the store.
    pub fn certificate_pem(&self) -> String {
        certificate_pem(&self.root)
    }

    /// The private key for the store, PKCS#8.
    pub fn key_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().0.serialize_der())
    }

    /// Signs a certificate for the key of `csr_pem`, naming `node` with `role`.
    ///
    /// It is valid from days before `now`, so that a node whose clock lags can use it at once,
    /// until `lifetime` from now, but never longer than the root.
    ///
    /// # Errors
    /// The request is malformed, not signed by its own key, for another kind of key than ECDSA
    /// P-256, `lifetime` is under ten seconds or over ten years, or `now` is days before the root
    /// begins: such a clock has not been set yet, and what it signs would be over once it is.
    pub fn issue(
        &self,
        csr_pem: &str,
        node: NodeId,
        role: Role,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        self.issue_at(Version::new(0), csr_pem, (node, role), now, lifetime)
    }

    /// The same, where the cluster's state has a version: a manager's certificate names it, since one that is
    /// made a worker is a manager no more by any certificate of before.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_at(
        &self,
        version: Version,
        csr_pem: &str,
        (node, role): (NodeId, Role),
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        if lifetime < SHORTEST_LIFETIME || lifetime > LONGEST_LIFETIME {
            return Err(AuthorityError::Lifetime { seconds: lifetime.whole_seconds() });
        }
        if now.unix_timestamp() < WRITTEN {
            return Err(AuthorityError::Clock { now });
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(AuthorityError::Request)?;
        let key = request.public_key;
        if rcgen::PublicKeyData::algorithm(&key) != &PKCS_ECDSA_P256_SHA256 {
            return Err(AuthorityError::KeyKind);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name(self.cluster, role.organizational_unit(), node.as_str());
        if role == Role::Manager && version.get() > 0 {
            let version = DnValue::PrintableString(version.get().to_string().try_into()?);
            params.distinguished_name.push(DnType::from_oid(&SERIAL_NUMBER), version);
        }
        params.subject_alt_names =
            vec![SanType::DnsName(node.as_str().try_into().expect("base-36 digits are an IA5String"))];
        params.not_before = now - BACKDATE;
        params.not_after = (now + lifetime).min(self.root_expires);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        Ok(params.signed_by(&key, &self.issuer)?.der().clone())
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// The private key, wiped when it is dropped.
struct RootKey(KeyPair);

impl PublicKeyData for RootKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for RootKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        SigningKey::sign(&self.0, message)
    }
}

impl Drop for RootKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Why the authority cannot be read, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The stored certificate does not parse.
    #[error("the stored root is not a PEM certificate; restore the state from a backup")]
    NotPem,
    /// The stored key does not belong to the stored certificate.
    #[error("the stored root certificate and key do not belong together; restore the state from a backup")]
    KeyOfAnother,
    /// The stored certificate is not a root of overlayd.
    #[error("the stored root is not one of overlayd: {0}")]
    NotOurs(#[from] IdentityError),
    /// The request is malformed or not signed by its own key.
    #[error("the certificate request is not valid: {0}")]
    Request(rcgen::Error),
    /// The request is for another kind of key.
    #[error("the certificate request is for another kind of key than ECDSA P-256")]
    KeyKind,
    /// The lifetime is out of range.
    #[error("a certificate cannot live {seconds} s: choose 1 hour to 10 years")]
    Lifetime {
        /// What was asked for.
        seconds: i64,
    },
    /// The clock is not set.
    #[error(
        "the manager's clock says {}, when there was no overlayd yet: set the clock right",
        moment(.now)
    )]
    Clock {
        /// What it says.
        now: OffsetDateTime,
    },
    /// A root's name is of a kind that is not written again as it was.
    #[error("the CA's subject is of an unusual kind: make a CA with plain text (UTF-8) in it")]
    Name,
    /// The cryptographic library failed.
    #[error("making a certificate: {0}")]
    Library(#[from] rcgen::Error),
}

/// Seconds from 1970 to 2025, before which nothing of this was written: no clock that is set says less.
const WRITTEN: i64 = 1_735_689_600;

/// SHA-256 of a certificate's DER.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

/// A certificate as PEM (RFC 7468).
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    let encoded = data_encoding::BASE64.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in encoded.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn name(cluster: ClusterId, unit: &str, common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, cluster.as_str());
    name.push(DnType::OrganizationalUnitName, unit);
    name.push(DnType::CommonName, common);
    name
}

/// 126 random bits: positive, and its length does not depend on the draw (RFC 5280 §4.1.2.2).
fn random_serial() -> SerialNumber {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&serial)
}

/// How far certificates are valid before they were made, for clocks that lag.
pub const BACKDATE: Duration = Duration::days(3);

/// The lifetime of a node certificate unless configured.
pub const STANDARD_LIFETIME: Duration = Duration::days(90);

/// X.520's serialNumber (2.5.4.5).
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];
const ROOT_NAME: &str = "overlayd-ca";
const ROOT_LIFETIME: Duration = Duration::days(20 * 365 + 5);
/// What tests need; who makes a cluster may give no less than the configuration says.
const SHORTEST_LIFETIME: Duration = Duration::seconds(10);
const LONGEST_LIFETIME: Duration = Duration::days(3653);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::identity::NodeKey;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
    }

    fn cluster() -> ClusterId {
        ClusterId::from_entropy([1; 16])
    }

    fn authority() -> CertificateAuthority {
        CertificateAuthority::create(cluster(), now()).expect("an authority")
    }

    #[test]
    fn authority_survives_the_store_and_goes_on_signing() {
        let first = authority();
        let again =
            CertificateAuthority::from_stored(cluster(), &first.certificate_pem(), &first.key_pkcs8())
                .expect("what was stored");
        assert_eq!(again.fingerprint(), first.fingerprint());
        assert_eq!(again.cluster(), first.cluster());
        let key = NodeKey::generate().expect("a key");
        let node = NodeId::from_entropy([2; 16]);
        again
            .issue(&key.request_pem().expect("a request"), node, Role::Worker, now(), Duration::HOUR)
            .expect("a certificate");
    }

    #[test]
    fn key_of_another_authority_is_refused() {
        let (pem, key) = (authority().certificate_pem(), authority().key_pkcs8());
        let refused = CertificateAuthority::from_stored(cluster(), &pem, &key);
        assert!(matches!(refused, Err(AuthorityError::KeyOfAnother)));
    }

    #[test]
    fn root_that_names_another_cluster_is_refused() {
        let authority = authority();
        let refused = CertificateAuthority::from_stored(
            ClusterId::from_entropy([2; 16]),
            &authority.certificate_pem(),
            &authority.key_pkcs8(),
        );
        assert!(matches!(refused, Err(AuthorityError::NotOurs(IdentityError::RootOfAnother))));
    }

    #[test]
    fn subject_is_the_authoritys_word_and_not_the_requests() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut wish = CertificateParams::default();
        wish.distinguished_name = name(ClusterId::from_entropy([9; 16]), "overlayd-manager", "someone else");
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = wish.serialize_request(&key).expect("a request").pem().expect("PEM");
        let node = NodeId::from_entropy([2; 16]);
        let authority = authority();

        let issued = authority.issue(&csr, node, Role::Worker, now(), Duration::DAY).expect("a certificate");

        let found = CertificateName::parse(&issued).expect("a name");
        assert_eq!((found.node, found.role, found.cluster), (node, Role::Worker, authority.cluster()));
        assert_eq!(found.not_before, now() - BACKDATE);
        assert_eq!(found.not_after, now() + Duration::DAY);
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued).expect("a certificate");
        assert!(!parsed.is_ca());
    }

    #[test]
    fn requests_without_proof_or_with_other_keys_are_refused() {
        let authority = authority();
        let issue = |csr: &str| {
            authority.issue(csr, NodeId::from_entropy([2; 16]), Role::Worker, now(), Duration::DAY)
        };
        assert!(matches!(issue("no PEM"), Err(AuthorityError::Request(_))));

        let key = NodeKey::generate().expect("a key");
        let pem = key.request_pem().expect("a request");
        let mut der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .expect("DER")
            .to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            data_encoding::BASE64.encode(&der)
        );
        assert!(matches!(issue(&forged), Err(AuthorityError::Request(_))));

        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let csr = CertificateParams::default().serialize_request(&other).expect("a request");
        assert!(matches!(issue(&csr.pem().expect("PEM")), Err(AuthorityError::KeyKind)));
    }

    #[test]
    fn clock_that_was_not_set_signs_nothing_and_one_of_before_the_root_does() {
        let (authority, key) = (authority(), NodeKey::generate().expect("a key"));
        let csr = key.request_pem().expect("a request");
        let at = |clock| {
            authority.issue(&csr, NodeId::from_entropy([2; 16]), Role::Manager, clock, Duration::days(90))
        };
        for year_begins in [0, 946_684_800, 1_704_067_200] {
            let clock = OffsetDateTime::from_unix_timestamp(year_begins).expect("1970, 2000 and 2024");
            assert!(matches!(at(clock), Err(AuthorityError::Clock { now }) if now == clock));
        }
        // The root may have been made while the clock was ahead.
        at(now() - Duration::days(300)).expect("a certificate");
    }

    #[test]
    fn lifetime_is_ten_seconds_at_least() {
        let key = NodeKey::generate().expect("a key");
        let refused = authority().issue(
            &key.request_pem().expect("a request"),
            NodeId::from_entropy([2; 16]),
            Role::Worker,
            now(),
            Duration::seconds(9),
        );
        assert!(matches!(refused, Err(AuthorityError::Lifetime { seconds: 9 })));
    }
}
