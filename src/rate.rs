//! Rates in bits per second, as an operator writes them and `tc` reads them: `100mbit`, `2.5gbit`.
//!
//! What is counted against a rate are octets of Ethernet frames, from the destination address on and
//! without checksum and preamble, as in the counters of an interface.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A rate that a frame can wait for: [`Rate::MIN`] at least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Rate(u64);

impl Rate {
    /// 8 kbit/s: a frame of 1,500 bytes takes one and a half seconds.
    pub const MIN: Self = Self(8_000);

    /// Refuses what is less than [`Self::MIN`].
    pub const fn new(bits_per_second: u64) -> Option<Self> {
        if bits_per_second < Self::MIN.0 { None } else { Some(Self(bits_per_second)) }
    }

    /// Bits per second.
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// How long it takes to earn so many octets of frames, to the nanosecond.
    pub const fn time_of(self, octets: usize) -> Duration {
        let bits = (octets as u64).saturating_mul(8 * NANOS_PER_SECOND);
        Duration::from_nanos(bits / self.0)
    }

    /// How many octets are earned in `time`.
    pub fn octets_in(self, time: Duration) -> usize {
        let octets = u128::from(self.0).saturating_mul(time.as_nanos()) / u128::from(8 * NANOS_PER_SECOND);
        usize::try_from(octets).unwrap_or(usize::MAX)
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let refuse = || InvalidRate { given: text.to_owned() };
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let (number, unit) = text.split_at(digits);
        let (_, unit) = UNITS.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name)).ok_or_else(refuse)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let is_short = |part: &str| (1..=MOST_DIGITS).contains(&part.len());
        if !is_short(whole) || !is_short(fraction) {
            return Err(refuse());
        }
        let parse = |part: &str| part.parse::<u64>().map_err(|_| refuse());
        let scale = u32::try_from(fraction.len()).ok().and_then(|len| 10u64.checked_pow(len));
        let scale = u128::from(scale.ok_or_else(refuse)?);
        let scaled = u128::from(parse(whole)?) * scale + u128::from(parse(fraction)?);
        let bits = u64::try_from(scaled * u128::from(*unit) / scale).map_err(|_| refuse())?;
        Self::new(bits).ok_or_else(refuse)
    }
}

impl fmt::Display for Rate {
    /// In the largest unit that needs at most three decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_fit =
            |unit: &u64| self.0 >= *unit && (u128::from(self.0) * 1_000).is_multiple_of(u128::from(*unit));
        let fitting = UNITS.iter().rev().find(|(_, unit)| is_fit(unit)).unwrap_or(&UNITS[0]);
        let (name, unit) = *fitting;
        write!(f, "{}", self.0 / unit)?;
        let thousandths = u128::from(self.0 % unit) * 1_000 / u128::from(unit);
        if thousandths > 0 {
            write!(f, ".{}", format!("{thousandths:03}").trim_end_matches('0'))?;
        }
        f.write_str(name)
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<u64> for Rate {
    type Error = InvalidRate;

    fn try_from(bits_per_second: u64) -> Result<Self, InvalidRate> {
        Self::new(bits_per_second).ok_or_else(|| InvalidRate { given: bits_per_second.to_string() })
    }
}

impl From<Rate> for u64 {
    fn from(rate: Rate) -> Self {
        rate.0
    }
}

/// Why a rate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no rate: write a number and bit, kbit, mbit, gbit or tbit (per second), like 100mbit or \
     2.5gbit; the least is {}",
    Rate::MIN
)]
pub struct InvalidRate {
    given: String,
}

/// What an endpoint may send and receive, where it is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RateLimits {
    /// From the container.
    #[serde(rename = "egress_bits_per_second")]
    pub egress: Option<Rate>,
    /// To the container.
    #[serde(rename = "ingress_bits_per_second")]
    pub ingress: Option<Rate>,
}

impl RateLimits {
    /// Whether neither direction is limited.
    pub const fn is_none(&self) -> bool {
        self.egress.is_none() && self.ingress.is_none()
    }
}

impl fmt::Display for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.egress, self.ingress) {
            (None, None) => f.write_str("-"),
            (Some(egress), None) => write!(f, "{egress} out"),
            (None, Some(ingress)) => write!(f, "{ingress} in"),
            (Some(egress), Some(ingress)) => write!(f, "{egress} out, {ingress} in"),
        }
    }
}

/// `bps` is not among them: it is bytes for `tc` and bits for everybody else.
const UNITS: [(&str, u64); 5] =
    [("bit", 1), ("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("tbit", 1_000_000_000_000)];
/// Of either side of the point; more could overflow what they are counted in.
const MOST_DIGITS: usize = 18;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_as_tc_reads_them() {
        for (text, bits) in [
            ("8kbit", 8_000),
            ("100mbit", 100_000_000),
            ("2.5gbit", 2_500_000_000),
            ("2.50Gbit", 2_500_000_000),
            ("10000bit", 10_000),
            ("0.01MBIT", 10_000),
            ("1tbit", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse::<Rate>().map(Rate::bits_per_second), Ok(bits), "{text}");
        }
    }

    #[test]
    fn zero_nonsense_and_what_means_two_things_is_refused_with_an_example() {
        for bad in [
            "",
            "0",
            "0mbit",
            "0.0gbit",
            "7.999kbit",
            "mbit",
            "100",
            "100m",
            "100mbps",
            "10MB",
            "-1mbit",
            "1e3mbit",
            "1..5mbit",
            "1.5.5mbit",
            ".5mbit",
            "5.mbit",
            " 5mbit",
            "5 mbit",
            "99999999tbit",
            "1.0000000000000000001gbit",
        ] {
            let refused = bad.parse::<Rate>().expect_err(bad).to_string();
            assert!(refused.contains("100mbit") && refused.contains("8kbit"), "{refused}");
        }
    }

    #[test]
    fn rates_are_shown_in_the_unit_that_is_shortest() {
        for (bits, text) in [
            (8_000, "8kbit"),
            (2_500_000_000, "2.5gbit"),
            (100_000_000, "100mbit"),
            (1_234_567, "1234.567kbit"),
            (12_345_678_901, "12345678.901kbit"),
            (1_050_000_000, "1.05gbit"),
        ] {
            assert_eq!(Rate::new(bits).expect("enough").to_string(), text);
        }
    }

    #[test]
    fn numbers_below_the_least_are_refused_in_json_too() {
        assert!(serde_json::from_str::<Rate>("7999").is_err());
        assert_eq!(serde_json::from_str::<Rate>("8000").ok(), Some(Rate::MIN));
        let limits: RateLimits = serde_json::from_str("{}").expect("nothing is limited");
        assert!(limits.is_none());
    }

    #[test]
    fn octets_and_their_time_agree() {
        let rate: Rate = "100mbit".parse().expect("a rate");
        assert_eq!(rate.time_of(12_500_000), Duration::from_secs(1));
        assert_eq!(rate.octets_in(Duration::from_millis(10)), 125_000);
        assert_eq!(Rate(u64::MAX).octets_in(Duration::MAX), usize::MAX);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(bits in Rate::MIN.0..) {
            let rate = Rate(bits);
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
