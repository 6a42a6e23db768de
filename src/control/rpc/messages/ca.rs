//! Messages about the cluster's certificate authority.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cluster::RotationStep;
use crate::id::{HostName, NodeId};
use crate::membership::RootFingerprint;

/// Begins to replace the root. Managers only.
#[derive(Clone, Serialize, Deserialize)]
pub struct RotateCa {
    /// Root and key that the operator brings, both PEM; without them new ones are made.
    pub brought: Option<(String, Zeroizing<String>)>,
}

impl std::fmt::Debug for RotateCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RotateCa").field("is_brought", &self.brought.is_some()).finish_non_exhaustive()
    }
}

/// Asks how far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CaStatusRequest {}

/// The root, and how far its rotation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    /// The root that signs certificates.
    pub issuing: RootFingerprint,
    /// When it ends, in seconds since 1970 UTC; managers with an earlier version do not say it.
    #[serde(default)]
    pub issuing_ends_unix_seconds: Option<i64>,
    /// The rotation that is under way.
    pub rotation: Option<RotationStatus>,
}

/// How far a rotation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationStatus {
    /// Which step.
    pub step: RotationStep,
    /// When it was begun, in seconds since 1970 UTC.
    pub begun_unix_seconds: u64,
    /// The root that goes.
    pub old: RootFingerprint,
    /// The root that comes.
    pub new: RootFingerprint,
    /// How many nodes there are.
    pub nodes: u64,
    /// The nodes that have not done their part of the step.
    pub waiting: Vec<WaitedFor>,
}

/// A node that a rotation waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitedFor {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: HostName,
    /// How long it has had no session with a manager, if that is so and known.
    pub away_seconds: Option<u64>,
    /// Whether it has a session with a manager.
    pub connected: bool,
}
