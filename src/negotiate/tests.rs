//! What a hostile or broken peer can say, message by message: each is refused with its own reason,
//! and none leaves an SA. Two honest nodes are `tests/sim_negotiate.rs`.

use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::message::{Answer, LinkMessage, Offer};
use super::*;
use crate::boot_time::BootTime;
use crate::id::{BootId, Epoch, LaneCount, NetworkId, NodeId, Vni};
use crate::sa::{LimitOverrides, Suite};

#[test]
fn each_wrong_field_of_an_offer_is_refused_by_name_and_leaves_no_sa() {
    let cases: Vec<Spoilt<Offer>> = vec![
        (|offer| offer.vni = 8, Reason::WrongVni { vni: 8 }),
        (|offer| offer.boot_id = BootId::from_entropy([9; 16]), Reason::WrongBootId),
        (|offer| offer.suites = vec![], Reason::NoCommonSuite),
        (|offer| offer.suites = vec![0, 2, 200], Reason::NoCommonSuite),
        (|offer| offer.share = [0; 32], Reason::LowOrderShare),
        (|offer| offer.share = ORDER_EIGHT, Reason::LowOrderShare),
        (|offer| offer.spis = vec![], Reason::WrongLaneCount { count: 0 }),
        (|offer| offer.spis = vec![0x1000, 0x1040, 0x1080], Reason::WrongLaneCount { count: 3 }),
        (|offer| offer.spis[1] = 255, Reason::ReservedSpi { spi: 255 }),
        (|offer| offer.spis[1] = offer.spis[0], Reason::DuplicateSpi { spi: 0x1000 }),
        (|offer| offer.spis[1] = 0x1003, Reason::SpiOfNoLane { spi: 0x1003 }),
    ];
    for (spoil, reason) in cases {
        let mut responder = Side::new(RESPONDER);
        let mut offer = offer();
        spoil(&mut offer);
        responder.hear(&LinkMessage::Offer(offer));
        responder.assert_refused(reason);
    }
}

#[test]
fn each_wrong_field_of_an_answer_is_refused_by_name_and_leaves_no_sa() {
    let cases: Vec<Spoilt<Answer>> = vec![
        (|answer| answer.suite = 2, Reason::SuiteNotOffered { code: 2 }),
        (|answer| answer.suite = 0, Reason::SuiteNotOffered { code: 0 }),
        (|answer| answer.share = [0; 32], Reason::LowOrderShare),
        (|answer| answer.spis.truncate(1), Reason::WrongLaneCount { count: 1 }),
        (|answer| answer.spis[0] = 0, Reason::ReservedSpi { spi: 0 }),
        (|answer| answer.spis[1] = answer.spis[0], Reason::DuplicateSpi { spi: 0x2000 }),
        (|answer| answer.spis[0] = 0x203f, Reason::SpiOfNoLane { spi: 0x203f }),
        (|answer| answer.exchange = ExchangeId::new(1).unwrap(), Reason::UnknownExchange),
    ];
    for (spoil, reason) in cases {
        let mut initiator = Side::new(INITIATOR);
        let mut answer = initiator.answer_to_its_offer();
        spoil(&mut answer);
        initiator.hear(&LinkMessage::Answer(answer));
        initiator.assert_refused(reason);
    }
}

#[test]
fn unspoilt_offer_and_answer_are_taken() {
    let mut responder = Side::new(RESPONDER);
    responder.hear(&LinkMessage::Offer(offer()));
    let mut initiator = Side::new(INITIATOR);
    let answer = initiator.answer_to_its_offer();
    initiator.hear(&LinkMessage::Answer(answer));
    for side in [responder, initiator] {
        assert!(side.actions.iter().any(|action| matches!(action, Action::Install(_))));
    }
}

#[test]
fn messages_out_of_role_or_state_are_refused() {
    let exchange = ExchangeId::new(5).unwrap();
    let answer = Answer { exchange, suite: 1, share: BASE_POINT, nonce: [0; 32], spis: vec![0x2000, 0x2040] };
    for (side, message, reason) in [
        (INITIATOR, LinkMessage::Offer(offer()), Reason::NotTheInitiator),
        (INITIATOR, LinkMessage::Active(exchange), Reason::OutOfState),
        (INITIATOR, LinkMessage::Answer(answer.clone()), Reason::UnknownExchange),
        (RESPONDER, LinkMessage::Answer(answer), Reason::OutOfState),
        (RESPONDER, LinkMessage::Active(exchange), Reason::UnknownExchange),
        (RESPONDER, LinkMessage::RekeyPlease(None), Reason::OutOfState),
    ] {
        let mut side = Side::new(side);
        side.hear(&message);
        side.assert_refused(reason);
    }
}

#[test]
fn exchange_id_in_use_and_another_network_are_refused() {
    let mut responder = Side::new(RESPONDER);
    responder.hear(&LinkMessage::Offer(offer()));
    responder.actions.clear();
    responder.hear(&LinkMessage::Offer(offer()));
    responder.assert_refused(Reason::ReusedExchange);

    let mut responder = Side::new(RESPONDER);
    let other = NetworkId::from_entropy([9; 16]);
    responder.hear_frame(&LinkMessage::Offer(offer()).encode(other));
    responder.assert_refused(Reason::UnknownNetwork);
}

#[test]
fn answer_leaves_only_after_the_lanes_have_acknowledged() {
    let mut responder = Side::new(RESPONDER);
    responder.hear(&LinkMessage::Offer(offer()));
    assert!(!responder.actions.iter().any(|action| matches!(action, Action::Send(_))));
    let stranger = ExchangeId::new(6).unwrap();
    responder.call(|link, env| link.handle_installed(env, stranger));
    assert!(!responder.actions.iter().any(|action| matches!(action, Action::Send(_))));
    responder.call(|link, env| link.handle_installed(env, ExchangeId::new(5).unwrap()));
    assert!(responder.actions.iter().any(|action| matches!(action, Action::Send(_))));
}

#[test]
fn frame_for_a_network_without_link_is_refused_and_a_refusal_is_not_answered() {
    let network = NetworkId::from_entropy([3; 16]);
    let Ok(Message::Link(frame)) = Message::decode(&LinkMessage::Offer(offer()).encode(network)) else {
        panic!("an offer is a frame for a link")
    };
    let answer = frame.refuse_unknown_network().unwrap();
    let Ok(Message::Link(refusal)) = Message::decode(&answer) else { panic!("a refusal is one too") };
    let exchange = Some(ExchangeId::new(5).unwrap());
    assert_eq!(refusal.message, LinkMessage::Refused { exchange, reason: Reason::UnknownNetwork });
    assert_eq!(refusal.refuse_unknown_network(), None);
}

#[test]
fn offer_that_comes_soon_behind_another_waits_and_is_then_taken() {
    let mut responder = Side::new(RESPONDER);
    let offered = |exchange| Offer { exchange: ExchangeId::new(exchange).unwrap(), ..offer() };
    let defers = |side: &Side, message: LinkMessage, millis: u64| {
        let Ok(Message::Link(frame)) = Message::decode(&message.encode(NetworkId::from_entropy([3; 16])))
        else {
            panic!("a frame for a link")
        };
        side.link.defers(&frame, NOW + Duration::from_millis(millis))
    };
    let next = || LinkMessage::Offer(offered(6));
    assert_eq!(defers(&responder, next(), 0), None, "the first");
    responder.hear(&LinkMessage::Offer(Offer { vni: 8, ..offer() }));
    assert_eq!(defers(&responder, next(), 0), None, "one that was refused cost nothing");
    responder.hear(&LinkMessage::Offer(Offer { share: ORDER_EIGHT, ..offer() }));
    let at = NOW + Duration::from_millis(250);
    assert_eq!(defers(&responder, next(), 0), Some(at), "one with a bad share did");
    responder.hear(&LinkMessage::Offer(offer()));
    responder.call(|link, env| {
        link.handle_channel_down(env);
        link.handle_channel_up(env, Hello { boot_id: PEER_BOOT, lanes: 2 });
    });
    assert_eq!(defers(&responder, next(), 249), Some(at), "on whichever channel");
    assert_eq!(defers(&responder, LinkMessage::Active(ExchangeId::new(5).unwrap()), 0), None);
    assert_eq!(defers(&responder, next(), 250), None);
    responder.hear(&next());
    assert!(responder.actions.iter().any(|action| matches!(action, Action::Install(_))));
}

#[test]
fn peer_that_forgets_its_keys_at_once_is_not_offered_others_at_once() {
    let mut initiator = Side::new(INITIATOR);
    let answer = initiator.answer_to_its_offer();
    let exchange = answer.exchange;
    initiator.hear(&LinkMessage::Answer(answer));
    initiator.call(|link, env| link.handle_installed(env, exchange));
    assert!(initiator.link.established().is_some());
    let reason = Reason::UnknownExchange;
    initiator.hear(&LinkMessage::Refused { exchange: Some(exchange), reason });
    assert!(initiator.link.established().is_none());
    // Nor when it asks, or a container has something to send.
    initiator.hear(&LinkMessage::RekeyPlease(None));
    initiator.call(|link, env| link.handle_traffic_waiting(env));
    assert!(!initiator.actions.iter().any(|action| matches!(action, Action::Send(_))), "an offer");
    assert_eq!(initiator.link.poll_timeout(), Some(NOW + Duration::from_millis(250)));
}

#[test]
fn frames_without_channel_are_ignored() {
    let mut responder = Side::new(RESPONDER);
    responder.call(|link, env| link.handle_channel_down(env));
    responder.actions.clear();
    responder.hear(&LinkMessage::Offer(offer()));
    assert!(responder.actions.is_empty());
}

/// How to spoil a message, and why it is refused then.
type Spoilt<M> = (fn(&mut M), Reason);

/// One link with two lanes, its channel up to a peer that the test plays, which has two as well.
struct Side {
    link: Link,
    rng: StdRng,
    pool: SpiPool,
    actions: Vec<Action>,
    spis_before: usize,
}

impl Side {
    fn new(side: usize) -> Self {
        let mut ids = [NodeId::from_entropy([1; 16]), NodeId::from_entropy([2; 16])];
        ids.sort_unstable();
        let config = LinkConfig {
            local: ids[1 - side],
            peer: ids[side],
            network: NetworkId::from_entropy([3; 16]),
            vni: Vni::new(7).unwrap(),
            hello: Hello { boot_id: BootId::from_entropy([4; 16]), lanes: 2 },
            receiving_lanes: LaneCount::new(2).unwrap(),
            suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
            limits: LimitOverrides::default(),
        };
        let standing = Standing { epoch: Epoch::new(1), peer_is_member: true };
        let mut side = Self {
            link: Link::new(config, standing),
            rng: StdRng::seed_from_u64(1),
            pool: SpiPool::default(),
            actions: Vec::new(),
            spis_before: 0,
        };
        side.call(|link, env| link.handle_channel_up(env, Hello { boot_id: PEER_BOOT, lanes: 2 }));
        side
    }

    fn call(&mut self, call: impl FnOnce(&mut Link, &mut Env<'_, StdRng>)) {
        let now = NOW;
        call(&mut self.link, &mut Env { now, rng: &mut self.rng, spis: &mut self.pool });
        while let Some(action) = self.link.poll_action() {
            self.actions.push(action);
        }
    }

    fn hear(&mut self, message: &LinkMessage) {
        self.hear_frame(&message.encode(NetworkId::from_entropy([3; 16])));
    }

    fn hear_frame(&mut self, bytes: &Bytes) {
        let Ok(Message::Link(frame)) = Message::decode(bytes) else { panic!("a frame for a link") };
        self.spis_before = self.pool.len();
        self.actions.clear();
        self.call(|link, env| link.handle_frame(env, frame, &|_| [7; 32]));
    }

    /// A good answer to the offer that the initiator sent when its channel came up.
    fn answer_to_its_offer(&mut self) -> Answer {
        let offer = self.actions.iter().find_map(|action| match action {
            Action::Send(bytes) => match Message::decode(bytes) {
                Ok(Message::Link(frame)) => match frame.message {
                    LinkMessage::Offer(offer) => Some(offer),
                    LinkMessage::Answer(_)
                    | LinkMessage::Active(_)
                    | LinkMessage::RekeyPlease(_)
                    | LinkMessage::Refused { .. } => None,
                },
                Ok(
                    Message::Hello(_)
                    | Message::SpiUnknown(_)
                    | Message::Membership(_)
                    | Message::Epoch(..)
                    | Message::Removals(_)
                    | Message::Whereabouts(_),
                )
                | Err(_) => None,
            },
            Action::Install(_)
            | Action::RetireInbound { .. }
            | Action::DropLink
            | Action::Established(_)
            | Action::Refused { .. }
            | Action::MembershipStale { .. }
            | Action::PassMembership => None,
        });
        let exchange = offer.expect("an initiator offers at once").exchange;
        Answer { exchange, suite: 1, share: BASE_POINT, nonce: [0; 32], spis: vec![0x2000, 0x2041] }
    }

    fn assert_refused(&self, expected: Reason) {
        let [Action::Send(told), Action::Refused { by_peer: false, reason }] = &self.actions[..] else {
            panic!("not refused as {expected:?}: {:?}", self.actions)
        };
        assert_eq!(*reason, expected);
        let Ok(Message::Link(frame)) = Message::decode(told) else { panic!("{told:?}") };
        assert!(
            matches!(frame.message, LinkMessage::Refused { reason, .. } if reason == expected),
            "the peer is told {:?}",
            frame.message
        );
        assert!(self.link.established().is_none());
        assert!(self.pool.len() <= self.spis_before, "a refused exchange keeps SPIs");
    }
}

fn offer() -> Offer {
    Offer {
        exchange: ExchangeId::new(5).unwrap(),
        vni: 7,
        epoch: Epoch::new(1),
        boot_id: PEER_BOOT,
        suites: vec![1, 3],
        share: BASE_POINT,
        nonce: [0; 32],
        spis: vec![0x1000, 0x1041],
    }
}

const NOW: BootTime = BootTime::from_nanos(5);
const RESPONDER: usize = 1;
const INITIATOR: usize = 0;
const PEER_BOOT: BootId = BootId::from_entropy([2; 16]);

/// The point of X25519 that everyone's private key multiplies (RFC 7748 §4.1).
const BASE_POINT: [u8; 32] = {
    let mut point = [0; 32];
    point[0] = 9;
    point
};

/// A point of order eight (RFC 7748 §7, "small subgroup").
const ORDER_EIGHT: [u8; 32] = [
    0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
    0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
];
