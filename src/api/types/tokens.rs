//! Join tokens made to order.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::{Role, TokenInfo, TokenName};

/// Makes a token that expires or works once, or that can be removed by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssueTokenRequest {
    /// What a node that joins with it may do.
    pub role: Role,
    /// Whether one node alone may join with it.
    pub once: bool,
    /// How long it lives; for ever when absent.
    pub life_seconds: Option<u64>,
}

/// The token, which cannot be shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueTokenResponse {
    /// The token.
    pub token: String,
    /// Where to join.
    pub manager: SocketAddr,
    /// What it is.
    #[serde(flatten)]
    pub info: TokenInfo,
}

/// Lists the tokens, without their secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListTokensRequest {}

/// The tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTokensResponse {
    /// The standing ones first, then as they were made.
    pub tokens: Vec<TokenInfo>,
}

/// Makes a token void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveTokenRequest {
    /// Which.
    pub token: TokenName,
}

/// The token that is void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveTokenResponse {
    /// Which.
    pub token: TokenName,
}
