//! The TLS port over loopback: who gets in, who does not, and that each refusal says its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use overlayd::cluster::{Node, Role, View};
use overlayd::control::ca::CertificateAuthority;
use overlayd::control::enrol::{self, Enrol, EnrolError, EnrolRefusal, EnrolRequest, Enrolled, Joining};
use overlayd::control::identity::{NodeIdentity, NodeKey};
use overlayd::control::key_channel::{ChannelError, KeyChannel};
use overlayd::control::listener::{Doors, ManagerDoors, listen};
use overlayd::control::renewal;
use overlayd::control::rpc::messages::{
    Attach, Attached, Detach, Done, InspectNetwork, Leave, ListNetworks, ListNodes, NetworkDetail,
    NetworkReply, Networks, NewNetwork, Nodes, RemoveNetwork, Renew, Renewed, SessionRequest, Token,
    TokenRequest,
};
use overlayd::control::rpc::{self, ErrorKind, ManagerApi, ManagerClient, ManagerError};
use overlayd::control::session::{self, SessionStatus};
use overlayd::control::tls::Credentials;
use overlayd::control::tls::peer::{ConnectError, PeerIdentity};
use overlayd::control::trust::{Refusal, Trust};
use overlayd::id::{ClusterId, NodeId, Version};
use rustls::pki_types::{ServerName, UnixTime};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

// Certificates

#[tokio::test]
async fn two_nodes_of_a_cluster_open_a_key_channel_and_share_its_secrets() {
    let cluster = Cluster::new(1);
    let mut server = Server::start(cluster.worker(2)).await;

    let mut here = server.connect(&cluster.worker(3)).await.expect("a channel");
    let mut there = server.channels.recv().await.expect("a channel");

    assert_eq!(here.peer().node, node(2));
    assert_eq!((there.peer().node, there.peer().role), (node(3), Role::Worker));
    assert_eq!(*here.export(&[7; 32]), *there.export(&[7; 32]));
    assert_ne!(*here.export(&[7; 32]), *here.export(&[8; 32]));
    here.send(b"one").await.expect("sent");
    here.send(&vec![2; 64 * 1024]).await.expect("sent");
    assert_eq!(there.receive().await.expect("a message").as_deref(), Some(&b"one"[..]));
    assert_eq!(there.receive().await.expect("a message").map(|m| m.len()), Some(64 * 1024));
    there.send(b"back").await.expect("sent");
    assert_eq!(here.receive().await.expect("a message").as_deref(), Some(&b"back"[..]));
    here.close().await;
    assert_eq!(there.receive().await.expect("the end"), None);
}

#[tokio::test]
async fn two_channels_of_the_same_nodes_have_different_secrets() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let client = cluster.worker(3);
    let one = server.connect(&client).await.expect("a channel");
    let other = server.connect(&client).await.expect("a channel");
    assert_ne!(*one.export(&[7; 32]), *other.export(&[7; 32]));
}

#[tokio::test]
async fn client_of_another_cluster_is_refused_by_name() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(9));
    let server = Server::start(ours.worker(2)).await;
    let intruder = theirs.believing(&ours, theirs.identity(3, Role::Worker));

    let error = server.refused(&intruder).await;

    assert_says(&error, "another cluster");
    server
        .logged(&format!("its certificate is of cluster {}, this is cluster {}", theirs.id(), ours.id()))
        .await;
}

#[tokio::test]
async fn client_of_another_authority_is_refused_though_it_names_our_cluster() {
    let (ours, forged) = (Cluster::new(1), Cluster::new(1));
    let server = Server::start(ours.worker(2)).await;
    let intruder = forged.believing(&ours, forged.identity(3, Role::Manager));

    let error = server.refused(&intruder).await;

    assert_says(&error, "wrong CA");
    server.logged("not signed by the root of this cluster (wrong CA)").await;
}

#[tokio::test]
async fn client_whose_certificate_expired_is_refused_with_both_times() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let old = cluster.issued(3, Role::Worker, noon() - time::Duration::hours(30), time::Duration::hours(24));

    let error = server.refused(&cluster.credentials(old)).await;

    assert_says(&error, "expired or not yet valid by the other side's clock");
    server.logged("its certificate expired at 2027-01-15T02:00:00Z and the clock of this machine says 2027-01-15T08:00:00Z").await;
}

#[tokio::test]
async fn client_whose_certificate_has_not_begun_is_refused_with_both_times() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let early = cluster.issued(3, Role::Worker, noon() + time::Duration::hours(2), time::Duration::hours(24));

    let error = server.refused(&cluster.credentials(early)).await;

    assert_says(&error, "compare the clocks");
    server.logged("not yet valid: it begins at 2027-01-15T09:00:00Z and the clock of this machine says 2027-01-15T08:00:00Z").await;
}

#[tokio::test]
async fn certificate_backdated_an_hour_serves_a_machine_whose_clock_lags() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let fresh =
        cluster.issued(3, Role::Worker, noon() + time::Duration::minutes(59), time::Duration::hours(1));
    server.connect(&cluster.credentials(fresh)).await.expect("a channel");
}

#[tokio::test]
async fn unknown_client_is_refused() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    server.credentials.replace_trust(cluster.trust().with_known(BTreeSet::from([node(2), node(4)])));

    let error = server.refused(&cluster.worker(3)).await;

    assert_says(&error, "unknown in the cluster");
    server.logged(&format!("node {} is unknown in this cluster", node(3))).await;
    server.connect(&cluster.worker(4)).await.expect("a channel of a known node");
}

#[tokio::test]
async fn removed_client_is_refused() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    server.credentials.replace_trust(cluster.trust().with_removed(BTreeSet::from([node(3)])));

    let error = server.refused(&cluster.worker(3)).await;

    assert_says(&error, "was removed from the cluster");
    server.logged(&format!("node {} was removed from this cluster", node(3))).await;
}

#[tokio::test]
async fn live_channel_is_cut_when_its_node_is_removed() {
    let cluster = Cluster::new(1);
    let mut server = Server::start(cluster.worker(2)).await;
    let _here = server.connect(&cluster.worker(3)).await.expect("a channel");
    let mut there = server.channels.recv().await.expect("a channel");
    let waiting = tokio::spawn(async move { there.receive().await });
    tokio::task::yield_now().await;

    server.credentials.replace_trust(cluster.trust().with_removed(BTreeSet::from([node(3)])));

    let cut = tokio::time::timeout(Duration::from_secs(1), waiting).await.expect("cut at once");
    let cut = cut.expect("the task").expect_err("a removed node");
    assert!(matches!(cut, ChannelError::Refused(Refusal::RemovedNode { .. })), "{cut}");
}

#[tokio::test]
async fn server_that_is_not_the_expected_node_is_refused() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let error = KeyChannel::connect(&cluster.worker(3), server.address, node(4)).await.expect_err("another");
    assert_says(&error, &format!("node {} answers there, not node {}", node(2), node(4)));
}

#[tokio::test]
async fn client_refuses_expired_removed_unknown_and_foreign_servers_each_with_its_message() {
    let cluster = Cluster::new(1);
    let client = cluster.worker(3);
    let old = cluster.issued(2, Role::Worker, noon() - time::Duration::hours(30), time::Duration::hours(24));
    let early = cluster.issued(2, Role::Worker, noon() + time::Duration::hours(2), time::Duration::hours(24));
    for (server, message) in [
        (cluster.credentials(old), "expired at 2027-01-15T02:00:00Z"),
        (cluster.credentials(early), "not yet valid: it begins at 2027-01-15T09:00:00Z"),
        (Cluster::new(9).worker(2), "its certificate is of cluster"),
        (Cluster::new(1).worker(2), "wrong CA"),
    ] {
        let server = Server::start(server).await;
        assert_says(&server.connect(&client).await.expect_err("a bad server"), message);
    }
    let server = Server::start(cluster.worker(2)).await;
    client.replace_trust(cluster.trust().with_removed(BTreeSet::from([node(2)])));
    assert_says(&server.connect(&client).await.expect_err("removed"), "was removed from this cluster");
    client.replace_trust(cluster.trust().with_known(BTreeSet::from([node(3)])));
    assert_says(&server.connect(&client).await.expect_err("unknown"), "is unknown in this cluster");
}

#[tokio::test]
async fn client_without_certificate_is_refused() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;

    let mut tls =
        server.connect_plainly(&cluster, &[b"overlayd-key/1"]).await.expect("until the server judges");
    let error = tls.read_u8().await.expect_err("no certificate").to_string();

    assert!(error.contains("CertificateRequired"), "{error}");
    server.logged("it shows no certificate; only nodes of this cluster may connect").await;
}

// Protocols

#[tokio::test]
async fn client_of_tls_1_2_is_refused() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    for hello in [client_hello(&[0xc0, 0x2b]), client_hello(&[0x13, 0x01, 0xc0, 0x2b])] {
        let mut tcp = TcpStream::connect(server.address).await.expect("TCP");
        tcp.write_all(&hello).await.expect("sent");
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.expect("an alert");
        assert_eq!(&answer[..1], [21], "an alert");
        assert_eq!(answer[5..], [2, 70], "fatal, protocol_version");
        server.logged("it offers no TLS 1.3; overlayd speaks nothing older").await;
    }
}

#[tokio::test]
async fn unknown_or_missing_protocol_is_refused() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    for alpn in [&[&b"http/1.1"[..]][..], &[]] {
        let error = server.connect_plainly(&cluster, alpn).await.expect_err("no protocol").to_string();
        assert!(
            error.contains("NoApplicationProtocol") || error.contains("no application protocol"),
            "{error}"
        );
        server.logged("it asks for no protocol of overlayd (ALPN)").await;
    }
}

#[tokio::test]
async fn worker_serves_neither_the_manager_api_nor_enrolment() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let error = client.list_networks(ListNetworks {}).await.expect_err("a worker");
    assert!(error.message.contains("is it a manager?"), "{error}");
    server.logged("it asks for h2, which only managers serve").await;

    let error = join(server.address, cluster.authority.fingerprint(), "secret").await.expect_err("a worker");
    assert!(error.to_string().contains("is it a manager?"), "{error}");
    server.logged("it asks for overlayd-enrol/1, which only managers serve").await;
}

#[tokio::test]
async fn worker_certificate_is_refused_where_a_manager_is_expected() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.worker(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let error = client.list_networks(ListNetworks {}).await.expect_err("a worker");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains(&format!("node {} is a worker, not a manager", node(2))), "{error}");

    let error = join(server.address, cluster.authority.fingerprint(), "secret").await.expect_err("a worker");
    assert!(error.to_string().contains("is a worker, not a manager"), "{error}");
}

#[tokio::test]
async fn silent_connection_is_closed_after_five_seconds() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let mut tcp = TcpStream::connect(server.address).await.expect("TCP");
    let closed = tokio::time::timeout(Duration::from_secs(7), tcp.read(&mut [0; 16])).await;
    assert_eq!(closed.expect("closed in time").expect("a clean end"), 0);
    server.logged("the handshake took over 5 s").await;
}

// The manager API

#[tokio::test]
async fn machine_with_a_token_joins_calls_the_manager_and_follows_its_views() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;

    let (identity, enrolled) =
        join(server.address, cluster.authority.fingerprint(), "secret").await.expect("joined");
    assert_eq!((identity.node(), identity.role()), (node(50), Role::Worker));
    assert_eq!(enrolled.managers, [server.address]);

    let credentials = cluster.credentials(identity);
    let client = ManagerClient::new(Arc::clone(&credentials), enrolled.managers);
    assert_eq!(client.list_networks(ListNetworks {}).await.expect("networks").networks, []);

    let (views, mut view) = watch::channel(Arc::new(View::default()));
    let (status, mut connected) = watch::channel(SessionStatus::Connecting);
    let request =
        || async { SessionRequest { node: record(50, Role::Worker, server.address), endpoints: vec![] } };
    let following = async {
        connected.wait_for(|status| *status == SessionStatus::Connected).await.expect("a session");
        view.wait_for(|view| view.version == Version::new(1)).await.expect("the first view");
        server.desk().publish(View {
            version: Version::new(2),
            managers: vec![record(2, Role::Manager, server.address)],
            removed: BTreeSet::from([node(77)]),
            networks: BTreeMap::new(),
        });
        let second = view.wait_for(|view| view.version == Version::new(2)).await.expect("a change").clone();
        assert_eq!(second.removed, BTreeSet::from([node(77)]));
    };
    tokio::select! {
        () = session::keep(client.clone(), request, views, status) => unreachable!("a session is kept for ever"),
        done = tokio::time::timeout(Duration::from_secs(10), following) => done.expect("in time"),
    }
}

#[tokio::test]
async fn errors_of_the_manager_arrive_as_they_were() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let name = "missing".parse().expect("a name");
    let error = client.inspect_network(InspectNetwork { name }).await.expect_err("no such network");
    assert_eq!(error, ManagerError::new(ErrorKind::NotFound, "there is no network \"missing\""));
}

#[tokio::test]
async fn worker_may_not_create_remove_or_issue_tokens_and_is_told_where_to() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let name: overlayd::id::NetworkName = "net".parse().expect("a name");
    let network = NewNetwork {
        name: name.clone(),
        encrypted: true,
        subnets: vec![],
        mtu: None,
        labels: BTreeMap::new(),
    };
    for refused in [
        client.create_network(network.clone()).await.expect_err("a worker"),
        client.remove_network(RemoveNetwork { name }).await.expect_err("a worker"),
        client.token(TokenRequest { role: Role::Worker, rotate: false }).await.expect_err("a worker"),
    ] {
        assert_eq!(refused.kind, ErrorKind::Denied);
        assert!(refused.message.contains("this node is a worker, only managers may"), "{refused}");
        assert!(refused.message.ends_with("192.0.2.1:2377"), "{refused}");
    }

    let manager = ManagerClient::new(cluster.manager(4), vec![server.address]);
    let answer = manager.create_network(network).await.expect_err("the desk makes none");
    assert_eq!(answer.kind, ErrorKind::Unavailable, "a manager's request goes through");
}

#[tokio::test]
async fn session_for_another_node_is_denied() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let request = SessionRequest { node: record(4, Role::Worker, server.address), endpoints: vec![] };
    let refused = client.session(request).await.expect_err("another node");
    assert_eq!(refused.kind, ErrorKind::Denied);
}

#[tokio::test]
async fn session_ends_when_its_node_is_removed_and_the_agent_learns_why() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let request = SessionRequest { node: record(3, Role::Worker, server.address), endpoints: vec![] };
    let mut updates = client.session(request.clone()).await.expect("a session");
    updates.message().await.expect("an update").expect("the full view");

    server.credentials.replace_trust(cluster.trust().with_removed(BTreeSet::from([node(3)])));

    let ended = tokio::time::timeout(Duration::from_secs(1), updates.message()).await.expect("cut at once");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    let refused = client.session(request).await.expect_err("a removed node");
    assert!(refused.message.contains("removed from the cluster"), "{refused}");
}

#[tokio::test]
async fn client_finds_the_manager_that_works_and_names_those_that_do_not() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let dead = closed_port().await;
    let client = ManagerClient::new(cluster.worker(3), vec![dead, server.address]);
    client.list_networks(ListNetworks {}).await.expect("the second one answers");

    let client = ManagerClient::new(cluster.worker(3), vec![dead]);
    let error = client.list_networks(ListNetworks {}).await.expect_err("none answers");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains(&format!("{dead} cannot be reached")), "{error}");
    client.set_addresses(vec![server.address]);
    client.list_networks(ListNetworks {}).await.expect("the new address is used");
}

#[tokio::test]
async fn renewed_certificate_is_stored_before_it_is_shown() {
    let cluster = Cluster::new(1);
    let mut server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let credentials = cluster.credentials(cluster.issued(
        3,
        Role::Worker,
        noon() - time::Duration::hours(20),
        time::Duration::hours(24),
    ));
    let client = ManagerClient::new(Arc::clone(&credentials), vec![server.address]);
    let before = credentials.identity().expires();

    let full = renewal::renew(&credentials, &client, &|_: &NodeIdentity| Err("disk full".into())).await;
    assert!(full.expect_err("a full disk").to_string().contains("disk full"));
    assert_eq!(credentials.identity().expires(), before, "what is not stored is not shown");

    renewal::renew(&credentials, &client, &|_: &NodeIdentity| Ok(())).await.expect("renewed");
    client.reconnect();
    assert!(credentials.identity().expires() > before);
    let _here = server.connect(&credentials).await.expect("a channel");
    let there = server.channels.recv().await.expect("a channel");
    assert_eq!(there.peer().certificate_expires, credentials.identity().expires());
    client.list_networks(ListNetworks {}).await.expect("with the new certificate");
}

// Enrolment

#[tokio::test]
async fn wrong_secret_is_refused_and_the_eleventh_attempt_is_not_even_looked_at() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    for attempt in 0..11 {
        let error =
            join(server.address, cluster.authority.fingerprint(), "guess").await.expect_err("a guess");
        let EnrolError::Refused(refusal) = error else { panic!("{error}") };
        let expected = if attempt < 10 { EnrolRefusal::WrongSecret } else { EnrolRefusal::TooManyAttempts };
        assert_eq!(refusal, expected, "attempt {attempt}");
    }
}

#[tokio::test]
async fn token_of_another_cluster_is_noticed_before_the_secret_is_sent() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let error = join(server.address, Cluster::new(9).authority.fingerprint(), "secret").await;
    let error = error.expect_err("another cluster").to_string();
    assert!(error.contains("the token is of another cluster"), "{error}");
    assert_eq!(server.desk().enrolments(), 0);
}

#[tokio::test]
async fn manager_whose_certificate_only_claims_the_root_is_refused() {
    // The attacker shows the true root beside a leaf that its own root signed.
    let (ours, forged) = (Cluster::new(1), Cluster::new(1));
    let key = NodeKey::generate().expect("a key");
    let leaf = forged.leaf(&key, 2, Role::Manager, noon(), time::Duration::DAY);
    let identity = NodeIdentity::new(vec![leaf], &key, ours.authority.root().clone()).expect("an identity");
    let server = Server::start_manager(&ours, ours.credentials(identity)).await;
    let error = join(server.address, ours.authority.fingerprint(), "secret").await.expect_err("a forgery");
    assert!(error.to_string().contains("wrong CA"), "{error}");
    assert_eq!(server.desk().enrolments(), 0);
}

#[tokio::test]
async fn joining_says_whether_the_manager_is_away_or_the_clock_is_wrong() {
    let cluster = Cluster::new(1);
    let dead = closed_port().await;
    let error = join(dead, cluster.authority.fingerprint(), "secret").await.expect_err("nobody");
    assert!(error.to_string().contains(&format!("{dead} cannot be reached")), "{error}");

    let early = cluster.issued(2, Role::Manager, noon() + time::Duration::days(9), time::Duration::DAY);
    let server = Server::start_manager(&cluster, cluster.credentials(early)).await;
    let error = join(server.address, cluster.authority.fingerprint(), "secret").await.expect_err("a clock");
    assert!(error.to_string().contains("the clock of this machine says 2027-01-15T08:00:00Z"), "{error}");
}

// A cluster

struct Cluster {
    authority: Arc<CertificateAuthority>,
}

impl Cluster {
    /// Two clusters of the same number have the same id and different roots.
    fn new(number: u8) -> Self {
        let id = ClusterId::from_entropy([number; 16]);
        let since = noon() - time::Duration::days(30);
        Self { authority: Arc::new(CertificateAuthority::create(id, since).expect("an authority")) }
    }

    fn id(&self) -> ClusterId {
        self.authority.cluster()
    }

    fn trust(&self) -> Trust {
        Trust::new(self.id(), &[self.authority.root().clone()]).expect("a trust")
    }

    fn leaf(
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

    fn issued(&self, number: u8, role: Role, at: OffsetDateTime, lifetime: time::Duration) -> NodeIdentity {
        let key = NodeKey::generate().expect("a key");
        let leaf = self.leaf(&key, number, role, at, lifetime);
        NodeIdentity::new(vec![leaf], &key, self.authority.root().clone()).expect("an identity")
    }

    fn identity(&self, number: u8, role: Role) -> NodeIdentity {
        self.issued(number, role, noon(), time::Duration::days(90))
    }

    fn credentials(&self, identity: NodeIdentity) -> Arc<Credentials> {
        Credentials::new(identity, self.trust(), noon).expect("credentials")
    }

    /// A node of this cluster that takes `other`'s nodes for its own, as an intruder would.
    fn believing(&self, other: &Self, identity: NodeIdentity) -> Arc<Credentials> {
        Credentials::new(identity, other.trust(), noon).expect("credentials")
    }

    fn worker(&self, number: u8) -> Arc<Credentials> {
        self.credentials(self.identity(number, Role::Worker))
    }

    fn manager(&self, number: u8) -> Arc<Credentials> {
        self.credentials(self.identity(number, Role::Manager))
    }
}

// A node that listens

struct Server {
    address: SocketAddr,
    credentials: Arc<Credentials>,
    channels: mpsc::Receiver<KeyChannel>,
    desk: Option<Arc<Desk>>,
    log: Log,
    _logging: tracing::subscriber::DefaultGuard,
}

impl Server {
    async fn start(credentials: Arc<Credentials>) -> Self {
        Self::run(credentials, None).await
    }

    async fn start_manager(cluster: &Cluster, credentials: Arc<Credentials>) -> Self {
        Self::run(credentials, Some(Arc::clone(&cluster.authority))).await
    }

    async fn run(credentials: Arc<Credentials>, authority: Option<Arc<CertificateAuthority>>) -> Self {
        // Each test has its own thread and runtime, so its own log too.
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        let logging = tracing::subscriber::set_default(subscriber);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (key_channels, channels) = mpsc::channel(8);
        let mut manager = None;
        let mut desk = None;
        if let Some(authority) = authority {
            let new = Arc::new(Desk::new(authority, address));
            let (rpc, streams) = mpsc::channel(8);
            tokio::spawn(rpc::serve(Arc::clone(&new), streams));
            let (enrol, streams) = mpsc::channel(8);
            tokio::spawn(enrol::serve(Arc::clone(&new), streams));
            manager = Some(ManagerDoors { rpc, enrol });
            desk = Some(new);
        }
        tokio::spawn(listen(listener, Arc::clone(&credentials), Doors { key_channels, manager }));
        Self { address, credentials, channels, desk, log, _logging: logging }
    }

    async fn connect(&self, client: &Credentials) -> Result<KeyChannel, ConnectError> {
        KeyChannel::connect(client, self.address, self.credentials.identity().node()).await
    }

    async fn refused(&self, client: &Credentials) -> ConnectError {
        let error = self.connect(client).await.expect_err("the server lets it in");
        assert!(matches!(error.refusal(), Some(Refusal::ByPeer(_))), "{error}");
        error
    }

    /// A client that is not ours: TLS 1.3 by rustls, without a certificate.
    async fn connect_plainly(
        &self,
        cluster: &Cluster,
        alpn: &[&[u8]],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cluster.authority.root().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(Noon))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from(self.credentials.identity().node().to_string()).expect("a DNS name");
        let tcp = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// Waits for a line of the log, which may follow the alert that the client has read, and clears it.
    async fn logged(&self, line: &str) {
        for _ in 0..200 {
            if self.log.text().contains(line) {
                return self.log.clear();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{line:?} is not in the log:\n{}", self.log.text());
    }

    fn desk(&self) -> &Desk {
        self.desk.as_ref().expect("a manager")
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("the log")).into_owned()
    }

    fn clear(&self) {
        self.0.lock().expect("the log").clear();
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// A manager that knows one secret and one view

struct Desk {
    authority: Arc<CertificateAuthority>,
    address: SocketAddr,
    view: watch::Sender<Arc<View>>,
    enrolments: Mutex<usize>,
}

impl Desk {
    fn new(authority: Arc<CertificateAuthority>, address: SocketAddr) -> Self {
        let view = View { version: Version::new(1), ..View::default() };
        Self { authority, address, view: watch::Sender::new(Arc::new(view)), enrolments: Mutex::new(0) }
    }

    fn publish(&self, view: View) {
        self.view.send_replace(Arc::new(view));
    }

    fn enrolments(&self) -> usize {
        *self.enrolments.lock().expect("the count")
    }
}

impl Enrol for Desk {
    async fn enrol(&self, request: EnrolRequest, _from: SocketAddr) -> Result<Enrolled, EnrolRefusal> {
        *self.enrolments.lock().expect("the count") += 1;
        if request.secret.as_str() != "secret" {
            return Err(EnrolRefusal::WrongSecret);
        }
        let (id, role) = (node(50), Role::Worker);
        let leaf = self
            .authority
            .issue(&request.csr, id, role, noon(), time::Duration::DAY)
            .map_err(|error| EnrolRefusal::Invalid(error.to_string()))?;
        Ok(Enrolled {
            node: id,
            role,
            chain: vec![leaf],
            root: self.authority.root().clone(),
            managers: vec![self.address],
            advertise: self.address,
            data: self.address,
        })
    }
}

fn nothing<T>() -> Result<T, ManagerError> {
    Err(ManagerError::new(ErrorKind::Unavailable, "this desk does nothing"))
}

impl ManagerApi for Desk {
    fn manager_addresses(&self) -> Vec<SocketAddr> {
        vec!["192.0.2.1:2377".parse().expect("an address")]
    }

    async fn session(
        &self,
        _caller: PeerIdentity,
        _request: SessionRequest,
    ) -> Result<watch::Receiver<Arc<View>>, ManagerError> {
        Ok(self.view.subscribe())
    }

    async fn create_network(&self, _: PeerIdentity, _: NewNetwork) -> Result<NetworkReply, ManagerError> {
        nothing()
    }

    async fn remove_network(&self, _: PeerIdentity, _: RemoveNetwork) -> Result<Done, ManagerError> {
        nothing()
    }

    async fn list_networks(&self, _: PeerIdentity, _: ListNetworks) -> Result<Networks, ManagerError> {
        Ok(Networks { networks: vec![] })
    }

    async fn inspect_network(
        &self,
        _: PeerIdentity,
        request: InspectNetwork,
    ) -> Result<NetworkDetail, ManagerError> {
        let message = format!("there is no network {:?}", request.name.as_str());
        Err(ManagerError::new(ErrorKind::NotFound, message))
    }

    async fn attach(&self, _: PeerIdentity, _: Attach) -> Result<Attached, ManagerError> {
        nothing()
    }

    async fn detach(&self, _: PeerIdentity, _: Detach) -> Result<Done, ManagerError> {
        nothing()
    }

    async fn token(&self, _: PeerIdentity, _: TokenRequest) -> Result<Token, ManagerError> {
        nothing()
    }

    async fn list_nodes(&self, _: PeerIdentity, _: ListNodes) -> Result<Nodes, ManagerError> {
        nothing()
    }

    async fn renew(&self, caller: PeerIdentity, request: Renew) -> Result<Renewed, ManagerError> {
        let leaf = self
            .authority
            .issue(&request.csr, caller.node, caller.role, noon(), time::Duration::days(90))
            .map_err(|error| ManagerError::new(ErrorKind::Invalid, error.to_string()))?;
        Ok(Renewed { chain: vec![leaf] })
    }

    async fn leave(&self, _: PeerIdentity, _: Leave) -> Result<Done, ManagerError> {
        nothing()
    }
}

// Small things

async fn join(
    manager: SocketAddr,
    digest: [u8; 32],
    secret: &str,
) -> Result<(NodeIdentity, Enrolled), EnrolError> {
    let machine = Joining {
        host: "newcomer".parse().expect("a name"),
        advertise: None,
        advertise_port: 2377,
        data: None,
        data_port: 4500,
        underlay_mtu: 1500,
    };
    enrol::enrol(manager, digest, Zeroizing::new(secret.to_owned()), machine, noon).await
}

async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

fn node(number: u8) -> NodeId {
    NodeId::from_entropy([number; 16])
}

fn record(number: u8, role: Role, at: SocketAddr) -> Node {
    let name = format!("host-{number}").parse().expect("a name");
    Node { id: node(number), name, role, advertise: at, data: at, underlay_mtu: 1500 }
}

/// The clock of every machine here: 2027-01-15T08:00:00Z.
fn noon() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
}

#[derive(Debug)]
struct Noon;

impl rustls::time_provider::TimeProvider for Noon {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000)))
    }
}

fn assert_says(error: &ConnectError, message: &str) {
    let error = error.to_string();
    assert!(error.contains(message), "{error:?} lacks {message:?}");
}

/// A ClientHello without the extension that offers TLS 1.3 (RFC 5246 §7.4.1.2).
fn client_hello(suites: &[u8]) -> Vec<u8> {
    let mut extensions = Vec::new();
    extensions.extend([0, 10, 0, 4, 0, 2, 0, 29]); // supported_groups: x25519
    extensions.extend([0, 13, 0, 4, 0, 2, 4, 3]); // signature_algorithms: ecdsa_secp256r1_sha256
    extensions.extend([0, 16, 0, 17, 0, 15, 14]); // ALPN
    extensions.extend(b"overlayd-key/1");
    let mut body = vec![3, 3];
    body.extend([5; 32]);
    body.push(0);
    body.extend(u16::try_from(suites.len()).expect("short").to_be_bytes());
    body.extend(suites);
    body.extend([1, 0]);
    body.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
    body.extend(extensions);
    let mut hello = vec![22, 3, 1];
    hello.extend(u16::try_from(body.len() + 4).expect("short").to_be_bytes());
    hello.extend([1, 0]);
    hello.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    hello.extend(body);
    hello
}
