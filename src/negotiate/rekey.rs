//! When a link begins or asks for its next exchange: age with jitter, and backoff after failure.

use std::time::Duration;

use rand::{CryptoRng, RngExt};

use crate::boot_time::BootTime;
use crate::sa::Limits;

/// Failures in a row, and the pause that they earn.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause: doubled with every failure, between half and all of it at random so that
    /// the links of a node do not knock in step.
    pub(super) fn after_failure(&mut self, rng: &mut impl CryptoRng) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        pause.mul_f64(rng.random_range(0.5..=1.0))
    }

    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) const fn is_waiting(&self) -> bool {
        self.failures > 0
    }
}

/// When keys made now are to be replaced: the soft age ±10 %, so that the links of a cluster that
/// started at once do not renew at once.
pub(super) fn replacement_time(limits: &Limits, now: BootTime, rng: &mut impl CryptoRng) -> BootTime {
    now + limits.soft_age.mul_f64(rng.random_range(0.9..=1.1))
}

/// How long an offer waits for its answer: many round trips, and the peer's lanes have to install.
pub(super) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The least time between two requests for new keys.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The least time that keys are in use before they are replaced, where those before them still linger:
/// what is under way then arrives within it. Also how long a peer that offers has to wait for the answer to
/// its next offer.
pub(super) const SHORTEST_GENERATION: Duration = Duration::from_millis(250);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sa::Suite;
    use rand::SeedableRng;

    #[test]
    fn pauses_grow_to_half_a_minute_and_start_over_after_success() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.after_failure(rng)).collect();
        assert!(pauses[0] <= FIRST_PAUSE);
        assert!(pauses[39] >= LONGEST_PAUSE / 2 && pauses[39] <= LONGEST_PAUSE);
        backoff.reset();
        assert!(backoff.after_failure(rng) <= FIRST_PAUSE);
    }

    #[test]
    fn replacement_is_spread_over_a_tenth_to_both_sides() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(2);
        let limits = Limits::standard(Suite::Aes256Gcm);
        let times: Vec<_> =
            (0..500).map(|_| replacement_time(&limits, BootTime::default(), rng).as_nanos()).collect();
        let (low, high) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(*low >= 809_000_000_000 && *low < 820_000_000_000);
        assert!(*high <= 991_000_000_000 && *high > 980_000_000_000);
    }
}
