//! What the commands about a manager's unlock key print.

use crate::api::types::{UnlockKeyResponse, UnlockResponse};
use crate::unlock_key::UnlockKey;

pub(in crate::cli) fn unlock(unlocked: &UnlockResponse) -> String {
    match unlocked.cluster {
        Some(cluster) => format!("This manager of cluster {cluster} is unlocked and goes on.\n"),
        None => {
            "This node is unlocked; the cluster that it was making was never finished, and is forgotten.\n"
                .into()
        }
    }
}

pub(in crate::cli) fn unlock_key(response: &UnlockKeyResponse) -> String {
    advice(&response.key)
}

pub(in crate::cli) fn unlock_key_alone(response: &UnlockKeyResponse) -> String {
    format!("{}\n", response.key.reveal().as_str())
}

/// What to do with a key.
pub(super) fn advice(key: &UnlockKey) -> String {
    format!(
        "To unlock this manager whenever its agent was started, run 'overlayd unlock' and give it:\n\n    {}\n\n\
         Keep it, and not on this machine: without it nothing of the state can be read again. Managers that are added\n\
         later take the same key; 'overlayd unlock-key --rotate' changes that of the manager that it is run on alone.\n",
        key.reveal().as_str()
    )
}
