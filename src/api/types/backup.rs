//! Backing up a manager, and restoring it elsewhere.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::id::{ClusterId, NodeId};
use crate::unlock_key::UnlockKey;

/// What a backup is sealed with; shown nowhere but on the socket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// From what the operator gave.
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// As the operator gave it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase([redacted])")
    }
}

/// What the file of a backup begins with.
pub const BACKUP_BEGINNING: &[u8; 16] = b"overlayd backup\n";

/// No backup is larger, in bytes: far above one of 100,000 endpoints.
pub const MOST_BACKUP_BYTES: usize = 192 * 1024 * 1024 - 64 * 1024;

/// Backs this manager up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// What the backup opens with.
    pub passphrase: Passphrase,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupResponse {
    /// The cluster.
    pub cluster: ClusterId,
    /// The manager.
    pub node: NodeId,
    /// The content of the file to keep, sealed: base64.
    pub sealed: String,
}

/// Makes this node, which is in no cluster, the manager that was backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// The content of the file: base64.
    pub sealed: String,
    /// What it opens with.
    pub passphrase: Passphrase,
    /// Where other nodes reach this node's TLS port; where they reached the manager when absent.
    pub advertise: Option<SocketAddr>,
    /// Where the TLS port listens; every address with the advertised port when absent.
    pub listen: Option<SocketAddr>,
    /// The underlay address that carries data; the advertised one when absent.
    pub data_ip: Option<IpAddr>,
    /// The key that this manager is to be unlocked with after each start of its agent, whatever the
    /// one was that was backed up.
    pub autolock: Option<UnlockKey>,
}

/// The manager that is back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreResponse {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node, with the id that it had, or with another where nodes know that one to be removed.
    pub node: NodeId,
    /// The id that it had, where it has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<NodeId>,
    /// Where it is reached.
    pub manager: SocketAddr,
    /// When the backup was made, in seconds since 1970 UTC.
    pub made_unix_seconds: u64,
    /// Nodes of the cluster beside this one.
    pub other_node_count: u64,
    /// What this manager is to be unlocked with, if it is locked at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlock_key: Option<UnlockKey>,
}
