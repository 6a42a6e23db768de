//! The peer key channel: any bytes, as a stream of frames, to one link.
//!
//! What decodes encodes to the same bytes. Keys are installed only in the order and the direction of
//! the exchange, with the SPIs that the peer named, and never for a peer that is no member, that has
//! not said the network, VNI and boot id of this link, or that answers what was not asked.
//!
//! The first octet: bit 0 the initiator's side or the responder's, bit 1 a peer that is no member,
//! bit 2 lanes that acknowledge only one frame later. The rest is the stream. Messages for no link
//! play the world outside: a hello is a new channel, a membership of `n` octets is one of epoch `n`
//! with the peer in it if there is a certificate, an unknown SPI below 256 lets its number of
//! minutes pass.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use overlayd::boot_time::BootTime;
use overlayd::id::{BootId, Epoch, LaneCount, NetworkId, NodeId, Vni};
use overlayd::negotiate::{
    Action, Env, ExchangeId, Hello, Install, Link, LinkConfig, LinkFrame, Message, SpiPool, Standing,
    take_frame,
};
use overlayd::sa::{LimitOverrides, Suite};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::overlay::array;

/// Panics where a promise of the key exchange is broken.
pub fn run(data: &[u8]) {
    let Some((flags, stream)) = data.split_first() else { return };
    let mut side = Side::new(*flags);
    let mut stream = BytesMut::from(stream);
    while let Ok(Some(frame)) = take_frame(&mut stream) {
        let message = Message::decode(&frame);
        if let Ok(message) = &message {
            assert_eq!(message.encode(), frame, "{message:?} is encoded otherwise");
        }
        side.acknowledge();
        match message {
            Ok(Message::Link(link)) => side.hear(link, &frame),
            Ok(Message::Hello(hello)) => side.connect(hello),
            Ok(Message::SpiUnknown(minutes @ 0..256)) => side.wait(minutes),
            Ok(Message::SpiUnknown(spi)) => side.call(None, |link, env| {
                link.handle_spi_unknown(env, spi);
            }),
            Ok(Message::Membership(signed)) => {
                let epoch = Epoch::new(u64::try_from(signed.payload.len()).expect("short"));
                side.learn(Standing { epoch, peer_is_member: !signed.certificate.is_empty() });
            }
            // Of no link's concern.
            Ok(Message::Removals(_) | Message::Epoch(..)) => {}
            // The driver closes the channel.
            Err(_) => side.call(None, |link, env| link.handle_channel_down(env)),
        }
    }
}

/// One link of ours, and what its peer has a right to.
struct Side {
    link: Link,
    rng: StdRng,
    pool: SpiPool,
    now: BootTime,
    standing: Standing,
    peer: Hello,
    is_slow: bool,
    /// Exchanges that the lanes have yet to acknowledge.
    installing: Vec<ExchangeId>,
    /// SPIs that the peer named in the offers that were accepted.
    accepted: BTreeMap<String, Vec<u32>>,
}

impl Side {
    fn new(flags: u8) -> Self {
        let mut ids = [NodeId::from_entropy([1; 16]), NodeId::from_entropy([2; 16])];
        ids.sort_unstable();
        let is_initiator = flags & 1 != 0;
        let config = LinkConfig {
            local: ids[usize::from(is_initiator)],
            peer: ids[usize::from(!is_initiator)],
            network: network(),
            vni: Vni::new(VNI).expect("in range"),
            hello: Hello { boot_id: BootId::from_entropy([4; 16]), lanes: OUR_LANES },
            receiving_lanes: LaneCount::new(OUR_LANES).expect("in range"),
            suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
            limits: LimitOverrides::default(),
        };
        let standing = Standing { epoch: Epoch::new(1), peer_is_member: flags & 2 == 0 };
        let mut side = Self {
            link: Link::new(config, standing),
            rng: StdRng::seed_from_u64(1),
            pool: SpiPool::default(),
            now: BootTime::from_nanos(5),
            standing,
            peer: Hello { boot_id: BootId::from_entropy([2; 16]), lanes: 2 },
            is_slow: flags & 4 != 0,
            installing: Vec::new(),
            accepted: BTreeMap::new(),
        };
        side.connect(side.peer);
        side
    }

    fn connect(&mut self, peer: Hello) {
        self.peer = peer;
        self.call(None, |link, env| link.handle_channel_up(env, peer));
    }

    fn hear(&mut self, message: LinkFrame, frame: &Bytes) {
        assert_eq!(message.network().as_str().as_bytes(), &frame[6..31]);
        if let Some(refusal) = message.refuse_unknown_network() {
            assert_is_message(&refusal);
        }
        self.call(Some(frame), |link, env| link.handle_frame(env, message, &|context| *context));
        if !self.is_slow {
            self.acknowledge();
        }
    }

    fn learn(&mut self, standing: Standing) {
        if standing.epoch >= self.standing.epoch {
            self.standing = standing;
        }
        self.call(None, |link, env| link.handle_membership(env, standing));
        assert!(self.standing.peer_is_member || self.pool.is_empty(), "SPIs of a peer that is no member");
    }

    fn wait(&mut self, minutes: u32) {
        self.now = self.now + Duration::from_mins(minutes.into());
        self.call(None, |link, env| link.handle_timeout(env));
    }

    fn acknowledge(&mut self) {
        for exchange in std::mem::take(&mut self.installing) {
            self.call(None, |link, env| link.handle_installed(env, exchange));
        }
    }

    /// Calls the link, then does what it says; `heard` is the frame that it was called with.
    fn call(&mut self, heard: Option<&Bytes>, call: impl FnOnce(&mut Link, &mut Env<'_, StdRng>)) {
        call(&mut self.link, &mut Env { now: self.now, rng: &mut self.rng, spis: &mut self.pool });
        while let Some(action) = self.link.poll_action() {
            match action {
                Action::Send(bytes) => assert_is_message(&bytes),
                Action::Install(install) => {
                    self.judge(&install, heard.expect("keys are installed for a message of the peer"));
                    self.installing.push(install.exchange);
                }
                Action::DropLink => assert!(self.link.established().is_none()),
                Action::Established(established) => {
                    assert_eq!(established.outbound.len(), usize::from(OUR_LANES));
                }
                Action::RetireInbound { .. }
                | Action::Refused { .. }
                | Action::MembershipStale { .. }
                | Action::PassMembership => {}
            }
        }
        let _ = self.link.poll_timeout();
        // Keys in use, keys that linger, and those of the exchange under way, for 64 lanes each.
        assert!(self.pool.len() <= 3 * 64, "{} SPIs are held", self.pool.len());
    }

    /// Panics unless the message that was heard entitles the peer to these keys.
    fn judge(&mut self, install: &Install, heard: &Bytes) {
        assert!(self.standing.peer_is_member, "keys for a node that is no member");
        assert_eq!(&heard[6..31], network().as_str().as_bytes(), "keys for another network");
        let exchange = install.exchange.to_string();
        assert_eq!(exchange, format!("{:016x}", u64::from_be_bytes(array(heard, 31))));
        let outbound: Vec<u32> = install.outbound.iter().map(|key| key.spi.get()).collect();
        match (heard[5], self.link.is_initiator()) {
            (OFFER, false) => {
                assert_eq!(array(heard, 39), VNI.to_be_bytes(), "keys for another VNI");
                assert_eq!(&array(heard, 51), self.peer.boot_id.as_bytes(), "keys for another run");
                assert!(outbound.is_empty(), "sends before the peer can receive");
                self.accepted.insert(exchange, named_spis(heard));
            }
            (ACTIVE, false) => {
                assert!(install.inbound.is_empty());
                assert_eq!(Some(&outbound), self.accepted.get(&exchange), "SPIs that were not offered");
                return;
            }
            (ANSWER, true) => assert_eq!(outbound, named_spis(heard), "SPIs that were not answered"),
            (kind, is_initiator) => panic!("message {kind} installs keys (initiator: {is_initiator})"),
        }
        assert_eq!(install.inbound.len(), usize::from(self.peer.lanes));
        assert!(install.inbound.iter().all(|key| key.lane == key.spi.lane()));
        assert!(install.inbound.iter().all(|key| key.lane.index() < usize::from(OUR_LANES)));
    }
}

/// The SPIs at the end of an offer or an answer.
fn named_spis(message: &Bytes) -> Vec<u32> {
    let (spis, _) = message[message.len() - 4 * usize::from(OUR_LANES)..].as_chunks::<4>();
    spis.iter().map(|spi| u32::from_be_bytes(*spi)).collect()
}

fn assert_is_message(bytes: &Bytes) {
    let message = Message::decode(bytes).expect("the peer can read what is sent");
    assert_eq!(message.encode(), bytes);
}

fn network() -> NetworkId {
    NetworkId::from_entropy([3; 16])
}

const VNI: u32 = 7;
const OUR_LANES: u8 = 2;
const OFFER: u8 = 1;
const ANSWER: u8 = 2;
const ACTIVE: u8 = 3;
