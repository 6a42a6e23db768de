//! What the commands about backups print.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::autolock;
use crate::api::types::RestoreResponse;
use crate::id::{ClusterId, NodeId};

/// A backup that was written.
#[derive(Serialize)]
pub(in crate::cli) struct BackedUp {
    pub(in crate::cli) cluster: ClusterId,
    pub(in crate::cli) node: NodeId,
    pub(in crate::cli) file: PathBuf,
    pub(in crate::cli) bytes: usize,
}

pub(in crate::cli) fn backup(made: &BackedUp) -> String {
    format!(
        "{} ({} bytes) holds cluster {} as it is now: its keys, tokens, nodes and networks.\n\
         Whoever has it and the passphrase can be its manager; without the passphrase it is of no use.\n",
        made.file.display(),
        made.bytes,
        made.cluster
    )
}

pub(in crate::cli) fn restore(restored: &RestoreResponse) -> String {
    let made = UNIX_EPOCH.checked_add(Duration::from_secs(restored.made_unix_seconds));
    let made = made
        .map_or_else(|| "an unknown time".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string());
    let mut text = format!(
        "This node is manager {} of cluster {} again, as it was at {}, reached at {}.\n\
         It looks for the other {} nodes; 'overlayd node ls' shows which are back.\n\
         What was done since the backup is undone: remove nodes, and rotate tokens, that were removed or rotated since.\n\
         Never start the agent that was manager before: delete its state directory.\n",
        restored.node, restored.cluster, made, restored.manager, restored.other_node_count,
    );
    if let Some(former) = restored.former {
        writeln!(
            text,
            "The other nodes know manager {former}, which was backed up, to be removed from the cluster: this is another \
             node, with its labels."
        )
        .expect("a String takes all");
    }
    match &restored.unlock_key {
        Some(key) => write!(text, "\n{}", autolock::advice(key)).expect("a String takes all"),
        None => text.push_str(UNLOCKED),
    }
    text
}

/// A backup does not say whether its manager was locked.
const UNLOCKED: &str = "It is not locked when its agent is started, even if the manager that was backed up was: \
                        'overlayd unlock-key --rotate' locks it.\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unlock_key::UnlockKey;

    #[test]
    fn restored_manager_says_whether_it_is_locked_at_each_start() {
        let mut restored = RestoreResponse {
            cluster: ClusterId::from_entropy([0; 16]),
            node: NodeId::from_entropy([0; 16]),
            former: None,
            manager: "192.0.2.1:2377".parse().expect("an address"),
            made_unix_seconds: 1_800_000_000,
            other_node_count: 2,
            unlock_key: None,
        };
        let says_so = |text: String| text.contains("It is not locked when its agent is started");
        assert!(says_so(restore(&restored)));
        restored.unlock_key = Some(UnlockKey::from_entropy([7; 32]));
        assert!(!says_so(restore(&restored)));
    }

    #[test]
    fn restored_manager_that_is_another_node_says_in_whose_place() {
        let former = NodeId::from_entropy([1; 16]);
        let restored = RestoreResponse {
            cluster: ClusterId::from_entropy([0; 16]),
            node: NodeId::from_entropy([0; 16]),
            former: Some(former),
            manager: "192.0.2.1:2377".parse().expect("an address"),
            made_unix_seconds: 1_800_000_000,
            other_node_count: 2,
            unlock_key: None,
        };
        assert!(restore(&restored).contains(&format!("know manager {former}")));
        assert!(!restore(&RestoreResponse { former: None, ..restored }).contains("to be removed"));
    }
}
