//! Why a key exchange was refused: what both logs say, and what crosses the wire.

use crate::id::Epoch;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $code:literal $variant:ident $({ $field:ident: $inner:ty })? => $text:literal,)*) => {
        /// Why a key exchange was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        pub enum Reason {
            $(
                $(#[doc = $doc])+
                #[error($text)]
                $variant $({
                    /// The offending value.
                    $field: $inner
                })?,
            )*
        }

        impl Reason {
            /// Its number on the wire and the value that goes with it.
            pub(super) fn to_wire(self) -> (u8, u64) {
                match self {
                    $(Self::$variant $({ $field })? => {
                        ($code, 0 $(| $field.to_wire())?)
                    })*
                }
            }

            /// The reason with this number; `None` for a number of a later version.
            pub(super) fn from_wire(code: u8, detail: u64) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant $({ $field: <$inner>::from_wire(detail)? })?),)*
                    _ => None,
                }
            }

            /// One of each, for tests.
            #[cfg(test)]
            pub(super) fn one_of_each() -> Vec<Self> {
                vec![$(Self::$variant $({ $field: <$inner>::from_wire(7).unwrap() })?,)*]
            }
        }
    };
}

reasons! {
    /// The node that asked is not in the network's membership as the refusing node knows it.
    1 NotAMember { epoch: Epoch } => "the peer is no member of the network by epoch {epoch} of its membership",
    /// The refusing node has no such network.
    2 UnknownNetwork => "the node that was asked does not know the network",
    /// The VNIs differ.
    3 WrongVni { vni: u32 } => "VNI {vni} is not the network's",
    /// The offer came from the node with the smaller id, which may only ask.
    4 NotTheInitiator => "only the node with the larger id offers a key exchange",
    /// The boot id is not the one that the channel began with.
    5 WrongBootId => "the boot id is not the one that the channel began with",
    /// No cipher in common.
    6 NoCommonSuite => "the two nodes have no cipher suite in common; check `suites` in their configuration",
    /// The answer chose a cipher that was not offered.
    7 SuiteNotOffered { code: u8 } => "cipher suite {code} was not offered",
    /// The number of SPIs is not the number of the sender's lanes.
    8 WrongLaneCount { count: u8 } => "{count} SPIs are not one for each sending lane",
    /// An SPI below 256.
    9 ReservedSpi { spi: u32 } => "SPI {spi} is reserved",
    /// An SPI whose low bits name a lane that its receiver has not.
    10 SpiOfNoLane { spi: u32 } => "SPI {spi:#010x} names a lane that its receiver does not have",
    /// An SPI that occurs twice.
    11 DuplicateSpi { spi: u32 } => "SPI {spi:#010x} occurs twice",
    /// An SPI of the generation that is to be replaced.
    12 SpiInUse { spi: u32 } => "SPI {spi:#010x} belongs to the keys in use",
    /// An X25519 share of low order.
    13 LowOrderShare => "the X25519 share is a point of low order",
    /// An exchange id that was used before.
    14 ReusedExchange => "the exchange id was used before",
    /// A message for an exchange that the refusing node does not know.
    15 UnknownExchange => "the exchange is not known, or no longer",
    /// A message that the node's role or state has no place for.
    16 OutOfState => "the message has no place in the present state of the exchange",
}

/// What a reason carries, as a number.
trait Detail: Sized {
    fn to_wire(self) -> u64;
    fn from_wire(detail: u64) -> Option<Self>;
}

impl Detail for Epoch {
    fn to_wire(self) -> u64 {
        self.get()
    }

    fn from_wire(detail: u64) -> Option<Self> {
        Some(Self::new(detail))
    }
}

impl Detail for u32 {
    fn to_wire(self) -> u64 {
        self.into()
    }

    fn from_wire(detail: u64) -> Option<Self> {
        detail.try_into().ok()
    }
}

impl Detail for u8 {
    fn to_wire(self) -> u64 {
        self.into()
    }

    fn from_wire(detail: u64) -> Option<Self> {
        detail.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire_and_has_its_own_text() {
        let reasons = Reason::one_of_each();
        let mut texts = std::collections::BTreeSet::new();
        for reason in &reasons {
            let (code, detail) = reason.to_wire();
            assert_eq!(Reason::from_wire(code, detail), Some(*reason));
            texts.insert(reason.to_string());
        }
        assert_eq!(texts.len(), reasons.len());
        assert_eq!(Reason::from_wire(0, 0), None);
        assert_eq!(Reason::from_wire(9, u64::MAX), None);
    }
}
