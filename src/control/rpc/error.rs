//! Errors of the manager API, carried over gRPC without loss.

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use super::client::NoManager;

/// Why a manager did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ManagerError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What happened and what to do, for people.
    pub message: String,
}

impl ManagerError {
    /// An error with a message for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request makes no sense as it is.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// It contradicts what exists.
    Conflict,
    /// The caller may not do that.
    Denied,
    /// No manager can do it now; trying again may help.
    Unavailable,
    /// A fault of the manager.
    Internal,
    /// The calling node was removed from the cluster.
    Removed,
    /// The calling node is not one of those that may be in the network.
    Barred,
}

impl ErrorKind {
    const fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Conflict => Code::FailedPrecondition,
            Self::Denied | Self::Removed | Self::Barred => Code::PermissionDenied,
            Self::Unavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

impl From<ManagerError> for Status {
    fn from(error: ManagerError) -> Self {
        // gRPC itself uses these codes too; only our errors carry their kind in the details.
        let kind = serde_json::to_vec(&error.kind).expect("a unit variant is a string");
        Self::with_details(error.kind.code(), error.message, kind.into())
    }
}

impl From<Status> for ManagerError {
    fn from(status: Status) -> Self {
        match serde_json::from_slice(status.details()) {
            Ok(kind) => Self::new(kind, status.message()),
            Err(_not_ours) if NoManager::in_status(&status).is_some_and(NoManager::has_removed_us) => {
                Self::new(ErrorKind::Removed, REMOVED)
            }
            Err(_not_ours) => Self::new(kind_of(status.code()), explain(&status)),
        }
    }
}

/// The kind of an error that gRPC or the transport made.
const fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => ErrorKind::Invalid,
        Code::NotFound => ErrorKind::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Denied,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => ErrorKind::Unavailable,
    }
}

/// The cause at the bottom, which names the manager and the reason.
fn explain(status: &Status) -> String {
    if let Some(unreached) = NoManager::in_status(status) {
        let hint = if unreached.has_another_root() { ANOTHER_ROOT } else { "" };
        return format!("{unreached}{hint}");
    }
    let mut deepest: &dyn std::error::Error = status;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => NO_ANSWER.to_owned(),
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => format!("the connection to the manager failed: {deepest}"),
    }
}

const NO_ANSWER: &str = "the manager did not answer in time: if something was to be changed, look whether it was before you \
                         ask for it again";
const ANOTHER_ROOT: &str = "; a node that is of this cluster and was away while its root was replaced was removed from it: run \
                            `overlayd leave --force` here, then `overlayd join` with a token of the cluster";
const REMOVED: &str = "this node was removed from its cluster, and the others refuse it: run `overlayd leave \
                       --force` here, then `overlayd join` with a token of the cluster";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_message_comes_back_over_grpc() {
        use ErrorKind::{Barred, Conflict, Denied, Internal, Invalid, NotFound, Removed, Unavailable};
        for kind in [Invalid, NotFound, Conflict, Denied, Unavailable, Internal, Removed, Barred] {
            let error =
                ManagerError::new(kind, "network \"blau\" ist 100 % belegt: größer wählen\n(zweite Zeile)");
            assert_eq!(ManagerError::from(Status::from(error.clone())), error);
        }
    }

    #[test]
    fn failures_of_the_transport_are_never_taken_for_the_managers_own() {
        let broken = ManagerError::from(Status::internal("h2 protocol error"));
        assert_eq!(broken.kind, ErrorKind::Unavailable);
        assert!(broken.message.contains("h2 protocol error"));
    }
}
