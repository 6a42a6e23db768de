//! Network namespaces: found by path, name or process, told apart by inode, entered by a thread
//! that ends there (setns(2)).
//!
//! No thread of the program ever stays in another namespace: [`NetNs::run_in`] uses a fresh one.
//! [`enter_private`] is for the laboratory and the demo, which give the whole process namespaces of
//! its own before its first thread starts.

#![expect(unsafe_code, reason = "NS_GET_NSTYPE has no wrapper and unshare(2) only an unsafe one")]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use serde::{Deserialize, Serialize};

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    id: NetNsId,
}

impl NetNs {
    /// Opens the namespace at `path` (`/proc/PID/ns/net` or a bind mount of one).
    ///
    /// # Errors
    /// [`NetNsError::NotFound`] and [`NetNsError::NotANamespace`] among others.
    pub fn open(path: &Path) -> Result<Self, NetNsError> {
        // Without NONBLOCK, a path that is a FIFO would hang the caller.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| NetNsError::opening(path, error.into()))?;
        let file = File::from(file);
        // Only files of nsfs are asked: to a device the number could mean anything.
        if !rustix::fs::fstatfs(&file).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(NSFS_MAGIC)) {
            return Err(NetNsError::NotANamespace { path: path.to_owned() });
        }
        // SAFETY: NS_GET_NSTYPE takes no argument and only returns a number.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NetNsError::NotANamespace { path: path.to_owned() });
        }
        let metadata = file.metadata().map_err(|source| NetNsError::opening(path, source))?;
        Ok(Self { fd: file.into(), id: NetNsId::of(&metadata) })
    }

    /// Opens what an operator wrote: a path (anything with `/`), a process id, or a name as
    /// `ip netns` knows it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn resolve(reference: &str) -> Result<Self, NetNsError> {
        Self::open(&Self::path_of(reference))
    }

    /// The path that [`Self::resolve`] opens.
    pub fn path_of(reference: &str) -> PathBuf {
        if reference.contains('/') {
            PathBuf::from(reference)
        } else if let Ok(process) = reference.parse::<u32>() {
            PathBuf::from(format!("/proc/{process}/ns/net"))
        } else {
            Path::new(NAMED).join(reference)
        }
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a new namespace, in which `lo` is down; it lives as long as something refers to it.
    ///
    /// # Errors
    /// [`NetNsError::NotPermitted`] without CAP_SYS_ADMIN.
    pub fn create() -> Result<Self, NetNsError> {
        on_own_thread(|| {
            unshare(UnshareFlags::NEWNET).map_err(|error| NetNsError::unsharing(error, "unshare(net)"))?;
            Self::current()
        })?
    }

    /// Gives the namespace a name in the file system: bind-mounts it on a new file at `path`.
    ///
    /// # Errors
    /// [`NetNsError::Mount`] when the file exists or the mount is refused.
    pub fn bind_to(&self, path: &Path) -> Result<(), NetNsError> {
        let failed = |source: io::Error| NetNsError::Mount { target: path.to_owned(), source };
        File::create_new(path).map_err(failed)?;
        rustix::mount::mount_bind(format!("/proc/self/fd/{}", self.fd.as_raw_fd()), path).map_err(|error| {
            // The file is of no use without the mount; the mount's error is the one to tell.
            let _ = std::fs::remove_file(path);
            failed(error.into())
        })
    }

    /// What tells it from every other namespace.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Whether `path` still leads to this namespace. Once it does not, its owner has gone and only
    /// handles like this one keep it alive.
    pub fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|metadata| NetNsId::of(&metadata) == self.id)
    }

    /// Runs `work` inside the namespace, on a thread that ends with it; a panic of it is passed on.
    ///
    /// # Errors
    /// [`NetNsError::NotPermitted`] without CAP_SYS_ADMIN over the namespace.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_own_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| NetNsError::unsharing(error, "setns(net)"))?;
            Ok(work())
        })?
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What tells a namespace from every other one that exists now (`man 7 namespaces`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetNsId {
    device: u64,
    inode: u64,
}

impl NetNsId {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Device of its inode.
    pub const fn device(self) -> u64 {
        self.device
    }

    /// Its inode.
    pub const fn inode(self) -> u64 {
        self.inode
    }
}

impl fmt::Display for NetNsId {
    /// As readlink(1) shows it in `/proc/PID/ns`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

/// Puts the whole process into a new mount and a new network namespace, as fake root in a new user
/// namespace when it is not root, with mounts that nobody else sees and an empty `/run`.
///
/// Everything in these namespaces goes when the last process in them ends, however it ends.
///
/// # Errors
/// [`NetNsError::MoreThanOneThread`] when the process has started a thread;
/// [`NetNsError::NoUserNamespaces`] when the system forbids them to ordinary users.
pub fn enter_private() -> Result<(), NetNsError> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|source| NetNsError::opening(Path::new("/proc/self/task"), source))?;
    if threads.count() > 1 {
        return Err(NetNsError::MoreThanOneThread);
    }
    let wanted = UnshareFlags::NEWNS | UnshareFlags::NEWNET;
    match unshare(wanted) {
        Ok(()) => {}
        Err(Errno::PERM) => enter_as_fake_root(wanted)?,
        Err(error) => return Err(NetNsError::unsharing(error, "unshare(mount, net)")),
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    let failed = |target: &str| {
        let target = PathBuf::from(target);
        move |error: Errno| NetNsError::Mount { target, source: error.into() }
    };
    rustix::mount::mount_change("/", private).map_err(failed("/"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("overlayd", "/run", "tmpfs", flags, c"mode=0755").map_err(failed("/run"))?;
    std::fs::create_dir(NAMED).map_err(|source| NetNsError::Mount { target: NAMED.into(), source })
}

/// Why a namespace could not be found, made or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// Nothing is there.
    #[error("there is no network namespace at {}: give a name of `ip netns`, a path or a process id", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Something is there, but not a namespace of the network.
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// What was opened.
        path: PathBuf,
    },
    /// It is there and cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The caller is not root over the namespace.
    #[error("{call}: not permitted; run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN")]
    NotPermitted {
        /// The system call.
        call: &'static str,
    },
    /// An ordinary user cannot become fake root here.
    #[error(
        "user namespaces are not allowed here ({source}): run as root, or allow them \
         (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)"
    )]
    NoUserNamespaces {
        /// What the kernel said.
        source: io::Error,
    },
    /// The caller came too late.
    #[error("the process has more than one thread, so it cannot enter namespaces as a whole")]
    MoreThanOneThread,
    /// A mount was refused.
    #[error("cannot mount on {}: {source}", target.display())]
    Mount {
        /// The mount point.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{call}: {source}")]
    Call {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NetNsError {
    fn opening(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            Self::NotFound { path }
        } else {
            Self::Open { path, source }
        }
    }

    fn unsharing(error: Errno, call: &'static str) -> Self {
        if error == Errno::PERM {
            Self::NotPermitted { call }
        } else {
            Self::Call { call, source: error.into() }
        }
    }
}

fn enter_as_fake_root(wanted: UnshareFlags) -> Result<(), NetNsError> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    unshare(wanted | UnshareFlags::NEWUSER)
        .map_err(|error| NetNsError::NoUserNamespaces { source: error.into() })?;
    // An ordinary user may map its group only after giving up setgroups(2) (user_namespaces(7)).
    for (file, content) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ] {
        std::fs::write(file, content).map_err(|source| NetNsError::NoUserNamespaces { source })?;
    }
    Ok(())
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES could take descriptors away from other threads, and it is not asked for.
    unsafe { unshare_unsafe(flags) }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|source| NetNsError::Call { call: "clone(thread)", source })?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Where `ip netns` keeps namespaces.
const NAMED: &str = "/run/netns";

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// `_IO(0xb7, 0x3)` of linux/nsfs.h.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_paths_processes_or_names() {
        for (reference, path) in [
            ("/some/where", "/some/where"),
            ("./here", "./here"),
            ("42", "/proc/42/ns/net"),
            ("blue", "/run/netns/blue"),
        ] {
            assert_eq!(NetNs::path_of(reference), Path::new(path));
        }
    }

    #[test]
    fn the_current_namespace_is_itself_and_others_are_refused_by_name() {
        let current = NetNs::current().unwrap();
        let own = NetNs::resolve(&std::process::id().to_string()).unwrap();
        assert_eq!(current.id(), own.id());
        assert!(current.is_at(Path::new("/proc/self/ns/net")));
        assert!(!current.is_at(Path::new("/proc/self/ns/mnt")));

        let missing = NetNs::resolve("no-such-namespace").unwrap_err();
        assert!(matches!(missing, NetNsError::NotFound { .. }), "{missing}");
        for other in ["/proc/self/ns/mnt", "/dev/null"] {
            let refused = NetNs::resolve(other).unwrap_err();
            assert!(matches!(refused, NetNsError::NotANamespace { .. }), "{refused}");
        }
    }

    #[test]
    fn a_process_with_threads_cannot_enter_private_namespaces() {
        let refused = std::thread::spawn(|| enter_private().unwrap_err()).join().unwrap();
        assert!(matches!(refused, NetNsError::MoreThanOneThread), "{refused}");
    }
}
