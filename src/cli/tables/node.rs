//! What tables about nodes have in common with the report of one node.

use super::{joined, optional, table, text};
use crate::api::types::{NodeEndpoint, NodeState};

pub(in crate::cli) fn node_endpoints(endpoints: &[NodeEndpoint]) -> String {
    let mut table = table(&["ENDPOINT", "NETWORK", "NAME", "ADDRESSES", "MAC"]);
    for NodeEndpoint { network_name, endpoint } in endpoints {
        table.add_row([
            endpoint.id.to_string(),
            network_name.to_string(),
            optional(endpoint.name.as_ref()),
            joined(&endpoint.addresses),
            endpoint.mac.to_string(),
        ]);
    }
    text(&table)
}

pub(in crate::cli) const fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Down => "down",
        NodeState::Unknown => "unknown",
    }
}
