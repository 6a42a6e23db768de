//! Why the demo ended without all its proofs.

use std::io;

use crate::cli::CliError;
use crate::lab::LabError;

/// Why the demo ended without all its proofs.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Something is missing here, or a measurement failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// An agent did not do what it must.
    #[error("{host}: the agent {what}; the end of its log:\n{log}")]
    Agent {
        /// Where it runs.
        host: String,
        /// What it did, or not.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// A command was refused.
    #[error("{host}: '{command}' failed: {source}\nthe end of the agent's log:\n{log}")]
    Command {
        /// Where it ran.
        host: String,
        /// The whole command.
        command: String,
        /// Why.
        #[source]
        source: Box<CliError>,
        /// The last lines of the agent's log.
        log: String,
    },
    /// It ran to its end, but not everything was as it must be.
    #[error("not everything held:\n  {}", failures.join("\n  "))]
    NotProven {
        /// What did not hold, one sentence each.
        failures: Vec<String>,
    },
    /// The operator has seen enough.
    #[error("ended by {name}; nothing is left behind")]
    Interrupted {
        /// The signal.
        name: &'static str,
    },
    /// The system refuses something that is always needed.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}
