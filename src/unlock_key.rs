//! Unlock keys: what an operator types after a restart of a manager that is locked by itself.
//!
//! `OVKEY-1-<256 bits, 52 digits>`, digits a-z and 2-7 (RFC 4648 without padding). A manager's state
//! is sealed under a key that is wrapped by this one. No error repeats the text.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD_NOCASE;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// An unlock key. Serialization reveals it: for the agent's socket and for other managers, never for a log.
#[derive(Clone)]
pub struct UnlockKey(Zeroizing<[u8; UnlockKey::BYTES]>);

impl UnlockKey {
    /// Length, in bytes.
    pub const BYTES: usize = 32;

    /// A key from 256 bits of entropy.
    pub fn from_entropy(entropy: [u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(entropy))
    }

    /// The 256 bits.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The key as text, for the operator's eyes.
    pub fn reveal(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(BASE32_NOPAD_NOCASE.encode(self.0.as_slice()));
        Zeroizing::new(format!("{PREFIX}{}", digits.to_ascii_lowercase()))
    }
}

impl FromStr for UnlockKey {
    type Err = NotAnUnlockKey;

    fn from_str(text: &str) -> Result<Self, NotAnUnlockKey> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(NotAnUnlockKey)?;
        let bytes = BASE32_NOPAD_NOCASE.decode(digits.as_bytes()).map_err(|_| NotAnUnlockKey)?;
        let bytes = Zeroizing::new(bytes);
        bytes.as_slice().try_into().map(Self::from_entropy).map_err(|_| NotAnUnlockKey)
    }
}

impl PartialEq for UnlockKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for UnlockKey {}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey([redacted])")
    }
}

impl Serialize for UnlockKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.reveal())
    }
}

impl<'de> Deserialize<'de> for UnlockKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?).parse().map_err(de::Error::custom)
    }
}

/// A text that is no unlock key, whatever it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not an unlock key: it begins with {PREFIX} and has 52 digits after that, as it was printed")]
pub struct NotAnUnlockKey;

const PREFIX: &str = "OVKEY-1-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_key_is_read_again_with_spaces_around_it_and_in_capitals() {
        let key = UnlockKey::from_entropy([0xa5; 32]);
        let text = key.reveal();
        assert_eq!(text.len(), PREFIX.len() + 52);
        assert_eq!(text.parse(), Ok(key.clone()));
        assert_eq!(format!("  {}\n", text.as_str()).parse(), Ok(key.clone()));
        let capitals = format!("{PREFIX}{}", text[PREFIX.len()..].to_ascii_uppercase());
        assert_eq!(capitals.parse(), Ok(key));
    }

    #[test]
    fn anything_else_is_refused_and_not_repeated() {
        let text = UnlockKey::from_entropy([7; 32]).reveal();
        for bad in ["", "OVKEY-1-", &text[1..], &text[..text.len() - 1], &format!("{}a", text.as_str())] {
            assert_eq!(bad.parse::<UnlockKey>(), Err(NotAnUnlockKey), "{bad:?}");
        }
        assert!(!format!("{NotAnUnlockKey} {:?}", UnlockKey::from_entropy([7; 32])).contains(&text[8..20]));
    }
}
