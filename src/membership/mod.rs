//! Who may hold the keys of a network, signed by a manager; join tokens.

use serde::{Deserialize, Serialize};

/// A [`crate::cluster::Membership`] with a manager's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedMembership {
    /// The membership as JSON, exactly as signed.
    pub payload: String,
    /// The signing manager's certificate, DER, base64.
    pub certificate: String,
    /// ECDSA P-256 with SHA-256 over the payload, ASN.1, base64.
    pub signature: String,
}
