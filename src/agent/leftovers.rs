//! What an agent left behind when it died, or could not remove: found when the agent starts, removed,
//! and told once.
//!
//! An interface says in its alias whose it is: one of this node's whose endpoint is not written down
//! any more, or is in another container, serves nobody. Those of other nodes, whose agents may run on
//! this machine too, are none of our business. Everything here blocks on the kernel.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::container;
use crate::control::store::local::{Attachment, AttachmentState, NetnsRef};
use crate::events::{Event, Events, Reason};
use crate::id::{EndpointId, NodeId};
use crate::io::netlink::{Link, Netlink, NetlinkError};
use crate::io::netns::{NetNs, NetNsId};

/// An interface whose endpoint is not there any more.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) endpoint: EndpointId,
    pub(super) link: Link,
    path: PathBuf,
    netns: NetNs,
}

impl Leftover {
    /// Whether it is none: the interface of an attachment, in the container that it was attached to, or where Docker
    /// moves it to.
    pub(super) fn is_of(&self, attachment: &Attachment) -> bool {
        attachment.id == self.endpoint
            && (attachment.state == AttachmentState::Held || is_it(&attachment.netns, self.netns.id()))
    }

    /// Removes it.
    pub(super) fn remove(&self) -> Result<(), NetlinkError> {
        Netlink::within(&self.netns, |netlink| match container::ours(netlink, self.endpoint)? {
            Some(link) => netlink.delete(&link),
            None => Ok(()),
        })
    }
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, link, path, .. } = self;
        write!(f, "interface {} of endpoint {endpoint} in {}", link.name, path.display())
    }
}

/// Tells that something was removed.
pub(super) fn tell(events: &Events, what: &impl std::fmt::Display) {
    tracing::warn!(%what, "a leftover was removed");
    events.record(Event::LeftoverRemoved { what: Reason::of(what) });
}

/// The interfaces of a node in every namespace of this machine that has a name or a process. What is
/// known is for the caller to take out, from what is written down after this returns.
pub(super) fn interfaces(node: NodeId) -> Vec<Leftover> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for path in namespaces() {
        // What has ended meanwhile, or is not for us to enter, has no interface of ours.
        let Ok(netns) = NetNs::open(&path) else { continue };
        if !seen.insert(netns.id()) {
            continue;
        }
        let Ok(links) = Netlink::within(&netns, Netlink::links) else { continue };
        let own = links.into_iter().filter_map(|link| Some((container::endpoint_of(&link, node)?, link)));
        for (endpoint, link) in own {
            // Each holds on to the namespace by itself.
            if let Ok(netns) = NetNs::open(&path) {
                found.push(Leftover { endpoint, link, path: path.clone(), netns });
            }
        }
    }
    found
}

/// A namespace whose path leads nowhere any more, if a process lives in it still.
pub(super) fn living(wanted: &NetnsRef) -> Option<NetNs> {
    processes().find_map(|path| NetNs::open(&path).ok().filter(|netns| is_it(wanted, netns.id())))
}

fn is_it(wanted: &NetnsRef, id: NetNsId) -> bool {
    (id.device(), id.inode()) == (wanted.dev, wanted.inode)
}

fn namespaces() -> impl Iterator<Item = PathBuf> {
    let named = NAMED.iter().flat_map(|dir| entries(Path::new(dir))).map(|entry| entry.path());
    named.chain(processes())
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let is_process = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().is_ok();
    entries(Path::new("/proc")).filter(is_process).map(|entry| entry.path().join("ns/net"))
}

fn entries(dir: &Path) -> impl Iterator<Item = std::fs::DirEntry> {
    std::fs::read_dir(dir).into_iter().flatten().flatten()
}

/// Where `ip netns` and Docker keep theirs.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];
