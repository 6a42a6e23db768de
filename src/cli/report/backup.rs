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
    if let Some(key) = &restored.unlock_key {
        write!(text, "\n{}", autolock::advice(key)).expect("a String takes all");
    }
    text
}
