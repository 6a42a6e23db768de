//! A lock on a file (`flock(2)`), held for as long as the value lives.

use std::fs::{File, TryLockError};

/// A file that this process has locked.
///
/// Closing the file would not do: a child between fork and exec has the same open file, and the lock is
/// that file's. So it is given up by name.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks a file unless somebody else has it locked.
    ///
    /// # Errors
    /// When somebody has, or the file system takes no locks.
    pub fn take(file: File) -> Result<Self, TryLockError> {
        file.try_lock()?;
        Ok(Self(file))
    }

    /// The file that is locked.
    pub const fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // One that stays locked is free once its last holder has closed it.
        let _ = self.0.unlock();
    }
}
