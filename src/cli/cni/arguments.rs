//! `CNI_ARGS`, as `KEY=VALUE;...`: where some runtimes, as podman, say which address a container is to have.

use std::net::IpAddr;

use super::config::address;
use super::failure::{Code, Failure};
use crate::id::MacAddr;

/// What is asked for there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) ips: Vec<IpAddr>,
    pub(super) mac: Option<MacAddr>,
}

impl Arguments {
    /// Refuses what it does not know, unless it is told not to mind (`IgnoreUnknown`).
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let mut arguments = Self::default();
        let (mut unknown, mut minds) = (None, true);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let refuse = || Failure::new(Code::Environment, format!("CNI_ARGS: {pair} is not understood"));
            let (key, value) = pair.split_once('=').ok_or_else(refuse)?;
            match key {
                "IP" => {
                    let addresses = value.split(',').map(|text| address(text).ok_or_else(refuse));
                    arguments.ips = addresses.collect::<Result<_, _>>()?;
                }
                "MAC" => arguments.mac = Some(value.parse().map_err(|_| refuse())?),
                "IgnoreUnknown" => minds = !(value == "1" || value.eq_ignore_ascii_case("true")),
                _ => unknown = Some(refuse()),
            }
        }
        match unknown {
            Some(failure) if minds => Err(failure),
            Some(_) | None => Ok(arguments),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_and_what_is_unknown_is_refused_unless_it_is_to_be_ignored() {
        let parsed = |text: &str| Arguments::parse(text).ok();
        let ips = |ips: &[&str]| ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        let podman = Arguments { ips: ips(&["10.20.0.50"]), mac: "02:00:00:00:00:50".parse().ok() };
        assert_eq!(parsed("IgnoreUnknown=1;MAC=02:00:00:00:00:50;IP=10.20.0.50"), Some(podman));
        let both = Arguments { ips: ips(&["10.20.0.50", "fd00::5"]), mac: None };
        assert_eq!(parsed("IP=10.20.0.50/24,fd00::5/64"), Some(both));
        assert_eq!(parsed(""), Some(Arguments::default()));
        let kubernetes = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;IgnoreUnknown=1";
        assert_eq!(parsed(kubernetes), Some(Arguments::default()));
        for refused in [
            "K8S_POD_NAME=web",
            "K8S_POD_NAME=web;IgnoreUnknown=0",
            "IP=10.20.0",
            "IP",
            "IgnoreUnknown=1;MAC=1",
        ] {
            assert_eq!(parsed(refused), None, "{refused}");
        }
    }
}
