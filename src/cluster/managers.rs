//! What is known of a manager.

use serde::{Deserialize, Serialize};

/// Whether a manager can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManagerState {
    /// It answers, and reaches the cluster's store.
    Reachable,
    /// It answers, but does not reach the cluster's store.
    WithoutStore,
    /// It does not answer the manager that was asked.
    Unreachable,
}
