//! The key file: what opens the state file beside it.
//!
//! A JSON object with a key for each state file that this directory has held and that may still be
//! wanted: one as a rule, two while a file is replaced by one under another key, more when files
//! were moved away by hand. Which one it needs, a state file says itself. The key file is replaced
//! as a whole and never written in place. On a manager that is locked at each start the keys are
//! sealed under the operator's unlock key.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use data_encoding::BASE64;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::StoreError;
use super::file::{close_to_others, replace};
use super::seal::{DataKey, KeyId};
use crate::unlock_key::UnlockKey;

/// The name of the key file in the state directory.
pub const KEY_FILE: &str = "overlayd.key";

/// The keys, by their ids.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyFile {
    format: u32,
    keys: BTreeMap<String, Kept>,
}

/// How a key is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kept {
    /// As it is: base64.
    Open(Secret),
    /// Sealed under the unlock key: base64 of nonce, sealed key, tag.
    Locked(String),
}

/// Why the key file does not give a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    /// It takes an unlock key.
    Locked,
    /// It takes another unlock key, or none.
    WrongUnlockKey,
    /// It is not the key that it is called.
    Damaged,
}

/// The text of a key; shown nowhere but in the file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl KeyFile {
    /// The key file of `dir`, without keys when there is none.
    pub(super) fn read(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(KEY_FILE);
        let json = match fs::read(&path) {
            Ok(json) => Zeroizing::new(json),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { format: FORMAT, keys: BTreeMap::new() });
            }
            Err(e) => return Err(StoreError::io(&path, "read", e)),
        };
        close_to_others(&path)?;
        let damaged = |why: String| StoreError::KeyFileDamaged { file: path.clone(), why };
        let Version { format } = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        if format > FORMAT {
            return Err(StoreError::Newer { file: path, found: format, known: FORMAT });
        }
        serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))
    }

    /// Makes this the key file of `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let json = Zeroizing::new(serde_json::to_vec_pretty(self).expect("text has a JSON form"));
        replace(dir, KEY_FILE, &json)
    }

    /// How the key of that name is kept.
    pub(super) fn get(&self, id: &KeyId) -> Option<&Kept> {
        self.keys.get(&id.to_string())
    }

    /// Adds a key.
    pub(super) fn add(&mut self, id: &KeyId, kept: Kept) {
        self.keys.insert(id.to_string(), kept);
    }

    /// Forgets a key; false when it was not there.
    pub(super) fn forget(&mut self, id: &KeyId) -> bool {
        self.keys.remove(&id.to_string()).is_some()
    }
}

impl Kept {
    /// Keeps `key` as it is, or so that only `unlock` gives it out.
    pub(super) fn keep(key: &DataKey, unlock: Option<&UnlockKey>) -> Self {
        let Some(unlock) = unlock else {
            return Self::Open(Secret(Zeroizing::new(BASE64.encode(key.as_bytes()))));
        };
        let mut sealed = Zeroizing::new(key.as_bytes().to_vec());
        let (nonce, tag) = wrapping(unlock)
            .seal_in_place_separate_tag(aad(&key.id()), &mut sealed)
            .expect("far below 2^36 bytes");
        let nonce: &[u8; NONCE_LEN] = nonce.as_ref();
        Self::Locked(BASE64.encode(&[nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat()))
    }

    /// The key, which is called `id`.
    pub(super) fn key(&self, id: &KeyId, unlock: Option<&UnlockKey>) -> Result<DataKey, NoKey> {
        let bytes = match self {
            Self::Open(_) if unlock.is_some() => return Err(NoKey::WrongUnlockKey),
            Self::Open(Secret(text)) => {
                Zeroizing::new(BASE64.decode(text.as_bytes()).map_err(|_| NoKey::Damaged)?)
            }
            Self::Locked(text) => {
                let bytes = BASE64.decode(text.as_bytes()).map_err(|_| NoKey::Damaged)?;
                let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(NoKey::Damaged)?;
                if sealed.len() != DataKey::BYTES + AES_256_GCM_SIV.tag_len() {
                    return Err(NoKey::Damaged);
                }
                let mut opened = Zeroizing::new(sealed.to_vec());
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let length = wrapping(unlock.ok_or(NoKey::Locked)?)
                    .open_in_place(nonce, aad(id), &mut opened)
                    .map_err(|_| NoKey::WrongUnlockKey)?
                    .len();
                opened.truncate(length);
                opened
            }
        };
        DataKey::from_bytes(&bytes).filter(|key| key.id() == *id).ok_or(NoKey::Damaged)
    }
}

/// What data keys are sealed with under an unlock key. That has 256 random bits, so nothing is gained
/// by making each attempt dear.
fn wrapping(unlock: &UnlockKey) -> RandomizedNonceKey {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, unlock.as_bytes())
        .expand(b"overlayd state: data key", key.as_mut_slice())
        .expect("less than 255 blocks");
    RandomizedNonceKey::new(&AES_256_GCM_SIV, key.as_slice()).expect("a key of 32 bytes")
}

fn aad(id: &KeyId) -> Aad<Vec<u8>> {
    Aad::from(format!("overlayd data key 1 {id}").into_bytes())
}

/// What every key file tells first.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

const FORMAT: u32 = 1;
