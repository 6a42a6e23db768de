//! Tokens made to order: how they end, and that nothing but a node uses one up.

use super::*;
use crate::cluster::{TokenInfo, TokenName, TokenState};
use crate::id::TokenId;
use crate::membership::TokenSecret;

#[test]
pub(super) fn one_time_token_admits_exactly_one_of_twenty_that_try_at_once() {
    let cluster = TestCluster::new();
    issue(&cluster, 1, true, None);
    let barrier = Arc::new(std::sync::Barrier::new(20));
    let join = |n: u8| {
        let (state, barrier) = (cluster.state.clone(), Arc::clone(&barrier));
        std::thread::spawn(move || {
            assert_eq!(state.role_for_secret(&secret(1), NOW), Ok(Role::Worker));
            barrier.wait();
            state.enrol_node(worker(n), &secret(1), NOW)
        })
    };
    let threads: Vec<_> = (10..30).map(join).collect();
    let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let joined: Vec<_> = (10..30).filter(|&n| cluster.state.node(node_id(n)).is_some()).collect();
    assert_eq!(joined.len(), 1);
    let winner = node_id(joined[0]);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    for error in refused {
        assert!(matches!(error, StateError::Token(TokenRefusal::Used(by)) if *by == winner), "{error}");
    }

    let state = open_state(cluster.close().path());
    assert_eq!(state.role_for_secret(&secret(1), NOW), Err(TokenRefusal::Used(winner)));
    assert_eq!(info(&state, 1, NOW).map(|token| token.joined), Some(Some(1)));
}

#[test]
pub(super) fn join_that_fails_does_not_use_the_token_up() {
    let cluster = TestCluster::new();
    cluster.create("web", &["198.51.100.0/24"]);
    issue(&cluster, 1, true, None);
    let mut inside = worker(10);
    inside.advertise = "198.51.100.7:2377".parse().unwrap();
    let error = cluster.state.enrol_node(inside, &secret(1), NOW).unwrap_err();
    assert!(matches!(error, StateError::NodeInSubnet { .. }), "{error}");
    let error = cluster.state.enrol_node(node(1), &secret(1), NOW).unwrap_err();
    assert!(matches!(error, StateError::Token(TokenRefusal::Unknown)), "a worker's for a manager: {error}");
    assert_eq!(cluster.state.role_for_secret(&secret(1), NOW), Ok(Role::Worker));
    cluster.state.enrol_node(worker(10), &secret(1), NOW).unwrap();
    assert_eq!(info(&cluster.state, 1, NOW).unwrap().state, TokenState::Used(node_id(10)));
}

#[test]
pub(super) fn node_that_never_heard_of_itself_is_barred_and_its_token_is_as_good_as_new() {
    let cluster = TestCluster::new();
    issue(&cluster, 1, true, None);
    issue(&cluster, 2, true, None);
    cluster.state.enrol_node(worker(9), &secret(2), NOW).unwrap();
    cluster.state.enrol_node(worker(10), &secret(1), NOW).unwrap();
    cluster.state.take_back(node_id(10), NOW + 7200).unwrap();
    let error = cluster.state.take_back(node_id(10), NOW + 7200).unwrap_err();
    assert!(matches!(error, StateError::NoNode { .. }), "{error}");
    let state = open_state(cluster.close().path());
    assert_eq!((state.node(node_id(10)), state.removed_nodes()), (None, [node_id(10)].into()));
    let info = |n| info(&state, n, NOW).map(|token| (token.state, token.joined));
    assert_eq!(info(1), Some((TokenState::Valid, Some(0))));
    assert_eq!(info(2), Some((TokenState::Used(node_id(9)), Some(1))), "another's stays used");
    state.enrol_node(worker(11), &secret(1), NOW).unwrap();
    assert_eq!(state.role_for_secret(&secret(1), NOW), Err(TokenRefusal::Used(node_id(11))));
}

#[test]
pub(super) fn expired_token_stays_expired_when_the_clock_is_set_back() {
    let cluster = TestCluster::new();
    issue(&cluster, 1, false, Some(7200));
    let (state, end) = (&cluster.state, NOW + 7200);
    assert_eq!(state.role_for_secret(&secret(1), end - 1), Ok(Role::Worker));
    state.enrol_node(worker(10), &secret(1), end - 1).unwrap();
    state.enrol_node(worker(11), &secret(1), end - 1).unwrap();
    assert_eq!(state.role_for_secret(&secret(1), end), Err(TokenRefusal::Expired));
    let error = state.enrol_node(worker(12), &secret(1), end).unwrap_err();
    assert!(matches!(error, StateError::Token(TokenRefusal::Expired)), "{error}");
    assert_eq!(info(state, 1, end).unwrap().state, TokenState::Expired);

    state.settle_tokens(end).unwrap();
    let version = state.version();
    state.settle_tokens(end).unwrap();
    assert_eq!(state.version(), version, "nothing was to be written");
    let state = open_state(cluster.close().path());
    assert_eq!(state.role_for_secret(&secret(1), NOW), Err(TokenRefusal::Expired));
    assert_eq!(state.tokens_changed(), end);
}

#[test]
pub(super) fn removed_token_says_so_to_its_holder_and_nothing_to_others() {
    let cluster = TestCluster::new();
    issue(&cluster, 1, false, None);
    cluster.state.remove_token(token_id(1), NOW).unwrap();
    cluster.state.remove_token(token_id(1), NOW).expect("once more is no mistake");
    assert_eq!(cluster.state.role_for_secret(&secret(1), NOW), Err(TokenRefusal::Removed));
    assert_eq!(cluster.state.role_for_secret(&secret(2), NOW), Err(TokenRefusal::Unknown));
    let error = cluster.state.remove_token(token_id(2), NOW).unwrap_err();
    assert!(error.to_string().contains("overlayd token ls lists them"), "{error}");
}

#[test]
pub(super) fn standing_tokens_are_listed_first_and_work_as_before() {
    let cluster = TestCluster::new();
    issue(&cluster, 1, false, None);
    let names: Vec<_> = cluster.state.tokens(NOW).into_iter().map(|token| token.name).collect();
    let standing = [Role::Worker, Role::Manager].map(TokenName::Standing);
    assert_eq!(names, [standing[0], standing[1], TokenName::Issued(token_id(1))]);
    cluster.state.enrol_node(worker(10), &[1; 16], NOW).unwrap();
    cluster.state.enrol_node(worker(11), &[1; 16], NOW).unwrap();
}

#[test]
pub(super) fn tokens_are_bounded_and_ended_ones_are_forgotten() {
    let cluster = TestCluster::in_memory();
    let issue = |n, now| cluster.state.issue_token(&new_token(n, true, Some(3600)), now);
    for n in 0..256 {
        issue(n, NOW).unwrap();
    }
    let error = issue(256, NOW).unwrap_err();
    assert!(error.to_string().contains("overlayd token rm"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let later = NOW + 3600;
    for n in 256..512 {
        issue(n, later).unwrap();
    }
    cluster.state.issue_token(&new_token(512, true, None), later + 3600).unwrap();
    let listed = |now| cluster.state.tokens(now).len() - 2;
    assert_eq!(listed(later + 3600), 257, "256 that have ended, the older ones forgotten, and one");
    cluster.state.settle_tokens(later + 3600 + 31 * 24 * 3600).unwrap();
    assert_eq!(listed(later), 1, "what ended over 30 days ago is forgotten");
    assert_eq!(cluster.state.role_for_secret(&secret(0), later), Err(TokenRefusal::Unknown));
}

#[test]
pub(super) fn lives_too_short_or_too_long_are_refused() {
    let cluster = TestCluster::in_memory();
    for life in [0, 10 * 365 * 24 * 3600 + 1, u64::MAX] {
        let error = cluster.state.issue_token(&new_token(1, false, Some(life)), NOW).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("without --ttl"), "{error}");
    }
}

#[test]
pub(super) fn row_of_a_token_does_not_hold_its_secret() {
    let cluster = TestCluster::in_memory();
    issue(&cluster, 77, false, None);
    let row = serde_json::to_string(&cluster.state.model().issued_tokens).unwrap();
    assert!(row.contains(token_id(77).as_str()), "{row}");
    let secret = TokenSecret::from_entropy(secret(77));
    let hex = data_encoding::HEXLOWER.encode(secret.as_bytes());
    let json = serde_json::to_string(secret.as_bytes()).unwrap();
    for needle in [secret.reveal().as_str(), &hex, &json] {
        assert!(!row.contains(needle), "{row}");
    }
}

const NOW: u64 = 1_800_000_000;

fn issue(cluster: &TestCluster, n: u32, once: bool, life: Option<u64>) {
    cluster.state.issue_token(&new_token(n, once, life), NOW).unwrap();
}

fn new_token(n: u32, once: bool, life: Option<u64>) -> NewToken {
    let secret = TokenSecret::from_entropy(secret(n));
    NewToken { id: token_id(n), secret, role: Role::Worker, once, life: life.map(Duration::from_secs) }
}

/// None of the standing tokens'.
fn secret(n: u32) -> [u8; 16] {
    (u128::from(n) << 64 | 0x5ec2e7).to_le_bytes()
}

fn token_id(n: u32) -> TokenId {
    TokenId::from_entropy(u128::from(n).to_le_bytes())
}

fn worker(n: u8) -> Node {
    Node { role: Role::Worker, ..node(n) }
}

fn info(state: &ClusterState, n: u32, now: u64) -> Option<TokenInfo> {
    state.tokens(now).into_iter().find(|token| token.name == TokenName::Issued(token_id(n)))
}
