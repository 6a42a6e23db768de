//! The file of a backup: there whole or not at all, and for its owner alone.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use super::CliError;
use crate::api::types::{BACKUP_BEGINNING, MOST_BACKUP_BYTES};

/// Refuses to replace a file unless `force` says so.
pub(super) fn refuse_existing(path: &Path, force: bool) -> Result<(), CliError> {
    match fs::symlink_metadata(path) {
        Ok(_) if !force => Err(CliError::FileExists { file: path.to_owned() }),
        Ok(found) if found.is_dir() => Err(failed(path, "write")(io::ErrorKind::IsADirectory.into())),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(path, "write")(e)),
    }
}

/// Makes `path` hold `bytes`.
pub(super) fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), CliError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    // It is made with mode 0600, and goes away when it is not kept.
    let written =
        tempfile::Builder::new().prefix(".overlayd-backup-").tempfile_in(dir).and_then(|mut draft| {
            draft.write_all(bytes)?;
            draft.as_file().sync_all()?;
            let kept = if force { draft.persist(path) } else { draft.persist_noclobber(path) };
            kept.map_err(|refused| refused.error)?;
            File::open(dir)?.sync_all()
        });
    written.map_err(|e| {
        if e.kind() == io::ErrorKind::AlreadyExists {
            return CliError::FileExists { file: path.to_owned() };
        }
        failed(path, "write")(e)
    })
}

/// The content of a backup file, if it begins as one and is not longer than any.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let read = File::open(path).and_then(|file| content(file, MOST_BACKUP_BYTES));
    let content = read.map_err(failed(path, "read"))?;
    content.map_err(|why| CliError::NoBackup { file: path.to_owned(), why })
}

/// What is read, at most so many bytes; or why it is no backup.
fn content(mut from: impl Read, most_bytes: usize) -> io::Result<Result<Vec<u8>, &'static str>> {
    let mut content = Vec::new();
    let beginning = BACKUP_BEGINNING.len();
    from.by_ref().take(beginning as u64).read_to_end(&mut content)?;
    if content != BACKUP_BEGINNING {
        return Ok(Err("it does not begin as one"));
    }
    from.take((most_bytes - beginning + 1) as u64).read_to_end(&mut content)?;
    Ok(if content.len() > most_bytes { Err("it is longer than any") } else { Ok(content) })
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> CliError {
    let file = path.to_owned();
    move |source| CliError::BackupFile { doing, file, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn file_is_for_its_owner_alone_and_replaced_only_by_force() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("backup");
        refuse_existing(&path, false).expect("nothing is there");
        write(&path, FIRST, false).expect("written");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert!(matches!(refuse_existing(&path, false), Err(CliError::FileExists { .. })));
        assert!(matches!(write(&path, SECOND, false), Err(CliError::FileExists { .. })));
        assert_eq!(read(&path).expect("a file"), FIRST);
        refuse_existing(&path, true).expect("by force");
        write(&path, SECOND, true).expect("written");
        assert_eq!(read(&path).expect("a file"), SECOND);
        assert!(refuse_existing(dir.path(), true).is_err(), "a directory is no file");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1, "a draft is left");
    }

    #[test]
    fn what_does_not_begin_as_a_backup_or_never_ends_is_not_read_to_its_end() {
        for endless in ["/dev/zero", "/dev/null"] {
            let refused = read(Path::new(endless)).expect_err("no backup").to_string();
            let said = format!("{endless} is not a backup of overlayd: it does not begin as one; ");
            assert!(refused.starts_with(&said), "{refused}");
        }
        let endless = || FIRST.chain(io::repeat(0));
        assert_eq!(content(endless(), 1000).expect("read"), Err("it is longer than any"));
        assert_eq!(content(endless().take(1000), 1000).expect("read").expect("a backup").len(), 1000);
        assert!(matches!(read(Path::new("/dev")), Err(CliError::BackupFile { doing: "read", .. })));
    }

    const FIRST: &[u8] = b"overlayd backup\nfirst";
    const SECOND: &[u8] = b"overlayd backup\nsecond";
}
