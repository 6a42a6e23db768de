//! Two nodes that negotiate keys, on a virtual clock, with everything that can happen to them: the
//! channel cut at any moment and noticed late, frames twice, lanes slow to acknowledge, restarts.
//!
//! The lanes here hold real SAs, so "the keys match" means that what one side seals the other opens.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod rekey;
mod world;

use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::id::{Epoch, LaneCount, LaneId};
use overlayd::negotiate::{Reason, Standing};
use overlayd::sa::Suite;

use world::{Flip, INITIATOR, RESPONDER, World};

#[test]
fn two_nodes_agree_and_packets_pass_both_ways_on_every_lane() {
    for lanes in [[1, 1], [1, 4], [4, 1], [3, 2], [64, 64]] {
        let mut world = World::new(1, lanes);
        world.connect();
        world.settle();
        world.assert_agreed();
        assert_eq!(world.nodes.each_ref().map(|node| node.established), [1, 1]);
    }
}

#[test]
fn node_that_cannot_steer_receives_by_its_first_lane_and_sends_by_all() {
    let mut world = World::new(14, [3, 4]);
    world.configure(|config, side| {
        if side == RESPONDER {
            config.receiving_lanes = LaneCount::ONE;
        }
    });
    world.connect();
    world.settle();
    world.assert_agreed();
    let keys = |side: usize| world.nodes[side].link.established().unwrap();
    let receivers = |side| keys(side).inbound.iter().map(|spi| spi.lane().index()).collect::<Vec<_>>();
    assert_eq!(receivers(RESPONDER), [0, 0, 0]);
    assert_eq!(receivers(INITIATOR), [0, 1, 2, 0]);
    assert_eq!(keys(RESPONDER).outbound.len(), 4);
}

#[test]
fn suite_is_the_first_of_the_initiator_that_the_responder_has() {
    let chacha = vec![Suite::ChaCha20Poly1305];
    let both = vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
    for (initiator, responder, expected) in [
        (both.clone(), both.iter().rev().copied().collect(), Some(Suite::Aes256Gcm)),
        (both.clone(), chacha.clone(), Some(Suite::ChaCha20Poly1305)),
        (chacha, vec![Suite::Aes128Gcm], None),
    ] {
        let mut world = World::new(2, [1, 1]);
        world.configure(|config, side| {
            config.suites = if side == INITIATOR { initiator.clone() } else { responder.clone() };
        });
        world.connect();
        world.settle();
        let agreed = world.nodes[RESPONDER].link.established().map(|established| established.suite);
        assert_eq!(agreed, expected);
        if expected.is_none() {
            assert!(world.nodes[INITIATOR].refused.contains(&(true, Reason::NoCommonSuite)));
            assert!(world.nodes[RESPONDER].refused.contains(&(false, Reason::NoCommonSuite)));
        }
    }
}

#[test]
fn restart_of_either_side_drops_the_old_keys_at_once_and_negotiates_again() {
    for side in [INITIATOR, RESPONDER] {
        let mut world = World::new(7, [1, 1]);
        world.connect();
        world.settle();
        world.restart(side);
        world.connect();
        world.settle();
        assert_eq!(world.nodes[1 - side].links_dropped, 1);
        world.assert_agreed();
    }
}

#[test]
fn unknown_spi_told_over_the_channel_brings_new_keys() {
    for side in [INITIATOR, RESPONDER] {
        let mut world = World::new(8, [1, 1]);
        world.connect();
        world.settle();
        world.nodes[side].inbound.clear();
        world.send_packet(1 - side, LaneId::new(0).unwrap());
        world.settle();
        world.assert_agreed();
        assert_eq!(world.nodes[side].established, 2);
    }
}

#[test]
fn node_that_is_no_member_is_refused_and_loses_its_keys() {
    let mut world = World::new(9, [1, 1]);
    let out = Standing { epoch: Epoch::new(9), peer_is_member: false };
    world.with(RESPONDER, |link, env| link.handle_membership(env, out));
    world.connect();
    world.settle();
    let reason = Reason::NotAMember { epoch: Epoch::new(9) };
    assert_eq!(world.nodes[RESPONDER].refused, [(false, reason)]);
    assert_eq!(world.nodes[INITIATOR].refused, [(true, reason)]);
    assert_eq!(world.nodes[INITIATOR].stale, 1, "the refused node asks for the newer membership");
    assert!(world.nodes.iter().all(|node| node.outbound.is_empty() && node.inbound.is_empty()));

    let back = Standing { epoch: Epoch::new(10), peer_is_member: true };
    world.with(RESPONDER, |link, env| link.handle_membership(env, back));
    world.settle();
    world.assert_agreed();

    let older = Standing { epoch: Epoch::new(9), peer_is_member: false };
    world.with(RESPONDER, |link, env| link.handle_membership(env, older));
    world.assert_agreed();
    let out = Standing { epoch: Epoch::new(11), peer_is_member: false };
    world.with(INITIATOR, |link, env| link.handle_membership(env, out));
    assert!(world.nodes[INITIATOR].outbound.is_empty() && world.nodes[INITIATOR].inbound.is_empty());
    assert!(world.nodes[INITIATOR].pool.is_empty());
}

#[test]
fn older_epoch_of_a_member_is_answered_with_the_newer_membership() {
    let mut world = World::new(10, [1, 1]);
    let newer = Standing { epoch: Epoch::new(5), peer_is_member: true };
    world.with(RESPONDER, |link, env| link.handle_membership(env, newer));
    world.connect();
    world.settle();
    world.assert_agreed();
    assert_eq!(world.nodes[RESPONDER].passed_on, 1);
}

#[test]
fn any_flipped_byte_of_offer_or_answer_gives_no_working_keys() {
    for from in [INITIATOR, RESPONDER] {
        let mut at = 4;
        loop {
            let mut world = World::new(11, [1, 1]);
            world.flip = Some(Flip { from, at, done: false, len: 0 });
            world.connect();
            world.settle();
            let flip = world.flip.unwrap();
            if at >= flip.len {
                assert!(flip.len > 100, "no offer or answer passed");
                break;
            }
            assert!(flip.done);
            for side in [INITIATOR, RESPONDER] {
                let opened = world.send_packet(side, LaneId::new(0).unwrap());
                assert_ne!(opened, Some(Ok(())), "byte {at} from {from} flipped, packet of {side} opened");
            }
            at += 1;
        }
    }
}

#[test]
fn another_exporter_on_each_side_gives_no_working_keys() {
    let mut world = World::new(12, [1, 1]);
    world.man_in_the_middle = true;
    world.connect();
    world.settle();
    for side in [INITIATOR, RESPONDER] {
        let opened = world.send_packet(side, LaneId::new(0).unwrap()).unwrap();
        assert_eq!(opened, Err(DropReason::AuthenticationFailed));
    }
}

#[test]
fn seven_hundred_random_lives_all_end_with_the_same_working_keys() {
    for seed in 0..700 {
        let lanes = [1 + seed % 3, 1 + seed % 2].map(|lanes| u8::try_from(lanes).unwrap());
        let mut world = World::new(1000 + seed, lanes);
        world.configure(|config, _| {
            config.limits.soft_age = Some(Duration::from_secs(20));
            config.limits.hard_age = Some(Duration::from_secs(90));
        });
        for _ in 0..300 {
            world.random_event();
        }
        world.cut();
        world.notice_cut(INITIATOR);
        world.notice_cut(RESPONDER);
        world.duplicate = false;
        world.connect();
        for _ in 0..40 {
            world.settle();
            world.advance(Duration::from_secs(1));
        }
        world.settle();
        world.assert_agreed();
        for node in &world.nodes {
            let held = node.inbound.values().filter(|held| held.sa.expires_at() > world.now).count();
            assert_eq!(node.pool.len(), held, "seed {seed}: SPIs leaked or given back too early");
        }
    }
}
