//! What Docker asks of a network driver (moby `daemon/libnetwork/docs/remote.md`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::Request;
use crate::id::{IfName, MacAddr, RuntimeName};

/// A network that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkRequest {
    /// Docker's id for it on this host.
    #[serde(rename = "NetworkID")]
    pub network_id: RuntimeName,
    /// By Docker's names.
    #[serde(default, deserialize_with = "lenient")]
    options: BTreeMap<String, Value>,
    /// Its subnets of IPv4.
    #[serde(rename = "IPv4Data", default, deserialize_with = "lenient")]
    pub ipv4_data: Vec<IpamData>,
    /// Its subnets of IPv6.
    #[serde(rename = "IPv6Data", default, deserialize_with = "lenient")]
    pub ipv6_data: Vec<IpamData>,
}

impl NetworkRequest {
    /// What the operator says to this driver (`--opt`).
    pub fn options(&self) -> BTreeMap<&str, String> {
        let said = self.options.get("com.docker.network.generic").and_then(Value::as_object);
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        said.into_iter().flatten().map(|(key, value)| (key.as_str(), text(value))).collect()
    }
}

impl Request for NetworkRequest {
    fn subject(&self) -> String {
        self.network_id.to_string()
    }
}

/// A subnet as its IPAM driver gave it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamData {
    /// What the IPAM driver calls its addresses.
    #[serde(default)]
    pub address_space: String,
    /// The subnet.
    #[serde(default, deserialize_with = "text_or_none")]
    pub pool: Option<IpNet>,
    /// Addresses that are somebody else's, by name.
    #[serde(default, deserialize_with = "lenient")]
    pub aux_addresses: BTreeMap<String, String>,
}

/// A network that is not any more.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkGone {
    /// Docker's id for it.
    #[serde(rename = "NetworkID")]
    pub network_id: RuntimeName,
}

impl Request for NetworkGone {
    fn subject(&self) -> String {
        self.network_id.to_string()
    }
}

/// An endpoint that there is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EndpointRequest {
    /// Docker's id for its network.
    #[serde(rename = "NetworkID")]
    pub network_id: RuntimeName,
    /// Docker's id for it.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: RuntimeName,
}

impl Request for EndpointRequest {
    fn subject(&self) -> String {
        let short = |id: &RuntimeName| id.as_str().get(..SHORT).unwrap_or(id.as_str()).to_owned();
        format!("{} {}", short(&self.network_id), short(&self.endpoint_id))
    }
}

/// An endpoint that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NewEndpoint {
    /// Which one.
    #[serde(flatten)]
    pub endpoint: EndpointRequest,
    /// What it has already.
    #[serde(default, deserialize_with = "lenient")]
    pub interface: Interface,
}

impl Request for NewEndpoint {
    fn subject(&self) -> String {
        self.endpoint.subject()
    }
}

/// What Docker has given an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Interface {
    /// Its address of IPv4.
    #[serde(deserialize_with = "text_or_none")]
    pub address: Option<IpNet>,
    /// Its address of IPv6.
    #[serde(rename = "AddressIPv6", deserialize_with = "text_or_none")]
    pub address_ipv6: Option<IpNet>,
    /// Its Ethernet address.
    #[serde(deserialize_with = "text_or_none")]
    pub mac_address: Option<MacAddr>,
}

impl Interface {
    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.address.iter().chain(&self.address_ipv6).map(IpNet::addr).collect()
    }
}

/// An endpoint that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreatedEndpoint {
    /// What Docker has not given it, and may not be told otherwise.
    pub interface: Given,
}

/// What a driver gives an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Given {
    /// Its Ethernet address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<MacAddr>,
}

/// An endpoint that comes into a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SandboxRequest {
    /// Which one.
    #[serde(flatten)]
    pub endpoint: EndpointRequest,
    /// Where the container's namespace is going to be.
    pub sandbox_key: PathBuf,
}

impl Request for SandboxRequest {
    fn subject(&self) -> String {
        self.endpoint.subject()
    }
}

/// What Docker is to do with an endpoint's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    /// Which one it is.
    pub interface_name: InterfaceName,
    /// The container's way to elsewhere; without one Docker gives it another interface for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The same for IPv6.
    #[serde(rename = "GatewayIPv6", skip_serializing_if = "Option::is_none")]
    pub gateway_ipv6: Option<IpAddr>,
}

/// An interface, and how it is to be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    /// Its name until Docker moves it.
    pub src_name: IfName,
    /// What its name in the container begins with.
    pub dst_prefix: &'static str,
}

/// An endpoint that ports of the host are to lead to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PublishRequest {
    /// Which one.
    #[serde(flatten)]
    endpoint: EndpointRequest,
    /// By Docker's names.
    #[serde(default, deserialize_with = "lenient")]
    options: BTreeMap<String, Value>,
}

impl PublishRequest {
    /// Whether there is any such port.
    pub fn has_ports(&self) -> bool {
        let ports = self.options.get("com.docker.network.portmap").and_then(Value::as_array);
        ports.is_some_and(|ports| !ports.is_empty())
    }
}

impl Request for PublishRequest {
    fn subject(&self) -> String {
        self.endpoint.subject()
    }
}

/// What is absent, Go writes as null.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Or as an empty text.
pub(super) fn text_or_none<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|error| de::Error::custom(format!("{text}: {error}")))).transpose()
}

/// As much of an id as Docker's own lists show.
const SHORT: usize = 12;
