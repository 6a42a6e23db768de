//! What the agent does for the callers of its socket.
//!
//! Every change runs to its end even when the caller hangs up: a request that was begun is never
//! left half done.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{Mutex, RwLock, mpsc};

use super::attachments::blocking;
use super::autolock::refuse_locked;
use super::ca;
use super::formation::{self, Formed};
use super::member::Member;
use super::store::take_back;
use super::{departure, nodes, rekey, report, returning, tokens, verification};
use crate::api::types::{
    AttachRequest, AttachResponse, CaRequest, CaResponse, CaStatusRequest, CaStatusResponse,
    ChangeNodeRequest, ChangeNodeResponse, CreateNetworkRequest, CreateNetworkResponse, DetachRequest,
    DetachResponse, InitRequest, InitResponse, InspectNetworkRequest, InspectNetworkResponse,
    InspectNodeRequest, InspectNodeResponse, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse,
    ListNetworksRequest, ListNetworksResponse, ListNodesRequest, ListNodesResponse, NetworkSummary,
    PeersRequest, PeersResponse, RekeyRequest, RekeyResponse, RemoveNetworkRequest, RemoveNetworkResponse,
    RemoveNodeRequest, RemoveNodeResponse, RotateCaRequest, StatsRequest, StatsResponse, StatusRequest,
    StatusResponse, TokenRequest, TokenResponse,
};
use crate::api::types::{BackupRequest, BackupResponse, RestoreRequest, RestoreResponse};
use crate::api::types::{
    IssueTokenRequest, IssueTokenResponse, ListTokensRequest, ListTokensResponse, RemoveTokenRequest,
    RemoveTokenResponse,
};
use crate::api::types::{ListAttachmentsRequest, ListAttachmentsResponse, ReleaseRequest, ReleaseResponse};
use crate::api::types::{MigrateStoreRequest, MigrateStoreResponse, StoreRequest, StoreResponse};
use crate::api::types::{UnlockKeyRequest, UnlockKeyResponse, UnlockRequest, UnlockResponse};
use crate::api::types::{VerifyRequest, VerifyResponse};
use crate::api::{ApiError, Backend};
use crate::boot_time::BootTime;
use crate::cluster::Role;
use crate::config::AgentConfig;
use crate::control::rpc::messages;
use crate::control::rpc::{ErrorKind, ManagerError};
use crate::control::store::Store;
use crate::events::Events;
use crate::id::{BootId, LaneCount};
use crate::io::clock::boot_time;
use crate::io::cpu;
use crate::negotiate::Hello;

/// The agent behind its socket.
pub(super) struct Daemon {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: AgentConfig,
    pub(super) store: Store,
    events: Events,
    started: BootTime,
    pub(super) lanes: LaneCount,
    hello: Hello,
    member: RwLock<Option<Arc<Member>>>,
    /// Joining and leaving, one at a time.
    pub(super) forming: Mutex<()>,
    failed: mpsc::Sender<anyhow::Error>,
}

impl Daemon {
    /// Goes on as what the node was when the agent last ran.
    pub(super) async fn start(
        config: AgentConfig,
        store: Store,
        events: Events,
        failed: mpsc::Sender<anyhow::Error>,
    ) -> anyhow::Result<Self> {
        let lanes = config.lanes.unwrap_or_else(|| LaneCount::clamped(cpu::cores()));
        let formed = formation::resume(&store, lanes, config.offload).await?;
        let hello = Hello { boot_id: BootId::from_entropy(rand::random()), lanes: lanes.get() };
        let inner = Inner {
            config,
            store,
            events,
            started: boot_time(),
            lanes,
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
        if let Some(member) = member {
            member.stop().await;
        }
    }

    /// Runs a change to its end, whatever becomes of the caller.
    pub(super) async fn change<T, F>(&self, change: impl FnOnce(Arc<Inner>) -> F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let died = |_| ApiError::internal("a task of the agent died; its log says why");
        tokio::spawn(change(Arc::clone(&self.inner))).await.map_err(died)?
    }

    pub(super) async fn member(&self) -> Result<Arc<Member>, ApiError> {
        self.inner.member().await
    }
}

/// What a node began with.
#[derive(Debug, Clone, Copy)]
enum Begun {
    /// A cluster that it made.
    Cluster,
    /// Being a member of another's.
    Membership,
}

impl Inner {
    pub(super) async fn member(&self) -> Result<Arc<Member>, ApiError> {
        refuse_locked(&self.store)?;
        self.member.read().await.clone().ok_or_else(|| {
            ApiError::conflict(
                "this node is in no cluster: make one with `overlayd init --advertise-addr IP`, or join one \
                 with the command that `overlayd token worker` prints on a manager",
            )
        })
    }

    pub(super) async fn begin(&self, formed: Formed) -> anyhow::Result<Arc<Member>> {
        let Formed { identity, settings, sockets } = formed;
        let failed = self.failed.clone();
        let member = Member::start(
            &self.config,
            (&self.store, &self.events),
            (identity, settings),
            sockets,
            self.hello,
            failed,
        )
        .await?;
        let member = Arc::new(member);
        *self.member.write().await = Some(Arc::clone(&member));
        Ok(member)
    }

    pub(super) async fn refuse_member(&self) -> Result<(), ApiError> {
        refuse_locked(&self.store)?;
        match &*self.member.read().await {
            Some(member) => Err(ApiError::conflict(format!(
                "this node is in cluster {} already: `overlayd leave` takes it out",
                member.credentials.identity().cluster()
            ))),
            None => Ok(()),
        }
    }

    /// As [`Self::begin`], for a member that was made just now: one that cannot run is not kept.
    async fn begin_new(&self, formed: Formed, begun: Begun) -> Result<Arc<Member>, ApiError> {
        let (identity, settings) = (formed.identity.clone(), formed.settings.clone());
        let error = match self.begin(formed).await {
            Ok(member) => return Ok(member),
            Err(error) => error,
        };
        let store = self.store.clone();
        let is_made = matches!(begun, Begun::Cluster);
        blocking(move || {
            if is_made {
                take_back(&store, None);
            }
            store.leave_cluster()
        })
        .await?;
        Err(ApiError::internal(match begun {
            Begun::Cluster => format!("the cluster was not made: {error:#}"),
            Begun::Membership => formation::take_back_enrolment(&identity, &settings, &error).await,
        }))
    }

    async fn leave(&self, request: LeaveRequest) -> Result<LeaveResponse, ApiError> {
        let _one = self.forming.lock().await;
        let member = self.member().await?;
        let untold = if request.force {
            departure::force(&member).await?
        } else {
            departure::ask(&member).await?;
            None
        };
        let identity = member.credentials.identity();
        let is_last = member.manager().is_some_and(|manager| manager.is_alone());
        *self.member.write().await = None;
        member.stop().await;
        departure::turn_away(&member).await?;
        departure::let_go(member).await;
        let store = self.store.clone();
        blocking(move || {
            if is_last {
                take_back(&store, None);
            }
            store.leave_cluster()
        })
        .await
        .map_err(|error| {
            ApiError::internal(format!(
                "this node is out of its cluster, but could not forget it: {error}; mend that and restart the \
                 agent before it joins another"
            ))
        })?;
        Ok(LeaveResponse { cluster: identity.cluster(), node: identity.node(), untold })
    }
}

impl Backend for Daemon {
    fn events(&self) -> &Events {
        &self.inner.events
    }

    async fn init(&self, request: InitRequest) -> Result<InitResponse, ApiError> {
        self.change(async move |inner| {
            let _one = inner.forming.lock().await;
            inner.refuse_member().await?;
            let formed = formation::init(&inner.store, request, inner.lanes, &inner.config).await?;
            let member = inner.begin_new(formed, Begun::Cluster).await?;
            let manager =
                member.manager_soon().await.ok_or_else(|| ApiError::internal("the cluster has no state"))?;
            Ok(InitResponse {
                cluster: member.credentials.identity().cluster(),
                node: member.id,
                worker_token: manager.token(Role::Worker).reveal().to_string(),
                manager: member.node().advertise,
                unlock_key: inner.store.unlock_key(),
            })
        })
        .await
    }

    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, ApiError> {
        self.change(async move |inner| {
            let _one = inner.forming.lock().await;
            if let Some(member) = inner.member.read().await.clone()
                && returning::may_come(&member)
            {
                returning::come_back(&member, &inner.store, request).await?;
                tracing::info!(node = %member.id, "joined again");
                return Ok(JoinResponse {
                    cluster: member.credentials.identity().cluster(),
                    node: member.node(),
                });
            }
            inner.refuse_member().await?;
            let (lanes, offload) = (inner.lanes, inner.config.offload);
            let (formed, enrolled) = formation::join(&inner.store, request, lanes, offload).await?;
            let member = inner.begin_new(formed, Begun::Membership).await?;
            tracing::info!(node = %enrolled.node, "joined");
            Ok(JoinResponse { cluster: member.credentials.identity().cluster(), node: member.node() })
        })
        .await
    }

    async fn leave(&self, request: LeaveRequest) -> Result<LeaveResponse, ApiError> {
        self.change(async move |inner| inner.leave(request).await).await
    }

    async fn backup(&self, request: BackupRequest) -> Result<BackupResponse, ApiError> {
        self.change(async move |inner| inner.backup(request).await).await
    }

    async fn restore(&self, request: RestoreRequest) -> Result<RestoreResponse, ApiError> {
        self.change(async move |inner| inner.restore(request).await).await
    }

    async fn unlock(&self, request: UnlockRequest) -> Result<UnlockResponse, ApiError> {
        self.change(async move |inner| inner.unlock(request).await).await
    }

    async fn unlock_key(&self, request: UnlockKeyRequest) -> Result<UnlockKeyResponse, ApiError> {
        self.change(async move |inner| inner.unlock_key(request).await).await
    }

    async fn store(&self, _: StoreRequest) -> Result<StoreResponse, ApiError> {
        self.inner.where_the_state_is().await
    }

    async fn migrate_store(&self, request: MigrateStoreRequest) -> Result<MigrateStoreResponse, ApiError> {
        self.change(async move |inner| inner.migrate_store(request).await).await
    }

    async fn token(&self, request: TokenRequest) -> Result<TokenResponse, ApiError> {
        let member = self.member().await?;
        let TokenRequest { role, rotate } = request;
        let token = member.client.token(messages::TokenRequest { role, rotate }).await?;
        Ok(TokenResponse { role, token: token.token.to_string(), manager: member.node().advertise })
    }

    async fn issue_token(&self, request: IssueTokenRequest) -> Result<IssueTokenResponse, ApiError> {
        tokens::issue(&*self.member().await?, request).await
    }

    async fn list_tokens(&self, _: ListTokensRequest) -> Result<ListTokensResponse, ApiError> {
        tokens::list(&*self.member().await?).await
    }

    async fn remove_token(&self, request: RemoveTokenRequest) -> Result<RemoveTokenResponse, ApiError> {
        tokens::remove(&*self.member().await?, request).await
    }

    async fn create_network(&self, request: CreateNetworkRequest) -> Result<CreateNetworkResponse, ApiError> {
        let member = self.member().await?;
        let CreateNetworkRequest { name, encrypted, subnets, mtu, labels, node_labels } = request;
        let subnets = subnets.into_iter().map(Into::into).collect();
        let new = messages::NewNetwork { name, encrypted, subnets, mtu, labels, node_labels };
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
        let trust = member.credentials.trust();
        let membership = view.membership.verify(trust.roots(), identity.cluster(), &BTreeSet::new());
        let epoch = membership.map_err(|error| ApiError::internal(error.to_string()))?.epoch;
        let is_known = !view.nodes.is_empty() || view.network.mtu.is_some();
        let effective_mtu = if is_known { Some(member.dataplane.mtu(&view).await) } else { None };
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
            let endpoint = member.attachments.detach(member.connected_client(), &request).await?;
            Ok(DetachResponse { endpoint })
        })
        .await
    }

    async fn list_attachments(&self, _: ListAttachmentsRequest) -> Result<ListAttachmentsResponse, ApiError> {
        self.inner.list_attachments().await
    }

    async fn release(&self, request: ReleaseRequest) -> Result<ReleaseResponse, ApiError> {
        self.change(async move |inner| inner.release(&request).await).await
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse, ApiError> {
        let inner = &self.inner;
        let mut warnings: Vec<String> = inner.events.trouble().into_iter().collect();
        let cluster = match inner.member.read().await.clone() {
            Some(member) => {
                warnings.extend(member.warnings.borrow().iter().cloned());
                Some(report::cluster(&member, &mut warnings).await?)
            }
            None => None,
        };
        Ok(StatusResponse {
            agent_version: crate::api::VERSION.to_owned(),
            pid: std::process::id(),
            uptime_seconds: boot_time().since(inner.started).as_secs(),
            state_dir: inner.config.state_dir.clone(),
            esp_key_log: inner.config.esp_key_log.clone(),
            warnings,
            locked: inner.store.is_locked(),
            cluster,
        })
    }

    async fn verify(&self, request: VerifyRequest) -> Result<VerifyResponse, ApiError> {
        verification::verify(&self.inner, &*self.member().await?, &request).await
    }

    async fn list_nodes(&self, _: ListNodesRequest) -> Result<ListNodesResponse, ApiError> {
        nodes::list(&*self.member().await?).await
    }

    async fn inspect_node(&self, request: InspectNodeRequest) -> Result<InspectNodeResponse, ApiError> {
        nodes::inspect(&*self.member().await?, request).await
    }

    async fn remove_node(&self, request: RemoveNodeRequest) -> Result<RemoveNodeResponse, ApiError> {
        nodes::remove(&*self.member().await?, request).await
    }

    async fn change_node(&self, request: ChangeNodeRequest) -> Result<ChangeNodeResponse, ApiError> {
        nodes::change(&*self.member().await?, request).await
    }

    async fn peers(&self, _: PeersRequest) -> Result<PeersResponse, ApiError> {
        Ok(report::peers(&*self.member().await?).await)
    }

    async fn rekey(&self, request: RekeyRequest) -> Result<RekeyResponse, ApiError> {
        rekey::rekey(&*self.member().await?, request).await
    }

    async fn ca(&self, _: CaRequest) -> Result<CaResponse, ApiError> {
        ca::roots(&*self.member().await?)
    }

    async fn rotate_ca(&self, request: RotateCaRequest) -> Result<CaStatusResponse, ApiError> {
        ca::rotate(&*self.member().await?, request).await
    }

    async fn ca_status(&self, _: CaStatusRequest) -> Result<CaStatusResponse, ApiError> {
        ca::status(&*self.member().await?).await
    }

    async fn stats(&self, _: StatsRequest) -> Result<StatsResponse, ApiError> {
        report::stats(&*self.member().await?).await
    }
}

impl From<ManagerError> for ApiError {
    fn from(error: ManagerError) -> Self {
        match error.kind {
            ErrorKind::Invalid => Self::invalid(error.message),
            ErrorKind::NotFound => Self::not_found(error.message),
            ErrorKind::Conflict => Self::conflict(error.message),
            ErrorKind::Denied | ErrorKind::Removed | ErrorKind::Barred => Self::denied(error.message),
            ErrorKind::Unavailable => Self::unavailable(error.message),
            ErrorKind::Internal => Self::internal(error.message),
        }
    }
}
