//! Join tokens as operators see them: how one is named and what became of it, never its secret.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Role;
use crate::id::{InvalidId, NodeId, TokenId};

/// What a token is called: `worker` and `manager` are always there, the others have an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TokenName {
    /// The token of a role that every cluster has.
    Standing(Role),
    /// One that was made to order.
    Issued(TokenId),
}

impl FromStr for TokenName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text {
            "worker" => Ok(Self::Standing(Role::Worker)),
            "manager" => Ok(Self::Standing(Role::Manager)),
            id => Ok(Self::Issued(id.parse()?)),
        }
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standing(role) => role.fmt(f),
            Self::Issued(id) => id.fmt(f),
        }
    }
}

impl TryFrom<String> for TokenName {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<TokenName> for String {
    fn from(name: TokenName) -> Self {
        name.to_string()
    }
}

/// A join token in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// What it is called.
    pub name: TokenName,
    /// What a node that joins with it may do.
    pub role: Role,
    /// Whether it admits anybody.
    pub state: TokenState,
    /// Whether one node alone may join with it.
    pub once: bool,
    /// How many nodes have joined with it; not counted for a standing token.
    pub joined: Option<u64>,
    /// When it was made, in seconds since 1970 UTC; not known of a standing token.
    pub made_unix_seconds: Option<u64>,
    /// When it expires, in seconds since 1970 UTC, if it does.
    pub expires_unix_seconds: Option<u64>,
}

/// Whether a token admits anybody, and if not, why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It admits.
    Valid,
    /// It worked once, and this node joined with it.
    Used(NodeId),
    /// Its time is over.
    Expired,
    /// An operator removed it.
    Removed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tokens_survive_text_and_others_are_refused() {
        for name in ["worker", "manager", "0123456789abcdefghijklmno"] {
            assert_eq!(name.parse::<TokenName>().map(|n| n.to_string()).as_deref(), Ok(name));
        }
        for bad in ["", "king", "OVTKN-1-abc-def", "Worker"] {
            let error = bad.parse::<TokenName>().expect_err("no name of a token").to_string();
            assert!(error.contains("token id"), "{error}");
        }
    }
}
