//! The agent of one node, as its tasks would do it: it follows views, keeps a link for each peer in
//! each network, and gives keys to its lanes. What it says and sends goes to an [`Outbox`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::RngExt;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use super::cluster::{data_address, index_of, node_id};
use super::wire::Datagram;
use crate::agent::placement::{LinkKey, LinkSpec, PeerSpec, Placement};
use crate::agent::slots::Hold;
use crate::boot_time::BootTime;
use crate::cluster::View;
use crate::control::identity::NodeIdentity;
use crate::datapath::{
    Coalescer, Context, Delivery, Egress, Encapsulated, FloodLimit, Ingress, LaneCounters, Merging, Notice,
    Outlet, Run,
};
use crate::drop_reason::DropReason;
use crate::forward::Tables;
use crate::id::{BootId, EndpointId, Epoch, LaneCount, LinkSlot, NetworkId, NodeId, PortSlot, Spi};
use crate::membership::{SignedMembership, SignedRemovals};
use crate::negotiate::{
    Action, Env, ExchangeId, Hello, Install, Link, LinkConfig, Message, SpiPool, Standing, take_frame,
};
use crate::sa::{InboundSa, KeyMaterial, LimitOverrides, OutboundSa, Sealed, Suite};
use crate::wire::traffic_class::TrafficClass;
use crate::wire::vnet_hdr::VnetHeader;
use crate::wire::vxlan;

/// What a node wants the world to do.
#[derive(Default)]
pub(super) struct Outbox {
    /// Said on a channel, to a peer.
    pub(super) said: Vec<(u64, Bytes)>,
    pub(super) datagrams: Vec<Datagram>,
    /// Frames for its containers.
    pub(super) delivered: Vec<(EndpointId, Vec<u8>)>,
    /// Keys that it seals with from now on.
    pub(super) sealing: Vec<(Spi, String)>,
}

/// What the agent of a node is while it runs.
pub(super) struct Agent {
    node: NodeId,
    pub(super) hello: Hello,
    limits: LimitOverrides,
    /// A node that was removed and does not want to hear of it.
    pub(super) is_deaf: bool,
    pub(super) placement: Placement,
    tables: Tables,
    lanes: Vec<Lane>,
    pub(super) spis: SpiPool,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// What the tasks of the peers are told, a little later than the lanes.
    specs: Option<(BootTime, BTreeMap<NodeId, PeerSpec>)>,
    /// Installations that lanes have not acknowledged yet.
    acknowledging: Vec<(BootTime, LinkKey, Hold, ExchangeId)>,
    told_removals: usize,
}

/// A peer, as its task knows it.
pub(super) struct Peer {
    spec: PeerSpec,
    pub(super) links: BTreeMap<NetworkId, (Hold, Link)>,
    pub(super) channel: Option<Channel>,
    hello: Option<Hello>,
    /// The run that it was last heard of in.
    boot: Option<BootId>,
    pub(super) next_attempt: BootTime,
}

/// A key channel, as one end has it.
#[derive(Clone, Copy)]
pub(super) struct Channel {
    pub(super) number: u64,
    /// What both ends export.
    pub(super) secret: [u8; 32],
}

struct Lane {
    egress: Egress,
    ingress: Ingress,
    counters: LaneCounters,
}

/// What every call needs.
pub(super) struct Turn<'a> {
    pub(super) now: BootTime,
    pub(super) rng: &'a mut StdRng,
    pub(super) out: &'a mut Outbox,
}

impl Agent {
    /// Begins with what it knew when it ended: its view, newer memberships, and who was removed.
    pub(super) fn start(
        turn: &mut Turn<'_>,
        identity: &NodeIdentity,
        (lanes, limits): (LaneCount, LimitOverrides),
        endpoints: &BTreeSet<EndpointId>,
        (view, passed_on, removals): (Arc<View>, &[SignedMembership], Option<SignedRemovals>),
    ) -> Self {
        let lane = |_| Lane {
            egress: Egress::new(FloodLimit { frames_per_second: 10, burst: 5 }),
            ingress: Ingress::new(),
            counters: LaneCounters::new(),
        };
        let mut agent = Self {
            node: identity.node(),
            hello: Hello { boot_id: BootId::from_entropy(turn.rng.random()), lanes: lanes.get() },
            limits,
            is_deaf: false,
            placement: Placement::new(identity),
            tables: Tables::default(),
            lanes: lanes.ids().map(lane).collect(),
            spis: SpiPool::default(),
            peers: BTreeMap::new(),
            specs: None,
            acknowledging: Vec::new(),
            told_removals: 0,
        };
        for endpoint in endpoints {
            agent.add_port(*endpoint);
        }
        agent.follow(turn, view);
        for signed in passed_on {
            agent.adopt(turn, signed);
        }
        if let Some(removals) = removals {
            agent.adopt_removals(turn, &removals);
        }
        agent
    }

    pub(super) fn version(&self) -> u64 {
        self.placement.view().version.get()
    }

    pub(super) fn add_port(&mut self, endpoint: EndpointId) {
        let slot = self.placement.hold_port(endpoint);
        self.lanes.iter_mut().for_each(|lane| lane.egress.add_port(slot));
        self.tables = self.placement.tables();
    }

    pub(super) fn remove_port(&mut self, endpoint: EndpointId) {
        self.placement.release_port(endpoint);
        self.tables = self.placement.tables();
    }

    pub(super) fn follow(&mut self, turn: &mut Turn<'_>, view: Arc<View>) {
        self.placement.follow(view);
        self.settle(turn);
    }

    fn adopt(&mut self, turn: &mut Turn<'_>, signed: &SignedMembership) {
        if self.placement.adopt(signed) == Ok(true) {
            self.settle(turn);
        }
    }

    pub(super) fn adopt_removals(&mut self, turn: &mut Turn<'_>, removals: &SignedRemovals) {
        if !self.is_deaf && self.placement.adopt_removals(removals) == Ok(true) {
            self.settle(turn);
        }
    }

    /// As `DataPlane::settle`: first nothing is sent any more, then the lanes forget the keys, then the
    /// slot may be another's.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        self.tables = self.placement.tables();
        for (key, slot) in self.placement.ended_links() {
            for lane in &mut self.lanes {
                lane.egress.remove(slot);
                lane.ingress.remove(slot);
                lane.counters.reset_link(slot);
            }
            self.placement.release_link(key);
        }
        for (key, slot) in self.placement.ended_vteps() {
            self.lanes.iter().for_each(|lane| lane.counters.reset_vtep(slot));
            self.placement.release_vtep(key);
        }
        let later = Duration::from_millis(turn.rng.random_range(0..100));
        self.specs = Some((turn.now + later, self.placement.peers()));
        // Whom it does not trust any more it talks to no longer.
        let refused: Vec<NodeId> =
            self.peers.keys().copied().filter(|peer| self.placement.removed().contains(peer)).collect();
        for peer in refused {
            self.channel_down(turn, peer);
        }
        if self.placement.removed().len() > self.told_removals {
            self.told_removals = self.placement.removed().len();
            for peer in self.peers.keys().copied().collect::<Vec<_>>() {
                self.pass_removals(turn, peer);
            }
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, turn: &mut Turn<'_>) {
        if let Some((_, specs)) = self.specs.take_if(|(at, _)| *at <= turn.now) {
            self.follow_specs(turn, &specs);
        }
        let due: Vec<_> = self.acknowledging.extract_if(.., |(at, ..)| *at <= turn.now).collect();
        for (_, key, hold, exchange) in due {
            self.call(turn, key, Some(hold), |link, env| link.handle_installed(env, exchange));
        }
        for lane in &mut self.lanes {
            lane.ingress.expire(turn.now);
        }
        for key in self.link_keys() {
            let now = turn.now;
            let is_due = |link: &Link| link.poll_timeout().is_some_and(|at| at <= now);
            while self.link(key).is_some_and(is_due) {
                self.call(turn, key, None, |link, env| link.handle_timeout(env));
            }
        }
    }

    pub(super) fn link_keys(&self) -> Vec<LinkKey> {
        let keys = |(peer, of): (&NodeId, &Peer)| {
            let peer = *peer;
            of.links.keys().map(move |network| (*network, peer)).collect::<Vec<_>>()
        };
        self.peers.iter().flat_map(keys).collect()
    }

    pub(super) fn link(&self, (network, peer): LinkKey) -> Option<&Link> {
        self.peers.get(&peer)?.links.get(&network).map(|(_, link)| link)
    }

    /// As `Peers::follow`.
    fn follow_specs(&mut self, turn: &mut Turn<'_>, specs: &BTreeMap<NodeId, PeerSpec>) {
        let gone: Vec<NodeId> = self.peers.keys().copied().filter(|peer| !specs.contains_key(peer)).collect();
        for peer in gone {
            for network in self.peers[&peer].links.keys().copied().collect::<Vec<_>>() {
                self.end(turn, (network, peer));
            }
            self.channel_down(turn, peer);
            self.peers.remove(&peer);
        }
        for (peer, spec) in specs {
            self.peers.entry(*peer).or_insert_with(|| Peer {
                spec: PeerSpec { node: spec.node.clone(), links: BTreeMap::new() },
                links: BTreeMap::new(),
                channel: None,
                hello: None,
                boot: None,
                next_attempt: turn.now,
            });
            self.follow_spec(turn, *peer, spec);
        }
    }

    /// As `Peer::follow`.
    fn follow_spec(&mut self, turn: &mut Turn<'_>, id: NodeId, spec: &PeerSpec) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let before = std::mem::replace(&mut peer.spec, spec.clone());
        let lives =
            |network: &NetworkId, hold: Hold| spec.links.get(network).is_some_and(|link| link.hold == hold);
        let held = peer.links.iter().map(|(network, (hold, _))| (*network, *hold));
        let gone: Vec<_> = held.filter(|(network, hold)| !lives(network, *hold)).collect();
        for (network, _) in gone {
            self.end(turn, (network, id));
        }
        for (network, link) in &spec.links {
            let LinkSpec { hold, membership, .. } = link;
            let before = before.links.get(network).map_or(link.narrowed, |before| before.narrowed);
            let standing =
                Standing { epoch: membership.epoch, peer_is_member: membership.nodes.contains(&id) };
            let key = (*network, id);
            if self.link(key).is_some() {
                self.call(turn, key, None, |link, env| link.handle_membership(env, standing));
                if link.narrowed > before {
                    self.say_epoch(turn, key);
                }
                continue;
            }
            self.drop_keys(key, *hold);
            let config = LinkConfig {
                local: self.node,
                peer: id,
                network: *network,
                vni: membership.vni,
                hello: self.hello,
                receiving_lanes: LaneCount::clamped(self.lanes.len()),
                suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
                limits: self.limits,
            };
            let Some(peer) = self.peers.get_mut(&id) else { return };
            peer.links.insert(*network, (*hold, Link::new(config, standing)));
            if let Some(hello) = peer.hello {
                self.call(turn, key, None, |link, env| link.handle_channel_up(env, hello));
            }
        }
    }

    fn end(&mut self, turn: &mut Turn<'_>, (network, peer): LinkKey) {
        self.call(turn, (network, peer), None, |link, env| link.handle_closed(env));
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.links.remove(&network);
        }
    }

    pub(super) fn channel_up(&mut self, turn: &mut Turn<'_>, id: NodeId, channel: Channel) {
        self.channel_down(turn, id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.channel = Some(channel);
        turn.out.said.push((channel.number, Message::Hello(self.hello).encode()));
        self.pass_removals(turn, id);
    }

    pub(super) fn channel_down(&mut self, turn: &mut Turn<'_>, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.channel.take().is_none() {
            return;
        }
        peer.hello = None;
        peer.next_attempt = turn.now + Duration::from_millis(turn.rng.random_range(25..500));
        for network in peer.links.keys().copied().collect::<Vec<_>>() {
            self.call(turn, (network, id), None, |link, env| link.handle_channel_down(env));
        }
    }

    fn pass_removals(&self, turn: &mut Turn<'_>, peer: NodeId) {
        if let Some(signed) = self.placement.signed_removals() {
            self.say(turn, peer, &Message::Removals(Box::new(signed.clone())).encode());
        }
    }

    fn say(&self, turn: &mut Turn<'_>, peer: NodeId, frame: &Bytes) {
        if let Some(channel) = self.peers.get(&peer).and_then(|peer| peer.channel) {
            turn.out.said.push((channel.number, frame.clone()));
        }
    }

    /// As `Peer::received`.
    pub(super) fn hear(&mut self, turn: &mut Turn<'_>, id: NodeId, frame: &Bytes) {
        let Some(channel) = self.peers.get(&id).and_then(|peer| peer.channel) else { return };
        let mut stream = BytesMut::from(&frame[..]);
        let frame = take_frame(&mut stream).expect("not too long").expect("whole");
        match Message::decode(&frame).expect("a message") {
            Message::Hello(hello) => {
                let Some(peer) = self.peers.get_mut(&id) else { return };
                peer.hello = Some(hello);
                let before = peer.boot.replace(hello.boot_id);
                for network in peer.links.keys().copied().collect::<Vec<_>>() {
                    self.call(turn, (network, id), None, |link, env| link.handle_channel_up(env, hello));
                    self.say_epoch(turn, (network, id));
                    let keys = self.link((network, id)).and_then(Link::established);
                    let is_another = before.is_some_and(|before| before != hello.boot_id);
                    assert!(!is_another || keys.is_none(), "the keys of a run that has ended are kept");
                }
            }
            Message::SpiUnknown(spi) => {
                for key in self.link_keys().into_iter().filter(|(_, peer)| *peer == id) {
                    self.call(turn, key, None, |link, env| {
                        link.handle_spi_unknown(env, spi);
                    });
                }
            }
            Message::Membership(signed) => {
                self.adopt(turn, &signed);
            }
            Message::Removals(signed) => self.adopt_removals(turn, &signed),
            Message::Epoch(network, theirs) => self.hear_epoch(turn, (network, id), theirs),
            Message::Whereabouts(_) => {}
            Message::Link(frame) => {
                let key = (frame.network(), id);
                if self.link(key).is_none() {
                    if let Some(refusal) = frame.refuse_unknown_network() {
                        self.say(turn, id, &refusal);
                    }
                    return;
                }
                let export = |context: &[u8; 32]| Sha256::digest([channel.secret, *context].concat()).into();
                self.call(turn, key, None, |link, env| link.handle_frame(env, frame, &export));
            }
        }
    }

    /// As `Peer::hear_epoch`, with less restraint.
    fn hear_epoch(&self, turn: &mut Turn<'_>, (network, peer): LinkKey, theirs: Epoch) {
        match self.placement.membership_epoch(network).map(|ours| theirs.cmp(&ours)) {
            Some(Ordering::Less) => {
                if let Some(signed) = self.placement.signed_membership(network) {
                    let message = Message::Membership(Box::new(signed.clone()));
                    self.say(turn, peer, &message.encode());
                }
            }
            Some(Ordering::Greater) => self.say_epoch(turn, (network, peer)),
            Some(Ordering::Equal) | None => {}
        }
    }

    fn say_epoch(&self, turn: &mut Turn<'_>, (network, peer): LinkKey) {
        if let Some(epoch) = self.placement.membership_epoch(network) {
            self.say(turn, peer, &Message::Epoch(network, epoch).encode());
        }
    }

    /// Calls a link, of that hold if one is given, and carries out what it wants.
    pub(super) fn call(
        &mut self,
        turn: &mut Turn<'_>,
        key: LinkKey,
        of: Option<Hold>,
        call: impl FnOnce(&mut Link, &mut Env<'_, StdRng>),
    ) {
        let (network, id) = key;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((hold, link)) = peer.links.get_mut(&network) else { return };
        let hold = *hold;
        if of.is_some_and(|of| of != hold) {
            return;
        }
        call(link, &mut Env { now: turn.now, rng: turn.rng, spis: &mut self.spis });
        loop {
            let link = self.peers.get_mut(&id).and_then(|peer| peer.links.get_mut(&network));
            let Some(action) = link.and_then(|(_, link)| link.poll_action()) else { return };
            self.act(turn, key, hold, action);
        }
    }

    /// As `Peer::act`.
    fn act(&mut self, turn: &mut Turn<'_>, key: LinkKey, hold: Hold, action: Action) {
        match action {
            Action::Send(frame) => self.say(turn, key.1, &frame),
            Action::Install(install) => {
                let exchange = install.exchange;
                if let Some(slot) = self.placement.held_link(key, hold) {
                    self.install(turn, slot, install);
                    let later = Duration::from_millis(turn.rng.random_range(0..60));
                    self.acknowledging.push((turn.now + later, key, hold, exchange));
                }
            }
            Action::RetireInbound { spis, at } => {
                if self.placement.held_link(key, hold).is_some() {
                    for spi in spis {
                        self.lanes[spi.lane().index()].ingress.retire(spi, at);
                    }
                }
            }
            Action::DropLink => self.drop_keys(key, hold),
            Action::PassMembership => {
                if let Some(signed) = self.placement.signed_membership(key.0) {
                    let message = Message::Membership(Box::new(signed.clone())).encode();
                    self.say(turn, key.1, &message);
                }
            }
            Action::Established(_) | Action::Refused { .. } | Action::MembershipStale { .. } => {}
        }
    }

    fn install(&mut self, turn: &mut Turn<'_>, link: LinkSlot, install: Install) {
        let limits = install.limits;
        for key in install.inbound {
            let sa = InboundSa::new(key.spi, key.key, limits, turn.now);
            self.lanes[key.lane.index()].ingress.install(link, sa);
        }
        for key in install.outbound {
            turn.out.sealing.push((key.spi, hex(&key.key)));
            let sa = OutboundSa::new(key.spi, key.key, limits, turn.now);
            self.lanes[key.lane.index()].egress.install(link, sa);
        }
    }

    fn drop_keys(&mut self, key: LinkKey, hold: Hold) {
        if let Some(slot) = self.placement.held_link(key, hold) {
            for lane in &mut self.lanes {
                lane.egress.remove(slot);
                lane.ingress.remove(slot);
            }
        }
    }

    /// A container sends a frame, which its kernel gives to a lane.
    pub(super) fn send(&mut self, turn: &mut Turn<'_>, from: EndpointId, lane: usize, frame: &[u8]) {
        let Some((port, _)) = self.placement.port(from) else { return };
        let Lane { egress, counters, .. } = &mut self.lanes[lane];
        let mut outlet = Tap::new(self.node, &self.placement, turn.out);
        egress.reserve(&self.tables, port, &mut outlet).fill(frame);
        let cx = Context { tables: &self.tables, counters, now: turn.now };
        egress.submit(&cx, port, &VnetHeader::COMPLETE, frame.len(), &mut outlet);
        egress.flush(&mut outlet);
        let notices = outlet.notices;
        self.notice(turn, notices);
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn receive(&mut self, turn: &mut Turn<'_>, mut datagram: Datagram) {
        let lane = match (datagram.to.port(), datagram.bytes.first_chunk()) {
            (vxlan::PORT, _) | (_, None) => 0,
            (_, Some(spi)) => {
                usize::try_from(u32::from_be_bytes(*spi) & 63).expect("small") % self.lanes.len()
            }
        };
        let Lane { ingress, counters, .. } = &mut self.lanes[lane];
        let mut outlet = Tap::new(self.node, &self.placement, turn.out);
        let cx = Context { tables: &self.tables, counters, now: turn.now };
        let mut batch = Coalescer::new();
        let (from, bytes) = (datagram.from, &mut datagram.bytes[..]);
        if datagram.to.port() == vxlan::PORT {
            ingress.receive_vxlan(&cx, from, TrafficClass::ZERO, bytes, &mut batch, &mut outlet);
        } else {
            ingress.receive_esp(&cx, from, TrafficClass::ZERO, bytes, &mut batch, &mut outlet);
        }
        batch.flush(&cx, &mut outlet);
        let notices = outlet.notices;
        self.notice(turn, notices);
    }

    /// As `Peers::happened`.
    fn notice(&mut self, turn: &mut Turn<'_>, notices: Vec<Notice>) {
        for notice in notices {
            match notice {
                Notice::RekeyWanted { link, spi } => {
                    if let Some(key) = self.placement.link(link) {
                        self.call(turn, key, None, |link, env| link.handle_rekey_wanted(env, Some(spi)));
                    }
                }
                Notice::NoKey { link } => {
                    if let Some(key) = self.placement.link(link) {
                        self.call(turn, key, None, |link, env| link.handle_traffic_waiting(env));
                    }
                }
                Notice::UnknownSpi { spi, from } => {
                    let at = self.peers.iter().find(|(_, peer)| peer.spec.node.data.ip() == from.ip());
                    if let Some(peer) = at.map(|(peer, _)| *peer) {
                        self.say(turn, peer, &Message::SpiUnknown(spi.get()).encode());
                    }
                }
            }
        }
    }

    /// How many packets were dropped for a reason.
    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.lanes.iter().map(|lane| lane.counters.dropped(reason)).sum()
    }

    /// What is wrong where the lanes have not just the keys that the links believe to be in use.
    pub(super) fn check_keys(&self) -> Result<(), String> {
        let mut known = 0;
        if self.peers.values().any(|peer| peer.channel.is_none()) {
            return Err("there is no channel to a peer".to_owned());
        }
        for (network, peer) in self.link_keys() {
            let Some(link) = self.link((network, peer)) else { continue };
            let slot = self.placement.links().get(&(network, peer)).copied().ok_or("a link has no slot")?;
            known += link.lingering().len();
            let Some(keys) = link.established() else { continue };
            known += keys.inbound.len();
            let is_there = |spi: &Spi| self.lanes[spi.lane().index()].ingress.inbound(*spi).is_some();
            if !keys.inbound.iter().all(is_there) {
                return Err("an SA that the peer sends on is not there".to_owned());
            }
            let sending =
                self.lanes.iter().filter_map(|lane| lane.egress.outbound(slot).map(OutboundSa::spi));
            if sending.collect::<Vec<_>>() != keys.outbound {
                return Err("the lanes seal with other keys".to_owned());
            }
            let mut sending = self.lanes.iter().filter_map(|lane| lane.egress.outbound(slot));
            if sending.any(|sa| sa.packets() >= keys.limits.soft_packets) {
                return Err("keys are not replaced though they are used up".to_owned());
            }
        }
        if self.spis.len() == known { Ok(()) } else { Err("SPIs are held that nobody uses".to_owned()) }
    }
}

/// The sockets and TAPs of a lane.
struct Tap<'a> {
    from: SocketAddr,
    placement: &'a Placement,
    out: &'a mut Outbox,
    notices: Vec<Notice>,
}

impl<'a> Tap<'a> {
    fn new(node: NodeId, placement: &'a Placement, out: &'a mut Outbox) -> Self {
        Self { from: data_address(index_of(node)), placement, out, notices: Vec::new() }
    }
}

impl Outlet for Tap<'_> {
    fn send_esp(&mut self, run: &Run<'_, Sealed>) {
        for bytes in run.datagrams() {
            self.out.datagrams.push(Datagram { from: self.from, to: run.to(), bytes: bytes.to_vec() });
        }
    }

    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>) {
        for bytes in run.datagrams() {
            let from = SocketAddr::new(self.from.ip(), vxlan::PORT);
            self.out.datagrams.push(Datagram { from, to: run.to(), bytes: bytes.to_vec() });
        }
    }

    fn deliver(&mut self, port: PortSlot, _: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        match self.placement.endpoint(port) {
            Some(endpoint) => {
                self.out.delivered.push((endpoint, pieces.concat()));
                Delivery::Taken
            }
            None => Delivery::Dropped(DropReason::NoSuchPort),
        }
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging::default()
    }

    fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }
}

fn hex(key: &KeyMaterial) -> String {
    key.esp_sa_hex().to_string()
}

/// The peers of a node that it connects to.
pub(super) fn connects(node: usize, peer: usize) -> bool {
    node_id(node) > node_id(peer)
}
