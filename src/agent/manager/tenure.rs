//! For how long this node is a manager: until the cluster's state says that it is none.

use std::net::SocketAddr;

use super::Manager;
use crate::cluster::Role;
use crate::control::rpc::{ErrorKind, ManagerError};

impl Manager {
    /// Resolves once this node is no manager any more.
    pub(in crate::agent) async fn dismissed(&self) {
        let mut versions = self.state.versions();
        loop {
            versions.borrow_and_update();
            if !self.is_in_office() {
                return;
            }
            if versions.changed().await.is_err() {
                // The state holds the sender, and this holds the state.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Refuses everybody once this node is no manager any more.
    pub(super) fn require_office(&self) -> Result<(), ManagerError> {
        if self.is_in_office() {
            return Ok(());
        }
        let managers: Vec<_> = self.addresses().iter().map(SocketAddr::to_string).collect();
        let why = format!("the node that was asked is no manager any more: ask {}", managers.join(" or "));
        Err(ManagerError::new(ErrorKind::Unavailable, why))
    }

    fn is_in_office(&self) -> bool {
        let this = self.credentials.identity().node();
        self.state.node(this).is_some_and(|node| node.role == Role::Manager)
    }
}
