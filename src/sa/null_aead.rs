//! No cipher, to measure what the ciphers cost: the same packets, with nothing encrypted in them.
//!
//! It stands in for `aead` in a build with `--cfg overlayd_null_aead` in RUSTFLAGS, and exists in no
//! other. Such a build calls itself unsafe in its version, speaks another key channel, so that no node
//! with a cipher ever has keys with it, and its agent does not start without being told twice (see
//! [`super::ENCRYPTS`]). Its tag is a constant: packets that a cipher sealed are not taken.

use super::counter::Nonce;
use super::suite::KeyMaterial;

/// A cipher that does nothing.
pub(crate) struct Aead;

/// The packet was not made by a build without a cipher.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AeadError;

impl Aead {
    /// The absent cipher of an SA.
    pub(crate) fn new(key: &KeyMaterial) -> Self {
        let _unused = key.key();
        Self
    }

    /// Leaves `body` as it is.
    #[inline]
    pub(crate) fn seal(&self, nonce: Nonce, _: &[u8], _: &mut [u8]) -> Result<[u8; TAG_LEN], AeadError> {
        let _unused = nonce.into_bytes();
        Ok(*TAG)
    }

    /// Checks nothing but that a build without a cipher made the packet.
    #[inline]
    pub(crate) fn open(
        &self,
        _: [u8; 12],
        _: &[u8],
        _: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), AeadError> {
        if tag == TAG { Ok(()) } else { Err(AeadError) }
    }
}

/// Bytes of the integrity check value, as with a cipher.
pub(crate) const TAG_LEN: usize = 16;

const TAG: &[u8; TAG_LEN] = b"nothing is safe!";
