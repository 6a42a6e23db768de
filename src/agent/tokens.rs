//! Join tokens made to order, for the callers of the socket.

use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{
    IssueTokenRequest, IssueTokenResponse, ListTokensResponse, RemoveTokenRequest, RemoveTokenResponse,
};
use crate::cluster::TokenName;
use crate::control::rpc::messages::{IssueToken, ListTokens, RemoveToken};

pub(super) async fn issue(
    member: &Member,
    request: IssueTokenRequest,
) -> Result<IssueTokenResponse, ApiError> {
    let IssueTokenRequest { role, once, life_seconds } = request;
    let issued = member.client.issue_token(IssueToken { role, once, life_seconds }).await?;
    let manager = member.node().advertise;
    Ok(IssueTokenResponse { token: issued.token.to_string(), manager, info: issued.info })
}

pub(super) async fn list(member: &Member) -> Result<ListTokensResponse, ApiError> {
    Ok(ListTokensResponse { tokens: member.client.list_tokens(ListTokens {}).await?.tokens })
}

pub(super) async fn remove(
    member: &Member,
    request: RemoveTokenRequest,
) -> Result<RemoveTokenResponse, ApiError> {
    let id = match request.token {
        TokenName::Issued(id) => id,
        TokenName::Standing(role) => {
            return Err(ApiError::invalid(format!(
                "every cluster has a {role} token; `overlayd token {role} --rotate` replaces it, which makes \
                 the old one void"
            )));
        }
    };
    member.client.remove_token(RemoveToken { id }).await?;
    Ok(RemoveTokenResponse { token: request.token })
}
