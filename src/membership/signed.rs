//! A membership with a manager's signature, and the newest one of each network; how any statement of a
//! manager is signed and checked.
//!
//! The signature is made with the key of the manager's node certificate. That key signs TLS
//! handshakes (which begin with 64 spaces, RFC 8446 §4.4.3) and certificate requests (which begin
//! with a DER sequence) as well; the payload is a JSON object and begins with a brace, so none can
//! be taken for another.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use data_encoding::BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::roots::Roots;
use crate::cluster::{Membership, Role};
use crate::id::{ClusterId, Epoch, NetworkId, NodeId, Version};

/// What managers sign.
pub trait Statement: Serialize + DeserializeOwned {
    /// What is wrong with text that is none.
    const NONE: &'static str;
}

impl Statement for Membership {
    const NONE: &'static str = "it is no membership";
}

/// A statement with a manager's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Signed<S> {
    /// The statement as JSON, exactly as signed.
    pub payload: String,
    /// The signing manager's certificate, DER, base64.
    pub certificate: String,
    /// ECDSA P-256 with SHA-256 over the payload, ASN.1, base64.
    pub signature: String,
    /// What it is about.
    #[serde(skip)]
    pub says: PhantomData<S>,
}

/// A [`crate::cluster::Membership`] with a manager's signature.
pub type SignedMembership = Signed<Membership>;

impl<S: Statement> Signed<S> {
    /// Signs a statement; `sign` signs the bytes that it is given.
    ///
    /// # Errors
    /// Those of `sign`.
    pub fn sign<E>(statement: &S, sign: impl FnOnce(&[u8]) -> Result<Signature, E>) -> Result<Self, E> {
        let payload = payload_of(statement);
        let Signature { certificate, signature } = sign(payload.as_bytes())?;
        Ok(Self::of(payload, certificate, signature))
    }

    pub(super) const fn of(payload: String, certificate: String, signature: String) -> Self {
        Self { payload, certificate, signature, says: PhantomData }
    }

    /// Checks who signed and what. The certificate may have expired since: a statement was signed while it
    /// was valid and stays in force until a newer epoch replaces it, or a cluster whose managers are down
    /// for long would forget who its members are. A manager that was removed is not believed.
    ///
    /// # Errors
    /// What is wrong with the certificate, the signature or the payload.
    pub fn verify(
        &self,
        roots: &Roots,
        cluster: ClusterId,
        removed: &BTreeSet<NodeId>,
    ) -> Result<S, MembershipError> {
        self.verify_but(roots, cluster, removed, &BTreeMap::new())
    }

    /// The same, where these nodes were managers until then ([`super::Removals::demoted`]).
    pub(super) fn verify_but(
        &self,
        roots: &Roots,
        cluster: ClusterId,
        removed: &BTreeSet<NodeId>,
        demoted: &BTreeMap<NodeId, Version>,
    ) -> Result<S, MembershipError> {
        self.verify_signature(roots, cluster, (removed, demoted))?;
        self.claim()
    }

    /// What it says, whoever signed it.
    ///
    /// # Errors
    /// It is no such statement.
    pub fn claim(&self) -> Result<S, MembershipError> {
        serde_json::from_str(&self.payload).map_err(|_| MembershipError::Malformed(S::NONE))
    }

    /// Checks that a manager of the cluster signed it, and none of those that were removed, or demoted
    /// since its certificate was issued.
    ///
    /// # Errors
    /// What is wrong with the certificate or the signature.
    fn verify_signature(
        &self,
        roots: &Roots,
        cluster: ClusterId,
        (removed, demoted): (&BTreeSet<NodeId>, &BTreeMap<NodeId, Version>),
    ) -> Result<(), MembershipError> {
        let certificate = BASE64
            .decode(self.certificate.as_bytes())
            .map_err(|_| MembershipError::Malformed("the certificate is not base64"))?;
        let signature = BASE64
            .decode(self.signature.as_bytes())
            .map_err(|_| MembershipError::Malformed("the signature is not base64"))?;
        let certificate = parse(&certificate, "the signer's certificate cannot be read")?;
        let mut is_ours = false;
        for root in roots.iter() {
            let root = parse(root.der(), "the cluster's root certificate cannot be read")?;
            is_ours |= certificate.issuer() == root.subject()
                && certificate.verify_signature(Some(root.public_key())).is_ok();
        }
        if !is_ours {
            return Err(MembershipError::OtherRoot);
        }
        let subject = certificate.subject();
        if only(subject.iter_organization()) != Some(cluster.as_str()) {
            return Err(MembershipError::OtherCluster { found: subject.to_string() });
        }
        if only(subject.iter_organizational_unit()) != Some(Role::Manager.organizational_unit()) {
            return Err(MembershipError::NotAManager { found: subject.to_string() });
        }
        let signer = node_of(subject)
            .ok_or(MembershipError::Malformed("the signer's certificate does not name a node"))?;
        if removed.contains(&signer) {
            return Err(MembershipError::RemovedManager { signer });
        }
        if demoted.get(&signer).is_some_and(|since| issued_at(subject) <= *since) {
            return Err(MembershipError::DemotedManager { signer });
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &certificate.public_key().subject_public_key.data)
            .verify(self.payload.as_bytes(), &signature)
            .map_err(|_| MembershipError::BadSignature)
    }
}

/// A manager's signature, and its certificate to check it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The signing manager's certificate, DER, base64.
    pub certificate: String,
    /// ECDSA P-256 with SHA-256, ASN.1, base64.
    pub signature: String,
}

impl Signature {
    /// A signature as it was made, with the certificate of its key.
    pub fn new(certificate_der: &[u8], signature: &[u8]) -> Self {
        Self { certificate: BASE64.encode(certificate_der), signature: BASE64.encode(signature) }
    }
}

/// Why a membership, or another statement of a manager, is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// A part cannot be read at all.
    #[error("what should be signed by a manager is malformed: {0}")]
    Malformed(&'static str),
    /// The signer's certificate was not issued by the cluster's root.
    #[error("its signer has no certificate of a root that this node trusts")]
    OtherRoot,
    /// The signer's certificate names another cluster.
    #[error("it was signed in another cluster: {found}")]
    OtherCluster {
        /// The subject of the certificate.
        found: String,
    },
    /// The signer is no manager.
    #[error("it was signed by a node that is no manager: {found}")]
    NotAManager {
        /// The subject of the certificate.
        found: String,
    },
    /// The signer was removed from the cluster.
    #[error("it was signed by manager {signer}, which was removed from the cluster")]
    RemovedManager {
        /// The manager.
        signer: NodeId,
    },
    /// The signer was a manager when its certificate was issued, and has been made a worker since.
    #[error("it was signed by node {signer}, which is no manager any more")]
    DemotedManager {
        /// The node.
        signer: NodeId,
    },
    /// The signature is not the signer's over this payload.
    #[error("its signature is not its signer's")]
    BadSignature,
    /// Two memberships with one epoch.
    #[error("two different memberships of network {network} have epoch {epoch}; a manager is broken")]
    Conflict {
        /// The network.
        network: NetworkId,
        /// The epoch.
        epoch: Epoch,
    },
}

/// The newest verified membership of each network.
#[derive(Debug, Clone)]
pub struct KnownMemberships {
    roots: Roots,
    cluster: ClusterId,
    demoted: BTreeMap<NodeId, Version>,
    newest: BTreeMap<NetworkId, Newest>,
}

#[derive(Debug, Clone)]
struct Newest {
    membership: Arc<Membership>,
    signed: SignedMembership,
    narrowed: Epoch,
}

/// What a membership that came is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It is newer than what was known, and is now what is known.
    Newer,
    /// It was known.
    Known,
    /// It is older than what is known: whoever brought it wants the newer one.
    Older,
}

impl KnownMemberships {
    /// Nothing known yet; `roots` are the cluster's.
    pub const fn new(roots: Roots, cluster: ClusterId) -> Self {
        Self { roots, cluster, demoted: BTreeMap::new(), newest: BTreeMap::new() }
    }

    /// Believes in other roots from now on; what was believed stays known.
    pub fn trust(&mut self, roots: Roots) {
        self.roots = roots;
    }

    /// Believes no manager certificate of these nodes that was issued until then.
    pub fn demote(&mut self, demoted: BTreeMap<NodeId, Version>) {
        self.demoted = demoted;
    }

    /// Verifies a membership and keeps it if it is newer. What is not newer is not worth verifying: in a
    /// large network the same one may come from many peers.
    ///
    /// # Errors
    /// See [`SignedMembership::verify`]; [`MembershipError::Conflict`] for another of the same epoch.
    pub fn accept(
        &mut self,
        signed: &SignedMembership,
        removed: &BTreeSet<NodeId>,
    ) -> Result<(NetworkId, News), MembershipError> {
        let claimed = signed.claim()?;
        let (network, epoch) = (claimed.network, claimed.epoch);
        let known = self.newest.get(&network);
        match known.map(|known| &*known.membership) {
            Some(known) if epoch < known.epoch => return Ok((network, News::Older)),
            Some(known) if *known == claimed => return Ok((network, News::Known)),
            Some(_) | None => {}
        }
        let membership = signed.verify_but(&self.roots, self.cluster, removed, &self.demoted)?;
        let narrowed = match known {
            Some(known) if known.membership.epoch == epoch => {
                return Err(MembershipError::Conflict { network, epoch });
            }
            Some(known) if known.membership.nodes.is_subset(&membership.nodes) => known.narrowed,
            Some(_) | None => epoch,
        };
        let newest = Newest { membership: Arc::new(membership), signed: signed.clone(), narrowed };
        self.newest.insert(network, newest);
        Ok((network, News::Newer))
    }

    /// The newest membership of a network.
    pub fn get(&self, network: NetworkId) -> Option<&Arc<Membership>> {
        self.newest.get(&network).map(|newest| &newest.membership)
    }

    /// The epoch with which a node that was a member was left out last, as far as was heard here.
    pub fn narrowed(&self, network: NetworkId) -> Option<Epoch> {
        self.newest.get(&network).map(|newest| newest.narrowed)
    }

    /// The same with its signature, to pass on.
    pub fn signed(&self, network: NetworkId) -> Option<&SignedMembership> {
        self.newest.get(&network).map(|newest| &newest.signed)
    }

    /// Forgets a network that this node has left for good.
    pub fn forget(&mut self, network: NetworkId) {
        self.newest.remove(&network);
    }
}

/// What is signed of a statement: of two that are equal, the same.
pub(super) fn payload_of<S: Statement>(statement: &S) -> String {
    serde_json::to_string(statement).expect("names and numbers are plain JSON")
}

fn parse<'d>(der: &'d [u8], error: &'static str) -> Result<X509Certificate<'d>, MembershipError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(MembershipError::Malformed(error)),
    }
}

/// The version of the cluster's state at which a manager's certificate was issued; the first manager's names none.
pub fn issued_at(subject: &X509Name<'_>) -> Version {
    let named = only(subject.iter_by_oid(&OID_X509_SERIALNUMBER)).and_then(|digits| digits.parse().ok());
    Version::new(named.unwrap_or(0))
}

fn node_of(subject: &X509Name<'_>) -> Option<NodeId> {
    only(subject.iter_common_name())?.parse().ok()
}

/// The value of an attribute that occurs exactly once: of two, a reader could choose either.
fn only<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let value = values.next()?;
    if values.next().is_some() { None } else { value.as_str().ok() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::id::Vni;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    #[test]
    fn membership_signed_by_a_manager_is_believed() {
        let ca = Ca::new();
        let signed = ca.sign(&membership(4, 2), "overlayd-manager", cluster());
        let verified = signed.verify(&ca.roots(), cluster(), &BTreeSet::new());
        assert_eq!(verified, Ok(membership(4, 2)));
    }

    #[test]
    fn worker_other_cluster_other_root_and_removed_manager_are_each_refused_by_name() {
        let ca = Ca::new();
        let none = BTreeSet::new();
        let worker = ca.sign(&membership(4, 2), "overlayd-worker", cluster());
        let error = worker.verify(&ca.roots(), cluster(), &none).unwrap_err();
        assert!(matches!(error, MembershipError::NotAManager { .. }), "{error}");

        let foreign = ClusterId::from_entropy([8; 16]);
        let signed = ca.sign(&membership(4, 2), "overlayd-manager", foreign);
        let error = signed.verify(&ca.roots(), cluster(), &none).unwrap_err();
        assert!(matches!(error, MembershipError::OtherCluster { .. }), "{error}");

        let signed = ca.sign(&membership(4, 2), "overlayd-manager", cluster());
        let error = signed.verify(&Ca::new().roots(), cluster(), &none).unwrap_err();
        assert_eq!(error, MembershipError::OtherRoot);

        let removed = BTreeSet::from([signer()]);
        let error = signed.verify(&ca.roots(), cluster(), &removed).unwrap_err();
        assert_eq!(error, MembershipError::RemovedManager { signer: signer() });
    }

    #[test]
    fn certificate_of_a_manager_that_was_demoted_since_signs_nothing_and_a_later_one_does() {
        let ca = Ca::new();
        let none = BTreeSet::new();
        let signed = |epoch, versions: &[u64]| {
            let signer = ca.signer_of("overlayd-manager", cluster(), versions);
            SignedMembership::sign(&membership(epoch, 2), signer).unwrap()
        };
        let mut known = KnownMemberships::new(ca.roots(), cluster());
        known.accept(&signed(1, &[]), &none).unwrap();
        known.demote([(signer(), Version::new(7))].into());
        for stale in [&[][..], &[6], &[7]] {
            let error = known.accept(&signed(2, stale), &none);
            assert_eq!(error, Err(MembershipError::DemotedManager { signer: signer() }), "{stale:?}");
        }
        // What was believed stays, until a manager signs something newer.
        assert_eq!(known.get(membership(1, 2).network).map(|known| known.epoch), Some(Epoch::new(1)));
        assert_eq!(known.accept(&signed(2, &[8]), &none).map(|(_, news)| news), Ok(News::Newer));
        known.demote([(NodeId::from_entropy([9; 16]), Version::new(100))].into());
        assert_eq!(known.accept(&signed(3, &[]), &none).map(|(_, news)| news), Ok(News::Newer));
    }

    #[test]
    fn every_changed_character_of_the_payload_or_signature_is_refused() {
        let ca = Ca::new();
        let signed = ca.sign(&membership(4, 2), "overlayd-manager", cluster());
        for at in 0..signed.payload.len() {
            let mut bytes = signed.payload.clone().into_bytes();
            bytes[at] ^= 1;
            let payload = String::from_utf8(bytes).unwrap();
            let changed = SignedMembership { payload, ..signed.clone() };
            let error = changed.verify(&ca.roots(), cluster(), &BTreeSet::new()).unwrap_err();
            assert_eq!(error, MembershipError::BadSignature);
        }
        let changed = SignedMembership { signature: BASE64.encode(&[0; 70]), ..signed };
        let error = changed.verify(&ca.roots(), cluster(), &BTreeSet::new()).unwrap_err();
        assert_eq!(error, MembershipError::BadSignature);
    }

    #[test]
    fn older_membership_never_replaces_a_newer_one() {
        let ca = Ca::new();
        let mut known = KnownMemberships::new(ca.roots(), cluster());
        let none = BTreeSet::new();
        let network = membership(4, 2).network;
        let mut accept = |m: Membership| known.accept(&ca.sign(&m, "overlayd-manager", cluster()), &none);
        assert_eq!(accept(membership(4, 2)), Ok((network, News::Newer)));
        assert_eq!(accept(membership(4, 2)), Ok((network, News::Known)));
        assert_eq!(accept(membership(6, 3)), Ok((network, News::Newer)));
        assert_eq!(accept(membership(5, 1)), Ok((network, News::Older)));
        assert!(matches!(accept(membership(6, 1)), Err(MembershipError::Conflict { .. })));
        assert_eq!(known.get(network).map(|known| &**known), Some(&membership(6, 3)));
        assert!(known.signed(network).is_some());
    }

    #[test]
    fn epoch_that_left_a_node_out_is_remembered_while_nodes_are_added() {
        let ca = Ca::new();
        let mut known = KnownMemberships::new(ca.roots(), cluster());
        let network = membership(4, 2).network;
        for (epoch, nodes, narrowed) in [(4, 2, 4), (5, 3, 4), (7, 3, 4), (8, 2, 8), (9, 5, 8)] {
            let signed = ca.sign(&membership(epoch, nodes), "overlayd-manager", cluster());
            known.accept(&signed, &BTreeSet::new()).unwrap();
            assert_eq!(known.narrowed(network), Some(Epoch::new(narrowed)), "epoch {epoch}");
        }
    }

    #[test]
    fn forged_membership_replaces_nothing_whatever_epoch_it_claims() {
        let ca = Ca::new();
        let mut known = KnownMemberships::new(ca.roots(), cluster());
        let network = membership(4, 2).network;
        known.accept(&ca.sign(&membership(4, 2), "overlayd-manager", cluster()), &BTreeSet::new()).unwrap();
        for (epoch, nodes) in [(3, 9), (4, 9), (5, 9)] {
            let forged = Ca::new().sign(&membership(epoch, nodes), "overlayd-manager", cluster());
            let heard = known.accept(&forged, &BTreeSet::new());
            assert!(heard == Err(MembershipError::OtherRoot) || heard == Ok((network, News::Older)));
            assert_eq!(known.get(network).map(|known| &**known), Some(&membership(4, 2)));
        }
    }

    #[test]
    fn garbage_is_malformed_and_never_panics() {
        let ca = Ca::new();
        let good = ca.sign(&membership(4, 2), "overlayd-manager", cluster());
        for bad in [
            SignedMembership { certificate: "!".into(), ..good.clone() },
            SignedMembership { signature: "!".into(), ..good.clone() },
            SignedMembership { certificate: BASE64.encode(b"0"), ..good },
        ] {
            let error = bad.verify(&ca.roots(), cluster(), &BTreeSet::new()).unwrap_err();
            assert!(matches!(error, MembershipError::Malformed(_)), "{error}");
        }
    }

    pub(crate) struct Ca {
        issuer: Issuer<'static, KeyPair>,
        root_der: Vec<u8>,
    }

    impl Ca {
        pub(crate) fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.distinguished_name.push(DnType::CommonName, "overlayd root");
            let root_der = params.self_signed(&key).unwrap().der().to_vec();
            Self { issuer: Issuer::new(params, key), root_der }
        }

        pub(crate) fn roots(&self) -> Roots {
            Roots::sole(self.root_der.clone())
        }

        fn sign(&self, membership: &Membership, unit: &str, cluster: ClusterId) -> SignedMembership {
            SignedMembership::sign(membership, self.signer(unit, cluster)).unwrap()
        }

        /// Signs with a certificate of node [`signer`].
        pub(crate) fn signer(
            &self,
            unit: &str,
            cluster: ClusterId,
        ) -> impl FnOnce(&[u8]) -> Result<Signature, aws_lc_rs::error::Unspecified> + use<> {
            self.signer_of(unit, cluster, &[])
        }

        /// The same, of a certificate that was issued at these versions.
        pub(crate) fn signer_of(
            &self,
            unit: &str,
            cluster: ClusterId,
            versions: &[u64],
        ) -> impl FnOnce(&[u8]) -> Result<Signature, aws_lc_rs::error::Unspecified> + use<> {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
            params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
            params.distinguished_name.push(DnType::CommonName, signer().as_str());
            for version in versions {
                let serial = DnType::from_oid(&[2, 5, 4, 5]);
                params.distinguished_name.push(serial, version.to_string());
            }
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let pair =
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der()).unwrap();
            move |bytes| {
                let signature = pair.sign(&SystemRandom::new(), bytes)?;
                Ok(Signature::new(certificate.der(), signature.as_ref()))
            }
        }
    }

    pub(crate) fn cluster() -> ClusterId {
        ClusterId::from_entropy([7; 16])
    }

    pub(crate) fn signer() -> NodeId {
        NodeId::from_entropy([5; 16])
    }

    fn membership(epoch: u64, nodes: u8) -> Membership {
        Membership {
            network: NetworkId::from_entropy([1; 16]),
            vni: Vni::new(7).unwrap(),
            epoch: Epoch::new(epoch),
            nodes: (0..nodes).map(|n| NodeId::from_entropy([n; 16])).collect(),
        }
    }
}
