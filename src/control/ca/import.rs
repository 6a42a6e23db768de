//! A root that the operator brings: whether it can be the authority of a cluster, and why not.
//!
//! It is judged before anything is written: what it would sign must be believed by every node until
//! it is replaced. A root of overlayd's own making goes through the same gate when it is given.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use zeroize::Zeroizing;

use super::{AuthorityError, CertificateAuthority};
use crate::cluster::Role;
use crate::control::identity::{CertificateName, NodeIdentity, NodeKey};
use crate::control::tls::verify_identity;
use crate::id::{ClusterId, NodeId};

impl CertificateAuthority {
    /// Takes a root and its key, both PEM, as the authority of `cluster`; `life` is how long a node's
    /// certificate lives.
    ///
    /// # Errors
    /// What is wrong with the root or the key; see [`ImportError`].
    pub fn import(
        cluster: ClusterId,
        certificate_pem: &str,
        key_pem: &str,
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<Self, ImportError> {
        let root = sole_certificate(certificate_pem)?;
        let (rest, parsed) = x509_parser::parse_x509_certificate(&root).map_err(|_| ImportError::NotX509)?;
        if !rest.is_empty() {
            return Err(ImportError::NotX509);
        }
        check_root(&parsed)?;
        check_validity(&parsed, life, now)?;
        if let Some(other) = CertificateName::cluster_of_root(&root).ok().flatten().filter(|c| *c != cluster)
        {
            return Err(ImportError::OtherCluster { other });
        }
        let curve = Curve::of(&parsed)?;
        let pkcs8 = private_key(key_pem, curve)?;
        if curve.public_key(&pkcs8)? != parsed.public_key().subject_public_key.data.as_ref() {
            return Err(ImportError::KeyOfAnother);
        }
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(pkcs8.as_slice()),
            curve.rcgen_algorithm(),
        );
        let authority = Self::new(cluster, root.clone(), key.map_err(AuthorityError::Library)?)?;
        authority.try_signing(life, now)?;
        Ok(authority)
    }

    /// Whether others would believe what this root signs: names of unusual kinds and name constraints
    /// are seen here, and not first by a node that is refused.
    fn try_signing(&self, life: Duration, now: OffsetDateTime) -> Result<(), ImportError> {
        let unusable = |why: &dyn std::fmt::Display| ImportError::Unusable { why: why.to_string() };
        let key = NodeKey::generate().map_err(|error| unusable(&error))?;
        let csr = key.request_pem().map_err(|error| unusable(&error))?;
        let leaf = self.issue(&csr, NodeId::from_entropy([0; 16]), Role::Manager, now, life)?;
        let identity = NodeIdentity::new(vec![leaf], &key, self.root().clone());
        let identity = identity.map_err(|error| unusable(&error))?;
        verify_identity(&identity, now).map_err(|error| unusable(&error))
    }
}

/// Why a root that was brought is refused.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// No certificate in the file.
    #[error(
        "the CA certificate is no PEM certificate: give a file that begins with -----BEGIN CERTIFICATE-----"
    )]
    NotPem,
    /// More than one certificate in the file.
    #[error("the file of the CA certificate holds {count} certificates: give the root alone")]
    Several {
        /// How many.
        count: usize,
    },
    /// The PEM holds something else.
    #[error("the CA certificate does not parse as X.509; is the file damaged?")]
    NotX509,
    /// It is the certificate of a server or client.
    #[error("the CA certificate is no CA ({why}): it may not sign certificates; give a root")]
    NotACa {
        /// What it lacks.
        why: &'static str,
    },
    /// It was signed by another.
    #[error(
        "the CA certificate is no root: it is signed by {issuer:?}, not by itself; give a root that is for this \
         cluster alone"
    )]
    NotARoot {
        /// Its issuer.
        issuer: String,
    },
    /// Its end has passed.
    #[error("the CA certificate expired at {}: renew it, or make another", moment(.not_after))]
    Expired {
        /// When it ended.
        not_after: OffsetDateTime,
    },
    /// Its beginning is in the future.
    #[error(
        "the CA certificate is not valid before {}, and the clock of this machine says {}: compare them",
        moment(.not_before), moment(.now)
    )]
    NotYetValid {
        /// When it begins.
        not_before: OffsetDateTime,
        /// Our clock.
        now: OffsetDateTime,
    },
    /// It ends before what it would sign.
    #[error(
        "the CA certificate ends at {}, before a node's certificate of today would ({}): a root should live for years",
        moment(.not_after), moment(.needed)
    )]
    TooShort {
        /// When it ends.
        not_after: OffsetDateTime,
        /// How long a node's certificate would live.
        needed: OffsetDateTime,
    },
    /// It was made for another cluster of overlayd.
    #[error(
        "the CA certificate is the root of another cluster, {other}: each cluster needs a root of its own"
    )]
    OtherCluster {
        /// The cluster that it names.
        other: ClusterId,
    },
    /// Its key is of a kind that is not supported.
    #[error("the CA's key is {found}: overlayd signs with ECDSA keys on P-256 or P-384, make a CA with one")]
    Algorithm {
        /// What kind of key it is.
        found: String,
    },
    /// No private key in the file.
    #[error(
        "the CA's key is no PEM private key: give a file with -----BEGIN PRIVATE KEY----- (PKCS#8 or SEC 1)"
    )]
    KeyNotPem,
    /// The key is protected by a passphrase.
    #[error(
        "the CA's key is encrypted: decrypt it first (openssl pkey -in FILE -out PLAIN), and delete it afterwards"
    )]
    KeyEncrypted,
    /// The key is another's.
    #[error("the CA's key does not belong to the CA certificate: give the key that it was made with")]
    KeyOfAnother,
    /// What it signs would not be believed.
    #[error(
        "what the CA signs would be refused: {why}; make a CA with a plain subject and no name constraints"
    )]
    Unusable {
        /// By whom and why.
        why: String,
    },
    /// It cannot sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The curves that a root may have its key on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    pub(super) fn of(root: &X509Certificate<'_>) -> Result<Self, ImportError> {
        let algorithm = &root.public_key().algorithm;
        let refuse = |found: &str| Err(ImportError::Algorithm { found: found.to_owned() });
        if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            return refuse("RSA");
        }
        if algorithm.algorithm == OID_SIG_ED25519 {
            return refuse("Ed25519");
        }
        if algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
            return refuse(&format!("of another kind ({})", algorithm.algorithm));
        }
        match algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok()) {
            Some(curve) if curve == OID_EC_P256 => Ok(Self::P256),
            Some(curve) if curve == OID_NIST_EC_P384 => Ok(Self::P384),
            Some(curve) => refuse(&format!("ECDSA on another curve ({curve})")),
            None => refuse("ECDSA without a named curve"),
        }
    }

    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
        }
    }

    pub(super) fn rcgen_algorithm(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        }
    }

    fn public_key(self, pkcs8: &[u8]) -> Result<Vec<u8>, ImportError> {
        use aws_lc_rs::signature::KeyPair as _;
        let pair = EcdsaKeyPair::from_private_key_der(self.signing(), pkcs8);
        Ok(pair.map_err(|_| ImportError::KeyOfAnother)?.public_key().as_ref().to_vec())
    }
}

fn sole_certificate(pem: &str) -> Result<CertificateDer<'static>, ImportError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|_| ImportError::NotPem)?;
    match <[_; 1]>::try_from(found) {
        Ok([root]) => Ok(root),
        Err(found) if found.is_empty() => Err(ImportError::NotPem),
        Err(found) => Err(ImportError::Several { count: found.len() }),
    }
}

fn check_root(root: &X509Certificate<'_>) -> Result<(), ImportError> {
    if !root.is_ca() {
        return Err(ImportError::NotACa { why: "its basic constraints do not say CA" });
    }
    let usage = root.key_usage().map_err(|_| ImportError::NotX509)?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(ImportError::NotACa { why: "its key usage lacks the signing of certificates" });
    }
    Curve::of(root)?;
    if root.issuer() != root.subject() || root.verify_signature(None).is_err() {
        return Err(ImportError::NotARoot { issuer: root.issuer().to_string() });
    }
    Ok(())
}

fn check_validity(
    root: &X509Certificate<'_>,
    life: Duration,
    now: OffsetDateTime,
) -> Result<(), ImportError> {
    let not_before = root.validity().not_before.to_datetime();
    let not_after = root.validity().not_after.to_datetime();
    let needed = now.saturating_add(life);
    if not_after <= now {
        return Err(ImportError::Expired { not_after });
    }
    if not_before > now {
        return Err(ImportError::NotYetValid { not_before, now });
    }
    if not_after < needed {
        return Err(ImportError::TooShort { not_after, needed });
    }
    Ok(())
}

/// The key as PKCS#8, whichever form it came in.
fn private_key(pem: &str, curve: Curve) -> Result<Zeroizing<Vec<u8>>, ImportError> {
    if pem.contains("ENCRYPTED") {
        return Err(ImportError::KeyEncrypted);
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| ImportError::KeyNotPem)?;
    // It is of another kind or curve than the certificate's.
    let pair = EcdsaKeyPair::from_private_key_der(curve.signing(), key.secret_der())
        .map_err(|_| ImportError::KeyOfAnother)?;
    let pkcs8 = pair.to_pkcs8v1().map_err(|_| ImportError::KeyNotPem)?;
    Ok(Zeroizing::new(pkcs8.as_ref().to_vec()))
}

pub(super) fn moment(at: &OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
    };

    const LIFE: Duration = Duration::days(90);

    #[test]
    fn roots_on_both_curves_are_taken_and_survive_the_store() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
            let (pem, key) = root(algorithm, |_| {});
            let authority = import(&pem, &key).expect("a root");
            let stored = (authority.certificate_pem(), authority.key_pkcs8());
            let again = CertificateAuthority::from_stored(cluster(), &stored.0, &stored.1).expect("it");
            again.try_signing(LIFE, now()).expect("it signs");
            assert_eq!(again.fingerprint(), authority.fingerprint());
        }
    }

    #[test]
    fn key_in_the_form_of_sec1_is_taken() {
        let (pem, key) = root(&PKCS_ECDSA_P256_SHA256, |_| {});
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_der());
        let sec1 = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::EcPrivateKeyRfc5915Der<'_>>::as_der(
            &pair.expect("a key").private_key(),
        );
        let sec1 = format!(
            "-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n",
            data_encoding::BASE64.encode(sec1.expect("DER").as_ref())
        );
        import(&pem, &sec1).expect("a root");
    }

    #[test]
    fn what_cannot_be_a_root_is_refused_and_says_why() {
        let (good, good_key) = root(&PKCS_ECDSA_P256_SHA256, |_| {});
        let (_, other_key) = root(&PKCS_ECDSA_P256_SHA256, |_| {});
        let (_, other_curve) = root(&PKCS_ECDSA_P384_SHA384, |_| {});
        let (leaf, leaf_key) = root(&PKCS_ECDSA_P256_SHA256, |params| params.is_ca = IsCa::ExplicitNoCa);
        let (crl, crl_key) =
            root(&PKCS_ECDSA_P256_SHA256, |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
        let (old, old_key) = root(&PKCS_ECDSA_P256_SHA256, |params| params.not_after = now() - Duration::DAY);
        let (early, early_key) =
            root(&PKCS_ECDSA_P256_SHA256, |params| params.not_before = now() + Duration::DAY);
        let (short, short_key) =
            root(&PKCS_ECDSA_P256_SHA256, |params| params.not_after = now() + Duration::days(89));
        let (edwards, edwards_key) = root(&PKCS_ED25519, |_| {});
        let foreign = ClusterId::from_entropy([9; 16]);
        let theirs = CertificateAuthority::create(foreign, now()).expect("an authority");
        let (intermediate, intermediate_key) = intermediate();
        let cases = [
            ("hello", good_key.as_str(), "no PEM certificate"),
            ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", &good_key, "does not parse"),
            (&format!("{good}{good}"), &good_key, "holds 2 certificates"),
            (&leaf, &leaf_key, "no CA"),
            (&crl, &crl_key, "key usage"),
            (&intermediate, &intermediate_key, "no root: it is signed by \"CN=another\""),
            (&old, &old_key, "expired at 2027-01-14T08:00:00Z"),
            (&early, &early_key, "not valid before 2027-01-16T08:00:00Z"),
            (&short, &short_key, "should live for years"),
            (&edwards, &edwards_key, "Ed25519"),
            (RSA_ROOT, &good_key, "RSA"),
            (&theirs.certificate_pem(), &good_key, &format!("another cluster, {foreign}")),
            (&good, "hello", "no PEM private key"),
            (&good, "-----BEGIN ENCRYPTED PRIVATE KEY-----", "openssl pkey"),
            (&good, &other_key, "does not belong to"),
            (&good, &other_curve, "does not belong to"),
        ];
        for (pem, key, words) in cases {
            let refusal = import(pem, key).expect_err(words).to_string();
            assert!(refusal.contains(words), "{refusal:?} lacks {words:?}");
            assert!(
                refusal.contains("the CA"),
                "{refusal:?}: the command line knows by that which files are meant"
            );
        }
    }

    #[test]
    fn root_whose_certificates_nobody_would_believe_is_refused() {
        let (pem, key) = root(&PKCS_ECDSA_P256_SHA256, |params| {
            let only = rcgen::GeneralSubtree::DnsName("example.net".into());
            let constraints =
                rcgen::NameConstraints { permitted_subtrees: vec![only], excluded_subtrees: vec![] };
            params.name_constraints = Some(constraints);
        });
        let refusal = import(&pem, &key).expect_err("constrained").to_string();
        assert!(refusal.contains("would be refused") && refusal.contains("name constraints"), "{refusal}");
    }

    fn import(pem: &str, key: &str) -> Result<CertificateAuthority, ImportError> {
        CertificateAuthority::import(cluster(), pem, key, LIFE, now())
    }

    /// A root as an organisation makes it, and its key, but for what `change` changes.
    fn root(
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let mut params = params("Example Root");
        change(&mut params);
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    fn intermediate() -> (String, String) {
        let (above, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let issuer = Issuer::new(params("another"), above);
        (params("between").signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = now() - Duration::DAY;
        params.not_after = now() + Duration::days(3650);
        params
    }

    fn cluster() -> ClusterId {
        ClusterId::from_entropy([1; 16])
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
    }

    const RSA_ROOT: &str = include_str!("rsa_root.pem");
}
