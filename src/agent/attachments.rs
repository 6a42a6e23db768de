//! The containers' interfaces of this node: made, found again after a restart, removed.
//!
//! An attachment is written down as pending before anybody is asked, and as ready before the
//! operator is told: whatever moment the agent dies at, the next start finishes or takes back what
//! it finds. What the manager still believes is set right when the session begins again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::dataplane::DataPlane;
use super::placement::effective_mtu;
use crate::api::ApiError;
use crate::api::types::{AttachRequest, AttachResponse, DetachRequest, DetachTarget, NetnsReference};
use crate::cluster::{Endpoint, Network, NetworkView};
use crate::control::rpc::ManagerClient;
use crate::control::rpc::messages::{Attach, Detach, Done};
use crate::control::store::local::{Attachment, AttachmentState, NetnsRef};
use crate::control::store::{Store, StoreError};
use crate::id::{EndpointId, IfName, PortSlot};
use crate::io::container_port::{ContainerPort, PortError};
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::netns::{NetNs, NetNsError};
use crate::io::tap::{Tap, TapError};

/// The attachments of this node.
pub(crate) struct Attachments {
    store: Store,
    dataplane: Arc<DataPlane>,
    /// One change at a time: two requests for one container must not meet half way.
    changing: Mutex<()>,
}

impl Attachments {
    /// Over the state file and the lanes.
    pub(crate) fn new(store: Store, dataplane: Arc<DataPlane>) -> Self {
        Self { store, dataplane, changing: Mutex::new(()) }
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
        let _one = self.changing.lock().await;
        let attachments = self.all().await?;
        let (netns, request) =
            blocking(move || check_container(&request, &attachments).map(|n| (n, request))).await?;
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
                    DetachTarget::Netns(netns) => is_same(&attachment.netns, netns),
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
                AttachmentState::Ready => self.reopen(attachment).await,
            }
        }
        Ok(())
    }

    /// Compares what is there with what should be, and mends it: interfaces that somebody removed
    /// are made again, endpoints of containers that have ended are removed.
    pub(crate) async fn reconcile(&self, manager: Option<&ManagerClient>) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        for attachment in self.all().await? {
            if attachment.state == AttachmentState::Pending {
                self.take_back(manager, attachment).await;
                continue;
            }
            let netns = attachment.netns.clone();
            if blocking(move || open_same(&netns)).await.is_err() {
                tracing::info!(endpoint = %attachment.id, netns = %attachment.netns.path.display(), "the container has ended");
                self.remove(manager, attachment).await?;
                continue;
            }
            if self.dataplane.port(attachment.id).await.is_none() {
                self.reopen(attachment.clone()).await;
            }
            if let Some(manager) = manager {
                self.assert_known(manager, &attachment).await;
            }
        }
        Ok(())
    }

    /// Tells the manager again of an endpoint that its view lacks: it was restored from a backup, or
    /// a session began between the agent's note and its request.
    async fn assert_known(&self, manager: &ManagerClient, attachment: &Attachment) {
        let Some(endpoint) = &attachment.endpoint else { return };
        let view = self.dataplane.view().await;
        let network = view.networks.get(&endpoint.network);
        if network.is_some_and(|network| network.endpoints.iter().any(|known| known.id == endpoint.id)) {
            return;
        }
        let request = Attach {
            id: endpoint.id,
            network: attachment.network.clone(),
            name: endpoint.name.clone(),
            ips: endpoint.addresses.iter().map(ipnet::IpNet::addr).collect(),
            mac: Some(endpoint.mac),
        };
        match manager.attach(request).await {
            Ok(_) => tracing::info!(endpoint = %endpoint.id, "the manager knows the endpoint again"),
            Err(error) => {
                tracing::warn!(endpoint = %endpoint.id, %error, "the manager does not know the endpoint")
            }
        }
    }

    /// A lane found the interface of a port gone.
    pub(crate) async fn port_gone(&self, slot: PortSlot) {
        let Some(endpoint) = self.dataplane.endpoint(slot).await else { return };
        if self.dataplane.remove_port(endpoint).await.is_err() {
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
            return Err(attached_already(&twin));
        }
        let mtu = effective_mtu(&self.in_view(&endpoint).await?);
        let port = container_port(&attachment.ifname, &endpoint, &network, mtu);
        let tap = blocking(move || port.create(&netns)).await?;
        self.add_port(attachment.id, tap).await?;
        attachment.state = AttachmentState::Ready;
        attachment.endpoint = Some(endpoint.clone());
        attachment.mtu = Some(mtu);
        let ifname = attachment.ifname.clone();
        self.put(attachment).await?;
        Ok(AttachResponse { endpoint, network_name: network.name, ifname, mtu })
    }

    /// Waits until the lanes forward by a view that has the endpoint.
    async fn in_view(&self, endpoint: &Endpoint) -> Result<NetworkView, ApiError> {
        let mut followed = self.dataplane.followed();
        let found = async {
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
        };
        tokio::time::timeout(VIEW_TIMEOUT, found).await.map_err(|_| {
            ApiError::unavailable(format!(
                "the manager accepted the endpoint, but did not tell this node of its network within {} s: \
                 `overlayd status` shows whether the session with it lives; then try again",
                VIEW_TIMEOUT.as_secs()
            ))
        })
    }

    /// Opens the interface again, or makes it again if somebody removed it.
    async fn reopen(&self, attachment: Attachment) {
        let (id, network) = (attachment.id, attachment.network.clone());
        let view = self.dataplane.view().await;
        let opened = blocking(move || {
            let netns = open_same(&attachment.netns)?;
            match ContainerPort::reopen(&attachment.ifname, &netns) {
                Err(PortError::Tap(TapError::NoSuchInterface { .. })) => {}
                result => return result.map_err(failed),
            }
            let endpoint = attachment.endpoint.as_ref();
            let network = endpoint.and_then(|endpoint| view.networks.get(&endpoint.network));
            let (Some(endpoint), Some(network)) = (endpoint, network) else {
                return Err(ApiError::internal("its network is not known yet"));
            };
            let mtu = attachment.mtu.unwrap_or_else(|| effective_mtu(network));
            let port = container_port(&attachment.ifname, endpoint, &network.network, mtu);
            port.create(&netns).map_err(failed)
        })
        .await;
        let result = match opened {
            Ok(tap) => self.add_port(id, tap).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => tracing::info!(endpoint = %id, %network, "interface is back"),
            Err(error) => tracing::warn!(endpoint = %id, %network, %error, "interface is not back yet"),
        }
    }

    async fn add_port(&self, endpoint: EndpointId, tap: Tap) -> Result<(), ApiError> {
        Ok(self.dataplane.add_port(endpoint, tap).await?)
    }

    async fn remove(&self, manager: Option<&ManagerClient>, attachment: Attachment) -> Result<(), ApiError> {
        self.dataplane.remove_port(attachment.id).await?;
        let id = attachment.id;
        let store = self.store.clone();
        blocking(move || {
            remove_interface(&attachment)?;
            store.remove_attachment(id).map_err(ApiError::from)
        })
        .await?;
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

    /// The manager may be away: it will hear of it when the session begins again.
    async fn tell_manager(&self, manager: Option<&ManagerClient>, id: EndpointId) {
        let Some(manager) = manager else { return };
        match tokio::time::timeout(DETACH_TIMEOUT, manager.detach(Detach { endpoint: id })).await {
            Ok(Ok(Done {})) => {}
            Ok(Err(error)) => {
                tracing::info!(endpoint = %id, %error, "the manager will hear of the detachment later")
            }
            Err(_) => tracing::info!(endpoint = %id, "the manager will hear of the detachment later"),
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

/// The container, if the agent sees the same one as the caller and can attach it.
fn check_container(request: &AttachRequest, attachments: &[Attachment]) -> Result<NetNs, ApiError> {
    let netns = NetNs::open(&request.netns.path).map_err(|e| ApiError::not_found(e.to_string()))?;
    let wanted = &request.netns;
    if (netns.id().device(), netns.id().inode()) != (wanted.device, wanted.inode) {
        return Err(ApiError::invalid(format!(
            "{} is another namespace for the agent than for you (another mount or process namespace): \
             give the path as the agent sees it",
            wanted.path.display()
        )));
    }
    let mut here = attachments.iter().filter(|attachment| is_same(&attachment.netns, wanted));
    if let Some(attached) = here.find(|attached| attached.network == request.network) {
        return Err(attached_already(attached));
    }
    match Netlink::within(&netns, |netlink| netlink.link(&request.ifname)) {
        Ok(_) => Err(ApiError::conflict(PortError::NameTaken { name: request.ifname.clone() }.to_string())),
        Err(NetlinkError::NoSuchInterface { .. }) => Ok(netns),
        Err(error) => Err(failed(error)),
    }
}

fn attached_already(attachment: &Attachment) -> ApiError {
    ApiError::conflict(format!(
        "{} is attached to network {} already, as {} with endpoint {}: detach it first",
        attachment.netns.path.display(),
        attachment.network,
        attachment.ifname,
        attachment.id
    ))
}

fn container_port(name: &IfName, endpoint: &Endpoint, network: &Network, mtu: u16) -> ContainerPort {
    let own = |gateway: &std::net::IpAddr| endpoint.addresses.iter().any(|a| a.addr() == *gateway);
    ContainerPort {
        name: name.clone(),
        mac: endpoint.mac,
        mtu: mtu.into(),
        addresses: endpoint.addresses.clone(),
        gateways: network.subnets.iter().filter_map(|subnet| subnet.gateway).filter(|g| !own(g)).collect(),
        alias: alias(endpoint.id),
    }
}

/// Removes the interface if it is there and is ours: a container may have another of that name.
fn remove_interface(attachment: &Attachment) -> Result<(), ApiError> {
    let Ok(netns) = open_same(&attachment.netns) else { return Ok(()) };
    match Netlink::within(&netns, |netlink| netlink.link(&attachment.ifname)) {
        Ok(link) if link.alias.as_deref() == Some(&alias(attachment.id)) => {
            ContainerPort::remove(&attachment.ifname, &netns).map_err(failed)
        }
        Ok(_) | Err(NetlinkError::NoSuchInterface { .. }) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// The namespace of an attachment, if its path still leads to the same one.
fn open_same(wanted: &NetnsRef) -> Result<NetNs, ApiError> {
    let gone = || ApiError::not_found(format!("{} is not there any more", wanted.path.display()));
    let netns = NetNs::open(&wanted.path).map_err(|_| gone())?;
    if (netns.id().device(), netns.id().inode()) == (wanted.dev, wanted.inode) {
        Ok(netns)
    } else {
        Err(gone())
    }
}

fn is_same(known: &NetnsRef, wanted: &NetnsReference) -> bool {
    (known.dev, known.inode) == (wanted.device, wanted.inode)
}

fn alias(endpoint: EndpointId) -> String {
    format!("overlayd endpoint {endpoint}")
}

fn failed(error: impl std::error::Error) -> ApiError {
    ApiError::internal(error.to_string())
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<PortError> for ApiError {
    fn from(error: PortError) -> Self {
        match &error {
            PortError::NameTaken { .. } => Self::conflict(error.to_string()),
            PortError::Namespace(NetNsError::NotFound { .. }) => Self::not_found(error.to_string()),
            PortError::Tap(_) | PortError::Namespace(_) | PortError::Netlink(_) => {
                Self::internal(error.to_string())
            }
        }
    }
}

impl From<crate::worker::LaneGone> for ApiError {
    fn from(_: crate::worker::LaneGone) -> Self {
        Self::internal("the agent's packet lane has ended; its log says why: restart the agent")
    }
}

const VIEW_TIMEOUT: Duration = Duration::from_secs(10);
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);
