//! The manager API: roles, errors, sessions, renewal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::cluster::{Role, View};
use overlayd::control::identity::NodeIdentity;
use overlayd::control::rpc::messages::{
    ChangeNode, InspectNetwork, InspectNode, Leave, ListNetworks, NewNetwork, NodeChange, PresenceRequest,
    RemoveNetwork, RemoveNode, Renewed, SessionRequest, TokenRequest,
};
use overlayd::control::rpc::{ErrorKind, ManagerClient, ManagerError};
use overlayd::control::session::SessionStatus;
use overlayd::control::tls::Credentials;
use overlayd::control::{renewal, session};
use overlayd::events::{Event, Told};
use overlayd::id::Version;
use overlayd::membership::Roots;
use tokio::sync::watch;

use crate::cluster::{Cluster, SECRET, closed_port, node, noon, record};
use crate::enrolment::join;
use crate::server::Server;

#[tokio::test]
async fn machine_with_a_token_joins_calls_the_manager_and_follows_its_views() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;

    let (identity, enrolled) = join(server.address, &cluster.token(SECRET)).await.expect("joined");
    assert_eq!((identity.node(), identity.role()), (node(50), Role::Worker));
    assert_eq!(enrolled.managers, [server.address]);

    let credentials = cluster.credentials(identity);
    let client = ManagerClient::new(Arc::clone(&credentials), enrolled.managers);
    assert_eq!(client.list_networks(ListNetworks {}).await.expect("networks").networks, []);

    let (views, mut view) = watch::channel(Arc::new(View::default()));
    let (status, mut connected) = watch::channel(SessionStatus::Connecting);
    let (asked, mut begun) = watch::channel(0);
    let request = || {
        asked.send_modify(|times| *times += 1);
        SessionRequest { node: record(50, Role::Worker, server.address), standing: None }
    };
    let (change, changes) = watch::channel(());
    let following = async {
        connected.wait_for(|status| *status == SessionStatus::Connected).await.expect("a session");
        view.wait_for(|view| view.version == Version::new(1)).await.expect("the first view");
        server.desk().publish(View {
            version: Version::new(2),
            managers: vec![record(2, Role::Manager, server.address)],
            removed: BTreeSet::from([node(77)]),
            removals: None,
            roots: Roots::sole(cluster.authority.root().to_vec()),
            networks: BTreeMap::new(),
        });
        let second = view.wait_for(|view| view.version == Version::new(2)).await.expect("a change").clone();
        assert_eq!(second.removed, BTreeSet::from([node(77)]));

        // The node is another now: it says so in another session, which goes on from there.
        assert_eq!(*begun.borrow(), 1);
        change.send_replace(());
        begun.wait_for(|times| *times == 2).await.expect("another session");
        server.desk().publish(View { version: Version::new(3), ..View::clone(&second) });
        view.wait_for(|view| view.version == Version::new(3)).await.expect("a change");
        assert_eq!(*connected.borrow(), SessionStatus::Connected);
    };
    tokio::select! {
        () = session::keep(client.clone(), request, changes, views, status) => unreachable!("a session is kept for ever"),
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
    let host: overlayd::id::HostName = "host".parse().expect("a name");
    let network = NewNetwork {
        name: name.clone(),
        encrypted: true,
        subnets: vec![],
        mtu: None,
        labels: BTreeMap::new(),
        node_labels: BTreeMap::new(),
    };
    let mut events = server.events.reader(None);
    for refused in [
        client.create_network(network.clone()).await.expect_err("a worker"),
        client.remove_network(RemoveNetwork { name }).await.expect_err("a worker"),
        client.token(TokenRequest { role: Role::Worker, rotate: false }).await.expect_err("a worker"),
        client.remove_node(RemoveNode { node: host.clone(), force: true }).await.expect_err("a worker"),
        client.inspect_node(InspectNode { node: host.clone() }).await.expect_err("a worker"),
        client
            .change_node(ChangeNode { node: host, change: NodeChange::Promote })
            .await
            .expect_err("a worker"),
    ] {
        assert_eq!(refused.kind, ErrorKind::Denied);
        assert!(refused.message.contains("this node is a worker, only managers may"), "{refused}");
        assert!(refused.message.ends_with("192.0.2.1:2377"), "{refused}");
        let Some(Told::Event(recorded)) = events.next().await else { panic!("no event") };
        let Event::NodeRequest { node: by, failure, .. } = &recorded.event else { panic!("{recorded}") };
        let failure = failure.as_ref().expect("a failure").to_string();
        assert_eq!(*by, node(3));
        assert!(failure.contains("only managers may"), "{failure}");
    }

    let manager = ManagerClient::new(cluster.manager(4), vec![server.address]);
    let answer = manager.create_network(network).await.expect_err("the desk makes none");
    assert_eq!(answer.kind, ErrorKind::Unavailable, "a manager's request goes through");
}

#[tokio::test]
async fn manager_tells_who_is_there_without_waiting_for_the_store() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    server.desk().silence_store();
    let client = ManagerClient::new(cluster.manager(4), vec![server.address]);
    let asked = client.presence(PresenceRequest {});
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("at once");
    assert_eq!(answer.expect("who is there").connected, [node(4)]);
    let asked = client.list_networks(ListNetworks {});
    assert!(
        tokio::time::timeout(Duration::from_millis(100), asked).await.is_err(),
        "others may have made some"
    );
}

#[tokio::test]
async fn session_for_another_node_is_denied() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let request = SessionRequest { node: record(4, Role::Worker, server.address), standing: None };
    let refused = client.session(request).await.expect_err("another node");
    assert_eq!(refused.kind, ErrorKind::Denied);
}

#[tokio::test]
async fn session_ends_when_its_node_is_removed_and_the_agent_learns_why() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let request = SessionRequest { node: record(3, Role::Worker, server.address), standing: None };
    let mut updates = client.session(request.clone()).await.expect("a session");
    updates.message().await.expect("an update").expect("the full view");

    server.credentials.replace_trust(cluster.trust().with_removed(BTreeSet::from([node(3)])));

    let ended = tokio::time::timeout(Duration::from_secs(3), updates.message()).await.expect("cut at once");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    let refused = client.session(request).await.expect_err("a removed node");
    assert_eq!(refused.kind, ErrorKind::Removed);
    assert!(refused.message.contains("was removed from its cluster"), "{refused}");
}

#[tokio::test]
async fn what_was_done_is_told_so_though_it_cuts_the_connection_of_who_asked_for_it() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let client = ManagerClient::new(cluster.worker(3), vec![server.address]);
    let mut told = server.events.reader(None);
    let removing = async {
        server.desk().await_leaving().await;
        server.credentials.replace_trust(cluster.trust().with_removed(BTreeSet::from([node(3)])));
    };
    let (left, ()) = tokio::join!(client.leave(Leave {}), removing);
    left.expect("the next connection tells");

    server.desk().let_leave();
    let request = async {
        loop {
            let Some(Told::Event(told)) = told.next().await else { panic!("no event") };
            if let Event::NodeRequest { request, failure, .. } = told.event {
                return (request, failure);
            }
        }
    };
    let request = tokio::time::timeout(Duration::from_secs(10), request).await.expect("in time");
    assert_eq!(request, ("Leave".to_owned(), None));
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
    // Under another root than that of the manager: there is a way out.
    let client = ManagerClient::new(Cluster::new(1).worker(3), vec![server.address]);
    let error = client.list_networks(ListNetworks {}).await.expect_err("none is believed");
    assert!(
        error.message.contains("(wrong CA)") && error.message.contains("overlayd leave --force"),
        "{error}"
    );
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

/// Signs for node 3.
struct Office(Cluster);

impl renewal::Signer for Office {
    async fn sign(&self, csr: String) -> Result<Renewed, ManagerError> {
        let day = time::Duration::DAY;
        let leaf = self.0.authority.issue(&csr, node(3), Role::Worker, noon(), day).expect("a certificate");
        Ok(Renewed { chain: vec![leaf], root: None })
    }
}

#[tokio::test]
async fn certificate_of_a_clock_that_was_ahead_is_renewed_at_once() {
    let cluster = Cluster::new(1);
    let ahead = noon() + time::Duration::days(60);
    let credentials = cluster.credentials(cluster.issued(3, Role::Worker, ahead, time::Duration::days(90)));
    let renewed = tokio::sync::Notify::new();
    let signer = (Office(cluster), Arc::default());
    let stored = |_: &NodeIdentity| Ok(());
    let keeping = renewal::keep(Arc::clone(&credentials), signer, stored, || renewed.notify_one());
    tokio::select! {
        () = keeping => unreachable!("certificates are renewed for ever"),
        renewed = tokio::time::timeout(Duration::from_secs(5), renewed.notified()) => renewed.expect("at once"),
    }
    assert!(credentials.identity().begins() < noon());
}

#[tokio::test]
async fn certificate_of_a_clock_that_was_late_is_renewed_soon_after_the_clock_is_set() {
    static IS_SET: AtomicBool = AtomicBool::new(false);
    let clock = || if IS_SET.load(Ordering::SeqCst) { noon() } else { noon() - time::Duration::days(20) };
    let cluster = Cluster::new(1);
    let late = cluster.issued(3, Role::Worker, clock(), time::Duration::days(10));
    let credentials = Credentials::new(late, cluster.trust(), clock).expect("credentials");
    let renewed = tokio::sync::Notify::new();
    let signer = (Office(cluster), Arc::default());
    let stored = |_: &NodeIdentity| Ok(());
    let keeping = renewal::keep(Arc::clone(&credentials), signer, stored, || renewed.notify_one());
    tokio::select! {
        () = keeping => unreachable!("certificates are renewed for ever"),
        () = async {
            // It has looked, and sleeps.
            tokio::time::sleep(Duration::from_secs(1)).await;
            IS_SET.store(true, Ordering::SeqCst);
            tokio::time::timeout(Duration::from_secs(30), renewed.notified()).await.expect("soon");
        } => {}
    }
    assert_eq!(credentials.identity().expires(), noon() + time::Duration::DAY);
}

#[tokio::test]
async fn one_node_cannot_have_connections_without_end() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let credentials = cluster.worker(3);
    let connect = async || {
        let client = ManagerClient::new(Arc::clone(&credentials), vec![server.address]);
        client.list_networks(ListNetworks {}).await.map(|_| client)
    };
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(connect().await.expect("there is room"));
    }
    connect().await.expect_err("one too many");
    server.logged("has 16 connections to this manager already").await;
    let other = ManagerClient::new(cluster.worker(4), vec![server.address]);
    other.list_networks(ListNetworks {}).await.expect("others have places of their own");
    clients.pop();
    let again = async {
        while connect().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again).await.expect("a place was given back");
}

#[tokio::test]
async fn renewed_certificate_that_others_would_refuse_is_not_taken() {
    let credentials = Cluster::new(1).worker(3);
    let before = credentials.identity().expires();
    let refused =
        renewal::renew(&credentials, &Office(Cluster::new(1)), &|_: &NodeIdentity| panic!("stored")).await;
    let refused = refused.expect_err("another authority").to_string();
    assert!(refused.contains("wrong CA"), "{refused}");
    assert_eq!(credentials.identity().expires(), before);
}
