//! How a container's interface is, by its kernel's word, held against how it is to be.
//!
//! What the agent gave and the container cannot be reached without is given again: the MAC address,
//! the addresses and the routes. What somebody in the container may have set on purpose is theirs:
//! the interface's name, its MTU, whether it is up, addresses that came later. It is told and left.
//! Everything here blocks on the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::container;
use crate::cluster::Endpoint;
use crate::id::EndpointId;
use crate::io::container_port::ContainerPort;
use crate::io::ethtool::active_features;
use crate::io::netlink::{Link, Netlink, NetlinkError, Route};
use crate::io::netns::NetNs;
use crate::io::tap::TapOffloads;

/// An interface as its kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) link: Link,
    pub(super) addresses: BTreeSet<IpNet>,
    pub(super) routes: BTreeSet<Route>,
    /// What its kernel leaves to the agent, as far as it says.
    pub(super) offloads: Option<TapOffloads>,
}

impl Condition {
    /// Looks at the interface of an endpoint; `None` where there is none.
    pub(super) fn of(netns: &NetNs, endpoint: EndpointId) -> Result<Option<Self>, NetlinkError> {
        Netlink::within(netns, |netlink| match container::ours(netlink, endpoint)? {
            Some(link) => Self::read(netlink, link).map(Some),
            None => Ok(None),
        })
    }

    fn read(netlink: &Netlink, link: Link) -> Result<Self, NetlinkError> {
        let addresses = netlink.addresses_of(&link)?.into_iter().collect();
        let routes = netlink.routes(&link)?.into_iter().collect();
        let offloads = offloads(&link.name);
        Ok(Self { link, addresses, routes, offloads })
    }

    /// What is not as it is to be and is for the agent to mend. While the interface is down the kernel
    /// keeps neither routes nor IPv6 addresses for it, and takes none.
    pub(super) fn lacks(&self, wanted: &ContainerPort) -> Vec<Lack> {
        let mut lacks = Vec::new();
        if self.link.mac != Some(wanted.mac) {
            lacks.push(Lack::Mac);
        }
        let keeps = |address: &IpNet| self.link.up || address.addr().is_ipv4();
        let missing = addresses(wanted).into_iter().filter(|address| !self.addresses.contains(address));
        lacks.extend(missing.filter(keeps).map(Lack::Address));
        if self.link.up {
            let missing = routes(wanted).into_iter().filter(|route| !self.routes.contains(route));
            lacks.extend(missing.map(Lack::Route));
        }
        lacks
    }
}

fn offloads(name: &str) -> Option<TapOffloads> {
    let on = active_features(&name.parse().ok()?).ok()?;
    let is_on = |feature: &str| on.contains(feature);
    Some(TapOffloads {
        checksum: is_on("tx-checksum-ip-generic"),
        tcp: is_on("tx-tcp-segmentation") && is_on("tx-tcp6-segmentation"),
        udp: is_on("tx-udp-segmentation"),
    })
}

/// Something of an interface that is for the agent to give again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    Mac,
    Address(IpNet),
    Route(Route),
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mac => f.write_str("MAC address"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::Route(route) => write!(f, "route {route}"),
        }
    }
}

/// Gives the interface of an endpoint what it lacks; what that was, and what the kernel refused.
pub(super) fn mend(
    netns: &NetNs,
    endpoint: &Endpoint,
    wanted: &ContainerPort,
) -> Result<Mended, NetlinkError> {
    Netlink::within(netns, |netlink| {
        let mut mended = Mended::default();
        let Some((_, is_new)) = container::find(netlink, endpoint)? else { return Ok(mended) };
        mended.is_there = true;
        mended.given.extend(is_new.then(|| "alias".to_owned()));
        // An address brings the route to its subnet, so routes are judged by a second look.
        for is_route in [false, true] {
            let Some(link) = container::ours(netlink, endpoint.id)? else { break };
            let condition = Condition::read(netlink, link)?;
            for lack in condition.lacks(wanted) {
                if matches!(lack, Lack::Route(_)) != is_route {
                    continue;
                }
                match give(netlink, &condition.link, wanted, lack) {
                    Ok(()) => mended.given.push(lack.to_string()),
                    Err(refused) => mended.refused = mended.refused.or(Some(refused)),
                }
            }
        }
        Ok(mended)
    })
}

/// What became of an attempt to mend.
#[derive(Debug, Default)]
pub(super) struct Mended {
    /// Whether the interface is in the container at all.
    pub(super) is_there: bool,
    pub(super) given: Vec<String>,
    pub(super) refused: Option<NetlinkError>,
}

/// The addresses that the interface is to have.
pub(super) fn addresses(wanted: &ContainerPort) -> BTreeSet<IpNet> {
    let mut addresses: BTreeSet<IpNet> = wanted.addresses.iter().copied().collect();
    if addresses.iter().any(|address| address.addr().is_ipv6()) {
        addresses.insert(Ipv6Net::new_assert(wanted.mac.link_local(), LINK_LOCAL_LENGTH).into());
    }
    addresses
}

/// The routes that the interface is to have.
pub(super) fn routes(wanted: &ContainerPort) -> BTreeSet<Route> {
    let subnets =
        addresses(wanted).into_iter().filter(|address| address.prefix_len() < address.max_prefix_len());
    let subnets = subnets.map(|address| Route { destination: address.trunc(), gateway: None });
    let defaults = wanted.gateways.iter().map(|gateway| Route {
        destination: match gateway {
            IpAddr::V4(_) => Ipv4Net::default().into(),
            IpAddr::V6(_) => Ipv6Net::default().into(),
        },
        gateway: Some(*gateway),
    });
    subnets.chain(defaults).collect()
}

fn give(netlink: &Netlink, link: &Link, wanted: &ContainerPort, lack: Lack) -> Result<(), NetlinkError> {
    match lack {
        Lack::Mac => netlink.set_mac(link, wanted.mac),
        Lack::Address(address) => netlink.add_address(link, address),
        Lack::Route(Route { gateway: Some(gateway), .. }) => netlink.add_default_route(link, gateway),
        Lack::Route(Route { destination, gateway: None }) => {
            let of_subnet = addresses(wanted).into_iter().find(|address| address.trunc() == destination);
            let source = of_subnet.map_or(destination.addr(), |address| address.addr());
            netlink.add_subnet_route(link, destination, source)
        }
    }
}

const LINK_LOCAL_LENGTH: u8 = 64;

#[cfg(test)]
pub(super) mod testbed {
    //! An interface as it should be, and as it is when nothing is wrong with it.

    use super::*;
    use crate::io::container_port::TapQueue;

    pub(crate) fn wanted(addresses: &[&str]) -> ContainerPort {
        ContainerPort {
            name: "eth0".parse().expect("a name"),
            mac: "02:42:0a:01:00:02".parse().expect("a MAC"),
            mtu: 1408,
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            gateways: vec!["10.1.0.1".parse().expect("an address")],
            queue: TapQueue::default(),
            alias: String::new(),
        }
    }

    pub(crate) fn whole(wanted: &ContainerPort) -> Condition {
        let link = Link {
            index: 2,
            name: wanted.name.to_string(),
            mac: Some(wanted.mac),
            mtu: wanted.mtu,
            up: true,
            carrier: true,
            kind: Some("tun".into()),
            alias: None,
            queues: Some(2),
        };
        let (addresses, routes) = (addresses(wanted), routes(wanted));
        Condition { link, addresses, routes, offloads: Some(TapOffloads::ALL) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> ContainerPort {
        testbed::wanted(&["10.1.0.2/24", "fd00:1::2/64"])
    }

    fn whole() -> Condition {
        testbed::whole(&wanted())
    }

    #[test]
    fn interface_has_its_subnets_its_gateway_and_a_link_local_address() {
        let text = |things: Vec<String>| things.join(", ");
        assert_eq!(
            text(addresses(&wanted()).iter().map(ToString::to_string).collect()),
            "10.1.0.2/24, fd00:1::2/64, fe80::42:aff:fe01:2/64"
        );
        assert_eq!(
            text(routes(&wanted()).iter().map(ToString::to_string).collect()),
            "default via 10.1.0.1, 10.1.0.0/24, fd00:1::/64, fe80::/64"
        );
        assert_eq!(whole().lacks(&wanted()), []);
    }

    #[test]
    fn what_was_given_is_given_again_and_what_somebody_set_is_left() {
        let mut seen = whole();
        seen.link.name = "net1".into();
        seen.link.mtu = 1000;
        seen.addresses.insert("192.0.2.7/32".parse().expect("an address"));
        assert_eq!(seen.lacks(&wanted()), []);
        seen.link.mac = Some("02:42:0a:01:00:09".parse().expect("a MAC"));
        seen.addresses.pop_first();
        seen.routes.pop_first();
        let lacks: Vec<_> = seen.lacks(&wanted()).iter().map(ToString::to_string).collect();
        assert_eq!(lacks, ["MAC address", "address 10.1.0.2/24", "route default via 10.1.0.1"]);
    }

    #[test]
    fn interface_that_is_down_is_given_only_what_its_kernel_keeps() {
        let mut seen = whole();
        seen.link.up = false;
        (seen.addresses, seen.routes) = Default::default();
        assert_eq!(seen.lacks(&wanted()), [Lack::Address("10.1.0.2/24".parse().expect("an address"))]);
    }
}
