//! Which subnets, gateways, ranges and MTUs a network may have.

use std::net::IpAddr;

use ipnet::IpNet;

use super::addresses;
use super::error::StateError;
use super::model::Model;
use crate::cluster::{Node, Subnet, inner_mtu};

/// The most subnets of one network.
pub(super) const MOST_SUBNETS: usize = 8;

/// Checks the subnets of a new network against themselves, the other networks and the nodes.
pub(super) fn check(model: &Model, subnets: &[Subnet]) -> Result<(), StateError> {
    if subnets.len() > MOST_SUBNETS {
        return Err(StateError::TooManySubnets { given: subnets.len(), most: MOST_SUBNETS });
    }
    for (i, subnet) in subnets.iter().enumerate() {
        check_one(subnet)?;
        let cidr = subnet.cidr;
        if let Some(other) = subnets.iter().take(i).find(|other| overlap(other.cidr, cidr)) {
            return Err(StateError::SubnetsOverlap { one: other.cidr, other: cidr });
        }
        for state in model.networks.values() {
            if let Some(other) = state.network.subnets.iter().find(|other| overlap(other.cidr, cidr)) {
                let network = state.network.name.clone();
                return Err(StateError::SubnetTaken { subnet: cidr, other: other.cidr, network });
            }
        }
        for node in model.nodes.values() {
            if let Some(address) = underlay_addresses(node).find(|address| cidr.contains(address)) {
                return Err(StateError::SubnetHoldsUnderlay {
                    subnet: cidr,
                    address,
                    node: node.name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Checks the addresses of a node against the networks.
pub(super) fn check_node(model: &Model, node: &Node) -> Result<(), StateError> {
    for state in model.networks.values() {
        for subnet in &state.network.subnets {
            if let Some(address) = underlay_addresses(node).find(|a| subnet.cidr.contains(a)) {
                return Err(StateError::NodeInSubnet {
                    node: node.name.clone(),
                    address,
                    subnet: subnet.cidr,
                    network: state.network.name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Checks the MTU of a new network against the standards and the nodes' underlay.
pub(super) fn check_mtu(
    model: &Model,
    subnets: &[Subnet],
    encrypted: bool,
    mtu: u16,
) -> Result<(), StateError> {
    let ipv6 = subnets.iter().any(|s| matches!(s.cidr, IpNet::V6(_)));
    let (family, least) = if ipv6 { ("IPv6", LEAST_MTU_IPV6) } else { ("IPv4", LEAST_MTU_IPV4) };
    if !(least..=MOST_MTU).contains(&mtu) {
        return Err(StateError::Mtu { mtu, family, least, most: MOST_MTU });
    }
    for node in model.nodes.values() {
        let fits = inner_mtu(node.underlay_mtu, encrypted, node.data.is_ipv6());
        if u32::from(mtu) > fits {
            let (node, underlay) = (node.name.clone(), node.underlay_mtu);
            return Err(StateError::MtuOverUnderlay { mtu, node, underlay, fits });
        }
    }
    Ok(())
}

/// Whether two subnets share an address.
pub(super) fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// The addresses of a node on the underlay.
pub(super) fn underlay_addresses(node: &Node) -> impl Iterator<Item = IpAddr> + use<> {
    [node.data.ip(), node.advertise.ip()].into_iter()
}

/// Checks that the host bits are zero and that the range is no special one.
pub(super) fn check_cidr(what: &'static str, cidr: IpNet) -> Result<(), StateError> {
    if cidr.trunc() != cidr {
        return Err(StateError::HostBits { what, given: cidr, corrected: cidr.trunc() });
    }
    for (reserved, what) in RESERVED {
        let reserved: IpNet = reserved.parse().expect("the constants are subnets");
        if overlap(reserved, cidr) {
            return Err(StateError::SubnetReserved { subnet: cidr, reserved, what });
        }
    }
    Ok(())
}

/// The longest prefix that leaves room for two endpoints.
pub(super) fn longest_prefix(cidr: IpNet) -> u8 {
    match cidr {
        IpNet::V4(_) => 30,
        IpNet::V6(_) => 126,
    }
}

fn check_one(subnet: &Subnet) -> Result<(), StateError> {
    let cidr = subnet.cidr;
    check_cidr("subnet", cidr)?;
    let longest = longest_prefix(cidr);
    if cidr.prefix_len() > longest {
        return Err(StateError::SubnetTooSmall { subnet: cidr, longest });
    }
    if let Some(gateway) = subnet.gateway {
        if !cidr.contains(&gateway) {
            return Err(StateError::GatewayOutside { gateway, subnet: cidr });
        }
        if let Some(what) = addresses::reserved(cidr, gateway) {
            return Err(StateError::GatewayReserved { gateway, what, subnet: cidr });
        }
    }
    if let Some(range) = subnet.ip_range {
        if range.trunc() != range {
            return Err(StateError::HostBits { what: "ip-range", given: range, corrected: range.trunc() });
        }
        if !cidr.contains(&range) {
            return Err(StateError::RangeOutside { range, subnet: cidr });
        }
    }
    Ok(())
}

/// RFC 791: what every host must take.
const LEAST_MTU_IPV4: u16 = 576;
/// RFC 8200 §5.
const LEAST_MTU_IPV6: u16 = 1280;
/// An IPv4 packet of 65,535 bytes less what ESP in UDP adds.
const MOST_MTU: u16 = 65_535 - 92;

const RESERVED: &[(&str, &str)] = &[
    ("0.0.0.0/8", "\"this network\""),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "the unspecified address"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];
