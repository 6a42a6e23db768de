//! The file of a backup: there whole or not at all, and for its owner alone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::CliError;

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

/// The content of a backup file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(failed(path, "read"))
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
        write(&path, b"first", false).expect("written");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert!(matches!(refuse_existing(&path, false), Err(CliError::FileExists { .. })));
        assert!(matches!(write(&path, b"second", false), Err(CliError::FileExists { .. })));
        assert_eq!(read(&path).expect("a file"), b"first");
        refuse_existing(&path, true).expect("by force");
        write(&path, b"second", true).expect("written");
        assert_eq!(read(&path).expect("a file"), b"second");
        assert!(refuse_existing(dir.path(), true).is_err(), "a directory is no file");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1, "a draft is left");
    }
}
