//! What is there compared with what should be, always, and mended.
//!
//! Each container is listened to (`watch`), so that what changes in it is looked at at once; whether
//! containers still are, and whether the manager knows the same endpoints, is asked every two seconds.
//!
//! Mending only ever adds to an interface whose frames go to a lane, and lanes forward by their tables alone: at
//! no moment could anything leave in plaintext.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::watch;

use super::{Attachments, BACK, blocking, condition, container, leftovers};
use crate::api::ApiError;
use crate::control::rpc::{ErrorKind, ManagerClient};
use crate::control::session::SessionStatus;
use crate::control::store::StoreError;
use crate::control::store::local::{Attachment, AttachmentState};
use crate::events::{Event, Reason};
use crate::id::{EndpointId, NetworkName, PortHold, PortSlot};

impl Attachments {
    /// Mends for ever.
    pub(crate) async fn keep(
        self: std::sync::Arc<Self>,
        client: ManagerClient,
        session: watch::Receiver<SessionStatus>,
    ) {
        self.remove_leftovers().await;
        let mut known = None;
        loop {
            let _disturbed_or_not = tokio::time::timeout(INTERVAL, self.watch.disturbed()).await;
            // What is done in a container in one go is one disturbance.
            tokio::time::sleep(SETTLE).await;
            let connected = *session.borrow() == SessionStatus::Connected;
            let failure = self.reconcile(connected.then_some(&client)).await.err().map(|e| e.to_string());
            if let Some(error) = &failure
                && known != failure
            {
                tracing::warn!(%error, "endpoints could not be compared with what is there");
            }
            known = failure;
            // However busy a container is with its routes, it is looked at twice a second.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Removes interfaces of this node whose endpoints are not written down any more.
    async fn remove_leftovers(&self) {
        let left = match self.leftovers().await {
            Ok(left) => left,
            Err(error) => return tracing::warn!(%error, "leftovers could not be looked for"),
        };
        for leftover in left {
            let what = leftover.to_string();
            match blocking(move || leftover.remove().map_err(container::failed)).await {
                Ok(()) => leftovers::tell(&self.events, &what),
                Err(error) => tracing::warn!(what, %error, "a leftover could not be removed"),
            }
        }
    }

    /// Interfaces of this node whose endpoints are not written down any more.
    pub(crate) async fn leftovers(&self) -> Result<Vec<leftovers::Leftover>, ApiError> {
        let (node, store) = (self.node, self.store.clone());
        blocking(move || {
            let mut left = leftovers::interfaces(node);
            // Read afterwards: one that is being attached is written down before it is made.
            let known = store.attachments()?;
            left.retain(|left| known.iter().all(|attachment| !left.is_of(attachment)));
            Ok::<_, StoreError>(left)
        })
        .await
    }

    /// Compares what is there with what should be, and mends it: interfaces that somebody removed
    /// are made again, endpoints of containers that have ended are removed, and the manager knows the
    /// same endpoints as this node.
    pub(crate) async fn reconcile(&self, manager: Option<&ManagerClient>) -> Result<(), ApiError> {
        let attachments = self.all().await?;
        let disturbed = self.watch.take();
        for attachment in &attachments {
            let is_disturbed = disturbed.contains(&attachment.id);
            if is_disturbed || self.needs_mending(attachment, manager.is_some()).await {
                let id = attachment.id;
                match self.mend(id, manager).await {
                    Ok(()) => self.forget_trouble(id),
                    Err(error) => {
                        self.trouble(&attachment.network, id, &error);
                        self.watch.again(id);
                    }
                }
            }
        }
        if let Some(manager) = manager
            && !self.dead_endpoints(&attachments).await.is_empty()
        {
            let _one = self.changing.lock().await;
            // An attachment that is under way is written down before the manager is asked.
            for id in self.dead_endpoints(&self.all().await?).await {
                if self.tell_manager(Some(manager), id).await {
                    leftovers::tell(&self.events, &format!("endpoint {id}, which the manager still had"));
                }
            }
        }
        Ok(())
    }

    /// What keeps an endpoint from working, if it was tried to mend it.
    pub(crate) fn trouble_of(&self, id: EndpointId) -> Option<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Whether there is something to do for an attachment, looked at without holding up anybody.
    async fn needs_mending(&self, attachment: &Attachment, has_manager: bool) -> bool {
        attachment.state != AttachmentState::Ready
            || self.dataplane.port(attachment.id).await.is_none()
            || !self.is_there(attachment).await.unwrap_or(true)
            || (has_manager && !self.is_known(attachment).await)
            || self.other_mtu(attachment).await.is_some()
    }

    pub(super) async fn mend(&self, id: EndpointId, manager: Option<&ManagerClient>) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        let store = self.store.clone();
        let Some(attachment) = blocking(move || store.attachment(id)).await? else { return Ok(()) };
        match attachment.state {
            AttachmentState::Pending => return self.remove(manager, attachment).await,
            AttachmentState::Held => {
                return match self.settle(manager, attachment.clone()).await? {
                    true => self.tell_if_unknown(manager, attachment).await,
                    false => Ok(()),
                };
            }
            AttachmentState::Ready => {}
        }
        if !self.is_there(&attachment).await? {
            let (network, netns) = (&attachment.network, attachment.netns.path.display());
            let what = format!("endpoint {id} of {network}, whose container {netns} has ended");
            leftovers::tell(&self.events, &what);
            return self.remove(manager, attachment).await;
        }
        if self.dataplane.port(id).await.is_none() {
            self.reopen(attachment.clone(), BACK).await?;
        }
        if let Some(mtu) = self.other_mtu(&attachment).await {
            self.set_mtu(attachment.clone(), mtu).await?;
        }
        if !self.complete(&attachment).await? {
            // Somebody moved it out of the container, where the lanes have it open still.
            self.remove_port(id).await?;
            self.reopen(attachment.clone(), BACK).await?;
            self.remove_leftovers().await;
        }
        self.tell_if_unknown(manager, attachment).await
    }

    /// Has the manager know the endpoint of an attachment, or takes the attachment away where it may not be.
    async fn tell_if_unknown(
        &self,
        manager: Option<&ManagerClient>,
        attachment: Attachment,
    ) -> Result<(), ApiError> {
        match manager {
            Some(manager) if !self.is_known(&attachment).await => {
                let Some(endpoint) = &attachment.endpoint else { return Ok(()) };
                match self.assert_known(manager, endpoint).await {
                    Err(error) if error.kind == ErrorKind::Barred => self.lose(attachment, &error).await,
                    told => Ok(told?),
                }
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Gives the interface what it was given before and lacks now; false if it is not in its container.
    async fn complete(&self, attachment: &Attachment) -> Result<bool, ApiError> {
        let wanted = self.wanted(attachment).await;
        let (Some(wanted), Some(endpoint)) = (wanted, attachment.endpoint.clone()) else { return Ok(true) };
        let netns = attachment.netns.clone();
        let mended = blocking(move || match container::open(&netns)? {
            Some(netns) => condition::mend(&netns, &endpoint, &wanted).map_err(container::failed),
            // The next look finds that it has ended.
            None => Ok(condition::Mended { is_there: true, ..condition::Mended::default() }),
        });
        let condition::Mended { is_there, given, refused } = mended.await?;
        if !given.is_empty() {
            self.told_mended(attachment, &format!("{} given again", given.join(", ")));
        }
        match refused {
            None => Ok(is_there),
            Some(refused) if refused.is_exists() => Err(ApiError::conflict(format!(
                "{refused}; it is in the way of the network's own: remove it in the container"
            ))),
            Some(refused) => Err(container::failed(refused)),
        }
    }

    /// What the interface of an attachment is to be; `None` while its network is not known.
    pub(crate) async fn wanted(
        &self,
        attachment: &Attachment,
    ) -> Option<crate::io::container_port::ContainerPort> {
        let endpoint = attachment.endpoint.as_ref()?;
        let view = self.dataplane.view().await;
        let network = view.networks.get(&endpoint.network)?;
        let mtu = self.dataplane.mtu(network).await;
        Some(container::port(attachment, endpoint, &network.network, mtu, self.dataplane.lane_count()))
    }

    pub(super) fn told_mended(&self, attachment: &Attachment, what: &str) {
        let (endpoint, network) = (attachment.id, attachment.network.clone());
        tracing::info!(%endpoint, %network, netns = %attachment.netns.path.display(), what, "the interface was mended");
        self.mendings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (netns, what) = (Reason::of(attachment.netns.path.display()), Reason::of(what));
        self.events.record(Event::InterfaceMended { endpoint, network, netns, what });
    }

    /// Takes note that a lane was not as it should be, and what was done.
    pub(crate) fn told_mended_lanes(&self, what: &str) {
        tracing::warn!(
            what,
            "a lane was mended; it is a bug that it had to be: please report it with this log"
        );
        self.mendings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.events.record(Event::LanesMended { what: Reason::of(what) });
    }

    pub(super) async fn is_there(&self, attachment: &Attachment) -> Result<bool, ApiError> {
        let netns = attachment.netns.clone();
        blocking(move || container::open(&netns).map(|found| found.is_some())).await
    }

    pub(super) fn trouble(&self, network: &NetworkName, id: EndpointId, error: &ApiError) {
        let message = error.to_string();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        // Tried every few seconds: one line for each new reason.
        if troubles.get(&id) != Some(&message) {
            tracing::warn!(endpoint = %id, %network, %error, "the endpoint is not as it should be; trying again");
            troubles.insert(id, message);
        }
    }

    pub(super) fn forget_trouble(&self, id: EndpointId) {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// A lane found the interface of a port gone, or cannot use its queue of it: no lane uses it any
    /// more, and it is opened or made again like one that somebody removed.
    pub(crate) async fn port_gone(&self, slot: PortSlot, hold: PortHold) {
        let mut gone = None;
        let removed = self.dataplane.remove_lost_port((slot, hold), |endpoint| {
            self.offloads.strike(endpoint);
            gone = Some(endpoint);
        });
        if removed.await.is_err() {
            tracing::error!(%slot, "a lane has ended");
        }
        if let Some(endpoint) = gone {
            self.watch.disturb(endpoint);
        }
    }
}

const INTERVAL: Duration = Duration::from_millis(1_500);
const SETTLE: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(480);
