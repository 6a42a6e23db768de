//! Peers that open a key channel and then read nothing.

use std::time::Duration;

use overlayd::control::key_channel::{ChannelError, KeyChannel};
use overlayd::control::trust::Refusal;
use tokio::time::timeout;

use crate::cluster::{Cluster, node};
use crate::server::Server;

#[tokio::test]
async fn peer_that_reads_nothing_loses_its_channel_within_five_seconds() {
    let cluster = Cluster::new(1);
    let mut server = Server::start(cluster.worker(2)).await;
    let mut here = server.connect(&cluster.worker(3)).await.expect("a channel");
    let _silent = server.channels.recv().await.expect("the other end");

    let stalled = timeout(Duration::from_secs(6), send_for_ever(&mut here)).await.expect("it ends");

    // The kernel mostly notices first.
    let is_over = |error: &ChannelError| matches!(error, ChannelError::Stalled | ChannelError::Broken(_));
    assert!(is_over(&stalled), "{stalled}");
    let sent = timeout(Duration::from_millis(100), here.send(b"more")).await.expect("at once");
    assert!(sent.as_ref().is_err_and(is_over), "{sent:?}");
    let received = timeout(Duration::from_millis(100), here.receive()).await.expect("at once");
    assert!(
        received.as_ref().is_ok_and(Option::is_none) || received.as_ref().is_err_and(is_over),
        "{received:?}"
    );
    timeout(Duration::from_secs(3), here.close()).await.expect("closing does not wait for the peer");
}

#[tokio::test]
async fn removal_cuts_a_channel_at_once_even_while_its_peer_reads_nothing() {
    let cluster = Cluster::new(1);
    let mut server = Server::start(cluster.worker(2)).await;
    let client = cluster.worker(3);
    let mut here = server.connect(&client).await.expect("a channel");
    let _silent = server.channels.recv().await.expect("the other end");
    // Long enough for the buffers to be full, and less than the kernel waits.
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.replace_trust(cluster.trust().with_removed([node(2)].into()));
    });

    let cut = timeout(Duration::from_secs(4), send_for_ever(&mut here)).await.expect("it is cut at once");

    assert!(matches!(cut, ChannelError::Refused(Refusal::RemovedNode { .. })), "{cut}");
}

async fn send_for_ever(channel: &mut KeyChannel) -> ChannelError {
    loop {
        if let Err(error) = channel.send(&[7; 60_000]).await {
            return error;
        }
    }
}
