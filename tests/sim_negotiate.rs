//! Two nodes that negotiate keys, on a virtual clock, with everything that can happen to them: the
//! channel cut at any moment and noticed late, frames twice, lanes slow to acknowledge, restarts.
//!
//! The lanes here hold real SAs, so "the keys match" means that what one side seals the other opens.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use overlayd::boot_time::BootTime;
use overlayd::drop_reason::DropReason;
use overlayd::id::{BootId, Epoch, LaneCount, LaneId, NetworkId, NodeId, Spi, Vni};
use overlayd::negotiate::{
    Action, Env, ExchangeId, Hello, Link, LinkConfig, Message, Reason, SpiPool, Standing, take_frame,
};
use overlayd::sa::{InboundSa, LimitOverrides, MAX_TRAILER_LEN, OutboundSa, Suite};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

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

const INITIATOR: usize = 0;
const RESPONDER: usize = 1;

struct World {
    now: BootTime,
    rng: StdRng,
    nodes: [Node; 2],
    channel: Option<Channel>,
    channels: u64,
    duplicate: bool,
    man_in_the_middle: bool,
    flip: Option<Flip>,
    /// Every key that was ever installed to send with: none may come twice.
    keys: HashSet<String>,
}

struct Node {
    config: LinkConfig,
    link: Link,
    pool: SpiPool,
    /// The channel that this side believes to be up, once its hello is out.
    channel: Option<u64>,
    /// Whether the peer's hello has come on it.
    greeted: bool,
    inbound: BTreeMap<Spi, Held>,
    outbound: BTreeMap<LaneId, OutboundSa>,
    to_acknowledge: VecDeque<ExchangeId>,
    established: u32,
    links_dropped: u32,
    refused: Vec<(bool, Reason)>,
    stale: u32,
    passed_on: u32,
}

struct Held {
    sa: InboundSa,
    generation: u64,
}

struct Channel {
    number: u64,
    secret: [u8; 32],
    to: [VecDeque<Bytes>; 2],
}

#[derive(Clone, Copy)]
struct Flip {
    from: usize,
    at: usize,
    done: bool,
    len: usize,
}

impl World {
    fn new(seed: u64, lanes: [u8; 2]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ids = [rng.random(), rng.random()].map(NodeId::from_entropy);
        ids.sort_unstable();
        let nodes = [INITIATOR, RESPONDER].map(|side| {
            Node::new(LinkConfig {
                local: ids[1 - side],
                peer: ids[side],
                network: NetworkId::from_entropy([3; 16]),
                vni: Vni::new(77).unwrap(),
                hello: Hello { boot_id: BootId::from_entropy(rng.random()), lanes: lanes[side] },
                receiving_lanes: LaneCount::new(lanes[side]).unwrap(),
                suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
                limits: LimitOverrides::default(),
            })
        });
        Self {
            now: BootTime::from_nanos(1_000_000_000),
            rng,
            nodes,
            channel: None,
            channels: 0,
            duplicate: false,
            man_in_the_middle: false,
            flip: None,
            keys: HashSet::new(),
        }
    }

    fn configure(&mut self, change: impl Fn(&mut LinkConfig, usize)) {
        for (side, node) in self.nodes.iter_mut().enumerate() {
            let mut config = node.config.clone();
            change(&mut config, side);
            *node = Node::new(config);
        }
    }

    /// A new channel, on which both sides say hello.
    fn connect(&mut self) {
        self.channels += 1;
        let hellos = self.nodes.each_ref().map(|node| Message::Hello(node.config.hello).encode());
        let [initiator, responder] = hellos;
        self.channel = Some(Channel {
            number: self.channels,
            secret: self.rng.random(),
            to: [VecDeque::from([responder]), VecDeque::from([initiator])],
        });
        for node in &mut self.nodes {
            node.channel = Some(self.channels);
            node.greeted = false;
        }
    }

    /// What is under way is lost; each side learns of it by [`Self::notice_cut`].
    fn cut(&mut self) {
        self.channel = None;
    }

    fn notice_cut(&mut self, side: usize) {
        if self.channel.is_none() && self.nodes[side].channel.take().is_some() {
            self.with(side, |link, env| link.handle_channel_down(env));
        }
    }

    /// The process is killed: its lanes, keys and queue are gone.
    fn restart(&mut self, side: usize) {
        self.cut();
        self.notice_cut(1 - side);
        let mut config = self.nodes[side].config.clone();
        config.hello.boot_id = BootId::from_entropy(self.rng.random());
        self.nodes[side] = Node { established: self.nodes[side].established, ..Node::new(config) };
    }

    /// Time passes, timeout by timeout.
    fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        for _ in 0..10_000 {
            let next = self.nodes.iter().filter_map(|node| node.link.poll_timeout()).min();
            let Some(at) = next.filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(at);
            for side in [INITIATOR, RESPONDER] {
                if self.nodes[side].link.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.with(side, |link, env| link.handle_timeout(env));
                }
            }
        }
        panic!("a timeout fires for ever");
    }

    /// One frame arrives or one installation is acknowledged; false if nothing is left to happen.
    fn step(&mut self) -> bool {
        (0..2).any(|side| self.acknowledge(side) || self.deliver(side))
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the two sides never come to rest");
    }

    fn acknowledge(&mut self, side: usize) -> bool {
        let Some(exchange) = self.nodes[side].to_acknowledge.pop_front() else { return false };
        self.with(side, |link, env| link.handle_installed(env, exchange));
        true
    }

    fn deliver(&mut self, side: usize) -> bool {
        let Some(channel) = &mut self.channel else { return false };
        let Some(frame) = channel.to[side].pop_front() else { return false };
        if self.duplicate && self.nodes[side].greeted && self.rng.random_bool(0.1) {
            channel.to[side].push_front(frame.clone());
        }
        let mut secret = channel.secret;
        if self.man_in_the_middle {
            secret[0] ^= u8::try_from(side).unwrap();
        }
        let exporter = |context: &[u8; 32]| Sha256::digest([secret, *context].concat()).into();
        let mut stream = BytesMut::from(&frame[..]);
        let message = take_frame(&mut stream).ok().flatten().and_then(|frame| Message::decode(&frame).ok());
        match message {
            Some(Message::Hello(hello)) => {
                self.nodes[side].greeted = true;
                self.with(side, |link, env| link.handle_channel_up(env, hello));
            }
            Some(Message::Link(frame)) => {
                self.with(side, |link, env| link.handle_frame(env, frame, &exporter));
            }
            Some(Message::SpiUnknown(spi)) => {
                self.with(side, |link, env| {
                    link.handle_spi_unknown(env, spi);
                });
            }
            Some(Message::Membership(_)) => {}
            None => {
                self.cut();
                self.notice_cut(side);
            }
        }
        true
    }

    fn with(&mut self, side: usize, call: impl FnOnce(&mut Link, &mut Env<'_, StdRng>)) {
        let node = &mut self.nodes[side];
        let mut env = Env { now: self.now, rng: &mut self.rng, spis: &mut node.pool };
        call(&mut node.link, &mut env);
        while let Some(action) = self.nodes[side].link.poll_action() {
            self.carry_out(side, action);
        }
        self.nodes[side].check(self.now);
    }

    fn carry_out(&mut self, side: usize, action: Action) {
        let node = &mut self.nodes[side];
        match action {
            Action::Send(frame) => self.transmit(side, frame),
            Action::Install(install) => {
                for lane in install.inbound {
                    assert_eq!(lane.lane, lane.spi.lane());
                    let sa = InboundSa::new(lane.spi, lane.key, install.limits, self.now);
                    let held = Held { sa, generation: install.generation };
                    assert!(node.inbound.insert(lane.spi, held).is_none(), "an SPI in use was given out");
                }
                for lane in install.outbound {
                    assert!(self.keys.insert(lane.key.esp_sa_hex().to_string()), "a key came twice");
                    let sa = OutboundSa::new(lane.spi, lane.key, install.limits, self.now);
                    node.outbound.insert(lane.lane, sa);
                }
                node.to_acknowledge.push_back(install.exchange);
            }
            Action::RetireInbound { spis, at } => {
                for spi in spis {
                    if let Some(held) = node.inbound.get_mut(&spi) {
                        held.sa.set_expiry(at);
                    }
                }
            }
            Action::DropLink => {
                node.inbound.clear();
                node.outbound.clear();
                node.links_dropped += 1;
            }
            Action::Established(_) => node.established += 1,
            Action::Refused { by_peer, reason } => node.refused.push((by_peer, reason)),
            Action::MembershipStale { .. } => node.stale += 1,
            Action::PassMembership => node.passed_on += 1,
        }
    }

    fn transmit(&mut self, side: usize, mut frame: Bytes) {
        let Some(channel) = &mut self.channel else { return };
        if self.nodes[side].channel != Some(channel.number) {
            return;
        }
        // Types 1 and 2 are the offer and the answer.
        if let Some(flip) = &mut self.flip
            && flip.from == side
            && frame[5] == 1 + u8::try_from(side).unwrap()
        {
            flip.len = frame.len();
            if flip.at < frame.len() && !flip.done {
                let mut bytes = BytesMut::from(&frame[..]);
                bytes[flip.at] ^= 1;
                flip.done = true;
                frame = bytes.freeze();
            }
        }
        channel.to[1 - side].push_back(frame);
    }

    /// Sends one packet from a lane; `None` if it has no keys, else whether it was opened.
    fn send_packet(&mut self, side: usize, lane: LaneId) -> Option<Result<(), DropReason>> {
        let sa = self.nodes[side].outbound.get_mut(&lane)?;
        let datagram = [0xc0, 0, 0x12, 0xb5, 0, 12, 0, 0, 1, 2, 3, 4];
        let mut packet = vec![0; 16 + datagram.len() + MAX_TRAILER_LEN];
        packet[16..][..datagram.len()].copy_from_slice(&datagram);
        let sealed = match sa.seal(self.now, &mut packet, datagram.len()) {
            Ok(sealed) => sealed.len(),
            Err(reason) => return Some(Err(reason)),
        };
        let spi = u32::from_be_bytes(packet[..4].try_into().unwrap());
        let held = self.nodes[1 - side].inbound.get_mut(&Spi::new(spi).unwrap());
        let opened = held.map_or(Err(DropReason::UnknownSpi), |held| {
            let opened = held.sa.open(self.now, &mut packet[..sealed])?;
            assert_eq!(opened.payload(), datagram);
            Ok(())
        });
        if opened == Err(DropReason::UnknownSpi) && self.nodes[1 - side].greeted {
            self.transmit(1 - side, Message::SpiUnknown(spi).encode());
        }
        Some(opened)
    }

    fn assert_packets_pass(&mut self) {
        for side in [INITIATOR, RESPONDER] {
            for lane in 0..self.nodes[side].config.hello.lanes {
                let opened = self.send_packet(side, LaneId::new(lane).unwrap());
                assert_eq!(opened, Some(Ok(())), "side {side} lane {lane}");
            }
        }
    }

    fn assert_agreed(&mut self) {
        let [a, b] = self.nodes.each_ref().map(|node| node.link.established().unwrap());
        assert_eq!(a.exchange, b.exchange);
        assert_eq!((&a.inbound, &a.outbound), (&b.outbound, &b.inbound));
        self.assert_packets_pass();
    }

    fn random_event(&mut self) {
        let side = self.rng.random_range(0..2);
        match self.rng.random_range(0..100) {
            0..50 => {
                self.step();
            }
            50..60 => {
                self.deliver(side);
            }
            60..70 => {
                self.acknowledge(side);
            }
            70..80 => {
                let by = Duration::from_millis(self.rng.random_range(0..4000));
                self.advance(by);
            }
            80..84 => self.with(side, |link, env| link.handle_rekey_wanted(env, None)),
            84..86 => self.with(side, |link, env| link.handle_traffic_waiting(env)),
            86..88 => self.cut(),
            88..91 => self.notice_cut(side),
            91..95 => {
                if self.channel.is_none() {
                    self.connect();
                }
            }
            95 => self.restart(side),
            96 => self.duplicate = !self.duplicate,
            _ => {
                let opened = self.send_packet(side, LaneId::new(0).unwrap());
                let forbidden =
                    [Some(Err(DropReason::AuthenticationFailed)), Some(Err(DropReason::Replayed))];
                assert!(!forbidden.contains(&opened), "keys that do not match: {opened:?}");
            }
        }
    }
}

impl Node {
    fn new(config: LinkConfig) -> Self {
        let standing = Standing { epoch: Epoch::new(1), peer_is_member: true };
        Self {
            link: Link::new(config.clone(), standing),
            config,
            pool: SpiPool::default(),
            channel: None,
            greeted: false,
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            to_acknowledge: VecDeque::new(),
            established: 0,
            links_dropped: 0,
            refused: Vec::new(),
            stale: 0,
            passed_on: 0,
        }
    }

    /// The lanes forget what has expired; of the rest there are never more than two generations.
    fn check(&mut self, now: BootTime) {
        self.inbound.retain(|_, held| held.sa.expires_at() > now);
        let generations: BTreeSet<_> = self.inbound.values().map(|held| held.generation).collect();
        assert!(generations.len() <= 2, "inbound generations {generations:?}");
    }
}
