//! The root certificates that a cluster trusts: one, or two while one takes the other's place.
//!
//! A root that comes later is believed for a certificate of its name and key that a root which is
//! trusted already has signed (cross-signing), and never for who brought it.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Roots that are trusted; the first one signs new certificates. Empty where nobody has said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Roots(Vec<Root>);

impl Roots {
    /// One root alone.
    pub fn sole(der: impl Into<Vec<u8>>) -> Self {
        Self(vec![Root::plain(der.into())])
    }

    /// `first`, which signs new certificates, and `second`.
    pub fn pair(first: Root, second: Root) -> Self {
        Self(vec![first, second])
    }

    /// Whether nobody has said which roots are trusted.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The root that signs new certificates.
    pub fn issuing(&self) -> Option<&Root> {
        self.0.first()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Root> {
        self.0.iter()
    }

    /// Whether a certificate (DER) is one of them.
    pub fn contains(&self, der: &[u8]) -> bool {
        self.0.iter().any(|root| root.der() == der)
    }

    /// Whether each of them is known, or has a cross-signature by one that is.
    ///
    /// # Errors
    /// One is not.
    pub fn follow_from(&self, known: &Self) -> Result<(), UnvouchedRoot> {
        let vouched = |root: &&Root| {
            known.contains(root.der()) || known.iter().any(|signer| root.is_vouched_for_by(signer.der()))
        };
        match self.0.iter().find(|root| !vouched(root)) {
            Some(root) => Err(UnvouchedRoot { root: root.fingerprint() }),
            None => Ok(()),
        }
    }
}

impl From<Root> for Roots {
    fn from(root: Root) -> Self {
        Self(vec![root])
    }
}

/// A root certificate, and the same name and key as signed by the other root of a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    certificate: Der,
    cross: Option<Der>,
}

impl Root {
    /// A root (DER) that needs no cross-signature.
    pub const fn plain(certificate: Vec<u8>) -> Self {
        Self { certificate: Der(certificate), cross: None }
    }

    /// A root (DER) with its cross-signature (DER).
    pub const fn crossed(certificate: Vec<u8>, cross: Vec<u8>) -> Self {
        Self { certificate: Der(certificate), cross: Some(Der(cross)) }
    }

    /// The root's DER.
    pub fn der(&self) -> &[u8] {
        &self.certificate.0
    }

    /// The cross-signature's DER.
    pub fn cross(&self) -> Option<&[u8]> {
        self.cross.as_ref().map(|cross| cross.0.as_slice())
    }

    /// SHA-256 of the root's DER.
    pub fn fingerprint(&self) -> RootFingerprint {
        RootFingerprint::of(self.der())
    }

    /// When it ends, in seconds since 1970 UTC; `None` if it is no certificate.
    pub fn ends_unix_seconds(&self) -> Option<i64> {
        Some(parse(self.der())?.validity().not_after.timestamp())
    }

    /// Whether `signer` (DER) has signed a CA certificate of this root's name and key.
    fn is_vouched_for_by(&self, signer: &[u8]) -> bool {
        let Some(cross) = self.cross() else { return false };
        let parsed = (parse(signer), parse(self.der()), parse(cross));
        let (Some(signer), Some(root), Some(cross)) = parsed else { return false };
        cross.is_ca()
            && cross.subject() == root.subject()
            && cross.public_key().raw == root.public_key().raw
            && cross.issuer() == signer.subject()
            && cross.verify_signature(Some(signer.public_key())).is_ok()
    }
}

/// A root that nobody who is trusted has signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("root {root} is not signed by a root that this node trusts")]
pub struct UnvouchedRoot {
    /// Its fingerprint.
    pub root: RootFingerprint,
}

/// SHA-256 of a root's DER; hexadecimal as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootFingerprint([u8; 32]);

impl RootFingerprint {
    /// The fingerprint of a root (DER).
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for RootFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for RootFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootFingerprint({self})")
    }
}

impl Serialize for RootFingerprint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RootFingerprint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(de::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| de::Error::custom("a fingerprint has 64 hexadecimal digits"))
    }
}

/// A certificate; base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
struct Der(Vec<u8>);

impl fmt::Debug for Der {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", RootFingerprint::of(&self.0))
    }
}

impl Serialize for Der {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Der {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map(Self).map_err(de::Error::custom)
    }
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ca::CertificateAuthority;
    use crate::id::ClusterId;

    #[test]
    fn root_follows_from_one_that_signed_it_and_from_no_other() {
        let [old, new, stranger] = [0, 1, 2].map(|_| authority());
        let crossed = |by: &CertificateAuthority| {
            Root::crossed(new.root().to_vec(), by.cross_sign(new.root(), now()).expect("signed").to_vec())
        };
        let known = Roots::sole(old.root().to_vec());
        let kept = known.0[0].clone();

        let believed = Roots::pair(crossed(&old), kept.clone());
        assert_eq!(believed.follow_from(&known), Ok(()));
        assert!(believed.contains(new.root()) && !known.contains(new.root()));

        let refused = Roots::pair(crossed(&stranger), kept).follow_from(&known);
        assert_eq!(refused, Err(UnvouchedRoot { root: RootFingerprint::of(new.root()) }));
        assert!(Roots::sole(new.root().to_vec()).follow_from(&known).is_err(), "nobody signed it");
        // The signature is for another key.
        let other = old.cross_sign(stranger.root(), now()).expect("signed").to_vec();
        let borrowed = Roots(vec![Root::crossed(new.root().to_vec(), other)]);
        assert!(borrowed.follow_from(&known).is_err());
        let garbage = Roots(vec![Root::crossed(new.root().to_vec(), vec![0x30])]);
        assert!(garbage.follow_from(&known).is_err());
    }

    #[test]
    fn roots_and_fingerprints_are_the_same_after_json() {
        let (old, new) = (authority(), authority());
        let cross = old.cross_sign(new.root(), now()).expect("signed").to_vec();
        let known = Roots::sole(old.root().to_vec());
        let roots = Roots::pair(Root::crossed(new.root().to_vec(), cross), known.0[0].clone());
        let json = serde_json::to_string(&roots).expect("JSON");
        assert_eq!(serde_json::from_str::<Roots>(&json).expect("roots"), roots);
        let fingerprint = roots.issuing().expect("a root").fingerprint();
        let json = serde_json::to_string(&fingerprint).expect("JSON");
        assert_eq!(json, format!("\"{}\"", HEXLOWER.encode(&new.fingerprint())));
        assert_eq!(serde_json::from_str::<RootFingerprint>(&json).expect("it"), fingerprint);
    }

    fn authority() -> CertificateAuthority {
        CertificateAuthority::create(ClusterId::from_entropy([1; 16]), now()).expect("an authority")
    }

    fn now() -> time::OffsetDateTime {
        time::OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
    }
}
