//! The MTU of this node's underlay, followed, and what fits through the underlay of a network's members.
//!
//! What the node sees of its own interface counts at once, whether a manager can be told or not; of the
//! others it knows what the view says.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

use super::dataplane::DataPlane;
use crate::cluster::{NetworkView, Node};
use crate::datapath::MAX_MTU;
use crate::id::NodeId;
use crate::io::netlink::{LinkChanges, Netlink};
use crate::io::netns::NetNs;
use crate::wire::{esp, ethernet, ipv4, ipv6, udp, vxlan};

/// MTU of the interface that holds an address of this host, in bytes.
pub(crate) async fn mtu_at(address: IpAddr) -> anyhow::Result<u32> {
    let link = tokio::task::spawn_blocking(move || {
        Netlink::within(&NetNs::current()?, |netlink| netlink.holder_of(address))
    });
    Ok(link.await?.context("the underlay's MTU cannot be read")?.mtu)
}

/// Has the lanes follow the MTU of the interface that holds `data`, and then tells it to `mtu`.
pub(crate) async fn follow(
    data: SocketAddr,
    dataplane: Arc<DataPlane>,
    mtu: watch::Sender<u32>,
    failed: mpsc::Sender<anyhow::Error>,
) {
    let changes = LinkChanges::subscribe();
    if let Err(error) = &changes {
        tracing::warn!(%error, "changes of the underlay's MTU are noticed late");
    }
    let (mut trouble, mut wait) = (None, Duration::ZERO);
    loop {
        let changed = async {
            match &changes {
                Ok(changes) => changes.next().await,
                Err(_) => std::future::pending().await,
            }
        };
        // The interface may be another one without any having changed: an address moved.
        let _ = tokio::time::timeout(wait, changed).await;
        // The first look is for what changed before anybody listened.
        if std::mem::replace(&mut wait, LOOK_INTERVAL) != Duration::ZERO {
            tokio::time::sleep(SETTLE).await;
        }
        let now = match mtu_at(data.ip()).await {
            Ok(now) => now,
            Err(error) => {
                let error = format!("{error:#}");
                if trouble.as_ref() != Some(&error) {
                    tracing::warn!(%error, "the underlay's interface is not found; its last MTU stands");
                }
                trouble = Some(error);
                continue;
            }
        };
        trouble = None;
        let before = *mtu.borrow();
        if now == before {
            continue;
        }
        tracing::info!(before, now, "the MTU of the underlay has changed");
        if let Err(gone) = dataplane.follow_underlay(now).await {
            let _ = failed.send(gone.into()).await;
            return;
        }
        mtu.send_replace(now);
    }
}

/// MTU of the containers' interfaces in a network, in bytes: what fits through the smallest underlay
/// of its members without a fragment, or the operator's if that is less. The underlay of the node
/// `this` has the MTU `own`, if it is known better than by the view.
pub(crate) fn effective_mtu(view: &NetworkView, this: NodeId, own: Option<u32>) -> u16 {
    let underlay = |node: &Node| own.filter(|_| node.id == this).unwrap_or(node.underlay_mtu);
    let over_ipv6 = view.nodes.iter().any(|node| node.data.is_ipv6());
    let fits = view.nodes.iter().map(underlay).min();
    let fits = fits.map(|mtu| mtu.saturating_sub(overhead(view.network.encrypted, over_ipv6)));
    let wanted = view.network.mtu.map(u32::from);
    let mtu = match (wanted, fits) {
        (Some(wanted), Some(fits)) => wanted.min(fits),
        (Some(mtu), None) | (None, Some(mtu)) => mtu,
        (None, None) => DEFAULT_UNDERLAY_MTU - overhead(view.network.encrypted, over_ipv6),
    };
    let has_ipv6 = view.network.subnets.iter().any(|subnet| matches!(subnet.cidr, IpNet::V6(_)));
    let least = if has_ipv6 { LEAST_MTU_IPV6 } else { LEAST_MTU_IPV4 };
    u16::try_from(mtu).unwrap_or(MAX_MTU).clamp(least, MAX_MTU)
}

/// What a full packet of a container grows by on the underlay.
fn overhead(encrypted: bool, over_ipv6: bool) -> u32 {
    let ip = if over_ipv6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
    let plain = ip + udp::HEADER_LEN + vxlan::HEADER_LEN + ethernet::HEADER_LEN;
    match (encrypted, over_ipv6) {
        (true, false) => esp::OVERHEAD_IPV4.into(),
        (true, true) => esp::OVERHEAD_IPV6.into(),
        (false, _) => u32::try_from(plain).expect("headers are short"),
    }
}

/// Ethernet's: what a network without a member that says more is cut to.
const DEFAULT_UNDERLAY_MTU: u32 = 1500;
/// Below it the kernel takes IPv6 from an interface, with its addresses (`addrconf_notify` in
/// net/ipv6/addrconf.c), and RFC 8200 §5 allows no less: what then does not fit is lost and counted.
const LEAST_MTU_IPV6: u16 = 1280;
/// What every host must take (RFC 791 §3.1); the kernel learns of no smaller path (`ip_rt_min_pmtu`).
const LEAST_MTU_IPV4: u16 = 576;
/// Where interfaces come and go by the hundred, one look is for many of them.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the MTU is looked at, without having been told of a change.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::super::testbed::{PaperCluster, peer};
    use super::*;

    /// An encrypted network of this node and a peer with these underlays.
    fn network(cluster: &PaperCluster, mtu: Option<u16>, underlays: [u32; 2]) -> NetworkView {
        let mut view = cluster.network(1, 1, &[2]);
        view.network.mtu = mtu;
        for node in &mut view.nodes {
            node.underlay_mtu = underlays[usize::from(node.id == peer(2))];
        }
        view
    }

    #[test]
    fn smallest_underlay_of_the_members_counts_and_the_own_one_as_it_is_now() {
        let cluster = PaperCluster::new();
        let this = cluster.this();
        for (underlays, own, expected) in [
            ([1500, 1500], None, 1408),
            ([9000, 9000], None, 8908),
            ([9000, 1500], None, 1408),
            ([1500, 9000], Some(9000), 8908),
            ([9000, 9000], Some(1500), 1408),
            ([9000, 1400], Some(9000), 1308),
            ([65_535, 65_535], Some(65_535), MAX_MTU),
        ] {
            let view = network(&cluster, None, underlays);
            assert_eq!(effective_mtu(&view, this, own), expected, "{underlays:?} {own:?}");
        }
    }

    #[test]
    fn overheads_are_those_of_the_headers() {
        let cluster = PaperCluster::new();
        let mut view = network(&cluster, None, [1500, 1500]);
        let this = cluster.this();
        assert_eq!(effective_mtu(&view, this, None), 1408);
        view.network.encrypted = false;
        assert_eq!(effective_mtu(&view, this, None), 1450);
        for node in &mut view.nodes {
            node.data = "[2001:db8::1]:4500".parse().expect("an address");
        }
        assert_eq!(effective_mtu(&view, this, None), 1430);
        view.network.encrypted = true;
        assert_eq!(effective_mtu(&view, this, None), 1388);
    }

    #[test]
    fn operators_mtu_holds_unless_it_does_not_fit_any_more() {
        let cluster = PaperCluster::new();
        let view = network(&cluster, Some(1300), [9000, 1500]);
        assert_eq!(effective_mtu(&view, cluster.this(), None), 1300);
        assert_eq!(effective_mtu(&view, cluster.this(), Some(1300)), 1208);
        let nobody = NetworkView { nodes: Vec::new(), ..view };
        assert_eq!(effective_mtu(&nobody, cluster.this(), Some(500)), 1300);
    }

    #[test]
    fn ipv6_keeps_what_it_needs_and_ipv4_what_every_host_takes() {
        let cluster = PaperCluster::new();
        let mut view = network(&cluster, None, [1300, 1500]);
        view.network.subnets[0].cidr = "fd00::/64".parse().expect("a subnet");
        assert_eq!(effective_mtu(&view, cluster.this(), None), 1280);
        view.network.subnets[0].cidr = "10.0.0.0/24".parse().expect("a subnet");
        assert_eq!(effective_mtu(&view, cluster.this(), None), 1208);
        assert_eq!(effective_mtu(&view, cluster.this(), Some(68)), 576);
    }
}
