//! What a runtime is told of a container that was attached (CNI SPEC 1.1.0, section 5, "Success"), in the words of
//! the version that it asks for.

use serde_json::{Map, Value, json};

use super::config::{NEWEST, NetworkConfig};
use crate::api::types::AttachResponse;
use crate::cluster::Endpoint;
use crate::id::IfName;

/// An interface with its addresses and routes.
pub(super) struct Outcome<'a> {
    attached: &'a AttachResponse,
    sandbox: &'a str,
}

impl<'a> Outcome<'a> {
    pub(super) const fn of(attached: &'a AttachResponse, sandbox: &'a str) -> Self {
        Self { attached, sandbox }
    }

    /// Beside what plugins before this one have made.
    pub(super) fn json(&self, config: &NetworkConfig) -> String {
        let version = config.version();
        let mut told = config.before().cloned().unwrap_or_default();
        told.insert("cniVersion".to_owned(), version.into());
        let index = entries(&mut told, "interfaces").len();
        entries(&mut told, "interfaces").push(self.interface(version));
        entries(&mut told, "ips").extend(self.addresses(version, index));
        entries(&mut told, "routes").extend(self.routes());
        told.entry("dns").or_insert_with(|| config.dns().cloned().unwrap_or_else(|| json!({})));
        Value::Object(told).to_string()
    }

    fn interface(&self, version: &str) -> Value {
        let AttachResponse { endpoint, ifname, mtu, .. } = self.attached;
        let mut interface = json!({ "name": ifname, "mac": endpoint.mac, "sandbox": self.sandbox });
        if version == NEWEST {
            interface["mtu"] = (*mtu).into();
        }
        interface
    }

    fn addresses(&self, version: &str, interface: usize) -> impl Iterator<Item = Value> {
        self.attached.endpoint.addresses.iter().map(move |address| {
            let mut told = json!({ "address": address, "interface": interface });
            if let Some(gateway) = self.attached.gateways.iter().find(|gateway| address.contains(*gateway)) {
                told["gateway"] = json!(gateway);
            }
            if version.starts_with("0.") {
                told["version"] = if address.addr().is_ipv4() { "4" } else { "6" }.into();
            }
            told
        })
    }

    fn routes(&self) -> impl Iterator<Item = Value> {
        self.attached.gateways.iter().map(|gateway| {
            let everywhere = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            json!({ "dst": everywhere, "gw": gateway })
        })
    }
}

/// Whether that is what the runtime was told when the container was attached; how it is not.
pub(super) fn compare(told: &Map<String, Value>, endpoint: &Endpoint, ifname: &IfName) -> Result<(), String> {
    let list = |name: &str| told.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let has = |entry: &Value, key: &str, value: &dyn ToString| {
        entry[key].as_str().is_some_and(|is| is.eq_ignore_ascii_case(&value.to_string()))
    };
    let mac = endpoint.mac;
    if !list("interfaces").iter().any(|entry| has(entry, "name", ifname) && has(entry, "mac", &mac)) {
        return Err(format!("{ifname} has {mac}, which prevResult has not"));
    }
    for address in &endpoint.addresses {
        if !list("ips").iter().any(|entry| has(entry, "address", address)) {
            return Err(format!("{ifname} has {address}, which prevResult has not"));
        }
    }
    Ok(())
}

/// A list of what is told; one that is none is replaced.
fn entries<'t>(told: &'t mut Map<String, Value>, name: &str) -> &'t mut Vec<Value> {
    let list = told.entry(name).or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    list.as_array_mut().expect("it is one now")
}
