//! Whether this node is a manager now: what it serves while it is, and how that begins and ends.
//!
//! It begins with the agent where the cluster's state lies here, and otherwise as soon as the certificate says
//! so and the state can be had. It ends when the state says that this node is a manager no more.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::manager::Manager;
use crate::control::enrol;
use crate::control::listener::{EnrolStream, ManagerDoors};
use crate::control::renewal::Signer;
use crate::control::rpc::messages::Renewed;
use crate::control::rpc::{self, ManagerClient, ManagerError};
use crate::control::tls::peer::PeerStream;
use crate::events::Events;

/// The seat of a manager, taken or empty.
pub(crate) struct Office {
    seat: watch::Sender<Option<Arc<Manager>>>,
    doors: watch::Sender<Option<ManagerDoors>>,
    /// The certificate is to be renewed, since it does not say what this node is.
    pub(crate) recertify: Arc<Notify>,
}

impl Office {
    /// An office that `manager` holds from the beginning, if there is one.
    pub(crate) fn new(manager: Option<Arc<Manager>>) -> Arc<Self> {
        Arc::new(Self {
            seat: watch::Sender::new(manager),
            doors: watch::Sender::new(None),
            recertify: Arc::default(),
        })
    }

    /// The manager that this node is, if it is one.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.seat.borrow().clone()
    }

    /// What the TLS port serves for managers.
    pub(crate) fn doors(&self) -> watch::Receiver<Option<ManagerDoors>> {
        self.doors.subscribe()
    }

    /// Serves for as long as this node is a manager.
    /// The doors of one that is a manager already are open when this returns.
    pub(crate) fn keep(
        self: Arc<Self>,
        events: Events,
        failed: mpsc::Sender<anyhow::Error>,
    ) -> impl Future<Output = ()> + Send {
        let held = self.manager().map(|manager| (manager, self.open()));
        async move {
            if let Some((manager, callers)) = held {
                let failure = serve(&manager, callers, &events).await;
                // The agent is ending already when nobody listens.
                let _ = failed.send(failure).await;
            }
            std::future::pending().await
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
