//! The key file: what opens the state file beside it.
//!
//! A JSON object with a key for each state file that this directory has held and that may still be
//! wanted: one as a rule, two while a file is replaced by one under another key, more when files
//! were moved away by hand. Which one it needs, a state file says itself. The key file is replaced
//! as a whole and never written in place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::StoreError;
use super::file::{close_to_others, replace};
use super::seal::{DataKey, KeyId};

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
    /// Keeps `key` as it is.
    pub(super) fn open(key: &DataKey) -> Self {
        Self::Open(Secret(Zeroizing::new(data_encoding::BASE64.encode(key.as_bytes()))))
    }

    /// The key; `None` when this is not one.
    pub(super) fn key(&self) -> Option<DataKey> {
        match self {
            Self::Open(Secret(text)) => {
                let bytes = Zeroizing::new(data_encoding::BASE64.decode(text.as_bytes()).ok()?);
                DataKey::from_bytes(&bytes)
            }
        }
    }
}

/// What every key file tells first.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

const FORMAT: u32 = 1;
