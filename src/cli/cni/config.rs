//! What a runtime gives a plugin on standard input (CNI SPEC 1.1.0, section 1): the network, and what this container
//! is to have. Each part is looked at by whoever needs it: what cannot be attached as it is written can still be
//! detached.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::failure::{Code, Failure};
use crate::id::{IfName, MacAddr, NetworkName, RuntimeName};
use crate::rate::{Rate, RateLimits};

/// One plugin's configuration.
#[derive(Debug)]
pub(super) struct NetworkConfig(Map<String, Value>);

/// What this container is to have, by the capabilities that the configuration names.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wishes {
    ips: Option<Vec<String>>,
    pub(super) mac: Option<MacAddr>,
    bandwidth: Option<Bandwidth>,
}

/// In bits per second; none and zero limit nothing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bandwidth {
    ingress_rate: Option<u64>,
    egress_rate: Option<u64>,
}

/// What the runtime still has.
#[derive(Debug, Deserialize)]
pub(super) struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: RuntimeName,
    ifname: IfName,
}

impl NetworkConfig {
    /// Nothing at all is a configuration without anything in it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Failure> {
        if text.trim_ascii().is_empty() {
            return Ok(Self(Map::new()));
        }
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| Failure::new(Code::Decoding, format!("the network configuration: {error}")))
    }

    pub(super) fn version(&self) -> &str {
        self.0.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0")
    }

    /// Refuses what cannot be done as it is written.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let version = self.version();
        if !VERSIONS.contains(&version) {
            let known = VERSIONS.join(", ");
            return Err(Failure::new(Code::Version, format!("cniVersion {version} is none of {known}")));
        }
        if self.0.get("ipam").and_then(Value::as_object).is_some_and(|ipam| !ipam.is_empty()) {
            let message = "ipam: the cluster gives the addresses itself; leave it out";
            return Err(Failure::new(Code::Unsupported, message));
        }
        Ok(())
    }

    /// What the runtime calls it.
    pub(super) fn name(&self) -> Result<RuntimeName, Failure> {
        self.part("name")?.ok_or_else(|| Failure::new(Code::Config, "name is missing"))
    }

    /// The network, where it has another name for the runtime.
    pub(super) fn network(&self) -> Result<NetworkName, Failure> {
        if let Some(network) = self.part("network")? {
            return Ok(network);
        }
        self.name()?.as_str().parse().map_err(|error| {
            Failure::new(Code::Config, format!("name: {error}; \"network\" may name the network instead"))
        })
    }

    /// The agent's, where it is not the usual one.
    pub(super) fn socket(&self) -> Result<Option<PathBuf>, Failure> {
        self.part("socket")
    }

    pub(super) fn wishes(&self) -> Result<Wishes, Failure> {
        Ok(self.part("runtimeConfig")?.unwrap_or_default())
    }

    /// What containers are to ask for names; for the runtime.
    pub(super) fn dns(&self) -> Option<&Value> {
        self.0.get("dns").filter(|dns| dns.is_object())
    }

    /// What plugins before this one have made, or this one had given.
    pub(super) fn before(&self) -> Option<&Map<String, Value>> {
        self.0.get("prevResult").and_then(Value::as_object)
    }

    /// What the runtime has left of this network; if it does not say so, everything would be taken away.
    pub(super) fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Failure> {
        let name = [VALID, VALID_BEFORE].into_iter().find(|name| self.0.contains_key(*name));
        let name = name.ok_or_else(|| Failure::new(Code::Config, format!("{VALID} is missing")))?;
        // None are `null`, as Go writes an empty list.
        Ok(self.part(name)?.unwrap_or_default())
    }

    fn part<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let part = self.0.get(name).map(Option::<T>::deserialize).transpose();
        let refuse = |error| Failure::new(Code::Config, format!("{name}: {error}"));
        part.map(Option::flatten).map_err(refuse)
    }
}

impl Wishes {
    /// The addresses, with or without a prefix length, which is the network's in any case.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let refuse = |text| Failure::new(Code::Config, format!("runtimeConfig.ips: {text} is no address"));
        self.ips.iter().flatten().map(|text| address(text).ok_or_else(|| refuse(text))).collect()
    }

    pub(super) fn rates(&self) -> Result<RateLimits, Failure> {
        let Some(Bandwidth { ingress_rate, egress_rate }) = self.bandwidth else {
            return Ok(RateLimits::default());
        };
        let rate = |what: &str, bits: Option<u64>| {
            let Some(bits) = bits.filter(|bits| *bits > 0) else { return Ok(None) };
            Rate::new(bits).map(Some).ok_or_else(|| {
                let least = Rate::MIN.bits_per_second();
                let message = format!("runtimeConfig.bandwidth.{what}: {bits} is less than {least} bit/s");
                Failure::new(Code::Config, message)
            })
        };
        Ok(RateLimits {
            egress: rate("egressRate", egress_rate)?,
            ingress: rate("ingressRate", ingress_rate)?,
        })
    }
}

/// An address that may have a prefix length.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse()).ok()
}

impl ValidAttachment {
    pub(super) fn is(&self, container: &RuntimeName, ifname: &IfName) -> bool {
        (&self.container, &self.ifname) == (container, ifname)
    }
}

pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST];
pub(super) const NEWEST: &str = "1.1.0";
const VALID: &str = "cni.dev/valid-attachments";
/// As drafts of the specification had it.
const VALID_BEFORE: &str = "cni.dev/attachments";
