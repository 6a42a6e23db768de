//! The sockets of a member of a cluster, bound before anything is promised to anybody.

use std::net::SocketAddr;

use anyhow::{Context, Result};
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

/// Those of the lanes.
pub(crate) struct DataSockets {
    pub(super) esp: Group,
    pub(super) vxlan: Result<Group, WithoutVxlan>,
    /// What the operator should know of those for ESP.
    pub(super) warnings: Vec<String>,
}

/// Why there are none for plain VXLAN: another program may have the port, like the kernel's own `vxlan`.
#[derive(Debug, thiserror::Error)]
#[error("unencrypted networks carry nothing here: {0}")]
pub(crate) struct WithoutVxlan(#[from] UdpError);

impl Sockets {
    /// Binds what `settings` name, for so many lanes.
    pub(crate) async fn bind(
        settings: &NodeSettings,
        lanes: LaneCount,
        offload: OffloadConfig,
    ) -> Result<Self> {
        let tls = bind_tls(settings).await?;
        let is_advertised = settings.data.ip() == settings.advertise.ip();
        let data = DataSockets::bind(settings.data, lanes, offload).with_context(|| {
            let flag = if is_advertised { "--advertise-addr" } else { "--data-addr" };
            format!("cannot receive encrypted data: give an address of this machine with {flag}")
        })?;
        let underlay_mtu = underlay::mtu_at(settings.data.ip()).await?;
        Ok(Self { tls, data, underlay_mtu })
    }
}

impl DataSockets {
    /// Binds to an address, for so many lanes.
    pub(crate) fn bind(data: SocketAddr, lanes: LaneCount, offload: OffloadConfig) -> Result<Self> {
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
pub(crate) async fn bind_tls(settings: &NodeSettings) -> Result<TcpListener> {
    TcpListener::bind(settings.listen).await.with_context(|| {
        format!("cannot listen on TCP {}: choose another with --listen-addr", settings.listen)
    })
}
