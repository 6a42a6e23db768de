//! Hostile datagrams to a lane: forged, replayed and flipped ones, and authentic ones of peers that
//! break every rule.
//!
//! Whatever comes, a container is given nothing but frames for it, from containers that are placed
//! where the datagram came from; nothing goes back to the wire; every datagram is delivered or
//! counted. A sequence number is believed once, and only with a right tag.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use overlayd::boot_time::BootTime;
use overlayd::datapath::{Context, Encapsulated, Ingress, LaneCounters, Notice, Outlet, Run};
use overlayd::drop_reason::DropReason;
use overlayd::forward::Tables;
use overlayd::id::{LinkSlot, PortSlot, Spi};
use overlayd::sa::{
    InboundSa, KeyMaterial, Limits, MAX_TRAILER_LEN, OutboundSa, ReplayWindow, Sealed, Suite,
};
use overlayd::wire::{esp, udp, vxlan};

use super::Operations;
use super::claims::Claim;
use super::world::{self, Container, ENCRYPTED_VNI, PLAIN_VNI, Site};

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut node = Node::new();
    for (what, with) in Operations(data).take(MAX_OPERATIONS) {
        match what % 10 {
            0 => node.forged(with),
            1 => node.authentic(0, with),
            2 => node.authentic(0, &inner_datagram(with)),
            3 => node.authentic(1, &inner_datagram(with)),
            4 => node.plain(with),
            5 => node.plain(&vxlan_datagram(PLAIN_VNI, with)),
            6 => node.plain_for_encrypted(&vxlan_datagram(ENCRYPTED_VNI, with)),
            7 => node.replayed(),
            8 => node.flipped(with),
            _ => node.chosen_sequence(with),
        }
    }
}

struct Node {
    ingress: Ingress,
    tables: Tables,
    counters: LaneCounters,
    /// The peers' ends of the SAs of both links.
    peers: [OutboundSa; 2],
    last: Vec<u8>,
    /// Sequence numbers that were believed on the SA whose numbers the input chooses.
    believed: BTreeSet<u32>,
}

impl Node {
    fn new() -> Self {
        let mut ingress = Ingress::new();
        let peers = [0u8, 1].map(|link| {
            let sa = InboundSa::new(spi(link), key(link), limits(), NOW);
            ingress.install(LinkSlot::new(link.into()), Box::new(sa));
            OutboundSa::new(spi(link), key(link), limits(), NOW)
        });
        let chosen = InboundSa::new(spi(CHOSEN), key(CHOSEN), limits(), NOW);
        ingress.install(LinkSlot::new(0), Box::new(chosen));
        let (tables, counters) = (world::tables(), LaneCounters::new());
        Self { ingress, tables, counters, peers, last: Vec::new(), believed: BTreeSet::new() }
    }

    /// What an attacker without keys can send.
    fn forged(&mut self, datagram: &[u8]) {
        let delivered = self.receive(datagram, Some(Site::Link(0)));
        assert_eq!(delivered, 0, "a forged packet was delivered");
    }

    fn authentic(&mut self, link: u8, plaintext: &[u8]) {
        self.last = self.seal(link, plaintext);
        let datagram = self.last.clone();
        self.receive(&datagram, Some(Site::Link(link.into())));
    }

    fn plain(&mut self, datagram: &[u8]) {
        self.receive_plain(datagram);
    }

    fn plain_for_encrypted(&mut self, datagram: &[u8]) {
        let before = self.counters.dropped(DropReason::PlaintextForEncryptedNetwork);
        assert_eq!(self.receive_plain(datagram), 0, "plaintext reached an encrypted network");
        // Once from the VTEP and once from a stranger.
        assert_eq!(self.counters.dropped(DropReason::PlaintextForEncryptedNetwork), before + 2);
    }

    fn replayed(&mut self) {
        let datagram = self.last.clone();
        assert_eq!(self.receive(&datagram, None), 0, "a replayed packet was delivered");
    }

    /// A packet with one flipped bit is dropped, and the true one that follows is not taken for a
    /// replay.
    fn flipped(&mut self, with: &[u8]) {
        let (choice, frame) = with.split_at(with.len().min(2));
        let datagram = self.seal(0, &inner_datagram(frame));
        let mut forged = datagram.clone();
        let bit = choice.iter().fold(0usize, |bit, byte| bit << 8 | usize::from(*byte)) % (forged.len() * 8);
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(self.receive(&forged, None), 0, "a flipped packet was delivered");
        let replays =
            || [DropReason::Replayed, DropReason::ReplayTooOld].map(|reason| self.counters.dropped(reason));
        let before = replays();
        self.receive(&datagram, Some(Site::Link(0)));
        let replays =
            [DropReason::Replayed, DropReason::ReplayTooOld].map(|reason| self.counters.dropped(reason));
        assert_eq!(replays, before, "a forged packet moved the window");
    }

    /// An authentic packet whose sequence number, IV and whole body, trailer too, are the input's.
    fn chosen_sequence(&mut self, with: &[u8]) {
        let Some((header, body)) = with.split_first_chunk::<12>() else { return };
        let mut packet = [&spi(CHOSEN).get().to_be_bytes(), &header[..], body].concat();
        let nonce: Vec<u8> = [&[CHOSEN; 4], &header[4..]].concat();
        let nonce = Nonce::try_assume_unique_for_key(&nonce).expect("12 bytes");
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[CHOSEN; 32]).expect("32 bytes"));
        let (aad, rest) = packet.split_at_mut(esp::HEADER_LEN);
        let tag = cipher
            .seal_in_place_separate_tag(nonce, Aad::from(&*aad), &mut rest[esp::IV_LEN..])
            .expect("a short body");
        packet.extend_from_slice(tag.as_ref());
        if packet.len() < esp::HEADER_LEN + esp::IV_LEN + 2 + esp::ICV_LEN {
            return;
        }
        let [a, b, c, d, ..] = *header;
        let sequence = u32::from_be_bytes([a, b, c, d]);
        let highest = self.believed.last().copied().unwrap_or(0);
        let is_fresh = sequence != 0
            && !self.believed.contains(&sequence)
            && highest.saturating_sub(sequence) < ReplayWindow::SIZE;
        let before = self.opened();
        self.receive(&packet, Some(Site::Link(0)));
        assert_eq!(self.opened() - before, u64::from(is_fresh), "sequence number {sequence} after {highest}");
        if is_fresh {
            self.believed.insert(sequence);
        }
    }

    fn opened(&self) -> u64 {
        self.ingress.inbound(spi(CHOSEN)).expect("installed").packets()
    }

    fn seal(&mut self, link: u8, plaintext: &[u8]) -> Vec<u8> {
        let start = esp::HEADER_LEN + esp::IV_LEN;
        let mut packet = vec![0; start + plaintext.len() + MAX_TRAILER_LEN];
        packet[start..][..plaintext.len()].copy_from_slice(plaintext);
        let sealed =
            self.peers[usize::from(link)].seal(NOW, &mut packet, plaintext.len()).expect("below the limits");
        packet.truncate(sealed.len());
        packet
    }

    /// Gives a datagram to the ESP port; how many containers got its frame.
    fn receive(&mut self, datagram: &[u8], from: Option<Site>) -> usize {
        let drops = self.drops();
        let mut containers = Containers { from, frames: 0 };
        let cx = Context { tables: &self.tables, counters: &self.counters, now: NOW };
        self.ingress.receive_esp(&cx, world::link_address(0), &mut datagram.to_vec(), &mut containers);
        assert_eq!(containers.frames > 0, self.drops() == drops, "neither delivered nor counted, or both");
        containers.frames
    }

    fn receive_plain(&mut self, datagram: &[u8]) -> usize {
        let drops = self.drops();
        let mut containers = Containers { from: Some(Site::Vtep(0)), frames: 0 };
        let cx = Context { tables: &self.tables, counters: &self.counters, now: NOW };
        // RFC 7348 leaves the source port open.
        let from = SocketAddr::new(world::vtep_address(0).ip(), 50_000);
        self.ingress.receive_vxlan(&cx, from, datagram, &mut containers);
        assert_eq!(containers.frames > 0, self.drops() == drops, "neither delivered nor counted, or both");
        let stranger = SocketAddr::from(([192, 0, 2, 99], 4789));
        let frames = containers.frames;
        self.ingress.receive_vxlan(&cx, stranger, datagram, &mut containers);
        assert_eq!(containers.frames, frames, "a stranger's datagram was delivered");
        frames
    }

    fn drops(&self) -> u64 {
        self.counters.drops().iter().sum()
    }
}

/// The containers of the node, who check what they are given.
struct Containers {
    from: Option<Site>,
    frames: usize,
}

impl Outlet for Containers {
    fn send_esp(&mut self, _: &Run<'_, Sealed>) {
        panic!("what came from the wire went back to it");
    }

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {
        panic!("what came from the wire went back to it");
    }

    fn deliver(&mut self, port: PortSlot, frame: &[u8]) -> bool {
        let from = self.from.expect("nothing is to be delivered");
        let (to, rest) = frame.split_at(6);
        let sender = Container::at(from, &rest[..6]).expect("the source MAC is placed on the sender");
        sender.check(&Claim::of(frame));
        let site = if sender.is_encrypted() { Site::Port } else { Site::PlainPort };
        let site = site(u32::try_from(port.index()).expect("a small slot"));
        assert!(
            world::CONTAINERS.iter().any(|container| container.site == site),
            "a port of another network"
        );
        assert!(to[0] & 1 == 1 || Container::at(site, to).is_some(), "another container's frame");
        self.frames += 1;
        true
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::UnknownSpi { .. } => {}
            Notice::RekeyWanted { .. } | Notice::NoKey { .. } => panic!("{notice:?} for what was received"),
        }
    }
}

/// The UDP datagram in which a peer would send this frame.
fn inner_datagram(frame: &[u8]) -> Vec<u8> {
    let payload = vxlan_datagram(ENCRYPTED_VNI, frame);
    let mut datagram = vec![0; udp::HEADER_LEN];
    udp::write_header(&mut datagram, 50_000, vxlan::PORT, payload.len().min(60_000));
    datagram.extend(payload);
    datagram
}

fn vxlan_datagram(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; vxlan::HEADER_LEN];
    vxlan::write_header(&mut datagram, world::vni(vni));
    datagram.extend_from_slice(frame);
    datagram
}

fn spi(number: u8) -> Spi {
    Spi::new(0x1000 + u32::from(number)).expect("not reserved")
}

fn key(number: u8) -> KeyMaterial {
    KeyMaterial::new(Suite::Aes256Gcm, &[number; KeyMaterial::LEN])
}

fn limits() -> Limits {
    Limits::standard(Suite::Aes256Gcm)
}

/// The SA of link 0 whose sequence numbers the input chooses.
const CHOSEN: u8 = 2;
const NOW: BootTime = BootTime::from_nanos(1_000_000_000);
const MAX_OPERATIONS: usize = 64;
