//! A lock on a file (`flock(2)`), held for as long as the value lives; the file names its holder.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

/// A file that this process has locked.
///
/// Closing the file would not do: a child between fork and exec has the same open file, and the lock is
/// that file's. So it is given up by name.
#[derive(Debug)]
pub struct FileLock(File);

/// Why a file is not locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it locked, whose id is this one by what it wrote there.
    Held(Option<u32>),
    /// The file system takes no locks, or the like.
    Failed(io::Error),
}

impl FileLock {
    /// Locks a file that is open for reading and writing, unless somebody else has it locked. A process that
    /// is ending still has, for as long as the kernel takes to close what it had open: that is waited for.
    ///
    /// # Errors
    /// When it is locked, or cannot be.
    pub fn take(mut file: File) -> Result<Self, LockError> {
        let mut looks = 0;
        while let Err(refused) = file.try_lock() {
            if let std::fs::TryLockError::Error(error) = refused {
                return Err(LockError::Failed(error));
            }
            let pid = holder(&file);
            if looks == MOST_LOOKS || !pid.is_some_and(is_ending) {
                return Err(LockError::Held(pid));
            }
            looks += 1;
            thread::sleep(BETWEEN_LOOKS);
        }
        // The pid is for others' messages, so a full disk does not keep this process from going on.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self(file))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // One that stays locked is free once its last holder has closed it.
        let _ = self.0.unlock();
    }
}

fn holder(file: &File) -> Option<u32> {
    let mut text = [0; 16];
    let length = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
}

/// Whether a process has no program any more. The kernel takes that away before it closes the files.
fn is_ending(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
/// Ten seconds: a thousand TAP devices are closed in some.
const MOST_LOOKS: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_of_a_process_that_is_ending_is_waited_for_and_that_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let open =
            || File::options().create(true).read(true).write(true).truncate(false).open(&path).unwrap();
        let held = FileLock::take(open()).unwrap();

        let refused = FileLock::take(open()).unwrap_err();
        assert!(matches!(refused, LockError::Held(Some(pid)) if pid == std::process::id()), "{refused:?}");

        // No process has this id, so it looks as one that is ending.
        std::fs::write(&path, format!("{}\n", u32::MAX)).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| FileLock::take(open()).unwrap());
            thread::sleep(5 * BETWEEN_LOOKS);
            assert!(!waiting.is_finished());
            drop(held);
            drop(waiting.join().unwrap());
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()), "who had it last is named");
    }
}
