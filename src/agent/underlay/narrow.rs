//! Underlays on which a network's smallest MTU does not fit: what the operator is told of them.

use std::fmt;

use super::{is_over_ipv6, least_mtu, smallest};
use crate::cluster::{NetworkView, inner_mtu, overhead};
use crate::id::{HostName, NetworkName, NodeId};

/// A network whose interfaces may not be so small that their packets fit through an underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Narrow {
    network: NetworkName,
    /// That the interfaces have for want of a smaller one, in bytes.
    mtu: u16,
    /// The member with the smallest underlay, and that one's MTU in bytes.
    node: HostName,
    underlay: u32,
    /// What fits through it, and what the underlay would need for [`Self::mtu`].
    fits: u32,
    needed: u32,
}

impl Narrow {
    /// What is to be told of a network, if its packets do not fit; the underlay of the node `this` has the
    /// MTU `own`, if it is known better than by the view.
    pub(crate) fn of(view: &NetworkView, this: NodeId, own: Option<u32>) -> Option<Self> {
        let (node, underlay) = smallest(view, this, own)?;
        let (encrypted, over_ipv6) = (view.network.encrypted, is_over_ipv6(view));
        let (mtu, fits) = (least_mtu(view), inner_mtu(underlay, encrypted, over_ipv6));
        (fits < u32::from(mtu)).then(|| Self {
            network: view.network.name.clone(),
            mtu,
            node: node.name.clone(),
            underlay,
            fits,
            needed: u32::from(mtu) + overhead(encrypted, over_ipv6),
        })
    }
}

impl fmt::Display for Narrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, mtu, node, underlay, fits, needed } = self;
        write!(
            f,
            "network {network}: its interfaces have an MTU of {mtu}, the least that IP allows them, but packets \
             above {fits} bytes do not fit through the underlay of node {node} and are lost (send_failed): give \
             that underlay an MTU of {needed}, now {underlay}"
        )?;
        if *mtu == super::LEAST_MTU_IPV6 {
            f.write_str(", or make the network without IPv6")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testbed::PaperCluster;
    use super::*;

    #[test]
    fn network_is_narrow_where_its_least_mtu_does_not_fit() {
        let cluster = PaperCluster::new();
        let mut view = cluster.network(1, 1, &[2]);
        let narrow = |view: &NetworkView, own| Narrow::of(view, cluster.this(), Some(own));
        view.network.subnets[0].cidr = "fd00::/64".parse().expect("a subnet");
        // 92 bytes of headers, ESP's among them.
        assert_eq!(narrow(&view, 1372), None);
        let told = narrow(&view, 1371).expect("a byte is missing").to_string();
        for part in
            ["MTU of 1280", "above 1276 bytes", "MTU of 1372, now 1371", "without IPv6", "send_failed"]
        {
            assert!(told.contains(part), "{part} is not in: {told}");
        }
        view.network.subnets[0].cidr = "10.0.0.0/24".parse().expect("a subnet");
        assert_eq!(narrow(&view, 668), None);
        let told = narrow(&view, 667).expect("a byte is missing").to_string();
        assert!(told.contains("MTU of 576") && !told.contains("IPv6"), "{told}");
        view.nodes.clear();
        assert_eq!(narrow(&view, 667), None, "it has no members");
    }
}
