//! What there is on this node held against what should be, for `overlayd status --verify`.
//!
//! What should be is what the node has written down, the view that it follows and what the manager
//! says when asked now. What there is comes from the kernel (netlink in the containers' namespaces,
//! the tables of sockets, the file system) and from the lanes themselves, not from notes of what was
//! done. Nothing is changed here: mending is the business of those who keep each thing.

mod endpoints;
mod host;
mod networks;

use std::time::Duration;

use super::backend::Inner;
use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{VerifiedItem, VerifyRequest, VerifyResponse};

/// Looks at everything, or at one endpoint. What is under way gets a moment to be done.
pub(super) async fn verify(
    inner: &Inner,
    member: &Member,
    request: &VerifyRequest,
) -> Result<VerifyResponse, ApiError> {
    let mut looks = 1;
    loop {
        let items = match request.endpoint {
            Some(_) => endpoints::items(member, request.endpoint).await?,
            None => look(inner, member).await?,
        };
        let found = VerifyResponse { items };
        if looks == LOOKS || found.differing().next().is_none() {
            return Ok(found);
        }
        looks += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(inner: &Inner, member: &Member) -> Result<Vec<VerifiedItem>, ApiError> {
    let mut items = networks::items(member).await?;
    items.extend(endpoints::items(member, None).await?);
    items.extend(host::items(inner, member).await?);
    Ok(items)
}

const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);
