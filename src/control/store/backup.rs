//! A backup: all that makes another machine the manager that this one is, sealed under a passphrase.
//!
//! ```text
//!  0 16  "overlayd backup" and a line feed
//! 16  4  format = 1
//! 20  4  Argon2id: memory, KiB
//! 24  4            passes
//! 28  4            lanes
//! 32 16            salt
//! 48 16  tells whether the passphrase is right
//! 64  8  length of what follows
//! 72 12  nonce
//! 84     AES-256-GCM-SIV(key; AAD = all in front of the nonce):
//!     8      when it was made, seconds since 1970
//!            rows: table, key, JSON, each 4+n
//!    16      tag
//! ```
//! All numbers are big-endian. It holds the cluster's tables and who the node is, and not what is
//! only on this machine: its containers' interfaces, and the view, which a manager gives anew.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use bytes::{Buf, BufMut};
use hkdf::Hkdf;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::contents::{self, RowInClear};
use super::local::{self, NodeSettings};
use super::{ClusterRows, Store, StoreError, Table};

/// An opened backup.
pub struct Backup {
    made_unix_seconds: u64,
    rows: Vec<RowInClear>,
}

impl Backup {
    /// Opens the content of a backup file.
    ///
    /// # Errors
    /// It is something else, was cut or altered, or takes another passphrase.
    pub fn open(file: &[u8], passphrase: &str) -> Result<Self, BackupError> {
        let mut rest = file.strip_prefix(MAGIC).ok_or(BackupError::Foreign)?;
        let found = file.len();
        let short = BackupError::Truncated { found, expected: None };
        let format = rest.try_get_u32().map_err(|_| short)?;
        if format != FORMAT {
            return Err(BackupError::Newer { found: format, known: FORMAT });
        }
        if found < HEADER_BYTES {
            return Err(short);
        }
        let cost = Cost { memory_kib: rest.get_u32(), passes: rest.get_u32(), lanes: rest.get_u32() };
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or(short)?;
        let (check, mut rest) = rest.split_first_chunk::<CHECK_BYTES>().ok_or(short)?;
        let length = rest.get_u64();
        if u64::try_from(rest.len()) != Ok(length) {
            let expected = length.checked_add(HEADER_BYTES as u64);
            return Err(match expected {
                Some(expected) if expected > found as u64 => {
                    BackupError::Truncated { found, expected: Some(expected) }
                }
                Some(_) | None => BackupError::Altered,
            });
        }
        let keys = cost.stretch(passphrase, salt).ok_or(BackupError::Altered)?;
        if !bool::from(keys.check.ct_eq(check)) {
            return Err(BackupError::WrongPassphrase);
        }
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(BackupError::Altered)?;
        let mut content = Zeroizing::new(sealed.to_vec());
        let aad = Aad::from(&file[..HEADER_BYTES]);
        let opened = keys.content.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut content);
        Self::read(opened.map_err(|_| BackupError::Altered)?).ok_or(BackupError::Altered)
    }

    /// When it was made, in seconds since 1970.
    pub fn made_unix_seconds(&self) -> u64 {
        self.made_unix_seconds
    }

    /// Who the manager is.
    pub fn identity<T: DeserializeOwned>(&self) -> Option<T> {
        self.local(local::IDENTITY)
    }

    /// Where it was.
    pub fn settings(&self) -> Option<NodeSettings> {
        self.local(local::SETTINGS)
    }

    /// The rows of a table of its cluster.
    ///
    /// # Errors
    /// One is not what it should be.
    pub(in crate::control) fn table<T: DeserializeOwned>(
        &self,
        table: &Table<T>,
    ) -> Result<Vec<T>, BackupError> {
        let rows = self.rows.iter().filter(|row| row.table == table.name);
        let read = rows.map(|row| serde_json::from_slice(&row.json).map_err(|_| BackupError::Altered));
        read.collect()
    }

    /// Whether it has any row of a table of its cluster.
    pub(in crate::control) fn has<T>(&self, table: &Table<T>) -> bool {
        self.rows.iter().any(|row| row.table == table.name)
    }

    /// The content of a backup file.
    pub fn sealed(&self, passphrase: &str) -> Vec<u8> {
        self.seal(passphrase, &Cost::OURS)
    }

    fn local<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let row = self.rows.iter().find(|row| row.table == local::NODE_TABLE && row.key == key)?;
        serde_json::from_slice(&row.json).ok()
    }

    fn read(mut content: &[u8]) -> Option<Self> {
        let made_unix_seconds = content.try_get_u64().ok()?;
        let mut rows = Vec::new();
        while !content.is_empty() {
            let mut part = || {
                let length = usize::try_from(content.try_get_u32().ok()?).ok()?;
                let (part, rest) = content.split_at_checked(length)?;
                content = rest;
                Some(part)
            };
            let (table, key, json) = (part()?, part()?, part()?);
            rows.push(RowInClear {
                table: String::from_utf8(table.to_vec()).ok()?,
                key: String::from_utf8(key.to_vec()).ok()?,
                json: Zeroizing::new(json.to_vec()),
            });
        }
        Some(Self { made_unix_seconds, rows })
    }

    fn seal(&self, passphrase: &str, cost: &Cost) -> Vec<u8> {
        let parts = || self.rows.iter().flat_map(|row| [row.table.as_bytes(), row.key.as_bytes(), &row.json]);
        let length = 8 + parts().map(|part| 4 + part.len()).sum::<usize>();
        // What a vector leaves behind when it grows is not wiped.
        let mut content = Zeroizing::new(Vec::with_capacity(length));
        content.put_u64(self.made_unix_seconds);
        for part in parts() {
            content.put_u32(u32::try_from(part.len()).expect("a row has less than 4 GiB"));
            content.put_slice(part);
        }
        let salt: [u8; SALT_BYTES] = rand::random();
        let keys = cost.stretch(passphrase, &salt).expect("the cost is one that can be paid");
        let mut file = Vec::with_capacity(HEADER_BYTES + NONCE_LEN + length + TAG_BYTES);
        file.put_slice(MAGIC);
        for number in [FORMAT, cost.memory_kib, cost.passes, cost.lanes] {
            file.put_u32(number);
        }
        file.put_slice(&salt);
        file.put_slice(&keys.check);
        file.put_u64(u64::try_from(NONCE_LEN + length + TAG_BYTES).unwrap_or(u64::MAX));
        let aad = Aad::from(file.as_slice());
        let (nonce, tag) =
            keys.content.seal_in_place_separate_tag(aad, &mut content).expect("far below 2^36 bytes");
        let nonce: &[u8; NONCE_LEN] = nonce.as_ref();
        for part in [nonce.as_slice(), &content, tag.as_ref()] {
            file.put_slice(part);
        }
        file
    }
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("made_unix_seconds", &self.made_unix_seconds).finish_non_exhaustive()
    }
}

impl Store {
    /// What a backup holds: who this node is, and the rows of its cluster of one moment, whatever is
    /// written meanwhile.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(in crate::control) fn backup_of(
        &self,
        cluster: &ClusterRows,
        now_unix_seconds: u64,
    ) -> Result<Backup, StoreError> {
        let mut rows =
            self.inner.with_database(|database, seal| contents::sealed(self.file(), database, seal))?;
        if cluster.shared().is_some() {
            rows.retain(|row| local::is_of_the_node(&row.table));
            rows.extend(cluster.contents()?);
        }
        rows.retain(|row| !local::is_of_the_machine(&row.table, &row.key));
        Ok(Backup { made_unix_seconds: now_unix_seconds, rows })
    }

    /// Takes over what a backup holds of its cluster; who the node is and where comes with
    /// [`Store::put_enrolment`].
    ///
    /// # Errors
    /// When it cannot be written; then nothing is.
    pub fn take_over(&self, backup: &Backup) -> Result<(), StoreError> {
        let rows = backup.rows.iter().filter(|row| !local::is_enrolment(&row.table, &row.key));
        self.write(|w| rows.into_iter().try_for_each(|row| w.put_json(&row.table, &row.key, &row.json)))
    }
}

/// Why a backup cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It begins otherwise.
    #[error("this is not a backup of overlayd: give the file that `overlayd backup` wrote")]
    Foreign,
    /// A later overlayd wrote it.
    #[error(
        "the backup has format {found}, this overlayd knows format {known}: restore it with the overlayd that wrote it"
    )]
    Newer {
        /// Its format.
        found: u32,
        /// The one that we know.
        known: u32,
    },
    /// The end is missing.
    #[error(
        "the backup is cut off: {found} bytes are there{}; take another copy of it",
        expected.map(|all| format!(" of {all}")).unwrap_or_default()
    )]
    Truncated {
        /// Bytes that are there.
        found: usize,
        /// Bytes that there should be, if that can be told.
        expected: Option<u64>,
    },
    /// It opens with another passphrase.
    #[error("this is not the passphrase of the backup")]
    WrongPassphrase,
    /// The passphrase is right, or nobody can tell, but the rest is not what was written.
    #[error("the backup is damaged: it is not as it was written; take another copy of it")]
    Altered,
}

/// What an attempt at a passphrase costs (RFC 9106).
#[derive(Debug, Clone, Copy)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// The second choice of RFC 9106 §4, for where 2 GiB are too much.
    const OURS: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
    /// Beyond this a file is not one of ours, and would only keep us busy.
    const MOST: Self = Self { memory_kib: 1024 * 1024, passes: 16, lanes: 64 };

    /// The keys of a passphrase; `None` when they would cost more than any backup does.
    fn stretch(&self, passphrase: &str, salt: &[u8; SALT_BYTES]) -> Option<Keys> {
        let Self { memory_kib, passes, lanes } = *self;
        let most = Self::MOST;
        if memory_kib > most.memory_kib || passes > most.passes || lanes > most.lanes {
            return None;
        }
        let params = argon2::Params::new(memory_kib, passes, lanes, None).ok()?;
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut stretched = Zeroizing::new([0; 32]);
        argon2.hash_password_into(passphrase.as_bytes(), salt, stretched.as_mut_slice()).ok()?;
        let keys = Hkdf::<Sha256>::new(None, stretched.as_slice());
        let (mut content, mut check) = (Zeroizing::new([0; 32]), [0; CHECK_BYTES]);
        keys.expand(b"overlayd backup: content", content.as_mut_slice()).expect("less than 255 blocks");
        keys.expand(b"overlayd backup: check", &mut check).expect("less than 255 blocks");
        let content =
            RandomizedNonceKey::new(&AES_256_GCM_SIV, content.as_slice()).expect("a key of 32 bytes");
        Some(Keys { content, check })
    }
}

struct Keys {
    content: RandomizedNonceKey,
    check: [u8; CHECK_BYTES],
}

const MAGIC: &[u8; 16] = b"overlayd backup\n";
const FORMAT: u32 = 1;
const SALT_BYTES: usize = 16;
const CHECK_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = MAGIC.len() + 4 * 4 + SALT_BYTES + CHECK_BYTES + 8;

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };

    #[test]
    fn sealed_backup_opens_with_its_passphrase_and_no_other() {
        let file = backup().seal("the right one", &CHEAP);
        let opened = Backup::open(&file, "the right one").expect("a backup");
        assert_eq!(opened.made_unix_seconds(), 7);
        assert_eq!(opened.identity::<String>().as_deref(), Some("who I am"));
        assert_eq!(opened.rows.len(), 2);
        assert_eq!(Backup::open(&file, "another").err(), Some(BackupError::WrongPassphrase));
        for secret in ["who I am", "web", "nodes"] {
            assert!(!file.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()), "{secret}");
        }
        let again = backup().seal("the right one", &CHEAP);
        assert_ne!(file[32..], again[32..], "salt and nonce are new each time");
    }

    #[test]
    fn backup_with_any_byte_changed_or_missing_is_refused() {
        let file = backup().seal("the right one", &CHEAP);
        for length in 0..file.len() {
            let refused = Backup::open(&file[..length], "the right one").expect_err("cut off");
            let expected = if length < MAGIC.len() {
                BackupError::Foreign
            } else {
                let expected = (length >= HEADER_BYTES).then_some(file.len() as u64);
                BackupError::Truncated { found: length, expected }
            };
            assert_eq!(refused, expected, "{length} bytes");
        }
        // Not all of the costs: each is tried with what it says.
        for place in (0..20).chain(32..file.len()) {
            let mut altered = file.clone();
            altered[place] ^= 1;
            Backup::open(&altered, "the right one").expect_err("altered");
        }
        let longer = [file.as_slice(), b"x"].concat();
        assert_eq!(Backup::open(&longer, "the right one").err(), Some(BackupError::Altered));
    }

    #[test]
    fn file_that_asks_for_more_than_any_backup_is_not_obeyed() {
        let mut file = backup().seal("the right one", &CHEAP);
        for place in [20, 24, 28] {
            let before = file[place];
            file[place] = 0xff;
            assert_eq!(Backup::open(&file, "the right one").err(), Some(BackupError::Altered));
            file[place] = before;
        }
        file[19] = 9;
        assert_eq!(
            Backup::open(&file, "the right one").err(),
            Some(BackupError::Newer { found: 9, known: FORMAT })
        );
    }

    #[test]
    fn backup_of_a_store_leaves_out_what_is_only_on_the_machine() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        store.put_identity(&"who I am").expect("written");
        store.put_view(&crate::cluster::View::default()).expect("written");
        let cluster = crate::control::store::Table::<String>::new("founding");
        store.write(|w| w.put(&cluster, "cluster", &"what was agreed".to_owned())).expect("written");
        let backup = store.backup_of(&store.clone().into(), 7).expect("a backup");
        assert!(backup.has(&cluster));
        let backup = Backup::open(&backup.sealed("the right one"), "the right one").expect("a backup");

        let other = tempfile::tempdir().expect("a directory");
        let restored = Store::create(other.path()).expect("a state file");
        restored.take_over(&backup).expect("written");
        let founding = restored.read(|r| r.get(&cluster, "cluster")).expect("read");
        assert_eq!(founding.as_deref(), Some("what was agreed"));
        assert_eq!(restored.identity::<String>().expect("read"), None, "that comes last");
        assert_eq!(restored.view().expect("read"), None);
        assert_eq!(backup.identity::<String>().as_deref(), Some("who I am"));
    }

    fn backup() -> Backup {
        let row = |table: &str, key: &str, json: &str| RowInClear {
            table: table.to_owned(),
            key: key.to_owned(),
            json: Zeroizing::new(json.as_bytes().to_vec()),
        };
        let rows = vec![
            row(local::NODE_TABLE, local::IDENTITY, "\"who I am\""),
            row("nodes", "a", "{\"name\":\"web\"}"),
        ];
        Backup { made_unix_seconds: 7, rows }
    }
}
