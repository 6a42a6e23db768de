//! What `overlayd ca` prints.

use std::time::{Duration, UNIX_EPOCH};

use super::Lines;
use crate::api::types::{CaResponse, CaRotation, CaStatusResponse, WaitingNode};
use crate::cluster::RotationStep;

/// The roots as PEM and nothing else, so that they can be put into a file.
pub(in crate::cli) fn roots(answer: &CaResponse) -> String {
    answer.roots.iter().map(|root| root.certificate_pem.as_str()).collect()
}

/// How far a rotation is.
pub(in crate::cli) fn status(answer: &CaStatusResponse) -> String {
    let mut lines = Lines::default();
    let until = answer.issuing_ends_unix_seconds.and_then(|ends| u64::try_from(ends).ok());
    let until = until.map(|ends| format!(", until {}", moment(ends))).unwrap_or_default();
    lines.add("Root", format!("SHA-256 {}{until}", answer.issuing_sha256));
    let Some(rotation) = &answer.rotation else {
        lines.add("Rotation", "none");
        return lines.text;
    };
    lines.add("Rotation", format!("begun {}", moment(rotation.begun_unix_seconds)));
    lines.add("From", format!("SHA-256 {}", rotation.old_sha256));
    lines.add("To", format!("SHA-256 {}", rotation.new_sha256));
    lines.add("Step", step(rotation));
    for node in &rotation.waiting {
        lines.add("Waiting for", waiting(node));
    }
    if rotation.waiting.iter().any(|node| !node.connected) {
        lines
            .add("Note", "what is offline is waited for until it is back, or removed: overlayd node rm NODE");
    }
    lines.text
}

/// What is printed when a rotation is over.
pub(in crate::cli) fn replaced(answer: &CaStatusResponse) -> String {
    format!(
        "The root is replaced on every node; the new one is SHA-256 {}.\n\
         Join tokens printed before are void: overlayd token worker prints a new one.\n\
         Backups made before hold the old root, which no node believes any more: make a new one.\n",
        answer.issuing_sha256
    )
}

/// A step with its number and how many nodes have done their part of it.
pub(in crate::cli) fn step(rotation: &CaRotation) -> String {
    let number = RotationStep::ALL.iter().take_while(|step| **step <= rotation.step).count();
    let done = rotation.node_count.saturating_sub(u64::try_from(rotation.waiting.len()).unwrap_or(u64::MAX));
    let (all, what) = (rotation.node_count, rotation.step.describe());
    format!("{number} of {}, {what}: {done} of {all}", RotationStep::ALL.len())
}

/// A node that is waited for, and why.
pub(in crate::cli) fn waiting(node: &WaitingNode) -> String {
    let WaitingNode { node, name, why, connected, offline_since_unix_seconds } = node;
    let offline = match (connected, offline_since_unix_seconds) {
        (true, _) => String::new(),
        (false, Some(since)) => format!(", offline since {}", moment(*since)),
        (false, None) => ", offline since before the manager was started".to_owned(),
    };
    format!("{name} ({node}): {why}{offline}")
}

fn moment(unix_seconds: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds)) {
        Some(at) => humantime::format_rfc3339_seconds(at).to_string(),
        None => "in the far future".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::CaRoot;
    use crate::id::{ClusterId, NodeId};

    #[test]
    fn root_is_printed_as_it_is_put_into_a_file() {
        let root = |text: &str| CaRoot {
            certificate_pem: text.into(),
            fingerprint_sha256: "00".into(),
            subject: "CN=x".into(),
            begins_unix_seconds: 0,
            ends_unix_seconds: 1,
        };
        let cluster = ClusterId::from_entropy([0; 16]);
        let answer = CaResponse { cluster, roots: vec![root("one\n"), root("two\n")] };
        assert_eq!(roots(&answer), "one\ntwo\n");
    }

    #[test]
    fn rotation_names_who_is_waited_for_and_why() {
        let node = |name: &str, connected, since| WaitingNode {
            node: NodeId::from_entropy([0; 16]),
            name: name.parse().expect("a name"),
            why: RotationStep::Reissue.lacking().into(),
            connected,
            offline_since_unix_seconds: since,
        };
        let mut answer = CaStatusResponse {
            issuing_sha256: "ab".into(),
            issuing_ends_unix_seconds: Some(1_900_000_000),
            rotation: None,
        };
        assert_eq!(
            status(&answer),
            "Root:        SHA-256 ab, until 2030-03-17T17:46:40Z\nRotation:    none\n"
        );
        answer.issuing_ends_unix_seconds = None;
        answer.rotation = Some(CaRotation {
            step: RotationStep::Reissue,
            begun_unix_seconds: 1_800_000_000,
            old_sha256: "cd".into(),
            new_sha256: "ab".into(),
            node_count: 5,
            waiting: vec![
                node("b", true, None),
                node("c", false, Some(1_800_000_060)),
                node("d", false, None),
            ],
        });
        assert_eq!(
            status(&answer),
            "Root:        SHA-256 ab\n\
             Rotation:    begun 2027-01-15T08:00:00Z\n\
             From:        SHA-256 cd\n\
             To:          SHA-256 ab\n\
             Step:        2 of 3, every node gets a certificate of the new root: 2 of 5\n\
             Waiting for: b (0000000000000000000000000): has a certificate of the old root\n\
             Waiting for: c (0000000000000000000000000): has a certificate of the old root, offline since \
             2027-01-15T08:01:00Z\n\
             Waiting for: d (0000000000000000000000000): has a certificate of the old root, offline since \
             before the manager was started\n\
             Note:        what is offline is waited for until it is back, or removed: overlayd node rm NODE\n"
        );
    }
}
