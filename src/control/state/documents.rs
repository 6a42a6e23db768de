//! A view update as it travels: one JSON document for each network, whole or changed, and one that ends it.
//!
//! What there is to say of a network is the same for all its members, so a document is made once and shared
//! by their sessions.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::view_update::{NetworkChange, Outline, ViewUpdate};
use crate::cluster::NetworkView;

/// An update for one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents(Vec<Bytes>);

/// Puts the documents of an update together again.
#[derive(Debug, Default)]
pub struct Assembly {
    networks: Vec<NetworkView>,
    changes: Vec<NetworkChange>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Document<N, C, O> {
    Network(N),
    Change(C),
    /// The last one of an update.
    Outline(O),
}

type Shown<'a, N> = Document<&'a N, &'a NetworkChange, &'a Outline>;

impl Documents {
    /// What is to be said of networks, and of the rest.
    pub(super) fn new(mut networks: Vec<Bytes>, outline: &Outline) -> Self {
        networks.push(text(&Shown::<()>::Outline(outline)));
        Self(networks)
    }

    /// The documents, each JSON.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.0.iter()
    }

    /// The update that they are of.
    #[cfg(test)]
    pub(super) fn read(&self) -> Result<ViewUpdate, serde_json::Error> {
        let mut assembly = Assembly::default();
        for document in &self.0 {
            if let Some(update) = assembly.read(document)? {
                return Ok(update);
            }
        }
        Err(serde::de::Error::custom("an update does not end"))
    }
}

impl From<&ViewUpdate> for Documents {
    fn from(update: &ViewUpdate) -> Self {
        let networks = update.networks.iter().map(whole);
        Self::new(networks.chain(update.changes.iter().map(changed)).collect(), &update.outline)
    }
}

impl Assembly {
    /// Takes the next document; the update, once it is complete.
    ///
    /// # Errors
    /// It is no document of an update.
    pub fn read(&mut self, document: &[u8]) -> Result<Option<ViewUpdate>, serde_json::Error> {
        match serde_json::from_slice(document)? {
            Document::Network(network) => self.networks.push(network),
            Document::Change(change) => self.changes.push(change),
            Document::Outline(outline) => {
                let Self { networks, changes } = std::mem::take(self);
                return Ok(Some(ViewUpdate { outline, networks, changes }));
            }
        }
        Ok(None)
    }
}

/// The document of a network that is told whole, from anything that is written as a [`NetworkView`].
pub(super) fn whole(network: &impl Serialize) -> Bytes {
    text(&Shown::Network(network))
}

/// The document of what changed of a network.
pub(super) fn changed(change: &NetworkChange) -> Bytes {
    text(&Shown::<()>::Change(change))
}

fn text(document: &Shown<'_, impl Serialize>) -> Bytes {
    let text = serde_json::to_vec(document).expect("names and numbers are plain JSON");
    // It may be kept for long: without the room that a growing one has.
    text.into_boxed_slice().into()
}
