//! Hostile messages on the key channel: made up, flipped, twice, late, over a channel that comes
//! and goes, while memberships change.
//!
//! A link installs keys to send only in answer to the message that its role waits for, each key
//! once, none while the peer is no member; it holds at most two generations and three exchanges'
//! SPIs. As long as nobody tampers, what one side sends the other can open.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use overlayd::boot_time::BootTime;
use overlayd::id::{BootId, Epoch, LaneId, NetworkId, NodeId, Spi};
use overlayd::negotiate::{
    Action, Env, ExchangeId, Hello, Install, Link, LinkConfig, Message, SpiPool, Standing, take_frame,
};
use overlayd::sa::{LimitOverrides, Suite};
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use super::Operations;
use super::world;

/// Runs one input.
pub fn run(data: &[u8]) {
    decode(data);
    let mut world = World::new();
    world.connect(0);
    for (what, with) in Operations(data).take(MAX_OPERATIONS) {
        let side = usize::from(what >> 7);
        world.operate(side, what & 0x7f, with);
        world.sides.iter().for_each(Side::check);
    }
}

/// Whatever decodes is written back as it came.
fn decode(data: &[u8]) {
    let mut stream = BytesMut::from(data);
    while let Ok(Some(frame)) = take_frame(&mut stream) {
        if let Ok(message) = Message::decode(&frame) {
            assert_eq!(message.encode(), frame, "{message:?}");
            if let Message::Link(frame) = message
                && let Some(refusal) = frame.refuse_unknown_network()
            {
                assert!(Message::decode(&refusal).is_ok());
            }
        }
    }
}

struct World {
    sides: [Side; 2],
    now: BootTime,
    rng: StdRng,
    /// Counts channels: each has its own exporter.
    channel: u8,
    tampered: bool,
}

impl World {
    fn new() -> Self {
        let nodes = [[9; 16], [1; 16]].map(NodeId::from_entropy);
        assert!(nodes[INITIATOR] > nodes[RESPONDER]);
        Self {
            sides: [INITIATOR, RESPONDER].map(|side| Side::new(side, nodes)),
            now: BootTime::from_nanos(1_000_000_000),
            rng: StdRng::seed_from_u64(1),
            channel: 0,
            tampered: false,
        }
    }

    fn operate(&mut self, side: usize, what: u8, with: &[u8]) {
        let first = with.first().copied().unwrap_or(0);
        match what % 13 {
            0 => self.deliver(side),
            1 => self.deliver_flipped(side, with),
            2 => self.inject(side, with),
            3 => self.inject_for_network(side, with),
            4 => self.acknowledge(side),
            5 => self.advance(Duration::from_secs(u64::from(first).pow(2))),
            6 => self.disconnect(),
            7 => self.connect(first),
            8 => self.call(side, &[], |link, env| link.handle_rekey_wanted(env, None)),
            9 => {
                let standing =
                    Standing { epoch: Epoch::new(first.into()), peer_is_member: with.len() % 4 != 1 };
                if standing.epoch >= self.sides[side].standing.epoch {
                    self.sides[side].standing = standing;
                }
                self.call(side, &[], |link, env| link.handle_membership(env, standing));
            }
            10 => self.call(side, &[], |link, env| link.handle_traffic_waiting(env)),
            11 => {
                let peer = Hello { lanes: first % LaneId::MAX_LANES + 1, ..self.sides[1 - side].hello };
                self.tampered = true;
                self.call(side, &[], |link, env| link.handle_channel_up(env, peer));
            }
            _ => {
                if let Some(frame) = self.sides[side].arriving.front().cloned() {
                    self.tampered = true;
                    self.sides[side].arriving.push_back(frame);
                }
            }
        }
    }

    fn deliver(&mut self, side: usize) {
        if let Some(frame) = self.sides[side].arriving.pop_front() {
            self.receive(side, &frame);
        }
    }

    fn deliver_flipped(&mut self, side: usize, with: &[u8]) {
        let Some(frame) = self.sides[side].arriving.pop_front() else { return };
        let mut bytes = BytesMut::from(&frame[..]);
        for flip in with.chunks_exact(3) {
            let at = usize::from(u16::from_be_bytes([flip[0], flip[1]])) % bytes.len();
            bytes[at] ^= flip[2];
        }
        self.tampered = true;
        self.receive(side, &bytes.freeze());
    }

    fn inject(&mut self, side: usize, with: &[u8]) {
        self.tampered = true;
        self.receive(side, &Bytes::copy_from_slice(with));
    }

    /// Completes what the input has after the network id, so that it gets as far as the link; an
    /// exchange id of all 0xff stands for the one in use.
    fn inject_for_network(&mut self, side: usize, with: &[u8]) {
        let Some((kind, body)) = with.split_first() else { return };
        let mut body = body.to_vec();
        if let (Some(established), [0xff, ..]) = (self.sides[side].link.established(), &body[..]) {
            let id = u64::from_str_radix(&established.exchange.to_string(), 16).expect("hexadecimal");
            body.splice(..1, id.to_be_bytes());
        }
        let message = [&[1, *kind], network().as_str().as_bytes(), &body].concat();
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        self.inject(side, &[&length[..], &message].concat());
    }

    fn receive(&mut self, side: usize, bytes: &Bytes) {
        let mut stream = BytesMut::from(&bytes[..]);
        let Ok(Some(frame)) = take_frame(&mut stream) else { return };
        let kind = frame.get(5).copied();
        let waits_for: &[u8] = if side == INITIATOR { &[ANSWER] } else { &[OFFER, ACTIVE] };
        let may_install = kind.filter(|kind| waits_for.contains(kind));
        let channel = self.channel;
        let exporter = |context: &[u8; 32]| Sha256::digest([&[channel][..], context].concat()).into();
        match Message::decode(&frame) {
            Ok(Message::Hello(hello)) => self.call(side, &[], |link, env| link.handle_channel_up(env, hello)),
            Ok(Message::SpiUnknown(spi)) => self.call(side, &[], |link, env| {
                link.handle_spi_unknown(env, spi);
            }),
            Ok(Message::Link(frame)) => {
                self.call(side, may_install.as_slice(), |link, env| link.handle_frame(env, frame, &exporter));
            }
            Ok(Message::Membership(_)) | Err(_) => {}
        }
    }

    fn acknowledge(&mut self, side: usize) {
        if let Some(exchange) = self.sides[side].installed.pop_front() {
            self.call(side, &[], |link, env| link.handle_installed(env, exchange));
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        for side in [INITIATOR, RESPONDER] {
            let is_due =
                |world: &Self| world.sides[side].link.poll_timeout().is_some_and(|at| at <= world.now);
            for turn in 0.. {
                if !is_due(self) {
                    break;
                }
                assert!(turn < 16, "a timeout fires for ever");
                self.call(side, &[], |link, env| link.handle_timeout(env));
            }
        }
    }

    fn disconnect(&mut self) {
        for side in [INITIATOR, RESPONDER] {
            self.sides[side].arriving.clear();
            self.call(side, &[], |link, env| link.handle_channel_down(env));
        }
    }

    fn connect(&mut self, restarted: u8) {
        self.channel = self.channel.wrapping_add(1);
        self.sides.iter_mut().for_each(|side| side.arriving.clear());
        // A frame of the channel before must not be opened with the exporter of this one.
        for side in [INITIATOR, RESPONDER] {
            let mut peer = self.sides[1 - side].hello;
            if restarted & 1 << side != 0 {
                self.tampered = true;
                peer.boot_id = BootId::from_entropy([restarted; 16]);
            }
            self.call(side, &[], |link, env| link.handle_channel_up(env, peer));
        }
    }

    /// Calls a link and carries out what it wants; keys may be installed for these messages only.
    fn call(&mut self, side: usize, may_install: &[u8], call: impl FnOnce(&mut Link, &mut Env<'_, StdRng>)) {
        let node = &mut self.sides[side];
        call(&mut node.link, &mut Env { now: self.now, rng: &mut self.rng, spis: &mut node.pool });
        while let Some(action) = self.sides[side].link.poll_action() {
            match action {
                Action::Send(frame) => self.sides[1 - side].arriving.push_back(frame),
                Action::Install(install) => self.install(side, may_install, install),
                Action::RetireInbound { spis, at } => self.sides[side].retire(&spis, at),
                Action::DropLink => {
                    self.sides[side].inbound.clear();
                    self.sides[side].outbound.clear();
                }
                Action::Established(established) => {
                    let node = &mut self.sides[side];
                    let sending: Vec<Spi> = node.outbound.values().map(|(spi, _)| *spi).collect();
                    assert_eq!(sending, established.outbound, "in use but not installed");
                }
                Action::Refused { .. } | Action::MembershipStale { .. } | Action::PassMembership => {}
            }
        }
        let now = self.now;
        self.sides[side].inbound.retain(|_, held| held.until > now);
    }

    fn install(&mut self, side: usize, may_install: &[u8], install: Install) {
        let node = &mut self.sides[side];
        assert!(!may_install.is_empty(), "keys installed though no message brought them");
        assert!(node.standing.peer_is_member, "keys installed with a node that is no member");
        assert!(
            install.outbound.is_empty() || may_install != [OFFER],
            "keys to send with before the peer has them"
        );
        for lane in install.inbound {
            assert_eq!(lane.lane, lane.spi.lane());
            let until = self.now + install.limits.hard_age + install.limits.linger;
            let held = Held { key: lane.key.esp_sa_hex().to_string(), generation: install.generation, until };
            assert!(node.inbound.insert(lane.spi, held).is_none(), "an SPI in use was given out");
        }
        for lane in install.outbound {
            let key = lane.key.esp_sa_hex().to_string();
            assert!(node.used.insert(key.clone()), "a key was installed to send with twice");
            node.outbound.insert(lane.lane, (lane.spi, key));
        }
        node.installed.push_back(install.exchange);
        if !self.tampered {
            let theirs = &self.sides[1 - side].inbound;
            for (spi, key) in self.sides[side].outbound.values() {
                assert!(theirs.get(spi).is_none_or(|held| held.key == *key), "the keys of {spi:?} differ");
            }
        }
    }
}

/// A node, with the lanes as far as they matter.
struct Side {
    link: Link,
    /// By the newest membership that it was told.
    standing: Standing,
    hello: Hello,
    pool: SpiPool,
    arriving: VecDeque<Bytes>,
    inbound: BTreeMap<Spi, Held>,
    outbound: BTreeMap<LaneId, (Spi, String)>,
    used: HashSet<String>,
    installed: VecDeque<ExchangeId>,
}

struct Held {
    key: String,
    generation: u64,
    until: BootTime,
}

impl Side {
    fn new(side: usize, nodes: [NodeId; 2]) -> Self {
        let lanes = if side == INITIATOR { 2 } else { 1 };
        let hello = Hello { boot_id: BootId::from_entropy([u8::try_from(side).expect("small"); 16]), lanes };
        let config = LinkConfig {
            local: nodes[side],
            peer: nodes[1 - side],
            network: network(),
            vni: world::vni(world::ENCRYPTED_VNI),
            hello,
            suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
            limits: LimitOverrides::default(),
        };
        let standing = Standing { epoch: Epoch::new(1), peer_is_member: true };
        Self {
            link: Link::new(config, standing),
            standing,
            hello,
            pool: SpiPool::default(),
            arriving: VecDeque::new(),
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            used: HashSet::new(),
            installed: VecDeque::new(),
        }
    }

    fn retire(&mut self, spis: &[Spi], at: BootTime) {
        for spi in spis {
            if let Some(held) = self.inbound.get_mut(spi) {
                held.until = at;
            }
        }
    }

    fn check(&self) {
        let generations: BTreeSet<u64> = self.inbound.values().map(|held| held.generation).collect();
        assert!(generations.len() <= 2, "generations {generations:?} can be received on");
        assert!(
            self.pool.len() <= 3 * usize::from(LaneId::MAX_LANES),
            "{} SPIs of one link",
            self.pool.len()
        );
        assert!(self.inbound.len() <= self.pool.len(), "an SA whose SPI may be given out again");
    }
}

fn network() -> NetworkId {
    NetworkId::from_entropy([3; 16])
}

const INITIATOR: usize = 0;
const RESPONDER: usize = 1;
const OFFER: u8 = 1;
const ANSWER: u8 = 2;
const ACTIVE: u8 = 3;
const MAX_OPERATIONS: usize = 200;
