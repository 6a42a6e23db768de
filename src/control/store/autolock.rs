//! A state file that is locked at each start: its key is wrapped by an unlock key, which the operator
//! keeps and the agent has in memory only.
//!
//! Whatever begins or ends it draws a new data key, so that none that lay on the disk in clear, or
//! under an earlier unlock key, opens what is written from then on.

use super::file::{self, Keep};
use super::{NO_PANIC, Slot, Store, StoreError};
use crate::unlock_key::UnlockKey;

/// Whether the file takes an unlock key.
#[derive(Debug)]
pub(super) enum Autolock {
    /// No: the key file gives the key.
    Off,
    /// Yes, and it has not been given.
    Locked,
    /// Yes, this one.
    Unlocked(UnlockKey),
}

impl Autolock {
    pub(super) fn key(&self) -> Option<&UnlockKey> {
        match self {
            Self::Unlocked(key) => Some(key),
            Self::Off | Self::Locked => None,
        }
    }
}

impl Store {
    /// Whether nothing can be read or written before [`Self::unlock`].
    pub fn is_locked(&self) -> bool {
        matches!(self.inner.slot.read().expect(NO_PANIC).autolock, Autolock::Locked)
    }

    /// Opens a locked file; does nothing to one that is open.
    ///
    /// # Errors
    /// When it is another key, or the file cannot be read; it is locked then as before.
    pub fn unlock(&self, key: &UnlockKey) -> Result<(), StoreError> {
        let mut slot = self.inner.slot.write().expect(NO_PANIC);
        if matches!(slot.autolock, Autolock::Locked) {
            let opened = file::open(&self.inner.dir, Some(key))?;
            *slot = Slot { opened: Some(opened), autolock: Autolock::Unlocked(key.clone()) };
        }
        Ok(())
    }

    /// Forgets the keys of a file that takes an unlock key.
    pub fn lock(&self) {
        let mut slot = self.inner.slot.write().expect(NO_PANIC);
        if slot.autolock.key().is_some() {
            *slot = Slot { opened: None, autolock: Autolock::Locked };
        }
    }

    /// The unlock key of a file that was unlocked with one.
    pub fn unlock_key(&self) -> Option<UnlockKey> {
        self.inner.slot.read().expect(NO_PANIC).autolock.key().cloned()
    }

    /// Makes the file take this unlock key from now on, or none, under a new data key.
    ///
    /// # Errors
    /// When the file is locked, or cannot be written; it is as it was then.
    pub fn set_unlock_key(&self, key: Option<&UnlockKey>) -> Result<(), StoreError> {
        self.seal_anew(key, Keep::Everything)
    }

    pub(super) fn seal_anew(&self, key: Option<&UnlockKey>, keep: Keep) -> Result<(), StoreError> {
        let mut slot = self.inner.slot.write().expect(NO_PANIC);
        self.inner.open(&mut slot)?;
        let before = slot.opened.take().expect("just opened");
        let replaced = file::seal_anew(&self.inner.dir, key, &before, keep);
        drop(before);
        // A disk that fails late may have the new file all the same.
        let after = key.cloned().map_or(Autolock::Off, Autolock::Unlocked);
        match (file::open(&self.inner.dir, key), &replaced) {
            (Ok(opened), _) => *slot = Slot { opened: Some(opened), autolock: after },
            (Err(_), Ok(())) => slot.autolock = after,
            (Err(_), Err(_)) => {}
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::control::store::{KEY_FILE, STATE_FILE};

    #[test]
    fn locked_file_gives_nothing_before_its_unlock_key() {
        let (dir, key) = locked("who I am");
        let store = Store::open(dir.path()).expect("a locked store");
        assert!(store.is_locked() && store.unlock_key().is_none());
        assert!(matches!(store.identity::<String>(), Err(StoreError::Locked { .. })));
        assert!(matches!(store.put_identity(&"another"), Err(StoreError::Locked { .. })));
        assert!(matches!(store.set_unlock_key(None), Err(StoreError::Locked { .. })));
        assert!(matches!(store.leave_cluster(), Err(StoreError::Locked { .. })));

        assert!(matches!(store.unlock(&other()), Err(StoreError::WrongUnlockKey { .. })));
        assert!(store.is_locked());

        store.unlock(&key).expect("the right key");
        assert!(!store.is_locked());
        assert_eq!(store.unlock_key(), Some(key));
        assert_eq!(identity(&store), "who I am");
        store.put_identity(&"another").expect("written");
        store.lock();
        assert!(store.is_locked());
        assert!(matches!(store.identity::<String>(), Err(StoreError::Locked { .. })));
    }

    #[test]
    fn nothing_on_the_disk_opens_the_file_without_the_unlock_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        store.put_identity(&"who I am").expect("written");
        let in_clear = data_key(dir.path());
        store.set_unlock_key(Some(&key())).expect("locked from now on");
        let keys = key_file(dir.path());
        assert_eq!(keys.as_object().map(serde_json::Map::len), Some(1), "{keys}");
        assert!(!keys.to_string().contains(&in_clear) && !keys.to_string().contains("open"), "{keys}");
        // The key that lay there in clear does not open the file that there is now.
        drop(store);
        let id = keys.as_object().and_then(|keys| keys.keys().next()).expect("a key").clone();
        let forged = serde_json::json!({"format": 1, "keys": {id: {"open": in_clear}}});
        fs::write(dir.path().join(KEY_FILE), forged.to_string()).expect("written");
        assert!(matches!(Store::open(dir.path()), Err(StoreError::KeyFileDamaged { .. })));
    }

    #[test]
    fn changed_unlock_key_opens_the_file_and_the_earlier_one_does_not() {
        let (dir, key) = locked("who I am");
        let store = Store::open(dir.path()).expect("a locked store");
        store.unlock(&key).expect("the right key");
        let before = data_key(dir.path());
        store.set_unlock_key(Some(&other())).expect("changed");
        assert_eq!((store.unlock_key(), identity(&store).as_str()), (Some(other()), "who I am"));
        assert_ne!(data_key(dir.path()), before);
        drop(store);
        let store = Store::open(dir.path()).expect("a locked store");
        assert!(matches!(store.unlock(&key), Err(StoreError::WrongUnlockKey { .. })));
        store.unlock(&other()).expect("the new key");
        assert_eq!(identity(&store), "who I am");
    }

    #[test]
    fn change_that_fails_leaves_the_file_and_its_key_as_they_were() {
        for earlier in [None, Some(key())] {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Store::create(dir.path()).expect("a state file");
            store.put_identity(&"who I am").expect("written");
            if earlier.is_some() {
                store.set_unlock_key(earlier.as_ref()).expect("locked from now on");
            }
            let in_the_way = dir.path().join("overlayd.redb.new");
            fs::create_dir(&in_the_way).expect("a directory");
            store.set_unlock_key(Some(&other())).expect_err("something is in the way");
            assert_eq!(store.unlock_key(), earlier);
            assert_eq!(identity(&store), "who I am");
            drop(store);
            fs::remove_dir(&in_the_way).expect("removed");
            let store = Store::open(dir.path()).expect("a store");
            assert_eq!(store.is_locked(), earlier.is_some());
            earlier.iter().for_each(|key| store.unlock(key).expect("the key that it had"));
            assert_eq!(identity(&store), "who I am");
        }
    }

    #[test]
    fn file_of_a_node_that_left_its_cluster_takes_no_unlock_key() {
        let (dir, key) = locked("who I am");
        let store = Store::open(dir.path()).expect("a locked store");
        store.unlock(&key).expect("the right key");
        store.leave_cluster().expect("left");
        drop(store);
        let store = Store::open(dir.path()).expect("a store");
        assert!(!store.is_locked());
        assert_eq!(store.identity::<String>().expect("read"), None);
    }

    #[test]
    fn altered_wrapped_key_is_no_key() {
        let (dir, key) = locked("who I am");
        let path = dir.path().join(KEY_FILE);
        let text = fs::read_to_string(&path).expect("a key file");
        let wrapped = data_key(dir.path());
        let mut another = wrapped.clone();
        another.replace_range(20..21, if &wrapped[20..21] == "A" { "B" } else { "A" });
        for altered in [another, wrapped[..60].to_owned(), String::new()] {
            fs::write(&path, text.replace(&wrapped, &altered)).expect("written");
            let refused = Store::open(dir.path()).and_then(|store| store.unlock(&key));
            let refused = refused.expect_err("altered");
            assert!(
                matches!(refused, StoreError::WrongUnlockKey { .. } | StoreError::KeyFileDamaged { .. }),
                "{refused}"
            );
        }
        fs::write(&path, text).expect("written");
        Store::open(dir.path()).expect("a store").unlock(&key).expect("the right key");
        assert!(dir.path().join(STATE_FILE).exists());
    }

    fn locked(identity: &str) -> (tempfile::TempDir, UnlockKey) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        store.put_identity(&identity).expect("written");
        store.set_unlock_key(Some(&key())).expect("locked from now on");
        (dir, key())
    }

    fn identity(store: &Store) -> String {
        store.identity().expect("read").expect("an identity")
    }

    fn key_file(dir: &Path) -> serde_json::Value {
        let text = fs::read(dir.join(KEY_FILE)).expect("a key file");
        serde_json::from_slice::<serde_json::Value>(&text).expect("JSON")["keys"].take()
    }

    /// The text of the only key in the key file.
    fn data_key(dir: &Path) -> String {
        let keys = key_file(dir);
        let kept = keys.as_object().and_then(|keys| keys.values().next()).expect("a key").clone();
        kept.as_object().and_then(|kept| kept.values().next()?.as_str()).expect("text").to_owned()
    }

    fn key() -> UnlockKey {
        UnlockKey::from_entropy([1; 32])
    }

    fn other() -> UnlockKey {
        UnlockKey::from_entropy([2; 32])
    }
}
