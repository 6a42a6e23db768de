//! A node that joins again after its certificate has expired, and stays the node that it was.

use super::Manager;
use crate::cluster::{Node, Role};
use crate::control::enrol::EnrolRefusal;
use crate::control::former::FormerCertificate;
use crate::control::trust::Refusal;
use crate::io::clock::wall_clock;

impl Manager {
    /// The node that a machine is already, by a certificate whose key it holds.
    pub(super) fn returning(&self, former: &FormerCertificate) -> Result<Node, EnrolRefusal> {
        let name = former.verify(self.credentials.trust(), wall_clock()).map_err(not_back)?;
        let node = self.state.node(name.node).ok_or(Refusal::UnknownNode { node: name.node });
        let node = node.map_err(not_back)?;
        if node.role != Role::Worker || name.role != Role::Worker {
            return Err(EnrolRefusal::Invalid(format!(
                "node {} is a manager, which signs its own certificate: restart its agent",
                node.id
            )));
        }
        Ok(node)
    }
}

fn not_back(refusal: Refusal) -> EnrolRefusal {
    EnrolRefusal::Invalid(format!(
        "this machine cannot come back as the node that it was: {refusal}; take it out with overlayd leave \
         --force, and join it as a new node"
    ))
}
