//! Join tokens: what an operator carries from a manager to a new node.
//!
//! `OVTKN-1-<SHA-256 of the root certificate, 50 digits>-<128-bit secret, 25 digits>`, digits 0-9
//! and a-z. The first part lets the new node check the cluster before it says anything, the second
//! lets the manager check the new node. No error repeats the text, since it may hold the secret.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// A join token.
#[derive(Clone)]
pub struct JoinToken {
    root_hash: [u8; 32],
    secret: TokenSecret,
}

impl JoinToken {
    /// The token of a cluster with this root certificate (DER).
    pub fn new(root_der: &[u8], secret: TokenSecret) -> Self {
        Self { root_hash: Sha256::digest(root_der).into(), secret }
    }

    /// Whether a certificate (DER) is the root of the token's cluster.
    pub fn is_of_root(&self, root_der: &[u8]) -> bool {
        self.root_hash.ct_eq(Sha256::digest(root_der).as_slice()).into()
    }

    /// The secret, to be shown to a manager whose root has been checked.
    pub const fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// The token as text, for the operator's eyes.
    pub fn reveal(&self) -> Zeroizing<String> {
        let root = base36::<32, ROOT_DIGITS>(self.root_hash);
        Zeroizing::new(format!("{PREFIX}-{VERSION}-{}-{}", root.as_str(), self.secret.reveal().as_str()))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(TokenError::NotAToken);
        }
        let (Some(version), Some(root), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Parts);
        };
        if version != VERSION {
            return Err(TokenError::Version);
        }
        let root_hash = from_base36::<32, ROOT_DIGITS>(root).map_err(|why| TokenError::Digits {
            part: "root",
            digits: ROOT_DIGITS,
            why,
        })?;
        Ok(Self { root_hash, secret: secret.parse()? })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken([redacted])")
    }
}

/// The secret part of a join token. Serialization reveals it: for the sealed store and the mutually
/// checked channel, never for a log.
#[derive(Clone)]
pub struct TokenSecret([u8; 16]);

impl TokenSecret {
    /// A secret from 128 bits of entropy.
    pub const fn from_entropy(entropy: [u8; 16]) -> Self {
        Self(entropy)
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// The 25 digits.
    pub fn reveal(&self) -> Zeroizing<String> {
        base36::<16, SECRET_DIGITS>(self.0)
    }
}

impl FromStr for TokenSecret {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        from_base36::<16, SECRET_DIGITS>(text).map(Self).map_err(|why| TokenError::Digits {
            part: "secret",
            digits: SECRET_DIGITS,
            why,
        })
    }
}

impl Drop for TokenSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret([redacted])")
    }
}

impl Serialize for TokenSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.reveal())
    }
}

impl<'de> Deserialize<'de> for TokenSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?).parse().map_err(de::Error::custom)
    }
}

/// Why text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error(
        "this is not a join token: one begins with {PREFIX}-{VERSION}-; print it with `overlayd token worker`"
    )]
    NotAToken,
    /// A later version.
    #[error("the join token has a version that this overlayd does not know; upgrade this node")]
    Version,
    /// Cut off, or with something added.
    #[error("the join token is incomplete: it has four parts with - between them; copy it whole")]
    Parts,
    /// A part with a typing mistake.
    #[error("the {part} part of the join token {why}; it has {digits} digits 0-9 and a-z; copy it whole")]
    Digits {
        /// Which part.
        part: &'static str,
        /// How many digits it should have.
        digits: usize,
        /// What is wrong.
        why: DigitsError,
    },
}

/// What is wrong with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigitsError {
    /// Too short or too long.
    #[error("has {0} digits")]
    Length(usize),
    /// A character that is no digit.
    #[error("has a character that is no digit at place {0}")]
    Character(usize),
    /// A number beyond what the part can hold.
    #[error("has a typing mistake")]
    Range,
}

/// A big-endian number in base 36, with leading zeros.
fn base36<const BYTES: usize, const DIGITS: usize>(number: [u8; BYTES]) -> Zeroizing<String> {
    let mut number = Zeroizing::new(number);
    let mut digits = Zeroizing::new([b'0'; DIGITS]);
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u16;
        for byte in number.iter_mut() {
            let value = remainder << 8 | u16::from(*byte);
            *byte = (value / 36).to_le_bytes()[0];
            remainder = value % 36;
        }
        *digit = ALPHABET[usize::from(remainder)];
    }
    Zeroizing::new(digits.iter().map(|digit| char::from(*digit)).collect())
}

fn from_base36<const BYTES: usize, const DIGITS: usize>(text: &str) -> Result<[u8; BYTES], DigitsError> {
    if text.chars().count() != DIGITS {
        return Err(DigitsError::Length(text.chars().count()));
    }
    let mut number = Zeroizing::new([0u8; BYTES]);
    for (place, character) in text.chars().enumerate() {
        let digit = match character {
            '0'..='9' | 'a'..='z' => character.to_digit(36),
            _ => None,
        };
        let mut carry = digit.ok_or(DigitsError::Character(place + 1))?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = value.to_le_bytes()[0];
            carry = value >> 8;
        }
        if carry != 0 {
            return Err(DigitsError::Range);
        }
    }
    Ok(*number)
}

const PREFIX: &str = "OVTKN";
const VERSION: &str = "1";
const ROOT_DIGITS: usize = 50;
const SECRET_DIGITS: usize = 25;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn token_has_the_documented_shape_and_parses_back() {
        let token = JoinToken::new(b"a root certificate", TokenSecret::from_entropy([0; 16]));
        let text = token.reveal();
        assert_eq!(text.len(), "OVTKN-1-".len() + 50 + 1 + 25);
        assert!(text.starts_with("OVTKN-1-") && text.ends_with("-0000000000000000000000000"));
        let parsed: JoinToken = text.parse().unwrap();
        assert!(parsed.is_of_root(b"a root certificate"));
        assert!(!parsed.is_of_root(b"another"));
        assert!(parsed.secret().matches(token.secret()));
        assert!(!parsed.secret().matches(&TokenSecret::from_entropy([1; 16])));
    }

    #[test]
    fn malformed_tokens_are_each_refused_with_what_is_wrong() {
        let good = JoinToken::new(b"root", TokenSecret::from_entropy([0xff; 16])).reveal();
        let refused = |text: String| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(refused("SWMTKN-1-x-y".into()), TokenError::NotAToken);
        assert_eq!(refused(String::new()), TokenError::NotAToken);
        assert_eq!(refused("OVTKN-1-abc".into()), TokenError::Parts);
        assert_eq!(refused(format!("{}-x", good.as_str())), TokenError::Parts);
        assert_eq!(refused(good.replacen("-1-", "-2-", 1)), TokenError::Version);
        let error = refused(good[..good.len() - 1].to_owned()).to_string();
        assert!(error.contains("secret part of the join token has 24 digits"), "{error}");
        let error = refused(format!("{}Z", &good[..good.len() - 1])).to_string();
        assert!(error.contains("no digit at place 25"), "{error}");
        let error = refused(format!("{}{}", &good[..good.len() - 25], "z".repeat(25)));
        assert!(matches!(error, TokenError::Digits { why: DigitsError::Range, .. }), "{error}");
        let error = refused(good.replacen("-1-", "-1-é", 1)).to_string();
        assert!(error.contains("root part of the join token has 51 digits"), "{error}");
    }

    #[test]
    fn debug_and_errors_never_show_the_secret() {
        let token = JoinToken::new(b"root", TokenSecret::from_entropy([9; 16]));
        let secret = token.secret().reveal();
        for text in [format!("{token:?}"), format!("{:?}", token.secret())] {
            assert!(text.contains("[redacted]") && !text.contains(secret.as_str()));
        }
        let error = format!("OVTKN-1-bad-{}", secret.as_str()).parse::<JoinToken>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret.as_str()));
    }

    #[test]
    fn surrounding_white_space_is_forgiven() {
        let token = JoinToken::new(b"root", TokenSecret::from_entropy([9; 16]));
        assert!(format!(" {}\n", token.reveal().as_str()).parse::<JoinToken>().is_ok());
    }

    proptest! {
        #[test]
        fn any_secret_survives_text_and_serialization(entropy: [u8; 16]) {
            let secret = TokenSecret::from_entropy(entropy);
            prop_assert!(secret.reveal().parse::<TokenSecret>().unwrap().matches(&secret));
            let json = serde_json::to_string(&secret).unwrap();
            prop_assert!(serde_json::from_str::<TokenSecret>(&json).unwrap().matches(&secret));
            // The same digits as every other id of the overlay.
            let id = crate::id::NodeId::from_entropy(u128::from_be_bytes(entropy).to_le_bytes());
            prop_assert_eq!(&*secret.reveal(), &id.to_string());
        }

        #[test]
        fn hostile_text_never_panics(text in ".{0,120}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("OVTKN-1-{text}").parse::<JoinToken>();
        }
    }
}
