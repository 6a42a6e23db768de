//! How much one SA may carry and how long it may live.
//!
//! A soft limit asks for a new key exchange, a hard limit makes sealing impossible. Operators and
//! tests may lower them, nobody can raise them: what is over the standard is cut to it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::suite::Suite;

/// Limits of one SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Packets after which a new SA is asked for.
    pub soft_packets: u64,
    /// Packets after which nothing can be sealed.
    pub hard_packets: u64,
    /// ESP bytes after which nothing can be sealed; half of it asks for a new SA.
    pub hard_bytes: u64,
    /// Failed integrity checks after which a new SA is asked for.
    pub failed_opens: u64,
    /// Age at which a new SA is asked for, before the negotiation spreads it by ±10 %.
    #[serde(with = "human_duration")]
    pub soft_age: Duration,
    /// Age at which nothing can be sealed.
    #[serde(with = "human_duration")]
    pub hard_age: Duration,
    /// How long an inbound SA lives on after its successor is in use.
    #[serde(with = "human_duration")]
    pub linger: Duration,
}

impl Limits {
    /// The limits of a suite, far inside what its security proofs allow: for AES-GCM the
    /// confidentiality bound with packets of up to 64 KiB, for ChaCha20-Poly1305 half of the 32-bit
    /// sequence numbers, so that the byte limit there is only what these packets can hold.
    pub const fn standard(suite: Suite) -> Self {
        let (soft_packets, hard_packets, hard_bytes) = match suite {
            Suite::Aes256Gcm | Suite::Aes128Gcm => (1 << 27, 1 << 28, 1 << 39),
            Suite::ChaCha20Poly1305 => (1 << 30, 1 << 31, 1 << 47),
        };
        Self {
            soft_packets,
            hard_packets,
            hard_bytes,
            failed_opens: 1 << 20,
            soft_age: Duration::from_secs(15 * 60),
            hard_age: Duration::from_secs(60 * 60),
            linger: Duration::from_secs(10),
        }
    }

    /// The lower of both in every limit.
    #[must_use]
    pub fn lowered_to(self, other: Self) -> Self {
        Self {
            soft_packets: self.soft_packets.min(other.soft_packets),
            hard_packets: self.hard_packets.min(other.hard_packets),
            hard_bytes: self.hard_bytes.min(other.hard_bytes),
            failed_opens: self.failed_opens.min(other.failed_opens),
            soft_age: self.soft_age.min(other.soft_age),
            hard_age: self.hard_age.min(other.hard_age),
            linger: self.linger.min(other.linger),
        }
    }
}

/// What the configuration says of the limits: each one may be lowered, for every suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitOverrides {
    /// See [`Limits::soft_packets`].
    pub soft_packets: Option<u64>,
    /// See [`Limits::hard_packets`].
    pub hard_packets: Option<u64>,
    /// See [`Limits::hard_bytes`].
    pub hard_bytes: Option<u64>,
    /// See [`Limits::failed_opens`].
    pub failed_opens: Option<u64>,
    /// See [`Limits::soft_age`].
    #[serde(with = "human_option")]
    pub soft_age: Option<Duration>,
    /// See [`Limits::hard_age`].
    #[serde(with = "human_option")]
    pub hard_age: Option<Duration>,
    /// See [`Limits::linger`].
    #[serde(with = "human_option")]
    pub linger: Option<Duration>,
}

impl LimitOverrides {
    /// The limits of a suite, lowered where the configuration says so.
    pub fn apply(&self, suite: Suite) -> Limits {
        let standard = Limits::standard(suite);
        standard.lowered_to(Limits {
            soft_packets: self.soft_packets.unwrap_or(standard.soft_packets),
            hard_packets: self.hard_packets.unwrap_or(standard.hard_packets),
            hard_bytes: self.hard_bytes.unwrap_or(standard.hard_bytes),
            failed_opens: self.failed_opens.unwrap_or(standard.failed_opens),
            soft_age: self.soft_age.unwrap_or(standard.soft_age),
            hard_age: self.hard_age.unwrap_or(standard.hard_age),
            linger: self.linger.unwrap_or(standard.linger),
        })
    }
}

/// Durations as people write them: `15m`, `10s`.
mod human_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            de::Error::custom(format_args!("{text:?} is not a duration like \"15m\" or \"10s\": {error}"))
        })
    }
}

/// The same, where it may be left out.
mod human_option {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "the signature that serde(with) calls")]
    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::human_duration::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::human_duration::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_lowers_limits_and_cannot_raise_them() {
        let overrides: LimitOverrides =
            toml::from_str("hard_packets = 9000000000000\nsoft_age = \"2s\"\nlinger = \"100ms\"").unwrap();
        let limits = overrides.apply(Suite::Aes256Gcm);
        assert_eq!(limits.hard_packets, 1 << 28);
        assert_eq!(limits.soft_age, Duration::from_secs(2));
        assert_eq!(limits.linger, Duration::from_millis(100));
        assert_eq!(limits.hard_age, Duration::from_secs(3600));
    }

    #[test]
    fn unknown_limit_or_unreadable_duration_is_refused_by_name() {
        let unknown = toml::from_str::<LimitOverrides>("hard_pakets = 1").unwrap_err();
        assert!(unknown.to_string().contains("hard_pakets"), "{unknown}");
        let unreadable = toml::from_str::<LimitOverrides>("linger = \"soon\"").unwrap_err();
        assert!(unreadable.to_string().contains("\"soon\" is not a duration"), "{unreadable}");
    }

    #[test]
    fn limits_survive_serialization() {
        let limits = Limits::standard(Suite::ChaCha20Poly1305);
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
        let overrides = LimitOverrides { linger: Some(Duration::from_secs(1)), ..Default::default() };
        let text = toml::to_string(&overrides).unwrap();
        assert_eq!(toml::from_str::<LimitOverrides>(&text).unwrap(), overrides);
    }
}
