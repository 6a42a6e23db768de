//! The containers' interfaces of this node: made, found again after a restart, removed.
//!
//! An attachment is written down as pending before anybody is asked, and as ready before the
//! operator is told: whatever moment the agent dies at, the next start finishes or takes back what
//! it finds. What the manager still believes is set right when the session begins again.

mod lost;
mod mtu;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;

use self::lost::Lost;
use super::container;
use super::dataplane::DataPlane;
use super::offloads::OffloadBook;
use crate::api::ApiError;
use crate::api::types::{AttachRequest, AttachResponse, DetachRequest, DetachTarget};
use crate::control::rpc::messages::Attach;
use crate::control::rpc::{ErrorKind, ManagerClient};
use crate::control::store::local::{Attachment, AttachmentState, NetnsRef};
use crate::control::store::{Store, StoreError};
use crate::id::{EndpointId, NetworkName, NodeId, PortSlot};
use crate::io::netns::NetNs;
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
    /// What is wrong with an endpoint that is being mended, as it was last logged.
    troubles: std::sync::Mutex<BTreeMap<EndpointId, String>>,
    lost: Lost,
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
    ) -> Self {
        Self {
            store,
            node,
            dataplane,
            offloads,
            changing: Mutex::new(Gate::Open),
            troubles: std::sync::Mutex::default(),
            lost: Lost::default(),
        }
    }

    /// Every attachment, by id.
    pub(crate) async fn all(&self) -> Result<Vec<Attachment>, ApiError> {
        let store = self.store.clone();
        blocking(move || store.attachments()).await
    }

    /// The endpoints that the manager should know of.
    pub(crate) async fn endpoints(&self) -> Result<BTreeSet<EndpointId>, ApiError> {
        Ok(self.all().await?.into_iter().map(|attachment| attachment.id).collect())
    }

    /// Gives a container an interface; ready for traffic when this returns.
    pub(crate) async fn attach(
        &self,
        manager: &ManagerClient,
        request: AttachRequest,
    ) -> Result<AttachResponse, ApiError> {
        let one = self.changing.lock().await;
        if *one == Gate::Closed {
            return Err(ApiError::conflict("this node is leaving its cluster"));
        }
        let attachments = self.all().await?;
        let (netns, request) =
            blocking(move || container::check(&request, &attachments).map(|n| (n, request))).await?;
        let attachment = Attachment {
            id: EndpointId::from_entropy(rand::random()),
            network: request.network.clone(),
            netns: NetnsRef {
                path: request.netns.path,
                dev: request.netns.device,
                inode: request.netns.inode,
            },
            ifname: request.ifname,
            name: request.name,
            ips: request.addresses,
            mac: request.mac,
            rates: request.rates,
            state: AttachmentState::Pending,
            endpoint: None,
            mtu: None,
        };
        self.put(attachment.clone()).await?;
        match self.establish(manager, attachment.clone(), netns).await {
            Ok(response) => Ok(response),
            Err(error) => {
                self.take_back(Some(manager), attachment).await;
                Err(error)
            }
        }
    }

    /// Refuses attachments from now on, for a node that leaves its cluster; refused while it has some.
    pub(crate) async fn close(&self) -> Result<(), ApiError> {
        let mut gate = self.changing.lock().await;
        let attachments = self.all().await?;
        if attachments.is_empty() {
            *gate = Gate::Closed;
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
            self.take_back(None, attachment).await;
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
        let _one = self.changing.lock().await;
        let attachments = self.all().await?;
        let found = attachments.into_iter().find(|attachment| {
            let network = attachment.endpoint.as_ref().map(|endpoint| endpoint.network);
            let is_its_id = network.is_some_and(|id| id.as_str() == request.network.as_str());
            (attachment.network == request.network || is_its_id)
                && match &request.target {
                    DetachTarget::Endpoint(id) => attachment.id == *id,
                    DetachTarget::Netns(netns) => container::is_same(&attachment.netns, netns),
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
        self.remove(manager, attachment).await?;
        Ok(id)
    }

    /// Brings back what was attached when the last agent ended.
    pub(crate) async fn restore(&self) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        for attachment in self.all().await? {
            match attachment.state {
                AttachmentState::Pending => {
                    tracing::info!(endpoint = %attachment.id, network = %attachment.network, "taking back an unfinished attachment");
                    self.take_back(None, attachment).await;
                }
                AttachmentState::Ready => {
                    let (id, network) = (attachment.id, attachment.network.clone());
                    if let Err(error) = self.reopen(attachment).await {
                        self.trouble(&network, id, &error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares what is there with what should be, and mends it: interfaces that somebody removed
    /// are made again, endpoints of containers that have ended are removed, and the manager knows the
    /// same endpoints as this node.
    pub(crate) async fn reconcile(&self, manager: Option<&ManagerClient>) -> Result<(), ApiError> {
        let attachments = self.all().await?;
        for attachment in &attachments {
            if self.needs_mending(attachment, manager.is_some()).await {
                let id = attachment.id;
                match self.mend(id, manager).await {
                    Ok(()) => self.forget_trouble(id),
                    Err(error) => self.trouble(&attachment.network, id, &error),
                }
            }
        }
        if let Some(manager) = manager
            && !self.dead_endpoints(&attachments).await.is_empty()
        {
            let _one = self.changing.lock().await;
            // An attachment that is under way is written down before the manager is asked.
            for id in self.dead_endpoints(&self.all().await?).await {
                self.tell_manager(Some(manager), id).await;
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
        attachment.state == AttachmentState::Pending
            || self.dataplane.port(attachment.id).await.is_none()
            || !self.is_there(attachment).await.unwrap_or(true)
            || (has_manager && !self.is_known(attachment).await)
            || self.other_mtu(attachment).await.is_some()
    }

    async fn mend(&self, id: EndpointId, manager: Option<&ManagerClient>) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        let store = self.store.clone();
        let Some(attachment) = blocking(move || store.attachment(id)).await? else { return Ok(()) };
        if attachment.state == AttachmentState::Pending {
            return self.remove(manager, attachment).await;
        }
        if !self.is_there(&attachment).await? {
            tracing::info!(endpoint = %id, netns = %attachment.netns.path.display(), "the container has ended");
            return self.remove(manager, attachment).await;
        }
        if self.dataplane.port(id).await.is_none() {
            self.reopen(attachment.clone()).await?;
        }
        if let Some(mtu) = self.other_mtu(&attachment).await {
            self.set_mtu(attachment.clone(), mtu).await?;
        }
        match manager {
            Some(manager) if !self.is_known(&attachment).await => {
                let Some(endpoint) = &attachment.endpoint else { return Ok(()) };
                match self.assert_known(manager, &attachment.network, endpoint).await {
                    Err(error) if error.kind == ErrorKind::Barred => self.lose(attachment, &error).await,
                    told => Ok(told?),
                }
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn is_there(&self, attachment: &Attachment) -> Result<bool, ApiError> {
        let netns = attachment.netns.clone();
        blocking(move || container::open(&netns).map(|found| found.is_some())).await
    }

    fn trouble(&self, network: &NetworkName, id: EndpointId, error: &ApiError) {
        let message = error.to_string();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        // Tried every few seconds: one line for each new reason.
        if troubles.get(&id) != Some(&message) {
            tracing::warn!(endpoint = %id, %network, %error, "the endpoint is not as it should be; trying again");
            troubles.insert(id, message);
        }
    }

    fn forget_trouble(&self, id: EndpointId) {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// A lane found the interface of a port gone.
    pub(crate) async fn port_gone(&self, slot: PortSlot) {
        let Some(endpoint) = self.dataplane.endpoint(slot).await else { return };
        if self.remove_port(endpoint).await.is_err() {
            tracing::error!(%endpoint, "a lane has ended");
        }
    }

    async fn establish(
        &self,
        manager: &ManagerClient,
        mut attachment: Attachment,
        netns: NetNs,
    ) -> Result<AttachResponse, ApiError> {
        let request = Attach {
            id: attachment.id,
            network: attachment.network.clone(),
            name: attachment.name.clone(),
            ips: attachment.ips.clone(),
            mac: attachment.mac,
        };
        let attached = manager.attach(request).await?;
        let (endpoint, network) = (attached.endpoint, attached.network);
        // The operator may have named the network by its id.
        attachment.network = network.name.clone();
        let twin = self.all().await?.into_iter().find(|other| {
            other.id != attachment.id && other.network == network.name && other.netns == attachment.netns
        });
        if let Some(twin) = twin {
            return Err(container::attached_already(&twin));
        }
        let mtu = self.dataplane.mtu(&self.in_view(manager, &network.name, &endpoint).await?).await;
        let port = container::port(&attachment, &endpoint, &network, mtu);
        let lanes = self.dataplane.lane_count();
        let queues = blocking(move || port.create(&netns, lanes)).await?;
        self.add_port(attachment.id, queues, attachment.rates).await?;
        attachment.state = AttachmentState::Ready;
        attachment.endpoint = Some(endpoint.clone());
        attachment.mtu = Some(mtu);
        let (ifname, rates) = (attachment.ifname.clone(), attachment.rates);
        self.put(attachment).await?;
        self.lost.forget(&network.name);
        Ok(AttachResponse { endpoint, network_name: network.name, ifname, mtu, rates })
    }

    /// Opens the interface again, or makes it again if somebody removed it.
    async fn reopen(&self, attachment: Attachment) -> Result<(), ApiError> {
        let (id, network, rates) = (attachment.id, attachment.network.clone(), attachment.rates);
        let view = self.dataplane.view().await;
        let found = attachment.endpoint.as_ref().and_then(|endpoint| view.networks.get(&endpoint.network));
        let known = match found {
            Some(network) => Some((network.clone(), self.dataplane.mtu(network).await)),
            None => None,
        };
        let lanes = self.dataplane.lane_count();
        let queues = blocking(move || {
            container::reopen(&attachment, known.as_ref().map(|(network, mtu)| (network, *mtu)), lanes)
        })
        .await?;
        self.add_port(id, queues, rates).await?;
        tracing::info!(endpoint = %id, %network, "interface is back");
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

    async fn remove(&self, manager: Option<&ManagerClient>, attachment: Attachment) -> Result<(), ApiError> {
        self.remove_port(attachment.id).await?;
        let id = attachment.id;
        let store = self.store.clone();
        blocking(move || {
            container::remove_interface(&attachment)?;
            store.remove_attachment(id).map_err(ApiError::from)
        })
        .await?;
        self.forget_trouble(id);
        self.tell_manager(manager, id).await;
        Ok(())
    }

    /// Undoes what an attachment has come to; what cannot be undone now is tried at the next start.
    async fn take_back(&self, manager: Option<&ManagerClient>, attachment: Attachment) {
        let id = attachment.id;
        if let Err(error) = self.remove(manager, attachment).await {
            tracing::warn!(endpoint = %id, %error, "an unfinished attachment could not be taken back");
        }
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

/// How many endpoints an error names.
const MOST_NAMED: usize = 10;
