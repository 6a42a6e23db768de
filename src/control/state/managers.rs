//! Which nodes are managers, and which were: a node that is made a worker may hold a certificate that says
//! otherwise for as long as it lives, so every node is told not to believe it.
//!
//! That is told in the list of removed nodes, with the version of the change: what a manager's certificate of no
//! later version signs or serves is refused (`membership::signed`, `control::trust`). What is in force is signed
//! anew in the same transaction, which is why another manager has to make it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::{Change, Model};
use super::{ClusterState, StateError};
use crate::cluster::{Node, Role};
use crate::control::store::Table;
use crate::id::{HostName, NodeId, Version};

/// The manager that makes the changes, and the version at which its certificate was issued.
pub(super) struct Office {
    node: NodeId,
    issued_at: Box<dyn Fn() -> Version + Send + Sync>,
}

/// A manager that was made a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Demoted {
    /// The version with which that came; certificates of later ones are believed.
    pub(super) at: Version,
    /// The end of its last certificate as a manager, in seconds since 1970.
    pub(super) expiry: u64,
}

impl ClusterState {
    /// Makes a node a manager; one that is already stays as it is.
    ///
    /// # Errors
    /// There is no such node, or the disk refuses.
    pub fn promote(&self, name: &HostName) -> Result<Node, StateError> {
        self.change(|model| {
            let node = Node { role: Role::Manager, ..model.find_node(name)?.clone() };
            let is_so = model.nodes.get(&node.id) == Some(&node);
            Ok((node.clone(), if is_so { Vec::new() } else { vec![Change::PutNode(node)] }))
        })
    }

    /// Makes a manager a worker; one that is already stays as it is. Nobody believes what it signed or signs as a
    /// manager from then on; everything that is in force is signed anew with the same change. Until its
    /// certificates as a manager expire (`certificate_expiry`, seconds since 1970) every node is told.
    ///
    /// # Errors
    /// There is no such node, it is the only manager, something cannot be signed, or the disk refuses.
    pub fn demote(&self, name: &HostName, certificate_expiry: u64) -> Result<Node, StateError> {
        self.change(|model| {
            let node = model.find_node(name)?.clone();
            if node.role == Role::Worker {
                return Ok((node, Vec::new()));
            }
            if model.managers().count() == 1 {
                return Err(StateError::LastManager { node: node.id, name: node.name });
            }
            let node = Node { role: Role::Worker, ..node };
            let at = Version::new(model.counters.version.get() + 1);
            let row = Demoted { at, expiry: certificate_expiry };
            let mut demoted = model.demoted.clone();
            demoted.insert(node.id, row);
            let mut changes = vec![Change::PutNode(node.clone())];
            self.add_memberships_again(model, &mut changes)?;
            changes.push(Change::PutDemoted(node.id, row));
            changes.push(self.removals(model, &model.removed, &demoted)?);
            Ok((node, changes))
        })
    }

    /// Makes changes as a manager from now on: none once that is none any more, since others would not believe
    /// what it signs.
    pub fn serve_as(&self, node: NodeId, issued_at: impl Fn() -> Version + Send + Sync + 'static) {
        // Set once: a state has one manager here.
        let _ = self.inner.office.set(Office { node, issued_at: Box::new(issued_at) });
    }

    /// Whether the manager here is one, by the certificate that it has.
    pub fn is_in_office(&self) -> bool {
        self.require_office(&self.model()).is_ok()
    }

    pub(super) fn require_office(&self, model: &Model) -> Result<(), StateError> {
        let Some(Office { node, issued_at }) = self.inner.office.get() else { return Ok(()) };
        let is_manager = model.nodes.get(node).is_some_and(|node| node.role == Role::Manager);
        let is_stale = model.demoted.get(node).is_some_and(|demoted| issued_at() <= demoted.at);
        if is_manager && !is_stale { Ok(()) } else { Err(StateError::Dismissed { node: *node }) }
    }

    /// The managers.
    pub fn managers(&self) -> Vec<Node> {
        self.model().managers().cloned().collect()
    }

    /// The nodes that are managers no more by any certificate that was issued until then.
    pub fn demoted(&self) -> BTreeMap<NodeId, Version> {
        self.model().demoted.iter().map(|(id, row)| (*id, row.at)).collect()
    }
}

/// Adds the changes that forget those whose certificates have expired; those that are left.
pub(super) fn forget_expired(
    model: &Model,
    now: u64,
    changes: &mut Vec<Change>,
) -> BTreeMap<NodeId, Demoted> {
    let mut left = model.demoted.clone();
    left.retain(|_, row| row.expiry >= now);
    let expired = model.demoted.keys().filter(|id| !left.contains_key(id));
    changes.extend(expired.map(|id| Change::ForgetDemoted(*id)));
    left
}

pub(super) const DEMOTED: Table<Demoted> = Table::new("demoted_managers");
