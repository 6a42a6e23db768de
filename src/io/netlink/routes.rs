//! The routes of an interface, in the table that everybody's packets are looked up in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;

use super::{Link, Netlink, NetlinkError};

/// Where packets for a destination go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination; with a prefix of no length, every one.
    pub destination: IpNet,
    /// The router, for what is not on the link itself.
    pub gateway: Option<IpAddr>,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.destination.prefix_len() == 0 {
            f.write_str("default")?;
        } else {
            write!(f, "{}", self.destination)?;
        }
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

impl Netlink {
    /// Every route of the main table that leads out of the interface alone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn routes(&self, link: &Link) -> Result<Vec<Route>, NetlinkError> {
        let (v4, v6) =
            (RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build());
        let mut routes = Vec::new();
        for wanted in [v4, v6] {
            let messages: Vec<RouteMessage> =
                self.run("list routes", self.handle.route().get(wanted).execute().try_collect())?;
            routes.extend(messages.iter().filter_map(|message| route_out_of(message, link)));
        }
        Ok(routes)
    }

    /// Adds the route to a subnet that is on the link itself, as the kernel does when `source`, an
    /// address of the interface, is given to it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_subnet_route(&self, link: &Link, subnet: IpNet, source: IpAddr) -> Result<(), NetlinkError> {
        let route = match (subnet, source) {
            (IpNet::V4(subnet), IpAddr::V4(source)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(subnet.network(), subnet.prefix_len())
                .pref_source(source)
                .output_interface(link.index)
                .scope(RouteScope::Link)
                .protocol(RouteProtocol::Kernel)
                .build(),
            (IpNet::V6(subnet), _) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(subnet.network(), subnet.prefix_len())
                .output_interface(link.index)
                .protocol(RouteProtocol::Kernel)
                .priority(ADDRESS_ROUTE_METRIC)
                .build(),
            (IpNet::V4(_), IpAddr::V6(_)) => return Err(NetlinkError::NobodyHas { address: source }),
        };
        self.run(format_args!("route to {subnet} on {}", link.name), self.handle.route().add(route).execute())
    }
}

fn route_out_of(message: &RouteMessage, link: &Link) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let (mut out, mut gateway, mut destination) = (None, None, None);
    for attribute in &message.attributes {
        if let RouteAttribute::Table(number) = attribute {
            table = *number;
        } else if let RouteAttribute::Oif(index) = attribute {
            out = Some(*index);
        } else if let RouteAttribute::Gateway(address) = attribute {
            gateway = ip_of(address);
        } else if let RouteAttribute::Destination(address) = attribute {
            destination = ip_of(address);
        }
    }
    let is_v4 = message.header.address_family == AddressFamily::Inet;
    let any: IpAddr = if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let is_it = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && out == Some(link.index)
        && message.header.kind == RouteType::Unicast;
    let length = message.header.destination_prefix_length;
    let destination = IpNet::new(destination.unwrap_or(any), length).ok()?;
    is_it.then_some(Route { destination, gateway })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some((*v4).into())
    } else if let RouteAddress::Inet6(v6) = address {
        Some((*v6).into())
    } else {
        None
    }
}

/// `IP6_RT_PRIO_ADDRCONF` of `net/ipv6/addrconf.c`'s own routes.
const ADDRESS_ROUTE_METRIC: u32 = 256;
