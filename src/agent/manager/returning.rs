//! A node that joins again after its certificate has expired, and stays the node that it was.

use super::Manager;
use crate::cluster::{Node, Role};
use crate::control::enrol::EnrolRefusal;
use crate::control::former::FormerCertificate;
use crate::control::trust::Refusal;
use crate::io::clock::wall_clock;

impl Manager {
    /// The node that a machine is already, by a certificate whose key it holds. It gets that of a worker: one
    /// that was made a manager while it was off is that with the next.
    pub(super) fn returning(&self, former: &FormerCertificate) -> Result<Node, EnrolRefusal> {
        let name = former.verify(self.credentials.trust(), wall_clock()).map_err(not_back)?;
        let node = self.state.node(name.node).ok_or(Refusal::UnknownNode { node: name.node });
        let node = node.map_err(not_back)?;
        if node.role == Role::Manager && name.role == Role::Manager {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{manager, node};
    use super::super::tokens::tests::serve;
    use super::*;
    use crate::agent::authority::StoredAuthority;
    use crate::control::enrol::{self, EnrolError, Joining};
    use crate::control::identity::{NodeIdentity, NodeKey};
    use crate::id::NodeId;

    #[tokio::test]
    async fn manager_that_was_made_a_worker_while_it_was_off_comes_back_as_that() {
        let (manager, _dir) = manager();
        let address = serve(&manager).await;
        let known = node(NodeId::from_entropy([9; 16]), Role::Manager, 2);
        manager.state.add_node(known.clone()).expect("added");
        manager.renew_trust();
        let former = expired(&manager, &known);
        let token = manager.token(Role::Worker);
        let again = || async {
            let machine = Joining {
                host: known.name.clone(),
                advertise: Some(known.advertise.ip()),
                advertise_port: known.advertise.port(),
                data: None,
                underlay_mtu: 1500,
                taken: None,
            };
            enrol::enrol_again(address, &token, machine, &former, wall_clock).await
        };
        let refused = again().await.expect_err("it signs for itself");
        assert!(refused.to_string().contains("restart its agent"), "{refused}");
        manager.state.demote(&known.name).expect("demoted");
        let (identity, enrolled) = again().await.expect("back");
        assert_eq!((identity.node(), identity.role(), enrolled.role), (known.id, Role::Worker, Role::Worker));
        assert_eq!(manager.state.node(known.id).map(|node| node.role), Some(Role::Worker));
        let stranger = expired(&manager, &node(NodeId::from_entropy([8; 16]), Role::Worker, 3));
        let machine = Joining {
            host: known.name.clone(),
            advertise: None,
            advertise_port: 1,
            data: None,
            underlay_mtu: 1500,
            taken: None,
        };
        let refused = enrol::enrol_again(address, &token, machine, &stranger, wall_clock).await;
        assert!(matches!(refused, Err(EnrolError::Refused(EnrolRefusal::Invalid(_)))), "{refused:?}");
    }

    /// The identity of a node whose certificate has ended.
    fn expired(manager: &Manager, node: &Node) -> NodeIdentity {
        let authority = StoredAuthority::open(&manager.state).expect("an authority");
        let key = NodeKey::generate().expect("a key");
        let (csr, then) = (key.request_pem().expect("a request"), wall_clock() - time::Duration::DAY);
        let leaf =
            authority.issue(&csr, node.id, node.role, then, time::Duration::HOUR).expect("a certificate");
        NodeIdentity::new(vec![leaf], &key, authority.root().clone()).expect("an identity")
    }
}
