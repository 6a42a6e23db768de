//! Why the state file could not be opened, read or written.

use std::io;
use std::path::{Path, PathBuf};

use super::etcd::EtcdError;

/// Why the state file could not be used, and what the operator does next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another agent has the directory.
    #[error(
        "state directory {} is in use by another overlayd agent{}: stop that one, or give this one a --state-dir of its own",
        dir.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// Who has it, if it said so.
        pid: Option<u32>,
    },
    /// There is a state file where a new one was to be made.
    #[error("{} exists already: this node has a state, and it is not replaced", file.display())]
    Exists {
        /// The state file.
        file: PathBuf,
    },
    /// There is no state file.
    #[error("{} does not exist: this node has no state yet (overlayd init or join makes it)", file.display())]
    Missing {
        /// The state file.
        file: PathBuf,
    },
    /// The file was torn, truncated or altered.
    #[error(
        "state file {} is damaged ({why}): restore it from a backup, or move it away to start this node afresh (it then has to join again)",
        file.display()
    )]
    Damaged {
        /// The state file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file is something else.
    #[error(
        "{} is not a state file of overlayd ({why}): move it away, or give the agent another --state-dir; it is not overwritten",
        file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// The state file or the key file was written by a later overlayd.
    #[error(
        "{} has format {found}, this overlayd knows format {known}: run the overlayd that wrote it, or restore a backup from before the upgrade",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that we know.
        known: u32,
    },
    /// The key file is not there, or has no key for the state file.
    #[error(
        "state file {} is sealed, and {} has no key for it: put the key file back that belongs to it, restore a backup, or move the state file away to start this node afresh (it then has to join again)",
        file.display(), key_file.display()
    )]
    KeyMissing {
        /// The state file.
        file: PathBuf,
        /// The key file.
        key_file: PathBuf,
    },
    /// The key file was altered.
    #[error(
        "key file {} is damaged ({why}): put back the one that belongs to the state file beside it, or restore a backup",
        file.display()
    )]
    KeyFileDamaged {
        /// The key file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key in the key file is sealed under an unlock key that has not been given.
    #[error(
        "state file {} is locked: run `overlayd unlock` and give it the unlock key of this manager",
        file.display()
    )]
    Locked {
        /// The state file.
        file: PathBuf,
    },
    /// Another unlock key than the one under which the key in the key file is sealed.
    #[error("this is not the unlock key of state file {}: nothing was changed", file.display())]
    WrongUnlockKey {
        /// The state file.
        file: PathBuf,
    },
    /// A row was altered, or is in another's place.
    #[error(
        "state file {}: row {row} of table {table:?} was altered or put in another's place, it does not open: restore the file from a backup",
        file.display()
    )]
    Unopened {
        /// The state file.
        file: PathBuf,
        /// The table.
        table: String,
        /// The row, as it is called in the file.
        row: String,
    },
    /// No space.
    #[error(
        "no space left to {doing} {}: free some and try again; nothing was changed ({source})",
        file.display()
    )]
    Full {
        /// The state file.
        file: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The refusal of the kernel.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {doing} {}: {source}", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The refusal of the kernel.
        source: io::Error,
    },
    /// The database refused.
    #[error("cannot {doing} state file {}: {why}", file.display())]
    Database {
        /// The state file.
        file: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What redb says.
        why: String,
    },
    /// A row does not parse.
    #[error(
        "state file {}: row {key:?} of table {table:?} is not what this overlayd writes ({source}): restore the file from a backup",
        file.display()
    )]
    Row {
        /// The state file.
        file: PathBuf,
        /// The table.
        table: &'static str,
        /// The row.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The cluster's rows in etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// A value that JSON cannot carry, like a path that is not UTF-8.
    #[error("row {key:?} of table {table:?} cannot be written as JSON: {source}")]
    Unwritable {
        /// The table.
        table: &'static str,
        /// The row.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl StoreError {
    /// True when the disk is full: the operation may be tried again once there is space.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// True when somebody else has to do something first, and then the same may work.
    pub fn is_passing(&self) -> bool {
        self.is_full() || matches!(self, Self::Etcd(error) if error.is_passing())
    }

    /// True after failures of the disk, which redb answers by refusing everything that follows.
    pub(super) const fn needs_reopening(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Io { .. } | Self::Damaged { .. } | Self::Database { .. })
    }

    pub(super) fn io(file: &Path, doing: &'static str, source: io::Error) -> Self {
        let file = file.to_owned();
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded
        ) {
            return Self::Full { file, doing, source };
        }
        Self::Io { file, doing, source }
    }

    pub(super) fn redb(file: &Path, doing: &'static str, error: impl Into<redb::Error>) -> Self {
        let error: redb::Error = error.into();
        if let redb::Error::Io(source) = error {
            if source.kind() == io::ErrorKind::InvalidData {
                // How redb says that a file does not begin as one of its own.
                return Self::Foreign { file: file.to_owned(), why: source.to_string() };
            }
            if source.kind() == io::ErrorKind::UnexpectedEof {
                return Self::Damaged { file: file.to_owned(), why: "it ends too early".to_owned() };
            }
            return Self::io(file, doing, source);
        }
        let file = file.to_owned();
        if let redb::Error::Corrupted(why) = error {
            return Self::Damaged { file, why };
        }
        Self::Database { file, doing, why: error.to_string() }
    }
}
