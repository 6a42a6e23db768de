//! What the rate is compared with: two containers joined by VXLAN devices of the kernel, over the
//! same hosts and underlay.

use std::net::IpAddr;

use ipnet::IpNet;

use super::stage::UNDERLAY;
use crate::id::{IfName, MacAddr, Vni};
use crate::io::netlink::{Handover, Netlink, Vxlan};
use crate::lab::{Container, Host, Lab, LabError};

/// Two containers on a plain VXLAN of the kernel.
#[derive(Debug)]
pub(super) struct KernelVxlan {
    containers: [Container; 2],
}

impl KernelVxlan {
    /// Builds it.
    ///
    /// # Errors
    /// When the kernel has no VXLAN, for one.
    pub(super) fn build(lab: &Lab) -> Result<Self, LabError> {
        let (one, two) = (lab.host(1), lab.host(2));
        let containers = [one.container("k1")?, two.container("k2")?];
        join(one, two.v4(), &containers[0], 1)?;
        join(two, one.v4(), &containers[1], 2)?;
        Ok(Self { containers })
    }

    /// The container on the first host, or the second.
    pub(super) fn container(&self, host: usize) -> &Container {
        &self.containers[host]
    }

    /// The address of a container.
    pub(super) fn address(host: usize) -> IpAddr {
        [IpAddr::from([10, 9, 0, 1]), IpAddr::from([10, 9, 0, 2])][host]
    }

    /// MTU of the containers' interfaces: the underlay's less Ethernet, VXLAN, UDP and IPv4 headers.
    pub(super) const MTU: u32 = UNDERLAY.mtu - (14 + 8 + 8 + 20);
}

/// As Docker does it: made on the host, so that it sends from there, and moved to the container.
fn join(host: &Host, remote: IpAddr, container: &Container, number: u8) -> Result<(), LabError> {
    let name: IfName = "vxlan9".parse().expect("an interface name");
    let inner: IfName = "eth0".parse().expect("an interface name");
    let vni = Vni::new(9).expect("a VNI");
    let mac = MacAddr::new([2, 0, 0, 9, 0, number]);
    Netlink::within(host.namespace(), |netlink| {
        netlink.add_vxlan(&Vxlan { name: &name, vni, local: host.v4(), port: KERNEL_PORT })?;
        let link = netlink.link(&name)?;
        let mtu = KernelVxlan::MTU;
        let dress = Handover {
            name: &inner,
            mac,
            mtu,
            gso_max_size: None,
            queue_frames: None,
            alias: "kernel VXLAN",
        };
        netlink.hand_over(&link, container.namespace(), &dress)
    })?;
    let address = IpNet::new(KernelVxlan::address(usize::from(number) - 1), 24).expect("an IPv4 length");
    Netlink::within(container.namespace(), |netlink| {
        let link = netlink.link(&inner)?;
        netlink.add_vxlan_remote(&link, MacAddr::new([0; 6]), remote)?;
        netlink.configure(&link, &[address], &[])
    })?;
    Ok(())
}

/// Linux's own default, for 4789 is the agents'.
const KERNEL_PORT: u16 = 8472;
