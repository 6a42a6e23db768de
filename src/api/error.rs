//! Why the agent refused a call, as it crosses the socket: a kind for programs, a sentence for people.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

/// A refusal: what went wrong and what the operator does next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind, for programs.
    pub kind: ErrorKind,
    /// The message, for people: no trailing full stop, no line of its own for the kind.
    pub message: String,
}

/// The kinds of refusal; each has its HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense as it is (400).
    Invalid,
    /// The caller or this node may not do it (403).
    Denied,
    /// It names something that does not exist (404).
    NotFound,
    /// It contradicts what exists already (409).
    Conflict,
    /// The agent failed (500).
    Internal,
    /// Something that is needed cannot be reached right now; try again (503).
    Unavailable,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Invalid, Self::Denied, Self::NotFound, Self::Conflict, Self::Internal, Self::Unavailable];

    /// The word for it, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status of an answer of this kind.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident $kind:ident;)*) => {
        impl ApiError {$(
            $(#[$doc])*
            pub fn $name(message: impl Into<String>) -> Self {
                Self { kind: ErrorKind::$kind, message: message.into() }
            }
        )*}
    };
}

constructors! {
    /// The request makes no sense as it is.
    invalid Invalid;
    /// The caller or this node may not do it.
    denied Denied;
    /// It names something that does not exist.
    not_found NotFound;
    /// It contradicts what exists already.
    conflict Conflict;
    /// The agent failed.
    internal Internal;
    /// Something that is needed cannot be reached right now.
    unavailable Unavailable;
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.kind.status(), Json(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_failing_status_and_survives_json() {
        let mut statuses = std::collections::HashSet::new();
        for kind in ErrorKind::ALL {
            assert!(kind.status().is_client_error() || kind.status().is_server_error());
            assert!(statuses.insert(kind.status()), "{kind:?} shares its status");
            let error = ApiError { kind, message: "network \"a\" exists; choose another name".into() };
            let json = serde_json::to_string(&error).expect("JSON");
            assert!(json.contains(&format!("\"{}\"", kind.name())), "{json}");
            assert_eq!(serde_json::from_str::<ApiError>(&json).expect("an error"), error);
        }
    }
}
