//! What managers ask one another. Managers only.

use serde::{Deserialize, Serialize};

use crate::control::store::SharedStore;
use crate::id::NodeId;
use crate::unlock_key::UnlockKey;

/// Asks which nodes a manager has sessions with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PresenceRequest {}

/// The nodes that a manager has, or had, sessions with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Presence {
    /// Those that have one.
    pub connected: Vec<NodeId>,
    /// Those that had one, and how many seconds ago.
    pub away: Vec<(NodeId, u64)>,
    /// Whether the manager reaches the cluster's store.
    pub has_store: bool,
}

/// Asks for what a new manager needs to reach the cluster's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoreAccessRequest {}

/// Where the cluster's state is, and all that opens it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreAccess {
    /// The store that managers share.
    pub shared: SharedStore,
    /// The unlock key of the manager that says so: who keeps the same is to be locked as it is.
    #[serde(default)]
    pub unlock_key: Option<UnlockKey>,
}
