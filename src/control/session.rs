//! The agent's session with a manager: the view of the cluster, kept up to date for ever.
//!
//! The manager sends the full view and then differences; a broken session begins anew with a full
//! one. Meanwhile the last view stands: containers go on without a manager.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::watch;

use super::rpc::messages::SessionRequest;
use super::rpc::{ErrorKind, ManagerClient, ManagerError};
use super::state::is_overtaken;
use crate::cluster::View;

/// Keeps a session open for ever, publishing views and whether the manager is there.
///
/// `request` is asked for the agent's state at each new session, and another begins whenever `changes`
/// says that the state is another, or the client is pointed to a manager. Addresses of managers in a view
/// are used for later connections.
pub async fn keep<R, C>(
    client: ManagerClient,
    mut request: R,
    mut changes: watch::Receiver<C>,
    views: watch::Sender<Arc<View>>,
    status: watch::Sender<SessionStatus>,
) where
    R: FnMut() -> SessionRequest + Send,
    C: Send + Sync,
{
    let mut backoff = Backoff::default();
    loop {
        changes.mark_unchanged();
        let ended = tokio::select! {
            ended = follow(&client, request(), &views, &status, &mut backoff) => ended,
            Ok(()) = changes.changed() => continue,
            () = client.pointed() => continue,
        };
        client.move_on();
        // A manager that stays away is worth one line, not one for each attempt.
        let known = match &*status.borrow() {
            SessionStatus::Disconnected(before) | SessionStatus::Removed(before) => *before == ended,
            SessionStatus::Connecting | SessionStatus::Connected => false,
        };
        if !known {
            tracing::warn!(reason = %ended, "no session with a manager; trying again and again");
            let is_removed = ended.kind == ErrorKind::Removed;
            let now = if is_removed { SessionStatus::Removed } else { SessionStatus::Disconnected };
            status.send_replace(now(ended));
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            Ok(()) = changes.changed() => {}
            () = client.pointed() => {}
        }
    }
}

/// Whether there is a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionStatus {
    /// The first one has not begun yet.
    Connecting,
    /// The view is current.
    Connected,
    /// There is none, for this reason; the agent keeps trying.
    Disconnected(ManagerError),
    /// A manager says that this node was removed from the cluster.
    Removed(ManagerError),
}

/// Waiting times between attempts: doubling, with half of each drawn at random, so that a
/// restarted manager is not met by all nodes at once.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// From `shortest` to `longest`.
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { next: shortest, longest }
    }

    /// The time to wait before the next attempt.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::rng().random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.longest);
        wait
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }
}

/// One session, until it ends.
async fn follow(
    client: &ManagerClient,
    request: SessionRequest,
    views: &watch::Sender<Arc<View>>,
    status: &watch::Sender<SessionStatus>,
    backoff: &mut Backoff,
) -> ManagerError {
    let mut updates = match client.session(request).await {
        Ok(updates) => updates,
        Err(error) => return error,
    };
    loop {
        let update = match updates.message().await {
            Ok(Some(update)) => update,
            Ok(None) => return ManagerError::new(ErrorKind::Unavailable, "the manager ended the session"),
            Err(status) => return status.into(),
        };
        let full = update.outline.full;
        if full && is_overtaken(update.outline.version.get(), views.borrow().version.get()) {
            return ManagerError::new(ErrorKind::Unavailable, REPLACED);
        }
        let applied = update.apply(&views.borrow());
        let view = match applied {
            Ok(view) => view,
            Err(misfit) => return ManagerError::new(ErrorKind::Unavailable, misfit.to_string()),
        };
        let managers: Vec<SocketAddr> = view.managers.iter().map(|node| node.advertise).collect();
        if !managers.is_empty() && managers != client.addresses() {
            client.set_addresses(managers);
        }
        views.send_if_modified(|current| {
            let changed = **current != view;
            if changed {
                *current = Arc::new(view);
            }
            changed
        });
        if full {
            *backoff = Backoff::default();
            tracing::info!("session with a manager");
            status.send_replace(SessionStatus::Connected);
        }
    }
}

const REPLACED: &str =
    "a manager answers that was replaced by one restored from a backup: delete its state directory";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::{Network, NetworkView};
    use crate::control::rpc::messages::ViewUpdate;
    use crate::id::{NetworkId, NodeId, Version, Vni};
    use crate::membership::{Roots, SignedMembership, SignedRemovals};
    use proptest::prelude::*;
    use std::marker::PhantomData;

    fn network(id: u8, generation: u32) -> NetworkView {
        NetworkView {
            network: Network {
                id: NetworkId::from_entropy([id; 16]),
                name: format!("net-{id}").parse().expect("a name"),
                vni: Vni::new(generation + 1).expect("a VNI"),
                encrypted: true,
                subnets: Vec::new(),
                mtu: None,
                labels: BTreeMap::new(),
                node_labels: BTreeMap::new(),
            },
            membership: SignedMembership {
                payload: String::new(),
                certificate: String::new(),
                signature: String::new(),
                says: PhantomData,
            },
            endpoints: Vec::new(),
            nodes: Vec::new(),
        }
    }

    prop_compose! {
        fn any_view()(
            version in 0u64..1000,
            roots in 0u8..3,
            removed in proptest::collection::btree_set(0u8..9, 0..4),
            networks in proptest::collection::btree_map(0u8..9, 0u32..3, 0..6),
        ) -> View {
            View {
                version: Version::new(version),
                managers: Vec::new(),
                removals: removed.first().map(|n| SignedRemovals {
                    payload: n.to_string(),
                    certificate: String::new(),
                    signature: String::new(),
                    says: PhantomData,
                }),
                removed: removed.into_iter().map(|n| NodeId::from_entropy([n; 16])).collect(),
                roots: if roots == 0 { Roots::default() } else { Roots::sole([roots]) },
                networks: networks
                    .into_iter()
                    .map(|(id, generation)| (NetworkId::from_entropy([id; 16]), network(id, generation)))
                    .collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn full_update_makes_the_view_of_any_other(old in any_view(), new in any_view()) {
            prop_assert_eq!(ViewUpdate::full(&new).apply(&old), Ok(new));
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_longest() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.next()).collect();
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] < Duration::from_millis(100));
        assert!(waits[9] >= Duration::from_millis(2500) && waits[9] < Duration::from_secs(5));
    }
}
