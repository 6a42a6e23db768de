//! The steps in which a cluster's root is replaced.

use serde::{Deserialize, Serialize};

/// A step; it ends when every node has done its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotationStep {
    /// Every node is to trust the new root beside the old one.
    Trust,
    /// Every node is to have a certificate of the new root.
    Reissue,
    /// Every node is to trust the new root alone.
    Retire,
}

impl RotationStep {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Trust, Self::Reissue, Self::Retire];

    /// What is being done.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Trust => "every node trusts the new root too",
            Self::Reissue => "every node gets a certificate of the new root",
            Self::Retire => "every node drops the old root",
        }
    }

    /// Why it waits for a node.
    pub const fn lacking(self) -> &'static str {
        match self {
            Self::Trust => "does not trust the new root yet",
            Self::Reissue => "has a certificate of the old root",
            Self::Retire => "trusts the old root still",
        }
    }
}
