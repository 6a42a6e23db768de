//! Two roots, while one takes the other's place, and one of them afterwards.

use std::sync::Arc;
use std::time::Duration;

use overlayd::cluster::Role;
use overlayd::control::ca::CertificateAuthority;
use overlayd::control::identity::{NodeIdentity, NodeKey};
use overlayd::control::key_channel::ChannelError;
use overlayd::control::rpc::ManagerError;
use overlayd::control::rpc::messages::Renewed;
use overlayd::control::tls::Credentials;
use overlayd::control::trust::{Refusal, Trust};
use overlayd::control::{enrol, renewal};
use overlayd::membership::{Root, Roots};

use crate::cluster::{Cluster, SECRET, assert_says, noon};
use crate::enrolment::join;
use crate::server::Server;

#[tokio::test]
async fn while_both_roots_are_trusted_certificates_of_either_are_accepted() {
    let change = Change::new();
    let old = change.trusting(change.old.identity(2, Role::Worker), change.both());
    let new = change.trusting(change.renewed(3, Role::Worker), change.both());
    let server = Server::start(Arc::clone(&old)).await;
    server.connect(&new).await.expect("a channel");
    let server = Server::start(new).await;
    server.connect(&old).await.expect("a channel");
}

#[tokio::test]
async fn node_that_has_not_heard_of_the_new_root_believes_what_the_old_one_signed_for_it() {
    let change = Change::new();
    let renewed = change.trusting(change.renewed(2, Role::Worker), change.both());
    let server = Server::start(renewed).await;
    server.connect(&change.old.worker(3)).await.expect("a channel");
    // Without the cross-signature the new root is any root.
    let bare = change.trusting(change.new.identity(2, Role::Worker), change.both());
    let server = Server::start(bare).await;
    assert_says(&server.connect(&change.old.worker(3)).await.expect_err("a stranger"), "wrong CA");
}

#[tokio::test]
async fn certificate_of_the_old_root_is_refused_once_that_is_dropped_whatever_stands_beside_it() {
    let change = Change::new();
    let server = Server::start(change.trusting(change.renewed(2, Role::Worker), change.new_alone())).await;
    let key = NodeKey::generate().expect("a key");
    let leaf = change.old.leaf(&key, 3, Role::Worker, noon(), time::Duration::DAY);
    for beside in [vec![], vec![change.cross()], vec![change.new.authority.root().clone(), change.cross()]] {
        let chain = [vec![leaf.clone()], beside].concat();
        let identity = NodeIdentity::new(chain, &key, change.old.authority.root().clone());
        let stale = change.trusting(identity.expect("an identity"), change.both());
        assert_says(&server.refused(&stale).await, "wrong CA");
    }
}

#[tokio::test]
async fn live_channel_is_cut_when_its_root_is_dropped_and_stays_when_the_other_is() {
    let change = Change::new();
    let mut server = Server::start(change.trusting(change.renewed(2, Role::Worker), change.both())).await;
    let stale = change.trusting(change.old.identity(3, Role::Worker), change.both());
    let _stale = server.connect(&stale).await.expect("a channel");
    let mut from_stale = server.channels.recv().await.expect("a channel");
    let renewed = change.trusting(change.renewed(4, Role::Worker), change.both());
    let mut fresh = server.connect(&renewed).await.expect("a channel");
    let mut from_fresh = server.channels.recv().await.expect("a channel");

    server.credentials.replace_trust(change.new_alone());

    let cut = tokio::time::timeout(Duration::from_secs(3), from_stale.receive()).await.expect("cut at once");
    let cut = cut.expect_err("a certificate of the old root");
    assert!(matches!(cut, ChannelError::Refused(Refusal::RetiredRoot { .. })), "{cut}");
    fresh.send(b"here").await.expect("sent");
    assert_eq!(from_fresh.receive().await.expect("a message").as_deref(), Some(&b"here"[..]));
}

#[tokio::test]
async fn what_is_wrong_under_the_root_that_signed_is_told_and_not_that_the_other_did_not() {
    let change = Change::new();
    for cluster in [&change.old, &change.new] {
        let then = noon() - time::Duration::hours(30);
        let expired = cluster.issued(2, Role::Worker, then, time::Duration::hours(24));
        let server = Server::start(change.trusting(expired, change.both())).await;
        let client = change.trusting(change.renewed(3, Role::Worker), change.both());
        assert_says(&server.connect(&client).await.expect_err("expired"), "expired at 2027-01-15T02:00:00Z");
    }
}

#[tokio::test]
async fn tokens_of_both_roots_are_good_while_the_new_one_signs_and_then_the_new_one_alone() {
    let change = Change::new();
    let both = change.both();
    let manager = change.trusting(change.renewed(2, Role::Manager), both.clone());
    let server = Server::start_manager(&change.new, manager).await;
    for token in [change.old.token(SECRET), change.new.token(SECRET)] {
        let (identity, enrolled) = join(server.address, &token).await.expect("joined");
        assert_eq!(identity.root(), change.new.authority.root());
        assert_eq!(&enrolled.roots, both.roots());
    }
    let manager = change.trusting(change.renewed(2, Role::Manager), change.new_alone());
    let server = Server::start_manager(&change.new, manager).await;
    join(server.address, &change.new.token(SECRET)).await.expect("joined");
    let error = join(server.address, &change.old.token(SECRET)).await.expect_err("a void token");
    assert!(matches!(error, enrol::EnrolError::Connect(_)), "{error}");
    assert!(error.to_string().contains("its root was replaced"), "{error}");
    assert_eq!(server.desk().enrolments(), 1, "the secret was sent");
}

#[tokio::test]
async fn renewed_certificate_of_a_root_that_is_not_trusted_is_not_taken() {
    struct OtherRoot(CertificateAuthority);
    impl renewal::Signer for OtherRoot {
        async fn sign(&self, csr: String) -> Result<Renewed, ManagerError> {
            let leaf = self.0.issue(&csr, crate::cluster::node(3), Role::Worker, noon(), time::Duration::DAY);
            let root = Some(Root::plain(self.0.root().to_vec()));
            Ok(Renewed { chain: vec![leaf.expect("a certificate")], root })
        }
    }
    let change = Change::new();
    let credentials = change.old.worker(3);
    let other = CertificateAuthority::create(change.old.id(), noon()).expect("an authority");
    let refused = renewal::renew(&credentials, &OtherRoot(other), &|_| panic!("it was stored")).await;
    let refused = refused.expect_err("a root that nobody knows").to_string();
    assert!(refused.contains("does not trust (yet)"), "{refused}");
}

/// A cluster whose root is being replaced.
struct Change {
    old: Cluster,
    new: Cluster,
}

impl Change {
    fn new() -> Self {
        Self { old: Cluster::new(1), new: Cluster::new(1) }
    }

    /// The new root as the old one signed it.
    fn cross(&self) -> rustls::pki_types::CertificateDer<'static> {
        self.old.authority.cross_sign(self.new.authority.root(), noon()).expect("signed")
    }

    fn both(&self) -> Trust {
        let old = Root::plain(self.old.authority.root().to_vec());
        let new = Root::crossed(self.new.authority.root().to_vec(), self.cross().to_vec());
        Trust::new(self.old.id(), Roots::pair(new, old)).expect("a trust")
    }

    fn new_alone(&self) -> Trust {
        self.new.trust()
    }

    /// A certificate of the new root with what the old one signed for that.
    fn renewed(&self, number: u8, role: Role) -> NodeIdentity {
        let key = NodeKey::generate().expect("a key");
        let leaf = self.new.leaf(&key, number, role, noon(), time::Duration::days(90));
        let root = self.new.authority.root().clone();
        NodeIdentity::new(vec![leaf, self.cross()], &key, root).expect("an identity")
    }

    fn trusting(&self, identity: NodeIdentity, trust: Trust) -> Arc<Credentials> {
        Credentials::new(identity, trust, noon).expect("credentials")
    }
}
