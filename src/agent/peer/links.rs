//! What the links of a peer want done, carried out in order: frames sent, keys given to lanes and taken
//! from them, news told.

use super::wishes::{PATIENCE, Wish};
use super::{Peer, SEND_TIMEOUT};
use crate::api::types::PeerState;
use crate::events::{Event, Reason};
use crate::id::NetworkId;
use crate::io::clock::boot_time;
use crate::negotiate::{Action, Env, Established, Link, Message};
use crate::worker::LaneGone;

impl Peer {
    /// Ends every link and the channel.
    pub(super) async fn close(mut self) -> Result<(), LaneGone> {
        let networks: Vec<NetworkId> = self.links.keys().copied().collect();
        for network in networks {
            self.end(network).await?;
        }
        if let Some(channel) = self.channel.take() {
            // A peer that reads nothing is not waited for.
            let _closed_or_not = tokio::time::timeout(SEND_TIMEOUT, channel.close()).await;
        }
        Ok(())
    }

    /// Ends a link. Where the view has ended it, no lane knows a key of it any more.
    pub(super) async fn end(&mut self, network: NetworkId) -> Result<(), LaneGone> {
        self.bid_farewell(network).await;
        self.call(network, |link, env| link.handle_closed(env)).await?;
        self.links.remove(&network);
        self.wishes.refuse(network, "the network is not shared with the peer any more");
        self.keys.forget_status((network, self.id()));
        Ok(())
    }

    pub(super) async fn each(
        &mut self,
        mut call: impl FnMut(&mut Link, &mut Env<'_, rand::rngs::ThreadRng>),
    ) -> Result<(), LaneGone> {
        let networks: Vec<NetworkId> = self.links.keys().copied().collect();
        for network in networks {
            self.call(network, &mut call).await?;
        }
        Ok(())
    }

    pub(super) async fn call(
        &mut self,
        network: NetworkId,
        call: impl FnOnce(&mut Link, &mut Env<'_, rand::rngs::ThreadRng>),
    ) -> Result<(), LaneGone> {
        let Some(linked) = self.links.get_mut(&network) else { return Ok(()) };
        self.keys.with_env(|env| call(&mut linked.link, env));
        self.act(network).await
    }

    /// Has new keys made for an operator, who is told of them or why there are none.
    pub(super) async fn wished(&mut self, wish: Wish) -> Result<(), LaneGone> {
        let network = wish.network;
        if !self.links.contains_key(&network) {
            return Ok(());
        }
        self.wishes.add(boot_time(), wish);
        if let Some(why) = self.unreachable.as_deref().filter(|_| self.channel.is_none()) {
            self.wishes.refuse(network, why);
        }
        self.call(network, |link, env| link.handle_rekey_wanted(env, None)).await
    }

    /// Tells those who have waited long enough for new keys what is in the way.
    pub(super) fn expire_wishes(&mut self) {
        let (peer, is_there, connects) = (&self.spec.node.name, self.channel.is_some(), self.is_initiator());
        self.wishes.expire(boot_time(), || {
            let seconds = PATIENCE.as_secs();
            match (is_there, connects) {
                (true, _) => format!("{peer} has not agreed on new keys within {seconds} s; it is tried again"),
                (false, true) => format!("{peer} could not be connected to within {seconds} s; it is tried again"),
                (false, false) => format!(
                    "{peer} has not connected within {seconds} s, which is for it to do as its id is the larger \
                     one: is its agent running, and can it reach this node's TLS port?"
                ),
            }
        });
    }

    /// Carries out what a link wants done, in order.
    pub(super) async fn act(&mut self, network: NetworkId) -> Result<(), LaneGone> {
        loop {
            // Before each action: the lanes have no keys that are not noted, whoever keeps the next one waiting.
            self.note(network);
            let Some(linked) = self.links.get_mut(&network) else { return Ok(()) };
            let Some(action) = linked.link.poll_action() else { return Ok(()) };
            let held = ((network, self.spec.node.id), linked.spec.hold);
            match action {
                Action::Send(frame) => self.send(&frame).await,
                Action::Install(install) => {
                    let exchange = install.exchange;
                    // Where the link has ended meanwhile, nobody is told that keys are there.
                    if self.keys.install(held, self.spec.node.data.is_ipv6(), install).await? {
                        self.keys.with_env(|env| linked.link.handle_installed(env, exchange));
                    }
                }
                Action::RetireInbound { spis, at } => self.keys.retire(held, spis, at).await?,
                Action::DropLink => self.keys.dataplane.forget_keys(held).await?,
                Action::Established(established) => {
                    self.wishes.grant(network, &established);
                    let Established { suite, generation, .. } = established;
                    let (id, peer, network) = (self.spec.node.id, &self.spec.node.name, &linked.spec.name);
                    let (name, of) = (peer.clone(), network.clone());
                    let event = Event::KeysEstablished { peer: id, name, network: of, suite, generation };
                    self.keys.events.record(event);
                    let suite = suite.name();
                    if self.successes.permits(boot_time()) {
                        tracing::info!(%peer, %network, suite, generation, "keys are in use");
                    } else {
                        tracing::debug!(%peer, %network, suite, generation, "keys are in use");
                    }
                }
                Action::Refused { by_peer, reason } => {
                    let (what, name) = (if by_peer { BY_PEER } else { BY_US }, linked.spec.name.clone());
                    self.complain(what, &format_args!("{name}: {reason}"));
                    let (peer, peer_name) = (self.id(), self.spec.node.name.clone());
                    self.keys.events.record(Event::KeyExchangeFailed {
                        peer,
                        name: peer_name,
                        network: name,
                        by_peer,
                        reason: Reason::of(reason),
                    });
                    let failure = reason.to_string();
                    self.wishes.refuse(network, &failure);
                    self.keys.set_status(held.0, |status| status.failure = Some(failure));
                }
                Action::MembershipStale { epoch } => {
                    tracing::debug!(network = %linked.spec.name, %epoch, "the peer knows a newer membership");
                }
                Action::PassMembership => {
                    if let Some(signed) = self.keys.dataplane.signed_membership(network).await {
                        self.send(&Message::Membership(Box::new(signed)).encode()).await;
                    }
                }
            }
        }
    }

    /// What `overlayd peers` shows.
    pub(super) fn note(&self, network: NetworkId) {
        let Some(linked) = self.links.get(&network) else { return };
        let established = linked.link.established().cloned();
        let lingering = linked.link.lingering().to_vec();
        let coming = linked.link.coming().map(<[_]>::to_vec);
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
            let before = std::mem::replace(&mut status.established, established);
            if let (Some(before), None) = (before, &status.established) {
                status.over = before.outbound;
            }
            (status.lingering, status.coming) = (lingering, coming);
        });
    }
}

const BY_PEER: &str = "the peer refused a key exchange";
const BY_US: &str = "refused a key exchange";
