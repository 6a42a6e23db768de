//! Which manager an agent connects to: the one that last worked, and when it is of no use any more, the next.
//!
//! Managers that do not answer cost little: after a second another is tried beside them, and the first that
//! answers is taken.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rand::RngExt;

use super::client::NoManager;
use crate::cluster::Role;
use crate::control::attempts;
use crate::control::tls::peer::{ConnectError, PeerStream};
use crate::control::tls::{Credentials, Protocol};
use crate::control::trust::Expected;

/// Connects to the managers of the cluster.
#[derive(Debug)]
pub(super) struct Dialer {
    credentials: Arc<Credentials>,
    pub(super) addresses: ArcSwap<Vec<SocketAddr>>,
    /// Which to begin with.
    preferred: ArcSwapOption<SocketAddr>,
}

impl Dialer {
    /// A node begins with any, so that not all have their sessions with one; a manager with the first.
    pub(super) fn new(credentials: Arc<Credentials>, addresses: Vec<SocketAddr>) -> Self {
        let first = match credentials.identity().role() {
            Role::Worker if !addresses.is_empty() => rand::rng().random_range(0..addresses.len()),
            Role::Worker | Role::Manager => 0,
        };
        let preferred = ArcSwapOption::from_pointee(addresses.get(first).copied());
        Self { credentials, addresses: ArcSwap::from_pointee(addresses), preferred }
    }

    /// Begins with this manager from now on.
    pub(super) fn prefer(&self, address: SocketAddr) {
        self.preferred.store(Some(Arc::new(address)));
    }

    /// The manager that it begins with.
    pub(super) fn preferred(&self) -> Option<SocketAddr> {
        self.order().first().copied()
    }

    /// Begins with the manager after the present one, if there is another.
    pub(super) fn move_on(&self) {
        if let Some(next) = self.order().get(1) {
            self.prefer(*next);
        }
    }

    /// A connection to the first manager that answers.
    pub(super) async fn dial(&self) -> Result<PeerStream, NoManager> {
        let attempts = self.order().into_iter().map(|address| self.connect(address));
        attempts::first(attempts, PATIENCE).await.map_err(NoManager)
    }

    async fn connect(&self, address: SocketAddr) -> Result<PeerStream, ConnectError> {
        let stream =
            PeerStream::connect(&self.credentials, Protocol::Manager, address, Expected::Manager).await?;
        stream.expect_sound(SILENCE);
        self.prefer(address);
        Ok(stream)
    }

    /// The managers in the order in which they are tried.
    fn order(&self) -> Vec<SocketAddr> {
        let mut order = self.addresses.load().to_vec();
        let preferred = self.preferred.load();
        let first = preferred.as_deref().and_then(|preferred| order.iter().position(|one| one == preferred));
        order.rotate_left(first.unwrap_or(0));
        order
    }
}

/// Before another manager is tried beside those that have not answered.
const PATIENCE: Duration = Duration::from_secs(1);
/// A host that is silent for so long, its kernel too, is taken to be gone: agents are to be with another manager
/// within five seconds, and etcd, of which a member may have gone with it, elects a leader meanwhile.
const SILENCE: Duration = Duration::from_secs(2);
