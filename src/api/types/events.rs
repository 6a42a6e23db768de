//! The audit log.

use serde::{Deserialize, Serialize};

use crate::events::Timestamp;

/// Asks for events; answered with one JSON object a line ([`crate::events::Told`]), for as long as the
/// caller listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsRequest {
    /// From when on; from now on when absent.
    pub since: Option<Timestamp>,
    /// Whether those that are still to come are wanted.
    pub follow: bool,
}

impl EventsRequest {
    /// The path of the URL.
    pub const PATH: &'static str = "/v1/events";
}
