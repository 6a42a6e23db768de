//! What a link tells its driver to do: frames to send, SAs to install and to retire, news to log.

use bytes::Bytes;

use super::message::ExchangeId;
use super::reason::Reason;
use crate::boot_time::BootTime;
use crate::id::{Epoch, LaneId, Spi};
use crate::sa::{KeyMaterial, Limits, Suite};

/// What the driver has to do.
#[derive(Debug)]
pub enum Action {
    /// Send this frame to the peer.
    Send(Bytes),
    /// Install SAs in the lanes, inbound ones first, then call [`super::Link::handle_installed`].
    Install(Install),
    /// Let the lanes forget these inbound SAs at a time; said again, the later word counts.
    RetireInbound {
        /// The SAs.
        spis: Vec<Spi>,
        /// When.
        at: BootTime,
    },
    /// Let the lanes forget all SAs of the link, now.
    DropLink,
    /// Both directions work with new keys; for the log and `overlayd peers`.
    Established(Established),
    /// An exchange was refused; for the log.
    Refused {
        /// Whether the peer refused us, or we the peer.
        by_peer: bool,
        /// Why.
        reason: Reason,
    },
    /// The peer knows a newer membership than ours: ask the managers for it.
    MembershipStale {
        /// The peer's epoch.
        epoch: Epoch,
    },
    /// The peer's membership is older than ours: send ours ([`super::Message::Membership`]).
    PassMembership,
}

/// SAs to install.
#[derive(Debug)]
pub struct Install {
    /// The exchange that made them.
    pub exchange: ExchangeId,
    /// Counts the key pairs of the link.
    pub generation: u64,
    /// The limits of each.
    pub limits: Limits,
    /// SAs to receive on, by receiving lane.
    pub inbound: Vec<LaneKey>,
    /// SAs to send on, by sending lane, replacing the ones before.
    pub outbound: Vec<LaneKey>,
}

/// One SA to install in one of our lanes.
#[derive(Debug)]
pub struct LaneKey {
    /// Our lane.
    pub lane: LaneId,
    /// The SPI.
    pub spi: Spi,
    /// The key.
    pub key: KeyMaterial,
}

/// The keys in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// The exchange that made them.
    pub exchange: ExchangeId,
    /// Counts the key pairs of the link.
    pub generation: u64,
    /// The cipher.
    pub suite: Suite,
    /// SPIs that we receive on.
    pub inbound: Vec<Spi>,
    /// SPIs that we send on.
    pub outbound: Vec<Spi>,
    /// When they were made.
    pub created: BootTime,
    /// Their limits.
    pub limits: Limits,
}

impl Established {
    /// When even the inbound SAs are over.
    pub(super) fn end(&self) -> BootTime {
        self.created + self.limits.hard_age + self.limits.linger
    }

    /// Whether an SPI belongs to these keys, in either direction.
    pub(super) fn has(&self, spi: Spi) -> bool {
        self.inbound.contains(&spi) || self.outbound.contains(&spi)
    }
}
