//! A host of the laboratory, and the containers on it: a named network namespace each.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use ipnet::IpNet;
use rustix::mount::{UnmountFlags, unmount};

use super::{Capture, LabError, Underlay, loopback_up};
use crate::id::IfName;
use crate::io::netlink::Netlink;
use crate::io::netns::NetNs;
use crate::io::spawner::Spawner;

/// A network namespace with an underlay interface; its name goes when it is dropped.
#[derive(Debug)]
pub struct Host {
    name: String,
    number: u8,
    namespace: NetNs,
    spawner: Arc<Spawner>,
}

impl Host {
    /// `host` and its number; also the name of its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Its IPv4 address on the underlay.
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, self.number).into()
    }

    /// Its IPv6 address on the underlay.
    pub fn v6(&self) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(self.number)).into()
    }

    /// The name of its underlay interface.
    pub fn underlay_name() -> IfName {
        "eth0".parse().expect("an interface name")
    }

    /// Starts a program on this host. It sees the laboratory's `/run`, and is killed when this
    /// process ends or the last host is dropped.
    ///
    /// # Errors
    /// What fork(2), setns(2) or execve(2) said.
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        self.spawner.spawn(command, &self.namespace)
    }

    /// Starts a program in a container of this host.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_in(&self, container: &Container, command: Command) -> io::Result<Child> {
        self.spawner.spawn(command, container.namespace())
    }

    /// Runs `work` on this host, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        Ok(self.namespace.run_in(work)?)
    }

    /// Makes an empty container: a namespace with `lo` and nothing else, for `overlayd attach`.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn container(&self, name: &str) -> Result<Container, LabError> {
        Container::create(name)
    }

    /// Captures what crosses its underlay interface, each way.
    ///
    /// # Errors
    /// When no packet socket can be had.
    pub fn capture(&self) -> Result<Capture, LabError> {
        Capture::start(&self.namespace, &Self::underlay_name())
    }

    pub(super) fn create(number: u8, spawner: Arc<Spawner>) -> Result<Self, LabError> {
        let name = format!("host{number}");
        let namespace = named_namespace(&name)?;
        Ok(Self { name, number, namespace, spawner })
    }

    pub(super) fn configure_underlay(&self, underlay: Underlay) -> Result<(), LabError> {
        let subnet = |address, length| IpNet::new(address, length).expect("a length of the family");
        let addresses = [subnet(self.v4(), 24), subnet(self.v6(), 64)];
        Netlink::within(&self.namespace, |netlink| {
            let link = netlink.link(&Self::underlay_name())?;
            netlink.set_mtu(&link, underlay.mtu)?;
            if !underlay.segment_offload {
                netlink.forbid_segment_offload(&link)?;
            }
            netlink.configure(&link, &addresses, &[])
        })?;
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        forget(&self.name);
    }
}

/// A network namespace in which something may be attached; its name goes when it is dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    namespace: NetNs,
}

impl Container {
    fn create(name: &str) -> Result<Self, LabError> {
        Ok(Self { name: name.to_owned(), namespace: named_namespace(name)? })
    }

    /// Its name, which `overlayd attach --netns` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, which `overlayd attach --netns` takes as well.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Its namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Runs `work` in the container, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        Ok(self.namespace.run_in(work)?)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        forget(&self.name);
    }
}

/// Makes a namespace with `lo` up under a name in the laboratory's `/run/netns`.
pub(super) fn named_namespace(name: &str) -> Result<NetNs, LabError> {
    let namespace = NetNs::create()?;
    loopback_up(&namespace)?;
    namespace.bind_to(&path_of(name))?;
    Ok(namespace)
}

/// Takes the name of a namespace away; it ends when nothing else refers to it.
pub(super) fn forget(name: &str) {
    // The namespace goes with the process at the latest, so a failure here costs nothing.
    let path = path_of(name);
    if unmount(&path, UnmountFlags::DETACH).is_ok() {
        let _ = std::fs::remove_file(&path);
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}
