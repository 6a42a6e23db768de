//! What tables about nodes have in common with the report of one node.

use std::collections::BTreeMap;

use super::{joined, optional, table, text};
use crate::api::types::{NodeEndpoint, NodeState};
use crate::cluster::ManagerState;

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

/// Labels in one cell.
pub(in crate::cli) fn node_labels(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "-".to_owned();
    }
    let label = |(key, value): (&String, &String)| {
        if value.is_empty() { key.clone() } else { format!("{key}={value}") }
    };
    labels.iter().map(label).collect::<Vec<_>>().join(", ")
}

pub(in crate::cli) const fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Down => "down",
        NodeState::Unknown => "unknown",
    }
}

pub(in crate::cli) const fn manager_state(state: Option<ManagerState>) -> &'static str {
    match state {
        None => "-",
        Some(ManagerState::Reachable) => "reachable",
        Some(ManagerState::WithoutStore) => "no store",
        Some(ManagerState::Unreachable) => "unreachable",
    }
}

pub(in crate::cli) const NODE_COLUMNS: [&str; 10] =
    ["ID", "NAME", "ROLE", "STATE", "MANAGER", "AVAILABILITY", "ENDPOINTS", "LABELS", "TLS AT", "DATA AT"];
