//! The addresses of interfaces.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};

use super::{Link, Netlink, NetlinkError};

impl Netlink {
    /// Every address of the namespace with the interface that holds it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses(&self) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let messages = self.address_messages()?;
        let links = self.links()?;
        let mut addresses = Vec::with_capacity(messages.len());
        for message in &messages {
            let link = links.iter().find(|link| link.index == message.header.index);
            if let (Some(link), Some(address)) = (link, address_of(message)) {
                addresses.push(InterfaceAddress { link: link.clone(), address });
            }
        }
        Ok(addresses)
    }

    /// The addresses of one interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses_of(&self, link: &Link) -> Result<Vec<IpNet>, NetlinkError> {
        let messages = self.address_messages()?;
        let own = messages.iter().filter(|message| message.header.index == link.index);
        Ok(own.filter_map(address_of).collect())
    }

    /// The interface that holds `address` (the underlay's, with its MTU).
    ///
    /// # Errors
    /// [`NetlinkError::NobodyHas`] when it is no address of this namespace.
    pub fn holder_of(&self, address: IpAddr) -> Result<Link, NetlinkError> {
        let held = self.addresses()?.into_iter().find(|held| held.address.addr() == address);
        held.map(|held| held.link).ok_or(NetlinkError::NobodyHas { address })
    }

    /// Adds an address, without duplicate address detection.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_address(&self, link: &Link, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(link.index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        self.run(format_args!("add {address} to {}", link.name), request.execute())
    }

    /// Removes an address.
    ///
    /// # Errors
    /// [`NetlinkError::NobodyHas`] when the interface has it not, or what the kernel says.
    pub fn remove_address(&self, link: &Link, address: IpNet) -> Result<(), NetlinkError> {
        let is_it = |message: &AddressMessage| {
            message.header.index == link.index && address_of(message) == Some(address)
        };
        let held = self.address_messages()?.into_iter().find(is_it);
        let held = held.ok_or(NetlinkError::NobodyHas { address: address.addr() })?;
        self.run(
            format_args!("remove {address} from {}", link.name),
            self.handle.address().del(held).execute(),
        )
    }

    fn address_messages(&self) -> Result<Vec<AddressMessage>, NetlinkError> {
        self.run("list addresses", self.handle.address().get().execute().try_collect())
    }
}

/// An address of an interface, with its subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface.
    pub link: Link,
    /// The address and the length of its prefix.
    pub address: IpNet,
}

/// The interface's own address: IFA_LOCAL where there is one, for IFA_ADDRESS is the peer's then.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let mut own = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            own = Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            own = own.or(Some(*address));
        }
    }
    IpNet::new(own?, message.header.prefix_len).ok()
}
