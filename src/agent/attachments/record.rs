//! The manager's record of this node's endpoints: written, waited for, and compared with what is here.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Attachments;
use crate::api::ApiError;
use crate::cluster::{Endpoint, NetworkView, View};
use crate::control::rpc::messages::{Attach, Detach, Done};
use crate::control::rpc::{ErrorKind, ManagerClient, ManagerError};
use crate::control::store::local::{Attachment, AttachmentState};
use crate::id::EndpointId;

/// Endpoints that were removed here, until a view lacks them: that one still has them is no news.
#[derive(Debug, Default)]
pub(super) struct Departed(Mutex<BTreeSet<EndpointId>>);

impl Departed {
    pub(super) fn add(&self, id: EndpointId) {
        self.ids().insert(id);
    }

    pub(super) fn has(&self, id: EndpointId) -> bool {
        self.ids().contains(&id)
    }

    /// Forgets those that a view lacks.
    pub(super) fn follow(&self, view: &View) {
        let mut ids = self.ids();
        if !ids.is_empty() {
            let endpoints = view.networks.values().flat_map(|network| &network.endpoints);
            let seen: BTreeSet<EndpointId> =
                endpoints.map(|endpoint| endpoint.id).filter(|id| ids.contains(id)).collect();
            *ids = seen;
        }
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<EndpointId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attachments {
    /// Whether the view has the attachment's endpoint.
    pub(crate) async fn is_known(&self, attachment: &Attachment) -> bool {
        let Some(endpoint) = &attachment.endpoint else { return true };
        let view = self.dataplane.view().await;
        let network = view.networks.get(&endpoint.network);
        network.is_some_and(|network| network.endpoints.iter().any(|known| known.id == endpoint.id))
    }

    /// Endpoints that a view places on this node, and that it does not have: of a detachment or of a failed attachment
    /// that the manager did not hear of. None of them comes back, if `attachments` were read after the view: what a
    /// manager is asked for is written down before, and every id is used once.
    pub(super) fn dead_endpoints(&self, view: &View, attachments: &[Attachment]) -> Vec<EndpointId> {
        let alive: BTreeSet<EndpointId> = attachments.iter().map(|attachment| attachment.id).collect();
        let endpoints = view.networks.values().flat_map(|network| &network.endpoints);
        let here = endpoints.filter(|endpoint| endpoint.node == self.node);
        here.map(|endpoint| endpoint.id).filter(|id| !alive.contains(id)).collect()
    }

    /// Has the manager know the endpoint of an attachment, or takes the attachment away where it may not be.
    pub(super) async fn tell_if_unknown(
        &self,
        manager: &ManagerClient,
        id: EndpointId,
    ) -> Result<(), ApiError> {
        let Some(attachment) = self.written(id).await? else { return Ok(()) };
        if attachment.state == AttachmentState::Pending || self.is_known(&attachment).await {
            return Ok(());
        }
        let Some(endpoint) = &attachment.endpoint else { return Ok(()) };
        match answer(self.assert_known(manager, endpoint)).await {
            Err(error) if error.kind == ErrorKind::Barred => self.lose(id, &error).await,
            told => Ok(told?),
        }
    }

    /// Tells the manager again of an endpoint that its view lacks: it was restored from a backup.
    async fn assert_known(&self, manager: &ManagerClient, endpoint: &Endpoint) -> Result<(), ManagerError> {
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

    /// Tells a manager, if there is one, of endpoints that are gone. What it does not hear of now, it does as soon as its
    /// view shows it here.
    pub(super) async fn tell_gone(&self, manager: Option<&ManagerClient>, gone: &[EndpointId]) {
        let Some(manager) = manager else { return };
        for id in gone {
            if let Err(error) = detach(manager, *id).await {
                tracing::info!(endpoint = %id, %error, "the manager will hear of the detachment later");
                if error.kind == ErrorKind::Unavailable {
                    return;
                }
            }
        }
    }
}

/// Tells a manager of an endpoint that is gone.
pub(super) async fn detach(manager: &ManagerClient, endpoint: EndpointId) -> Result<(), ManagerError> {
    answer(manager.detach(Detach { endpoint })).await.map(|Done {}| ())
}

/// What a manager answers, if it does so soon.
pub(super) async fn answer<T>(
    asked: impl Future<Output = Result<T, ManagerError>>,
) -> Result<T, ManagerError> {
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| {
        let silent = "the manager does not answer: `overlayd status` shows whether it is there";
        Err(ManagerError::new(ErrorKind::Unavailable, silent))
    })
}

/// Views come at once, or with a session that has to begin first.
const VIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// A manager that lives has answered by then; others may wait meanwhile.
const ANSWER: Duration = Duration::from_secs(5);
