//! The world in which two nodes negotiate: their lanes with real SAs, a channel that can be cut, a
//! clock that stands still until it is moved.

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

pub(crate) const INITIATOR: usize = 0;
pub(crate) const RESPONDER: usize = 1;
/// What packets carry: a UDP datagram with four bytes.
const DATAGRAM: [u8; 12] = [0xc0, 0, 0x12, 0xb5, 0, 12, 0, 0, 1, 2, 3, 4];

pub(crate) struct World {
    pub(crate) now: BootTime,
    pub(crate) rng: StdRng,
    pub(crate) nodes: [Node; 2],
    pub(crate) channel: Option<Channel>,
    pub(crate) channels: u64,
    pub(crate) duplicate: bool,
    pub(crate) man_in_the_middle: bool,
    pub(crate) flip: Option<Flip>,
    /// Every key that was ever installed to send with: none may come twice.
    pub(crate) keys: HashSet<String>,
}

pub(crate) struct Node {
    pub(crate) config: LinkConfig,
    pub(crate) link: Link,
    pub(crate) pool: SpiPool,
    /// The channel that this side believes to be up, once its hello is out.
    pub(crate) channel: Option<u64>,
    /// Whether the peer's hello has come on it.
    pub(crate) greeted: bool,
    pub(crate) inbound: BTreeMap<Spi, Held>,
    pub(crate) outbound: BTreeMap<LaneId, Box<OutboundSa>>,
    pub(crate) to_acknowledge: VecDeque<ExchangeId>,
    pub(crate) established: u32,
    pub(crate) links_dropped: u32,
    pub(crate) refused: Vec<(bool, Reason)>,
    pub(crate) stale: u32,
    pub(crate) passed_on: u32,
}

pub(crate) struct Held {
    pub(crate) sa: Box<InboundSa>,
    pub(crate) generation: u64,
}

pub(crate) struct Channel {
    pub(crate) number: u64,
    pub(crate) secret: [u8; 32],
    pub(crate) to: [VecDeque<Bytes>; 2],
}

#[derive(Clone, Copy)]
pub(crate) struct Flip {
    pub(crate) from: usize,
    pub(crate) at: usize,
    pub(crate) done: bool,
    pub(crate) len: usize,
}

impl World {
    pub(crate) fn new(seed: u64, lanes: [u8; 2]) -> Self {
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

    pub(crate) fn configure(&mut self, change: impl Fn(&mut LinkConfig, usize)) {
        for (side, node) in self.nodes.iter_mut().enumerate() {
            let mut config = node.config.clone();
            change(&mut config, side);
            *node = Node::new(config);
        }
    }

    /// A new channel, on which both sides say hello.
    pub(crate) fn connect(&mut self) {
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
    pub(crate) fn cut(&mut self) {
        self.channel = None;
    }

    pub(crate) fn notice_cut(&mut self, side: usize) {
        if self.channel.is_none() && self.nodes[side].channel.take().is_some() {
            self.with(side, |link, env| link.handle_channel_down(env));
        }
    }

    /// The process is killed: its lanes, keys and queue are gone.
    pub(crate) fn restart(&mut self, side: usize) {
        self.cut();
        self.notice_cut(1 - side);
        let mut config = self.nodes[side].config.clone();
        config.hello.boot_id = BootId::from_entropy(self.rng.random());
        self.nodes[side] = Node { established: self.nodes[side].established, ..Node::new(config) };
    }

    /// Time passes, timeout by timeout.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.advance_for(&[INITIATOR, RESPONDER], by);
    }

    /// Time passes; only these sides notice.
    pub(crate) fn advance_for(&mut self, sides: &[usize], by: Duration) {
        let until = self.now + by;
        for _ in 0..10_000 {
            let next = sides.iter().filter_map(|side| self.nodes[*side].link.poll_timeout()).min();
            let Some(at) = next.filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(at);
            for &side in sides {
                if self.nodes[side].link.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.with(side, |link, env| link.handle_timeout(env));
                }
            }
        }
        panic!("a timeout fires for ever");
    }

    /// One frame arrives or one installation is acknowledged; false if nothing is left to happen.
    pub(crate) fn step(&mut self) -> bool {
        (0..2).any(|side| self.acknowledge(side) || self.deliver(side))
    }

    /// As [`Self::step`], whichever comes first.
    pub(crate) fn step_in_any_order(&mut self) {
        let side = self.rng.random_range(0..2);
        let _stepped = if self.rng.random_bool(0.5) { self.acknowledge(side) } else { self.deliver(side) };
    }

    /// An operator wants new keys.
    pub(crate) fn ask_for_rekey(&mut self, side: usize) {
        self.with(side, |link, env| link.handle_rekey_wanted(env, None));
    }

    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the two sides never come to rest");
    }

    pub(crate) fn acknowledge(&mut self, side: usize) -> bool {
        let Some(exchange) = self.nodes[side].to_acknowledge.pop_front() else { return false };
        self.with(side, |link, env| link.handle_installed(env, exchange));
        true
    }

    pub(crate) fn deliver(&mut self, side: usize) -> bool {
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
            Some(
                Message::Membership(_) | Message::Removals(_) | Message::Epoch(..) | Message::Whereabouts(_),
            ) => {}
            None => {
                self.cut();
                self.notice_cut(side);
            }
        }
        true
    }

    pub(crate) fn with(&mut self, side: usize, call: impl FnOnce(&mut Link, &mut Env<'_, StdRng>)) {
        let node = &mut self.nodes[side];
        let mut env = Env { now: self.now, rng: &mut self.rng, spis: &mut node.pool };
        call(&mut node.link, &mut env);
        while let Some(action) = self.nodes[side].link.poll_action() {
            self.carry_out(side, action);
        }
        self.nodes[side].check(self.now);
    }

    pub(crate) fn carry_out(&mut self, side: usize, action: Action) {
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

    pub(crate) fn transmit(&mut self, side: usize, mut frame: Bytes) {
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
    pub(crate) fn send_packet(&mut self, side: usize, lane: LaneId) -> Option<Result<(), DropReason>> {
        Some(self.seal_packet(side, lane)?.and_then(|packet| self.open_packet(1 - side, packet)))
    }

    /// Seals a packet in a lane; `None` if it has no keys.
    pub(crate) fn seal_packet(&mut self, side: usize, lane: LaneId) -> Option<Result<Vec<u8>, DropReason>> {
        let sa = self.nodes[side].outbound.get_mut(&lane)?;
        let mut packet = vec![0; 16 + DATAGRAM.len() + MAX_TRAILER_LEN];
        packet[16..][..DATAGRAM.len()].copy_from_slice(&DATAGRAM);
        let sealed = sa.seal(self.now, &mut packet, DATAGRAM.len());
        Some(sealed.map(|sealed| {
            packet.truncate(sealed.len());
            packet
        }))
    }

    /// A packet arrives; a side that has no key for it says so.
    pub(crate) fn open_packet(&mut self, side: usize, mut packet: Vec<u8>) -> Result<(), DropReason> {
        let spi = u32::from_be_bytes(packet[..4].try_into().unwrap());
        let held = self.nodes[side].inbound.get_mut(&Spi::new(spi).unwrap());
        let opened = held.map_or(Err(DropReason::UnknownSpi), |held| {
            assert_eq!(held.sa.open(self.now, &mut packet)?.payload(), DATAGRAM);
            Ok(())
        });
        if opened == Err(DropReason::UnknownSpi) && self.nodes[side].greeted {
            self.transmit(side, Message::SpiUnknown(spi).encode());
        }
        opened
    }

    pub(crate) fn assert_packets_pass(&mut self) {
        for side in [INITIATOR, RESPONDER] {
            for lane in 0..self.nodes[side].config.hello.lanes {
                let opened = self.send_packet(side, LaneId::new(lane).unwrap());
                assert_eq!(opened, Some(Ok(())), "side {side} lane {lane}");
            }
        }
    }

    pub(crate) fn assert_agreed(&mut self) {
        let [a, b] = self.nodes.each_ref().map(|node| node.link.established().unwrap());
        assert_eq!(a.exchange, b.exchange);
        assert_eq!((&a.inbound, &a.outbound), (&b.outbound, &b.inbound));
        self.assert_packets_pass();
    }

    pub(crate) fn random_event(&mut self) {
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
    pub(crate) fn new(config: LinkConfig) -> Self {
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
    pub(crate) fn check(&mut self, now: BootTime) {
        self.inbound.retain(|_, held| held.sa.expires_at() > now);
        let generations: BTreeSet<_> = self.inbound.values().map(|held| held.generation).collect();
        assert!(generations.len() <= 2, "inbound generations {generations:?}");
    }
}
