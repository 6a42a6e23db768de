//! Whom a node believes: the roots, the cluster, who was removed; and the refusals, one for each reason.
//!
//! Pure decisions over a name that was already read from a certificate; `control::tls` asks during
//! a handshake, and long-lived connections ask again whenever the trust changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CertificateError, PeerIncompatible, RootCertStore};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::identity::{CertificateName, IdentityError, NodeIdentity};
use crate::cluster::Role;
use crate::id::{ClusterId, NodeId, Version};
use crate::membership::{RootFingerprint, Roots};

/// What every certificate of another node is held against.
#[derive(Debug, Clone)]
pub struct Trust {
    cluster: ClusterId,
    roots: Arc<Roots>,
    anchors: Arc<[Anchor]>,
    removed: Arc<BTreeSet<NodeId>>,
    demoted: Arc<BTreeMap<NodeId, Version>>,
    known: Option<Arc<BTreeSet<NodeId>>>,
}

impl Trust {
    /// Trusts every node of `cluster` under `roots`.
    ///
    /// # Errors
    /// A root is not a certificate that can be an anchor.
    pub fn new(cluster: ClusterId, roots: Roots) -> Result<Self, IdentityError> {
        let anchors = roots.iter().map(|root| {
            let mut store = RootCertStore::empty();
            let certificate = CertificateDer::from(root.der().to_vec());
            store.add(certificate).map_err(|_| IdentityError::NotX509)?;
            Ok(Anchor { root: root.fingerprint(), store: Arc::new(store) })
        });
        let anchors = anchors.collect::<Result<_, _>>()?;
        Ok(Self {
            cluster,
            roots: Arc::new(roots),
            anchors,
            removed: Arc::default(),
            demoted: Arc::default(),
            known: None,
        })
    }

    /// Trusts every node of the cluster that `identity` is of.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(identity: &NodeIdentity) -> Result<Self, IdentityError> {
        Self::new(identity.cluster(), Roots::sole(identity.root().to_vec()))
    }

    /// The same, under other roots.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_roots(&self, roots: Roots) -> Result<Self, IdentityError> {
        let Self { removed, demoted, known, .. } = self.clone();
        Ok(Self { removed, demoted, known, ..Self::new(self.cluster, roots)? })
    }

    /// The same, under the roots of `other`.
    #[must_use]
    pub fn under_roots_of(self, other: &Self) -> Self {
        Self { roots: Arc::clone(&other.roots), anchors: Arc::clone(&other.anchors), ..self }
    }

    /// The same, with these nodes refused.
    #[must_use]
    pub fn with_removed(mut self, removed: BTreeSet<NodeId>) -> Self {
        self.removed = Arc::new(removed);
        self
    }

    /// The same, where these nodes are managers no more by any certificate that was issued until then.
    #[must_use]
    pub fn with_demoted(mut self, demoted: BTreeMap<NodeId, Version>) -> Self {
        self.demoted = Arc::new(demoted);
        self
    }

    /// The same, which refuses these too: a list that peers pass on may be ahead of what a manager knows.
    #[must_use]
    pub fn refusing(mut self, removed: &BTreeSet<NodeId>, demoted: &BTreeMap<NodeId, Version>) -> Self {
        Arc::make_mut(&mut self.removed).extend(removed);
        let known = Arc::make_mut(&mut self.demoted);
        for (node, until) in demoted {
            known.entry(*node).and_modify(|known| *known = (*known).max(*until)).or_insert(*until);
        }
        self
    }

    /// The same, with unknown nodes trusted as well.
    #[must_use]
    pub fn with_unknown(mut self) -> Self {
        self.known = None;
        self
    }

    /// The same, with all nodes but these refused.
    #[must_use]
    pub fn with_known(mut self, known: BTreeSet<NodeId>) -> Self {
        self.known = Some(Arc::new(known));
        self
    }

    /// The cluster.
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The roots, the one that signs new certificates first.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The roots as anchors of certificate chains.
    pub(super) fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }

    /// Whether a node with this (verified) name is one of ours.
    ///
    /// # Errors
    /// It is of another cluster, removed or unknown.
    pub fn admit(&self, name: &CertificateName) -> Result<(), Refusal> {
        if name.cluster != self.cluster {
            return Err(Refusal::WrongCluster { theirs: name.cluster, ours: self.cluster });
        }
        self.admit_node(name.node)
    }

    /// Whether every node that `before` admits is admitted still, as what it was, under the same roots.
    pub(super) fn admits_all_of(&self, before: &Self) -> bool {
        let knows = |known: &Arc<BTreeSet<NodeId>>| {
            before.known.as_ref().is_some_and(|before| before.is_subset(known))
        };
        self.cluster == before.cluster
            && self.roots == before.roots
            && self.removed.is_subset(&before.removed)
            && self.demoted.iter().all(|(node, until)| before.demoted.get(node) >= Some(until))
            && self.known.as_ref().is_none_or(knows)
    }

    /// Whether a node that was admitted before still is.
    ///
    /// # Errors
    /// It is removed or unknown.
    pub fn admit_node(&self, node: NodeId) -> Result<(), Refusal> {
        if self.removed.contains(&node) {
            return Err(Refusal::RemovedNode { node });
        }
        if self.known.as_ref().is_some_and(|known| !known.contains(&node)) {
            return Err(Refusal::UnknownNode { node });
        }
        Ok(())
    }

    /// Whether the node with this (verified) name is whom we want.
    ///
    /// # Errors
    /// It is another node, or no manager, or none any more.
    pub fn expect(&self, expected: Expected, name: &CertificateName) -> Result<(), Refusal> {
        expected.check(name)?;
        if expected == Expected::Manager && self.is_demoted(name.node, name.issued_at) {
            return Err(Refusal::NotAManager { node: name.node });
        }
        Ok(())
    }

    /// Whether a node is no manager any more, whatever its certificate of that version of the cluster's state says.
    pub fn is_demoted(&self, node: NodeId, issued_at: Version) -> bool {
        self.demoted.get(&node).is_some_and(|until| issued_at <= *until)
    }

    /// Whether what was proved before still counts.
    ///
    /// # Errors
    /// The node is removed or unknown, or not what is expected any more, or no root that its certificate led to
    /// is trusted any more.
    pub fn admit_still(&self, expected: Expected, proof: &Proof) -> Result<(), Refusal> {
        self.admit_node(proof.name.node)?;
        self.expect(expected, &proof.name)?;
        if self.anchors.iter().any(|anchor| proof.roots.contains(&anchor.root)) {
            Ok(())
        } else {
            Err(Refusal::RetiredRoot { node: proof.name.node })
        }
    }
}

/// A root as the end of certificate chains.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) root: RootFingerprint,
    pub(super) store: Arc<RootCertStore>,
}

/// What a certificate proved: who it names, and which of the roots it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Its name.
    pub name: CertificateName,
    /// The roots; one, but for a rotation.
    pub roots: Vec<RootFingerprint>,
}

/// Whom a connection must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// This node.
    Node(NodeId),
    /// Any manager.
    Manager,
    /// Any node of the cluster: what a listener accepts.
    AnyNode,
}

impl Expected {
    /// Whether the node with this name is whom we want.
    ///
    /// # Errors
    /// It is another node, or no manager.
    pub fn check(self, name: &CertificateName) -> Result<(), Refusal> {
        match self {
            Self::Node(expected) if expected != name.node => {
                Err(Refusal::WrongNode { expected, found: name.node })
            }
            Self::Manager if name.role != Role::Manager => Err(Refusal::NotAManager { node: name.node }),
            Self::Node(_) | Self::Manager | Self::AnyNode => Ok(()),
        }
    }
}

/// Why a connection was refused, by us or by the other side.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The other side speaks no TLS 1.3.
    #[error("it offers no TLS 1.3; overlayd speaks nothing older")]
    OldTls,
    /// The other side showed no certificate.
    #[error("it shows no certificate; only nodes of this cluster may connect")]
    NoCertificate,
    /// The certificate is of another authority though it names our cluster.
    #[error("its certificate was not signed by the root of this cluster (wrong CA)")]
    WrongCa,
    /// The root that signed the certificate was replaced.
    #[error("the certificate of node {node} is of a root that this cluster has replaced")]
    RetiredRoot {
        /// The node.
        node: NodeId,
    },
    /// The certificate names another cluster.
    #[error("its certificate is of cluster {theirs}, this is cluster {ours}")]
    WrongCluster {
        /// The cluster in the certificate.
        theirs: ClusterId,
        /// Our cluster.
        ours: ClusterId,
    },
    /// The certificate has ended.
    #[error(
        "its certificate expired at {} and the clock of this machine says {}; renew it, or set the clock",
        moment(.not_after), moment(.now)
    )]
    Expired {
        /// When it ended.
        not_after: OffsetDateTime,
        /// Our clock.
        now: OffsetDateTime,
    },
    /// The certificate has not begun.
    #[error(
        "its certificate is not yet valid: it begins at {} and the clock of this machine says {}; set the clock",
        moment(.not_before), moment(.now)
    )]
    NotYetValid {
        /// When it begins.
        not_before: OffsetDateTime,
        /// Our clock.
        now: OffsetDateTime,
    },
    /// The node is none of the known ones.
    #[error("node {node} is unknown in this cluster")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// The node was removed.
    #[error(
        "node {node} was removed from this cluster; only by joining again, with a token, can it come back"
    )]
    RemovedNode {
        /// The node.
        node: NodeId,
    },
    /// Another node answers at the address.
    #[error("node {found} answers there, not node {expected}")]
    WrongNode {
        /// Whom we wanted.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// The node that answers is no manager.
    #[error("node {node} is a worker, not a manager")]
    NotAManager {
        /// The node.
        node: NodeId,
    },
    /// The certificate is malformed or names no node.
    #[error("its certificate is not that of a node: {0}")]
    BadCertificate(#[from] IdentityError),
    /// The root is not the one that the join token names.
    #[error(
        "the token is of another cluster, or its root was replaced: it does not name the root of this manager \
         (SHA-256 {}); print a new one on a manager: overlayd token worker",
        fingerprint_text(.found)
    )]
    WrongRoot {
        /// The digest of the root that the manager showed.
        found: [u8; 32],
    },
    /// The client asks for no protocol of ours.
    #[error("it asks for no protocol of overlayd (ALPN)")]
    NoProtocol,
    /// The client asks for what only managers serve.
    #[error("it asks for {protocol}, which only managers serve")]
    NotServed {
        /// The protocol.
        protocol: &'static str,
    },
    /// The other side ended the handshake with an alert.
    #[error("the other side refused this node: {}", alert_text(.0))]
    ByPeer(AlertDescription),
    /// The handshake went wrong in another way.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}

impl Refusal {
    /// What rustls says of a failed handshake, as a refusal.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is of rustls, and non-exhaustive")]
    pub(super) fn from_tls(error: rustls::Error) -> Self {
        match error {
            rustls::Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::OldTls,
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::NoApplicationProtocol => Self::NoProtocol,
            rustls::Error::AlertReceived(alert) => Self::ByPeer(alert),
            other => Self::Tls(other),
        }
    }

    /// What rustls says of a certificate chain, as a refusal.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is of rustls, and non-exhaustive")]
    pub(super) fn from_chain(error: rustls::Error, name: &CertificateName, now: OffsetDateTime) -> Self {
        match error {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => Self::Expired { not_after: name.not_after, now },
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => Self::NotYetValid { not_before: name.not_before, now },
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => Self::WrongCa,
            other => Self::Tls(other),
        }
    }

    /// The error that makes rustls send the alert from which the other side learns the reason.
    pub(super) fn to_tls(&self) -> rustls::Error {
        rustls::Error::InvalidCertificate(match self {
            Self::WrongCa | Self::WrongRoot { .. } | Self::RetiredRoot { .. } => {
                CertificateError::UnknownIssuer
            }
            Self::Expired { .. } => CertificateError::Expired,
            Self::NotYetValid { .. } => CertificateError::NotValidYet,
            Self::RemovedNode { .. } => CertificateError::Revoked,
            Self::UnknownNode { .. } => CertificateError::Other(rustls::OtherError(Arc::new(self.clone()))),
            Self::BadCertificate(_) => CertificateError::BadEncoding,
            Self::WrongCluster { .. }
            | Self::WrongNode { .. }
            | Self::NotAManager { .. }
            | Self::OldTls
            | Self::NoCertificate
            | Self::NoProtocol
            | Self::NotServed { .. }
            | Self::ByPeer(_) => CertificateError::ApplicationVerificationFailure,
            Self::Tls(error) => return error.clone(),
        })
    }
}

/// A certificate digest as people compare it: its first 16 bytes, hexadecimal.
fn fingerprint_text(digest: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&digest[..16])
}

fn moment(at: &OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

fn alert_text(alert: &AlertDescription) -> String {
    if *alert == AlertDescription::CertificateRevoked {
        "it was removed from the cluster; join it again with a new token".to_owned()
    } else if *alert == AlertDescription::CertificateExpired {
        "its certificate is expired or not yet valid by the other side's clock; compare the clocks".to_owned()
    } else if *alert == AlertDescription::UnknownCA {
        "its certificate is of another root (wrong CA)".to_owned()
    } else if *alert == AlertDescription::CertificateUnknown {
        "it is unknown in the cluster".to_owned()
    } else if *alert == AlertDescription::AccessDenied {
        "it is of another cluster or has another role than is wanted".to_owned()
    } else if *alert == AlertDescription::CertificateRequired {
        "it showed no certificate".to_owned()
    } else if *alert == AlertDescription::NoApplicationProtocol {
        "the other side does not serve this protocol; is it a manager?".to_owned()
    } else if *alert == AlertDescription::UserCanceled {
        "it has too many connections to set up at once; try again in some seconds".to_owned()
    } else if *alert == AlertDescription::ProtocolVersion {
        "TLS 1.3 is required".to_owned()
    } else {
        format!("TLS alert {alert:?}; the log of the other side says more")
    }
}
