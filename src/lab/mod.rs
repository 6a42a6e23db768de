//! The laboratory: hosts and containers as network namespaces of one machine, for `overlayd demo`
//! and the tests.
//!
//! ```text
//!  /run/netns/host1            /run/netns/host2          more than two: /run/netns/switch
//!  eth0 192.0.2.1/24   veth    eth0 192.0.2.2/24         with a bridge between them
//!       2001:db8::1/64 ------       2001:db8::2/64
//! ```
//! Everything is in a mount namespace of the process and goes with it, also by SIGKILL. It works as
//! root and as an ordinary user who may make user namespaces. Agents, networks and keys are not made
//! here: the caller starts them inside a [`Host`].

mod capture;
mod host;
mod ping;
mod traffic;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use capture::{Capture, write_pcap};
pub use host::{Container, Host};
pub use ping::{Ping, PingReport};
pub use traffic::{TcpReport, UdpReport, tcp_throughput, udp_blast};

use crate::id::IfName;
use crate::io::clock::boot_time;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::netns::{NetNs, NetNsError, enter_private};
use crate::io::spawner::Spawner;
use crate::io::tap::{Tap, TapError};

/// Hosts that reach each other over an underlay.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    /// The namespace of the bridge, where there is one.
    switch: Option<NetNs>,
}

impl Lab {
    /// Puts the process where laboratories can be built; once, before it starts a thread.
    ///
    /// # Errors
    /// Says what the system lacks: `/dev/net/tun`, user namespaces, rights.
    pub fn enter() -> Result<(), LabError> {
        // Before the user namespace hides who we are, for the reason to be the true one.
        Tap::check_driver()?;
        enter_private()?;
        Tap::check_driver()?;
        loopback_up(&NetNs::current()?)
    }

    /// Two hosts joined by one cable.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub fn two_hosts(underlay: Underlay) -> Result<Self, LabError> {
        Self::hosts(2, underlay)
    }

    /// `count` hosts, `host1` and on, joined by a cable if they are two and by a switch otherwise.
    ///
    /// A process has one laboratory at a time: their namespaces have the same names.
    ///
    /// # Errors
    /// What the kernel refuses; [`LabError::TooManyHosts`] above 250.
    pub fn hosts(count: u8, underlay: Underlay) -> Result<Self, LabError> {
        if count > MAX_HOSTS {
            return Err(LabError::TooManyHosts);
        }
        let spawner = Arc::new(Spawner::start().map_err(|source| LabError::Thread { source })?);
        let hosts = (1..=count)
            .map(|number| Host::create(number, Arc::clone(&spawner)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut lab = Self { hosts, switch: None };
        if let [one, two] = lab.hosts.as_slice() {
            Netlink::within(one.namespace(), |netlink| {
                netlink.add_veth(&Host::underlay_name(), &Host::underlay_name(), two.namespace())
            })?;
        } else {
            lab.switch = Some(build_switch(&lab.hosts, underlay)?);
        }
        for host in &lab.hosts {
            host.configure_underlay(underlay)?;
        }
        lab.await_underlay()?;
        Ok(lab)
    }

    /// Waits until every host can be reached. The kernel notices a carrier in its own time
    /// (net/core/link_watch.c), and drops what is sent before; seen on busy machines.
    fn await_underlay(&self) -> Result<(), LabError> {
        let once = Ping { count: 1, timeout: Duration::from_millis(100), ..Ping::default() };
        for from in &self.hosts {
            let to = if from.name() == self.hosts[0].name() { self.hosts.last() } else { self.hosts.first() };
            for address in to.iter().flat_map(|to| [to.v4(), to.v6(), from.v4(), from.v6()]) {
                let reached = || once.run(from.namespace(), address).is_ok_and(|report| report.is_complete());
                if !eventually(Duration::from_secs(10), reached) {
                    return Err(LabError::Unreachable { from: from.name().to_owned(), address });
                }
            }
        }
        Ok(())
    }

    /// The host with this number, 1 and on.
    ///
    /// # Panics
    /// When there is none.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// All hosts, in order.
    pub fn all(&self) -> &[Host] {
        &self.hosts
    }

    /// The namespace of the switch of more than two hosts.
    pub fn switch(&self) -> Option<&NetNs> {
        self.switch.as_ref()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.switch.is_some() {
            host::forget(SWITCH);
        }
    }
}

/// What the wire between the hosts is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underlay {
    /// MTU of the hosts' interfaces, in bytes.
    pub mtu: u32,
    /// Let runs of datagrams cross in one piece, as between virtual machines. Without it every
    /// packet on the wire is one that a real wire could carry, which a capture needs.
    pub segment_offload: bool,
}

impl Default for Underlay {
    fn default() -> Self {
        Self { mtu: 1500, segment_offload: true }
    }
}

/// Why a laboratory, or something in it, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// No TAP devices here.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// No namespaces here.
    #[error(transparent)]
    Namespace(#[from] NetNsError),
    /// The kernel refused a part of the network.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No thread could be started.
    #[error("cannot start a thread: {source}")]
    Thread {
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket of a measurement failed.
    #[error("{what}: {source}")]
    Socket {
        /// What it was for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The underlay was built, but carries nothing.
    #[error("{from} does not reach {address} in the laboratory: does a firewall or sysctl forbid it?")]
    Unreachable {
        /// The host that asked.
        from: String,
        /// Whom it asked.
        address: IpAddr,
    },
    /// The subnet of the underlay is a /24.
    #[error("a laboratory has at most {MAX_HOSTS} hosts")]
    TooManyHosts,
}

/// Asks again and again until `condition` holds (true) or `timeout` has passed (false).
pub fn eventually(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = boot_time() + timeout;
    loop {
        if condition() {
            return true;
        }
        if boot_time() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn build_switch(hosts: &[Host], underlay: Underlay) -> Result<NetNs, LabError> {
    let switch = host::named_namespace(SWITCH)?;
    let bridge_name: IfName = "br0".parse().expect("an interface name");
    Netlink::within(&switch, |netlink| {
        netlink.add_bridge(&bridge_name)?;
        let bridge = netlink.link(&bridge_name)?;
        for host in hosts {
            let port: IfName = host.name().parse().expect("host and a number");
            netlink.add_veth(&port, &Host::underlay_name(), host.namespace())?;
            let port = netlink.link(&port)?;
            netlink.set_mtu(&port, underlay.mtu)?;
            if !underlay.segment_offload {
                netlink.forbid_segment_offload(&port)?;
            }
            netlink.add_bridge_port(&bridge, &port)?;
            netlink.set_up(&port, true)?;
        }
        netlink.set_up(&bridge, true)
    })?;
    Ok(switch)
}

fn loopback_up(namespace: &NetNs) -> Result<(), LabError> {
    let name: IfName = "lo".parse().expect("an interface name");
    Ok(Netlink::within(namespace, |netlink| netlink.set_up(&netlink.link(&name)?, true))?)
}

const SWITCH: &str = "switch";

/// The addresses of 192.0.2.0/24, less some for others.
const MAX_HOSTS: u8 = 250;
