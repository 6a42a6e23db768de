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
    pub(super) vxlan: Option<Group>,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
}

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
        let vxlan = match Group::bind_vxlan(SocketAddr::new(data.ip(), vxlan::PORT), lanes, &options) {
            Ok(group) => Some(group),
            Err(error) => {
                warnings.push(format!("unencrypted networks carry nothing here: {error}"));
                None
            }
        };
        Ok(Self { esp, vxlan, warnings })
    }
}

/// Binds the TLS port.
pub(crate) async fn bind_tls(settings: &NodeSettings) -> Result<TcpListener> {
    TcpListener::bind(settings.listen).await.with_context(|| {
        format!("cannot listen on TCP {}: choose another with --listen-addr", settings.listen)
    })
}
