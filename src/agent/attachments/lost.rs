//! Endpoints that a manager took from this node, as their networks are not for it any more.
//!
//! The interfaces of a node that was removed stay until `leave --force`: nobody tells it anything any more.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Attachments;
use crate::api::ApiError;
use crate::control::rpc::ManagerError;
use crate::id::{EndpointId, NetworkName};

/// Those that went since the agent started, until something is attached to their network again.
#[derive(Debug, Default)]
pub(super) struct Lost(Mutex<BTreeMap<(NetworkName, EndpointId), String>>);

impl Lost {
    pub(super) fn forget(&self, network: &NetworkName) {
        let mut lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lost.retain(|(of, _), _| of != network);
    }
}

impl Attachments {
    /// What happened to the endpoints that were lost.
    pub(crate) fn lost(&self) -> Vec<String> {
        self.lost.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes away the interface of an endpoint that the manager has taken back. Its address may be another's
    /// by now, and a container notices sooner that an interface is gone than that it carries nothing.
    pub(super) async fn lose(&self, id: EndpointId, why: &ManagerError) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        let Some(attachment) = self.written(id).await? else { return Ok(()) };
        if self.is_known(&attachment).await {
            // It may be there again since the manager was asked.
            return Ok(());
        }
        let (network, netns) = (attachment.network.clone(), attachment.netns.path.clone());
        self.remove(attachment).await?;
        tracing::warn!(endpoint = %id, %network, netns = %netns.display(), reason = %why, "a manager took the endpoint back: its interface was removed");
        let what = format!(
            "endpoint {id} of network {network} was taken back, and its interface removed from {}: {why}",
            netns.display()
        );
        self.lost.0.lock().unwrap_or_else(PoisonError::into_inner).insert((network, id), what);
        Ok(())
    }
}
