//! Labels of networks and nodes: what may be one, and which a node lacks for a network.

use std::collections::BTreeMap;

use super::StateError;
use crate::cluster::{Network, Node, NodeProfile};

/// Refuses labels that could not be shown on a screen or would fill the state file.
pub(super) fn check(labels: &BTreeMap<String, String>) -> Result<(), StateError> {
    for (key, value) in labels {
        let refuse = |why| StateError::Label { key: key.clone(), why };
        if labels.len() > MOST_LABELS {
            return Err(refuse("there are at most 64 labels"));
        }
        if key.is_empty() || key.len() > 128 {
            return Err(refuse("a key has 1 to 128 bytes"));
        }
        if value.len() > 1024 {
            return Err(refuse("a value has at most 1024 bytes"));
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(refuse("it contains a control character"));
        }
    }
    Ok(())
}

/// Refuses a node that has not all labels that the network asks of its members.
pub(super) fn admit(network: &Network, node: &Node, profile: Option<&NodeProfile>) -> Result<(), StateError> {
    let has = |key: &String| profile.and_then(|profile| profile.labels.get(key));
    let missing: Vec<String> = network
        .node_labels
        .iter()
        .filter(|(key, value)| has(key) != Some(*value))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(StateError::NodeLabels {
        node: node.name.clone(),
        id: node.id,
        network: network.name.clone(),
        missing,
    })
}

const MOST_LABELS: usize = 64;
