//! The ciphers that an SA can have, and the key of one SA before it becomes one.
//!
//! There is no "none": an SA without encryption cannot be written down.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::id::Spi;

/// An AEAD with its ESP profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// AES-256-GCM, 16-byte ICV (RFC 4106); where the CPU has AES.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// AES-128-GCM, 16-byte ICV (RFC 4106); on request.
    #[serde(rename = "aes-128-gcm")]
    Aes128Gcm,
    /// ChaCha20-Poly1305 (RFC 7634); where the CPU has no AES.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl Suite {
    /// Every suite.
    pub const ALL: [Self; 3] = [Self::Aes256Gcm, Self::Aes128Gcm, Self::ChaCha20Poly1305];

    /// The suites to offer when the operator asked for none, best first.
    pub const fn preferred(has_aes: bool) -> [Self; 2] {
        if has_aes {
            [Self::Aes256Gcm, Self::ChaCha20Poly1305]
        } else {
            [Self::ChaCha20Poly1305, Self::Aes256Gcm]
        }
    }

    /// The number in key exchange messages and in the key derivation.
    pub const fn code(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::Aes128Gcm => 2,
            Self::ChaCha20Poly1305 => 3,
        }
    }

    /// The suite with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.code() == code)
    }

    /// The name in statistics and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Aes128Gcm => "aes-128-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// Bytes of the key proper.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
            Self::Aes128Gcm => 16,
        }
    }

    /// What Wireshark's `esp_sa` table calls it; Wireshark 4.0 has no name for ChaCha20-Poly1305
    /// and refuses a table with a name that it does not know.
    pub const fn wireshark_name(self) -> Option<&'static str> {
        match self {
            Self::Aes256Gcm | Self::Aes128Gcm => Some("AES-GCM with 16 octet ICV [RFC4106]"),
            Self::ChaCha20Poly1305 => None,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Key and salt of one SA. Not `Clone`: one key makes one SA, or a nonce would be used twice.
pub struct KeyMaterial {
    suite: Suite,
    /// On the heap, so that moving it leaves no copy behind.
    bytes: Zeroizing<Vec<u8>>,
}

impl KeyMaterial {
    /// Bytes of keying material for the longest suite: 32 of key and 4 of salt.
    pub const LEN: usize = 36;

    /// Takes the key from the first bytes and the salt from the four that follow it, the order of
    /// RFC 4106 §8.1 and RFC 7634 §4; a suite with a shorter key leaves the rest unused.
    pub fn new(suite: Suite, bytes: &[u8; Self::LEN]) -> Self {
        Self { suite, bytes: Zeroizing::new(bytes.to_vec()) }
    }

    /// The suite.
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// Key and salt in hexadecimal, as Wireshark's `esp_sa` table wants them after `0x`.
    pub fn esp_sa_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(data_encoding::HEXLOWER.encode(&self.bytes[..self.suite.key_len() + SALT_LEN]))
    }

    /// The line of Wireshark's `esp_sa` table for this SA, without line feed. A suite that
    /// Wireshark does not know gives a comment, so that the table can still be loaded.
    pub fn esp_sa_row(&self, spi: Spi, ipv6: bool) -> Zeroizing<String> {
        let protocol = if ipv6 { "IPv6" } else { "IPv4" };
        let key = self.esp_sa_hex();
        Zeroizing::new(match self.suite.wireshark_name() {
            Some(name) => {
                format!(r#""{protocol}","*","*","{spi}","{name}","0x{}","NULL","""#, key.as_str())
            }
            None => format!("# {protocol} {spi} {} 0x{}", self.suite, key.as_str()),
        })
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..self.suite.key_len()]
    }

    pub(super) fn salt(&self) -> Zeroizing<[u8; SALT_LEN]> {
        let mut salt = Zeroizing::new([0; SALT_LEN]);
        salt.copy_from_slice(&self.bytes[self.suite.key_len()..][..SALT_LEN]);
        salt
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyMaterial({}, [redacted])", self.suite)
    }
}

/// Bytes of the implicit part of the nonce.
pub(super) const SALT_LEN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_distinct_codes_and_names_that_configuration_reads_back() {
        for suite in Suite::ALL {
            assert_eq!(Suite::from_code(suite.code()), Some(suite));
            assert_eq!(serde_json::to_value(suite).unwrap(), suite.name());
        }
        assert_eq!(Suite::from_code(0), None);
        assert_eq!(Suite::preferred(true)[0], Suite::Aes256Gcm);
        assert_eq!(Suite::preferred(false)[0], Suite::ChaCha20Poly1305);
    }

    #[test]
    fn debug_never_shows_key_bytes() {
        let key = KeyMaterial::new(Suite::Aes256Gcm, &[0xab; 36]);
        assert_eq!(format!("{key:?}"), "KeyMaterial(aes-256-gcm, [redacted])");
    }

    #[test]
    fn wireshark_row_has_key_then_salt_and_an_unknown_suite_becomes_a_comment() {
        let bytes: [u8; 36] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let spi = Spi::new(0xdead_0001).unwrap();
        assert_eq!(
            KeyMaterial::new(Suite::Aes128Gcm, &bytes).esp_sa_row(spi, false).as_str(),
            r#""IPv4","*","*","0xdead0001","AES-GCM with 16 octet ICV [RFC4106]","0x000102030405060708090a0b0c0d0e0f10111213","NULL","""#
        );
        let chacha = KeyMaterial::new(Suite::ChaCha20Poly1305, &bytes).esp_sa_row(spi, true);
        assert!(chacha.starts_with("# IPv6 0xdead0001 chacha20-poly1305 0x00"), "{}", chacha.as_str());
    }
}
