//! How joins ended.

use serde::{Deserialize, Serialize};

/// The joins that a manager was asked for, since its agent started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JoinTotals {
    /// Machines that became nodes.
    pub admitted: u64,
    /// Machines that were refused: by their token, or by what they say of themselves.
    pub refused: u64,
    /// Machines that were told to try again later, because too many tried.
    pub turned_away: u64,
}
