//! Interfaces, addresses and routes, by rtnetlink(7): blocking calls over one connection.
//!
//! A [`Netlink`] sees the network namespace in which it was opened. It is for set-up and tear-down
//! by the agent, the laboratory and tests, never for the hot path. It must not be used on a thread
//! that drives a tokio runtime; [`Netlink::within`] never does.

mod addresses;
mod changes;
mod devices;
mod routes;

use std::future::Future;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::runtime::Runtime;

pub use addresses::InterfaceAddress;
pub use changes::LinkChanges;
pub use devices::{Handover, Vxlan};
pub use routes::Route;

use super::netns::{NetNs, NetNsError};
use crate::id::{IfName, MacAddr};

/// A connection to the kernel's network configuration of one namespace.
#[derive(Debug)]
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Connects to the namespace of the calling thread.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn here() -> Result<Self, NetlinkError> {
        let connect = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let entered = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            drop(entered);
            runtime.spawn(connection);
            Ok(Self { runtime, handle })
        };
        connect().map_err(|source| NetlinkError::Connect { source })
    }

    /// Runs `work` with a connection to `namespace`, on a thread of its own.
    ///
    /// # Errors
    /// What `work` gives; [`NetlinkError::Namespace`] when the namespace cannot be entered.
    pub fn within<T: Send>(
        namespace: &NetNs,
        work: impl FnOnce(&Self) -> Result<T, NetlinkError> + Send,
    ) -> Result<T, NetlinkError> {
        namespace.run_in(|| work(&Self::here()?))?
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchInterface`].
    pub fn link(&self, name: &IfName) -> Result<Link, NetlinkError> {
        match self.links()?.into_iter().find(|link| link.name == name.as_str()) {
            Some(link) => Ok(link),
            None => Err(NetlinkError::NoSuchInterface { name: name.to_string() }),
        }
    }

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let messages: Vec<LinkMessage> =
            self.run("list interfaces", self.handle.link().get().execute().try_collect())?;
        Ok(messages.iter().map(Link::from_message).collect())
    }

    /// Sets the interface up with addresses and default routes; IPv6 addresses can be used at once,
    /// without duplicate address detection, and the link-local address is the MAC's EUI-64 if there
    /// is any other IPv6 address, and none otherwise.
    ///
    /// # Errors
    /// At the first step that the kernel refuses; those before it stay done.
    pub fn configure(
        &self,
        link: &Link,
        addresses: &[IpNet],
        gateways: &[IpAddr],
    ) -> Result<(), NetlinkError> {
        self.set_link_local_generation(link, In6AddrGenMode::None)?;
        self.set_up(link, true)?;
        if let (Some(mac), true) = (link.mac, addresses.iter().any(|address| address.addr().is_ipv6())) {
            let link_local = ipnet::Ipv6Net::new_assert(mac.link_local(), 64);
            self.add_address(link, link_local.into())?;
        }
        for address in addresses {
            self.add_address(link, *address)?;
        }
        for gateway in gateways {
            self.add_default_route(link, *gateway)?;
        }
        Ok(())
    }

    /// Adds the default route of the gateway's family.
    ///
    /// # Errors
    /// What the kernel says; `ENETUNREACH` when the gateway is in no subnet of the interface.
    pub fn add_default_route(&self, link: &Link, gateway: IpAddr) -> Result<(), NetlinkError> {
        let route = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .gateway(gateway)
                .output_interface(link.index)
                .build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .gateway(gateway)
                .output_interface(link.index)
                .build(),
        };
        self.run(
            format_args!("default route via {gateway} on {}", link.name),
            self.handle.route().add(route).execute(),
        )
    }

    /// Sets the interface up or down.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_up(&self, link: &Link, up: bool) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(link.index);
        let change = if up { change.up() } else { change.down() };
        self.set(format_args!("set {} up or down", link.name), change)
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` beyond the device's limits.
    pub fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        self.set(
            format_args!("set the MTU of {} to {mtu}", link.name),
            LinkUnspec::new_with_index(link.index).mtu(mtu),
        )
    }

    /// Takes the IPv6 link-local addresses away that the kernel gave the interface by itself, as it does where an MTU
    /// becomes large enough for IPv6, and has it give none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove_link_local(&self, link: &Link) -> Result<(), NetlinkError> {
        self.set_link_local_generation(link, In6AddrGenMode::None)?;
        let given = self.addresses_of(link)?.into_iter().filter(|address| match address {
            IpNet::V6(address) => address.addr().is_unicast_link_local(),
            IpNet::V4(_) => false,
        });
        given.into_iter().try_for_each(|address| self.remove_address(link, address))
    }

    /// Sets the Ethernet address.
    ///
    /// # Errors
    /// What the kernel says; `EADDRNOTAVAIL` for a multicast address.
    pub fn set_mac(&self, link: &Link, mac: MacAddr) -> Result<(), NetlinkError> {
        self.set(
            format_args!("set the MAC of {} to {mac}", link.name),
            LinkUnspec::new_with_index(link.index).address(mac.octets().to_vec()),
        )
    }

    /// Sets the remark of the interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_alias(&self, link: &Link, alias: &str) -> Result<(), NetlinkError> {
        self.set(
            format_args!("set the alias of {}", link.name),
            LinkUnspec::new_with_index(link.index).alias(alias),
        )
    }

    /// Has the device be given no packet larger than one on the wire, so that captures of it show
    /// what a real wire would carry.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forbid_segment_offload(&self, link: &Link) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(link.index);
        let change = change.append_extra_attribute(LinkAttribute::GsoMaxSegs(1));
        self.set(format_args!("limit gso_max_segs of {}", link.name), change)
    }

    /// Deletes the interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(&self, link: &Link) -> Result<(), NetlinkError> {
        self.run(format_args!("delete {}", link.name), self.handle.link().del(link.index).execute())
    }

    /// Which IPv6 link-local address the kernel gives the interface when it is set up.
    fn set_link_local_generation(&self, link: &Link, mode: In6AddrGenMode) -> Result<(), NetlinkError> {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
        let change = LinkUnspec::new_with_index(link.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]));
        let action = format_args!("set addr_gen_mode of {}", link.name);
        match self.set(action, change) {
            // A kernel without IPv6, or with disable_ipv6=1 before the device was made, makes none anyway.
            Err(NetlinkError::Refused { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn set(
        &self,
        action: impl std::fmt::Display,
        change: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        self.run(action, self.handle.link().set(change.build()).execute())
    }

    fn run<T>(
        &self,
        action: impl std::fmt::Display,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        self.runtime.block_on(request).map_err(|error| NetlinkError::refused(&action, &error))
    }
}

/// An interface as the kernel described it; it does not follow later changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// The other end is there: for a TAP, a process has a queue of it open.
    pub carrier: bool,
    /// What made it, as `ip -d link` says: `tun`, `veth`, `vxlan`; none for hardware and `lo`.
    pub kind: Option<String>,
    /// The remark of `ip link set alias`.
    pub alias: Option<String>,
    /// How many queues of it processes have open, for a TAP with more than one.
    pub queues: Option<u32>,
}

impl Link {
    fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: false,
            kind: None,
            alias: None,
            queues: None,
        };
        for attribute in &message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name.clone_from(name);
            } else if let LinkAttribute::Address(mac) = attribute {
                link.mac = <[u8; 6]>::try_from(mac.as_slice()).ok().map(MacAddr::new);
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                link.mtu = *mtu;
            } else if let LinkAttribute::Carrier(carrier) = attribute {
                link.carrier = *carrier == 1;
            } else if let LinkAttribute::IfAlias(alias) = attribute {
                link.alias = Some(alias.clone());
            } else if let LinkAttribute::LinkInfo(infos) = attribute {
                link.kind = infos.iter().find_map(|info| {
                    if let LinkInfo::Kind(kind) = info { Some(kind.to_string()) } else { None }
                });
                link.queues = infos.iter().find_map(queues_of);
            }
        }
        link
    }
}

fn queues_of(info: &LinkInfo) -> Option<u32> {
    let LinkInfo::Data(InfoData::Tun(attributes)) = info else { return None };
    let number = attributes.iter().find(|attribute| attribute.kind() == IFLA_TUN_NUM_QUEUES)?;
    let mut bytes = [0; 4];
    (number.value_len() == bytes.len()).then(|| number.emit_value(&mut bytes))?;
    Some(u32::from_ne_bytes(bytes))
}

/// Of linux/if_link.h.
const IFLA_TUN_NUM_QUEUES: u16 = 8;

/// Why the kernel's configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot talk rtnetlink to the kernel: {source}")]
    Connect {
        /// What the kernel said.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetNsError),
    /// There is no such interface.
    #[error("there is no interface {name} in this network namespace")]
    NoSuchInterface {
        /// Its name.
        name: String,
    },
    /// No interface holds the address.
    #[error("no interface of this host has the address {address}")]
    NobodyHas {
        /// The address.
        address: IpAddr,
    },
    /// The kernel said no.
    #[error("{action}: {source}")]
    Refused {
        /// What was asked of it.
        action: String,
        /// What it said.
        source: io::Error,
    },
}

impl NetlinkError {
    fn refused(action: &impl std::fmt::Display, error: &rtnetlink::Error) -> Self {
        let source = if let rtnetlink::Error::NetlinkError(message) = error {
            message.to_io()
        } else {
            io::Error::other(error.to_string())
        };
        Self::Refused { action: action.to_string(), source }
    }

    /// The kernel refused an address of IPv6, which is switched off (`disable_ipv6`).
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::EACCES))
    }

    /// The kernel refused because the thing exists already.
    pub fn is_exists(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::EEXIST))
    }
}
