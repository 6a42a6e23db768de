//! The unix socket: made so that nobody else could ever connect to it, and its callers' identity.
//!
//! The file is bound and given its owner, group and mode under a temporary name, then renamed into
//! place: there is no moment when others could connect. A lock file beside it, held while the agent
//! lives, decides between two agents; a socket file that nobody answers on is a leftover of a
//! killed agent and is replaced.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::file_lock::{FileLock, LockError};

/// The agent's listening socket; removes its file when dropped.
#[derive(Debug)]
pub struct ApiListener {
    listener: UnixListener,
    path: PathBuf,
    /// `st_dev` and `st_ino` of the socket file: a file of someone else is not removed.
    file: (u64, u64),
    allowed: Allowed,
    _lock: FileLock,
}

impl ApiListener {
    /// Listens at `path`, for root, the agent's own user and `group` (by name, where it exists).
    /// Call it within a tokio runtime.
    ///
    /// # Errors
    /// When another agent has the socket, something else than a socket is at the path, or a system
    /// call fails.
    pub fn bind(path: &Path, group: &str) -> Result<Self, SocketError> {
        Self::bind_for(path, Some(group))
    }

    /// As [`Self::bind`], for root and the agent's own user alone.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn bind_private(path: &Path) -> Result<Self, SocketError> {
        Self::bind_for(path, None)
    }

    fn bind_for(path: &Path, group: Option<&str>) -> Result<Self, SocketError> {
        let lock = lock_beside(path)?;
        remove_leftover(path)?;
        let failed = |doing| move |source| SocketError::Failed { path: path.to_owned(), doing, source };
        let unfinished = with_suffix(path, "~");
        match fs::remove_file(&unfinished) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("remove what is beside")(e)),
        }
        let listener = UnixListener::bind(&unfinished).map_err(failed("bind"))?;
        let group = restrict(&unfinished, group).map_err(failed("set the owner and mode of"))?;
        fs::rename(&unfinished, path).map_err(failed("rename into"))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at"))?;
        let own = rustix::process::geteuid().as_raw();
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            allowed: Allowed { own, group },
            _lock: lock,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a group, and not root alone, may connect.
    pub const fn has_group(&self) -> bool {
        self.allowed.group.is_some()
    }

    /// The next caller.
    pub(super) async fn next(&mut self) -> io::Result<(UnixStream, Caller)> {
        let (stream, _) = self.listener.accept().await?;
        let credentials = stream.peer_cred()?;
        let caller = Caller {
            uid: credentials.uid(),
            pid: credentials.pid(),
            allowed: self.allowed.admits(&Identity {
                uid: credentials.uid(),
                gid: credentials.gid(),
                pid: credentials.pid(),
            }),
        };
        Ok((stream, caller))
    }
}

impl Drop for ApiListener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket file stays behind");
        }
    }
}

/// Why the agent has no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Someone answers there, or holds the lock.
    #[error(
        "another agent is listening on {}; stop it, or give this one a --socket and --state-dir of its own",
        .path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket.
    #[error("{} exists and is not a socket; remove it or choose another --socket", .path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// `sun_path` of `sockaddr_un` is full.
    #[error("the socket path {} is too long: at most {MAX_PATH_BYTES} bytes", .path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// A system call.
    #[error("cannot {doing} the socket {}", .path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Who is at the other end of a connection, by the kernel's word (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) pid: Option<i32>,
    pub(super) allowed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Allowed {
    own: u32,
    group: Option<u32>,
}

struct Identity {
    uid: u32,
    gid: u32,
    pid: Option<i32>,
}

impl Allowed {
    fn admits(self, caller: &Identity) -> bool {
        caller.uid == 0
            || caller.uid == self.own
            || self.group.is_some_and(|group| {
                caller.gid == group
                    || caller.pid.is_some_and(|pid| {
                        fs::read_to_string(format!("/proc/{pid}/status"))
                            .is_ok_and(|status| has_group(&status, caller.uid, group))
                    })
            })
    }
}

/// Whether `/proc/PID/status` is that of a process of `uid` with the supplementary group.
fn has_group(status: &str, uid: u32, group: u32) -> bool {
    let numbers = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().split_ascii_whitespace().filter_map(|n| n.parse::<u32>().ok())
    };
    // The second number is the effective uid, which is what SO_PEERCRED reports.
    numbers("Uid:").nth(1) == Some(uid) && numbers("Groups:").any(|g| g == group)
}

fn lock_beside(path: &Path) -> Result<FileLock, SocketError> {
    let failed = |doing| move |source| SocketError::Failed { path: path.to_owned(), doing, source };
    if path.as_os_str().len() > MAX_PATH_BYTES {
        return Err(SocketError::TooLong { path: path.to_owned() });
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    let file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(with_suffix(path, ".lock"))
        .map_err(failed("lock"))?;
    FileLock::take(file).map_err(|refused| match refused {
        LockError::Held(_) => SocketError::InUse { path: path.to_owned() },
        LockError::Failed(e) => failed("lock")(e),
    })
}

fn remove_leftover(path: &Path) -> Result<(), SocketError> {
    let failed = |doing| move |source| SocketError::Failed { path: path.to_owned(), doing, source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at")(e)),
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the leftover of"))
        }
        Err(e) => Err(failed("probe")(e)),
    }
}

/// Gives the file to the group where there is one; answers with the group that may connect.
fn restrict(socket: &Path, group: Option<&str>) -> io::Result<Option<u32>> {
    let id = group.and_then(|group| group_id(&fs::read_to_string(GROUPS).unwrap_or_default(), group));
    let group = match id {
        Some(gid) => match std::os::unix::fs::chown(socket, None, Some(gid)) {
            Ok(()) => Some(gid),
            // In a user namespace the group may be out of reach (EINVAL, EPERM): then root alone.
            Err(error) => {
                tracing::warn!(group, %error, "the socket is for root alone: its group cannot be set");
                None
            }
        },
        None => None,
    };
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(socket, fs::Permissions::from_mode(mode))?;
    Ok(group)
}

/// The id of a group in the format of group(5).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// `sun_path` has 108 bytes with its final zero (unix(7)); one more is the temporary name's.
const MAX_PATH_BYTES: usize = 106;
const GROUPS: &str = "/etc/group";

#[cfg(test)]
mod tests {
    use super::*;

    const NO_GROUP: &str = "no-such-group-here";

    #[tokio::test]
    async fn only_the_owner_can_open_the_socket_and_its_file_goes_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/agent.sock");
        let listener = ApiListener::bind(&path, NO_GROUP).expect("a socket");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert!(!listener.has_group());
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_group_of_the_system_gets_the_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.sock");
        // The caller's own group is the one that every user may give a file to.
        let own = rustix::process::getegid().as_raw();
        let groups = fs::read_to_string(GROUPS).expect("/etc/group");
        let name = groups
            .lines()
            .find(|line| line.split(':').nth(2) == Some(own.to_string().as_str()))
            .and_then(|line| line.split(':').next())
            .expect("the own group has a name");
        let listener = ApiListener::bind(&path, name).expect("a socket");
        let metadata = fs::metadata(&path).expect("a file");
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o660, own));
        assert!(listener.has_group());
    }

    #[tokio::test]
    async fn a_second_agent_is_refused_and_a_leftover_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a leftover"));
        let first = ApiListener::bind(&path, NO_GROUP).expect("the leftover is replaced");
        let error = ApiListener::bind(&path, NO_GROUP).expect_err("two agents on one socket");
        assert!(error.to_string().contains("another agent is listening on"), "{error}");
        drop(first);
        ApiListener::bind(&path, NO_GROUP).expect("free again");
    }

    #[tokio::test]
    async fn a_stranger_that_answers_on_the_socket_is_not_pushed_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.sock");
        let _stranger = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let error = ApiListener::bind(&path, NO_GROUP).expect_err("a live socket was replaced");
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.sock");
        fs::write(&path, "precious").expect("a file");
        let error = ApiListener::bind(&path, NO_GROUP).expect_err("a file was replaced");
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(ApiListener::bind(&long, NO_GROUP), Err(SocketError::TooLong { .. })));
    }

    #[test]
    fn root_the_own_user_and_the_group_are_admitted_and_nobody_else() {
        let allowed = Allowed { own: 1000, group: Some(77) };
        let identity = |uid, gid| Identity { uid, gid, pid: None };
        assert!(allowed.admits(&identity(0, 0)));
        assert!(allowed.admits(&identity(1000, 1000)));
        assert!(allowed.admits(&identity(1001, 77)));
        assert!(!allowed.admits(&identity(1001, 1001)));
        assert!(!Allowed { own: 1000, group: None }.admits(&identity(1001, 77)));
    }

    #[test]
    fn supplementary_groups_count_only_for_the_same_user() {
        let status =
            "Name:\tsh\nUid:\t1001\t1001\t1001\t1001\nGid:\t1001\t1001\t1001\t1001\nGroups:\t27 77 \n";
        assert!(has_group(status, 1001, 77));
        assert!(!has_group(status, 1001, 7));
        assert!(!has_group(status, 1002, 77));
        assert!(!has_group("", 1001, 77));
    }

    #[test]
    fn group_ids_are_read_by_exact_name() {
        let groups = "root:x:0:\noverlayd-old:x:5:\noverlayd:x:997:ann,bob\n";
        assert_eq!(group_id(groups, "overlayd"), Some(997));
        assert_eq!(group_id(groups, "overlay"), None);
    }
}
