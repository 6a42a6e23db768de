//! Calls about the cluster's certificate authority.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cluster::RotationStep;
use crate::id::{ClusterId, HostName, NodeId};

/// A certificate authority that the operator brings: a root and its key, as text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BroughtAuthority {
    /// The root certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM, not encrypted.
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for BroughtAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BroughtAuthority").field("key_pem", &"[redacted]").finish_non_exhaustive()
    }
}

/// Asks for the cluster's root certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaRequest {}

/// The root certificates that this node trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaResponse {
    /// The cluster.
    pub cluster: ClusterId,
    /// The root that signs certificates, and after it any other that is trusted.
    pub roots: Vec<CaRoot>,
}

/// A root certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRoot {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// SHA-256 of its DER, hexadecimal.
    pub fingerprint_sha256: String,
    /// Its subject.
    pub subject: String,
    /// When it begins, in seconds since 1970 UTC.
    pub begins_unix_seconds: i64,
    /// When it ends, in seconds since 1970 UTC.
    pub ends_unix_seconds: i64,
}

/// Begins to replace the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateCaRequest {
    /// The authority that comes; a new one is made when absent.
    pub authority: Option<BroughtAuthority>,
}

/// Asks how far the replacement of the root is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaStatusRequest {}

/// The root that signs, and how far its replacement is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatusResponse {
    /// SHA-256 of the root that signs certificates, hexadecimal.
    pub issuing_sha256: String,
    /// When it ends, in seconds since 1970 UTC, if the manager says so.
    #[serde(default)]
    pub issuing_ends_unix_seconds: Option<i64>,
    /// The replacement that is under way.
    pub rotation: Option<CaRotation>,
}

/// How far the replacement of the root is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRotation {
    /// Which step.
    pub step: RotationStep,
    /// When it was begun, in seconds since 1970 UTC.
    pub begun_unix_seconds: u64,
    /// SHA-256 of the root that goes, hexadecimal.
    pub old_sha256: String,
    /// SHA-256 of the root that comes, hexadecimal.
    pub new_sha256: String,
    /// How many nodes there are.
    pub node_count: u64,
    /// Those that have not done their part of the step.
    pub waiting: Vec<WaitingNode>,
}

/// A node that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingNode {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: HostName,
    /// Why it is waited for.
    pub why: String,
    /// Whether it has a session with a manager.
    pub connected: bool,
    /// Since when it has none, in seconds since 1970 UTC; absent while it has one, or if the manager was
    /// started later.
    pub offline_since_unix_seconds: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_that_was_brought_is_not_printed() {
        let brought = BroughtAuthority {
            certificate_pem: "certificate".into(),
            key_pem: Zeroizing::new("secret".into()),
        };
        assert!(!format!("{brought:?}").contains("secret"));
    }
}
