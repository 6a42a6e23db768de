//! What the port speaks: versions of TLS, ALPN, patience.

use std::collections::BTreeSet;
use std::time::Duration;

use overlayd::cluster::{Membership, Role};
use overlayd::control::rpc::messages::{Leave, ListNetworks};
use overlayd::control::rpc::{ErrorKind, ManagerClient};
use overlayd::id::{Epoch, NetworkId, NodeId, Vni};
use overlayd::membership::{KnownMemberships, News, SignedMembership};
use overlayd::negotiate::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::{Cluster, SECRET, node};
use crate::enrolment::join;
use crate::server::Server;

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

    let error = join(server.address, &cluster.token(SECRET)).await.expect_err("a worker");
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

    let error = join(server.address, &cluster.token(SECRET)).await.expect_err("a worker");
    assert!(error.to_string().contains("is a worker, not a manager"), "{error}");
}

#[tokio::test]
async fn key_exchange_is_post_quantum_and_no_session_is_ever_resumed() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = server.plain_client(&cluster, &[b"overlayd-enrol/1"]);
    for _ in 0..2 {
        let mut tls = server.connect_with(&client).await.expect("a server without client certificates");
        // A ticket would come with or before the first bytes.
        let silence = tokio::time::timeout(Duration::from_millis(50), tls.read_u8()).await;
        assert!(silence.is_err(), "{silence:?}");
        let connection = tls.get_ref().1;
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
    }
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

#[tokio::test]
async fn removal_is_believed_only_of_a_manager_that_has_proved_to_be_one() {
    let cluster = Cluster::new(1);
    let on_the_path = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = on_the_path.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = on_the_path.accept().await {
            let _hello = tcp.read(&mut [0; 4096]).await;
            // Alert, fatal, certificate_revoked, in the clear (RFC 8446 §6).
            let _sent = tcp.write_all(&[21, 3, 3, 0, 2, 2, 44]).await;
        }
    });
    let client = ManagerClient::new(cluster.worker(3), vec![address]);
    let error = client.list_networks(ListNetworks {}).await.expect_err("no manager");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("before it has proved who it is"), "{error}");
    let error = client.leave(Leave {}).await.expect_err("no manager");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn membership_of_5000_nodes_passes_between_two_nodes() {
    let cluster = Cluster::new(1);
    let mut server = Server::start(cluster.worker(2)).await;
    let mut client = server.connect(&cluster.worker(3)).await.expect("a channel");
    let nodes = (0..5000_u128).map(|n| NodeId::from_entropy(n.to_be_bytes()));
    let membership = Membership {
        network: NetworkId::from_entropy([1; 16]),
        vni: Vni::new(4096).expect("a VNI"),
        epoch: Epoch::new(7),
        nodes: nodes.collect(),
    };
    let manager = cluster.identity(4, Role::Manager);
    let signed = SignedMembership::sign(&membership, |bytes| manager.signature(bytes)).expect("signed");
    let message = Message::Membership(Box::new(signed)).encode();
    assert!(message.len() > 5000 * 25, "{}", message.len());
    let mut channel = server.channels.recv().await.expect("the other end");
    let (sent, received) = tokio::join!(client.send(&message), channel.receive());
    sent.expect("sent");
    let received = received.expect("received").expect("a message");
    let Ok(Message::Membership(signed)) = Message::decode(&received) else { panic!("another message") };
    let mut known = KnownMemberships::new(cluster.trust().roots().clone(), cluster.id());
    let news = known.accept(&signed, &BTreeSet::new());
    assert_eq!(news, Ok((membership.network, News::Newer)));
    assert_eq!(known.get(membership.network).map(|known| known.nodes.len()), Some(5000));
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
