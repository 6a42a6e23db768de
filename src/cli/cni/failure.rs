//! Why a runtime's wish was not fulfilled (CNI SPEC 1.1.0, section 5, "Error").

use serde_json::json;

use super::super::NetnsError;
use crate::api::{ClientError, ErrorKind};

/// A failure as a runtime reads it.
#[derive(Debug)]
pub(super) struct Failure {
    code: Code,
    message: String,
}

/// The codes of the specification, and from 100 on our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Version = 1,
    Unsupported = 2,
    Container = 3,
    Environment = 4,
    Io = 5,
    Decoding = 6,
    Config = 7,
    TryLater = 11,
    /// Containers cannot be attached.
    Unready = 50,
    /// Nor do those work that are.
    Degraded = 51,
    Refused = 100,
    /// It is not as it was given.
    Differs = 101,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    pub(super) fn json(&self, version: &str) -> String {
        json!({ "cniVersion": version, "code": self.code as u32, "msg": self.message }).to_string()
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Refused(refusal) => match refusal.kind {
                ErrorKind::Invalid | ErrorKind::NotFound => Code::Config,
                ErrorKind::Denied | ErrorKind::Conflict | ErrorKind::Internal => Code::Refused,
                ErrorKind::Unavailable => Code::TryLater,
            },
            ClientError::NotPermitted { .. } => Code::Refused,
            ClientError::NoAgent { .. }
            | ClientError::Unreachable { .. }
            | ClientError::Silent { .. }
            | ClientError::Garbled { .. } => Code::TryLater,
        };
        let message = if let ClientError::NoAgent { socket } = &error {
            format!(
                "no agent is running at {}; start one with 'overlayd agent' (or 'systemctl start overlayd'), \
                 or name its socket by \"socket\" in the network configuration",
                socket.display()
            )
        } else {
            format!("{:#}", anyhow::Error::from(error))
        };
        Self::new(code, message)
    }
}

impl From<NetnsError> for Failure {
    fn from(error: NetnsError) -> Self {
        let code = match error {
            NetnsError::NotFound { .. } => Code::Container,
            NetnsError::NotANamespace { .. } => Code::Environment,
            NetnsError::Unreadable { .. } => Code::Io,
        };
        Self::new(code, format!("{:#}", anyhow::Error::from(error)))
    }
}
