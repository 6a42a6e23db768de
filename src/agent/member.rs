//! A node that is a member of a cluster: everything that runs from `init` or `join` to `leave`.
//!
//! Built top to bottom in [`Member::start`]. The data plane comes first and needs no manager:
//! after a restart the last view and the old interfaces carry traffic before anybody is asked.

mod lanes;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use tokio::sync::{Mutex, mpsc, watch};

use super::announcement::{self, Crier};
use super::attachments::Attachments;
use super::dataplane::DataPlane;
use super::keys::{KeyLog, Keys};
use super::manager::Manager;
use super::office::{self, Candidate, Office};
use super::offloads::{self, OffloadBook};
use super::peers;
use super::rekey::Wished;
use super::removals;
use super::sockets::{DataSockets, Sockets};
use super::standing::{Standing, merge, session_request};
use super::superseded;
use super::tasks::{Tasks, Watched};
use super::underlay::{self, Home, Underlay};
use super::views::{self, OutlookFile};
use super::{audit, chronicle, upkeep};
use crate::api::types::ProcessorStatus;
use crate::cluster::{Node, Role, View};
use crate::config::AgentConfig;
use crate::control::identity::NodeIdentity;
use crate::control::listener::Doors;
use crate::control::renewal;
use crate::control::rpc::ManagerClient;
use crate::control::session::{self, SessionStatus};
use crate::control::state::{ClusterState, SignPayload};
use crate::control::store::Store;
use crate::control::store::local::NodeSettings;
use crate::control::tls::{Credentials, verify_identity};
use crate::control::trust::Trust;
use crate::events::{Event, Events};
use crate::id::{HostName, NodeId};
use crate::io::clock::wall_clock;
use crate::io::cpu;
use crate::negotiate::{Hello, Whereabouts};
use crate::sa::Suite;
use crate::worker::DataSocket;

use self::lanes::{hear, start_lanes};

/// A running member of a cluster. Dropping it ends everything of it, though not at once.
pub(crate) struct Member {
    pub(super) id: NodeId,
    /// As it was when it started; [`Self::node`] is as it is.
    node: Node,
    pub(super) credentials: Arc<Credentials>,
    pub(super) dataplane: Arc<DataPlane>,
    pub(super) keys: Arc<Keys>,
    /// Has new keys made.
    pub(super) rekeys: mpsc::Sender<Wished>,
    pub(super) attachments: Arc<Attachments>,
    pub(super) offloads: Arc<OffloadBook>,
    pub(super) processors: ProcessorStatus,
    pub(super) client: ManagerClient,
    pub(super) session: watch::Receiver<SessionStatus>,
    pub(super) standing: Arc<Standing>,
    underlay: watch::Receiver<Underlay>,
    pub(super) office: Arc<Office>,
    /// What the operator should know.
    pub(super) warnings: watch::Receiver<Vec<String>>,
    tasks: Mutex<Option<Watched>>,
}

impl Member {
    /// Starts everything; what fails later is sent to `failed` and cannot be mended by going on.
    pub(crate) async fn start(
        config: &AgentConfig,
        (store, events): (&Store, &Events),
        (identity, settings): (NodeIdentity, NodeSettings),
        sockets: Sockets,
        hello: Hello,
        failed: mpsc::Sender<anyhow::Error>,
    ) -> Result<Self> {
        let Sockets { tls, data: DataSockets { esp, vxlan, warnings }, underlay_mtu } = sockets;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let without_vxlan = vxlan.as_ref().err().map(ToString::to_string);
        without_vxlan.iter().for_each(|warning| tracing::warn!("{warning}; trying again"));
        let vxlan = vxlan.ok();
        offloads::tell_refused(config.offload, DataSocket::Esp, esp.offloads());
        if let Some(vxlan) = &vxlan {
            offloads::tell_refused(config.offload, DataSocket::Vxlan, vxlan.offloads());
        }
        let node = Node {
            id: identity.node(),
            name: host_name(),
            role: identity.role(),
            advertise: settings.advertise,
            data: settings.data,
            underlay_mtu,
        };
        let view = load_view(store).await?;
        let mut trust = Trust::of(&identity)?;
        if !view.roots.is_empty() {
            trust = trust.with_roots(view.roots.clone())?;
        }
        let credentials = Credentials::new(identity, trust, wall_clock)?;
        let standing = Standing::new(Arc::clone(&credentials));
        if let Some(warning) = certificate_warning(&credentials) {
            tracing::error!("{warning}");
        }

        let receiving_lanes = esp.receiving();
        let tables = Arc::new(ArcSwap::default());
        let (lanes, processors) = start_lanes(config, esp, vxlan, &tables)?;
        let dataplane = Arc::new(DataPlane::new(&credentials.identity(), lanes, tables));
        dataplane.follow_underlay(underlay_mtu).await?;
        dataplane.follow(Arc::new(view.clone())).await?;
        views::recall(store, &dataplane).await?;
        removals::recall(store, &dataplane, &credentials).await?;
        let offloads = Arc::new(OffloadBook::new(config.offload));
        let (carrier, book) = (Arc::clone(&dataplane), Arc::clone(&offloads));
        let attachments = Attachments::new(store.clone(), node.id, carrier, book, events.clone());
        let attachments = Arc::new(attachments);
        attachments.restore().await?;

        let key_log = match &config.esp_key_log {
            Some(path) => {
                tracing::warn!(file = %path.display(), "KEYS ARE WRITTEN TO A FILE: whoever reads it reads the traffic");
                Some(KeyLog::open(path).with_context(|| format!("cannot open {}", path.display()))?)
            }
            None => None,
        };
        let at = Whereabouts { advertise: settings.advertise, data: settings.data };
        let (moving, underlay) = watch::channel(Underlay { at, mtu: underlay_mtu });
        let (said, heard) = mpsc::channel(64);
        let keys = Arc::new(Keys::new(
            (hello, receiving_lanes),
            (suites(config), config.limits),
            Arc::clone(&dataplane),
            Arc::clone(&credentials),
            (key_log, events.clone()),
            (underlay.clone(), said),
        ));

        let client = ManagerClient::new(Arc::clone(&credentials), managers(&view, &node, &settings));
        let (views, following) = watch::channel(Arc::new(view));
        let (status, session) = watch::channel(SessionStatus::Connecting);
        let mut tasks = Tasks::default();
        let manager = start_manager(store, &credentials, events).await?;
        superseded::refuse(manager.as_ref(), &dataplane.removed().borrow(), store)?;
        let office = Office::new(manager);
        let candidate = Candidate {
            store: store.clone(),
            credentials: Arc::clone(&credentials),
            events: events.clone(),
            client: client.clone(),
            views: views.subscribe(),
            session: session.clone(),
            dataplane: Arc::clone(&dataplane),
        };
        tasks.spawn("the manager's office", Arc::clone(&office).keep(candidate, failed.clone()));
        let (channels, connected) = mpsc::channel(64);
        let doors = Doors { key_channels: channels, manager: office.doors(), events: events.clone() };
        let (relisten, listening) = mpsc::channel(1);
        tasks.spawn("the TLS port", underlay::listen_on((tls, listening), Arc::clone(&credentials), doors));
        let (rekeys, wished) = mpsc::channel(64);
        let upkeep = upkeep::keep(Arc::clone(&keys), rekeys.clone(), Arc::clone(&attachments));
        tasks.spawn("the lanes' upkeep", upkeep);
        let asked = (connected, wished);
        let peers = serve_peers(Arc::clone(&keys), asked, Arc::clone(&attachments), failed.clone());
        tasks.spawn("the key exchange", peers);
        let followed = (Arc::clone(&dataplane), Arc::clone(&office));
        let written = Arc::clone(&following.borrow());
        let file = OutlookFile::new(store.clone(), Arc::clone(&standing), written);
        let news = chronicle::tell_cluster(following.clone(), dataplane.removed(), events.clone());
        tasks.spawn("the audit of the cluster", news);
        tasks.spawn("the audit of roots", chronicle::tell_roots(standing.told(), events.clone()));
        let views_followed = views::follow(following, followed, Arc::clone(&standing), file, failed.clone());
        tasks.spawn("the cluster's view", views_followed);
        let refusing = (Arc::clone(&credentials), Arc::clone(&office));
        let removed = removals::keep(dataplane.removed(), store.clone(), refusing);
        tasks.spawn("the removed nodes", removed);
        let superseded =
            superseded::listen(Arc::clone(&office), dataplane.removed(), store.clone(), failed.clone());
        tasks.spawn("the news of another manager", superseded);
        let (changes, changed) = watch::channel(());
        let told = standing.told();
        let request = session_request(node.clone(), underlay.clone(), told.clone());
        tasks.spawn("what managers are told", merge((underlay.clone(), told), changes));
        let session_kept = session::keep(client.clone(), request, changed, views, status);
        tasks.spawn("the session", session_kept);
        let (warnings, warned) = watch::channel(warnings.into_iter().chain(without_vxlan.clone()).collect());
        let follower = underlay::Follower {
            home: Home::new(settings),
            is_saved: true,
            offload: config.offload,
            receiving_lanes,
            store: store.clone(),
            dataplane: Arc::clone(&dataplane),
            client: client.clone(),
            office: Arc::clone(&office),
            underlay: moving,
            relisten,
            warnings,
            without_vxlan,
        };
        tasks.spawn("the underlay", follower.run(failed.clone()));
        let crier = Crier::new(Arc::clone(&keys), Arc::clone(&office));
        tasks.spawn("what other nodes are told", crier.run());
        let listener = announcement::listen(heard, Arc::clone(&dataplane), (client.clone(), session.clone()));
        tasks.spawn("what other nodes say", listener);
        tasks.spawn("the interfaces' MTU", Arc::clone(&attachments).keep_mtus());
        tasks.spawn("the endpoints", Arc::clone(&attachments).keep(client.clone(), session.clone()));
        tasks.spawn("the audit of sessions", audit::tell_session(session.clone(), events.clone()));
        let forgeries = audit::tell_forgeries(Arc::clone(&dataplane), events.clone());
        tasks.spawn("the audit of packets", forgeries);
        let told = (&client, Arc::clone(&standing));
        keep_certificate(&mut tasks, &credentials, (store, events), &office, told);
        let tasks = Mutex::new(Some(tasks.watch(failed)));
        Ok(Self {
            id: node.id,
            node,
            credentials,
            dataplane,
            keys,
            rekeys,
            attachments,
            offloads,
            processors,
            client,
            session,
            standing,
            underlay,
            office,
            warnings: warned,
            tasks,
        })
    }

    /// This node as it is now.
    pub(crate) fn node(&self) -> Node {
        let node = self.underlay.borrow().of(&self.node);
        Node { role: self.credentials.identity().role(), ..node }
    }

    /// The manager that this node is, if it is one now.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.office.manager()
    }

    /// The same of a node that has just made or restored a cluster.
    pub(crate) async fn manager_soon(&self) -> Option<Arc<Manager>> {
        self.office.manager_soon().await
    }

    /// Ends every task and waits for it; the lanes go on until the last caller lets go of the member.
    pub(crate) async fn stop(&self) {
        if let Some(tasks) = self.tasks.lock().await.take() {
            tasks.stop().await;
        }
    }

    /// The client, while a manager is there: without one, calls would only wait.
    pub(crate) fn connected_client(&self) -> Option<&ManagerClient> {
        (*self.session.borrow() == SessionStatus::Connected).then_some(&self.client)
    }
}

/// What is wrong with this node's certificate or clock, if anything is.
pub(crate) fn certificate_warning(credentials: &Credentials) -> Option<String> {
    let refusal = verify_identity(&credentials.identity(), credentials.now()).err()?;
    Some(format!(
        "other nodes refuse this one: {refusal}; set the clock right, and if that is not it, let this node \
         `overlayd leave` and join again"
    ))
}

/// The name of this machine, as far as it can be one.
pub(crate) fn host_name() -> HostName {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy().into_owned();
    name.parse().unwrap_or_else(|_| "unnamed".parse().expect("it is a name"))
}

/// Signs memberships and removals with whatever certificate this manager has at the time.
pub(crate) fn payload_signer(credentials: &Arc<Credentials>) -> Box<SignPayload> {
    let credentials = Arc::clone(credentials);
    Box::new(move |payload| Ok(credentials.identity().signature(payload)?))
}

async fn load_view(store: &Store) -> Result<View> {
    let store = store.clone();
    Ok(tokio::task::spawn_blocking(move || store.view()).await??.unwrap_or_default())
}

fn suites(config: &AgentConfig) -> Vec<Suite> {
    if config.suites.is_empty() { Suite::preferred(cpu::has_aes()).to_vec() } else { config.suites.clone() }
}

async fn start_manager(
    store: &Store,
    credentials: &Arc<Credentials>,
    events: &Events,
) -> Result<Option<Arc<Manager>>> {
    let (store, credentials, events) = (store.clone(), Arc::clone(credentials), events.clone());
    tokio::task::spawn_blocking(move || {
        // What managers share is opened when it can be reached.
        if store.shared_store()?.is_some() || !ClusterState::exists(&store)? {
            return Ok(None);
        }
        let state = ClusterState::open(store.clone(), payload_signer(&credentials))?;
        Ok(Some(Manager::new((state, store), credentials, events)?))
    })
    .await?
}

/// Where managers are: as the last view has it, and as this node was told when it joined.
fn managers(view: &View, node: &Node, settings: &NodeSettings) -> Vec<SocketAddr> {
    // A manager that has moved knows better than the view of before.
    let own = Some(node.advertise).filter(|_| node.role == Role::Manager);
    let viewed = view.managers.iter().filter(|manager| manager.id != node.id).map(|node| node.advertise);
    let mut addresses: Vec<SocketAddr> = own.into_iter().chain(viewed).collect();
    for known in &settings.managers {
        if !addresses.contains(known) {
            addresses.push(*known);
        }
    }
    addresses
}

/// Renews this node's certificate in time, by the manager in this process or by any other.
fn keep_certificate(
    tasks: &mut Tasks,
    credentials: &Arc<Credentials>,
    (store, events): (&Store, &Events),
    office: &Arc<Office>,
    (client, standing): (&ManagerClient, Arc<Standing>),
) {
    let (store, renewed) = (store.clone(), client.clone());
    let events = events.clone();
    let persist = move |identity: &NodeIdentity| {
        store.put_identity(identity)?;
        let expires_unix_seconds = u64::try_from(identity.expires().unix_timestamp()).unwrap_or(0);
        events.record(Event::CertificateRenewed { expires_unix_seconds });
        Ok(())
    };
    let renewed = move || {
        renewed.reconnect();
        standing.renewed();
    };
    let signer = office::AnySigner { office: Arc::clone(office), client: client.clone() };
    let asked = (signer, Arc::clone(&office.recertify));
    let renewal = renewal::keep(Arc::clone(credentials), asked, persist, renewed);
    tasks.spawn("the renewal of the certificate", renewal);
}

/// Keeps the peers keyed, and hands what the lanes have to tell to whom it concerns.
async fn serve_peers(
    keys: Arc<Keys>,
    (connected, wished): (mpsc::Receiver<crate::control::key_channel::KeyChannel>, mpsc::Receiver<Wished>),
    attachments: Arc<Attachments>,
    failed: mpsc::Sender<anyhow::Error>,
) {
    let (events, happened) = mpsc::channel(1024);
    let lanes = keys.dataplane.lanes().to_vec();
    let told = lanes.iter().map(|lane| Box::pin(hear(lane, &events, &attachments)));
    tokio::select! {
        _ = peers::keep(Arc::clone(&keys), connected, happened, wished) => {}
        _ = futures_util::future::select_all(told) => {}
    }
    let _ = failed.send(anyhow::anyhow!("a packet lane has ended")).await;
}
