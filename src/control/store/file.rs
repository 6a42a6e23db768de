//! The state file as a file: its lock, its making, its header.
//!
//! Only the holder of the directory's lock touches the file. One that is made, and one that takes the
//! place of another, is written whole under another name and renamed once it is on the disk. The header
//! alone is in clear: it says what the file is and which key opens the rest.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, TableDefinition};

use super::contents::{self, RowInClear};
use super::key_file::{KEY_FILE, Kept, KeyFile, NoKey};
use super::seal::{DataKey, KeyId, Seal};
use super::{StoreError, Writing};
use crate::file_lock::{FileLock, LockError};
use crate::unlock_key::UnlockKey;

/// The name of the state file in the state directory.
pub const STATE_FILE: &str = "overlayd.redb";
/// The name of the lock file beside it; it names the agent that holds it.
pub const LOCK_FILE: &str = "overlayd.lock";

/// Takes the state directory, making it (0700) if need be.
pub(super) fn lock(dir: &Path) -> Result<FileLock, StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| StoreError::io(dir, "make state directory", e))?;
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| StoreError::io(&path, "open lock file", e))?;
    FileLock::take(file).map_err(|refused| match refused {
        LockError::Held(pid) => StoreError::InUse { dir: dir.to_owned(), pid },
        LockError::Failed(e) => StoreError::io(&path, "lock", e),
    })
}

/// Whether there is anything of that name, a dangling link among others.
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StoreError::io(path, "look for state file", e)),
    }
}

/// Makes an empty state file under a key of its own; it is there whole or not at all.
pub(super) fn create(dir: &Path) -> Result<(), StoreError> {
    write_sealed(dir, None, None, &[])
}

/// Opens the state file of `dir`, checking the checksum of every page and the header. One that was written
/// before rows were sealed is replaced by one in which they are.
pub(super) fn open(dir: &Path, unlock: Option<&UnlockKey>) -> Result<(Database, Seal), StoreError> {
    let path = dir.join(STATE_FILE);
    let (database, header) = open_database(&path)?;
    let Some(id) = header.key else {
        let rows = contents::unsealed(&path, &database)?;
        drop(database);
        write_sealed(dir, None, None, &rows)?;
        tracing::info!(file = %path.display(), "the state file is sealed from now on");
        return open(dir, unlock);
    };
    let (mut keys, key_file) = (KeyFile::read(dir)?, dir.join(KEY_FILE));
    let Some(kept) = keys.get(&id) else { return Err(StoreError::KeyMissing { file: path, key_file }) };
    let seal = match kept.key(&id, unlock) {
        Ok(key) => key.seal(),
        Err(NoKey::Locked) => return Err(StoreError::Locked { file: path }),
        Err(NoKey::WrongUnlockKey) => return Err(StoreError::WrongUnlockKey { file: path }),
        Err(NoKey::Damaged) => {
            return Err(StoreError::KeyFileDamaged { file: key_file, why: "a key is not itself".to_owned() });
        }
    };
    if header.replaces.is_some_and(|replaced| keys.forget(&replaced)) {
        // It opens nothing any more. Beside a full disk it stays until the next time.
        let _ = keys.write(dir);
    }
    Ok((database, seal))
}

/// Makes `name` in `dir` hold `bytes` and nothing else, for the owner alone; at every moment it is
/// there as it was or as it will be.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (path, draft) = (dir.join(name), dir.join(format!("{name}.new")));
    let failed = |e| StoreError::io(&path, "write", e);
    let replaced = new_file(&draft)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed))
        .and_then(|()| rename(dir, &draft, &path));
    if replaced.is_err() {
        // The next attempt removes it too.
        let _ = fs::remove_file(&draft);
    }
    replaced
}

/// Where files are written before they take the place of others; only while one is.
pub(super) fn drafts(dir: &Path) -> [PathBuf; 2] {
    [dir.join(DRAFT_FILE), dir.join(format!("{KEY_FILE}.new"))]
}

/// Puts a state file of the same rows under a new key in the place of the one that there is.
pub(super) fn seal_anew(
    dir: &Path,
    unlock: Option<&UnlockKey>,
    (database, seal): &(Database, Seal),
    keep: Keep,
) -> Result<(), StoreError> {
    let path = dir.join(STATE_FILE);
    let replaced = Header::read(&path, database)?.key;
    let rows = match keep {
        Keep::Everything => contents::sealed(&path, database, seal)?,
        Keep::Nothing => Vec::new(),
    };
    write_sealed(dir, replaced.as_ref(), unlock, &rows)
}

/// Makes a state file of `rows` under a new key, in the place of the one that there is under the key
/// `replaced`, if any.
fn write_sealed(
    dir: &Path,
    replaced: Option<&KeyId>,
    unlock: Option<&UnlockKey>,
    rows: &[RowInClear],
) -> Result<(), StoreError> {
    let key = DataKey::generate();
    let id = key.id();
    let mut keys = KeyFile::read(dir)?;
    keys.add(&id, Kept::keep(&key, unlock));
    // Before the file that cannot be read without it.
    keys.write(dir)?;
    let (path, draft) = (dir.join(STATE_FILE), dir.join(DRAFT_FILE));
    let header = Header { format: FORMAT, key: Some(id), replaces: replaced.cloned() };
    if let Err(refused) = write_draft(&draft, &header, &key.seal(), rows) {
        // The next attempt removes the draft too, and a key that opens nothing does no harm.
        let _ = fs::remove_file(&draft);
        keys.forget(&key.id());
        let _ = keys.write(dir);
        return Err(refused);
    }
    rename(dir, &draft, &path)
}

fn write_draft(draft: &Path, header: &Header, seal: &Seal, rows: &[RowInClear]) -> Result<(), StoreError> {
    let failed = |e| StoreError::io(draft, "make state file", e);
    let file = new_file(draft)?;
    let database = file.try_clone().map_err(failed).and_then(|file| {
        FileBackend::new(file)
            .and_then(|backend| redb::Builder::new().create_with_backend(backend))
            .map_err(|e| StoreError::redb(draft, "make state file", e))
    })?;
    commit(draft, &database, seal, |writing| {
        header.write(writing)?;
        rows.iter().try_for_each(|row| writing.put_json(&row.table, &row.key, &row.json))
    })?;
    database.close().map_err(|e| StoreError::redb(draft, "make state file", e))?;
    file.sync_all().map_err(failed)
}

/// A new and empty file, in the place of what an interrupted attempt has left.
fn new_file(path: &Path) -> Result<File, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(StoreError::io(path, "remove", e)),
    }
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|e| StoreError::io(path, "make", e))
}

fn rename(dir: &Path, draft: &Path, path: &Path) -> Result<(), StoreError> {
    fs::rename(draft, path).map_err(|e| StoreError::io(path, "make", e))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| StoreError::io(dir, "write state directory", e))
}

fn open_database(path: &Path) -> Result<(Database, Header), StoreError> {
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
    let header = Header::read(path, &database)?;
    Ok((database, header))
}

/// A file restored from a backup may be open to everybody, and it holds private keys.
pub(super) fn close_to_others(path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io(path, "open", e);
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
    seal: &Seal,
    write: impl FnOnce(&Writing<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let writing = Writing::begin(path, database, seal)?;
    let result = write(&writing)?;
    writing.commit()?;
    Ok(result)
}

/// What a file that takes another's place takes over from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Everything,
    Nothing,
}

/// What a state file says of itself.
struct Header {
    format: u32,
    /// What its rows are sealed with; `None` before they were.
    key: Option<KeyId>,
    /// The key of the file whose place it took, which is of no use any more.
    replaces: Option<KeyId>,
}

impl Header {
    fn read(path: &Path, database: &Database) -> Result<Self, StoreError> {
        let failed = |e: redb::Error| StoreError::redb(path, "open", e);
        let foreign = |why: &str| StoreError::Foreign { file: path.to_owned(), why: why.to_owned() };
        let transaction = redb::ReadableDatabase::begin_read(database).map_err(|e| failed(e.into()))?;
        let rows = match transaction.open_table(HEADER) {
            Ok(rows) => rows,
            Err(redb::TableError::TableDoesNotExist(_)) => {
                return Err(foreign("a redb file of another program"));
            }
            Err(e) => return Err(failed(e.into())),
        };
        let get = |key: &str| -> Result<Option<serde_json::Value>, StoreError> {
            let row = rows.get(key).map_err(|e| failed(e.into()))?;
            Ok(row.and_then(|row| serde_json::from_slice(row.value()).ok()))
        };
        if get("magic")?.as_ref().and_then(serde_json::Value::as_str) != Some(MAGIC) {
            return Err(foreign("a redb file of another program"));
        }
        let format = get("format")?.as_ref().and_then(serde_json::Value::as_u64);
        let format =
            format.and_then(|f| u32::try_from(f).ok()).ok_or_else(|| foreign("it names no format"))?;
        if format > FORMAT {
            return Err(StoreError::Newer { file: path.to_owned(), found: format, known: FORMAT });
        }
        let key = |name: &str| Ok::<_, StoreError>(get(name)?.and_then(|id| serde_json::from_value(id).ok()));
        let header = Self { format, key: key("key")?, replaces: key("replaces")? };
        if header.format == UNSEALED_FORMAT || header.key.is_some() {
            Ok(header)
        } else {
            Err(StoreError::Damaged { file: path.to_owned(), why: "it names no key".to_owned() })
        }
    }

    fn write(&self, writing: &Writing<'_>) -> Result<(), StoreError> {
        let failed = |e: redb::Error| StoreError::redb(writing.file, "make state file", e);
        let mut rows = writing.transaction.open_table(HEADER).map_err(|e| failed(e.into()))?;
        let mut put = |key: &str, value: serde_json::Value| {
            rows.insert(key, value.to_string().as_bytes()).map(drop).map_err(|e| failed(e.into()))
        };
        put("magic", MAGIC.into())?;
        put("format", self.format.into())?;
        for (name, id) in [("key", &self.key), ("replaces", &self.replaces)] {
            if let Some(id) = id {
                put(name, id.to_string().into())?;
            }
        }
        Ok(())
    }
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
const HEADER: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new(HEADER_TABLE);
const MAGIC: &str = "overlayd state";
/// The format that we write; it grows when an older overlayd could no longer read the file.
const FORMAT: u32 = 2;
/// The last format in which rows were not sealed.
const UNSEALED_FORMAT: u32 = 1;
/// The first bytes of every redb file (redb's docs/design.md, "Database header").
const REDB_MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// The state of 10,000 endpoints takes a few MiB; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 32 * 1024 * 1024;
