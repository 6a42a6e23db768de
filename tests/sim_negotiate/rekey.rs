//! New keys for old: by age, by traffic and by an operator, asked for by either side or both at once.

use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::id::LaneId;
use rand::RngExt;

use super::world::{INITIATOR, RESPONDER, World};

#[test]
fn rekey_wanted_by_both_a_thousand_times_at_once_makes_exactly_one_new_pair() {
    let mut world = World::new(3, [2, 2]);
    world.connect();
    world.settle();
    for _ in 0..1000 {
        for side in [INITIATOR, RESPONDER] {
            world.with(side, |link, env| link.handle_rekey_wanted(env, None));
        }
    }
    world.settle();
    world.assert_agreed();
    assert_eq!(world.nodes.each_ref().map(|node| node.established), [2, 2]);
}

#[test]
fn word_of_replaced_keys_does_not_replace_the_new_ones() {
    let mut world = World::new(4, [1, 1]);
    world.connect();
    world.settle();
    let old = world.nodes[RESPONDER].link.established().unwrap().outbound[0];
    world.with(RESPONDER, |link, env| link.handle_rekey_wanted(env, Some(old)));
    world.settle();
    for side in [INITIATOR, RESPONDER] {
        world.with(side, |link, env| link.handle_rekey_wanted(env, Some(old)));
    }
    world.settle();
    assert_eq!(world.nodes.each_ref().map(|node| node.established), [2, 2]);
}

#[test]
fn keys_are_replaced_by_age_and_no_packet_is_lost_meanwhile() {
    let mut world = World::new(5, [1, 2]);
    world.connect();
    world.settle();
    for _ in 0..4 * 3600 {
        world.advance(Duration::from_secs(1));
        world.settle();
        world.assert_packets_pass();
    }
    let made = world.nodes[INITIATOR].established;
    assert!((14..=18).contains(&made), "{made} generations in 4 hours");
}

/// An exchange has few steps; the channel is cut after each, at once or a while later seen, and
/// packets must pass without a channel and after it is back.
#[test]
fn channel_cut_after_any_step_of_a_rekey_loses_no_packet() {
    for first_noticed in [INITIATOR, RESPONDER] {
        for cut_after in 0..14 {
            let mut world = World::new(6, [2, 1]);
            world.connect();
            world.settle();
            world.with(INITIATOR, |link, env| link.handle_rekey_wanted(env, None));
            for _ in 0..cut_after {
                world.step();
            }
            world.cut();
            world.notice_cut(first_noticed);
            world.settle();
            world.assert_packets_pass();
            world.notice_cut(1 - first_noticed);
            for _ in 0..60 {
                world.settle();
                world.assert_packets_pass();
                world.advance(Duration::from_secs(1));
            }
            world.connect();
            for _ in 0..10 {
                world.settle();
                world.assert_packets_pass();
                world.advance(Duration::from_secs(6));
            }
            world.assert_agreed();
            assert_eq!(world.nodes[INITIATOR].established, 2, "cut after step {cut_after}");
        }
    }
}

#[test]
fn keys_that_cannot_be_replaced_end_at_their_hard_age_on_both_sides() {
    let mut world = World::new(13, [1, 1]);
    world.connect();
    world.settle();
    world.cut();
    world.notice_cut(INITIATOR);
    world.notice_cut(RESPONDER);
    world.advance(Duration::from_secs(3600));
    for side in [INITIATOR, RESPONDER] {
        let sent = world.send_packet(side, LaneId::new(0).unwrap());
        assert_eq!(sent, Some(Err(DropReason::SaExpired)));
    }
    world.advance(Duration::from_secs(11));
    assert!(world.nodes.iter().all(|node| node.link.established().is_none() && node.pool.is_empty()));
}

/// Whoever asks first, the other asks too before it has the new keys; frames arrive and lanes
/// acknowledge in any order.
#[test]
fn rekey_asked_for_from_both_ends_at_once_makes_exactly_one_new_pair_whatever_the_order() {
    for seed in 0..1000 {
        let mut world = World::new(10_000 + seed, [2, 1]);
        world.connect();
        world.settle();
        let before = world.nodes[INITIATOR].link.established().unwrap().clone();
        let first = world.rng.random_range(0..2);
        world.ask_for_rekey(first);
        let (second, steps) = (1 - first, world.rng.random_range(0..8));
        for _ in 0..steps {
            if world.nodes[second].link.established().unwrap().exchange == before.exchange {
                world.step_in_any_order();
            }
        }
        let is_behind = world.nodes[second].link.established().unwrap().exchange == before.exchange;
        if is_behind {
            world.ask_for_rekey(second);
        }
        world.settle();
        world.advance(Duration::from_secs(30));
        world.settle();
        world.assert_agreed();
        let made = world.nodes.each_ref().map(|node| node.established);
        assert_eq!(made, [2, 2], "seed {}: asked by {first}, and after {steps} steps", 10_000 + seed);
    }
}

#[test]
fn wish_for_new_keys_outlives_the_channel_that_was_cut() {
    for side in [INITIATOR, RESPONDER] {
        let mut world = World::new(20, [1, 1]);
        world.connect();
        world.settle();
        world.cut();
        world.notice_cut(INITIATOR);
        world.notice_cut(RESPONDER);
        // A lane tells of a soft limit once.
        let spi = world.nodes[side].link.established().unwrap().outbound[0];
        world.with(side, |link, env| link.handle_rekey_wanted(env, Some(spi)));
        world.advance(Duration::from_secs(60));
        world.connect();
        world.settle();
        world.advance(Duration::from_secs(1));
        world.settle();
        world.assert_agreed();
        assert_eq!(world.nodes.each_ref().map(|node| node.established), [2, 2]);
    }
}

#[test]
fn peer_that_was_frozen_is_given_new_keys_as_soon_as_it_goes_on() {
    for frozen in [INITIATOR, RESPONDER] {
        let mut world = World::new(21, [1, 1]);
        world.connect();
        world.settle();
        let awake = 1 - frozen;
        let spi = world.nodes[awake].link.established().unwrap().outbound[0];
        world.with(awake, |link, env| link.handle_rekey_wanted(env, Some(spi)));
        for _ in 0..100 {
            world.advance_for(&[awake], Duration::from_secs(1));
            while world.acknowledge(awake) || world.deliver(awake) {}
        }
        assert_eq!(world.nodes[awake].established, 1, "a peer that does nothing has agreed");
        world.settle();
        world.advance(Duration::from_secs(1));
        world.settle();
        world.assert_agreed();
    }
}

#[test]
fn generation_in_use_is_not_replaced_while_packets_of_the_one_before_are_under_way() {
    for side in [INITIATOR, RESPONDER] {
        let mut world = World::new(22, [1, 1]);
        world.connect();
        world.settle();
        let under_way = world.seal_packet(1 - side, LaneId::new(0).unwrap()).unwrap().unwrap();
        for _ in 0..2 {
            world.ask_for_rekey(side);
            world.settle();
        }
        assert_eq!(world.open_packet(side, under_way), Ok(()));
        world.advance(Duration::from_secs(1));
        world.settle();
        world.assert_agreed();
        assert!(world.nodes.iter().all(|node| node.established == 3), "the wish was forgotten");
    }
}
