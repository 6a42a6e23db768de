//! Hearing of changed interfaces and addresses, for those who would otherwise ask again and again.

use std::sync::Arc;

use futures_util::{StreamExt, future};
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::NetlinkError;
use crate::io::netns::NetNs;

/// Says when an interface of a namespace, or an address of one, has come, gone or changed; not which and how. Changes that
/// nobody has waited for yet are one.
#[derive(Debug)]
pub struct LinkChanges {
    changed: Arc<Notify>,
    listening: JoinHandle<()>,
}

impl LinkChanges {
    /// Listens in the namespace of the calling thread; within a tokio runtime.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        Self::to(&GROUPS)
    }

    /// Listens in another namespace, to routes as well; within a tokio runtime. The namespace lives
    /// for as long as somebody listens there.
    ///
    /// # Errors
    /// When it cannot be entered, or no socket can be had.
    pub fn subscribe_within(namespace: &NetNs) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        namespace.run_in(|| {
            let _entered = runtime.enter();
            Self::to(&[&GROUPS[..], &ROUTES].concat())
        })?
    }

    fn to(groups: &[MulticastGroup]) -> Result<Self, NetlinkError> {
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(groups).map_err(|source| NetlinkError::Connect { source })?;
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        let listening = tokio::spawn(async move {
            // Messages that the kernel could not keep for us arrive as one that says so.
            let hear = async {
                while messages.next().await.is_some() {
                    told.notify_one()
                }
            };
            future::join(connection, hear).await;
        });
        Ok(Self { changed, listening })
    }

    /// Waits for a change.
    pub async fn next(&self) {
        self.changed.notified().await;
    }
}

impl Drop for LinkChanges {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
const ROUTES: [MulticastGroup; 2] = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
