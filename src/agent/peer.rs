//! One peer: its key channel, and the key exchange of every encrypted network shared with it.
//!
//! The node with the larger id connects; the other waits for it. `negotiate::Link` decides what is
//! said and when, this task carries it out: it sends, gives SAs to the lanes and reports when they
//! are in force. When the channel is gone, keys in use stay in use.

mod connecting;
mod epochs;
mod links;
mod wishes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::dataplane::Removed;
use super::keys::Keys;
use super::log_limit::LogLimit;
use super::placement::{LinkSpec, PeerSpec};
use crate::boot_time::BootTime;
use crate::control::key_channel::{ChannelError, KeyChannel};
use crate::control::session::Backoff;
use crate::control::tls::peer::ConnectError;
use crate::id::{NetworkId, NodeId, Spi};
use crate::io::clock::boot_time;
use crate::membership::SignedRemovals;
use crate::negotiate::{Hello, Link, LinkConfig, Message, Standing};
use crate::worker::LaneGone;

use epochs::Epochs;
pub(crate) use wishes::Wish;
use wishes::Wishes;

/// What happened that concerns one peer.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The peer has connected.
    Channel(Box<KeyChannel>),
    /// An SA of the network has crossed a soft limit.
    RekeyWanted(NetworkId, Spi),
    /// Traffic of the network waits for a key.
    TrafficWaiting(NetworkId),
    /// Packets came that seem to be the peer's, for an SA that is not here.
    UnknownSpi(Spi),
    /// This node has another address.
    Moved,
    /// An operator wants new keys.
    Wished(Vec<Wish>),
}

/// The task of one peer.
pub(crate) struct Peer {
    keys: Arc<Keys>,
    spec: PeerSpec,
    links: BTreeMap<NetworkId, Linked>,
    channel: Option<KeyChannel>,
    /// When the channel came up.
    up_since: BootTime,
    /// Why the channel is of no use any more, before the links know.
    broken: Option<String>,
    /// What the peer said of itself on this channel.
    hello: Option<Hello>,
    /// A frame that came too soon, and until when; nothing more is read from the channel meanwhile.
    kept: Option<(BootTime, Bytes)>,
    /// Who was removed from the cluster, to be told on the channel.
    removed: watch::Receiver<Removed>,
    /// The attempt to connect that is under way; never two.
    connecting: JoinSet<Result<Box<KeyChannel>, ConnectError>>,
    backoff: Backoff,
    /// Why the last attempt failed, until there is a channel.
    unreachable: Option<String>,
    wishes: Wishes,
    epochs: Epochs,
    complaints: LogLimit,
    successes: LogLimit,
}

/// A network shared with the peer.
struct Linked {
    spec: LinkSpec,
    link: Link,
}

/// What ended a turn of the task.
enum Turn {
    Spec,
    Event(PeerEvent),
    Connected(Result<Result<Box<KeyChannel>, ConnectError>, JoinError>),
    Received(Result<Option<Bytes>, ChannelError>),
    Removed,
    Timeout,
}

impl Peer {
    /// Runs until `specs` says that nothing is shared with the peer any more, or ends.
    pub(crate) async fn run(
        keys: Arc<Keys>,
        mut specs: watch::Receiver<Option<PeerSpec>>,
        mut events: mpsc::Receiver<PeerEvent>,
    ) -> Result<(), LaneGone> {
        let Some(spec) = specs.borrow_and_update().clone() else { return Ok(()) };
        let mut peer = Self {
            removed: keys.dataplane.removed(),
            keys,
            spec: spec.clone(),
            links: BTreeMap::new(),
            channel: None,
            up_since: BootTime::default(),
            broken: None,
            hello: None,
            kept: None,
            connecting: JoinSet::new(),
            backoff: Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE),
            unreachable: None,
            wishes: Wishes::default(),
            epochs: Epochs::default(),
            complaints: LogLimit::default(),
            successes: LogLimit::default(),
        };
        peer.follow(spec).await?;
        loop {
            if let Some(why) = peer.broken.take() {
                peer.channel_down(&why).await?;
            }
            if peer.wants_to_connect() {
                peer.connect();
            }
            let timeout = peer.timeout();
            let received = async {
                match (&mut peer.channel, &peer.kept) {
                    (Some(channel), None) => channel.receive().await,
                    (Some(_), Some(_)) | (None, _) => std::future::pending().await,
                }
            };
            let turn = tokio::select! {
                changed = specs.changed() => match changed {
                    Ok(()) => Turn::Spec,
                    Err(_) => return Ok(()),
                },
                Some(event) = events.recv() => Turn::Event(event),
                Some(result) = peer.connecting.join_next() => Turn::Connected(result),
                received = received => Turn::Received(received),
                Ok(()) = peer.removed.changed() => Turn::Removed,
                () = tokio::time::sleep(timeout) => Turn::Timeout,
            };
            match turn {
                Turn::Spec => {
                    let spec = specs.borrow_and_update().clone();
                    match spec {
                        Some(spec) => peer.follow(spec).await?,
                        None => return peer.close().await,
                    }
                }
                Turn::Event(event) => peer.happened(event).await?,
                Turn::Connected(Ok(result)) => peer.connected(result).await?,
                Turn::Connected(Err(error)) if error.is_cancelled() => {}
                Turn::Connected(Err(error)) => tracing::error!(%error, "an attempt to connect died"),
                Turn::Removed => peer.pass_removals().await,
                Turn::Received(Ok(Some(frame))) => peer.received(&frame).await?,
                Turn::Received(Ok(None)) => peer.channel_down("the peer closed it").await?,
                Turn::Received(Err(error)) => peer.channel_down(&error.to_string()).await?,
                Turn::Timeout => {
                    if peer.channel.is_some() && boot_time().since(peer.up_since) >= CHANNEL_END {
                        peer.channel_down("it is too old, and no newer one could be had").await?;
                    }
                    if let Some((_, frame)) = peer.kept.take_if(|(until, _)| *until <= boot_time()) {
                        peer.received(&frame).await?;
                    }
                    peer.each(Link::handle_timeout).await?;
                    peer.expire_wishes();
                    peer.exchange_epochs().await;
                }
            }
        }
    }

    fn id(&self) -> NodeId {
        self.spec.node.id
    }

    fn is_initiator(&self) -> bool {
        self.keys.node > self.id()
    }

    async fn happened(&mut self, event: PeerEvent) -> Result<(), LaneGone> {
        match event {
            PeerEvent::Channel(channel) => self.channel_up(*channel).await,
            PeerEvent::RekeyWanted(network, spi) => {
                self.call(network, |link, env| link.handle_rekey_wanted(env, Some(spi))).await
            }
            PeerEvent::TrafficWaiting(network) => {
                self.call(network, |link, env| link.handle_traffic_waiting(env)).await
            }
            PeerEvent::UnknownSpi(spi) => {
                self.send(&Message::SpiUnknown(spi.get()).encode()).await;
                Ok(())
            }
            PeerEvent::Moved => self.connect_anew("this node has another address now").await,
            PeerEvent::Wished(wishes) => {
                for wish in wishes {
                    self.wished(wish).await?;
                }
                Ok(())
            }
        }
    }

    async fn channel_up(&mut self, channel: KeyChannel) -> Result<(), LaneGone> {
        if self.channel.is_some() {
            self.channel_down("a newer one takes its place").await?;
        }
        tracing::debug!(peer = %self.spec.node.name, address = %channel.peer().address, "key channel is up");
        self.channel = Some(channel);
        self.unreachable = None;
        self.up_since = boot_time();
        for network in self.links.keys() {
            self.keys.set_status((*network, self.id()), |status| status.failure = None);
            self.note(*network);
        }
        let hello = Message::Hello(self.keys.hello).encode();
        self.send(&hello).await;
        self.pass_removals().await;
        let at = self.keys.underlay.borrow().at;
        self.send(&Message::Whereabouts(at).encode()).await;
        Ok(())
    }

    async fn channel_down(&mut self, why: &str) -> Result<(), LaneGone> {
        if self.channel.take().is_some() {
            tracing::debug!(peer = %self.spec.node.name, why, "key channel is down");
            // One that accepts and closes at once is not knocked at ever faster.
            if boot_time().since(self.up_since) >= STEADY {
                self.backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE);
            }
        }
        self.broken = None;
        self.hello = None;
        self.kept = None;
        self.epochs.forget();
        self.each(Link::handle_channel_down).await
    }

    /// Says once a second at most what the peer does wrong.
    fn complain(&mut self, what: &str, reason: &dyn std::fmt::Display) {
        if self.complaints.permits(boot_time()) {
            tracing::warn!(peer = %self.spec.node.name, %reason, "{what}");
        } else {
            tracing::debug!(peer = %self.spec.node.name, %reason, "{what}");
        }
    }

    async fn received(&mut self, bytes: &Bytes) -> Result<(), LaneGone> {
        match Message::decode(bytes) {
            // Each may say that the peer has restarted, for which all keys are made anew.
            Ok(Message::Hello(_)) if self.hello.is_some() => self.channel_down("it said hello twice").await,
            Ok(Message::Hello(hello)) => {
                self.hello = Some(hello);
                self.links.keys().for_each(|network| self.epochs.tell(*network));
                self.each(move |link, env| link.handle_channel_up(env, hello)).await
            }
            Ok(Message::SpiUnknown(spi)) => {
                self.each(move |link, env| {
                    link.handle_spi_unknown(env, spi);
                })
                .await
            }
            Ok(Message::Membership(signed)) => {
                if let Err(error) = self.keys.dataplane.adopt(&signed).await? {
                    self.complain("refused a membership that the peer passed on", &error);
                }
                Ok(())
            }
            Ok(Message::Removals(signed)) => {
                if let Err(error) = self.keys.dataplane.adopt_removals(*signed).await? {
                    self.complain("refused a list of removed nodes that the peer passed on", &error);
                }
                Ok(())
            }
            Ok(Message::Epoch(network, epoch)) => {
                self.hear_epoch(network, epoch).await;
                Ok(())
            }
            Ok(Message::Whereabouts(at)) => {
                if let Some(channel) = &self.channel {
                    self.keys.hear(channel.peer(), at);
                }
                Ok(())
            }
            Ok(Message::Link(frame)) => {
                let network = frame.network();
                if !self.links.contains_key(&network) {
                    self.complain("refused a key exchange for a network that is not shared", &network);
                    if let Some(refusal) = frame.refuse_unknown_network() {
                        self.send(&refusal).await;
                    }
                    return Ok(());
                }
                let Some(channel) = &self.channel else { return Ok(()) };
                let Some(linked) = self.links.get_mut(&network) else { return Ok(()) };
                if let Some(until) = linked.link.defers(&frame, boot_time()) {
                    self.kept = Some((until, bytes.clone()));
                    return Ok(());
                }
                let export = |context: &[u8; 32]| *channel.export(context);
                self.keys.with_env(|env| linked.link.handle_frame(env, frame, &export));
                self.act(network).await
            }
            Err(error) => self.channel_down(&error.to_string()).await,
        }
    }

    /// Tells the peer who was removed: it may be out of the managers' reach.
    async fn pass_removals(&mut self) {
        let signed = self.removed.borrow_and_update().signed.clone();
        if let Some(signed) = signed {
            self.send(&Message::Removals(Box::new(SignedRemovals::clone(&signed))).encode()).await;
        }
    }

    /// Takes over what the view says of the peer now.
    async fn follow(&mut self, spec: PeerSpec) -> Result<(), LaneGone> {
        if spec.node.advertise != self.spec.node.advertise && self.is_initiator() {
            self.connect_anew("the peer has another address now").await?;
        }
        let lives = |network: &NetworkId, linked: &Linked| {
            spec.links.get(network).is_some_and(|link| link.hold == linked.spec.hold)
        };
        let gone: Vec<NetworkId> = self
            .links
            .iter()
            .filter(|(network, linked)| !lives(network, linked))
            .map(|(network, _)| *network)
            .collect();
        for network in gone {
            self.end(network).await?;
        }
        self.spec = spec;
        for (network, link) in self.spec.links.clone() {
            let standing = Standing {
                epoch: link.membership.epoch,
                peer_is_member: link.membership.nodes.contains(&self.id()),
            };
            if let Some(linked) = self.links.get_mut(&network) {
                if link.narrowed > linked.spec.narrowed {
                    self.epochs.tell(network);
                }
                linked.spec = link;
                self.call(network, move |link, env| link.handle_membership(env, standing)).await?;
                continue;
            }
            // A task before this one may have died and left keys.
            self.keys.dataplane.forget_keys(((network, self.id()), link.hold)).await?;
            self.keys.forget_status((network, self.id()));
            let config = LinkConfig {
                local: self.keys.node,
                peer: self.id(),
                network,
                vni: link.membership.vni,
                hello: self.keys.hello,
                receiving_lanes: self.keys.receiving_lanes,
                suites: self.keys.suites.clone(),
                limits: self.keys.limits,
            };
            self.links.insert(network, Linked { spec: link, link: Link::new(config, standing) });
            self.note(network);
            if let Some(hello) = self.hello {
                self.call(network, move |link, env| link.handle_channel_up(env, hello)).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, frame: &[u8]) {
        // A peer that did not read the last one would be waited for again, with each frame.
        let channel = self.channel.as_mut().filter(|_| self.broken.is_none());
        let Some(channel) = channel else { return };
        let broken = match tokio::time::timeout(SEND_TIMEOUT, channel.send(frame)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the peer does not read what it is sent".to_owned(),
        };
        self.broken = Some(broken);
    }

    /// How long until a link wants to be called, or the channel to be renewed.
    fn timeout(&self) -> Duration {
        let links = self.links.values().filter_map(|linked| linked.link.poll_timeout());
        let renewal = (self.is_initiator() && self.connecting.is_empty())
            .then_some(self.up_since + CHANNEL_LIFE)
            .filter(|_| self.channel.is_some());
        let next = links
            .chain(renewal)
            .chain(self.kept.as_ref().map(|(until, _)| *until))
            .chain(self.wishes.deadline())
            .chain(self.epochs.deadline())
            .min()
            .unwrap_or(BootTime::NEVER);
        next.since(boot_time()).min(LONGEST_SLEEP)
    }
}

/// When to connect anew: keys are bound to a TLS connection, and none lives as long as an hour.
const CHANNEL_LIFE: Duration = Duration::from_secs(50 * 60);
/// When a channel is closed that could not be renewed.
const CHANNEL_END: Duration = Duration::from_secs(60 * 60);
/// A channel that lasted as long was a good one.
const STEADY: Duration = Duration::from_secs(10);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// A peer that was restarted is found again within two seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A peer that reads nothing holds up no more than its own task, and that not for long.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Timers are on the boot-time clock, sleeps are not: a suspended host looks again soon.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
