//! A manager that is locked at each start: unlocking it, and its unlock key.

use serde::{Deserialize, Serialize};

use crate::id::ClusterId;
use crate::unlock_key::UnlockKey;

/// Lets a locked manager go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlockRequest {
    /// The unlock key, as it was printed.
    pub key: UnlockKey,
}

/// What goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockResponse {
    /// The cluster; none if its making had never been finished.
    pub cluster: Option<ClusterId>,
}

/// Asks a manager for its unlock key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlockKeyRequest {
    /// Makes this the unlock key first, so that the old one is void. The caller draws it: one that
    /// got no answer still has the key that may be the one.
    pub rotate: Option<UnlockKey>,
}

/// A manager's unlock key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockKeyResponse {
    /// The key.
    pub key: UnlockKey,
}
