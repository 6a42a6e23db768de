//! A cluster whose nodes, wire and clock obey a seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::cluster::{
    Cluster, Identities, NETWORKS, NODES, index_at, index_of, is_encrypted, network_id, node_id,
};
use super::node::{Agent, Channel, Outbox, Turn, connects};
use super::wire::{Sent, Wire, number_in, payload};
use crate::boot_time::BootTime;
use crate::cluster::{Endpoint, View};
use crate::drop_reason::DropReason;
use crate::id::{EndpointId, LaneCount};
use crate::membership::{SignedMembership, SignedRemovals};
use crate::negotiate::Link;
use crate::sa::LimitOverrides;

pub(super) struct World<'i> {
    now: BootTime,
    rng: StdRng,
    cluster: Cluster<'i>,
    identities: &'i Identities,
    hosts: Vec<Host>,
    channels: BTreeMap<u64, Connection>,
    connected: u64,
    wire: Wire,
    /// Pairs of nodes that do not reach each other, until when.
    cuts: BTreeMap<(usize, usize), BootTime>,
    /// Nodes that do not reach the manager, until when.
    unmanaged: BTreeMap<usize, BootTime>,
    frames: BTreeMap<u64, Sent>,
    told: Told,
    limits: LimitOverrides,
    seed: u64,
    /// What happened, for when the history fails.
    story: Vec<String>,
}

/// What a history was like.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub(super) delivered: u64,
    pub(super) lost: u64,
    pub(super) replayed: u64,
    pub(super) kills: u64,
    pub(super) partitions: u64,
    pub(super) removals: u64,
    pub(super) keys: u64,
    /// How long it took until all was as it should be.
    pub(super) longest: Duration,
    /// Of every datagram, in order.
    pub(super) digest: [u8; 32],
}

impl Told {
    pub(super) fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.replayed += other.replayed;
        self.kills += other.kills;
        self.partitions += other.partitions;
        self.removals += other.removals;
        self.keys += other.keys;
        self.longest = self.longest.max(other.longest);
    }
}

/// A machine: what is on its disk, and its agent while that runs.
struct Host {
    agent: Option<Agent>,
    starts_at: BootTime,
    lanes: LaneCount,
    endpoints: BTreeSet<EndpointId>,
    view: Arc<View>,
    removals: Option<SignedRemovals>,
    passed_on: Vec<SignedMembership>,
    /// It was removed, and goes on as if it were not.
    is_deaf: bool,
}

/// A TLS connection between two agents.
struct Connection {
    /// Who connected, and whom to.
    ends: [usize; 2],
    /// To each of them.
    under_way: [VecDeque<(BootTime, Bytes)>; 2],
    silent_since: Option<BootTime>,
}

impl<'i> World<'i> {
    /// Lives through the history of a seed, and asserts that it ended well.
    pub(super) fn run(identities: &'i Identities, seed: u64) -> Told {
        let mut world = Self::new(identities, seed);
        for node in 0..NODES {
            world.attach(node);
        }
        for _ in 0..ACTS {
            world.live();
            world.rest();
        }
        world.assert_all_reach_all();
        let keys = u64::try_from(world.wire.tap.keys()).expect("few");
        Told { lost: world.wire.lost, keys, digest: world.wire.digest(), ..world.told.clone() }
    }

    fn new(identities: &'i Identities, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let hosts = (0..NODES).map(|_| Host {
            agent: None,
            starts_at: START,
            lanes: LaneCount::new(rng.random_range(1..=2)).expect("one or two"),
            endpoints: BTreeSet::new(),
            view: Arc::default(),
            removals: None,
            passed_on: Vec::new(),
            is_deaf: false,
        });
        let hosts = hosts.collect();
        // Some clusters rekey by traffic, some by age, some by hand alone.
        let limits = match rng.random_range(0..3) {
            0 => {
                LimitOverrides { soft_packets: Some(20), hard_packets: Some(60), ..LimitOverrides::default() }
            }
            1 => LimitOverrides {
                soft_age: Some(Duration::from_secs(4)),
                hard_age: Some(Duration::from_secs(9)),
                linger: Some(Duration::from_secs(2)),
                ..LimitOverrides::default()
            },
            _ => LimitOverrides::default(),
        };
        let wire = Wire::new();
        let cluster = Cluster::new(identities);
        Self {
            seed,
            now: START,
            rng,
            cluster,
            identities,
            hosts,
            limits,
            channels: BTreeMap::new(),
            connected: 0,
            wire,
            cuts: BTreeMap::new(),
            unmanaged: BTreeMap::new(),
            frames: BTreeMap::new(),
            told: Told::default(),
            story: Vec::new(),
        }
    }

    fn live(&mut self) {
        self.wire.lossy = self.rng.random_range(0..200);
        let end = self.now + ACT;
        while self.now < end {
            if self.rng.random_range(0..10) == 0 {
                self.event();
            }
            self.chat();
            self.tick();
        }
    }

    /// Whatever was in the way is over; what is to be mended is mended within [`REST`].
    fn rest(&mut self) {
        self.tell("quiet".to_owned());
        self.cuts.clear();
        self.unmanaged.clear();
        self.wire.lossy = 0;
        for host in &mut self.hosts {
            host.starts_at = host.starts_at.min(self.now);
        }
        let quiet = self.now;
        while let Err(wrong) = self.check() {
            assert!(self.now.since(quiet) < REST, "not mended within {REST:?}: {wrong}");
            self.tick();
        }
        self.told.longest = self.told.longest.max(self.now.since(quiet));
    }

    fn event(&mut self) {
        let (node, other) = (self.rng.random_range(0..NODES), self.rng.random_range(0..NODES));
        let until = self.now + Duration::from_millis(self.rng.random_range(200..6000));
        match self.rng.random_range(0..100) {
            0..20 => self.attach(node),
            20..30 => self.detach(node),
            30..42 => self.kill(node),
            42..54 if node != other => {
                self.told.partitions += 1;
                self.tell(format!("{node} and {other} are cut off from each other"));
                self.cuts.insert((node.min(other), node.max(other)), until);
            }
            54..62 => {
                self.told.partitions += 1;
                self.tell(format!("{node} is cut off from the manager"));
                self.unmanaged.insert(node, until);
            }
            62..80 => self.rekey(node),
            80..83 => self.remove(node),
            _ if self.wire.replay(self.now, &mut self.rng) => self.told.replayed += 1,
            _ => {}
        }
    }

    fn attach(&mut self, node: usize) {
        let network = self.rng.random_range(0..NETWORKS);
        // The first time, before the agents run, it is on the disk of each.
        let is_asked = self.now == START || (self.hosts[node].agent.is_some() && self.is_managed(node));
        if self.hosts[node].is_deaf || !is_asked {
            return;
        }
        let id = self.cluster.attach(node, network);
        self.tell(format!("{node} attaches {id} to network {network}"));
        self.hosts[node].endpoints.insert(id);
        if let Some(agent) = &mut self.hosts[node].agent {
            agent.add_port(id);
        }
    }

    fn detach(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        let count = host.endpoints.len();
        if host.is_deaf || count == 0 || self.unmanaged.contains_key(&node) {
            return;
        }
        let Some(agent) = &mut host.agent else { return };
        let id = *host.endpoints.iter().nth(self.rng.random_range(0..count)).expect("one of them");
        host.endpoints.remove(&id);
        agent.remove_port(id);
        self.cluster.detach(id);
        self.tell(format!("{node} detaches {id}"));
    }

    /// The process ends without a word; what was on its disk stays.
    fn kill(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if host.agent.take().is_some() {
            host.starts_at = self.now + Duration::from_millis(self.rng.random_range(50..3000));
            self.told.kills += 1;
            self.tell(format!("{node} is killed"));
        }
    }

    fn rekey(&mut self, node: usize) {
        let Some(agent) = &self.hosts[node].agent else { return };
        let keys = agent.link_keys();
        if !keys.is_empty() {
            let key = keys[self.rng.random_range(0..keys.len())];
            self.tell(format!("{node} wants new keys with {}", index_of(key.1)));
            self.with(node, |agent, turn| {
                agent.call(turn, key, None, |link, env| link.handle_rekey_wanted(env, None));
            });
        }
    }

    /// The manager removes a node whose process lives on with its keys, and ignores the news.
    fn remove(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if self.cluster.removed.len() + 2 < NODES && !host.is_deaf {
            host.is_deaf = true;
            if let Some(agent) = &mut host.agent {
                agent.is_deaf = true;
            }
            self.told.removals += 1;
            self.cluster.remove(node);
            self.tell(format!("{node} is removed"));
        }
    }

    /// Some container has something to say to another of its network.
    fn chat(&mut self) {
        let all: Vec<Endpoint> = self.cluster.endpoints.values().cloned().collect();
        for _ in 0..2 {
            if all.is_empty() {
                return;
            }
            let from = &all[self.rng.random_range(0..all.len())];
            let others: Vec<_> =
                all.iter().filter(|to| to.network == from.network && to.id != from.id).collect();
            if !others.is_empty() {
                let to = others[self.rng.random_range(0..others.len())];
                self.send(from, to, None);
            }
        }
    }

    /// Sends a frame, by that lane or by any; its number.
    fn send(&mut self, from: &Endpoint, to: &Endpoint, lane: Option<usize>) -> u64 {
        let number = u64::try_from(self.frames.len()).expect("few");
        let node = index_of(from.node);
        let is_secret = (0..NETWORKS).any(|index| is_encrypted(index) && network_id(index) == from.network);
        let bytes = frame(from, to, &payload(is_secret, number));
        let Some(lanes) = self.hosts[node].agent.as_ref().map(Agent::lanes) else { return number };
        let lane = lane.unwrap_or_else(|| self.rng.random_range(0..lanes));
        let sent =
            Sent { bytes: bytes.clone(), from: from.id, to: to.id, node, is_secret, is_delivered: false };
        self.frames.insert(number, sent);
        let from = from.id;
        self.with(node, |agent, turn| agent.send(turn, from, lane, &bytes));
        number
    }

    fn tick(&mut self) {
        self.now = self.now + TICK;
        let now = self.now;
        self.cuts.retain(|_, until| *until > now);
        self.unmanaged.retain(|_, until| *until > now);
        for node in 0..NODES {
            self.start(node);
            self.manage(node);
            self.with(node, Agent::tick);
            self.connect(node);
        }
        for number in self.channels.keys().copied().collect::<Vec<_>>() {
            self.carry(number);
        }
        for datagram in self.wire.arrived(now) {
            let (from, to) = (index_at(datagram.from), index_at(datagram.to));
            if self.is_reached(from, to) {
                self.with(to, |agent, turn| agent.receive(turn, datagram));
            }
        }
    }

    fn start(&mut self, node: usize) {
        let host = &self.hosts[node];
        if host.agent.is_some() || host.starts_at > self.now {
            return;
        }
        let (identity, mut out) = (&self.identities.nodes[node], Outbox::default());
        let mut turn = Turn { now: self.now, rng: &mut self.rng, out: &mut out };
        let saved = (Arc::clone(&host.view), &*host.passed_on, host.removals.clone());
        let mut agent = Agent::start(&mut turn, identity, (host.lanes, self.limits), &host.endpoints, saved);
        agent.is_deaf = host.is_deaf;
        self.hosts[node].agent = Some(agent);
        self.deliver(node, out);
    }

    /// The session with the manager brings a newer view.
    fn manage(&mut self, node: usize) {
        let is_managed = self.is_managed(node);
        let host = &mut self.hosts[node];
        let Some(agent) = &host.agent else { return };
        if host.is_deaf || !is_managed || agent.version() == self.cluster.version || self.rng.random_bool(0.5)
        {
            return;
        }
        let view = self.cluster.view_for(node);
        host.view = Arc::clone(&view);
        self.with(node, |agent, turn| agent.follow(turn, view));
    }

    /// A node connects to the peers with smaller ids.
    fn connect(&mut self, node: usize) {
        let Some(agent) = &self.hosts[node].agent else { return };
        let now = self.now;
        let wanted = agent.peers.iter().filter(|(id, peer)| {
            connects(node, index_of(**id)) && peer.channel.is_none() && peer.next_attempt <= now
        });
        for id in wanted.map(|(id, _)| *id).collect::<Vec<_>>() {
            let pause = Duration::from_millis(self.rng.random_range(50..1000));
            let Some(agent) = &mut self.hosts[node].agent else { return };
            if let Some(peer) = agent.peers.get_mut(&id) {
                peer.next_attempt = now + pause;
            }
            // Each side holds the other's certificate against those that were removed.
            let is_trusted = !agent.placement.removed().contains(&id);
            let other = index_of(id);
            let accepts = |agent: &Agent| {
                !agent.placement.removed().contains(&node_id(node))
                    && agent.peers.contains_key(&node_id(node))
            };
            let is_accepted = self.hosts[other].agent.as_ref().is_some_and(accepts);
            if !is_trusted || !is_accepted || !self.is_reached(node, other) {
                continue;
            }
            self.connected += 1;
            let channel = Channel { number: self.connected, secret: self.rng.random() };
            self.channels.insert(
                channel.number,
                Connection { ends: [node, other], under_way: Default::default(), silent_since: None },
            );
            self.with(node, |agent, turn| agent.channel_up(turn, id, channel));
            self.with(other, |agent, turn| agent.channel_up(turn, node_id(node), channel));
        }
    }

    /// What was said arrives in order; where nothing does for two seconds, TCP gives up.
    fn carry(&mut self, number: u64) {
        let Some(connection) = self.channels.get(&number) else { return };
        let ends = connection.ends;
        let is_open = ends.map(|end| {
            let other = node_id(if end == ends[0] { ends[1] } else { ends[0] });
            let peer = self.hosts[end].agent.as_ref().and_then(|agent| agent.peers.get(&other));
            peer.and_then(|peer| peer.channel).is_some_and(|channel| channel.number == number)
        });
        let is_reached = self.is_reached(ends[0], ends[1]);
        let now = self.now;
        let Some(connection) = self.channels.get_mut(&number) else { return };
        if is_reached {
            connection.silent_since = None;
        } else {
            let since = *connection.silent_since.get_or_insert(now);
            if now.since(since) < SILENCE {
                return;
            }
        }
        if !is_reached || is_open != [true; 2] {
            self.channels.remove(&number);
            for end in [0, 1] {
                if is_open[end] {
                    let other = node_id(ends[1 - end]);
                    self.with(ends[end], |agent, turn| agent.channel_down(turn, other));
                }
            }
            return;
        }
        for end in [0, 1] {
            loop {
                let Some(connection) = self.channels.get_mut(&number) else { return };
                let queue = &mut connection.under_way[end];
                if queue.front().is_none_or(|(due, _)| *due > now) {
                    break;
                }
                let Some((_, frame)) = queue.pop_front() else { break };
                let other = node_id(ends[1 - end]);
                self.with(ends[end], |agent, turn| agent.hear(turn, other, &frame));
            }
        }
    }

    /// Lets an agent do something, and does what it wants.
    fn with(&mut self, node: usize, work: impl FnOnce(&mut Agent, &mut Turn<'_>)) {
        let Some(agent) = &mut self.hosts[node].agent else { return };
        let mut out = Outbox::default();
        work(agent, &mut Turn { now: self.now, rng: &mut self.rng, out: &mut out });
        self.deliver(node, out);
    }

    fn deliver(&mut self, node: usize, out: Outbox) {
        let host = &mut self.hosts[node];
        if let Some(agent) = host.agent.as_ref().filter(|agent| !agent.is_deaf) {
            host.removals = agent.placement.signed_removals().cloned();
            host.passed_on = agent.placement.passed_on().into_values().collect();
        }
        for (spi, key) in out.sealing {
            self.wire.tap.installed(node, spi, key);
        }
        for (number, frame) in out.said {
            let takes = Duration::from_millis(self.rng.random_range(1..60));
            let Some(connection) = self.channels.get_mut(&number) else { continue };
            let to = usize::from(connection.ends[0] == node);
            let queue = &mut connection.under_way[to];
            let after = queue.back().map_or(self.now, |(due, _)| *due);
            queue.push_back(((self.now + takes).max(after), frame));
        }
        for datagram in out.datagrams {
            self.wire.send(self.now, &mut self.rng, datagram);
        }
        for (endpoint, bytes) in out.delivered {
            self.check_delivery(node, endpoint, &bytes);
        }
    }

    /// A frame may come once, whole, to whom it is for, from whom its receiver believes to be a member.
    fn check_delivery(&mut self, node: usize, to: EndpointId, bytes: &[u8]) {
        let sent = self.frames.get_mut(&number_in(bytes)).expect("nobody sent this");
        assert_eq!(sent.bytes, bytes, "a frame was changed on its way");
        assert_eq!(sent.to, to, "a frame went to another container");
        // Plain VXLAN promises nothing.
        assert!(!sent.is_delivered || !sent.is_secret, "a frame was delivered twice");
        sent.is_delivered = true;
        let agent = self.hosts[node].agent.as_ref().expect("it has just delivered");
        let from = node_id(sent.node);
        assert!(!agent.placement.removed().contains(&from), "a node known to be removed delivered a frame");
        let knows = |endpoint: &Endpoint| endpoint.id == sent.from && endpoint.node == from;
        let view = agent.placement.view();
        let is_placed = view.networks.values().any(|network| network.endpoints.iter().any(knows));
        assert!(is_placed, "a frame came from a container that is not placed there");
        self.told.delivered += 1;
    }

    /// What is wrong where links do not lead exactly to the other members, with the same keys at both
    /// ends that are in force in the lanes.
    fn check(&self) -> Result<(), String> {
        for node in self.members() {
            let agent = self.hosts[node].agent.as_ref().ok_or("an agent is down")?;
            let said = |what: String| format!("node {node}: {what}");
            let mut wanted = BTreeSet::new();
            for network in (0..NETWORKS).filter(|network| is_encrypted(*network)) {
                let members = self.cluster.members(network);
                if members.contains(&node_id(node)) {
                    let others = members.iter().filter(|other| **other != node_id(node));
                    wanted.extend(others.map(|other| (network_id(network), *other)));
                }
            }
            let has: BTreeSet<_> = agent.link_keys().into_iter().collect();
            let placed: BTreeSet<_> = agent.placement.links().into_keys().collect();
            if (&has, &placed) != (&wanted, &wanted) {
                return Err(said(format!("its links are {has:?} and {placed:?}, not {wanted:?}")));
            }
            if agent.version() != self.cluster.version {
                return Err(said("its view is old".to_owned()));
            }
            if *agent.placement.removed() != self.cluster.removed {
                return Err(said("it does not know who was removed".to_owned()));
            }
            for (network, peer) in wanted {
                let keys = |node: usize, peer| {
                    let link = self.hosts[node].agent.as_ref().and_then(|agent| agent.link((network, peer)));
                    link.and_then(Link::established)
                };
                let (own, theirs) = (keys(node, peer), keys(index_of(peer), node_id(node)));
                let agree = own.zip(theirs).is_some_and(|(own, theirs)| {
                    own.exchange == theirs.exchange
                        && (&own.inbound, &own.outbound) == (&theirs.outbound, &theirs.inbound)
                });
                if !agree {
                    return Err(said(format!("keys with {}: {own:?} and {theirs:?}", index_of(peer))));
                }
            }
            agent.check_keys().map_err(said)?;
        }
        Ok(())
    }

    /// Every container reaches every other of its network by every lane, and no removed node anybody.
    fn assert_all_reach_all(&mut self) {
        let all: Vec<Endpoint> = self.cluster.endpoints.values().cloned().collect();
        let mut expected = Vec::new();
        for from in &all {
            for to in all.iter().filter(|to| to.network == from.network && to.id != from.id) {
                let lanes = usize::from(self.hosts[index_of(from.node)].lanes.get());
                expected.extend((0..lanes).map(|lane| self.send(from, to, Some(lane))));
            }
        }
        let mut forbidden = Vec::new();
        for removed in self.cluster.removed.clone() {
            let host = &self.hosts[index_of(removed)];
            let view = host.agent.as_ref().map(|agent| Arc::clone(agent.placement.view()));
            let networks = view.iter().flat_map(|view| view.networks.values());
            let known: Vec<Endpoint> = networks.flat_map(|network| network.endpoints.clone()).collect();
            for from in known.iter().filter(|from| from.node == removed) {
                // What those who are out say to each other is their business.
                let inside =
                    |to: &&Endpoint| to.network == from.network && !self.cluster.removed.contains(&to.node);
                for to in known.iter().filter(inside).cloned().collect::<Vec<_>>() {
                    forbidden.push(self.send(from, &to, Some(0)));
                }
            }
        }
        let end = self.now + Duration::from_secs(1);
        while self.now < end {
            self.tick();
        }
        for number in expected {
            let sent = &self.frames[&number];
            assert!(sent.is_delivered, "{} does not reach {}: {:?}", sent.from, sent.to, self.drops());
        }
        for number in forbidden {
            assert!(!self.frames[&number].is_delivered, "a removed node reaches somebody");
        }
    }

    fn drops(&self) -> Vec<Vec<(DropReason, u64)>> {
        let of = |agent: &Agent| {
            let counts = DropReason::ALL.iter().map(|reason| (*reason, agent.dropped(*reason)));
            counts.filter(|(_, count)| *count > 0).collect()
        };
        self.hosts.iter().map(|host| host.agent.as_ref().map(of).unwrap_or_default()).collect()
    }

    fn members(&self) -> impl Iterator<Item = usize> {
        (0..NODES).filter(|node| !self.hosts[*node].is_deaf)
    }

    fn is_managed(&self, node: usize) -> bool {
        !self.unmanaged.contains_key(&node)
    }

    fn is_reached(&self, one: usize, other: usize) -> bool {
        !self.cuts.contains_key(&(one.min(other), one.max(other)))
    }

    fn tell(&mut self, what: String) {
        self.story.push(format!("{} {what}", self.now.since(START).as_millis()));
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let story = self.story.join("\n");
            let _ = writeln!(
                std::io::stderr(),
                "--- the history of seed {}, in milliseconds:\n{story}",
                self.seed
            );
        }
    }
}

/// A UDP packet over IPv4 from one container to another.
fn frame(from: &Endpoint, to: &Endpoint, payload: &[u8]) -> Vec<u8> {
    let address = |endpoint: &Endpoint| match endpoint.addresses[0].addr() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("all are IPv4"),
    };
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.mac.octets(), to.mac.octets())
        .ipv4(address(from), address(to), 64)
        .udp(1111, 2222)
        .write(&mut frame, payload)
        .expect("a frame");
    frame
}

const START: BootTime = BootTime::from_nanos(1_000_000_000);
const TICK: Duration = Duration::from_millis(50);
/// How often things happen for [`ACT`], and then nothing until all is as it should be.
const ACTS: u32 = 5;
const ACT: Duration = Duration::from_secs(4);
/// How long after that everything is as it should be.
const REST: Duration = Duration::from_secs(5);
/// After which TCP gives up.
const SILENCE: Duration = Duration::from_secs(2);
