//! What Docker asks of an IPAM driver (moby `daemon/libnetwork/docs/ipam.md`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Request;
use super::network::{lenient, text_or_none};

/// A subnet for a network that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PoolRequest {
    /// The subnet that the operator named, if one (`--subnet`).
    #[serde(deserialize_with = "text_or_none")]
    pub pool: Option<IpNet>,
    /// The part of it to take addresses from (`--ip-range`).
    #[serde(deserialize_with = "text_or_none")]
    pub sub_pool: Option<IpNet>,
    /// What the operator says to this driver (`--ipam-opt`).
    #[serde(deserialize_with = "lenient")]
    pub options: BTreeMap<String, String>,
    /// Whether it is one of IPv6.
    pub v6: bool,
}

impl Request for PoolRequest {
    fn subject(&self) -> String {
        let options = self.options.iter().map(|(key, value)| format!("{key}={value}"));
        let pool = self.pool.map(|pool| pool.to_string());
        pool.into_iter().chain(options).collect::<Vec<_>>().join(" ")
    }
}

/// The subnet that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pool {
    /// What it is called from now on.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// The subnet.
    pub pool: IpNet,
    /// By Docker's names: the gateway.
    pub data: BTreeMap<String, String>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AddressRequest {
    /// Of which subnet.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// The one that is wanted, if one is.
    #[serde(deserialize_with = "text_or_none")]
    pub address: Option<IpAddr>,
    /// For whom, by Docker's names.
    #[serde(deserialize_with = "lenient")]
    pub options: BTreeMap<String, String>,
}

impl AddressRequest {
    /// Whether it is to be the network's gateway.
    pub fn is_gateway(&self) -> bool {
        self.options.get("RequestAddressType").is_some_and(|kind| kind == GATEWAY)
    }
}

impl Request for AddressRequest {
    fn subject(&self) -> String {
        let address = self.address.map(|address| format!(" {address}")).unwrap_or_default();
        format!("{}{address}", self.pool_id)
    }
}

/// The address that it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Address {
    /// With its subnet's prefix length.
    pub address: IpNet,
}

/// An address that is not wanted any more.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ReleasedAddress {
    /// Of which subnet.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// The address.
    #[serde(default, deserialize_with = "text_or_none")]
    pub address: Option<IpAddr>,
}

impl Request for ReleasedAddress {
    fn subject(&self) -> String {
        let address = self.address.map(|address| format!(" {address}")).unwrap_or_default();
        format!("{}{address}", self.pool_id)
    }
}

/// What addresses of this driver's are called.
pub const ADDRESS_SPACE: &str = "overlayd";
/// By Docker's name: a network's gateway, as an option and as a kind of address.
pub const GATEWAY: &str = "com.docker.network.gateway";
