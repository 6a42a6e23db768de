//! The replacement of the root, step by step.

use super::*;
use crate::cluster::RotationStep;
use crate::control::state::{Advance, NewRotation, RootStanding};
use crate::membership::{Root, RootFingerprint, Roots};

#[test]
pub(super) fn rotation_takes_each_step_when_every_node_has_done_its_part_and_not_before() {
    let cluster = TestCluster::new();
    cluster.create("web", &["10.1.0.0/24"]);
    cluster.state.attach(node_id(1), &request(1, "web")).unwrap();
    let nodes: Vec<NodeId> = cluster.state.nodes().into_iter().map(|status| status.node.id).collect();
    assert_eq!(cluster.state.roots(), Roots::sole(OLD));

    cluster.state.begin_rotation(new_rotation(NEW)).unwrap();
    assert_eq!(cluster.state.roots(), Roots::pair(Root::plain(OLD.into()), new_root()));
    assert_eq!(cluster.state.ca().unwrap().as_slice(), b"root and key");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::Waiting);
        assert_eq!(cluster.state.rotation().unwrap().1.len(), nodes.len() - index);
        note(&cluster, *node, &[OLD, NEW], OLD);
    }

    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::To(RotationStep::Reissue));
    assert_eq!(cluster.state.roots().issuing(), Some(&new_root()));
    assert!(cluster.state.roots().contains(OLD));
    assert_eq!(cluster.state.ca().unwrap().as_slice(), b"the next root and key");
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::Waiting);
    nodes.iter().for_each(|node| note(&cluster, *node, &[OLD, NEW], NEW));

    let (epoch, members) = cluster.membership("web");
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::To(RotationStep::Retire));
    // A membership that the old root's certificates vouched for would be lost with it.
    assert_eq!(cluster.membership("web"), (epoch + 1, members));
    assert_eq!(cluster.state.roots(), Roots::sole(NEW));
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::Waiting);
    nodes.iter().for_each(|node| note(&cluster, *node, &[NEW], NEW));

    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::Done);
    assert_eq!((cluster.state.rotation(), cluster.state.roots()), (None, Roots::sole(NEW)));
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::Waiting);
}

#[test]
pub(super) fn rotation_is_where_it_was_after_opening_again_in_each_step() {
    let mut cluster = TestCluster::new();
    let nodes: Vec<NodeId> = cluster.state.nodes().into_iter().map(|status| status.node.id).collect();
    cluster.state.begin_rotation(new_rotation(NEW)).unwrap();
    for (trusted, issuer) in [(&[OLD, NEW][..], OLD), (&[OLD, NEW], NEW), (&[NEW], NEW)] {
        let (before, view) = (cluster.settled(), cluster.state.view_for(nodes[0]));
        cluster = TestCluster::open(cluster.close());
        assert_eq!(cluster.settled(), before);
        assert_eq!(cluster.state.view_for(nodes[0]).roots, view.roots);
        nodes.iter().for_each(|node| note(&cluster, *node, trusted, issuer));
        cluster = TestCluster::open(cluster.close());
        let mut told = Told::default();
        let _ = hear(&cluster.state, nodes[0], &mut told);
        assert_ne!(cluster.state.advance_rotation().unwrap(), Advance::Waiting);
        let news = hear(&cluster.state, nodes[0], &mut told).unwrap();
        assert_eq!(news.outline.roots, Some(cluster.state.roots()));
    }
    assert_eq!(cluster.state.rotation(), None);
    assert_eq!(TestCluster::open(cluster.close()).state.roots(), Roots::sole(NEW));
}

#[test]
pub(super) fn removed_node_is_waited_for_no_more_and_one_that_joins_meanwhile_is() {
    let cluster = TestCluster::new();
    let nodes: Vec<NodeId> = cluster.state.nodes().into_iter().map(|status| status.node.id).collect();
    let (dead, alive) = nodes.split_last().unwrap();
    cluster.state.begin_rotation(new_rotation(NEW)).unwrap();
    alive.iter().for_each(|node| note(&cluster, *node, &[OLD, NEW], OLD));
    let waiting: Vec<NodeId> = cluster.state.rotation().unwrap().1.into_iter().map(|node| node.id).collect();
    assert_eq!(waiting, [*dead]);
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::Waiting);

    cluster.state.add_node(node(99)).unwrap();
    cluster.state.remove_node(*dead, 1000, Takes::Endpoints).unwrap();
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::Waiting);
    note(&cluster, node_id(99), &[OLD, NEW], OLD);
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::To(RotationStep::Reissue));

    // The list of removed nodes outlives the root that it was signed under, as memberships do.
    let before = cluster.state.view_for(node_id(99)).removals.unwrap();
    alive.iter().chain([&node_id(99)]).for_each(|node| note(&cluster, *node, &[OLD, NEW], NEW));
    assert_eq!(cluster.state.advance_rotation().unwrap(), Advance::To(RotationStep::Retire));
    let after = cluster.state.view_for(node_id(99)).removals.unwrap();
    assert_ne!(after.payload, before.payload, "it has a later epoch");
}

#[test]
pub(super) fn second_rotation_and_the_present_root_are_refused() {
    let cluster = TestCluster::new();
    let error = cluster.state.begin_rotation(new_rotation(OLD)).unwrap_err();
    assert!(error.to_string().contains("the present one already"), "{error}");
    cluster.state.begin_rotation(new_rotation(NEW)).unwrap();
    let error = cluster.state.begin_rotation(new_rotation(b"a third")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("overlayd ca status"), "{error}");
}

#[test]
pub(super) fn stranger_has_no_say_in_a_rotation() {
    let cluster = TestCluster::new();
    let standing = RootStanding { trusted: [].into(), issuer: RootFingerprint::of(OLD) };
    let error = cluster.state.note_standing(node_id(77), standing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[test]
fn node_cannot_say_that_it_trusts_roots_without_end() {
    let cluster = TestCluster::new();
    let version = cluster.state.version();
    let trusted = (0..9u8).map(|root| RootFingerprint::of(&[root])).collect();
    let standing = RootStanding { trusted, issuer: RootFingerprint::of(OLD) };
    let error = cluster.state.note_standing(node_id(1), standing).unwrap_err();
    assert_eq!((error.kind(), cluster.state.version()), (ErrorKind::Invalid, version));
}

fn note(cluster: &TestCluster, node: NodeId, trusted: &[&[u8]], issuer: &[u8]) {
    let standing = RootStanding {
        trusted: trusted.iter().map(|root| RootFingerprint::of(root)).collect(),
        issuer: RootFingerprint::of(issuer),
    };
    cluster.state.note_standing(node, standing).unwrap();
}

pub(super) fn new_rotation(root: &[u8]) -> NewRotation {
    NewRotation {
        new: Root::crossed(root.to_vec(), b"signed by the old".to_vec()),
        ca: b"the next root and key".to_vec().into(),
        now: 1_800_000_000,
    }
}

fn new_root() -> Root {
    new_rotation(NEW).new
}

const OLD: &[u8] = b"root";
pub(super) const NEW: &[u8] = b"another root";
