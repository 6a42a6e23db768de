//! The certificate authority: a row that is read when something is to be signed, and not kept.

use zeroize::Zeroizing;

use super::model::{AUTHORITY, FOUNDING, FOUNDING_WITH_AUTHORITY, Founding, ONLY};
use super::{ClusterState, StateError};
use crate::control::store::Store;

impl ClusterState {
    /// The certificate authority as it was given to [`Self::create`], from the file or etcd.
    ///
    /// # Errors
    /// When the file cannot be read, or the row was altered.
    pub fn ca(&self) -> Result<Zeroizing<Vec<u8>>, StateError> {
        let digits = self.rows().read(|r| r.get(&AUTHORITY, ONLY))?.0.ok_or_else(|| {
            StateError::Inconsistent { why: "the certificate authority is missing".to_owned() }
        })?;
        data_encoding::HEXLOWER.decode(digits.as_bytes()).map(Zeroizing::new).map_err(|e| {
            StateError::Inconsistent { why: format!("the certificate authority does not decode: {e}") }
        })
    }
}

/// Gives the authority a row of its own, which it had not in earlier state files.
pub(super) fn set_apart(store: &Store, founding: &Founding) -> Result<(), StateError> {
    let earlier = store.read(|r| {
        Ok(match r.get(&AUTHORITY, ONLY)? {
            Some(_) => None,
            None => r.get(&FOUNDING_WITH_AUTHORITY, ONLY)?,
        })
    })?;
    if let Some(earlier) = earlier {
        store.write(|w| {
            w.put(&AUTHORITY, ONLY, &earlier.ca)?;
            w.put(&FOUNDING, ONLY, founding)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::{NewCluster, Tokens};
    use crate::control::store::Table;
    use crate::id::ClusterId;
    use std::time::Duration;

    #[test]
    fn authority_of_the_first_version_leaves_the_row_that_stays_in_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        let founding = Table::<serde_json::Value>::new("founding");
        let id = ClusterId::from_entropy([7; 16]);
        let new = NewCluster {
            id,
            ca: b"another".to_vec().into(),
            root: b"another root".to_vec(),
            pools: Vec::new(),
            certificate_life: Duration::from_hours(2160),
            tokens: Tokens { worker: [1; 16], manager: [2; 16] },
        };
        ClusterState::create(store.clone(), new, Box::new(|_| Err("unused".into()))).expect("a state");
        let mut row = store.read(|r| r.get(&founding, ONLY)).expect("read").expect("a row");
        row.as_object_mut().expect("an object").insert("ca".to_owned(), "726f6f74".into());
        let as_before = store.write(|w| {
            w.put(&founding, ONLY, &row)?;
            w.remove(&AUTHORITY, ONLY)
        });
        as_before.expect("written");

        let state =
            ClusterState::open(store.clone(), Box::new(|_| Err("unused".into()))).expect("the same state");

        assert_eq!(state.ca().expect("an authority").as_slice(), b"root");
        let row = store.read(|r| r.get(&founding, ONLY)).expect("read").expect("a row");
        assert!(row.get("ca").is_none(), "{row}");
        assert_eq!(state.id(), id);
    }
}
