//! Several managers: an agent goes to another when its own is none any more, and believes no former one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use overlayd::cluster::{Role, View};
use overlayd::control::rpc::ManagerClient;
use overlayd::control::rpc::messages::{ListNetworks, SessionRequest};
use overlayd::control::session::{self, SessionStatus};
use overlayd::control::trust::Trust;
use overlayd::id::Version;
use tokio::sync::watch;

use crate::cluster::{Cluster, node, record};
use crate::server::Server;

#[tokio::test]
async fn session_with_a_manager_that_is_demoted_is_cut_and_another_takes_its_place() {
    let cluster = Cluster::new(1);
    let servers = [
        (2, Server::start_manager(&cluster, cluster.manager(2)).await),
        (4, Server::start_manager(&cluster, cluster.manager(4)).await),
    ];
    let managers: Vec<_> =
        servers.iter().map(|(number, server)| record(*number, Role::Manager, server.address)).collect();
    for (number, server) in &servers {
        let version = Version::new(u64::from(*number));
        server.desk().publish(View { version, managers: managers.clone(), ..View::default() });
    }
    let credentials = cluster.worker(3);
    let addresses = servers.iter().map(|(_, server)| server.address).collect();
    let client = ManagerClient::new(Arc::clone(&credentials), addresses);
    let (views, mut view) = watch::channel(Arc::new(View::default()));
    let (status, _connected) = watch::channel(SessionStatus::Connecting);
    let address = servers[0].1.address;
    let request = || SessionRequest { node: record(3, Role::Worker, address), standing: None };
    let demote = |numbers: &[u8]| {
        let demoted: BTreeMap<_, _> = numbers.iter().map(|n| (node(*n), Version::new(9))).collect();
        // As a manager replaces whom it believes.
        credentials.replace_trust(Trust::clone(&credentials.trust()).with_demoted(demoted));
    };
    let following = async {
        let is_first = |view: &Arc<View>| view.version > Version::new(0);
        let first = view.wait_for(is_first).await.expect("a view").version;
        let (served, other) = if first == Version::new(2) { (2, 4) } else { (4, 2) };
        demote(&[served]);
        let is_of_the_other = |view: &Arc<View>| view.version == Version::new(other);
        view.wait_for(is_of_the_other).await.expect("a view of the other manager");
        client.list_networks(ListNetworks {}).await.expect("served by the other");
        demote(&[2, 4]);
    };
    let (change, changes) = watch::channel(());
    tokio::select! {
        () = session::keep(client.clone(), request, changes, views, status) => unreachable!("a session is kept for ever"),
        done = tokio::time::timeout(Duration::from_secs(10), following) => done.expect("in time"),
    }
    drop(change);
    // What is asked while the connection is being cut has no answer.
    client.move_on();
    let refused = client.list_networks(ListNetworks {}).await.expect_err("no manager is left");
    assert!(refused.message.contains("is a worker, not a manager"), "{refused}");
}

#[test]
fn what_peers_pass_on_takes_nothing_from_what_a_manager_knows() {
    let until = |version: u64| BTreeMap::from([(node(5), Version::new(version))]);
    let trust = Cluster::new(1).trust().with_removed([node(3)].into()).with_demoted(until(7));
    let later = trust.clone().refusing(&[node(4)].into(), &until(9));
    assert!(later.admit_node(node(3)).is_err() && later.admit_node(node(4)).is_err());
    assert!(later.is_demoted(node(5), Version::new(9)) && !trust.is_demoted(node(5), Version::new(9)));
    let earlier = trust.refusing(&[].into(), &until(6));
    assert!(earlier.admit_node(node(3)).is_err() && earlier.is_demoted(node(5), Version::new(7)));
}
