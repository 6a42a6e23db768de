//! How rows lie in the state file: under a key, and each in its place.
//!
//! ```text
//! key of a row    HMAC-SHA-256(index key, length of the table's name || table's name || key)   32
//! value of a row  nonce                                                                        12
//!                 AES-256-GCM-SIV(row key; AAD = purpose || key of the row || table's name):
//!                     length of the key, big endian                                             4
//!                     key
//!                     JSON
//!                 tag                                                                          16
//! ```
//! Of names, ids and keys nothing can be read; how many rows a table has, and how long they are,
//! can. A row opens in no other place than its own. GCM-SIV (RFC 8452) since a file may be copied
//! with the machine that it is on: two machines that begin with the same random numbers seal under
//! the same nonce, which gives away that two rows are equal, where GCM would give away its key.

use std::convert::Infallible;
use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

/// What a state file is sealed with: 256 random bits.
#[derive(Clone)]
pub(super) struct DataKey(Zeroizing<[u8; DataKey::BYTES]>);

impl DataKey {
    /// Length, in bytes.
    pub(super) const BYTES: usize = 32;

    /// Draws a key.
    pub(super) fn generate() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    /// A key from its bytes; `None` when they are too few or too many.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; Self::BYTES]);
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(bytes);
        Some(Self(key))
    }

    /// The bytes, for the key file.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// What the key is called where the key itself may not stand.
    pub(super) fn id(&self) -> KeyId {
        let mut id = [0; 16];
        self.derive(b"overlayd state: key id", &mut id);
        KeyId(data_encoding::HEXLOWER.encode(&id))
    }

    /// What seals and opens rows.
    pub(super) fn seal(&self) -> Seal {
        let (mut rows, mut index) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        self.derive(b"overlayd state: rows", rows.as_mut_slice());
        self.derive(b"overlayd state: index", index.as_mut_slice());
        Seal {
            rows: RandomizedNonceKey::new(&AES_256_GCM_SIV, rows.as_slice()).expect("a key of 32 bytes"),
            index: hmac::Key::new(hmac::HMAC_SHA256, index.as_slice()),
        }
    }

    fn derive(&self, purpose: &[u8], to: &mut [u8]) {
        Hkdf::<Sha256>::new(None, self.as_bytes()).expand(purpose, to).expect("less than 255 blocks");
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey([redacted])")
    }
}

/// The name of a [`DataKey`]; it tells nothing of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Seals and opens the rows of one state file.
#[derive(Debug)]
pub(super) struct Seal {
    rows: RandomizedNonceKey,
    index: hmac::Key,
}

/// A row in clear.
pub(super) struct Row {
    /// Its key.
    pub(super) key: String,
    content: Zeroizing<Vec<u8>>,
}

impl Row {
    /// Its value.
    pub(super) fn json(&self) -> &[u8] {
        self.content.get(KEY_LENGTH_BYTES + self.key.len()..).unwrap_or_default()
    }
}

/// A row that was altered, or put in another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unopened;

impl Seal {
    /// The key under which the row `key` lies in the file.
    pub(super) fn index(&self, table: &str, key: &str) -> [u8; INDEX_BYTES] {
        let mut context = hmac::Context::with_key(&self.index);
        context.update(&(table.len() as u64).to_be_bytes());
        context.update(table.as_bytes());
        context.update(key.as_bytes());
        let mut index = [0; INDEX_BYTES];
        index.copy_from_slice(context.sign().as_ref());
        index
    }

    /// Seals the row `key`; `write` appends its value.
    pub(super) fn seal<E>(
        &self,
        table: &str,
        key: &str,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        // What a vector leaves behind when it moves is not wiped: most rows fit at once.
        let mut content = Zeroizing::new(Vec::with_capacity(8192));
        content.extend_from_slice(&u32::try_from(key.len()).expect("a key is short").to_be_bytes());
        content.extend_from_slice(key.as_bytes());
        write(&mut content)?;
        let aad = aad(table, &self.index(table, key));
        let (nonce, tag) =
            self.rows.seal_in_place_separate_tag(Aad::from(aad), &mut content).expect("far below 2^36 bytes");
        let nonce: &[u8; NONCE_LEN] = nonce.as_ref();
        Ok([nonce.as_slice(), content.as_slice(), tag.as_ref()].concat())
    }

    /// Seals the row `key`, whose value is JSON already.
    pub(super) fn seal_json(&self, table: &str, key: &str, json: &[u8]) -> Vec<u8> {
        let write = |to: &mut Vec<u8>| {
            to.extend_from_slice(json);
            Ok::<_, Infallible>(())
        };
        let Ok(sealed) = self.seal(table, key, write);
        sealed
    }

    /// Opens what lies in the file under `index`.
    pub(super) fn open(&self, table: &str, index: &[u8], sealed: &[u8]) -> Result<Row, Unopened> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unopened)?;
        let mut content = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = {
            let aad = Aad::from(aad(table, index));
            self.rows.open_in_place(nonce, aad, &mut content).map_err(|_| Unopened)?.len()
        };
        content.truncate(length);
        let (key_length, rest) = content.split_first_chunk::<KEY_LENGTH_BYTES>().ok_or(Unopened)?;
        let key_length = usize::try_from(u32::from_be_bytes(*key_length)).map_err(|_| Unopened)?;
        let key = rest.get(..key_length).ok_or(Unopened)?;
        let key = std::str::from_utf8(key).map_err(|_| Unopened)?.to_owned();
        Ok(Row { key, content })
    }
}

fn aad(table: &str, index: &[u8]) -> Vec<u8> {
    [b"overlayd state row 1".as_slice(), index, table.as_bytes()].concat()
}

/// Length of a row's key as it lies in the file.
pub(super) const INDEX_BYTES: usize = 32;
const KEY_LENGTH_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_opens_in_its_place_and_in_no_other() {
        let seal = DataKey::generate().seal();
        let sealed = put(&seal, "nodes", "a", "{\"name\":\"web\"}");
        let index = seal.index("nodes", "a");

        let row = seal.open("nodes", &index, &sealed).expect("its place");

        assert_eq!((row.key.as_str(), row.json()), ("a", b"{\"name\":\"web\"}".as_slice()));
        assert!(seal.open("nodes", &seal.index("nodes", "b"), &sealed).is_err());
        assert!(seal.open("networks", &index, &sealed).is_err());
        assert!(seal.open("networks", &seal.index("networks", "a"), &sealed).is_err());
        assert!(DataKey::generate().seal().open("nodes", &index, &sealed).is_err());
    }

    #[test]
    fn row_with_any_bit_changed_or_byte_missing_does_not_open() {
        let seal = DataKey::generate().seal();
        let sealed = put(&seal, "nodes", "a", "1");
        let index = seal.index("nodes", "a");
        for length in 0..sealed.len() {
            assert!(seal.open("nodes", &index, &sealed[..length]).is_err(), "{length} bytes");
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(seal.open("nodes", &index, &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn equal_rows_are_sealed_differently_and_tables_have_keys_of_their_own() {
        let seal = DataKey::generate().seal();
        assert_ne!(put(&seal, "t", "k", "1"), put(&seal, "t", "k", "1"));
        assert_ne!(seal.index("t", "k"), seal.index("u", "k"));
        // The border between table and key cannot be moved.
        assert_ne!(seal.index("tk", "k"), seal.index("t", "kk"));
    }

    #[test]
    fn key_is_named_by_its_id_and_shown_nowhere() {
        let key = DataKey::generate();
        let again = DataKey::from_bytes(key.as_bytes()).expect("32 bytes");
        assert_eq!(key.id(), again.id());
        assert_ne!(key.id(), DataKey::generate().id());
        assert!(DataKey::from_bytes(&key.as_bytes()[1..]).is_none());
        assert_eq!(format!("{key:?}"), "DataKey([redacted])");
    }

    fn put(seal: &Seal, table: &str, key: &str, json: &str) -> Vec<u8> {
        seal.seal_json(table, key, json.as_bytes())
    }
}
