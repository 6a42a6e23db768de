//! The containers' interfaces of this node: made, found again after a restart, removed.
//!
//! An attachment is written down as pending before anybody is asked, and as ready before the
//! operator is told: whatever moment the agent dies at, the next start finishes or takes back what
//! it finds. What the manager still believes is set right when the session begins again. Those of Docker's containers
//! are held while they are in none.
//!
//! A manager may be silent, and what is done here must not wait for one: it is asked and told while others may change
//! something, and what is written down is read again afterwards. Docker alone has the others wait for an answer, as it
//! takes addresses one by one, and not for long.

mod attaching;
mod held;
mod lost;
mod mending;
mod mtu;
mod record;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard};

use self::attaching::UnderWay;
use self::held::Waiting;
use self::lost::Lost;
use self::record::Departed;
use self::watch::Watch;
use super::dataplane::DataPlane;
use super::offloads::OffloadBook;
use super::{condition, container, leftovers};
use crate::api::ApiError;
use crate::api::types::{DetachRequest, DetachTarget, ReleaseRequest};
use crate::control::rpc::ManagerClient;
use crate::control::store::local::{Attachment, AttachmentState};
use crate::control::store::{Store, StoreError};
use crate::events::Events;
use crate::id::{EndpointId, NodeId};
use crate::io::tap::Tap;
use crate::rate::RateLimits;
use crate::worker::LaneGone;

/// The attachments of this node.
pub(crate) struct Attachments {
    store: Store,
    node: NodeId,
    dataplane: Arc<DataPlane>,
    offloads: Arc<OffloadBook>,
    /// One change at a time: two requests for one container must not meet half way.
    changing: Mutex<Gate>,
    under_way: UnderWay,
    departed: Departed,
    /// What is wrong with an endpoint that is being mended, as it was last logged.
    troubles: std::sync::Mutex<BTreeMap<EndpointId, String>>,
    lost: Lost,
    /// Since when held endpoints wait for Docker.
    waiting: Waiting,
    watch: Watch,
    events: Events,
    /// How often something of an interface was given again.
    mendings: AtomicU64,
}

/// Whether anything may be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// The node is leaving its cluster.
    Closed,
}

impl Attachments {
    /// Over the state file and the lanes of `node`.
    pub(crate) fn new(
        store: Store,
        node: NodeId,
        dataplane: Arc<DataPlane>,
        offloads: Arc<OffloadBook>,
        events: Events,
    ) -> Self {
        Self {
            store,
            node,
            dataplane,
            offloads,
            changing: Mutex::new(Gate::Open),
            under_way: UnderWay::default(),
            departed: Departed::default(),
            troubles: std::sync::Mutex::default(),
            lost: Lost::default(),
            waiting: Waiting::default(),
            watch: Watch::default(),
            events,
            mendings: AtomicU64::new(0),
        }
    }

    /// How often something of an interface was given again, since the agent started.
    pub(crate) fn mendings(&self) -> u64 {
        self.mendings.load(Ordering::Relaxed)
    }

    /// Every attachment, by id.
    pub(crate) async fn all(&self) -> Result<Vec<Attachment>, ApiError> {
        let store = self.store.clone();
        blocking(move || store.attachments()).await
    }

    /// For one that attaches, while the node is not leaving.
    async fn enter(&self) -> Result<MutexGuard<'_, Gate>, ApiError> {
        let one = self.changing.lock().await;
        if *one == Gate::Closed {
            return Err(ApiError::conflict("this node is leaving its cluster"));
        }
        Ok(one)
    }

    /// Refuses attachments from now on, for a node that leaves its cluster; refused while it has some.
    pub(crate) async fn close(&self) -> Result<(), ApiError> {
        let mut gate = self.changing.lock().await;
        let (unclaimed, attachments): (Vec<_>, Vec<_>) =
            self.all().await?.into_iter().partition(held::is_unclaimed);
        if attachments.is_empty() {
            *gate = Gate::Closed;
            for attachment in unclaimed {
                self.take_back(attachment).await;
            }
            return Ok(());
        }
        let named: Vec<String> =
            attachments.iter().take(MOST_NAMED).map(|a| format!("{} in {}", a.id, a.network)).collect();
        Err(ApiError::conflict(format!(
            "this node has {} endpoints: detach them first ({}{}), or leave with --force, which cuts them off",
            attachments.len(),
            named.join(", "),
            if attachments.len() > named.len() { ", …" } else { "" }
        )))
    }

    /// Refuses attachments from now on, and takes away those that there are. What cannot be taken away is
    /// left and logged: its lanes forget it with the rest.
    pub(crate) async fn close_by_force(&self) -> Result<(), ApiError> {
        let mut gate = self.changing.lock().await;
        *gate = Gate::Closed;
        for attachment in self.all().await? {
            self.take_back(attachment).await;
        }
        Ok(())
    }

    /// Allows attachments again.
    pub(crate) async fn open(&self) {
        *self.changing.lock().await = Gate::Open;
    }

    /// Takes a container's interface away.
    pub(crate) async fn detach(
        &self,
        manager: Option<&ManagerClient>,
        request: &DetachRequest,
    ) -> Result<EndpointId, ApiError> {
        let one = self.changing.lock().await;
        let attachments = self.all().await?;
        let found = attachments.into_iter().find(|attachment| {
            let network = attachment.endpoint.as_ref().map(|endpoint| endpoint.network);
            let is_its_id = network.is_some_and(|id| id.as_str() == request.network.as_str());
            (attachment.network == request.network || is_its_id)
                && match &request.target {
                    DetachTarget::Endpoint(id) => attachment.id == *id,
                    DetachTarget::Netns(netns) => container::is_in(attachment, netns),
                }
        });
        let Some(attachment) = found else {
            let what = match &request.target {
                DetachTarget::Endpoint(id) => format!("no endpoint {id}"),
                DetachTarget::Netns(netns) => format!("no endpoint in {}", netns.path.display()),
            };
            return Err(ApiError::not_found(format!(
                "network {} has {what} on this node: `overlayd inspect {}` shows where its endpoints are",
                request.network, request.network
            )));
        };
        let id = attachment.id;
        self.remove(attachment).await?;
        drop(one);
        self.tell_gone(manager, &[id]).await;
        Ok(id)
    }

    /// Takes away what a container runtime had attached: in whatever network it was then, and all of it, where an
    /// earlier namespace of the container is still about.
    pub(crate) async fn release(
        &self,
        manager: Option<&ManagerClient>,
        request: &ReleaseRequest,
    ) -> Result<Vec<EndpointId>, ApiError> {
        let one = self.changing.lock().await;
        let mut attachments = self.all().await?;
        attachments.retain(|attachment| {
            attachment.cni.as_ref() == Some(&request.attachment) && attachment.ifname == request.ifname
        });
        let (mut released, mut failed) = (Vec::new(), Ok(()));
        for attachment in attachments {
            released.push(attachment.id);
            failed = self.remove(attachment).await.and(failed);
        }
        drop(one);
        self.tell_gone(manager, &released).await;
        failed.map(|()| released)
    }

    /// Brings back what was attached when the last agent ended.
    pub(crate) async fn restore(&self) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        for attachment in self.all().await? {
            match attachment.state {
                AttachmentState::Pending => {
                    let what = format!("half attached endpoint {} of {}", attachment.id, attachment.network);
                    self.take_back(attachment).await;
                    leftovers::tell(&self.events, &what);
                }
                AttachmentState::Held => {
                    let (id, network) = (attachment.id, attachment.network.clone());
                    if let Err(error) = self.settle(attachment).await {
                        self.trouble(&network, id, &error);
                    }
                }
                AttachmentState::Ready => {
                    let (id, network) = (attachment.id, attachment.network.clone());
                    if let Err(error) = self.reopen(attachment, BACK).await {
                        self.trouble(&network, id, &error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Opens the interface again, or makes it again if somebody removed it.
    async fn reopen(&self, attachment: Attachment, what: &str) -> Result<(), ApiError> {
        let (id, network, rates) = (attachment.id, attachment.network.clone(), attachment.rates);
        if attachment.docker.is_some() && blocking(move || container::is_here(id)).await? {
            // Docker took it out of the container and could not say so.
            return self.hold_again(attachment).await.map(drop);
        }
        let view = self.dataplane.view().await;
        let found = attachment.endpoint.as_ref().and_then(|endpoint| view.networks.get(&endpoint.network));
        let known = match found {
            Some(network) => Some((network.clone(), self.dataplane.mtu(network).await)),
            None => None,
        };
        let lanes = self.dataplane.lane_count();
        let reopened = attachment.clone();
        let (queues, is_new) = blocking(move || {
            container::reopen(&reopened, known.as_ref().map(|(network, mtu)| (network, *mtu)), lanes)
        })
        .await?;
        self.add_port(id, queues, rates).await?;
        if is_new {
            let without =
                if attachment.docker.is_some() { ", without routes that Docker had made" } else { "" };
            let what = format!("the interface was removed by somebody and made again{without}");
            self.told_mended(&attachment, &what);
        } else {
            tracing::info!(endpoint = %id, %network, netns = %attachment.netns.path.display(), "{what}");
        }
        self.listen_to(&attachment).await;
        Ok(())
    }

    async fn add_port(
        &self,
        endpoint: EndpointId,
        mut queues: Vec<Tap>,
        rates: RateLimits,
    ) -> Result<(), ApiError> {
        let entered = self.offloads.enter(endpoint, &mut queues);
        entered.map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(self.dataplane.add_port(endpoint, queues, rates).await?)
    }

    async fn remove_port(&self, endpoint: EndpointId) -> Result<(), LaneGone> {
        self.offloads.strike(endpoint);
        self.dataplane.remove_port(endpoint).await
    }

    /// Takes away what there is of an attachment here; its manager is to be told.
    async fn remove(&self, attachment: Attachment) -> Result<(), ApiError> {
        self.remove_port(attachment.id).await?;
        let id = attachment.id;
        self.watch.forget(id);
        self.departed.add(id);
        let store = self.store.clone();
        blocking(move || {
            container::remove_interface(&attachment)?;
            store.remove_attachment(id).map_err(ApiError::from)
        })
        .await?;
        self.under_way.note_gone(id);
        self.forget_trouble(id);
        self.waiting.forget(id);
        Ok(())
    }

    /// Undoes what an attachment has come to; what cannot be undone now is tried at the next start.
    async fn take_back(&self, attachment: Attachment) {
        let id = attachment.id;
        if let Err(error) = self.remove(attachment).await {
            tracing::warn!(endpoint = %id, %error, "an unfinished attachment could not be taken back");
        }
    }

    /// An attachment as it is written down now, if it is.
    async fn written(&self, id: EndpointId) -> Result<Option<Attachment>, ApiError> {
        let store = self.store.clone();
        blocking(move || store.attachment(id)).await
    }

    async fn put(&self, attachment: Attachment) -> Result<(), ApiError> {
        let store = self.store.clone();
        blocking(move || store.put_attachment(&attachment)).await
    }
}

/// Runs what blocks on disk or kernel where it keeps nobody waiting.
pub(crate) async fn blocking<T: Send + 'static, E: Into<ApiError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApiError::internal("a task of the agent died; its log says why"))?
        .map_err(Into::into)
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        crate::control::state::StateError::from(error).into()
    }
}

impl From<LaneGone> for ApiError {
    fn from(_: LaneGone) -> Self {
        Self::internal("the agent's packet lane has ended; its log says why: restart the agent")
    }
}

/// What is logged of an interface that was opened again.
const BACK: &str = "interface is back";
/// How many endpoints an error names.
const MOST_NAMED: usize = 10;
