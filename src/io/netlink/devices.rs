//! Devices made and moved: a TAP handed to a container, and what the laboratory and the tests build
//! their networks of.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use super::{Link, Netlink, NetlinkError};
use crate::id::{IfName, MacAddr, Vni};
use crate::io::netns::NetNs;

/// What a device becomes as it moves to another namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover<'a> {
    /// Its name there.
    pub name: &'a IfName,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The longest super-frame that the kernel gives to it, in bytes; the kernel's own limit if absent.
    pub gso_max_size: Option<u32>,
    /// How many frames its queue holds; as many as now if absent.
    pub queue_frames: Option<u32>,
    /// A remark for people who look at it there.
    pub alias: &'a str,
}

/// A kernel VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its network.
    pub vni: Vni,
    /// The address that it sends from.
    pub local: IpAddr,
    /// The UDP port that it sends to and receives at; 4789 by RFC 7348.
    pub port: u16,
}

impl Netlink {
    /// Moves a device to another namespace, and renames and dresses it there, in one request: the
    /// container never sees it half done.
    ///
    /// # Errors
    /// `EEXIST` when the namespace has an interface of that name: the device has not moved then.
    /// After any other error it may have.
    pub fn hand_over(&self, link: &Link, to: &NetNs, dress: &Handover<'_>) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(link.index)
            .setns_by_fd(to.as_fd().as_raw_fd())
            .name(dress.name.as_str())
            .address(dress.mac.octets().to_vec())
            .mtu(dress.mtu)
            .alias(dress.alias);
        let change = match dress.gso_max_size {
            Some(size) => change.append_extra_attribute(LinkAttribute::GsoMaxSize(size)),
            None => change,
        };
        let change = match dress.queue_frames {
            Some(frames) => change.append_extra_attribute(LinkAttribute::TxQueueLen(frames)),
            None => change,
        };
        self.set(format_args!("move {} to {} as {}", link.name, to.id(), dress.name), change)
    }

    /// Makes a pair of connected interfaces, `name` here and `peer` in another namespace.
    ///
    /// # Errors
    /// What the kernel says; [`NetlinkError::is_exists`] when either name is taken.
    pub fn add_veth(&self, name: &IfName, peer: &IfName, peer_home: &NetNs) -> Result<(), NetlinkError> {
        let peer_end = LinkMessageBuilder::<LinkUnspec>::default()
            .name(peer.as_str())
            .setns_by_fd(peer_home.as_fd().as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name.as_str())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_end)))
            .build();
        self.run(format_args!("add veth {name}"), self.handle.link().add(pair).execute())
    }

    /// Makes a bridge without ports.
    ///
    /// # Errors
    /// As for [`Self::add_veth`].
    pub fn add_bridge(&self, name: &IfName) -> Result<(), NetlinkError> {
        let bridge = LinkBridge::new(name.as_str()).build();
        self.run(format_args!("add bridge {name}"), self.handle.link().add(bridge).execute())
    }

    /// Makes `port` a port of `bridge`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_bridge_port(&self, bridge: &Link, port: &Link) -> Result<(), NetlinkError> {
        self.set(
            format_args!("make {} a port of {}", port.name, bridge.name),
            LinkUnspec::new_with_index(port.index).controller(bridge.index),
        )
    }

    /// Makes a VXLAN device that learns nothing: see [`Self::add_vxlan_remote`].
    ///
    /// # Errors
    /// As for [`Self::add_veth`]; `EOPNOTSUPP` when the kernel has no VXLAN.
    pub fn add_vxlan(&self, vxlan: &Vxlan<'_>) -> Result<(), NetlinkError> {
        let device = LinkVxlan::new(vxlan.name.as_str(), vxlan.vni.get()).port(vxlan.port).learning(false);
        let device = match vxlan.local {
            IpAddr::V4(local) => device.local(local),
            IpAddr::V6(local) => device.local6(local),
        };
        self.run(format_args!("add vxlan {}", vxlan.name), self.handle.link().add(device.build()).execute())
    }

    /// Has a VXLAN device send frames for `mac` to `remote`; the MAC 00:00:00:00:00:00 stands for
    /// all that have no entry of their own, broadcast among them. One remote each.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_vxlan_remote(&self, vxlan: &Link, mac: MacAddr, remote: IpAddr) -> Result<(), NetlinkError> {
        let entry = self
            .handle
            .neighbours()
            .add_bridge(vxlan.index, &mac.octets())
            .destination(remote)
            .flags(NeighbourFlags::Own)
            .state(NeighbourState::Permanent);
        self.run(format_args!("bridge fdb add {mac} dev {} dst {remote}", vxlan.name), entry.execute())
    }

    /// Sets a permanent neighbour, so that nobody is asked for it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_neighbor(&self, link: &Link, address: IpAddr, mac: MacAddr) -> Result<(), NetlinkError> {
        let entry =
            self.handle.neighbours().add(link.index, address).link_layer_address(&mac.octets()).replace();
        self.run(format_args!("neighbour {address} is {mac} on {}", link.name), entry.execute())
    }
}
