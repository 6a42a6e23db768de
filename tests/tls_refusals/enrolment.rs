//! Joining with a token.

use std::net::SocketAddr;
use std::time::Duration;

use overlayd::cluster::Role;
use overlayd::control::enrol;
use overlayd::control::enrol::{EnrolError, EnrolRefusal, Enrolled, Joining};
use overlayd::control::identity::{NodeIdentity, NodeKey};
use overlayd::events::{Event, Told};
use overlayd::membership::JoinToken;

use crate::cluster::{Cluster, SECRET, closed_port, node, noon};
use crate::server::Server;

#[tokio::test]
async fn wrong_secret_is_refused_and_the_eleventh_attempt_is_told_when_to_try_again() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let mut events = server.events.reader(None);
    for attempt in 0..11 {
        let error = join(server.address, &cluster.token([0; 16])).await.expect_err("a guess");
        let EnrolError::Refused(refusal) = error else { panic!("{error}") };
        if let EnrolRefusal::TooManyAttempts { retry_seconds } = refusal {
            assert_eq!(attempt, 10);
            assert!((1..=6).contains(&retry_seconds), "{retry_seconds}");
        } else {
            assert_eq!(refusal, EnrolRefusal::WrongSecret, "attempt {attempt}");
            assert!(attempt < 10);
        }
        let Some(Told::Event(recorded)) = events.next().await else { panic!("no event") };
        let Event::JoinRefused { from, reason } = &recorded.event else { panic!("{}", recorded.event) };
        assert!(from.ip().is_loopback());
        assert_eq!(reason.to_string(), refusal.to_string());
    }
    assert_eq!(server.desk().enrolments(), 10, "who is told to wait is not heard");
    assert_eq!((server.joins.admitted(), server.joins.refused(), server.joins.turned_away()), (0, 10, 1));
}

#[tokio::test]
async fn token_of_another_cluster_is_noticed_before_the_secret_is_sent() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let error = join(server.address, &Cluster::new(9).token(SECRET)).await;
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
    let error = join(server.address, &ours.token(SECRET)).await.expect_err("a forgery");
    assert!(error.to_string().contains("wrong CA"), "{error}");
    assert_eq!(server.desk().enrolments(), 0);
}

#[tokio::test]
async fn joining_says_whether_the_manager_is_away_or_the_clock_is_wrong() {
    let cluster = Cluster::new(1);
    let dead = closed_port().await;
    let error = join(dead, &cluster.token(SECRET)).await.expect_err("nobody");
    assert!(error.to_string().contains(&format!("{dead} cannot be reached")), "{error}");

    let early = cluster.issued(2, Role::Manager, noon() + time::Duration::days(9), time::Duration::DAY);
    let server = Server::start_manager(&cluster, cluster.credentials(early)).await;
    let error = join(server.address, &cluster.token(SECRET)).await.expect_err("a clock");
    assert!(error.to_string().contains("the clock of this machine says 2027-01-15T08:00:00Z"), "{error}");
}

#[tokio::test]
async fn machine_that_goes_while_a_slow_cluster_admits_it_is_taken_out_again_and_not_held_to_have_failed() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let desk = server.desk();
    desk.hold_enrolments(true);
    // More than may fail.
    for attempt in 1..=12 {
        let (address, token) = (server.address, cluster.token(SECRET));
        let joining = tokio::spawn(async move { join(address, &token).await });
        desk.await_enrolments(attempt).await;
        joining.abort();
        assert!(joining.await.expect_err("it is gone").is_cancelled());
    }
    desk.hold_enrolments(false);
    let taken_back = tokio::time::timeout(Duration::from_secs(30), desk.await_taken_back(12)).await;
    assert_eq!(taken_back.expect("each of them"), [node(50); 12]);
    join(server.address, &cluster.token(SECRET)).await.expect("it may try again");
    assert_eq!((server.joins.admitted(), server.joins.refused(), server.joins.turned_away()), (1, 12, 0));
    assert_eq!(desk.await_taken_back(0).await.len(), 12, "who was told is a node");
}

#[tokio::test]
async fn machine_is_admitted_however_long_a_change_of_the_state_takes() {
    let cluster = Cluster::new(1);
    let server = Server::start_manager(&cluster, cluster.manager(2)).await;
    let desk = server.desk();
    desk.hold_enrolments(true);
    let (address, token) = (server.address, cluster.token(SECRET));
    let joining = tokio::spawn(async move { join(address, &token).await });
    desk.await_enrolments(1).await;
    // Longer than who says nothing is listened to.
    tokio::time::sleep(Duration::from_secs(12)).await;
    desk.hold_enrolments(false);
    let (identity, _) = joining.await.expect("no panic").expect("admitted");
    assert_eq!(identity.node(), node(50));
}

pub(crate) async fn join(
    manager: SocketAddr,
    token: &JoinToken,
) -> Result<(NodeIdentity, Enrolled), EnrolError> {
    let machine = Joining {
        host: "newcomer".parse().expect("a name"),
        advertise: None,
        advertise_port: 2377,
        data: None,
        underlay_mtu: 1500,
        taken: None,
    };
    enrol::enrol(manager, token, machine, noon).await
}
