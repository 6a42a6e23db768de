//! The sockets of a member of a cluster, bound before anything is promised to anybody.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use anyhow::{Result, anyhow};
use tokio::net::TcpListener;

use super::offloads;
use super::underlay;
use crate::config::OffloadConfig;
use crate::control::store::local::NodeSettings;
use crate::id::LaneCount;
use crate::io::steer::Group;
use crate::io::udp::UdpError;
use crate::wire::vxlan;

/// All of them.
pub(crate) struct Sockets {
    pub(super) tls: TcpListener,
    pub(super) data: DataSockets,
    /// MTU of the interface that held the data address when it was bound, in bytes.
    pub(super) underlay_mtu: u32,
}

/// By what the addresses of a node are chosen, and so can be chosen otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChosenBy {
    /// `overlayd init`, which chooses the cluster's data port as well.
    Init,
    /// `overlayd join`.
    Join,
    /// `overlayd restore`.
    Restore,
    /// Any of them, earlier.
    Settings,
}

/// Those of the lanes.
pub(crate) struct DataSockets {
    pub(super) esp: Group,
    pub(super) vxlan: Result<Group, WithoutVxlan>,
    /// What the operator should know of those for ESP.
    pub(super) warnings: Vec<String>,
}

/// Why there are none for plain VXLAN: another program may have the port, like the kernel's own `vxlan`.
#[derive(Debug, thiserror::Error)]
#[error(
    "unencrypted networks carry nothing here: {0}; where `ss` names none, the kernel's own has it (`ip -d link show type vxlan`)"
)]
pub(crate) struct WithoutVxlan(#[from] UdpError);

impl Sockets {
    /// Binds what `settings` name, for so many lanes.
    pub(crate) async fn bind(
        settings: &NodeSettings,
        chosen: ChosenBy,
        lanes: LaneCount,
        offload: OffloadConfig,
    ) -> Result<Self> {
        let tls = bind_tls(settings, chosen).await?;
        let data = DataSockets::bind(settings.data, lanes, offload).map_err(|error| {
            anyhow!("cannot receive encrypted data: {error}{}", data_advice(&error, settings, chosen))
        })?;
        let underlay_mtu = underlay::mtu_at(settings.data.ip()).await?;
        Ok(Self { tls, data, underlay_mtu })
    }
}

impl DataSockets {
    /// Binds to an address, for so many lanes.
    pub(crate) fn bind(data: SocketAddr, lanes: LaneCount, offload: OffloadConfig) -> Result<Self, UdpError> {
        let options = offloads::socket_options(offload);
        let esp = Group::bind_esp(data, lanes, &options)?;
        let mut warnings = Vec::new();
        if let Some(refusal) = &esp.refusal {
            warnings.push(format!(
                "one lane of {} receives all encrypted data: the kernel does not steer by SPI ({refusal}); Linux \
                 4.5 and later do, unless a sandbox forbids SO_ATTACH_REUSEPORT_CBPF",
                lanes.get()
            ));
        }
        Ok(Self { esp, vxlan: bind_vxlan(data, lanes, offload), warnings })
    }
}

/// Binds for plain VXLAN beside the address of ESP.
pub(crate) fn bind_vxlan(
    data: SocketAddr,
    lanes: LaneCount,
    offload: OffloadConfig,
) -> Result<Group, WithoutVxlan> {
    let at = SocketAddr::new(data.ip(), vxlan::PORT);
    Ok(Group::bind_vxlan(at, lanes, &offloads::socket_options(offload))?)
}

/// Binds the TLS port.
pub(crate) async fn bind_tls(settings: &NodeSettings, chosen: ChosenBy) -> Result<TcpListener> {
    TcpListener::bind(settings.listen).await.map_err(|error| {
        anyhow!("cannot listen on TCP {}: {error}{}", settings.listen, tls_advice(&error, settings, chosen))
    })
}

/// Whether another process receives there.
pub(crate) fn is_taken(data: SocketAddr) -> bool {
    UdpSocket::bind(data).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn tls_advice(error: &io::Error, settings: &NodeSettings, chosen: ChosenBy) -> &'static str {
    let follows = settings.listen.port() == settings.advertise.port();
    match (error.kind(), chosen) {
        (io::ErrorKind::AddrInUse, ChosenBy::Settings) => {
            "; another process has this port (`ss -ltnp` names it): stop it, other nodes reach this one there"
        }
        (io::ErrorKind::AddrInUse, ChosenBy::Init | ChosenBy::Join | ChosenBy::Restore) if follows => {
            "; another process has this port (`ss -ltnp` names it; Docker Swarm uses 2377): stop it, or give this node \
             another with --advertise-addr IP:PORT"
        }
        (io::ErrorKind::AddrInUse, ChosenBy::Init | ChosenBy::Join | ChosenBy::Restore) => {
            "; another process has this port (`ss -ltnp` names it): stop it, or give another with --listen-addr IP:PORT"
        }
        (io::ErrorKind::AddrNotAvailable, ChosenBy::Init | ChosenBy::Restore) => {
            "; no interface of this host has this address: give one of this machine with --listen-addr"
        }
        (io::ErrorKind::PermissionDenied, _) => {
            "; a port below 1024 needs CAP_NET_BIND_SERVICE, which this process does not have"
        }
        (_, _) => "",
    }
}

/// What follows on what the socket says by itself.
fn data_advice(error: &UdpError, settings: &NodeSettings, chosen: ChosenBy) -> &'static str {
    let UdpError::Bind { source, .. } = error else { return "" };
    let is_advertised = settings.data.ip() == settings.advertise.ip();
    match (source.kind(), chosen) {
        (io::ErrorKind::AddrInUse, ChosenBy::Init) => ", or choose another for the cluster with --data-port",
        (io::ErrorKind::AddrInUse, ChosenBy::Join | ChosenBy::Restore | ChosenBy::Settings) => {
            "; all nodes of a cluster have the same"
        }
        (_, ChosenBy::Settings) => "",
        (io::ErrorKind::AddrNotAvailable, _) if is_advertised => {
            ": give one of this machine with --advertise-addr"
        }
        (io::ErrorKind::AddrNotAvailable, _) => ": give one of this machine with --data-addr",
        (_, _) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(settings: &NodeSettings, chosen: ChosenBy) -> String {
        let bound = Sockets::bind(settings, chosen, LaneCount::clamped(1), OffloadConfig::default()).await;
        bound.map(|_| ()).unwrap_err().to_string()
    }

    fn at(listen: SocketAddr, data: SocketAddr) -> NodeSettings {
        let managers = Vec::new();
        NodeSettings { listen, advertise: listen, data, managers, interface: None, advertised_here: false }
    }

    #[tokio::test]
    async fn a_taken_tls_port_is_answered_with_what_its_asker_can_do() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let taken = TcpListener::bind(any).await.unwrap();
        let settings = at(taken.local_addr().unwrap(), any);
        for chosen in [ChosenBy::Init, ChosenBy::Join, ChosenBy::Restore] {
            let said = refusal(&settings, chosen).await;
            assert!(said.ends_with("another with --advertise-addr IP:PORT"), "{said}");
        }
        let said = refusal(&settings, ChosenBy::Settings).await;
        assert!(!said.contains("--") && said.contains("stop it"), "{said}");
        let elsewhere = NodeSettings { advertise: any, ..settings };
        let said = refusal(&elsewhere, ChosenBy::Init).await;
        assert!(said.ends_with("--listen-addr IP:PORT"), "{said}");
    }

    #[test]
    fn a_port_below_1024_is_for_whom_the_kernel_lets_not_for_root() {
        let (any, refused) =
            (SocketAddr::from(([127, 0, 0, 1], 1)), || io::ErrorKind::PermissionDenied.into());
        let tls = tls_advice(&refused(), &at(any, any), ChosenBy::Init);
        let data = UdpError::Bind { local: any, source: rustix::io::Errno::ACCESS.into() }.to_string();
        for said in [tls, &data] {
            assert!(said.contains("needs CAP_NET_BIND_SERVICE") && !said.contains("root"), "{said}");
        }
        let unit = include_str!("../../config/overlayd.service");
        assert!(
            unit.lines()
                .any(|line| line.starts_with("CapabilityBoundingSet=") && line.contains("NET_BIND_SERVICE"))
        );
    }

    #[tokio::test]
    async fn a_taken_data_port_and_a_foreign_data_address_are_told_apart() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let taken = UdpSocket::bind(any).unwrap();
        let settings = at(any, taken.local_addr().unwrap());
        let said = refusal(&settings, ChosenBy::Init).await;
        assert!(said.contains("another process has this port") && said.ends_with("--data-port"), "{said}");
        let said = refusal(&settings, ChosenBy::Join).await;
        assert!(said.contains("stop it") && !said.contains("--"), "{said}");

        let foreign = at(any, "192.0.2.254:0".parse().unwrap());
        let said = refusal(&foreign, ChosenBy::Join).await;
        assert!(said.ends_with("give one of this machine with --data-addr"), "{said}");
        let said = refusal(&foreign, ChosenBy::Settings).await;
        assert!(said.ends_with("no interface of this host has this address"), "{said}");
    }
}
