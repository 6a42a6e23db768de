//! Why a command failed, for people and for programs.

use std::path::PathBuf;

use super::netns::NetnsError;
use crate::api::ClientError;
use crate::config::ConfigError;
use crate::unlock_key::{NotAnUnlockKey, UnlockKey};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments contradict each other.
    #[error("{0}{TRY_HELP}")]
    Usage(String),
    /// The agent refuses or cannot be reached.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// `--netns` leads nowhere.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A file that the command names cannot be read.
    #[error("cannot read {}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The agent's configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Some links have no new keys.
    #[error("{failed} of {of} links have no new keys; what they have stays in use until its limits")]
    NotRenewed {
        /// What to print all the same.
        report: String,
        /// So many links.
        failed: usize,
        /// Of so many.
        of: usize,
    },
    /// Some of what there is on the node is not as it should be.
    #[error("{differing} of {of} items are not as they should be")]
    Differs {
        /// What to print all the same.
        report: String,
        /// So many items.
        differing: usize,
        /// Of so many.
        of: usize,
    },
    /// A secret cannot be read.
    #[error("cannot read the {what} from {from}")]
    Secret {
        /// What it is.
        what: String,
        /// Where it should be.
        from: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Two texts where there should have been one.
    #[error("the passphrase was not the same the second time: nothing was done")]
    TypedDifferently,
    /// A file is in the way.
    #[error("{} exists: give another name, or --force to replace it", file.display())]
    FileExists {
        /// The file.
        file: PathBuf,
    },
    /// The system refuses to read or write a backup.
    #[error("cannot {doing} the backup {}", file.display())]
    BackupFile {
        /// What was tried.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// What is to be restored is something else.
    #[error(
        "{} is not a backup of overlayd: {why}; give the file that `overlayd backup` wrote; nothing was changed",
        file.display()
    )]
    NoBackup {
        /// The file.
        file: PathBuf,
        /// How that can be told.
        why: &'static str,
    },
    /// What was given for an unlock key.
    #[error("cannot take the unlock key from {from}")]
    UnlockKey {
        /// Where it is from.
        from: String,
        /// What is wrong.
        source: NotAnUnlockKey,
    },
    /// The agent refuses the CA that was given.
    #[error("{failure} (the CA that was given is that of {} and {})", certificate.display(), key.display())]
    BroughtCa {
        /// The file of its certificate.
        certificate: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// Why it is refused.
        failure: ClientError,
    },
    /// A key was sent, and whether it counts is not known.
    #[error(
        "{failure}\n\nShould the agent have taken the new unlock key all the same, it is:\n\n    {}",
        key.reveal().as_str()
    )]
    UnlockKeyAtLarge {
        /// The key.
        key: UnlockKey,
        /// Why nothing more is known.
        failure: ClientError,
    },
    /// The system refuses something that every command needs.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl CliError {
    /// What goes to standard output all the same.
    pub fn report(&self) -> Option<&str> {
        if let Self::NotRenewed { report, .. } | Self::Differs { report, .. } = self {
            Some(report)
        } else {
            None
        }
    }

    /// The exit code that tells a wrong command (2) from one that was refused or failed (1).
    pub const fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
    const fn kind(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::Agent(failure)
            | Self::BroughtCa { failure, .. }
            | Self::UnlockKeyAtLarge { failure, .. } => failure.kind(),
            Self::NotRenewed { .. } => "not_renewed",
            Self::Differs { .. } => "differs",
            Self::Netns(_)
            | Self::File { .. }
            | Self::Config(_)
            | Self::Secret { .. }
            | Self::TypedDifferently
            | Self::FileExists { .. }
            | Self::BackupFile { .. }
            | Self::NoBackup { .. }
            | Self::UnlockKey { .. }
            | Self::System { .. } => FAILED,
        }
    }
}

/// How complaints about arguments end, as clap's do.
pub const TRY_HELP: &str = "\n\nFor more information, try '--help'.";

/// What a program is told of a failure that has asked for JSON: a kind and the words for people.
pub fn failure_as_json(failure: &anyhow::Error) -> String {
    let kind = failure.downcast_ref().map_or(FAILED, CliError::kind);
    serde_json::json!({ "error": { "kind": kind, "message": format!("{failure:#}") } }).to_string()
}

/// The kind of what no program can do anything about.
const FAILED: &str = "failed";
