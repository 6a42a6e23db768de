//! Tokens that are made to order, listed and removed. Managers only.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cluster::{Role, TokenInfo};
use crate::id::TokenId;

/// Makes a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueToken {
    /// What a node that joins with it may do.
    pub role: Role,
    /// Whether one node alone may join with it.
    pub once: bool,
    /// How long it lives; for ever without.
    pub life_seconds: Option<u64>,
}

/// The token, which nobody can be told again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    /// Its text.
    pub token: Zeroizing<String>,
    /// What it is.
    pub info: TokenInfo,
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("token", &"[redacted]").field("info", &self.info).finish()
    }
}

/// Lists the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListTokens {}

/// All tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// The standing ones first, then as they were made.
    pub tokens: Vec<TokenInfo>,
}

/// Makes a token void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveToken {
    /// Which.
    pub id: TokenId,
}
