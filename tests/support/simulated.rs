//! Nodes as a manager sees them: they join, have a certificate and call the manager API, without an agent.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use overlayd::cluster::Node;
use overlayd::control::enrol::{EnrolError, EnrolRefusal, Enrolled, Joining, enrol};
use overlayd::control::identity::NodeIdentity;
use overlayd::control::rpc::ManagerClient;
use overlayd::control::tls::Credentials;
use overlayd::control::trust::Trust;
use overlayd::io::clock::wall_clock;
use overlayd::membership::JoinToken;

/// A node that has joined.
pub(crate) struct SimulatedNode {
    pub(crate) node: Node,
    pub(crate) client: ManagerClient,
    pub(crate) credentials: Arc<Credentials>,
}

impl SimulatedNode {
    /// Joins as `overlayd join` does: it waits where the manager says so.
    pub(crate) async fn join(manager: SocketAddr, token: &JoinToken, number: usize) -> Self {
        let name = format!("node-{number}");
        loop {
            let wait = match Self::try_join(manager, token, number, &name).await {
                Ok(node) => return node,
                Err(EnrolError::Refused(EnrolRefusal::Busy { retry_seconds })) => {
                    Duration::from_secs(retry_seconds)
                }
                // So many handshakes at once are more than one address may have.
                Err(EnrolError::Connect(_)) => Duration::from_millis(500),
                Err(error) => panic!("{error}"),
            };
            tokio::time::sleep(wait.mul_f64(rand::random_range(1.0..1.5))).await;
        }
    }

    /// Tries once, by a name.
    pub(crate) async fn try_join(
        manager: SocketAddr,
        token: &JoinToken,
        number: usize,
        name: &str,
    ) -> Result<Self, EnrolError> {
        let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
        let machine = Joining {
            host: name.parse().unwrap(),
            advertise: Some(IpAddr::from([198, 18, high, low])),
            advertise_port: 2377,
            data: None,
            underlay_mtu: 1500,
            taken: None,
        };
        let (identity, enrolled) = enrol(manager, token, machine.clone(), wall_clock).await?;
        Ok(Self::enrolled(&machine, identity, enrolled))
    }

    fn enrolled(machine: &Joining, identity: NodeIdentity, enrolled: Enrolled) -> Self {
        let trust = Trust::of(&identity).unwrap();
        let node = Node {
            id: identity.node(),
            name: machine.host.clone(),
            role: enrolled.role,
            advertise: enrolled.advertise,
            data: enrolled.data,
            underlay_mtu: machine.underlay_mtu,
        };
        let credentials = Credentials::new(identity, trust, wall_clock).unwrap();
        let client = ManagerClient::new(Arc::clone(&credentials), enrolled.managers);
        Self { node, client, credentials }
    }
}
