//! A state that comes from a backup: made later than all that nodes may have heard since.

use std::net::SocketAddr;

use super::managers::Demoted;
use super::model::{COUNTERS, Change, NODES, ONLY};
use super::{ClusterState, SignPayload, StateError, subnets};
use crate::cluster::{Node, Role};
use crate::control::store::{Backup, BackupError, Batch, Revision, Store};
use crate::id::{Epoch, HostName, NodeId, Version};

/// Where the manager is that a state was restored for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// The manager.
    pub node: NodeId,
    /// The name of its machine.
    pub name: HostName,
    /// Where its TLS port is reached.
    pub advertise: SocketAddr,
    /// Where its encrypted data is reached.
    pub data: SocketAddr,
    /// MTU of the interface that holds the data address, in bytes.
    pub underlay_mtu: u32,
}

impl ClusterState {
    /// Raises the version, and the epoch of every membership and of the list of removed nodes, beyond
    /// what changes can have brought them to that this state does not know of: nodes keep the newest
    /// that they have heard. The manager is `here` from now on, and the only one: others that there were shared a
    /// store that this state is not in, and nobody is to believe what they do with that.
    ///
    /// # Errors
    /// When there is no state, the manager is no member or its address lies in a network's subnet,
    /// something cannot be signed, or the disk refuses; then nothing is changed.
    pub fn overtake(store: Store, sign: Box<SignPayload>, here: Whereabouts) -> Result<(), StateError> {
        let state = Self::open(store, sign)?;
        let model = state.model();
        let mut counters = model.counters;
        counters.version = Version::new(raised(counters.version.get()));
        let Whereabouts { node, name, advertise, data, underlay_mtu } = here;
        let manager = Node { name, advertise, data, underlay_mtu, ..model.member(node)?.clone() };
        subnets::check_node(&model, &manager)?;
        // Nodes may know of removals though this state knows of none.
        let removals = model.removals.as_ref().map_or(0, |row| row.epoch.get());
        let row = Demoted { at: counters.version };
        let others: Vec<Node> = model.managers().filter(|other| other.id != node).cloned().collect();
        let mut demoted = model.demoted.clone();
        demoted.extend(others.iter().map(|other| (other.id, row)));
        let removals = state.removals_of(Epoch::new(raised(removals)), &model.removed, &demoted)?;
        let mut changes = vec![Change::PutNode(manager), removals];
        for other in others {
            changes.push(Change::PutDemoted(other.id, row));
            changes.push(Change::PutNode(Node { role: Role::Worker, ..other }));
        }
        for network in model.networks.values() {
            let mut membership = network.next_membership(network.members.keys().copied().collect());
            membership.epoch = Epoch::new(raised(membership.epoch.get()));
            changes.push(state.membership_of(network, &membership)?);
        }
        drop(model);
        let mut batch = Batch::default();
        changes.iter().try_for_each(|change| change.write(&mut batch))?;
        batch.put(&COUNTERS, ONLY, &counters)?;
        state.rows().commit(Revision::NOTHING, &batch, None)?;
        Ok(())
    }

    /// The nodes of the cluster that a backup is of.
    ///
    /// # Errors
    /// When it was not made of such a state.
    pub fn nodes_of(backup: &Backup) -> Result<Vec<Node>, BackupError> {
        backup.table(&NODES)
    }

    /// Whether this state was restored elsewhere since, by the epoch of a list of removed nodes that is
    /// signed and newer than the one here.
    pub fn is_overtaken_by(&self, removals: Epoch) -> bool {
        let own = self.model().removals.as_ref().map_or(0, |row| row.epoch.get());
        is_overtaken(own, removals.get())
    }
}

/// Whether `newer` comes from a state that was restored from a backup, and `own` from what it was restored over.
pub(crate) const fn is_overtaken(own: u64, newer: u64) -> bool {
    newer.saturating_sub(own) >= LEAP / 2
}

fn raised(number: u64) -> u64 {
    number.saturating_add(LEAP)
}

/// More changes than a cluster makes between two backups, and few enough for as many restores.
const LEAP: u64 = 1 << 32;
