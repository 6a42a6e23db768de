//! Whether this node is a manager now: what it serves while it is, and how that begins and ends.
//!
//! Where the cluster's state lies here, this node is a manager from the beginning. Where managers share it, it
//! is one as soon as the view names it, its certificate says so, and the state can be read; and until the state
//! says that it is none any more. It ends with whatever opened the state being forgotten. A node that learns how the
//! state is opened from a manager with an unlock key takes that key first: the state opens with it on no machine else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::attachments::blocking;
use super::dataplane::DataPlane;
use super::manager::Manager;
use super::member::payload_signer;
use super::{removals, superseded};
use crate::cluster::{Role, View};
use crate::control::enrol;
use crate::control::listener::{EnrolStream, ManagerDoors};
use crate::control::renewal::Signer;
use crate::control::rpc::messages::{Renewed, StoreAccess, StoreAccessRequest};
use crate::control::rpc::{self, ManagerClient, ManagerError};
use crate::control::session::SessionStatus;
use crate::control::state::ClusterState;
use crate::control::store::{Store, StoreError};
use crate::control::tls::Credentials;
use crate::control::tls::peer::PeerStream;
use crate::events::{Event, Events};

/// The seat of a manager, taken or empty.
pub(crate) struct Office {
    seat: watch::Sender<Option<Arc<Manager>>>,
    doors: watch::Sender<Option<ManagerDoors>>,
    /// Whether this node keeps what opens the state that managers share, as far as it has looked.
    keeps_store: AtomicBool,
    /// The certificate is to be renewed, since it does not say what this node is.
    pub(crate) recertify: Arc<Notify>,
}

impl Office {
    /// An office that `manager` holds from the beginning, if there is one.
    pub(crate) fn new(manager: Option<Arc<Manager>>) -> Arc<Self> {
        Arc::new(Self {
            seat: watch::Sender::new(manager),
            doors: watch::Sender::new(None),
            keeps_store: AtomicBool::new(true),
            recertify: Arc::default(),
        })
    }

    /// The manager that this node is, if it is one.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.seat.borrow().clone()
    }

    /// The same of a node that is about to be one.
    pub(crate) async fn manager_soon(&self) -> Option<Arc<Manager>> {
        let mut seat = self.seat.subscribe();
        timeout(SOON, seat.wait_for(Option::is_some)).await.ok()?.ok()?.clone()
    }

    /// Whether this node is a manager, or may find that it is one and renew its certificate by itself.
    pub(crate) fn may_sign(&self) -> bool {
        self.manager().is_some() || self.keeps_store.load(Ordering::Relaxed)
    }

    /// Who holds it, as that changes.
    pub(crate) fn seat(&self) -> watch::Receiver<Option<Arc<Manager>>> {
        self.seat.subscribe()
    }

    /// What the TLS port serves for managers.
    pub(crate) fn doors(&self) -> watch::Receiver<Option<ManagerDoors>> {
        self.doors.subscribe()
    }

    /// Serves whenever this node is a manager. The doors of one that is already are open when this returns.
    pub(crate) fn keep(
        self: Arc<Self>,
        candidate: Candidate,
        failed: mpsc::Sender<anyhow::Error>,
    ) -> impl Future<Output = ()> + Send {
        let mut held = self.manager().map(|manager| (manager, self.open()));
        async move {
            loop {
                let (manager, callers) = match held.take() {
                    Some(held) => held,
                    None => {
                        let manager = candidate.take_office(&self).await;
                        tracing::info!("this node is a manager now");
                        candidate.events.record(Event::OfficeTaken {});
                        self.seat.send_replace(Some(Arc::clone(&manager)));
                        (manager, self.open())
                    }
                };
                tokio::select! {
                    failure = serve(&manager, callers, &candidate.events) => {
                        // The agent is ending already when nobody listens.
                        let _ = failed.send(failure).await;
                        std::future::pending::<()>().await;
                    }
                    () = manager.dismissed() => {}
                    () = superseded::until_demoted(&manager, candidate.dataplane.removed()) => {}
                }
                tracing::warn!("this node is a manager no more");
                candidate.events.record(Event::OfficeLeft {});
                // This node's own may be among them.
                manager.end_sessions();
                self.doors.send_replace(None);
                self.seat.send_replace(None);
                candidate.leave_office();
            }
        }
    }

    /// Opens the doors; who comes in by them.
    fn open(&self) -> Callers {
        let (rpc, calls) = mpsc::channel(64);
        let (enrol, machines) = mpsc::channel(64);
        self.doors.send_replace(Some(ManagerDoors { rpc, enrol }));
        Callers { calls, machines }
    }
}

/// Who comes in by the doors.
struct Callers {
    calls: mpsc::Receiver<PeerStream>,
    machines: mpsc::Receiver<EnrolStream>,
}

/// A node that may become a manager.
pub(crate) struct Candidate {
    pub(crate) store: Store,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) events: Events,
    pub(crate) client: ManagerClient,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) session: watch::Receiver<SessionStatus>,
    pub(crate) dataplane: Arc<DataPlane>,
}

impl Candidate {
    /// Waits until this node is a manager, and does its part for that.
    async fn take_office(&self, office: &Office) -> Arc<Manager> {
        let mut views = self.views.clone();
        let mut known = None;
        loop {
            views.mark_unchanged();
            let pause = match self.try_office(office).await {
                Ok(Step::Taken(manager)) => return manager,
                Ok(Step::Done) => continue,
                Ok(Step::Waiting) => LOOK_INTERVAL,
                Err(error) => {
                    let error = format!("{error:#}");
                    if known.as_ref() != Some(&error) {
                        tracing::warn!(%error, "this node is to be a manager, and cannot yet; trying again");
                    }
                    known = Some(error);
                    RETRY_INTERVAL
                }
            };
            // The sender lives as long as the session, which is as long as this.
            let _ = timeout(pause, views.changed()).await;
        }
    }

    async fn try_office(&self, office: &Office) -> anyhow::Result<Step> {
        let identity = self.credentials.identity();
        let store = self.store.clone();
        let is_named = self.views.borrow().managers.iter().any(|manager| manager.id == identity.node());
        let keeps_store = blocking(move || store.shared_store()).await?.is_some();
        office.keeps_store.store(keeps_store, Ordering::Relaxed);
        if keeps_store {
            let until = self.dataplane.removed().borrow().demoted.get(&identity.node()).copied();
            if !is_named && until.is_some_and(|until| identity.issued_at() <= until) {
                // The store that it shared may be gone for good.
                self.leave_office();
                return Ok(Step::Waiting);
            }
            return self.open_state(office).await;
        }
        match (is_named, identity.role()) {
            (true, Role::Manager) => {
                let access = self.client.store_access(StoreAccessRequest {}).await?;
                let store = self.store.clone();
                let is_locked = access.unlock_key.is_some();
                blocking(move || keep_access(&store, &access)).await?;
                if is_locked {
                    tracing::info!(
                        "this node is locked at each start from now on, as the other managers are"
                    );
                }
                Ok(Step::Done)
            }
            (true, Role::Worker) => {
                office.recertify.notify_one();
                Ok(Step::Waiting)
            }
            (false, Role::Manager) if *self.session.borrow() == SessionStatus::Connected => {
                office.recertify.notify_one();
                Ok(Step::Waiting)
            }
            (false, Role::Worker) if self.store.unlock_key().is_some() => {
                // It died while it left its office.
                self.leave_office();
                Ok(Step::Waiting)
            }
            (false, Role::Manager | Role::Worker) => Ok(Step::Waiting),
        }
    }

    /// Opens the state that managers share, which says whether this node is one.
    async fn open_state(&self, office: &Office) -> anyhow::Result<Step> {
        let (store, signer) = (self.store.clone(), payload_signer(&self.credentials));
        let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            Ok(ClusterState::open(store.cluster_rows()?, signer)?)
        });
        let state = opened.await?.context("the cluster's state cannot be had")?;
        let identity = self.credentials.identity();
        let id = identity.node();
        if state.node(id).is_none_or(|node| node.role == Role::Worker) {
            self.leave_office();
            return Ok(Step::Waiting);
        }
        let demoted = state.demoted().get(&id).is_some_and(|until| identity.issued_at() <= *until);
        if identity.role() == Role::Worker || demoted {
            office.recertify.notify_one();
            return Ok(Step::Waiting);
        }
        let (credentials, events) = (Arc::clone(&self.credentials), self.events.clone());
        let own = (state, self.store.clone());
        let manager = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let (state, store) = &own;
            if let Some(known) = store.high_water()? {
                let removals = store.removals()?.and_then(|signed| signed.claim().ok());
                state.recall(known, removals)?;
            }
            Ok(Manager::new(own, credentials, events)?)
        });
        Ok(Step::Taken(manager.await??))
    }

    /// Forgets what only a manager has, and believes others as every node does.
    fn leave_office(&self) {
        // What is left is what every worker has, and workers lock nothing.
        let unlocked = || self.store.unlock_key().map_or(Ok(()), |_| self.store.set_unlock_key(None));
        if let Err(error) = self.store.forget_shared_store().and_then(|()| unlocked()) {
            tracing::error!(%error, "what opens the cluster's store was not forgotten, or the state is locked still");
        }
        self.credentials.change_trust(crate::control::trust::Trust::with_unknown);
        removals::refuse(&self.credentials, &self.dataplane.removed().borrow());
    }
}

/// Keeps what opens the cluster's state: locked, before it is there, if it is so where it comes from.
fn keep_access(store: &Store, access: &StoreAccess) -> Result<(), StoreError> {
    if let Some(key) = access.unlock_key.as_ref().filter(|_| store.unlock_key().is_none()) {
        store.set_unlock_key(Some(key))?;
    }
    store.put_shared_store(&access.shared)
}

/// How far a node is on its way to the office.
enum Step {
    Taken(Arc<Manager>),
    Done,
    Waiting,
}

/// Serves as `manager` until one of its tasks ends, which cannot be gone on without.
async fn serve(
    manager: &Arc<Manager>,
    Callers { calls, machines }: Callers,
    events: &Events,
) -> anyhow::Error {
    let mut tasks = JoinSet::new();
    tasks.spawn(named("the list of members", Arc::clone(manager).keep_trust()));
    tasks.spawn(named("forgetting removed nodes", Arc::clone(manager).forget_removed()));
    tasks.spawn(named("the replacement of the root", Arc::clone(manager).keep_rotation()));
    tasks.spawn(named("the join tokens", Arc::clone(manager).settle_tokens()));
    tasks.spawn(named("what nodes are told", Arc::clone(manager).keep_telling()));
    tasks.spawn(named("the end of the sessions", Arc::clone(manager).keep_ending()));
    tasks.spawn(named("the way to the store", Arc::clone(manager).keep_store()));
    tasks.spawn(named("the high-water mark", Arc::clone(manager).keep_high_water()));
    let service = Arc::new(Arc::clone(manager));
    let enrolment = enrol::serve(Arc::clone(&service), machines, events.clone(), manager.joins());
    tasks.spawn(named("enrolment", enrolment));
    let calls = rpc::serve(service, calls, events.clone());
    tasks.spawn(async {
        match calls.await {
            Ok(()) => anyhow::anyhow!("the manager API ended"),
            Err(error) => anyhow::Error::from(error).context("the manager API failed"),
        }
    });
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(error)) => anyhow::Error::from(error).context("a task of the manager died"),
        None => anyhow::anyhow!("a manager has tasks"),
    }
}

/// The task with its name, for the case that it ends.
async fn named(name: &'static str, task: impl Future<Output = ()>) -> anyhow::Error {
    task.await;
    anyhow::anyhow!("{name} ended")
}

/// Signs this node's certificates: the manager in this process, or any other.
pub(crate) struct AnySigner {
    pub(crate) office: Arc<Office>,
    pub(crate) client: ManagerClient,
}

impl Signer for AnySigner {
    async fn sign(&self, csr: String) -> Result<Renewed, ManagerError> {
        match self.office.manager() {
            Some(manager) => manager.sign(csr).await,
            None => self.client.sign(csr).await,
        }
    }
}

/// How long whoever makes a cluster waits for its manager.
const SOON: Duration = Duration::from_secs(15);
/// How often a node looks whether it is a manager, beside every change of its view.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
