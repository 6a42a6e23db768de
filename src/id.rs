//! Names and numbers of the overlay: every identifier that crosses a boundary, parsed once.
//!
//! Constructors refuse what the wire or the operator may not say, so code behind them never checks
//! again. Nothing here does I/O; random ids are made from entropy that the caller supplies.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name or number was refused: what was given and what it must look like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {must}")]
pub struct InvalidId {
    what: &'static str,
    given: String,
    must: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, given: impl Into<String>, must: &'static str) -> Self {
        Self { what, given: given.into(), must }
    }
}

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Any six octets, in wire order.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The octets in wire order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// True for group addresses, broadcast among them (IEEE 802 I/G bit).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The IPv6 link-local address with this MAC's modified EUI-64 (RFC 4291 appendix A).
    pub const fn link_local(self) -> std::net::Ipv6Addr {
        let m = self.0;
        std::net::Ipv6Addr::from_octets([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            m[0] ^ 2,
            m[1],
            m[2],
            0xff,
            0xfe,
            m[3],
            m[4],
            m[5],
        ])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = InvalidId;

    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let refuse = || InvalidId::new("MAC address", s, "write six octets like 02:42:0a:01:00:02");
        let mut octets = [0u8; 6];
        let mut parts = s.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(refuse)?;
            if part.len() != 2 || part.starts_with('+') {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        parts.next().is_none().then_some(Self(octets)).ok_or_else(refuse)
    }
}

/// A VXLAN network identifier, 1 to 2^24-1 (RFC 7348 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The largest VNI.
    pub const MAX: u32 = 0x00ff_ffff;

    /// Refuses zero and anything over 24 bits.
    pub const fn new(vni: u32) -> Option<Self> {
        if vni == 0 || vni > Self::MAX {
            return None;
        }
        Some(Self(vni))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A security parameters index, at least 256 (RFC 4303 §2.1). The receiver chooses it; its low
/// [`LaneId::BITS`] bits name the receiver's lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Spi(u32);

impl Spi {
    /// Refuses the reserved values 0 to 255.
    pub const fn new(spi: u32) -> Option<Self> {
        if spi < 256 { None } else { Some(Self(spi)) }
    }

    /// An SPI of `lane` from 32 random bits; `None` when they fall in the reserved range.
    pub const fn for_lane(random: u32, lane: LaneId) -> Option<Self> {
        Self::new(random >> LaneId::BITS << LaneId::BITS | lane.0 as u32)
    }

    /// The receiver's lane.
    pub const fn lane(self) -> LaneId {
        LaneId(self.0.to_le_bytes()[0] & (LaneId::MAX_LANES - 1))
    }

    /// The number, host order.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One worker thread of a node and everything that only it touches (RFC 9611's "resource").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct LaneId(u8);

impl LaneId {
    /// Bits of an SPI that name the lane.
    pub const BITS: u32 = 6;
    /// The most lanes a node can have.
    pub const MAX_LANES: u8 = 1 << Self::BITS;

    /// Refuses [`Self::MAX_LANES`] and above.
    pub const fn new(lane: u8) -> Option<Self> {
        if lane < Self::MAX_LANES { Some(Self(lane)) } else { None }
    }

    /// The lane as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How many lanes a node has, 1 to [`LaneId::MAX_LANES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneCount(u8);

impl LaneCount {
    /// One lane, which does everything.
    pub const ONE: Self = Self(1);

    /// Refuses zero and more than there can be.
    pub const fn new(lanes: u8) -> Option<Self> {
        if lanes == 0 || lanes > LaneId::MAX_LANES { None } else { Some(Self(lanes)) }
    }

    /// So many, as far as there can be.
    pub fn clamped(lanes: usize) -> Self {
        Self(u8::try_from(lanes).unwrap_or(LaneId::MAX_LANES).clamp(1, LaneId::MAX_LANES))
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Every lane, in order.
    pub fn ids(self) -> impl Iterator<Item = LaneId> {
        (0..self.0).map(LaneId)
    }
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the number.
            pub const fn new(number: $inner) -> Self {
                Self(number)
            }

            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}

numbers! {
    /// Version of a network's membership; grows by at least one with every change.
    Epoch(u64);
    /// Version of the cluster's state as the manager counts it.
    Version(u64);
    /// Dense index of a local endpoint's TAP in the tables and in every lane.
    PortSlot(u32);
    /// One stay of a TAP in its slot: no other stay, of whatever port, has its number.
    PortHold(u64);
    /// Dense index of a (peer, encrypted network) pair in the tables and in every lane.
    LinkSlot(u32);
    /// Dense index of a network in the tables.
    NetSlot(u32);
    /// Dense index of a (peer, unencrypted network) pair in the tables and in every lane.
    VtepSlot(u32);
}

macro_rules! slots {
    ($($name:ident)*) => {$(
        impl $name {
            /// The slot as an index.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

slots! { PortSlot LinkSlot NetSlot VtepSlot }

/// Drawn anew at every start of an agent: tells peers that its old SAs are gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId([u8; 16]);

impl BootId {
    /// Wraps 16 random bytes.
    pub const fn from_entropy(entropy: [u8; 16]) -> Self {
        Self(entropy)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", data_encoding::HEXLOWER.encode(&self.0))
    }
}

macro_rules! base36_ids {
    ($($(#[$doc:meta])* $name:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 25]);

        impl $name {
            /// An id from 128 bits of entropy.
            pub fn from_entropy(entropy: [u8; 16]) -> Self {
                Self(base36(u128::from_le_bytes(entropy)))
            }

            /// The 25 digits.
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).expect("base-36 digits are ASCII")
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(s: &str) -> Result<Self, InvalidId> {
                <[u8; 25]>::try_from(s.as_bytes())
                    .ok()
                    .filter(|d| d.iter().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()))
                    .map(Self)
                    .ok_or_else(|| InvalidId::new($what, s, "it has 25 digits 0-9 and a-z"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}

base36_ids! {
    /// A cluster; the organisation (O) of every certificate of it.
    ClusterId, "cluster id";
    /// A node; the common name (CN) of its certificate, given at join and kept for life.
    NodeId, "node id";
    /// A network.
    NetworkId, "network id";
    /// A container's attachment to one network.
    EndpointId, "endpoint id";
    /// A join token that was made to order; not its secret.
    TokenId, "token id";
    /// A change of a state that several managers share.
    ChangeId, "change id";
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $must:literal, $check:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(s: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if s.is_empty() || s.len() > $max || !check(s) {
                    return Err(InvalidId::new($what, s, $must));
                }
                Ok(Self(s.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}

names! {
    /// The operator's name of a network.
    NetworkName, "network name", 63,
    "use 1 to 63 of a-z A-Z 0-9 _ . - and start with a letter or digit", is_label;
    /// The operator's name of an endpoint or a node.
    HostName, "host name", 63,
    "use 1 to 63 of a-z A-Z 0-9 _ . - and start with a letter or digit", is_label;
    /// What a container runtime calls a container or a network configuration (CNI SPEC 1.1.0).
    RuntimeName, "name", 255,
    "use 1 to 255 of a-z A-Z 0-9 _ . - and start with a letter or digit", is_label;
    /// A Linux interface name (`dev_valid_name` in net/core/dev.c).
    IfName, "interface name", 15,
    "use 1 to 15 characters without '/', ':', '%' or white space, and not '.' or '..'", is_interface;
}

macro_rules! through_string {
    ($($name:ident)*) => {$(
        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(s: String) -> Result<Self, InvalidId> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }
    )*};
}

through_string! { MacAddr ClusterId NodeId NetworkId EndpointId TokenId ChangeId NetworkName HostName RuntimeName IfName }

/// An id names its network as well.
impl From<NetworkId> for NetworkName {
    fn from(id: NetworkId) -> Self {
        Self(id.as_str().into())
    }
}

macro_rules! through_number {
    ($($name:ident, $inner:ty, $must:literal;)*) => {$(
        impl TryFrom<$inner> for $name {
            type Error = InvalidId;

            fn try_from(n: $inner) -> Result<Self, InvalidId> {
                Self::new(n).ok_or_else(|| InvalidId::new(stringify!($name), n.to_string(), $must))
            }
        }

        impl From<$name> for $inner {
            fn from(n: $name) -> Self {
                n.0
            }
        }
    )*};
}

through_number! {
    Vni, u32, "it lies between 1 and 16777215";
    Spi, u32, "it is at least 256";
    LaneId, u8, "it is below 64";
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

fn is_label(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn is_interface(s: &str) -> bool {
    s != "." && s != ".." && !s.contains(|c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c))
}

fn base36(mut number: u128) -> [u8; 25] {
    let mut digits = [b'0'; 25];
    // So many at a time as a word holds: to divide 128 bits is slow.
    for digits in digits.rchunks_mut(12) {
        let mut word = (number % WORD) as u64;
        number /= WORD;
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS[(word % 36) as usize];
            word /= 36;
        }
    }
    digits
}

const WORD: u128 = 36u128.pow(12);

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_to_the_base_36() {
        let of = |number: u128| NodeId::from_entropy(number.to_le_bytes()).to_string();
        assert_eq!(of(0), "0".repeat(25));
        assert_eq!(of(35), format!("{}z", "0".repeat(24)));
        assert_eq!(of(36u128.pow(12) + 7), format!("{}1{}7", "0".repeat(12), "0".repeat(11)));
        assert_eq!(of(36u128.pow(24)), format!("1{}", "0".repeat(24)));
        assert_eq!(of(u128::MAX), "f5lxx1zz5pnorynqglhzmsp33");
    }

    #[test]
    fn mac_addresses_round_trip_and_refuse_garbage() {
        let mac: MacAddr = "02:42:0a:01:00:02".parse().expect("a MAC");
        assert_eq!(mac.to_string(), "02:42:0a:01:00:02");
        for bad in [
            "",
            "02:42",
            "02:42:0a:01:00:02:03",
            "2:42:0a:01:00:02",
            "gg:42:0a:01:00:02",
            "+1:42:0a:01:00:02",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn link_local_address_is_the_modified_eui_64() {
        let mac: MacAddr = "02:42:0a:01:00:02".parse().expect("a MAC");
        assert_eq!(mac.link_local().to_string(), "fe80::42:aff:fe01:2");
    }

    #[test]
    fn spi_names_its_lane_and_never_falls_in_the_reserved_range() {
        let lane = LaneId::new(5).expect("a lane");
        let spi = Spi::for_lane(0xdead_beef, lane).expect("an SPI");
        assert_eq!(spi.lane(), lane);
        assert!(Spi::for_lane(0x0000_00ff, lane).is_none());
        assert!(LaneId::new(64).is_none());
    }

    #[test]
    fn there_is_a_lane_for_each_core_as_far_as_an_spi_can_name_them() {
        for (cores, lanes) in [(0, 1), (1, 1), (2, 2), (64, 64), (65, 64), (500, 64)] {
            assert_eq!(LaneCount::clamped(cores).get(), lanes);
        }
        assert!([0, 65, 255].iter().all(|lanes| LaneCount::new(*lanes).is_none()));
        assert_eq!(LaneCount::clamped(3).ids().map(LaneId::index).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn random_ids_have_25_digits_and_parse_back() {
        for entropy in [[0u8; 16], [0xff; 16], *b"0123456789abcdef"] {
            let id = NodeId::from_entropy(entropy);
            assert_eq!(id.as_str().parse(), Ok(id));
        }
        assert!("UPPERCASE0123456789012345".parse::<NodeId>().is_err());
    }

    #[test]
    fn names_refuse_what_the_kernel_or_a_shell_would_trip_over() {
        for bad in ["", "-x", "a b", "a/b", "näme", &"x".repeat(64)] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad:?} was taken");
        }
        for bad in ["", ".", "..", "a/b", "a b", "eth0:1", "tap%d", "sixteen-letters!"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?} was taken");
        }
        assert!("eth0".parse::<IfName>().is_ok());
    }
}
