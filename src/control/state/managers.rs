//! Which nodes are managers, and which were: a node that is made a worker may hold a certificate that says
//! otherwise for as long as it lives, so every node is told not to believe it.
//!
//! That is told in the list of removed nodes, with the version of the change: what a manager's certificate of no
//! later version signs or serves is refused (`membership::signed`, `control::trust`). What is in force is signed
//! anew in the same transaction, which is why another manager has to make it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::model::{Change, Model};
use super::{ClusterState, NO_PANIC, StateError};
use crate::cluster::{Node, Role};
use crate::control::store::Table;
use crate::id::{HostName, NodeId, Version};

/// The manager that makes the changes, and the version at which its certificate was issued.
pub(super) struct Office {
    node: NodeId,
    issued_at: Box<dyn Fn() -> Version + Send + Sync>,
}

/// A manager that was made a worker, or was removed. It is never forgotten: what a manager signed is believed for
/// longer than its certificate lives, or a cluster whose managers are down would forget its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Demoted {
    /// The version with which that came; certificates of later ones are believed.
    pub(super) at: Version,
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
    /// manager from then on; everything that is in force is signed anew with the same change.
    ///
    /// # Errors
    /// There is no such node, it is the only manager, something cannot be signed, or the disk refuses.
    pub fn demote(&self, name: &HostName) -> Result<Node, StateError> {
        self.change(|model| {
            let node = model.find_node(name)?.clone();
            if node.role == Role::Worker {
                return Ok((node, Vec::new()));
            }
            if model.managers().count() == 1 {
                return Err(StateError::LastManager { node: node.id, name: node.name });
            }
            let node = Node { role: Role::Worker, ..node };
            let mut changes = vec![Change::PutNode(node.clone())];
            let demoted = self.disbelieve(model, node.id, &mut changes)?;
            changes.push(self.removals(model, &model.removed, &demoted)?);
            Ok((node, changes))
        })
    }

    /// Adds the changes after which nobody believes what a manager has signed; those who are managers no more then.
    pub(super) fn disbelieve(
        &self,
        model: &Model,
        manager: NodeId,
        changes: &mut Vec<Change>,
    ) -> Result<BTreeMap<NodeId, Demoted>, StateError> {
        let row = Demoted { at: Version::new(model.counters.version.get() + 1) };
        let mut demoted = model.demoted.clone();
        demoted.insert(manager, row);
        self.add_memberships_again(model, changes)?;
        changes.push(Change::PutDemoted(manager, row));
        Ok(demoted)
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

    /// Changes nothing from now on, whoever still asks: this node has left the cluster, and what lies where its state
    /// was may be another's. Returns once no change is under way.
    pub fn retire(&self) {
        let _changing = self.inner.changing.lock().expect(NO_PANIC);
        self.inner.retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn require_office(&self, model: &Model) -> Result<(), StateError> {
        if self.inner.retired.load(Ordering::Relaxed) {
            return Err(StateError::Retired);
        }
        let Some(Office { node, issued_at }) = self.inner.office.get() else { return Ok(()) };
        let is_manager = model.nodes.get(node).is_some_and(|node| node.role == Role::Manager);
        let is_stale = model.demoted.get(node).is_some_and(|demoted| issued_at() <= demoted.at);
        if is_manager && !is_stale { Ok(()) } else { Err(StateError::Dismissed { node: *node }) }
    }

    /// What a node is, and the version of the state that says so.
    ///
    /// # Errors
    /// It is no member.
    pub fn role_at(&self, node: NodeId) -> Result<(Role, Version), StateError> {
        let model = self.model();
        Ok((model.member(node)?.role, model.counters.version))
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

pub(super) const DEMOTED: Table<Demoted> = Table::new("demoted_managers");
