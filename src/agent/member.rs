//! A node that is a member of a cluster: everything that runs from `init` or `join` to `leave`.
//!
//! Built top to bottom in [`Member::start`]. The data plane comes first and needs no manager:
//! after a restart the last view and the old interfaces carry traffic before anybody is asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::attachments::{Attachments, blocking};
use super::dataplane::DataPlane;
use super::keys::{KeyLog, Keys};
use super::manager::Manager;
use super::peers;
use crate::cluster::{Node, Role, View};
use crate::config::AgentConfig;
use crate::control::identity::NodeIdentity;
use crate::control::listener::{Doors, ManagerDoors, listen};
use crate::control::rpc::messages::SessionRequest;
use crate::control::rpc::{self, ManagerClient};
use crate::control::session::{self, SessionStatus};
use crate::control::state::{ClusterState, SignMembership};
use crate::control::store::Store;
use crate::control::store::local::NodeSettings;
use crate::control::tls::Credentials;
use crate::control::trust::Trust;
use crate::control::{enrol, renewal};
use crate::id::{HostName, LaneId};
use crate::io::clock::wall_clock;
use crate::io::netlink::Netlink;
use crate::io::netns::NetNs;
use crate::io::udp::{UdpOptions, UdpSocket};
use crate::membership::SignedMembership;
use crate::negotiate::Hello;
use crate::sa::Suite;
use crate::wire::vxlan;
use crate::worker::{self, FloodLimit, Lane, LaneConfig, LaneEvent};

/// A running member of a cluster. Dropping it ends everything of it.
pub(crate) struct Member {
    pub(super) node: Node,
    pub(super) credentials: Arc<Credentials>,
    pub(super) dataplane: Arc<DataPlane>,
    pub(super) keys: Arc<Keys>,
    pub(super) attachments: Arc<Attachments>,
    pub(super) client: ManagerClient,
    pub(super) session: watch::Receiver<SessionStatus>,
    pub(super) manager: Option<Arc<Manager>>,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
    tasks: JoinSet<()>,
}

/// The sockets of a member, bound before anything is promised to anybody.
pub(crate) struct Sockets {
    tls: TcpListener,
    esp: UdpSocket,
    vxlan: Option<UdpSocket>,
    warnings: Vec<String>,
    underlay_mtu: u32,
}

impl Sockets {
    /// Binds what `settings` name.
    pub(crate) async fn bind(settings: &NodeSettings) -> Result<Self> {
        let tls = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("cannot listen on TCP {}: choose another with --listen-addr", settings.listen)
        })?;
        let data = settings.data;
        let options = UdpOptions::default();
        let esp = UdpSocket::bind(data, &options)
            .context("cannot receive encrypted data: give an address of this machine with --data-addr")?;
        let mut warnings = Vec::new();
        let vxlan = match UdpSocket::bind(SocketAddr::new(data.ip(), vxlan::PORT), &options) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warnings.push(format!("unencrypted networks carry nothing here: {error}"));
                None
            }
        };
        let underlay_mtu = tokio::task::spawn_blocking(move || {
            Netlink::within(&NetNs::current()?, |netlink| netlink.holder_of(data.ip()))
                .map(|link| link.mtu)
                .map_err(anyhow::Error::from)
        })
        .await?
        .context("the underlay's MTU cannot be read")?;
        Ok(Self { tls, esp, vxlan, warnings, underlay_mtu })
    }

    /// MTU of the interface that holds the data address, in bytes.
    pub(crate) fn underlay_mtu(&self) -> u32 {
        self.underlay_mtu
    }
}

impl Member {
    /// Starts everything; what fails later is sent to `failed` and cannot be mended by going on.
    pub(crate) async fn start(
        config: &AgentConfig,
        store: &Store,
        (identity, settings): (NodeIdentity, NodeSettings),
        sockets: Sockets,
        hello: Hello,
        failed: mpsc::Sender<anyhow::Error>,
    ) -> Result<Self> {
        let Sockets { tls, esp, vxlan, warnings, underlay_mtu } = sockets;
        let node = Node {
            id: identity.node(),
            name: host_name(),
            role: identity.role(),
            advertise: settings.advertise,
            data: settings.data,
            underlay_mtu,
        };
        let view = load_view(store).await?;
        let trust = Trust::of(&identity)?.with_removed(view.removed.clone());
        let credentials = Credentials::new(identity, trust, wall_clock)?;

        let tables = Arc::new(ArcSwap::default());
        let id = LaneId::new(0).expect("zero is a lane");
        let flood_limit =
            FloodLimit { frames_per_second: config.flood.packets_per_second(), burst: config.flood.burst() };
        let lane =
            Arc::new(worker::spawn(LaneConfig { id, esp, vxlan, tables: Arc::clone(&tables), flood_limit })?);
        let dataplane = Arc::new(DataPlane::new(&credentials.identity(), vec![Arc::clone(&lane)], tables));
        dataplane.follow(Arc::new(view.clone())).await?;
        let attachments = Arc::new(Attachments::new(store.clone(), Arc::clone(&dataplane)));
        attachments.restore().await?;

        let key_log = match &config.esp_key_log {
            Some(path) => {
                tracing::warn!(file = %path.display(), "KEYS ARE WRITTEN TO A FILE: whoever reads it reads the traffic");
                Some(KeyLog::open(path).with_context(|| format!("cannot open {}", path.display()))?)
            }
            None => None,
        };
        let keys = Arc::new(Keys::new(
            hello,
            (suites(config), config.limits),
            Arc::clone(&dataplane),
            Arc::clone(&credentials),
            key_log,
        ));

        let client = ManagerClient::new(Arc::clone(&credentials), settings.managers.clone());
        let (views, following) = watch::channel(Arc::new(view));
        let (status, session) = watch::channel(SessionStatus::Connecting);
        let mut tasks = JoinSet::new();
        let manager = start_manager(store, &credentials).await?;
        let doors = open_doors(&mut tasks, manager.as_ref(), &failed);
        let (channels, connected) = mpsc::channel(64);
        let doors = Doors { key_channels: channels, manager: doors };
        tasks.spawn(listen(tls, Arc::clone(&credentials), doors));
        tasks.spawn(serve_peers(
            Arc::clone(&keys),
            connected,
            lane,
            Arc::clone(&attachments),
            failed.clone(),
        ));
        tasks.spawn(follow_views(
            following,
            store.clone(),
            Arc::clone(&dataplane),
            Arc::clone(&credentials),
            failed,
        ));
        let request = session_request(node.clone(), Arc::clone(&attachments));
        tasks.spawn(session::keep(client.clone(), request, views, status));
        tasks.spawn(mend(Arc::clone(&attachments), client.clone(), session.clone()));
        let (persisting, renewed) = (store.clone(), client.clone());
        let persist = move |identity: &NodeIdentity| persisting.put_identity(identity).map_err(Into::into);
        let renewal_credentials = Arc::clone(&credentials);
        let signer = client.clone();
        tasks.spawn(async move {
            renewal::keep(renewal_credentials, signer, persist, move || renewed.reconnect()).await;
        });
        Ok(Self {
            node,
            credentials,
            dataplane,
            keys,
            attachments,
            client,
            session,
            manager,
            warnings,
            tasks,
        })
    }

    /// Ends everything and waits for it.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// The name of this machine, as far as it can be one.
pub(crate) fn host_name() -> HostName {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy().into_owned();
    name.parse().unwrap_or_else(|_| "unnamed".parse().expect("it is a name"))
}

/// Signs memberships with whatever certificate this manager has at the time.
pub(crate) fn membership_signer(credentials: &Arc<Credentials>) -> Box<SignMembership> {
    let credentials = Arc::clone(credentials);
    Box::new(move |membership| {
        let identity = credentials.identity();
        let leaf = identity.chain().first().ok_or("the certificate is missing")?;
        Ok(SignedMembership::sign(membership, leaf, |payload| identity.sign(payload))?)
    })
}

async fn load_view(store: &Store) -> Result<View> {
    let store = store.clone();
    Ok(tokio::task::spawn_blocking(move || store.view()).await??.unwrap_or_default())
}

fn suites(config: &AgentConfig) -> Vec<Suite> {
    if config.suites.is_empty() { Suite::preferred(has_aes()).to_vec() } else { config.suites.clone() }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

async fn start_manager(store: &Store, credentials: &Arc<Credentials>) -> Result<Option<Arc<Manager>>> {
    let (store, credentials) = (store.clone(), Arc::clone(credentials));
    tokio::task::spawn_blocking(move || {
        if !ClusterState::exists(&store)? {
            return Ok(None);
        }
        let state = ClusterState::open(store, membership_signer(&credentials))?;
        Ok(Some(Manager::new(state, credentials)?))
    })
    .await?
}

/// Serves the manager's part of the TLS port, if this node is one.
fn open_doors(
    tasks: &mut JoinSet<()>,
    manager: Option<&Arc<Manager>>,
    failed: &mpsc::Sender<anyhow::Error>,
) -> Option<ManagerDoors> {
    let manager = manager?;
    let (rpc, calls) = mpsc::channel(64);
    let (enrol, machines) = mpsc::channel(64);
    tasks.spawn(Arc::clone(manager).keep_trust());
    tasks.spawn(enrol::serve(Arc::new(Arc::clone(manager)), machines));
    let (api, failed) = (Arc::new(Arc::clone(manager)), failed.clone());
    tasks.spawn(async move {
        if let Err(error) = rpc::serve(api, calls).await {
            // The agent is ending already when nobody listens.
            let _ = failed.send(anyhow::Error::from(error).context("the manager API failed")).await;
        }
    });
    Some(ManagerDoors { rpc, enrol })
}

/// Keeps the peers keyed, and hands what the lane has to tell to whom it concerns.
async fn serve_peers(
    keys: Arc<Keys>,
    connected: mpsc::Receiver<crate::control::key_channel::KeyChannel>,
    lane: Arc<Lane>,
    attachments: Arc<Attachments>,
    failed: mpsc::Sender<anyhow::Error>,
) {
    let (events, happened) = mpsc::channel(1024);
    let peers = peers::keep(keys, connected, happened);
    let told = async {
        while let Some(event) = lane.next_event().await {
            match event {
                LaneEvent::PortGone { slot } => attachments.port_gone(slot).await,
                LaneEvent::RekeyWanted { .. } | LaneEvent::NoKey { .. } | LaneEvent::UnknownSpi { .. } => {
                    // Full: what traffic causes is repeated while the cause lasts.
                    let _ = events.try_send(event);
                }
            }
        }
    };
    tokio::select! {
        _ = peers => {}
        () = told => {}
    }
    let _ = failed.send(anyhow::anyhow!("a packet lane has ended")).await;
}

/// Makes the lanes forward by each new view, once it is on the disk.
async fn follow_views(
    mut views: watch::Receiver<Arc<View>>,
    store: Store,
    dataplane: Arc<DataPlane>,
    credentials: Arc<Credentials>,
    failed: mpsc::Sender<anyhow::Error>,
) {
    // A manager's trust follows its own list of members.
    let is_manager = credentials.identity().role() == Role::Manager;
    while views.changed().await.is_ok() {
        let view = Arc::clone(&views.borrow_and_update());
        let (saving, saved) = (store.clone(), Arc::clone(&view));
        if let Err(error) = blocking(move || saving.put_view(&saved)).await {
            tracing::warn!(%error, "the view was not saved: a restart would begin with an older one");
        }
        if !is_manager {
            let removed = credentials.trust().as_ref().clone().with_removed(view.removed.clone());
            credentials.replace_trust(removed);
        }
        if let Err(gone) = dataplane.follow(view).await {
            let _ = failed.send(gone.into()).await;
            return;
        }
    }
}

/// What this node tells a manager at the beginning of a session.
fn session_request(
    node: Node,
    attachments: Arc<Attachments>,
) -> impl FnMut() -> futures_util::future::BoxFuture<'static, SessionRequest> + Send {
    move || {
        let (node, attachments) = (node.clone(), Arc::clone(&attachments));
        Box::pin(async move {
            loop {
                match attachments.endpoints().await {
                    Ok(endpoints) => {
                        return SessionRequest { node, endpoints: endpoints.into_iter().collect() };
                    }
                    Err(error) => tracing::error!(%error, "the attachments cannot be read"),
                }
                tokio::time::sleep(MEND_INTERVAL).await;
            }
        })
    }
}

/// Compares actual with desired, always.
async fn mend(attachments: Arc<Attachments>, client: ManagerClient, session: watch::Receiver<SessionStatus>) {
    loop {
        tokio::time::sleep(MEND_INTERVAL).await;
        let connected = *session.borrow() == SessionStatus::Connected;
        if let Err(error) = attachments.reconcile(connected.then_some(&client)).await {
            tracing::warn!(%error, "attachments could not be compared with what is there");
        }
    }
}

const MEND_INTERVAL: Duration = Duration::from_secs(2);
