//! The containers' interfaces of this node: made, found again after a restart, removed.
//!
//! An attachment is written down as pending before anybody is asked, and as ready before the
//! operator is told: whatever moment the agent dies at, the next start finishes or takes back what
//! it finds. What the manager still believes is set right when the session begins again. Those of Docker's containers
//! are held while they are in none.

mod held;
mod lost;
mod mending;
mod mtu;
mod record;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard};

use self::held::Waiting;
use self::lost::Lost;
use self::watch::Watch;
use super::dataplane::DataPlane;
use super::offloads::OffloadBook;
use super::{condition, container, leftovers};
use crate::api::ApiError;
use crate::api::types::{AttachRequest, AttachResponse, DetachRequest, DetachTarget, ReleaseRequest};
use crate::cluster::{Endpoint, Network};
use crate::control::rpc::ManagerClient;
use crate::control::rpc::messages::Attach;
use crate::control::store::local::{Attachment, AttachmentState, NetnsRef};
use crate::control::store::{Store, StoreError};
use crate::events::Events;
use crate::id::{EndpointId, NodeId};
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

    /// Gives a container an interface; ready for traffic when this returns.
    pub(crate) async fn attach(
        &self,
        manager: &ManagerClient,
        request: AttachRequest,
    ) -> Result<AttachResponse, ApiError> {
        let _one = self.enter().await?;
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
            cni: request.cni,
            docker: None,
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
                self.take_back(None, attachment).await;
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
        self.remove(manager, attachment).await?;
        Ok(id)
    }

    /// Takes away what a container runtime had attached: in whatever network it was then, and all of it, where an
    /// earlier namespace of the container is still about.
    pub(crate) async fn release(
        &self,
        manager: Option<&ManagerClient>,
        request: &ReleaseRequest,
    ) -> Result<Vec<EndpointId>, ApiError> {
        let _one = self.changing.lock().await;
        let mut attachments = self.all().await?;
        attachments.retain(|attachment| {
            attachment.cni.as_ref() == Some(&request.attachment) && attachment.ifname == request.ifname
        });
        let (mut released, mut failed) = (Vec::new(), Ok(()));
        for attachment in attachments {
            released.push(attachment.id);
            failed = self.remove(manager, attachment).await.and(failed);
        }
        failed.map(|()| released)
    }

    /// Brings back what was attached when the last agent ended.
    pub(crate) async fn restore(&self) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        for attachment in self.all().await? {
            match attachment.state {
                AttachmentState::Pending => {
                    let what = format!("half attached endpoint {} of {}", attachment.id, attachment.network);
                    self.take_back(None, attachment).await;
                    leftovers::tell(&self.events, &what);
                }
                AttachmentState::Held => {
                    let (id, network) = (attachment.id, attachment.network.clone());
                    if let Err(error) = self.settle(None, attachment).await {
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

    async fn establish(
        &self,
        manager: &ManagerClient,
        mut attachment: Attachment,
        netns: NetNs,
    ) -> Result<AttachResponse, ApiError> {
        let (endpoint, network) = ask(manager, &mut attachment).await?;
        let twin = self.all().await?.into_iter().find(|other| {
            other.id != attachment.id
                && other.network == network.name
                && other.netns == attachment.netns
                && other.state != AttachmentState::Held
        });
        if let Some(twin) = twin {
            return Err(container::attached_already(&twin));
        }
        let mtu = self.dataplane.mtu(&self.in_view(&endpoint).await?).await;
        let lanes = self.dataplane.lane_count();
        let port = container::port(&attachment, &endpoint, &network, mtu, lanes);
        let gateways = port.gateways.clone();
        let queues = blocking(move || port.create(&netns, lanes)).await?;
        self.add_port(attachment.id, queues, attachment.rates).await?;
        attachment.state = AttachmentState::Ready;
        attachment.endpoint = Some(endpoint.clone());
        attachment.mtu = Some(mtu);
        let (ifname, rates) = (attachment.ifname.clone(), attachment.rates);
        self.put(attachment.clone()).await?;
        self.listen_to(&attachment).await;
        self.lost.forget(&network.name);
        Ok(AttachResponse { endpoint, network_name: network.name, ifname, mtu, rates, gateways })
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

    async fn remove(&self, manager: Option<&ManagerClient>, attachment: Attachment) -> Result<(), ApiError> {
        self.remove_port(attachment.id).await?;
        let id = attachment.id;
        self.watch.forget(id);
        let store = self.store.clone();
        blocking(move || {
            container::remove_interface(&attachment)?;
            store.remove_attachment(id).map_err(ApiError::from)
        })
        .await?;
        self.forget_trouble(id);
        self.waiting.forget(id);
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

/// Has the cluster give an attachment its endpoint.
async fn ask(manager: &ManagerClient, attachment: &mut Attachment) -> Result<(Endpoint, Network), ApiError> {
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
    Ok((endpoint, network))
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
