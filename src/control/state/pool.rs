//! The address pools: where subnets come from when a network is created without.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::error::StateError;
use super::model::Model;
use super::subnets;
use crate::cluster::Subnet;

/// A range of addresses that is cut into subnets of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    /// The whole range, host bits zero.
    pub base: IpNet,
    /// Prefix length of the subnets.
    pub subnet_prefix_length: u8,
}

impl AddressPool {
    /// 10.128.0.0/9 in 32,768 subnets of 254 endpoints.
    pub fn standard() -> Self {
        let base = std::net::Ipv4Addr::new(10, 128, 0, 0);
        Self::of(IpNet::new(base.into(), 9).expect("9 is a prefix length"))
    }

    /// `base` in subnets of the usual size: /24, or /64 for IPv6; `base` itself if it is smaller.
    pub fn of(base: IpNet) -> Self {
        let usual = match base {
            IpNet::V4(_) => 24,
            IpNet::V6(_) => 64,
        };
        Self { base, subnet_prefix_length: usual.max(base.prefix_len()) }
    }

    /// The first subnet that overlaps no network and holds no node's underlay address.
    fn first_free(&self, model: &Model) -> Option<IpNet> {
        let mut candidate = IpNet::new(self.base.network(), self.subnet_prefix_length).ok()?;
        while self.base.contains(&candidate) {
            let Some(occupant) = occupant(model, candidate) else { return Some(candidate) };
            // Every candidate up to the end of the occupant overlaps it too.
            let end = if occupant.contains(&candidate) { occupant } else { candidate };
            candidate = after(end, self.subnet_prefix_length)?;
        }
        None
    }
}

/// Checks the pools of a new cluster.
pub(super) fn check(pools: &[AddressPool]) -> Result<(), StateError> {
    for (i, pool) in pools.iter().enumerate() {
        let refuse = |why: String| StateError::Pool { pool: pool.base, why };
        subnets::check_cidr("address pool", pool.base)?;
        let longest = subnets::longest_prefix(pool.base);
        if pool.subnet_prefix_length < pool.base.prefix_len() || pool.subnet_prefix_length > longest {
            return Err(refuse(format!(
                "its subnets have /{}, which must lie between /{} and /{longest}",
                pool.subnet_prefix_length,
                pool.base.prefix_len()
            )));
        }
        let before = pools.iter().take(i);
        if let Some(other) = before.map(|p| p.base).find(|other| subnets::overlap(*other, pool.base)) {
            return Err(refuse(format!("it overlaps address pool {other}")));
        }
    }
    Ok(())
}

/// A free subnet from the first pool that has one.
pub(super) fn take(model: &Model) -> Result<Subnet, StateError> {
    let pools = &model.founding.pools;
    pools
        .iter()
        .find_map(|pool| pool.first_free(model))
        .map(|cidr| Subnet { cidr, gateway: None, ip_range: None })
        .ok_or_else(|| StateError::PoolExhausted { pools: pools.iter().map(|p| p.base).collect() })
}

/// What keeps a subnet from being used.
fn occupant(model: &Model, candidate: IpNet) -> Option<IpNet> {
    let mut subnets = model.networks.values().flat_map(|state| &state.network.subnets);
    subnets.find(|s| subnets::overlap(s.cidr, candidate)).map(|s| s.cidr).or_else(|| {
        let mut nodes = model.nodes.values().flat_map(subnets::underlay_addresses);
        nodes.find(|address| candidate.contains(address)).map(IpNet::from)
    })
}

/// The subnet of that prefix length that begins behind `net`.
fn after(net: IpNet, prefix_length: u8) -> Option<IpNet> {
    let next = match net.broadcast() {
        std::net::IpAddr::V4(a) => {
            a.to_bits().checked_add(1).map(|n| std::net::Ipv4Addr::from_bits(n).into())
        }
        std::net::IpAddr::V6(a) => {
            a.to_bits().checked_add(1).map(|n| std::net::Ipv6Addr::from_bits(n).into())
        }
    };
    IpNet::new(next?, prefix_length).ok()
}
