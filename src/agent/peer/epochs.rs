//! Memberships of which the peer may not have heard, as no manager can reach it.
//!
//! ```text
//! a member is left out; a manager tells most nodes of it
//!   epoch 8 -->                 after a moment, in which the manager may have told the peer as well
//!            <-- epoch 7        only if it has not; of many peers that tell it so, one is asked at a time
//!   membership 8 -->
//! ```
//! Members that are added need no such care: their own offers say which epoch they are of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::dataplane::ANSWER_TIME;
use super::Peer;
use crate::boot_time::BootTime;
use crate::id::{Epoch, NetworkId};
use crate::io::clock::boot_time;
use crate::negotiate::Message;

/// What the peer has to be told, and what it has to tell.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    untold: BTreeSet<NetworkId>,
    tell_at: Option<BootTime>,
    /// Newer ones that the peer says it knows.
    newer: BTreeMap<NetworkId, Newer>,
}

#[derive(Debug)]
struct Newer {
    epoch: Epoch,
    /// How often it was asked for it: a peer that only says so is soon left alone.
    asked: u32,
    next: BootTime,
}

impl Epochs {
    /// When something is to be done.
    pub(super) fn deadline(&self) -> Option<BootTime> {
        let asked = self.newer.values().filter(|newer| newer.asked < MOST_ASKED).map(|newer| newer.next);
        asked.chain(self.tell_at).min()
    }

    /// The peer is to be told the epoch of a network.
    pub(super) fn tell(&mut self, network: NetworkId) {
        self.untold.insert(network);
        self.tell_at.get_or_insert(boot_time() + TELL_AFTER);
    }

    /// The peer knows a newer membership of a network: whether to ask it now. `may_ask` says that no other
    /// peer is being asked.
    fn wants(
        &mut self,
        network: NetworkId,
        epoch: Epoch,
        now: BootTime,
        may_ask: impl FnOnce() -> bool,
    ) -> bool {
        let newer = self.newer.entry(network).or_insert(Newer { epoch, asked: 0, next: now });
        newer.epoch = epoch;
        if newer.asked >= MOST_ASKED || now < newer.next {
            return false;
        }
        let asks = may_ask();
        newer.next = now + ANSWER_TIME * 2_u32.pow(newer.asked);
        newer.asked += u32::from(asks);
        asks
    }

    fn due(&self, now: BootTime) -> Vec<(NetworkId, Epoch)> {
        let due = self.newer.iter().filter(|(_, newer)| newer.asked < MOST_ASKED && newer.next <= now);
        due.map(|(network, newer)| (*network, newer.epoch)).collect()
    }

    /// The channel has ended: the next begins with everything.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Peer {
    /// Tells the peer what is due.
    pub(super) async fn exchange_epochs(&mut self) {
        let now = boot_time();
        if self.epochs.tell_at.is_some_and(|at| at <= now) {
            self.epochs.tell_at = None;
            for network in std::mem::take(&mut self.epochs.untold) {
                if self.links.contains_key(&network) {
                    self.send_epoch(network).await;
                }
            }
        }
        for (network, epoch) in self.epochs.due(now) {
            self.hear_epoch(network, epoch).await;
        }
    }

    /// The peer says which membership it knows.
    pub(super) async fn hear_epoch(&mut self, network: NetworkId, theirs: Epoch) {
        let dataplane = std::sync::Arc::clone(&self.keys.dataplane);
        let ours = dataplane.membership_epoch(network).await.filter(|_| self.links.contains_key(&network));
        if ours.is_none_or(|ours| theirs <= ours) {
            self.epochs.newer.remove(&network);
        }
        let Some(ours) = ours.filter(|ours| *ours != theirs) else { return };
        if theirs < ours {
            if let Some(signed) = dataplane.signed_membership(network).await {
                self.send(&Message::Membership(Box::new(signed)).encode()).await;
            }
            return;
        }
        let now = boot_time();
        if self.epochs.wants(network, theirs, now, || dataplane.may_ask(network, now)) {
            self.send_epoch(network).await;
        }
    }

    /// Tells a node that is a member of a network no more, while there is a channel, so that it drops its
    /// keys as well.
    pub(super) async fn bid_farewell(&mut self, network: NetworkId) {
        let (dataplane, node) = (std::sync::Arc::clone(&self.keys.dataplane), self.id());
        if self.channel.is_some()
            && let Some(signed) = dataplane.membership_without(network, node).await
        {
            self.send(&Message::Membership(Box::new(signed)).encode()).await;
        }
    }

    async fn send_epoch(&mut self, network: NetworkId) {
        if let Some(epoch) = self.keys.dataplane.membership_epoch(network).await {
            self.send(&Message::Epoch(network, epoch).encode()).await;
        }
    }
}

/// A manager that reaches this node reaches most others by then.
const TELL_AFTER: Duration = Duration::from_millis(200);
const MOST_ASKED: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_that_only_says_that_it_knows_more_is_asked_ever_less_and_then_not_at_all() {
        let mut epochs = Epochs::default();
        let network = NetworkId::from_entropy([1; 16]);
        let mut asked = Vec::new();
        for milliseconds in (0_u64..60_000).step_by(10) {
            let now = BootTime::from_nanos(milliseconds * 1_000_000);
            if epochs.wants(network, Epoch::new(milliseconds), now, || true) {
                asked.push(milliseconds);
            }
        }
        assert_eq!(asked, [0, 250, 750, 1750, 3750]);
        assert_eq!(epochs.deadline(), None);
    }

    #[test]
    fn peer_is_asked_once_no_other_is() {
        let mut epochs = Epochs::default();
        let (network, epoch) = (NetworkId::from_entropy([1; 16]), Epoch::new(8));
        let at = BootTime::from_nanos;
        assert!(!epochs.wants(network, epoch, at(0), || false));
        let next = epochs.deadline().expect("it is tried again");
        assert!(epochs.due(at(0)).is_empty());
        assert_eq!(epochs.due(next), [(network, epoch)]);
        assert!(epochs.wants(network, epoch, next, || true));
    }
}
