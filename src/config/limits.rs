//! The limits of one security association, as far as an operator may lower them.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::sa::{LimitOverrides, Limits, Suite};

/// Limits that an SA can live with: lowered, not zero, soft ones below hard ones.
#[derive(Default, Deserialize)]
#[serde(try_from = "LimitOverrides")]
pub(super) struct LoweredLimits(pub(super) LimitOverrides);

impl TryFrom<LimitOverrides> for LoweredLimits {
    type Error = String;

    fn try_from(mut wanted: LimitOverrides) -> Result<Self, String> {
        // Of the suites, ChaCha20-Poly1305 has the highest limits; each suite keeps its lower ones.
        let highest = Limits::standard(Suite::ChaCha20Poly1305);
        within("soft_packets", wanted.soft_packets, highest.soft_packets)?;
        within("hard_packets", wanted.hard_packets, highest.hard_packets)?;
        within("hard_bytes", wanted.hard_bytes, highest.hard_bytes)?;
        within("failed_opens", wanted.failed_opens, highest.failed_opens)?;
        within("soft_age", wanted.soft_age.map(Age), Age(highest.soft_age))?;
        within("hard_age", wanted.hard_age.map(Age), Age(highest.hard_age))?;
        // None at all stops no traffic.
        let linger = wanted.linger.filter(|linger| !linger.is_zero());
        within("linger", linger.map(Age), Age(highest.linger))?;
        ordered("soft_packets", wanted.soft_packets, "hard_packets", wanted.hard_packets)?;
        ordered("soft_age", wanted.soft_age.map(Age), "hard_age", wanted.hard_age.map(Age))?;
        // A hard limit below the standard soft one would be reached before new keys are asked for.
        wanted.soft_packets = wanted.soft_packets.or(wanted.hard_packets);
        wanted.soft_age = wanted.soft_age.or(wanted.hard_age);
        Ok(Self(wanted))
    }
}

fn within<T: Copy + PartialOrd + Default + fmt::Display>(
    key: &str,
    wanted: Option<T>,
    highest: T,
) -> Result<(), String> {
    match wanted {
        Some(wanted) if wanted > highest => {
            Err(format!("{key} = {wanted} is unsafe: limits can only be lowered, this one from {highest}"))
        }
        Some(wanted) if wanted == T::default() => Err(format!("{key} = {wanted} would stop all traffic")),
        Some(_) | None => Ok(()),
    }
}

fn ordered<T: PartialOrd + fmt::Display>(
    soft_key: &str,
    soft: Option<T>,
    hard_key: &str,
    hard: Option<T>,
) -> Result<(), String> {
    match (soft, hard) {
        (Some(soft), Some(hard)) if soft > hard => {
            Err(format!("{soft_key} = {soft} lies above {hard_key} = {hard}"))
        }
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

/// A length of time that shows itself as people write it: `15m`.
#[derive(Clone, Copy, PartialEq, PartialOrd, Default)]
struct Age(Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}
