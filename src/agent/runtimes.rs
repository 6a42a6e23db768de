//! What container runtimes ask of a node beside attaching: what they have here, and that it goes. A node that is in no
//! cluster has nothing of theirs, and says so, since runtimes ask until it is so.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::attachments::blocking;
use super::backend::Inner;
use super::container;
use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{ListAttachmentsResponse, ReleaseRequest, ReleaseResponse};

impl Inner {
    pub(super) async fn list_attachments(&self) -> Result<ListAttachmentsResponse, ApiError> {
        let Some(member) = self.member_if_any().await? else {
            return Ok(ListAttachmentsResponse::default());
        };
        let attachments = member.attachments.all().await?.into_iter().map(container::listed).collect();
        Ok(ListAttachmentsResponse { attachments })
    }

    pub(super) async fn release(&self, request: &ReleaseRequest) -> Result<ReleaseResponse, ApiError> {
        let endpoints = match self.member_if_any().await? {
            Some(member) => member.attachments.release(member.connected_client(), request).await?,
            None => Vec::new(),
        };
        Ok(ReleaseResponse { endpoints })
    }

    pub(super) async fn member_if_any(&self) -> Result<Option<Arc<Member>>, ApiError> {
        match self.member().await {
            Ok(member) => Ok(Some(member)),
            Err(error) => {
                // One that begins just now, or is locked, is in a cluster.
                let store = self.store.clone();
                let identity = blocking(move || store.identity::<IgnoredAny>()).await?;
                if identity.is_none() { Ok(None) } else { Err(error) }
            }
        }
    }
}
