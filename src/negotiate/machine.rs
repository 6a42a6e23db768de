//! The state of one link: which keys are in use, which exchange is under way, what happens next.
//!
//! The driver calls `handle_*` with what happened, then carries out [`Link::poll_action`] until it
//! is empty, in order, and comes back at [`Link::poll_timeout`]. Every [`Action::Install`] is
//! answered by [`Link::handle_installed`] once all lanes have acknowledged it: an answer leaves only
//! when the responder can receive, `active` only when the initiator can.

use std::collections::VecDeque;

use rand::CryptoRng;

use super::action::{Action, Established};
use super::exchange::Exchange;
use super::message::{ExchangeId, Hello, LinkFrame, LinkMessage};
use super::reason::Reason;
use super::rekey::{ASK_AGAIN, Backoff, SHORTEST_GENERATION, replacement_time};
use super::spi_pool::SpiPool;
use crate::boot_time::BootTime;
use crate::id::{BootId, Epoch, LaneCount, NetworkId, NodeId, Spi, Vni};
use crate::sa::key_schedule::Parties;
use crate::sa::{LimitOverrides, Suite};

/// What a link is about; fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkConfig {
    /// This node.
    pub local: NodeId,
    /// The other node.
    pub peer: NodeId,
    /// The network that both are members of.
    pub network: NetworkId,
    /// Its VNI.
    pub vni: Vni,
    /// What this node says of itself on every channel; its lanes are those that send.
    pub hello: Hello,
    /// How many of them receive, from the first on: all, or one where the kernel cannot steer.
    pub receiving_lanes: LaneCount,
    /// The ciphers to offer and to accept, best first ([`Suite::preferred`]).
    pub suites: Vec<Suite>,
    /// The configured limits of the SAs.
    pub limits: LimitOverrides,
}

/// The peer's place in the network's membership as this node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The membership's epoch.
    pub epoch: Epoch,
    /// Whether the peer is a member by it.
    pub peer_is_member: bool,
}

/// What each call needs from outside.
#[derive(Debug)]
pub struct Env<'a, R> {
    /// The time.
    pub now: BootTime,
    /// Randomness for keys, nonces, SPIs and jitter.
    pub rng: &'a mut R,
    /// The SPIs of this node.
    pub spis: &'a mut SpiPool,
}

/// The negotiation of one peer and network.
#[derive(Debug)]
pub struct Link {
    pub(super) config: LinkConfig,
    pub(super) standing: Standing,
    /// What the peer said of itself on the channel that is up.
    pub(super) channel: Option<Hello>,
    /// The run of the peer that the keys in use were made with.
    peer_boot: Option<BootId>,
    pub(super) exchange: Exchange,
    pub(super) current: Option<Established>,
    /// Inbound SAs of the generation before, still open.
    previous: Option<Retiring>,
    pub(super) generation: u64,
    pub(super) backoff: Backoff,
    /// When to offer (the initiator) or to ask (the responder) next.
    pub(super) next_attempt: Option<BootTime>,
    /// Before this the initiator offers nothing, whoever asks.
    pub(super) not_before: Option<BootTime>,
    last_asked: Option<BootTime>,
    /// When the last offer was answered, or would have been but for its share.
    pub(super) last_offer: Option<BootTime>,
    pub(super) actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Retiring {
    spis: Vec<Spi>,
    at: BootTime,
    latest: BootTime,
}

impl Link {
    /// A link without keys and without channel.
    pub fn new(config: LinkConfig, standing: Standing) -> Self {
        Self {
            config,
            standing,
            channel: None,
            peer_boot: None,
            exchange: Exchange::Idle,
            current: None,
            previous: None,
            generation: 0,
            backoff: Backoff::default(),
            next_attempt: None,
            not_before: None,
            last_asked: None,
            last_offer: None,
            actions: VecDeque::new(),
        }
    }

    /// Whether this node connects and offers.
    pub fn is_initiator(&self) -> bool {
        self.config.local > self.config.peer
    }

    /// The keys in use.
    pub const fn established(&self) -> Option<&Established> {
        self.current.as_ref()
    }

    /// SPIs of the generation before the keys in use, which this node still receives on.
    pub fn lingering(&self) -> &[Spi] {
        self.previous.as_ref().map_or(&[], |previous| &previous.spis)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Self::handle_timeout`], unless something happens before.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let attempt = self.next_attempt.filter(|_| self.exchange.is_idle() && self.may_exchange());
        [
            attempt,
            self.exchange.deadline(),
            self.previous.as_ref().map(|previous| previous.at),
            self.current.as_ref().map(Established::end),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A channel to the peer is up and its hello has come.
    pub fn handle_channel_up<R: CryptoRng>(&mut self, env: &mut Env<'_, R>, peer: Hello) {
        if self.channel.is_some() {
            self.handle_channel_down(env);
        }
        if self.peer_boot.is_some_and(|boot| boot != peer.boot_id) {
            self.drop_all(env);
        }
        self.peer_boot = Some(peer.boot_id);
        self.channel = Some(peer);
        self.backoff.reset();
        self.last_asked = None;
        match self.current.as_ref().map(|current| (current.exchange, current.limits.linger)) {
            Some((exchange, linger)) if self.is_initiator() && self.exchange.is_idle() => {
                self.send(&LinkMessage::Active(exchange));
                self.retire_previous(env.now + linger);
            }
            Some(_) => {}
            None => self.begin_or_ask(env),
        }
    }

    /// The channel to the peer is gone. Keys in use stay in use. An exchange that has not been
    /// answered is abandoned; one that has may already be in use at the initiator, so it waits for
    /// the next channel to tell.
    pub fn handle_channel_down<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        self.channel = None;
        if self.exchange.is_unanswered() {
            self.abandon(env);
            self.next_attempt = Some(env.now);
        }
        if self.is_initiator()
            && let Some(latest) = self.previous.as_ref().map(|previous| previous.latest)
        {
            self.retire_previous(latest);
        }
    }

    /// Until when the driver is to keep this frame back, with all that comes behind it on its channel. An
    /// exchange costs this node keys and its lanes commands, so a peer that offers one after the other has to
    /// wait. It is not refused: an honest peer may offer twice at once, and be told again of what it offered
    /// while this node stood still, and the last offer is the one that counts.
    pub fn defers(&self, frame: &LinkFrame, now: BootTime) -> Option<BootTime> {
        let is_offer = matches!(frame.message, LinkMessage::Offer(_));
        let at = self.last_offer.filter(|_| is_offer)? + SHORTEST_GENERATION;
        (now < at).then_some(at)
    }

    /// A frame for this link came; `exporter` is the TLS exporter of the channel that it came on,
    /// with [`crate::sa::key_schedule::EXPORTER_LABEL`] and the given context.
    pub fn handle_frame<R: CryptoRng>(
        &mut self,
        env: &mut Env<'_, R>,
        frame: LinkFrame,
        exporter: &dyn Fn(&[u8; 32]) -> [u8; 32],
    ) {
        let Some(peer) = self.channel else { return };
        let LinkFrame { network, message, bytes } = frame;
        let exchange = match &message {
            LinkMessage::Offer(offer) => Some(offer.exchange),
            LinkMessage::Answer(answer) => Some(answer.exchange),
            LinkMessage::Active(exchange) => Some(*exchange),
            LinkMessage::RekeyPlease(exchange) => *exchange,
            LinkMessage::Refused { exchange, .. } => *exchange,
        };
        if let LinkMessage::Offer(offer) = &message
            && network == self.config.network
        {
            self.compare_epoch(offer.epoch);
        }
        let handled = match message {
            _ if network != self.config.network => Err(Reason::UnknownNetwork),
            LinkMessage::Refused { exchange, reason } => {
                self.handle_refused(env, exchange, reason);
                Ok(())
            }
            _ if !self.standing.peer_is_member => Err(Reason::NotAMember { epoch: self.standing.epoch }),
            LinkMessage::Offer(offer) => self.handle_offer(env, peer, &offer, &bytes, exporter),
            LinkMessage::Answer(answer) => self.handle_answer(env, peer, &answer, &bytes, exporter),
            LinkMessage::Active(exchange) => self.handle_active(env, exchange),
            LinkMessage::RekeyPlease(exchange) => self.handle_rekey_please(env, exchange),
        };
        if let Err(reason) = handled {
            self.send(&LinkMessage::Refused { exchange, reason });
            self.actions.push_back(Action::Refused { by_peer: false, reason });
        }
    }

    /// The lanes have acknowledged an [`Action::Install`] of this exchange.
    pub fn handle_installed<R: CryptoRng>(&mut self, env: &mut Env<'_, R>, exchange: ExchangeId) {
        if let Some(established) = self.exchange.take_installed(exchange) {
            self.promote(env, established);
            self.send(&LinkMessage::Active(exchange));
        } else if let Some(answer) = self.exchange.take_answer(exchange) {
            self.actions.push_back(Action::Send(answer));
        }
    }

    /// A lane says that an SA has crossed a limit, or the operator wants new keys; `spi` names the SA
    /// where a lane does, so that a late word on keys already replaced does not replace the new ones.
    pub fn handle_rekey_wanted<R: CryptoRng>(&mut self, env: &mut Env<'_, R>, spi: Option<Spi>) {
        match (&self.current, spi) {
            (_, None) => self.begin_or_ask(env),
            (Some(current), Some(spi)) if current.has(spi) => self.begin_or_ask(env),
            (Some(_), Some(_)) => {}
            (None, Some(_)) => self.handle_traffic_waiting(env),
        }
    }

    /// A container has traffic for the peer and there are no keys.
    pub fn handle_traffic_waiting<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        if self.current.is_none() && !self.backoff.is_waiting() {
            self.begin_or_ask(env);
        }
    }

    /// The peer says that it has no SA with this SPI; true if we send on it in this link.
    pub fn handle_spi_unknown<R: CryptoRng>(&mut self, env: &mut Env<'_, R>, spi: u32) -> bool {
        let ours =
            self.current.as_ref().is_some_and(|current| current.outbound.iter().any(|o| o.get() == spi));
        if ours {
            self.begin_or_ask(env);
        }
        ours
    }

    /// The network's membership changed; an older one than known is ignored.
    pub fn handle_membership<R: CryptoRng>(&mut self, env: &mut Env<'_, R>, standing: Standing) {
        if standing.epoch < self.standing.epoch {
            return;
        }
        let joined = standing.peer_is_member && !self.standing.peer_is_member;
        self.standing = standing;
        if !standing.peer_is_member {
            self.drop_all(env);
        } else if joined {
            self.backoff.reset();
            self.begin_or_ask(env);
        }
    }

    /// The link ends: the network is gone from this node, or the peer from the cluster.
    pub fn handle_closed<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        self.channel = None;
        self.drop_all(env);
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        if let Some(previous) = self.previous.take_if(|previous| previous.at <= env.now) {
            env.spis.release(&previous.spis);
        }
        if let Some(current) = self.current.take_if(|current| current.end() <= env.now) {
            self.retire(env, &current.inbound);
            self.begin_or_ask(env);
        }
        if self.exchange.deadline().is_some_and(|deadline| deadline <= env.now) {
            self.fail(env);
        }
        if self.next_attempt.is_some_and(|at| at <= env.now) && self.exchange.is_idle() {
            self.begin_or_ask(env);
        }
    }

    /// Whether an exchange could be made now.
    pub(super) const fn may_exchange(&self) -> bool {
        self.channel.is_some() && self.standing.peer_is_member
    }

    /// Until when the generation before the keys in use is not cut short by one after them: packets
    /// sealed with it may be under way.
    fn earliest_exchange(&self) -> Option<BootTime> {
        let current = self.previous.as_ref().and(self.current.as_ref());
        current.map(|current| current.created + SHORTEST_GENERATION).max(self.not_before)
    }

    pub(super) fn parties(&self) -> Parties {
        let LinkConfig { local, peer, network, vni, .. } = self.config;
        let (initiator, responder) = if self.is_initiator() { (local, peer) } else { (peer, local) };
        Parties { initiator, responder, network, vni }
    }

    pub(super) fn send(&mut self, message: &LinkMessage) {
        if self.channel.is_some() {
            self.actions.push_back(Action::Send(message.encode(self.config.network)));
        }
    }

    /// Begins an exchange, or asks the peer to, unless one is under way. Where neither can be now, it
    /// is done as soon as it can: a soft limit is told of once.
    pub(super) fn begin_or_ask<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        if !self.exchange.is_idle() {
            return;
        }
        if !self.may_exchange() {
            self.next_attempt = Some(env.now);
            return;
        }
        if self.is_initiator() {
            match self.earliest_exchange().filter(|earliest| env.now < *earliest) {
                Some(earliest) => self.next_attempt = Some(earliest),
                None => self.begin(env),
            }
            return;
        }
        if let Some(earliest) = self.last_asked.map(|asked| asked + ASK_AGAIN)
            && env.now < earliest
        {
            self.next_attempt = Some(earliest);
            return;
        }
        self.last_asked = Some(env.now);
        self.next_attempt = Some(env.now + self.backoff.after_failure(env.rng).max(ASK_AGAIN));
        self.send(&LinkMessage::RekeyPlease(self.current.as_ref().map(|current| current.exchange)));
    }

    /// Puts a new generation into use and lets the one before linger.
    pub(super) fn promote<R: CryptoRng>(&mut self, env: &mut Env<'_, R>, established: Established) {
        if let Some(old) = self.current.replace(established.clone()) {
            // Without a channel the responder has not heard `active` and sends on the old keys.
            let linger = self.channel.map(|_| env.now + established.limits.linger);
            let at = linger.unwrap_or(old.end());
            self.previous = Some(Retiring { latest: old.end(), at, spis: old.inbound });
            self.retire_previous(at);
        }
        self.backoff.reset();
        self.last_asked = None;
        self.next_attempt = Some(replacement_time(&established.limits, env.now, env.rng));
        self.actions.push_back(Action::Established(established));
    }

    /// Ends the lingering of the generation before, so that there are never three.
    pub(super) fn retire_previous_now<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        if let Some(previous) = self.previous.take() {
            self.retire(env, &previous.spis);
        }
    }

    /// Lets the lanes forget inbound SAs at once.
    pub(super) fn retire<R: CryptoRng>(&mut self, env: &mut Env<'_, R>, spis: &[Spi]) {
        env.spis.release(spis);
        self.actions.push_back(Action::RetireInbound { spis: spis.to_vec(), at: env.now });
    }

    /// Forgets all keys and the exchange under way.
    pub(super) fn drop_all<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        let exchange = std::mem::replace(&mut self.exchange, Exchange::Idle);
        env.spis.release(exchange.inbound());
        env.spis.release(self.current.take().as_ref().map_or(&[], |current| &current.inbound));
        env.spis.release(self.previous.take().as_ref().map_or(&[], |previous| &previous.spis));
        self.next_attempt = None;
        self.actions.push_back(Action::DropLink);
    }

    /// Moves the end of the lingering generation.
    fn retire_previous(&mut self, at: BootTime) {
        if let Some(previous) = &mut self.previous {
            previous.at = at.min(previous.latest);
            self.actions.push_back(Action::RetireInbound { spis: previous.spis.clone(), at: previous.at });
        }
    }
}
