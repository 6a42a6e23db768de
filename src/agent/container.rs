//! A container as its attachment knows it: its network namespace, and the interface in it that is
//! ours, told by its alias. The container's owner may have renamed it, removed it, or made another of
//! its name. Everything here blocks on the kernel.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::leftovers;
use super::underlay::LEAST_MTU_IPV6;
use crate::api::ApiError;
use crate::api::types::{AttachRequest, AttachedContainer, NetnsReference};
use crate::cluster::{Endpoint, Network, NetworkView};
use crate::control::store::local::{Attachment, AttachmentState, NetnsRef};
use crate::id::{EndpointId, IfName, LaneCount, NodeId};
use crate::io::container_port::{ContainerPort, PortError, TapQueue};
use crate::io::netlink::{Link, Netlink, NetlinkError};
use crate::io::netns::{NetNs, NetNsError};
use crate::io::tap::Tap;
use crate::rate::Rate;

/// The container, if the agent sees the same one as the caller and can attach it.
pub(super) fn check(request: &AttachRequest, attachments: &[Attachment]) -> Result<NetNs, ApiError> {
    let netns = NetNs::open(&request.netns.path).map_err(|e| ApiError::not_found(e.to_string()))?;
    let wanted = &request.netns;
    if (netns.id().device(), netns.id().inode()) != (wanted.device, wanted.inode) {
        return Err(ApiError::invalid(format!(
            "{} is another namespace for the agent than for you (another mount or process namespace): \
             give the path as the agent sees it",
            wanted.path.display()
        )));
    }
    let mut here = attachments.iter().filter(|attachment| is_in(attachment, wanted));
    if let Some(attached) = here.find(|attached| attached.network == request.network) {
        return Err(attached_already(attached));
    }
    match Netlink::within(&netns, |netlink| netlink.link(&request.ifname)) {
        Ok(_) => Err(ApiError::conflict(PortError::NameTaken { name: request.ifname.clone() }.to_string())),
        Err(NetlinkError::NoSuchInterface { .. }) => Ok(netns),
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn attached_already(attachment: &Attachment) -> ApiError {
    if attachment.state == AttachmentState::Pending {
        return ApiError::conflict(format!(
            "{} is being attached to network {} just now: wait for that",
            attachment.netns.path.display(),
            attachment.network
        ));
    }
    ApiError::conflict(format!(
        "{} is attached to network {} already, as {} with endpoint {}: detach it first",
        attachment.netns.path.display(),
        attachment.network,
        attachment.ifname,
        attachment.id
    ))
}

/// The namespace of an attachment; `None` if it has ended, which is when its path leads nowhere or to
/// another one. Not to be able to look is no proof that it has.
pub(super) fn open(wanted: &NetnsRef) -> Result<Option<NetNs>, ApiError> {
    match NetNs::open(&wanted.path) {
        Ok(netns) => {
            Ok(Some(netns).filter(|n| (n.id().device(), n.id().inode()) == (wanted.dev, wanted.inode)))
        }
        Err(NetNsError::NotFound { .. } | NetNsError::NotANamespace { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Opens the interface of an attachment again, or makes it again, as its network and MTU are now, if
/// somebody removed it; a queue for each lane, and whether it was made.
pub(super) fn reopen(
    attachment: &Attachment,
    known: Option<(&NetworkView, u16)>,
    lanes: LaneCount,
) -> Result<(Vec<Tap>, bool), ApiError> {
    let Some(netns) = open(&attachment.netns)? else {
        return Err(ApiError::not_found(format!(
            "{} is not there any more",
            attachment.netns.path.display()
        )));
    };
    let found = Netlink::within(&netns, |netlink| match &attachment.endpoint {
        Some(endpoint) => Ok(find(netlink, endpoint)?.map(|(link, _)| link)),
        None => ours(netlink, attachment.id),
    });
    if let Some(link) = found.map_err(failed)? {
        let name: IfName = link.name.parse().map_err(failed)?;
        return Ok((ContainerPort::reopen(&name, &netns, lanes)?, false));
    }
    let (Some(endpoint), Some((view, mtu))) = (attachment.endpoint.as_ref(), known) else {
        return Err(ApiError::internal("somebody removed it, and its network is not known yet"));
    };
    Ok((port(attachment, endpoint, &view.network, mtu, lanes).create(&netns, lanes)?, true))
}

/// What the interface of an attachment is to be.
pub(super) fn port(
    attachment: &Attachment,
    endpoint: &Endpoint,
    network: &Network,
    mtu: u16,
    lanes: LaneCount,
) -> ContainerPort {
    // Which of a container's networks has the default route is Docker's to say.
    let gateways = if attachment.docker.is_some() { Vec::new() } else { gateways(endpoint, network) };
    ContainerPort {
        name: attachment.ifname.clone(),
        mac: endpoint.mac,
        mtu: mtu.into(),
        addresses: endpoint.addresses.clone(),
        gateways,
        queue: attachment.rates.egress.map_or_else(TapQueue::default, |rate| queue(rate, mtu, lanes)),
        alias: format!("{}{}", alias(endpoint.id), endpoint.node),
    }
}

/// Where a container sends what is for elsewhere, unless that is itself.
pub(super) fn gateways(endpoint: &Endpoint, network: &Network) -> Vec<IpAddr> {
    let own = |gateway: &IpAddr| endpoint.addresses.iter().any(|a| a.addr() == *gateway);
    network.subnets.iter().filter_map(|subnet| subnet.gateway).filter(|g| !own(g)).collect()
}

/// Gives the interface another MTU; fine if it is gone.
pub(super) fn set_mtu(attachment: &Attachment, mtu: u16) -> Result<(), ApiError> {
    let Some(netns) = open(&attachment.netns)? else { return Ok(()) };
    let set = Netlink::within(&netns, |netlink| match ours(netlink, attachment.id)? {
        Some(link) => {
            netlink.set_mtu(&link, mtu.into())?;
            let is_ipv6_back = link.mtu < LEAST_MTU_IPV6.into() && mtu >= LEAST_MTU_IPV6;
            let mut addresses = attachment.endpoint.iter().flat_map(|endpoint| &endpoint.addresses);
            let is_wanted = addresses.any(|address| address.addr().is_ipv6());
            if is_ipv6_back && !is_wanted { netlink.remove_link_local(&link) } else { Ok(()) }
        }
        None => Ok(()),
    });
    set.map_err(failed)
}

/// A queue for a container that may send at `rate`: what it holds waits for its turn, and the kernel
/// keeps no account of it with the sockets it is from (`skb_orphan` in `tun_net_xmit`), so that a
/// stream would fill any queue before it felt the limit. Each lane has a queue of so many frames.
fn queue(rate: Rate, mtu: u16, lanes: LaneCount) -> TapQueue {
    let longest = TapQueue::default().gso_max_size;
    let octets = |time| u32::try_from(rate.octets_in(time)).unwrap_or(u32::MAX);
    let shortest = GSO_ALLOWANCE + 2 * u32::from(mtu);
    let gso_max_size = octets(SUPER_FRAME_TIME).clamp(shortest.min(longest), longest);
    let frames =
        (octets(QUEUE_TIME) / gso_max_size / u32::from(lanes.get())).clamp(FEWEST_FRAMES, MOST_FRAMES);
    TapQueue { gso_max_size, frames: Some(frames) }
}

/// Removes the interface if it is there, whatever it is called now.
pub(super) fn remove_interface(attachment: &Attachment) -> Result<(), ApiError> {
    // Its owner has gone; a process that was left in it should not be left with an interface that is dead.
    let left = || leftovers::living(&attachment.netns);
    let mut places: Vec<NetNs> = open(&attachment.netns)?.or_else(left).into_iter().collect();
    if let Some(docker) = &attachment.docker {
        // Docker may be moving it.
        places.push(home()?.0);
        places.extend(docker.sandbox.as_deref().and_then(|sandbox| NetNs::open(sandbox).ok()));
    }
    for netns in places {
        let removed = Netlink::within(&netns, |netlink| match ours(netlink, attachment.id)? {
            Some(link) => netlink.delete(&link),
            None => Ok(()),
        });
        removed.map_err(failed)?;
    }
    Ok(())
}

/// As a caller is told of it.
pub(super) fn listed(attachment: Attachment) -> AttachedContainer {
    let Attachment { endpoint, network, netns, ifname, cni, .. } = attachment;
    let NetnsRef { path, dev: device, inode } = netns;
    AttachedContainer { endpoint, network, netns: NetnsReference { path, device, inode }, ifname, cni }
}

/// Whether it is attached to that container, and not just held.
pub(super) fn is_in(attachment: &Attachment, wanted: &NetnsReference) -> bool {
    let NetnsRef { dev, inode, .. } = attachment.netns;
    attachment.state != AttachmentState::Held && (dev, inode) == (wanted.device, wanted.inode)
}

/// The namespace that this program is in, where Docker takes interfaces from and leaves them.
pub(super) fn home() -> Result<(NetNs, NetnsRef), ApiError> {
    let netns = NetNs::current().map_err(failed)?;
    let reference = reference(&netns, OWN.into());
    Ok((netns, reference))
}

fn reference(netns: &NetNs, path: PathBuf) -> NetnsRef {
    NetnsRef { path, dev: netns.id().device(), inode: netns.id().inode() }
}

/// The container of Docker's that has the interface now, and how it is called there, once it is up: it has its
/// name and addresses by then.
pub(super) fn moved_to(sandbox: &Path, id: EndpointId) -> Result<Option<(NetnsRef, IfName)>, ApiError> {
    let netns = match NetNs::open(sandbox) {
        Ok(netns) => netns,
        Err(NetNsError::NotFound { .. } | NetNsError::NotANamespace { .. }) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let found = Netlink::within(&netns, |netlink| ours(netlink, id)).map_err(failed)?;
    let Some(link) = found.filter(|link| link.up) else { return Ok(None) };
    Ok(Some((reference(&netns, sandbox.to_owned()), link.name.parse().map_err(failed)?)))
}

/// Whether the interface of an endpoint is where this program is.
pub(super) fn is_here(id: EndpointId) -> Result<bool, ApiError> {
    Netlink::within(&home()?.0, |netlink| ours(netlink, id)).map(|link| link.is_some()).map_err(failed)
}

/// The interface of an endpoint, told by its alias; or by its MAC address, where somebody took the alias
/// away, and then it is given again. Whether it was.
pub(super) fn find(netlink: &Netlink, endpoint: &Endpoint) -> Result<Option<(Link, bool)>, NetlinkError> {
    if let Some(link) = ours(netlink, endpoint.id)? {
        return Ok(Some((link, false)));
    }
    let is_it = |link: &Link| link.kind.as_deref() == Some(TAP) && link.mac == Some(endpoint.mac);
    let Some(link) = netlink.links()?.into_iter().find(is_it) else { return Ok(None) };
    netlink.set_alias(&link, &format!("{}{}", alias(endpoint.id), endpoint.node))?;
    Ok(Some((link, true)))
}

pub(super) fn ours(netlink: &Netlink, endpoint: EndpointId) -> Result<Option<Link>, NetlinkError> {
    let alias = alias(endpoint);
    let is_it = |link: &Link| link.alias.as_deref().is_some_and(|remark| remark.starts_with(&alias));
    Ok(netlink.links()?.into_iter().find(is_it))
}

fn alias(endpoint: EndpointId) -> String {
    format!("{ALIAS}{endpoint}{OF_NODE}")
}

/// The endpoint whose interface this is, if that is of `node`.
pub(super) fn endpoint_of(link: &Link, node: NodeId) -> Option<EndpointId> {
    let remark = link.alias.as_deref().filter(|_| link.kind.as_deref() == Some(TAP))?;
    let (endpoint, of) = remark.strip_prefix(ALIAS)?.split_once(OF_NODE)?;
    (of == node.as_str()).then(|| endpoint.parse().ok()).flatten()
}

const ALIAS: &str = "overlayd endpoint ";
const OWN: &str = "/proc/self/ns/net";
const OF_NODE: &str = " of node ";
/// What the kernel calls the kind of a TAP.
const TAP: &str = "tun";

/// Of the longest super-frame at the limit: what others of the container wait for it.
const SUPER_FRAME_TIME: Duration = Duration::from_millis(1);
/// Of the queues of all lanes, full of such.
const QUEUE_TIME: Duration = Duration::from_millis(50);
/// A burst of short datagrams has to fit too.
const FEWEST_FRAMES: u32 = 32;
/// No more than without a limit.
const MOST_FRAMES: u32 = 1_000;
/// What the kernel keeps of a super-frame's size for headers (`MAX_TCP_HEADER`).
const GSO_ALLOWANCE: u32 = 512;

pub(super) fn failed(error: impl std::error::Error) -> ApiError {
    ApiError::internal(error.to_string())
}

impl From<PortError> for ApiError {
    fn from(error: PortError) -> Self {
        match &error {
            PortError::NameTaken { .. } => Self::conflict(error.to_string()),
            PortError::Namespace(NetNsError::NotFound { .. }) => Self::not_found(error.to_string()),
            PortError::Netlink(refused) if refused.is_denied() => Self::conflict(format!(
                "{error}: IPv6 is switched off in the container; switch it on there (sysctl \
                 net.ipv6.conf.all.disable_ipv6=0 and net.ipv6.conf.default.disable_ipv6=0), or attach it to a network \
                 without IPv6 subnets"
            )),
            PortError::Tap(_) | PortError::Namespace(_) | PortError::Netlink(_) => {
                Self::internal(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{EndpointId, IfName};
    use crate::rate::RateLimits;

    #[test]
    fn lanes_share_what_may_wait_of_a_limited_container() {
        let frames = |rate: &str, lanes| {
            let lanes = LaneCount::new(lanes).expect("some");
            queue(rate.parse().expect("a rate"), 1408, lanes).frames
        };
        // 50 ms of 60,000 bytes each.
        assert_eq!((frames("1gbit", 1), frames("1gbit", 2)), (Some(104), Some(52)));
        assert_eq!((frames("1gbit", 64), frames("8kbit", 1)), (Some(FEWEST_FRAMES), Some(FEWEST_FRAMES)));
    }

    #[test]
    fn container_has_ended_when_its_path_leads_nowhere_or_elsewhere() {
        let here = NetNs::current().expect("/proc");
        let reference = |path: &str, inode| NetnsRef { path: path.into(), dev: here.id().device(), inode };
        let same = here.id().inode();
        assert!(open(&reference("/proc/self/ns/net", same)).expect("looked").is_some());
        assert!(open(&reference("/proc/self/ns/net", same + 1)).expect("looked").is_none());
        assert!(open(&reference("/run/netns/there-is-none", same)).expect("looked").is_none());
        assert!(open(&reference("/proc/self/status", same)).expect("looked").is_none());
    }

    #[test]
    fn container_that_cannot_be_looked_at_has_not_ended() {
        // A path below a file gives ENOTDIR, as EMFILE and EACCES an error that says nothing of the container.
        let reference = NetnsRef { path: "/proc/self/status/net".into(), dev: 0, inode: 0 };
        assert!(open(&reference).is_err());
    }

    #[test]
    fn attaching_the_wrong_namespace_or_the_same_twice_is_refused() {
        let here = NetNs::current().expect("/proc");
        let (device, inode) = (here.id().device(), here.id().inode());
        let request = |device, inode| AttachRequest {
            network: "blue".parse().expect("a name"),
            netns: NetnsReference { path: Path::new("/proc/self/ns/net").into(), device, inode },
            ifname: "nothing0".parse::<IfName>().expect("a name"),
            name: None,
            cni: None,
            addresses: Vec::new(),
            mac: None,
            rates: RateLimits::default(),
        };
        assert!(check(&request(device, inode), &[]).is_ok());
        let elsewhere = check(&request(device, inode + 1), &[]).expect_err("another namespace");
        assert!(elsewhere.message.contains("another namespace for the agent"), "{elsewhere}");
        let attachment = Attachment {
            id: EndpointId::from_entropy([1; 16]),
            network: "blue".parse().expect("a name"),
            netns: NetnsRef { path: "/run/netns/web".into(), dev: device, inode },
            ifname: "eth0".parse().expect("a name"),
            name: None,
            cni: None,
            docker: None,
            ips: Vec::new(),
            mac: None,
            rates: RateLimits::default(),
            state: AttachmentState::Ready,
            endpoint: None,
            mtu: None,
        };
        let twice = check(&request(device, inode), &[attachment]).expect_err("attached already");
        assert!(twice.message.contains("detach it first"), "{twice}");
        let mut taken = request(device, inode);
        taken.ifname = "lo".parse().expect("a name");
        assert!(check(&taken, &[]).expect_err("lo is there").message.contains("--ifname"));
    }
}
