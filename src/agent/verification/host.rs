//! What the node has of its host: an address on the underlay, sockets, files.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::agent::attachments::blocking;
use crate::agent::backend::Inner;
use crate::agent::member::Member;
use crate::api::ApiError;
use crate::api::types::{MendedBy, Verified, VerifiedItem};
use crate::control::store::{KEY_FILE, LOCK_FILE, STATE_FILE};
use crate::events;
use crate::io::netlink::Netlink;
use crate::io::netns::NetNs;
use crate::io::own_sockets::{self, OwnSocket, Transport};
use crate::wire::vxlan;

pub(super) async fn items(inner: &Inner, member: &Member) -> Result<Vec<VerifiedItem>, ApiError> {
    let node = member.node();
    let store = inner.store.clone();
    let settings = blocking(move || store.settings()).await?;
    let listen = settings.map_or(node.advertise, |settings| settings.listen);
    let view = member.dataplane.view().await;
    let carries_plain = view.networks.values().any(|view| !view.network.encrypted);
    let receiving = member.keys.receiving_lanes.get();
    let files = files(inner);
    let looked = move || {
        let mut items = vec![underlay(node.data, node.underlay_mtu)];
        let own = own_sockets::of_this_process().map_err(|error| ApiError::internal(error.to_string()))?;
        let at = |transport, at| own.iter().filter(|socket| **socket == OwnSocket { transport, at }).count();
        items.push(socket(("TCP", listen, "TLS"), at(Transport::Tcp, listen), 1));
        items.push(socket(("UDP", node.data, "ESP"), at(Transport::Udp, node.data), receiving.into()));
        if carries_plain {
            let plain = SocketAddr::new(node.data.ip(), vxlan::PORT);
            let found = at(Transport::Udp, plain);
            items.push(socket(("UDP", plain, "VXLAN"), found, found.max(1)));
        }
        items.extend(files.iter().filter_map(|(path, most)| file(path, *most)));
        Ok::<_, ApiError>(items)
    };
    let mut items = blocking(looked).await?;
    items.extend(leftovers(member).await?);
    Ok(items)
}

async fn leftovers(member: &Member) -> Result<Vec<VerifiedItem>, ApiError> {
    let node = member.id;
    let left = member.attachments.leftovers().await?;
    if left.is_empty() {
        return Ok(vec![VerifiedItem::ok(Verified::Leftovers, node, "none")]);
    }
    let differs = |left: &dyn std::fmt::Display| {
        let how = (MendedBy::Operator, "restart the agent, which removes it when it starts");
        VerifiedItem::differs((Verified::Leftovers, node), left, "none", how)
    };
    Ok(left.iter().map(|left| differs(left)).collect())
}

fn underlay(data: SocketAddr, mtu: u32) -> VerifiedItem {
    let held = NetNs::current()
        .map_err(crate::io::netlink::NetlinkError::from)
        .and_then(|here| Netlink::within(&here, |netlink| netlink.holder_of(data.ip())));
    let should_be = |name: &str| format!("on {name}, MTU {mtu}");
    let item = (Verified::Underlay, data.ip());
    match held {
        Ok(link) if link.mtu == mtu => VerifiedItem::ok(item.0, item.1, should_be(&link.name)),
        Ok(link) => {
            let is = format!("on {}, MTU {}", link.name, link.mtu);
            let how = "follows at once, and tells the other nodes";
            VerifiedItem::differs(item, is, should_be(&link.name), (MendedBy::Agent, how))
        }
        Err(error) => {
            let how =
                "uses another address of the interface, or after 10 s one that leads to the other nodes";
            VerifiedItem::differs(item, error, "on an interface", (MendedBy::Agent, how))
        }
    }
}

fn socket((transport, at, what): (&str, SocketAddr, &str), found: usize, wanted: usize) -> VerifiedItem {
    let of = format!("{transport} {at}");
    if found == wanted {
        return VerifiedItem::ok(Verified::Socket, of, format!("{found} for {what}"));
    }
    let how = "restart the agent, once no other program has the port";
    let item = (Verified::Socket, of);
    VerifiedItem::differs(item, found, format!("{wanted} for {what}"), (MendedBy::Operator, how))
}

/// The files of the agent with the most that their modes may allow.
fn files(inner: &Inner) -> Vec<(PathBuf, u32)> {
    let dir = &inner.config.state_dir;
    let mut files = vec![(dir.clone(), 0o700)];
    let names = [STATE_FILE, KEY_FILE, LOCK_FILE].into_iter().chain(events::FILES);
    files.extend(names.map(|name| (dir.join(name), 0o600)));
    files.push((inner.config.socket.clone(), 0o660));
    files.extend(inner.config.docker_socket.iter().map(|path| (path.clone(), 0o600)));
    files.extend(inner.config.esp_key_log.iter().map(|path| (path.clone(), 0o600)));
    files
}

/// Who may do what with a file; nothing of one that need not be there.
fn file(path: &Path, most: u32) -> Option<VerifiedItem> {
    let item = (Verified::File, path.display());
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(_) if path.file_name().is_some_and(|name| events::FILES.iter().any(|file| name == *file)) => {
            return None;
        }
        Err(error) => {
            let how = "restart the agent; a state file that is gone comes back from a backup alone";
            return Some(VerifiedItem::differs(item, error, "there", (MendedBy::Operator, how)));
        }
    };
    let mode = metadata.mode() & 0o7777;
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if mode & !most == 0 && owner == own {
        return Some(VerifiedItem::ok(item.0, item.1, format!("mode {mode:04o}")));
    }
    let is = format!("mode {mode:04o} of uid {owner}");
    let how =
        format!("others may have read or changed it; chmod {most:o} {0}; chown {own} {0}", path.display());
    let should_be = format!("mode {most:04o} of uid {own}");
    Some(VerifiedItem::differs(item, is, should_be, (MendedBy::Operator, how)))
}
