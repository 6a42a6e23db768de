//! What the agent does for the callers of its socket.
//!
//! Every change runs to its end even when the caller hangs up: a request that was begun is never
//! left half done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{Mutex, RwLock, mpsc};

use super::formation::{self, Formed};
use super::member::Member;
use super::placement::{LinkKey, effective_mtu};
use crate::api::types::{
    AttachRequest, AttachResponse, ClusterStatus, CreateNetworkRequest, CreateNetworkResponse, DetachRequest,
    DetachResponse, DropCount, EndpointTraffic, InitRequest, InitResponse, InspectNetworkRequest,
    InspectNetworkResponse, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, ListNetworksRequest,
    ListNetworksResponse, ListNodesRequest, ListNodesResponse, ManagerStatus, NetworkSummary, NodeState,
    NodeSummary, PeerStatus, PeerTraffic, PeersRequest, PeersResponse, RemoveNetworkRequest,
    RemoveNetworkResponse, StatsRequest, StatsResponse, StatusRequest, StatusResponse, TokenRequest,
    TokenResponse, Traffic,
};
use crate::api::{ApiError, Backend};
use crate::boot_time::BootTime;
use crate::cluster::{Role, View};
use crate::config::AgentConfig;
use crate::control::rpc::messages;
use crate::control::rpc::{ErrorKind, ManagerError};
use crate::control::session::SessionStatus;
use crate::control::store::Store;
use crate::drop_reason::DropReason;
use crate::id::{BootId, LinkSlot};
use crate::io::clock::boot_time;
use crate::negotiate::Hello;
use crate::worker::{LinkCounters, PortCounters};

/// The agent behind its socket.
pub(super) struct Daemon {
    inner: Arc<Inner>,
}

struct Inner {
    config: AgentConfig,
    store: Store,
    started: BootTime,
    hello: Hello,
    member: RwLock<Option<Arc<Member>>>,
    /// Joining and leaving, one at a time.
    forming: Mutex<()>,
    failed: mpsc::Sender<anyhow::Error>,
}

impl Daemon {
    /// Goes on as what the node was when the agent last ran.
    pub(super) async fn start(
        config: AgentConfig,
        store: Store,
        failed: mpsc::Sender<anyhow::Error>,
    ) -> anyhow::Result<Self> {
        let formed = formation::resume(&store).await?;
        let hello = Hello { boot_id: BootId::from_entropy(rand::random()), lanes: LANES };
        let inner = Inner {
            config,
            store,
            started: boot_time(),
            hello,
            member: RwLock::new(None),
            forming: Mutex::new(()),
            failed,
        };
        if let Some(formed) = formed {
            inner.begin(formed).await?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ends everything; the containers keep their interfaces.
    pub(super) async fn stop(&self) {
        let member = self.inner.member.write().await.take();
        if let Some(member) = member.and_then(Arc::into_inner) {
            member.stop().await;
        }
    }

    /// Runs a change to its end, whatever becomes of the caller.
    async fn change<T, F>(&self, change: impl FnOnce(Arc<Inner>) -> F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let died = |_| ApiError::internal("a task of the agent died; its log says why");
        tokio::spawn(change(Arc::clone(&self.inner))).await.map_err(died)?
    }

    async fn member(&self) -> Result<Arc<Member>, ApiError> {
        self.inner.member().await
    }
}

impl Inner {
    async fn member(&self) -> Result<Arc<Member>, ApiError> {
        self.member.read().await.clone().ok_or_else(|| {
            ApiError::conflict(
                "this node is in no cluster: make one with `overlayd init --advertise-addr IP`, or join one \
                 with the command that `overlayd token worker` prints on a manager",
            )
        })
    }

    async fn begin(&self, formed: Formed) -> anyhow::Result<Arc<Member>> {
        let Formed { identity, settings, sockets } = formed;
        let failed = self.failed.clone();
        let member =
            Member::start(&self.config, &self.store, (identity, settings), sockets, self.hello, failed)
                .await?;
        let member = Arc::new(member);
        *self.member.write().await = Some(Arc::clone(&member));
        Ok(member)
    }

    async fn refuse_member(&self) -> Result<(), ApiError> {
        match &*self.member.read().await {
            Some(member) => Err(ApiError::conflict(format!(
                "this node is in cluster {} already: `overlayd leave` takes it out",
                member.credentials.identity().cluster()
            ))),
            None => Ok(()),
        }
    }

    async fn leave(&self) -> Result<LeaveResponse, ApiError> {
        let _one = self.forming.lock().await;
        let member = self.member().await?;
        let attachments = member.attachments.all().await?;
        if !attachments.is_empty() {
            let names: Vec<String> =
                attachments.iter().take(10).map(|a| format!("{} in {}", a.id, a.network)).collect();
            return Err(ApiError::conflict(format!(
                "this node has {} endpoints: detach them first ({}{})",
                attachments.len(),
                names.join(", "),
                if attachments.len() > names.len() { ", …" } else { "" }
            )));
        }
        if member.node.role == Role::Manager {
            let others =
                member.client.list_nodes(messages::ListNodes {}).await?.nodes.len().saturating_sub(1);
            if others > 0 {
                return Err(ApiError::conflict(format!(
                    "this node is the cluster's only manager and {others} other nodes are in it: \
                     let them leave first"
                )));
            }
        } else {
            member.client.leave(messages::Leave {}).await?;
        }
        let identity = member.credentials.identity();
        *self.member.write().await = None;
        if let Some(member) = Arc::into_inner(member) {
            member.stop().await;
        }
        let store = self.store.clone();
        super::attachments::blocking(move || store.leave_cluster()).await?;
        Ok(LeaveResponse { cluster: identity.cluster(), node: identity.node() })
    }
}

impl Backend for Daemon {
    async fn init(&self, request: InitRequest) -> Result<InitResponse, ApiError> {
        self.change(async move |inner| {
            let _one = inner.forming.lock().await;
            inner.refuse_member().await?;
            let formed = formation::init(&inner.store, request).await?;
            let member = inner.begin(formed).await.map_err(|e| ApiError::internal(format!("{e:#}")))?;
            let manager =
                member.manager.as_ref().ok_or_else(|| ApiError::internal("the cluster has no state"))?;
            Ok(InitResponse {
                cluster: member.credentials.identity().cluster(),
                node: member.node.id,
                worker_token: manager.token(Role::Worker).reveal().to_string(),
                manager: member.node.advertise,
            })
        })
        .await
    }

    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, ApiError> {
        self.change(async move |inner| {
            let _one = inner.forming.lock().await;
            inner.refuse_member().await?;
            let (formed, enrolled) = formation::join(&inner.store, request).await?;
            let member = inner.begin(formed).await.map_err(|e| ApiError::internal(format!("{e:#}")))?;
            tracing::info!(node = %enrolled.node, "joined");
            Ok(JoinResponse { cluster: member.credentials.identity().cluster(), node: member.node.clone() })
        })
        .await
    }

    async fn leave(&self, _: LeaveRequest) -> Result<LeaveResponse, ApiError> {
        self.change(async move |inner| inner.leave().await).await
    }

    async fn token(&self, request: TokenRequest) -> Result<TokenResponse, ApiError> {
        let member = self.member().await?;
        let TokenRequest { role, rotate } = request;
        let token = member.client.token(messages::TokenRequest { role, rotate }).await?;
        Ok(TokenResponse { role, token: token.token.to_string(), manager: member.node.advertise })
    }

    async fn create_network(&self, request: CreateNetworkRequest) -> Result<CreateNetworkResponse, ApiError> {
        let member = self.member().await?;
        let CreateNetworkRequest { name, encrypted, subnets, mtu, labels } = request;
        let subnets = subnets.into_iter().map(Into::into).collect();
        let new = messages::NewNetwork { name, encrypted, subnets, mtu, labels };
        Ok(CreateNetworkResponse { network: member.client.create_network(new).await?.network })
    }

    async fn list_networks(&self, _: ListNetworksRequest) -> Result<ListNetworksResponse, ApiError> {
        let member = self.member().await?;
        let networks = member.client.list_networks(messages::ListNetworks {}).await?.networks.into_iter();
        let summary = |s: messages::NetworkSummary| NetworkSummary {
            network: s.network,
            endpoint_count: u64::try_from(s.endpoints).unwrap_or(u64::MAX),
        };
        Ok(ListNetworksResponse { networks: networks.map(summary).collect() })
    }

    async fn inspect_network(
        &self,
        request: InspectNetworkRequest,
    ) -> Result<InspectNetworkResponse, ApiError> {
        let member = self.member().await?;
        let request = messages::InspectNetwork { name: request.network };
        let view = member.client.inspect_network(request).await?.view;
        let identity = member.credentials.identity();
        let membership = view.membership.verify(identity.root(), identity.cluster(), &BTreeSet::new());
        let epoch = membership.map_err(|error| ApiError::internal(error.to_string()))?.epoch;
        let effective_mtu =
            (!view.nodes.is_empty() || view.network.mtu.is_some()).then(|| effective_mtu(&view));
        let (nodes, endpoints) = (view.nodes, view.endpoints);
        Ok(InspectNetworkResponse { network: view.network, effective_mtu, epoch, nodes, endpoints })
    }

    async fn remove_network(&self, request: RemoveNetworkRequest) -> Result<RemoveNetworkResponse, ApiError> {
        let member = self.member().await?;
        let name = request.network;
        let inspect = messages::InspectNetwork { name: name.clone() };
        let id = member.client.inspect_network(inspect).await?.view.network.id;
        member.client.remove_network(messages::RemoveNetwork { name: name.clone() }).await?;
        Ok(RemoveNetworkResponse { id, name })
    }

    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse, ApiError> {
        self.change(async move |inner| {
            let member = inner.member().await?;
            let attached = member.attachments.attach(&member.client, request).await?;
            member.keys.settle(attached.endpoint.network).await;
            Ok(attached)
        })
        .await
    }

    async fn detach(&self, request: DetachRequest) -> Result<DetachResponse, ApiError> {
        self.change(async move |inner| {
            let member = inner.member().await?;
            let endpoint = member.attachments.detach(Some(&member.client), &request).await?;
            Ok(DetachResponse { endpoint })
        })
        .await
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse, ApiError> {
        let inner = &self.inner;
        let mut warnings = Vec::new();
        let cluster = match inner.member.read().await.clone() {
            Some(member) => {
                warnings.extend(member.warnings.iter().cloned());
                Some(cluster_status(&member, &mut warnings).await?)
            }
            None => None,
        };
        Ok(StatusResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: boot_time().since(inner.started).as_secs(),
            state_dir: inner.config.state_dir.clone(),
            esp_key_log: inner.config.esp_key_log.clone(),
            warnings,
            cluster,
        })
    }

    async fn list_nodes(&self, _: ListNodesRequest) -> Result<ListNodesResponse, ApiError> {
        let member = self.member().await?;
        let nodes = member.client.list_nodes(messages::ListNodes {}).await?.nodes.into_iter();
        let summary = |status: messages::NodeStatus| NodeSummary {
            is_self: status.node.id == member.node.id,
            state: if status.connected { NodeState::Ready } else { NodeState::Down },
            node: status.node,
        };
        Ok(ListNodesResponse { nodes: nodes.map(summary).collect() })
    }

    async fn peers(&self, _: PeersRequest) -> Result<PeersResponse, ApiError> {
        let member = self.member().await?;
        let now = boot_time();
        let status = member.keys.status();
        let peer = |link: LinkOf<'_>| {
            let status = status.get(&link.key)?;
            let keys = status.established.as_ref();
            Some(PeerStatus {
                node: link.node.id,
                node_name: link.node.name.clone(),
                network: link.key.0,
                network_name: link.network.name.clone(),
                remote: link.node.data,
                state: status.state,
                failure: status.failure.clone(),
                suite: keys.map(|keys| keys.suite),
                key_age_seconds: keys.map(|keys| now.since(keys.created).as_secs()),
                outbound_spis: keys.map(|keys| keys.outbound.clone()).unwrap_or_default(),
                inbound_spis: keys.map(|keys| keys.inbound.clone()).unwrap_or_default(),
                sent: link.sent(),
                received: link.received(),
                last_drop: link.counters.last_drop,
            })
        };
        let view = member.dataplane.view().await;
        let links = links(&member, &view).await;
        Ok(PeersResponse { peers: links.into_iter().filter_map(peer).collect() })
    }

    async fn stats(&self, _: StatsRequest) -> Result<StatsResponse, ApiError> {
        let member = self.member().await?;
        let view = member.dataplane.view().await;
        let mut stats = StatsResponse::default();
        for lane in member.dataplane.lanes() {
            let counts = DropReason::ALL.iter().zip(lane.counters().drops());
            let counts = counts.filter(|(_, packets)| *packets > 0);
            stats.drops.extend(counts.map(|(&reason, packets)| DropCount {
                lane: lane.id(),
                reason,
                packets,
            }));
        }
        stats.peers = links(&member, &view)
            .await
            .into_iter()
            .map(|link| PeerTraffic {
                node: link.node.id,
                node_name: link.node.name.clone(),
                network_name: link.network.name.clone(),
                sent: link.sent(),
                received: link.received(),
            })
            .collect();
        for attachment in member.attachments.all().await? {
            let Some(slot) = member.dataplane.port(attachment.id).await else { continue };
            let mut total = PortCounters::default();
            for lane in member.dataplane.lanes() {
                total += lane.counters().port(slot);
            }
            stats.endpoints.push(EndpointTraffic {
                endpoint: attachment.id,
                name: attachment.name,
                network_name: attachment.network,
                sent: Traffic { packets: total.frames_sent, bytes: total.bytes_sent },
                received: Traffic { packets: total.frames_received, bytes: total.bytes_received },
            });
        }
        Ok(stats)
    }
}

async fn cluster_status(member: &Member, warnings: &mut Vec<String>) -> Result<ClusterStatus, ApiError> {
    let view = member.dataplane.view().await;
    let session = member.session.borrow().clone();
    if let SessionStatus::Disconnected(error) = &session {
        warnings.push(format!("no session with a manager: {error}; traffic goes on, changes are refused"));
    }
    let connected = session == SessionStatus::Connected;
    let managers = view.managers.iter().map(|node| ManagerStatus { node: node.clone(), connected });
    let attachments = member.attachments.all().await?;
    for attachment in &attachments {
        if member.dataplane.port(attachment.id).await.is_none() {
            warnings.push(format!(
                "endpoint {} of network {} has no interface",
                attachment.id, attachment.network
            ));
        }
    }
    let expires = member.credentials.identity().expires().unix_timestamp();
    Ok(ClusterStatus {
        id: member.credentials.identity().cluster(),
        node: member.node.clone(),
        version: view.version,
        managers: managers.collect(),
        certificate_expires_unix_seconds: u64::try_from(expires).unwrap_or(0),
        network_count: u64::try_from(view.networks.len()).unwrap_or(u64::MAX),
        endpoint_count: u64::try_from(attachments.len()).unwrap_or(u64::MAX),
    })
}

/// A link with its names and numbers.
struct LinkOf<'v> {
    key: LinkKey,
    network: &'v crate::cluster::Network,
    node: &'v crate::cluster::Node,
    counters: LinkCounters,
}

impl LinkOf<'_> {
    fn sent(&self) -> Traffic {
        Traffic { packets: self.counters.packets_sent, bytes: self.counters.bytes_sent }
    }

    fn received(&self) -> Traffic {
        Traffic { packets: self.counters.packets_received, bytes: self.counters.bytes_received }
    }
}

async fn links<'v>(member: &Member, view: &'v View) -> Vec<LinkOf<'v>> {
    let slots: BTreeMap<LinkKey, LinkSlot> = member.dataplane.links().await;
    let named = slots.into_iter().filter_map(|(key, slot)| {
        let network = view.networks.get(&key.0)?;
        let node = network.nodes.iter().find(|node| node.id == key.1)?;
        let mut counters = LinkCounters::default();
        for lane in member.dataplane.lanes() {
            counters += lane.counters().link(slot);
        }
        Some(LinkOf { key, network: &network.network, node, counters })
    });
    named.collect()
}

impl From<ManagerError> for ApiError {
    fn from(error: ManagerError) -> Self {
        match error.kind {
            ErrorKind::Invalid => Self::invalid(error.message),
            ErrorKind::NotFound => Self::not_found(error.message),
            ErrorKind::Conflict => Self::conflict(error.message),
            ErrorKind::Denied => Self::denied(error.message),
            ErrorKind::Unavailable => Self::unavailable(error.message),
            ErrorKind::Internal => Self::internal(error.message),
        }
    }
}

/// Lanes of this node.
const LANES: u8 = 1;
