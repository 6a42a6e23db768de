//! Clusters that issue what a test asks for, at a clock that stands still.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use overlayd::cluster::{Node, Role};
use overlayd::control::ca::CertificateAuthority;
use overlayd::control::identity::{NodeIdentity, NodeKey};
use overlayd::control::tls::Credentials;
use overlayd::control::tls::peer::ConnectError;
use overlayd::control::trust::Trust;
use overlayd::id::{ClusterId, NodeId};
use overlayd::membership::{JoinToken, Roots, TokenSecret};
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use tokio::net::TcpListener;

pub(crate) struct Cluster {
    pub(crate) authority: Arc<CertificateAuthority>,
}

impl Cluster {
    /// Two clusters of the same number have the same id and different roots.
    pub(crate) fn new(number: u8) -> Self {
        let id = ClusterId::from_entropy([number; 16]);
        let since = noon() - time::Duration::days(30);
        Self { authority: Arc::new(CertificateAuthority::create(id, since).expect("an authority")) }
    }

    pub(crate) fn id(&self) -> ClusterId {
        self.authority.cluster()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::new(self.id(), Roots::sole(self.authority.root().to_vec())).expect("a trust")
    }

    pub(crate) fn token(&self, secret: [u8; 16]) -> JoinToken {
        JoinToken::new(self.authority.root(), TokenSecret::from_entropy(secret))
    }

    pub(crate) fn leaf(
        &self,
        key: &NodeKey,
        number: u8,
        role: Role,
        at: OffsetDateTime,
        lifetime: time::Duration,
    ) -> rustls::pki_types::CertificateDer<'static> {
        let csr = key.request_pem().expect("a request");
        self.authority.issue(&csr, node(number), role, at, lifetime).expect("a certificate")
    }

    pub(crate) fn issued(
        &self,
        number: u8,
        role: Role,
        at: OffsetDateTime,
        lifetime: time::Duration,
    ) -> NodeIdentity {
        let key = NodeKey::generate().expect("a key");
        let leaf = self.leaf(&key, number, role, at, lifetime);
        NodeIdentity::new(vec![leaf], &key, self.authority.root().clone()).expect("an identity")
    }

    pub(crate) fn identity(&self, number: u8, role: Role) -> NodeIdentity {
        self.issued(number, role, noon(), time::Duration::days(90))
    }

    pub(crate) fn credentials(&self, identity: NodeIdentity) -> Arc<Credentials> {
        Credentials::new(identity, self.trust(), noon).expect("credentials")
    }

    /// A node of this cluster that takes `other`'s nodes for its own, as an intruder would.
    pub(crate) fn believing(&self, other: &Self, identity: NodeIdentity) -> Arc<Credentials> {
        Credentials::new(identity, other.trust(), noon).expect("credentials")
    }

    pub(crate) fn worker(&self, number: u8) -> Arc<Credentials> {
        self.credentials(self.identity(number, Role::Worker))
    }

    pub(crate) fn manager(&self, number: u8) -> Arc<Credentials> {
        self.credentials(self.identity(number, Role::Manager))
    }
}

pub(crate) async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

pub(crate) fn node(number: u8) -> NodeId {
    NodeId::from_entropy([number; 16])
}

pub(crate) fn record(number: u8, role: Role, at: SocketAddr) -> Node {
    let name = format!("host-{number}").parse().expect("a name");
    Node { id: node(number), name, role, advertise: at, data: at, underlay_mtu: 1500 }
}

/// The secret that the desk knows.
pub(crate) const SECRET: [u8; 16] = *b"sixteen octets!!";

/// The clock of every machine here: 2027-01-15T08:00:00Z.
pub(crate) fn noon() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
}

#[derive(Debug)]
pub(crate) struct Noon;

impl rustls::time_provider::TimeProvider for Noon {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000)))
    }
}

pub(crate) fn assert_says(error: &ConnectError, message: &str) {
    let error = error.to_string();
    assert!(error.contains(message), "{error:?} lacks {message:?}");
}
