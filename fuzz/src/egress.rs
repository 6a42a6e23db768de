//! Hostile frames of containers, through keys that run out and grow old.
//!
//! Whatever a container sends, what leaves for a peer of the encrypted network is sealed, opens with
//! that peer's key to a frame of the network, comes from the container's own addresses and does not
//! show the frame; no more leaves than the SA's limit; without a key nothing does. Neighbours get
//! nothing of another network, and the container itself nothing but answers of the table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use overlayd::boot_time::BootTime;
use overlayd::datapath::{
    Context, Egress, Encapsulated, FloodLimit, LaneCounters, MAX_FRAME_LEN, Notice, Outlet, Run,
};
use overlayd::forward::Tables;
use overlayd::id::{LinkSlot, PortSlot, Spi};
use overlayd::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Sealed, Suite};
use overlayd::wire::{udp, vxlan};

use super::Operations;
use super::claims::Claim;
use super::world::{self, CONTAINERS, Container, ENCRYPTED_VNI, MTU, PLAIN_VNI, Site};

/// Runs one input.
pub fn run(data: &[u8]) {
    let tables = world::tables();
    let counters = LaneCounters::new();
    let mut egress = Egress::new(FloodLimit { frames_per_second: 10, burst: 8 });
    let mut now = BootTime::from_nanos(1_000_000_000);
    egress.install(LinkSlot::new(0), Box::new(OutboundSa::new(spi(), key(), limits(), now)));
    let mut wire = Wire {
        peer: InboundSa::new(spi(), key(), Limits { hard_packets: u64::MAX, ..limits() }, now),
        now,
        received: 0,
        sender: SENDERS[0],
        frame: Vec::new(),
        effects: BTreeMap::new(),
    };
    for (what, frame) in Operations(data).take(MAX_OPERATIONS) {
        if what & 0x80 != 0 {
            now = now + Duration::from_secs(if what & 0x40 != 0 { 3600 } else { 1 });
        }
        let sender = SENDERS[usize::from(what & 0x3f) % SENDERS.len()];
        wire.now = now;
        wire.send(&mut egress, &tables, &counters, sender, &frame[..frame.len().min(MAX_FRAME_LEN)]);
    }
    assert!(wire.received <= limits().hard_packets, "sealed beyond the hard limit");
}

/// The ports that send, one of which does not exist.
const SENDERS: [u32; 6] = [0, 1, 2, 3, 4, 77];

/// Everything around the lane: it checks what leaves.
struct Wire {
    /// The peer's end of the SA of link 0; link 1 has none.
    peer: InboundSa,
    now: BootTime,
    received: u64,
    sender: u32,
    frame: Vec<u8>,
    /// Where the frame went, and how often.
    effects: BTreeMap<String, u32>,
}

impl Wire {
    fn send(
        &mut self,
        egress: &mut Egress,
        tables: &Tables,
        counters: &LaneCounters,
        sender: u32,
        frame: &[u8],
    ) {
        let port = PortSlot::new(sender);
        (self.sender, self.frame) = (sender, frame.to_vec());
        self.effects.clear();
        let before: u64 = counters.drops().iter().sum();
        egress.reserve(tables, port, self)[..frame.len()].copy_from_slice(frame);
        let cx = Context { tables, counters, now: self.now };
        egress.submit(&cx, port, frame.len(), self);
        egress.flush(self);
        let dropped = counters.drops().iter().sum::<u64>() - before;
        assert!(dropped <= 2, "one frame counted as {dropped}");
        for (effect, count) in &self.effects {
            assert_eq!(*count, 1, "{effect} got a frame more than once");
        }
    }

    fn container(&self) -> &'static Container {
        let sites = [Site::Port(self.sender), Site::PlainPort(self.sender)];
        CONTAINERS.iter().find(|container| sites.contains(&container.site)).expect("the sender exists")
    }

    /// What a frame that leaves this node must fulfil.
    fn check_frame(&self, frame: &[u8]) {
        let sender = self.container();
        assert_eq!(frame, self.frame, "the frame was changed");
        assert_eq!(frame[6..12], sender.mac().octets());
        assert!(frame.len() <= 14 + usize::from(MTU));
        sender.check(&Claim::of(frame));
    }

    fn note(&mut self, effect: String) {
        *self.effects.entry(effect).or_default() += 1;
    }
}

impl Outlet for Wire {
    fn send_esp(&mut self, run: &Run<'_, Sealed>) {
        assert_eq!(run.to(), world::link_address(0), "there is no key for another");
        assert!(self.container().is_encrypted());
        for datagram in run.datagrams() {
            let mut packet = datagram.to_vec();
            let shown = self
                .frame
                .first_chunk::<14>()
                .is_some_and(|header| packet[16..].windows(14).any(|window| window == header));
            assert!(!shown, "the frame can be read in what was sent");
            let opened = self.peer.open(self.now, &mut packet).expect("what is sent can be opened");
            let (port, payload) = udp::parse(opened.payload()).expect("a UDP datagram");
            let (vni, frame) = vxlan::parse(payload).expect("a VXLAN datagram");
            assert_eq!((port, vni), (vxlan::PORT, world::vni(ENCRYPTED_VNI)));
            self.check_frame(frame);
            self.received += 1;
            self.note("link 0".into());
        }
    }

    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>) {
        assert!(!self.container().is_encrypted(), "a frame of the encrypted network left as plaintext");
        let known: [SocketAddr; 2] = [0, 1].map(world::vtep_address);
        assert!(known.contains(&run.to()));
        for datagram in run.datagrams() {
            let (vni, frame) = vxlan::parse(datagram).expect("a VXLAN datagram");
            assert_eq!(vni, world::vni(PLAIN_VNI));
            self.check_frame(frame);
            self.note(format!("VTEP {}", run.to()));
        }
    }

    fn deliver(&mut self, port: PortSlot, frame: &[u8]) -> bool {
        let slot = u32::try_from(port.index()).expect("a small slot");
        let sender = self.container();
        if slot == self.sender {
            // An answer: of another container of the network, to whom asked or to all nodes.
            let owner =
                CONTAINERS.iter().find(|other| other.mac().octets() == frame[6..12]).expect("a container");
            assert!(owner.mac() != sender.mac() && owner.is_encrypted() == sender.is_encrypted());
            let is_answer = matches!(Claim::of(frame), Claim::Arp { .. } | Claim::Advertisement { .. });
            assert!(is_answer, "a container was given its own frame");
        } else {
            let site = if sender.is_encrypted() { Site::Port(slot) } else { Site::PlainPort(slot) };
            let receiver = CONTAINERS.iter().find(|other| other.site == site).expect("of the same network");
            assert!(frame[0] & 1 == 1 || frame[..6] == receiver.mac().octets());
            self.check_frame(frame);
        }
        self.note(format!("port {slot}"));
        true
    }

    fn notice(&mut self, notice: Notice) {
        assert!(!matches!(notice, Notice::UnknownSpi { .. }), "{notice:?} for what was sent");
    }
}

fn spi() -> Spi {
    Spi::new(0x1000).expect("not reserved")
}

fn key() -> KeyMaterial {
    KeyMaterial::new(Suite::Aes256Gcm, &[7; KeyMaterial::LEN])
}

fn limits() -> Limits {
    Limits { soft_packets: 8, hard_packets: 24, ..Limits::standard(Suite::Aes256Gcm) }
}

const MAX_OPERATIONS: usize = 64;
