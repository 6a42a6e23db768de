//! Operators who wait for new keys of a link: told when the link has agreed on them, or why it has not.
//!
//! What is done about a wish is the link's own business (`negotiate`). A wish that was not granted in
//! time is not taken back there: the keys are renewed as soon as they can be.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::boot_time::BootTime;
use crate::id::NetworkId;
use crate::negotiate::Established;

/// An operator waits for new keys of one link.
#[derive(Debug)]
pub(crate) struct Wish {
    /// The network that is shared with the peer.
    pub(crate) network: NetworkId,
    /// Who waits for the new keys, or for why there are none.
    pub(crate) answer: oneshot::Sender<Result<Established, String>>,
}

/// The wishes of one peer.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    waiting: Vec<(BootTime, Wish)>,
}

impl Wishes {
    pub(super) fn add(&mut self, now: BootTime, wish: Wish) {
        self.waiting.push((now + PATIENCE, wish));
    }

    /// The link has agreed on new keys.
    pub(super) fn grant(&mut self, network: NetworkId, keys: &Established) {
        self.answer(|_, wish| wish.network == network, &Ok(keys.clone()));
    }

    /// The link will not have new keys soon.
    pub(super) fn refuse(&mut self, network: NetworkId, why: &str) {
        self.answer(|_, wish| wish.network == network, &Err(why.to_owned()));
    }

    /// No link will have new keys soon.
    pub(super) fn refuse_all(&mut self, why: &str) {
        self.answer(|_, _| true, &Err(why.to_owned()));
    }

    /// Those whose patience is over are told why.
    pub(super) fn expire(&mut self, now: BootTime, why: impl FnOnce() -> String) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.answer(|deadline, _| deadline <= now, &Err(why()));
        }
    }

    /// When somebody's patience is over.
    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.waiting.iter().map(|(deadline, _)| *deadline).min()
    }

    fn answer(&mut self, whom: impl Fn(BootTime, &Wish) -> bool, answer: &Result<Established, String>) {
        for (_, wish) in self.waiting.extract_if(.., |(deadline, wish)| whom(*deadline, wish)) {
            // Who asked may have gone.
            let _heard_or_not = wish.answer.send(answer.clone());
        }
    }
}

/// An exchange has 5 s, and may have to wait for a channel before.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
