//! Containers that are listened to: what changes of their interfaces, addresses and routes makes the
//! agent look.
//!
//! Listening keeps a container's namespace alive; whether its owner has gone is told by its path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Attachments, blocking, container};
use crate::control::store::local::Attachment;
use crate::id::EndpointId;
use crate::io::netlink::LinkChanges;

/// The containers that are listened to, and those that are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Watch {
    listening: Mutex<BTreeMap<EndpointId, Listener>>,
    disturbed: Arc<Disturbed>,
}

#[derive(Debug, Default)]
struct Disturbed {
    endpoints: Mutex<BTreeSet<EndpointId>>,
    told: Notify,
}

/// One that listens until it is dropped.
#[derive(Debug)]
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watch {
    /// Resolves once an endpoint is to be looked at.
    pub(super) async fn disturbed(&self) {
        self.disturbed.told.notified().await;
    }

    /// Has an endpoint be looked at soon.
    pub(super) fn disturb(&self, id: EndpointId) {
        self.disturbed.add(id);
    }

    /// Has an endpoint be looked at again, in its turn.
    pub(super) fn again(&self, id: EndpointId) {
        unpoisoned(&self.disturbed.endpoints).insert(id);
    }

    /// Those that are to be looked at; they are not any more.
    pub(super) fn take(&self) -> BTreeSet<EndpointId> {
        let mut taken = std::mem::take(&mut *unpoisoned(&self.disturbed.endpoints));
        // Where nobody listens, one has to look.
        let ended = |listener: &Listener| listener.0.is_finished();
        let listening = unpoisoned(&self.listening);
        taken.extend(listening.iter().filter(|(_, listener)| ended(listener)).map(|(id, _)| *id));
        taken
    }

    pub(super) fn forget(&self, id: EndpointId) {
        unpoisoned(&self.listening).remove(&id);
    }
}

impl Disturbed {
    fn add(&self, id: EndpointId) {
        unpoisoned(&self.endpoints).insert(id);
        self.told.notify_one();
    }
}

impl Attachments {
    /// Listens to a container from now on, and has it be looked at for what changed before.
    pub(super) async fn listen_to(&self, attachment: &Attachment) {
        let (id, netns) = (attachment.id, attachment.netns.clone());
        let subscribed = blocking(move || match container::open(&netns)? {
            Some(netns) => LinkChanges::subscribe_within(&netns).map(Some).map_err(container::failed),
            None => Ok(None),
        });
        let changes = subscribed.await.inspect_err(|error| {
            tracing::warn!(endpoint = %id, %error, "the container cannot be listened to; it is looked at every two seconds");
        });
        let disturbed = Arc::clone(&self.watch.disturbed);
        let listener = tokio::spawn(async move {
            let Ok(Some(changes)) = changes else { return };
            loop {
                changes.next().await;
                disturbed.add(id);
            }
        });
        unpoisoned(&self.watch.listening).insert(id, Listener(listener));
        self.watch.disturb(id);
    }
}

/// Sets and maps are whole between any two calls.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
