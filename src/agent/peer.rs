//! One peer: its key channel, and the key exchange of every encrypted network shared with it.
//!
//! The node with the larger id connects; the other waits for it. `negotiate::Link` decides what is
//! said and when, this task carries it out: it sends, gives SAs to the lanes and reports when they
//! are in force. When the channel is gone, keys in use stay in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::keys::Keys;
use super::placement::{LinkSpec, PeerSpec};
use crate::api::types::PeerState;
use crate::boot_time::BootTime;
use crate::control::key_channel::{ChannelError, KeyChannel};
use crate::control::session::Backoff;
use crate::control::tls::peer::ConnectError;
use crate::id::{NetworkId, NodeId, Spi};
use crate::io::clock::boot_time;
use crate::negotiate::{Action, Env, Hello, Link, LinkConfig, Message, Standing};
use crate::worker::LaneGone;

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
}

/// The task of one peer.
pub(crate) struct Peer {
    keys: Arc<Keys>,
    spec: PeerSpec,
    links: BTreeMap<NetworkId, Linked>,
    channel: Option<KeyChannel>,
    /// What the peer said of itself on this channel.
    hello: Option<Hello>,
    /// When to connect again, so that no channel gets old; the initiator's business.
    renew_at: BootTime,
    backoff: Backoff,
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
    Connected(Result<Box<KeyChannel>, ConnectError>),
    Received(Result<Option<Bytes>, ChannelError>),
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
            keys,
            spec: spec.clone(),
            links: BTreeMap::new(),
            channel: None,
            hello: None,
            renew_at: BootTime::NEVER,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(1)),
        };
        peer.follow(spec).await?;
        let (connected, mut connections) = mpsc::channel(1);
        let mut connecting = false;
        loop {
            if peer.is_initiator() && !connecting && (peer.channel.is_none() || boot_time() >= peer.renew_at)
            {
                connecting = true;
                peer.connect(connected.clone());
            }
            let timeout = peer.timeout();
            let received = async {
                match &mut peer.channel {
                    Some(channel) => channel.receive().await,
                    None => std::future::pending().await,
                }
            };
            let turn = tokio::select! {
                changed = specs.changed() => match changed {
                    Ok(()) => Turn::Spec,
                    Err(_) => return Ok(()),
                },
                Some(event) = events.recv() => Turn::Event(event),
                Some(result) = connections.recv() => Turn::Connected(result),
                received = received => Turn::Received(received),
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
                Turn::Connected(result) => {
                    connecting = false;
                    peer.connected(result).await?;
                }
                Turn::Received(Ok(Some(frame))) => peer.received(&frame).await?,
                Turn::Received(Ok(None)) => peer.channel_down("the peer closed it").await?,
                Turn::Received(Err(error)) => peer.channel_down(&error.to_string()).await?,
                Turn::Timeout => peer.each(Link::handle_timeout).await?,
            }
        }
    }

    fn id(&self) -> NodeId {
        self.spec.node.id
    }

    fn is_initiator(&self) -> bool {
        self.keys.node > self.id()
    }

    /// Connects in the background, after a pause that grows with every failure.
    fn connect(&mut self, done: mpsc::Sender<Result<Box<KeyChannel>, ConnectError>>) {
        let pause = self.backoff.next();
        let (credentials, node) = (Arc::clone(&self.keys.credentials), self.spec.node.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let result = KeyChannel::connect(&credentials, node.advertise, node.id).await;
            // Nobody is interested any more once the peer's task has ended.
            let _ = done.send(result.map(Box::new)).await;
        });
    }

    async fn connected(&mut self, result: Result<Box<KeyChannel>, ConnectError>) -> Result<(), LaneGone> {
        match result {
            Ok(channel) => self.channel_up(*channel).await,
            Err(error) => {
                let failure = error.to_string();
                for network in self.links.keys() {
                    self.keys.set_status((*network, self.id()), |status| {
                        if status.failure.as_ref() != Some(&failure) {
                            tracing::warn!(peer = %self.spec.node.name, %error, "no key channel");
                        }
                        status.failure = Some(failure.clone());
                    });
                }
                Ok(())
            }
        }
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
            PeerEvent::UnknownSpi(spi) => self.send(&Message::SpiUnknown(spi.get()).encode()).await,
        }
    }

    async fn channel_up(&mut self, channel: KeyChannel) -> Result<(), LaneGone> {
        if self.channel.is_some() {
            self.channel_down("a newer one takes its place").await?;
        }
        tracing::debug!(peer = %self.spec.node.name, address = %channel.peer().address, "key channel is up");
        self.channel = Some(channel);
        self.renew_at = boot_time() + CHANNEL_LIFE;
        self.backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let hello = Message::Hello(self.keys.hello).encode();
        self.send(&hello).await
    }

    async fn channel_down(&mut self, why: &str) -> Result<(), LaneGone> {
        if self.channel.take().is_some() {
            tracing::debug!(peer = %self.spec.node.name, why, "key channel is down");
        }
        self.hello = None;
        self.renew_at = BootTime::NEVER;
        self.each(Link::handle_channel_down).await
    }

    async fn received(&mut self, frame: &Bytes) -> Result<(), LaneGone> {
        match Message::decode(frame) {
            Ok(Message::Hello(hello)) => {
                self.hello = Some(hello);
                self.each(move |link, env| link.handle_channel_up(env, hello)).await
            }
            Ok(Message::SpiUnknown(spi)) => {
                self.each(move |link, env| {
                    link.handle_spi_unknown(env, spi);
                })
                .await
            }
            Ok(Message::Membership(signed)) => self.keys.dataplane.adopt(&signed).await,
            Ok(Message::Link(frame)) => {
                let network = frame.network();
                if !self.links.contains_key(&network) {
                    tracing::warn!(
                        peer = %self.spec.node.name, %network,
                        "refused a key exchange for a network that is not shared with the peer"
                    );
                    return match frame.refuse_unknown_network() {
                        Some(refusal) => self.send(&refusal).await,
                        None => Ok(()),
                    };
                }
                let Some(channel) = &self.channel else { return Ok(()) };
                let Some(linked) = self.links.get_mut(&network) else { return Ok(()) };
                let export = |context: &[u8; 32]| *channel.export(context);
                self.keys.with_env(|env| linked.link.handle_frame(env, frame, &export));
                self.act(network).await
            }
            Err(error) => self.channel_down(&error.to_string()).await,
        }
    }

    /// Takes over what the view says of the peer now.
    async fn follow(&mut self, spec: PeerSpec) -> Result<(), LaneGone> {
        if spec.node.advertise != self.spec.node.advertise && self.is_initiator() {
            self.channel_down("the peer has another address now").await?;
        }
        let gone: Vec<NetworkId> =
            self.links.keys().filter(|network| !spec.links.contains_key(network)).copied().collect();
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
                linked.spec = link;
                self.call(network, move |link, env| link.handle_membership(env, standing)).await?;
                continue;
            }
            let config = LinkConfig {
                local: self.keys.node,
                peer: self.id(),
                network,
                vni: link.membership.vni,
                hello: self.keys.hello,
                suites: self.keys.suites.clone(),
                limits: self.keys.limits,
            };
            self.links.insert(network, Linked { spec: link, link: Link::new(config, standing) });
            self.keys.set_status((network, self.id()), |_| {});
            if let Some(hello) = self.hello {
                self.call(network, move |link, env| link.handle_channel_up(env, hello)).await?;
            }
        }
        Ok(())
    }

    async fn close(mut self) -> Result<(), LaneGone> {
        let networks: Vec<NetworkId> = self.links.keys().copied().collect();
        for network in networks {
            self.end(network).await?;
        }
        if let Some(channel) = self.channel.take() {
            channel.close().await;
        }
        Ok(())
    }

    /// Ends a link: no lane knows a key of it when this returns, and its slot is free.
    async fn end(&mut self, network: NetworkId) -> Result<(), LaneGone> {
        self.call(network, |link, env| link.handle_closed(env)).await?;
        if let Some(linked) = self.links.remove(&network) {
            self.keys.forget_status((network, self.id()));
            self.keys.dataplane.end_link((network, self.id()), linked.spec.slot).await?;
        }
        Ok(())
    }

    async fn each(
        &mut self,
        mut call: impl FnMut(&mut Link, &mut Env<'_, rand::rngs::ThreadRng>),
    ) -> Result<(), LaneGone> {
        let networks: Vec<NetworkId> = self.links.keys().copied().collect();
        for network in networks {
            self.call(network, &mut call).await?;
        }
        Ok(())
    }

    async fn call(
        &mut self,
        network: NetworkId,
        call: impl FnOnce(&mut Link, &mut Env<'_, rand::rngs::ThreadRng>),
    ) -> Result<(), LaneGone> {
        let Some(linked) = self.links.get_mut(&network) else { return Ok(()) };
        self.keys.with_env(|env| call(&mut linked.link, env));
        self.act(network).await
    }

    /// Carries out what a link wants done, in order.
    async fn act(&mut self, network: NetworkId) -> Result<(), LaneGone> {
        while let Some(linked) = self.links.get_mut(&network) {
            let Some(action) = linked.link.poll_action() else { break };
            let slot = linked.spec.slot;
            match action {
                Action::Send(frame) => self.send(&frame).await?,
                Action::Install(install) => {
                    let exchange = install.exchange;
                    self.keys.install(slot, self.spec.node.data.is_ipv6(), install).await?;
                    self.keys.with_env(|env| linked.link.handle_installed(env, exchange));
                }
                Action::RetireInbound { spis, at } => self.keys.retire(spis, at).await?,
                Action::DropLink => self.keys.dataplane.forget_keys(slot).await?,
                Action::Established(established) => {
                    tracing::info!(
                        peer = %self.spec.node.name, network = %linked.spec.name,
                        suite = established.suite.name(), generation = established.generation,
                        "keys are in use"
                    );
                }
                Action::Refused { by_peer, reason } => {
                    tracing::warn!(
                        peer = %self.spec.node.name, network = %linked.spec.name, by_peer, %reason,
                        "key exchange refused"
                    );
                    let failure = Some(reason.to_string());
                    self.keys.set_status((network, self.id()), |status| status.failure = failure);
                }
                Action::MembershipStale { epoch } => {
                    tracing::debug!(network = %linked.spec.name, %epoch, "the peer knows a newer membership");
                }
                Action::PassMembership => {
                    let view = self.keys.dataplane.view().await;
                    if let Some(known) = view.networks.get(&network) {
                        let message = Message::Membership(Box::new(known.membership.clone()));
                        self.send(&message.encode()).await?;
                    }
                }
            }
        }
        self.note(network);
        Ok(())
    }

    /// What `overlayd peers` shows.
    fn note(&self, network: NetworkId) {
        let Some(linked) = self.links.get(&network) else { return };
        let established = linked.link.established().cloned();
        self.keys.set_status((network, self.id()), |status| {
            status.state = match (&established, &self.channel, &status.failure) {
                (Some(_), ..) => PeerState::Established,
                (None, Some(_), None) => PeerState::Negotiating,
                (None, None, None) => PeerState::Connecting,
                (None, _, Some(_)) => PeerState::Failed,
            };
            if established.is_some() {
                status.failure = None;
            }
            status.established = established;
        });
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), LaneGone> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        // A channel that broke says so to the next receive as well, which takes it down.
        if let Err(error) = channel.send(frame).await {
            tracing::debug!(peer = %self.spec.node.name, %error, "a message was not sent");
        }
        Ok(())
    }

    /// How long until a link wants to be called, or the channel to be renewed.
    fn timeout(&self) -> Duration {
        let links = self.links.values().filter_map(|linked| linked.link.poll_timeout());
        let next = links.chain([self.renew_at]).min().unwrap_or(BootTime::NEVER);
        next.since(boot_time()).min(LONGEST_SLEEP)
    }
}

/// Keys are bound to a TLS connection; none lives as long as an hour.
const CHANNEL_LIFE: Duration = Duration::from_secs(50 * 60);
/// Timers are on the boot-time clock, sleeps are not: a suspended host looks again soon.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
