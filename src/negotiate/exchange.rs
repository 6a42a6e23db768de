//! One key exchange, on both its sides: what a link does with offers, answers and their refusals.

use bytes::Bytes;
use rand::{CryptoRng, Rng};

use super::action::{Action, Established, Install, LaneKey};
use super::machine::{Env, Link, Standing};
use super::message::{Answer, ExchangeId, Hello, LinkMessage, Offer};
use super::reason::Reason;
use super::rekey::{EXCHANGE_TIMEOUT, SHORTEST_GENERATION};
use crate::boot_time::BootTime;
use crate::id::{Epoch, LaneId, Spi};
use crate::sa::key_schedule::{Direction, KeySchedule, KeyShare, SaName, Transcript};
use crate::sa::{Limits, Suite};

/// Where the exchange under way stands. At most one per link.
#[derive(Debug)]
pub(super) enum Exchange {
    /// None is under way.
    Idle,
    /// Initiator: the offer is out.
    Offered(Offered),
    /// Initiator: the lanes are installing both directions.
    Installing(Established),
    /// Responder: the lanes are installing the inbound SAs, the answer waits for them.
    Accepting(Pending, Bytes),
    /// Responder: the answer is out, the outbound SAs wait for `active`.
    Answered(Pending),
}

#[derive(Debug)]
pub(super) struct Offered {
    exchange: ExchangeId,
    message: Bytes,
    share: KeyShare,
    spis: Vec<Spi>,
    deadline: BootTime,
}

#[derive(Debug)]
pub(super) struct Pending {
    established: Established,
    outbound: Vec<LaneKey>,
}

impl Exchange {
    pub(super) const fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// Whether no answer has been sent or received, so that the peer cannot be using it.
    pub(super) const fn is_unanswered(&self) -> bool {
        matches!(self, Self::Offered(_) | Self::Accepting(..))
    }

    /// When to give up an offer without answer, or SAs that grew old without having been used.
    pub(super) fn deadline(&self) -> Option<BootTime> {
        match self {
            Self::Idle | Self::Installing(_) | Self::Accepting(..) => None,
            Self::Offered(offered) => Some(offered.deadline),
            Self::Answered(pending) => Some(pending.established.end()),
        }
    }

    /// The SPIs that the exchange has taken from the pool.
    pub(super) fn inbound(&self) -> &[Spi] {
        match self {
            Self::Idle => &[],
            Self::Offered(offered) => &offered.spis,
            Self::Installing(established) => &established.inbound,
            Self::Accepting(pending, _) | Self::Answered(pending) => &pending.established.inbound,
        }
    }

    /// The initiator's keys, once the lanes have them.
    pub(super) fn take_installed(&mut self, exchange: ExchangeId) -> Option<Established> {
        match std::mem::replace(self, Self::Idle) {
            Self::Installing(established) if established.exchange == exchange => Some(established),
            other @ (Self::Idle
            | Self::Offered(_)
            | Self::Installing(_)
            | Self::Accepting(..)
            | Self::Answered(_)) => {
                *self = other;
                None
            }
        }
    }

    /// The responder's answer, once the lanes can receive.
    pub(super) fn take_answer(&mut self, exchange: ExchangeId) -> Option<Bytes> {
        match std::mem::replace(self, Self::Idle) {
            Self::Accepting(pending, answer) if pending.established.exchange == exchange => {
                *self = Self::Answered(pending);
                Some(answer)
            }
            other @ (Self::Idle
            | Self::Offered(_)
            | Self::Installing(_)
            | Self::Accepting(..)
            | Self::Answered(_)) => {
                *self = other;
                None
            }
        }
    }

    fn id(&self) -> Option<ExchangeId> {
        match self {
            Self::Idle => None,
            Self::Offered(offered) => Some(offered.exchange),
            Self::Installing(established) => Some(established.exchange),
            Self::Accepting(pending, _) | Self::Answered(pending) => Some(pending.established.exchange),
        }
    }
}

impl Link {
    /// SPIs of the generation to come, in and out: lanes may have them already.
    pub fn coming(&self) -> [&[Spi]; 2] {
        let outbound: &[Spi] = match &self.exchange {
            Exchange::Idle | Exchange::Offered(_) => &[],
            Exchange::Installing(established) => &established.outbound,
            Exchange::Accepting(pending, _) | Exchange::Answered(pending) => &pending.established.outbound,
        };
        [self.exchange.inbound(), outbound]
    }

    /// Initiator: sends an offer. Our inbound SAs are one for each lane of the sending peer, spread
    /// over our receiving lanes.
    pub(super) fn begin<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        let Some(peer) = self.channel.filter(|_| self.may_exchange()) else { return };
        let share = KeyShare::generate(env.rng);
        let spis = self.allocate(env, peer);
        let exchange = fresh_exchange_id(env.rng);
        let message = LinkMessage::Offer(Offer {
            exchange,
            vni: self.config.vni.get(),
            epoch: self.standing.epoch,
            boot_id: self.config.hello.boot_id,
            suites: self.config.suites.iter().map(|suite| suite.code()).collect(),
            share: *share.public(),
            nonce: nonce(env.rng),
            spis: spis.iter().map(|spi| spi.get()).collect(),
        })
        .encode(self.config.network);
        self.next_attempt = None;
        self.actions.push_back(Action::Send(message.clone()));
        let deadline = env.now + EXCHANGE_TIMEOUT;
        self.exchange = Exchange::Offered(Offered { exchange, message, share, spis, deadline });
    }

    /// Responder: message 1.
    pub(super) fn handle_offer<R: CryptoRng>(
        &mut self,
        env: &mut Env<'_, R>,
        peer: Hello,
        offer: &Offer,
        bytes: &Bytes,
        exporter: &dyn Fn(&[u8; 32]) -> [u8; 32],
    ) -> Result<(), Reason> {
        if self.is_initiator() {
            return Err(Reason::NotTheInitiator);
        }
        if offer.vni != self.config.vni.get() {
            return Err(Reason::WrongVni { vni: offer.vni });
        }
        if offer.boot_id != peer.boot_id {
            return Err(Reason::WrongBootId);
        }
        let known = [self.exchange.id(), self.current.as_ref().map(|current| current.exchange)];
        if known.contains(&Some(offer.exchange)) {
            return Err(Reason::ReusedExchange);
        }
        let suite = offer
            .suites
            .iter()
            .filter_map(|code| Suite::from_code(*code))
            .find(|suite| self.config.suites.contains(suite))
            .ok_or(Reason::NoCommonSuite)?;
        let outbound = self.peer_spis(peer, &offer.spis)?;
        self.last_offer = Some(env.now);
        let share = KeyShare::generate(env.rng);
        let public = *share.public();
        let shared = share.agree(&offer.share).map_err(|_| Reason::LowOrderShare)?;

        self.abandon(env);
        self.retire_previous_now(env);
        let inbound = self.allocate(env, peer);
        let answer = LinkMessage::Answer(Answer {
            exchange: offer.exchange,
            suite: suite.code(),
            share: public,
            nonce: nonce(env.rng),
            spis: inbound.iter().map(|spi| spi.get()).collect(),
        })
        .encode(self.config.network);
        let schedule = shared.bind(Transcript::of(bytes, &answer), exporter);
        let (established, inbound, outbound) =
            self.derive(env.now, offer.exchange, suite, &schedule, inbound, outbound);
        self.install(&established, inbound, Vec::new());
        self.exchange = Exchange::Accepting(Pending { established, outbound }, answer);
        Ok(())
    }

    /// Initiator: message 2.
    pub(super) fn handle_answer<R: CryptoRng>(
        &mut self,
        env: &mut Env<'_, R>,
        peer: Hello,
        answer: &Answer,
        bytes: &Bytes,
        exporter: &dyn Fn(&[u8; 32]) -> [u8; 32],
    ) -> Result<(), Reason> {
        if !self.is_initiator() {
            return Err(Reason::OutOfState);
        }
        let offered = match std::mem::replace(&mut self.exchange, Exchange::Idle) {
            Exchange::Offered(offered) if offered.exchange == answer.exchange => offered,
            other @ (Exchange::Idle
            | Exchange::Offered(_)
            | Exchange::Installing(_)
            | Exchange::Accepting(..)
            | Exchange::Answered(_)) => {
                self.exchange = other;
                return Err(Reason::UnknownExchange);
            }
        };
        let checked = Suite::from_code(answer.suite)
            .filter(|suite| self.config.suites.contains(suite))
            .ok_or(Reason::SuiteNotOffered { code: answer.suite })
            .and_then(|suite| Ok((suite, self.peer_spis(peer, &answer.spis)?)))
            .and_then(|(suite, outbound)| {
                let shared = offered.share.agree(&answer.share).map_err(|_| Reason::LowOrderShare)?;
                Ok((suite, outbound, shared))
            });
        let (suite, outbound, shared) = match checked {
            Ok(checked) => checked,
            Err(reason) => {
                env.spis.release(&offered.spis);
                self.fail(env);
                return Err(reason);
            }
        };
        self.retire_previous_now(env);
        let schedule = shared.bind(Transcript::of(&offered.message, bytes), exporter);
        let (established, inbound, outbound) =
            self.derive(env.now, answer.exchange, suite, &schedule, offered.spis, outbound);
        self.install(&established, inbound, outbound);
        self.exchange = Exchange::Installing(established);
        Ok(())
    }

    /// Responder: message 3, or its repetition on a new channel, which says which keys the
    /// initiator uses.
    pub(super) fn handle_active<R: CryptoRng>(
        &mut self,
        env: &mut Env<'_, R>,
        exchange: ExchangeId,
    ) -> Result<(), Reason> {
        if self.is_initiator() {
            return Err(Reason::OutOfState);
        }
        match std::mem::replace(&mut self.exchange, Exchange::Idle) {
            Exchange::Answered(pending) if pending.established.exchange == exchange => {
                self.install(&pending.established, Vec::new(), pending.outbound);
                self.promote(env, pending.established);
                return Ok(());
            }
            other @ (Exchange::Idle
            | Exchange::Offered(_)
            | Exchange::Installing(_)
            | Exchange::Accepting(..)
            | Exchange::Answered(_)) => self.exchange = other,
        }
        if self.current.as_ref().is_some_and(|current| current.exchange == exchange) {
            if matches!(self.exchange, Exchange::Answered(_)) {
                self.abandon(env);
            }
            return Ok(());
        }
        Err(Reason::UnknownExchange)
    }

    /// Initiator: the responder wants new keys. A request to replace keys that have been replaced
    /// crossed the exchange on its way and has been granted already.
    pub(super) fn handle_rekey_please<R: CryptoRng>(
        &mut self,
        env: &mut Env<'_, R>,
        replace: Option<ExchangeId>,
    ) -> Result<(), Reason> {
        if !self.is_initiator() {
            return Err(Reason::OutOfState);
        }
        let current = self.current.as_ref().map(|current| current.exchange);
        if replace.is_none() || current.is_none() || replace == current {
            self.begin_or_ask(env);
        }
        Ok(())
    }

    /// The peer refused something of ours.
    pub(super) fn handle_refused<R: CryptoRng>(
        &mut self,
        env: &mut Env<'_, R>,
        exchange: Option<ExchangeId>,
        reason: Reason,
    ) {
        self.actions.push_back(Action::Refused { by_peer: true, reason });
        if let Reason::NotAMember { epoch } = reason {
            self.compare_epoch(epoch);
        }
        if exchange.is_none() {
            return;
        }
        let current = self.current.as_ref().filter(|current| Some(current.exchange) == exchange);
        let earliest = current.map(|current| current.created + SHORTEST_GENERATION);
        if self.exchange.id() == exchange && !matches!(self.exchange, Exchange::Installing(_)) {
            self.fail(env);
        } else if let Some(earliest) = earliest.filter(|_| self.is_initiator())
            && reason == Reason::UnknownExchange
        {
            self.drop_all(env);
            // A peer that forgets at once what it has agreed to is not to have keys made without end.
            self.not_before = Some(earliest);
            self.begin_or_ask(env);
        }
    }

    /// Gives up the exchange under way; the next attempt waits.
    pub(super) fn fail<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        self.abandon(env);
        self.next_attempt = Some(env.now + self.backoff.after_failure(env.rng));
    }

    /// Gives up the exchange under way, and what it had installed.
    pub(super) fn abandon<R: CryptoRng>(&mut self, env: &mut Env<'_, R>) {
        match std::mem::replace(&mut self.exchange, Exchange::Idle) {
            Exchange::Idle => {}
            Exchange::Offered(offered) => env.spis.release(&offered.spis),
            Exchange::Installing(established) => self.retire(env, &established.inbound),
            Exchange::Accepting(pending, _) | Exchange::Answered(pending) => {
                self.retire(env, &pending.established.inbound);
            }
        }
    }

    /// Tells the driver who has to learn a newer membership. A node that is no member is told no
    /// more than its refusal.
    pub(super) fn compare_epoch(&mut self, peer: Epoch) {
        let Standing { epoch: ours, peer_is_member } = self.standing;
        if peer > ours {
            self.actions.push_back(Action::MembershipStale { epoch: peer });
        } else if peer < ours && peer_is_member {
            self.actions.push_back(Action::PassMembership);
        }
    }

    /// One SPI for each lane that the peer sends with. All that the lane sends to this node, of
    /// whichever network, is for one lane here.
    fn allocate<R: CryptoRng>(&self, env: &mut Env<'_, R>, peer: Hello) -> Vec<Spi> {
        lanes(peer.lanes)
            .map(|sender| {
                let receiver = u8::from(sender) % self.config.receiving_lanes.get();
                let receiver = LaneId::new(receiver).expect("fewer than 64");
                env.spis.allocate(receiver, env.rng)
            })
            .collect()
    }

    /// Checks the SPIs that the peer wants to receive on, one for each of our lanes.
    fn peer_spis(&self, peer: Hello, numbers: &[u32]) -> Result<Vec<Spi>, Reason> {
        if numbers.len() != usize::from(self.config.hello.lanes) {
            let count = u8::try_from(numbers.len()).unwrap_or(u8::MAX);
            return Err(Reason::WrongLaneCount { count });
        }
        let mut spis = Vec::with_capacity(numbers.len());
        for &number in numbers {
            let spi = Spi::new(number).ok_or(Reason::ReservedSpi { spi: number })?;
            if spi.lane().index() >= usize::from(peer.lanes) {
                return Err(Reason::SpiOfNoLane { spi: number });
            }
            if spis.contains(&spi) {
                return Err(Reason::DuplicateSpi { spi: number });
            }
            if self.current.as_ref().is_some_and(|current| current.outbound.contains(&spi)) {
                return Err(Reason::SpiInUse { spi: number });
            }
            spis.push(spi);
        }
        Ok(spis)
    }

    /// The keys of an exchange: ours to receive, ours to send. The lane in the derivation is the
    /// sender's; an inbound SA is installed where its SPI says.
    fn derive(
        &mut self,
        now: BootTime,
        exchange: ExchangeId,
        suite: Suite,
        schedule: &KeySchedule,
        inbound: Vec<Spi>,
        outbound: Vec<Spi>,
    ) -> (Established, Vec<LaneKey>, Vec<LaneKey>) {
        let parties = self.parties();
        let (receive, send) = if self.is_initiator() {
            (Direction::FromResponder, Direction::FromInitiator)
        } else {
            (Direction::FromInitiator, Direction::FromResponder)
        };
        let key = |direction, lane, spi| schedule.key(suite, &parties, &SaName { direction, lane, spi });
        let inbound_keys = lanes(u8::MAX)
            .zip(&inbound)
            .map(|(sender, &spi)| LaneKey { lane: spi.lane(), spi, key: key(receive, sender, spi) })
            .collect();
        let outbound_keys = lanes(u8::MAX)
            .zip(&outbound)
            .map(|(lane, &spi)| LaneKey { lane, spi, key: key(send, lane, spi) })
            .collect();
        self.generation += 1;
        let limits: Limits = self.config.limits.apply(suite);
        let generation = self.generation;
        let established =
            Established { exchange, generation, suite, inbound, outbound, created: now, limits };
        (established, inbound_keys, outbound_keys)
    }

    fn install(&mut self, established: &Established, inbound: Vec<LaneKey>, outbound: Vec<LaneKey>) {
        self.actions.push_back(Action::Install(Install {
            exchange: established.exchange,
            generation: established.generation,
            limits: established.limits,
            inbound,
            outbound,
        }));
    }
}

/// The first `count` lanes, as many as there can be.
fn lanes(count: u8) -> impl Iterator<Item = LaneId> {
    (0..count).map_while(LaneId::new)
}

fn fresh_exchange_id(rng: &mut impl Rng) -> ExchangeId {
    loop {
        if let Some(id) = ExchangeId::new(rng.next_u64()) {
            return id;
        }
    }
}

fn nonce(rng: &mut impl Rng) -> [u8; 32] {
    let mut nonce = [0; 32];
    rng.fill_bytes(&mut nonce);
    nonce
}
