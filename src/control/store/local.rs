//! What a node keeps for itself: who it is, where it is reached, what is attached to it, and the
//! last view of the cluster that a manager gave it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::file::Keep;
use super::{Store, StoreError, Table, shared};
use crate::cluster::{CniAttachment, Endpoint, View};
use crate::id::{EndpointId, HostName, IfName, MacAddr, NetworkId, NetworkName, NodeId, RuntimeName};
use crate::membership::{SignedMembership, SignedRemovals};
use crate::negotiate::Whereabouts;
use crate::rate::RateLimits;

/// Where a node is reached and whom it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSettings {
    /// Where its TLS port listens.
    pub listen: SocketAddr,
    /// Where others reach its TLS port.
    pub advertise: SocketAddr,
    /// Where others reach its encrypted data (UDP).
    pub data: SocketAddr,
    /// The managers that it knows of.
    pub managers: Vec<SocketAddr>,
    /// The interface that held the data address when the agent last looked.
    #[serde(default)]
    pub interface: Option<IfName>,
    /// Whether this host was seen to hold the address that is advertised: otherwise it may be one that a router
    /// translates.
    #[serde(default)]
    pub advertised_here: bool,
}

/// A network namespace, and what proves that a path still leads to the same one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsRef {
    /// Where it was found, like `/run/netns/web`.
    pub path: PathBuf,
    /// Device of its inode.
    pub dev: u64,
    /// Its inode.
    pub inode: u64,
}

/// How far an attachment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentState {
    /// Written before the manager is asked: what exists of it is to be finished or taken back.
    Pending,
    /// The cluster has its endpoint, and its container has it not, or not yet, for all that is known: Docker takes
    /// addresses before there is a container, and moves the interface into it and back itself.
    Held,
    /// The interface is in its namespace and ready.
    Ready,
}

/// What an attachment is to Docker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DockerEndpoint {
    /// Docker's id for the endpoint, once it has one; before, there are but addresses.
    pub id: Option<RuntimeName>,
    /// Where the namespace of the container is, or is going to be, while Docker has the interface in it.
    pub sandbox: Option<PathBuf>,
}

/// A container's interface as its node knows it; asked for, and given once the manager has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The endpoint's id, minted by this node.
    pub id: EndpointId,
    /// The network.
    pub network: NetworkName,
    /// The container's network namespace.
    pub netns: NetnsRef,
    /// The name of the interface in it.
    pub ifname: IfName,
    /// The operator's name for the endpoint.
    pub name: Option<HostName>,
    /// What it is to the runtime that had it attached, if one had.
    #[serde(default)]
    pub cni: Option<CniAttachment>,
    /// What it is to Docker, if it is for a container of Docker's.
    #[serde(default)]
    pub docker: Option<DockerEndpoint>,
    /// Addresses asked for.
    pub ips: Vec<IpAddr>,
    /// MAC address asked for.
    pub mac: Option<MacAddr>,
    /// What it may send and receive; nothing limits what was attached before there were limits.
    #[serde(default)]
    pub rates: RateLimits,
    /// How far it has come.
    pub state: AttachmentState,
    /// What the manager gave.
    pub endpoint: Option<Endpoint>,
    /// MTU of the interface, in bytes, once chosen.
    pub mtu: Option<u16>,
}

/// What peers have told and the last view has not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hearsay {
    /// Memberships of networks.
    pub memberships: BTreeMap<NetworkId, SignedMembership>,
    /// Where nodes are.
    pub moved: BTreeMap<NodeId, Moved>,
}

/// Where a node says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// There.
    pub at: Whereabouts,
    /// Where the view had it then. As soon as it has it elsewhere, the view is newer.
    pub viewed: Whereabouts,
}

impl Store {
    /// Keeps the node's identity: its certificate, key and trust roots, opaque to the store.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_identity<T: Serialize>(&self, identity: &T) -> Result<(), StoreError> {
        let json = serde_json::to_value(identity).map_err(|source| StoreError::Unwritable {
            table: NODE_TABLE,
            key: IDENTITY.to_owned(),
            source,
        })?;
        self.write(|w| w.put(&Table::new(NODE_TABLE), IDENTITY, &json))
    }

    /// The node's identity, once it is a member of a cluster.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn identity<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        self.read(|r| r.get(&Table::new(NODE_TABLE), IDENTITY))
    }

    /// Keeps the node's settings.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_settings(&self, settings: &NodeSettings) -> Result<(), StoreError> {
        self.write(|w| w.put(&Table::new(NODE_TABLE), SETTINGS, settings))
    }

    /// The node's settings.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn settings(&self) -> Result<Option<NodeSettings>, StoreError> {
        self.read(|r| r.get(&Table::new(NODE_TABLE), SETTINGS))
    }

    /// Keeps identity and settings in one step, as a join gives them.
    ///
    /// # Errors
    /// When they cannot be written; then neither is.
    pub fn put_enrolment<T: Serialize>(
        &self,
        identity: &T,
        settings: &NodeSettings,
    ) -> Result<(), StoreError> {
        self.write(|w| {
            w.put(&Table::<&T>::new(NODE_TABLE), IDENTITY, &identity)?;
            w.put(&Table::new(NODE_TABLE), SETTINGS, settings)
        })
    }

    /// Forgets the cluster, all attachments and, on a manager, the cluster's state and its unlock key.
    ///
    /// # Errors
    /// When it cannot be written; then nothing is forgotten.
    pub fn leave_cluster(&self) -> Result<(), StoreError> {
        if self.unlock_key().is_some() {
            return self.seal_anew(None, Keep::Nothing);
        }
        self.write(|w| w.clear())
    }

    /// Keeps the last view that a manager gave, for the time until the next one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_view(&self, view: &View) -> Result<(), StoreError> {
        self.write(|w| w.put(&Table::new(NODE_TABLE), VIEW, view))
    }

    /// The last view that a manager gave.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn view(&self) -> Result<Option<View>, StoreError> {
        self.read(|r| r.get(&Table::new(NODE_TABLE), VIEW))
    }

    /// Keeps what peers told before a manager did, in place of what they told before, and with it a new view, if there is
    /// one. What that has is not among it any more, so one is not kept without the other.
    ///
    /// # Errors
    /// When it cannot be written; then neither is.
    pub fn put_outlook(&self, view: Option<&View>, hearsay: &Hearsay) -> Result<(), StoreError> {
        self.write(|w| {
            if let Some(view) = view {
                w.put(&Table::new(NODE_TABLE), VIEW, view)?;
            }
            w.put(&Table::new(NODE_TABLE), MEMBERSHIPS, &hearsay.memberships)?;
            w.put(&Table::new(NODE_TABLE), MOVED, &hearsay.moved)
        })
    }

    /// What peers told before a manager did.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn hearsay(&self) -> Result<Hearsay, StoreError> {
        self.read(|r| {
            let memberships = r.get(&Table::new(NODE_TABLE), MEMBERSHIPS)?.unwrap_or_default();
            let moved = r.get(&Table::new(NODE_TABLE), MOVED)?.unwrap_or_default();
            Ok(Hearsay { memberships, moved })
        })
    }

    /// Keeps the newest list of removed nodes, which peers may tell before a manager does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_removals(&self, removals: &SignedRemovals) -> Result<(), StoreError> {
        self.write(|w| w.put(&Table::new(NODE_TABLE), REMOVALS, removals))
    }

    /// The newest list of removed nodes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn removals(&self) -> Result<Option<SignedRemovals>, StoreError> {
        self.read(|r| r.get(&Table::new(NODE_TABLE), REMOVALS))
    }

    /// Keeps an attachment, replacing the one of the same id.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_attachment(&self, attachment: &Attachment) -> Result<(), StoreError> {
        self.write(|w| w.put(&ATTACHMENTS, attachment.id.as_str(), attachment))
    }

    /// Forgets an attachment, if there is one of that id.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remove_attachment(&self, id: EndpointId) -> Result<(), StoreError> {
        self.write(|w| w.remove(&ATTACHMENTS, id.as_str()))
    }

    /// The attachment of that id.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn attachment(&self, id: EndpointId) -> Result<Option<Attachment>, StoreError> {
        self.read(|r| r.get(&ATTACHMENTS, id.as_str()))
    }

    /// All attachments, by id.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, StoreError> {
        Ok(self.read(|r| r.all(&ATTACHMENTS))?.into_iter().map(|(_, attachment)| attachment).collect())
    }

    /// Keeps which network is meant by one of Docker's, which it calls by an id of its own. One of the same name that is
    /// made later is another one, and may be without encryption.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_docker_network(&self, id: &RuntimeName, network: &NetworkId) -> Result<(), StoreError> {
        self.write(|w| w.put(&DOCKER_NETWORKS, id.as_str(), network))
    }

    /// Forgets a network of Docker's, if there is one of that id.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remove_docker_network(&self, id: &RuntimeName) -> Result<(), StoreError> {
        self.write(|w| w.remove(&DOCKER_NETWORKS, id.as_str()))
    }

    /// The network that is meant by one of Docker's.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn docker_network(&self, id: &RuntimeName) -> Result<Option<NetworkId>, StoreError> {
        self.read(|r| r.get(&DOCKER_NETWORKS, id.as_str()))
    }
}

const ATTACHMENTS: Table<Attachment> = Table::new("attachments");
const DOCKER_NETWORKS: Table<NetworkId> = Table::new("docker_networks");
/// Whether a row is of no use on another machine: what is attached to this one, what a manager tells
/// anew, and how this one enters a store that managers share.
pub(super) fn is_of_the_machine(table: &str, key: &str) -> bool {
    [ATTACHMENTS.name, DOCKER_NETWORKS.name].contains(&table)
        || (table == NODE_TABLE
            && [VIEW, MEMBERSHIPS, MOVED, REMOVALS, shared::KEPT, shared::MARK].contains(&key))
}

/// Whether a table is the node's own, and not the cluster's.
pub(super) fn is_of_the_node(table: &str) -> bool {
    [NODE_TABLE, ATTACHMENTS.name, DOCKER_NETWORKS.name].contains(&table)
}

/// Whether a row is of those that [`Store::put_enrolment`] writes.
pub(super) fn is_enrolment(table: &str, key: &str) -> bool {
    table == NODE_TABLE && [IDENTITY, SETTINGS].contains(&key)
}

pub(super) const NODE_TABLE: &str = "node";
pub(super) const IDENTITY: &str = "identity";
pub(super) const SETTINGS: &str = "settings";
const VIEW: &str = "view";
const MEMBERSHIPS: &str = "memberships";
const MOVED: &str = "moved";
const REMOVALS: &str = "removals";
