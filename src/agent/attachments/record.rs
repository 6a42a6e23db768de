//! The manager's record of this node's endpoints: written, waited for, and compared with what is here.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Attachments;
use crate::api::ApiError;
use crate::cluster::{Endpoint, NetworkView};
use crate::control::rpc::messages::{Attach, Detach, Done};
use crate::control::rpc::{ErrorKind, ManagerClient, ManagerError};
use crate::control::store::local::Attachment;
use crate::id::EndpointId;

impl Attachments {
    /// Whether the view has the attachment's endpoint.
    pub(crate) async fn is_known(&self, attachment: &Attachment) -> bool {
        let Some(endpoint) = &attachment.endpoint else { return true };
        let view = self.dataplane.view().await;
        let network = view.networks.get(&endpoint.network);
        network.is_some_and(|network| network.endpoints.iter().any(|known| known.id == endpoint.id))
    }

    /// Endpoints that the view places on this node, and that it does not have: of a detachment or of a
    /// failed attachment that the manager did not hear of.
    pub(super) async fn dead_endpoints(&self, attachments: &[Attachment]) -> Vec<EndpointId> {
        let alive: BTreeSet<EndpointId> = attachments.iter().map(|attachment| attachment.id).collect();
        let view = self.dataplane.view().await;
        let endpoints = view.networks.values().flat_map(|network| &network.endpoints);
        let here = endpoints.filter(|endpoint| endpoint.node == self.node);
        here.map(|endpoint| endpoint.id).filter(|id| !alive.contains(id)).collect()
    }

    /// Tells the manager again of an endpoint that its view lacks: it was restored from a backup.
    pub(super) async fn assert_known(
        &self,
        manager: &ManagerClient,
        endpoint: &Endpoint,
    ) -> Result<(), ManagerError> {
        let request = Attach {
            id: endpoint.id,
            // By its id: one of the same name that was made since is another one, and may be without encryption.
            network: endpoint.network.into(),
            name: endpoint.name.clone(),
            ips: endpoint.addresses.iter().map(ipnet::IpNet::addr).collect(),
            mac: Some(endpoint.mac),
        };
        let attached = manager.attach(request).await?;
        if attached.endpoint.network != endpoint.network {
            // Another one has that id for a name.
            manager.detach(Detach { endpoint: endpoint.id }).await?;
            let gone = format!("there is no network {} any more", endpoint.network);
            return Err(ManagerError::new(ErrorKind::NotFound, gone));
        }
        tracing::info!(endpoint = %endpoint.id, "the manager knows the endpoint again");
        Ok(())
    }

    /// Waits until the lanes forward by a view that has the endpoint.
    pub(super) async fn in_view(&self, endpoint: &Endpoint) -> Result<NetworkView, ApiError> {
        tokio::time::timeout(VIEW_TIMEOUT, self.next_view_with(endpoint)).await.map_err(|_| {
            ApiError::unavailable(format!(
                "the manager accepted the endpoint, but did not tell this node of its network within {} s: \
                 `overlayd status` shows whether the session with it lives; then try again",
                VIEW_TIMEOUT.as_secs()
            ))
        })
    }

    async fn next_view_with(&self, endpoint: &Endpoint) -> NetworkView {
        let mut followed = self.dataplane.followed();
        loop {
            followed.borrow_and_update();
            let view = self.dataplane.view().await;
            if let Some(network) = view.networks.get(&endpoint.network)
                && network.endpoints.iter().any(|known| known.id == endpoint.id)
            {
                return network.clone();
            }
            if followed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the manager has heard of it now; otherwise it will as soon as its view shows the endpoint here.
    pub(super) async fn tell_manager(&self, manager: Option<&ManagerClient>, id: EndpointId) -> bool {
        let Some(manager) = manager else { return false };
        match tokio::time::timeout(DETACH_TIMEOUT, manager.detach(Detach { endpoint: id })).await {
            Ok(Ok(Done {})) => return true,
            Ok(Err(error)) => {
                tracing::debug!(endpoint = %id, %error, "the manager will hear of the detachment later");
            }
            Err(_) => tracing::info!(endpoint = %id, "the manager will hear of the detachment later"),
        }
        false
    }
}

/// Views come at once, or with a session that has to begin first.
const VIEW_TIMEOUT: Duration = Duration::from_secs(10);
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);
