//! Why the demo ended without all its proofs.

use std::error::Error;
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
    #[error("{host}: '{command}' failed: {}\nthe end of the agent's log:\n{log}", whole(source.as_ref()))]
    Command {
        /// Where it ran.
        host: String,
        /// The whole command.
        command: String,
        /// Why.
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

/// An error with its causes, less those that it tells itself.
pub(super) fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let source = io::Error::other("no such device");
        assert_eq!(
            whole(&DemoError::System { doing: "start an agent", source }),
            "cannot start an agent: no such device"
        );
        let untold = CliError::System { doing: "start the runtime", source: io::Error::other("full") };
        assert_eq!(whole(&untold), "cannot start the runtime: full");
    }
}
