//! `--netns NAME|PATH|PID`: resolved where the operator stands, checked again by the agent.
//!
//! The agent may run in another mount or process namespace, where the same path leads elsewhere;
//! so the request carries the namespace's device and inode with its path.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::api::types::NetnsReference;

/// Why `--netns` leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing there.
    #[error(
        "no network namespace {given:?}: looked at {}; make one with 'ip netns add NAME', or give a path \
         or the id of a running process",
        .tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
    )]
    NotFound {
        /// What was given.
        given: String,
        /// Where it could have been.
        tried: Vec<PathBuf>,
    },
    /// The file is something else.
    #[error("{} is not a network namespace", .path.display())]
    NotANamespace {
        /// The file.
        path: PathBuf,
    },
    /// The system forbids a look.
    #[error("cannot look at the network namespace {} (try with sudo)", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Finds the namespace that the operator means.
pub(super) fn resolve(given: &str) -> Result<NetnsReference, NetnsError> {
    let tried = candidates(given);
    for path in &tried {
        match std::fs::metadata(path) {
            Ok(_) => return identify(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(NetnsError::Unreadable { path: path.clone(), source }),
        }
    }
    Err(NetnsError::NotFound { given: given.to_owned(), tried })
}

/// Where a namespace of this name can be, in the order of ip(8): name before process id.
fn candidates(given: &str) -> Vec<PathBuf> {
    if given.contains('/') {
        return vec![given.into()];
    }
    let mut paths: Vec<_> = NAMED.iter().map(|dir| Path::new(dir).join(given)).collect();
    if given.parse::<u32>().is_ok_and(|pid| pid != 0) {
        paths.push(format!("/proc/{given}/ns/net").into());
    }
    paths
}

fn identify(path: &Path) -> Result<NetnsReference, NetnsError> {
    let unreadable = |source| NetnsError::Unreadable { path: path.to_owned(), source };
    let path = own_view(path).map_err(unreadable)?;
    let metadata = std::fs::metadata(&path).map_err(unreadable)?;
    let filesystem = rustix::fs::statfs(&path).map_err(|errno| unreadable(errno.into()))?;
    if u64::try_from(filesystem.f_type) != Ok(NSFS_MAGIC) {
        return Err(NetnsError::NotANamespace { path });
    }
    Ok(NetnsReference { path, device: metadata.dev(), inode: metadata.ino() })
}

/// The path with the links of its directory resolved: `/proc/self` is somebody else to the agent.
/// The last component stays, since a namespace's own link leads to no path.
fn own_view(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) => Ok(directory.canonicalize()?.join(name)),
        (Some(_) | None, _) => Ok(path),
    }
}

/// Where `ip netns` keeps its names; the second is the first on every current system.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_found_by_path_and_by_process() {
        let by_path = resolve("/proc/self/ns/net").expect("a namespace");
        let by_pid = resolve(&std::process::id().to_string()).expect("a namespace");
        assert_eq!(by_path, by_pid);
        assert_eq!(by_path.path, PathBuf::from(format!("/proc/{}/ns/net", std::process::id())));
    }

    #[test]
    fn names_are_looked_up_where_ip_netns_keeps_them() {
        assert_eq!(candidates("c1"), [PathBuf::from("/run/netns/c1"), PathBuf::from("/var/run/netns/c1")]);
        assert_eq!(candidates("77").last(), Some(&PathBuf::from("/proc/77/ns/net")));
        assert_eq!(candidates("./77"), [PathBuf::from("./77")]);
    }

    #[test]
    fn what_is_missing_or_no_namespace_is_refused_by_name() {
        let error = resolve("no-such-container").expect_err("found").to_string();
        assert!(error.contains("/run/netns/no-such-container") && error.contains("ip netns add"), "{error}");
        let error = resolve("/etc/passwd").expect_err("taken").to_string();
        assert_eq!(error, "/etc/passwd is not a network namespace");
        let error = resolve("/etc/no-such-file").expect_err("found").to_string();
        assert!(error.contains("looked at /etc/no-such-file;"), "{error}");
    }
}
