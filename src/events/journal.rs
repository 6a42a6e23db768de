//! Events on the disk: one JSON object a line, in two files of bounded size in the state directory.
//!
//! The newer one is appended to; when it is full it takes the older one's place. A line that a crash or a
//! full disk cut off is taken back. Lines are not synchronized one by one: a machine that loses its power
//! may lose the last seconds of them, an agent that is killed loses none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Recorded, Told};

/// The files, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    file: File,
    /// Bytes of whole lines in the newer file.
    size: u64,
    /// The number of the next event to write.
    next: u64,
}

impl Journal {
    /// Opens the files of `dir`; gives the newest events in them too.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Vec<Recorded>)> {
        let (file, size) = open_newer(dir)?;
        let lines = tail(&dir.join(OLDER))? + &tail(&dir.join(NEWER))?;
        // One of a newer version is not understood, but has had its number.
        let next = lines.lines().filter_map(number_of).max().map_or(1, |last| last + 1);
        Ok((Self { dir: dir.to_owned(), file, size, next }, events_in([&lines])))
    }

    /// The number of the next event to write.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Writes lines; all of them, or the file is as before.
    pub(super) fn append(&mut self, batch: &[Told]) -> io::Result<()> {
        if self.size >= LARGEST_FILE {
            let (newer, older) = (self.dir.join(NEWER), self.dir.join(OLDER));
            // Where the next one could not be opened the last time, the full one has its place already.
            if fs::metadata(&newer).is_ok_and(|newer| newer.len() >= LARGEST_FILE) {
                fs::rename(&newer, &older).map_err(|error| naming(&older, "write", &error))?;
            }
            (self.file, self.size) = open_newer(&self.dir)?;
        }
        let mut lines = Vec::new();
        for told in batch {
            serde_json::to_writer(&mut lines, told)?;
            lines.push(b'\n');
        }
        if let Err(error) = self.file.write_all(&lines) {
            // Where even this fails, the next start takes the torn line back.
            let _taken_back = self.file.set_len(self.size);
            return Err(naming(&self.dir.join(NEWER), "write", &error));
        }
        self.size += lines.len() as u64;
        if let Some(Told::Event(last)) = batch.iter().rfind(|told| matches!(told, Told::Event(_))) {
            self.next = last.number + 1;
        }
        Ok(())
    }
}

/// The events in the files of `dir`, oldest first; lines that are none of ours are passed over.
pub(super) fn read(dir: &Path) -> io::Result<Vec<Recorded>> {
    // The newer one first: were the files to change places meanwhile, it would be read twice, and not
    // passed over.
    let newer = text(&dir.join(NEWER), 0)?;
    let older = text(&dir.join(OLDER), 0)?;
    Ok(events_in([&older, &newer]))
}

fn events_in<const N: usize>(texts: [&str; N]) -> Vec<Recorded> {
    let lines = texts.into_iter().flat_map(str::lines);
    let mut events: Vec<Recorded> =
        lines.filter_map(|line| serde_json::from_str::<Recorded>(line).ok()).collect();
    events.sort_by_key(|recorded| recorded.number);
    events.dedup_by_key(|recorded| recorded.number);
    events
}

/// The number of the event in a line, whether or not it is one that we know.
fn number_of(line: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    Some(serde_json::from_str::<Numbered>(line).ok()?.seq)
}

/// The last lines of a file; the first of them may have lost its beginning.
fn tail(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
    text(path, size.saturating_sub(TAIL))
}

fn text(path: &Path, from: u64) -> io::Result<String> {
    let failed = |error: io::Error| naming(path, "read", &error);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from)).map_err(failed)?;
    file.take(LARGEST_READ).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens the newer file at the end of its last whole line.
fn open_newer(dir: &Path) -> io::Result<(File, u64)> {
    let path = dir.join(NEWER);
    let failed = |error: io::Error| naming(&path, "write", &error);
    let mut options = OpenOptions::new();
    let options = options.read(true).append(true).create(true).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(failed)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |place| place + 1);
    if whole < bytes.len() {
        file.set_len(whole as u64).map_err(failed)?;
    }
    Ok((file, whole as u64))
}

fn naming(path: &Path, doing: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {doing} {}: {error}", path.display()))
}

/// The names of the files in the state directory, of which neither need be there.
pub const FILES: [&str; 2] = [NEWER, OLDER];

const NEWER: &str = "events.jsonl";
const OLDER: &str = "events.1.jsonl";
/// After which the newer file is full; a batch more is written at most.
const LARGEST_FILE: u64 = 4 << 20;
/// What is larger is not ours.
const LARGEST_READ: u64 = 2 * LARGEST_FILE;
/// Bytes of each file that are looked at when the agent starts.
const TAIL: u64 = 512 << 10;
