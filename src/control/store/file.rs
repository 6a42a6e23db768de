//! The state file as a file: its lock, its making, its header.
//!
//! Only the holder of the directory's lock touches the file, and only [`create`] makes one: whole,
//! under another name, renamed into place once it is on the disk.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Database, DatabaseError};

use super::{Reading, StoreError, Table, Writing};

/// The name of the state file in the state directory.
pub const STATE_FILE: &str = "overlayd.redb";
/// The name of the lock file beside it; it names the agent that holds it.
pub const LOCK_FILE: &str = "overlayd.lock";

/// Takes the state directory, making it (0700) if need be, for as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| StoreError::io(dir, "make state directory", e))?;
    let path = dir.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| StoreError::io(&path, "open lock file", e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let pid = file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
            return Err(StoreError::InUse { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(e)) => return Err(StoreError::io(&path, "lock", e)),
    }
    // The pid is for the message alone, so a full disk does not keep the agent from starting.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Whether there is anything of that name, a dangling link among others.
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StoreError::io(path, "look for state file", e)),
    }
}

/// Makes an empty state file; it is there whole or not at all.
pub(super) fn create(dir: &Path, path: &Path) -> Result<(), StoreError> {
    let draft = dir.join(DRAFT_FILE);
    let made = write_draft(&draft).and_then(|()| {
        fs::rename(&draft, path).map_err(|e| StoreError::io(path, "make state file", e))?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| StoreError::io(dir, "write state directory", e))
    });
    if made.is_err() {
        // The next attempt removes it too.
        let _ = fs::remove_file(&draft);
    }
    made
}

fn write_draft(draft: &Path) -> Result<(), StoreError> {
    match fs::remove_file(draft) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(StoreError::io(draft, "remove", e)),
    }
    let failed = |e| StoreError::io(draft, "make state file", e);
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(draft).map_err(failed)?;
    let database = file.try_clone().map_err(failed).and_then(|file| {
        FileBackend::new(file)
            .and_then(|backend| redb::Builder::new().create_with_backend(backend))
            .map_err(|e| StoreError::redb(draft, "make state file", e))
    })?;
    commit(draft, &database, |writing| {
        writing.put(&HEADER, "magic", &MAGIC.into())?;
        writing.put(&HEADER, "format", &FORMAT.into())
    })?;
    database.close().map_err(|e| StoreError::redb(draft, "make state file", e))?;
    file.sync_all().map_err(failed)
}

/// Opens the state file, checking the checksum of every page and the header.
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    close_to_others(path)?;
    let database = redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .open(path)
        .map_err(|e| {
            if let DatabaseError::UpgradeRequired(version) = e {
                let why = format!("a redb file of the unknown version {version}");
                return StoreError::Foreign { file: path.to_owned(), why };
            }
            refine_truncation(path, StoreError::redb(path, "open", e))
        })?;
    let foreign = |why: &str| StoreError::Foreign { file: path.to_owned(), why: why.to_owned() };
    let transaction =
        redb::ReadableDatabase::begin_read(&database).map_err(|e| StoreError::redb(path, "open", e))?;
    let reading = Reading { file: path, transaction };
    if reading.get(&HEADER, "magic")?.as_ref().and_then(serde_json::Value::as_str) != Some(MAGIC) {
        return Err(foreign("a redb file of another program"));
    }
    let format = reading.get(&HEADER, "format")?.as_ref().and_then(serde_json::Value::as_u64);
    let found = format.and_then(|f| u32::try_from(f).ok()).ok_or_else(|| foreign("it names no format"))?;
    if found > FORMAT {
        return Err(StoreError::Newer { file: path.to_owned(), found, known: FORMAT });
    }
    drop(reading);
    Ok(database)
}

/// A file restored from a backup may be open to everybody, and it holds private keys.
fn close_to_others(path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io(path, "open state file", e);
    let mut permissions = fs::metadata(path).map_err(failed)?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o600);
        fs::set_permissions(path, permissions).map_err(failed)?;
    }
    Ok(())
}

/// Runs `write` in one transaction and makes it durable.
pub(super) fn commit<T>(
    path: &Path,
    database: &Database,
    write: impl FnOnce(&Writing<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let writing = Writing::begin(path, database)?;
    let result = write(&writing)?;
    writing.commit()?;
    Ok(result)
}

/// A state file cut off within its first page begins as ours: damaged, not foreign.
fn refine_truncation(path: &Path, error: StoreError) -> StoreError {
    let StoreError::Foreign { file, why } = error else { return error };
    let mut start = Vec::new();
    let read = File::open(path).and_then(|f| f.take(REDB_MAGIC.len() as u64).read_to_end(&mut start));
    if read.is_ok() && REDB_MAGIC.starts_with(&start) {
        return StoreError::Damaged { file, why: "it ends too early".to_owned() };
    }
    StoreError::Foreign { file, why }
}

const DRAFT_FILE: &str = "overlayd.redb.new";
pub(super) const HEADER_TABLE: &str = "header";
const HEADER: Table<serde_json::Value> = Table::new(HEADER_TABLE);
const MAGIC: &str = "overlayd state";
/// The format that we write; it grows when an older overlayd could no longer read the file.
const FORMAT: u32 = 1;
/// The first bytes of every redb file (redb's docs/design.md, "Database header").
const REDB_MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// The state of 10,000 endpoints takes a few MiB; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 32 * 1024 * 1024;
