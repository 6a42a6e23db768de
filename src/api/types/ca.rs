//! Calls about the cluster's certificate authority.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::id::ClusterId;

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
