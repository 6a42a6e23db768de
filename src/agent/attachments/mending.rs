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

use super::{Attachments, BACK, blocking, condition, container, leftovers, record};
use crate::api::{self, ApiError};
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
        let view = self.dataplane.view().await;
        let attachments = self.all().await?;
        self.departed.follow(&view);
        let mut dead = self.dead_endpoints(&view, &attachments);
        let disturbed = self.watch.take();
        let mut looked_at = Vec::new();
        for attachment in attachments {
            let is_disturbed = disturbed.contains(&attachment.id);
            if is_disturbed || self.needs_mending(&attachment, manager.is_some()).await {
                looked_at.push((attachment.id, attachment.network, self.mend(attachment.id).await));
            }
        }
        // What is here is as it should be by now; a manager that does not answer is asked no more until the next time.
        let mut manager = manager;
        for (id, network, mended) in looked_at {
            let told = match manager {
                Some(manager) => self.tell_if_unknown(manager, id).await,
                None => Ok(()),
            };
            if told.as_ref().is_err_and(|error| error.kind == api::ErrorKind::Unavailable) {
                manager = None;
            }
            if self.written(id).await?.is_none() {
                // Also if it was taken away while the manager was asked to know it.
                dead.push(id);
                continue;
            }
            match mended.and(told) {
                Ok(()) => self.forget_trouble(id),
                Err(error) => {
                    self.trouble(&network, id, &error);
                    self.watch.again(id);
                }
            }
        }
        let Some(manager) = manager else { return Ok(()) };
        for id in dead {
            let is_news = !self.departed.has(id);
            match record::detach(manager, id).await {
                Ok(()) if is_news => {
                    leftovers::tell(&self.events, &format!("endpoint {id}, which the manager still had"));
                }
                Ok(()) => {}
                Err(error) if error.kind == ErrorKind::Unavailable => break,
                Err(error) => {
                    tracing::debug!(endpoint = %id, %error, "the manager keeps an endpoint that is gone")
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

    pub(super) async fn mend(&self, id: EndpointId) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        let Some(attachment) = self.written(id).await? else { return Ok(()) };
        match attachment.state {
            AttachmentState::Pending if self.under_way.has(id) => return Ok(()),
            AttachmentState::Pending => return self.remove(attachment).await,
            AttachmentState::Held => return self.settle(attachment).await,
            AttachmentState::Ready => {}
        }
        if !self.is_there(&attachment).await? {
            let (network, netns) = (&attachment.network, attachment.netns.path.display());
            let what = format!("endpoint {id} of {network}, whose container {netns} has ended");
            leftovers::tell(&self.events, &what);
            return self.remove(attachment).await;
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
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::super::tests::{Lab, SilentManager};
    use super::*;

    #[tokio::test]
    async fn nobody_waits_while_a_manager_is_told_of_endpoints_that_are_gone() {
        let mut lab = Lab::new().await;
        lab.follow_endpoint_here().await;
        assert_manager_is_asked_and_nobody_waits(&lab).await;
    }

    #[tokio::test]
    async fn nobody_waits_while_a_manager_is_to_know_an_endpoint_again() {
        let lab = Lab::new().await;
        lab.attachments.put(lab.held(1)).await.expect("written");
        assert_manager_is_asked_and_nobody_waits(&lab).await;
    }

    async fn assert_manager_is_asked_and_nobody_waits(lab: &Lab) {
        let silent = SilentManager::new(lab).await;
        let mut asking = Box::pin(lab.attachments.reconcile(Some(&silent.client)));
        tokio::select! {
            ended = &mut asking => panic!("the manager was not asked: {ended:?}"),
            () = silent.asked() => {}
        }
        tokio::select! {
            ended = asking => panic!("others waited for the manager: {ended:?}"),
            () = lab.attachments.open() => {}
        }
    }

    #[tokio::test]
    async fn manager_is_told_of_an_endpoint_whose_interface_cannot_be_mended() {
        let lab = Lab::new().await;
        let mut ready = Attachment { state: AttachmentState::Ready, docker: None, ..lab.held(1) };
        ready.netns.path = format!("/run/netns/{}", "x".repeat(300)).into();
        lab.attachments.put(ready.clone()).await.expect("written");
        lab.attachments.mend(ready.id).await.expect_err("nobody can look there");
        let silent = SilentManager::new(&lab).await;
        tokio::select! {
            ended = lab.attachments.reconcile(Some(&silent.client)) => panic!("it was not told: {ended:?}"),
            () = silent.asked() => {}
        }
    }
}
