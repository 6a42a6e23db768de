//! Who may open a key channel, judged by certificates.

use std::collections::BTreeSet;
use std::time::Duration;

use overlayd::cluster::Role;
use overlayd::control::key_channel::{ChannelError, KeyChannel};
use overlayd::control::tls::verify_identity;
use overlayd::control::trust::Refusal;
use tokio::io::AsyncReadExt;

use crate::cluster::{Cluster, assert_says, node, noon};
use crate::server::Server;

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
    let early = cluster.issued(3, Role::Worker, noon() + time::Duration::days(4), time::Duration::hours(24));

    let error = server.refused(&cluster.credentials(early)).await;

    assert_says(&error, "compare the clocks");
    server.logged("not yet valid: it begins at 2027-01-16T08:00:00Z and the clock of this machine says 2027-01-15T08:00:00Z").await;
}

#[tokio::test]
async fn certificate_backdated_three_days_serves_a_machine_whose_clock_lags() {
    let cluster = Cluster::new(1);
    let server = Server::start(cluster.worker(2)).await;
    let fresh = cluster.issued(3, Role::Worker, noon() + time::Duration::days(2), time::Duration::hours(1));
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

    let cut = tokio::time::timeout(Duration::from_secs(3), waiting).await.expect("cut at once");
    let cut = cut.expect("the task").expect_err("a removed node");
    assert!(matches!(cut, ChannelError::Refused(Refusal::RemovedNode { .. })), "{cut}");
}

#[tokio::test]
async fn live_channel_is_cut_when_its_certificate_ends() {
    let cluster = Cluster::new(1);
    let mut server = Server::start(cluster.worker(2)).await;
    let ends_in_a_second = noon() + time::Duration::SECOND - time::Duration::HOUR;
    let old = cluster.issued(3, Role::Worker, ends_in_a_second, time::Duration::HOUR);
    let _here = server.connect(&cluster.credentials(old)).await.expect("a channel");
    let mut there = server.channels.recv().await.expect("a channel");

    let cut = tokio::time::timeout(Duration::from_secs(3), there.receive()).await.expect("cut in time");

    let cut = cut.expect_err("an expired certificate");
    assert!(matches!(cut, ChannelError::Refused(Refusal::Expired { .. })), "{cut}");
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
    let early = cluster.issued(2, Role::Worker, noon() + time::Duration::days(4), time::Duration::hours(24));
    for (server, message) in [
        (cluster.credentials(old), "expired at 2027-01-15T02:00:00Z"),
        (cluster.credentials(early), "not yet valid: it begins at 2027-01-16T08:00:00Z"),
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

#[test]
fn node_can_tell_why_others_would_refuse_it() {
    let cluster = Cluster::new(1);
    verify_identity(&cluster.identity(3, Role::Worker), noon()).expect("a good one");
    let old = cluster.issued(3, Role::Worker, noon() - time::Duration::hours(30), time::Duration::hours(24));
    let refusal = verify_identity(&old, noon()).expect_err("an old one");
    assert!(matches!(refusal, Refusal::Expired { .. }), "{refusal}");
}
