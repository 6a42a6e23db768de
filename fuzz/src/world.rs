//! One node: containers of an encrypted and of an unencrypted network, some here, some elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use overlayd::forward::{EndpointSpec, NetworkTable, Place, Tables, TablesBuilder};
use overlayd::id::{LinkSlot, MacAddr, NetSlot, PortSlot, Vni, VtepSlot};

use super::claims::Claim;

/// Where a container is, hence of which network it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// Here, in the encrypted network.
    Port(u32),
    /// Behind a link of the encrypted network.
    Link(u32),
    /// Here, in the unencrypted network.
    PlainPort(u32),
    /// Behind a VTEP of the unencrypted network.
    Vtep(u32),
}

/// A container; its number is the last byte of its addresses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Container {
    number: u8,
    pub(crate) site: Site,
    is_gateway: bool,
}

/// All containers.
pub(crate) const CONTAINERS: [Container; 11] = [
    Container { number: 10, site: Site::Port(0), is_gateway: false },
    Container { number: 11, site: Site::Port(1), is_gateway: false },
    Container { number: 1, site: Site::Port(2), is_gateway: true },
    Container { number: 20, site: Site::Link(0), is_gateway: false },
    Container { number: 21, site: Site::Link(0), is_gateway: false },
    Container { number: 2, site: Site::Link(0), is_gateway: true },
    Container { number: 30, site: Site::Link(1), is_gateway: false },
    Container { number: 12, site: Site::PlainPort(3), is_gateway: false },
    Container { number: 13, site: Site::PlainPort(4), is_gateway: false },
    Container { number: 22, site: Site::Vtep(0), is_gateway: false },
    Container { number: 32, site: Site::Vtep(1), is_gateway: false },
];

pub(crate) const ENCRYPTED_VNI: u32 = 7;
pub(crate) const PLAIN_VNI: u32 = 9;
pub(crate) const MTU: u16 = 1408;

impl Container {
    pub(crate) fn mac(&self) -> MacAddr {
        MacAddr::new([2, 0x42, 10, 0, 0, self.number])
    }

    fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, self.number)
    }

    fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    /// The container with this MAC address at this place.
    pub(crate) fn at(site: Site, mac: &[u8]) -> Option<&'static Self> {
        CONTAINERS.iter().find(|container| container.site == site && container.mac().octets() == mac)
    }

    /// Whether it is of the encrypted network.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.site, Site::Port(_) | Site::Link(_))
    }

    /// Whether an address is one of its own.
    fn has(&self, ip: IpAddr) -> bool {
        ip == self.v4() || ip == self.v6() || ip == self.mac().link_local()
    }

    /// Whether it may send a packet from this address: a gateway may from any outside the network.
    fn may_send_from(&self, ip: IpAddr) -> bool {
        let is_taken =
            CONTAINERS.iter().any(|other| other.is_encrypted() == self.is_encrypted() && other.has(ip));
        let is_local = match ip {
            IpAddr::V4(ip) => ip.octets()[0] == 127 || ip.octets() == [255; 4],
            IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST || ip.segments()[0] & 0xffc0 == 0xfe80,
        };
        self.has(ip) || self.is_gateway && !(is_taken || is_local || ip.is_multicast() || ip.is_unspecified())
    }

    /// Panics unless it may make this claim to another node.
    pub(crate) fn check(&self, claim: &Claim) {
        let is_honest = match *claim {
            Claim::Ip(ip) => self.may_send_from(ip),
            Claim::ListenerReport(ip) => ip.is_unspecified() || self.may_send_from(ip.into()),
            Claim::Advertisement { source, target } => self.has(source.into()) && self.has(target.into()),
            // A foreign VTEP asks and answers by itself.
            Claim::Arp { mac, ip } => {
                !self.is_encrypted()
                    && mac == self.mac().octets()
                    && (self.has(ip.into()) || ip.is_unspecified())
            }
            Claim::OtherDiscovery(kind) => !self.is_encrypted() && kind == 135,
            Claim::Unknown => false,
        };
        assert!(is_honest, "{self:?} got away with {claim:?}");
    }

    fn spec<R>(&self, place: Place<R>) -> EndpointSpec<R> {
        let addresses = vec![self.v4().into(), self.v6().into()];
        EndpointSpec { mac: self.mac(), addresses, place, is_gateway: self.is_gateway }
    }
}

/// The tables of the node.
pub(crate) fn tables() -> Tables {
    let mut encrypted = Vec::new();
    let mut plain = Vec::new();
    for container in &CONTAINERS {
        match container.site {
            Site::Port(slot) => encrypted.push(container.spec(Place::Local(PortSlot::new(slot)))),
            Site::Link(slot) => encrypted.push(container.spec(Place::Remote(LinkSlot::new(slot)))),
            Site::PlainPort(slot) => plain.push(container.spec(Place::Local(PortSlot::new(slot)))),
            Site::Vtep(slot) => plain.push(container.spec(Place::Remote(VtepSlot::new(slot)))),
        }
    }
    let vteps = vec![vtep_address(0), vtep_address(1)];
    let net = NetSlot::new(0);
    TablesBuilder::default()
        .network(net, Arc::new(NetworkTable::encrypted(vni(ENCRYPTED_VNI), MTU, encrypted)))
        .network(NetSlot::new(1), Arc::new(NetworkTable::plain(vni(PLAIN_VNI), MTU, vteps, plain)))
        .link(LinkSlot::new(0), net, link_address(0))
        .link(LinkSlot::new(1), net, link_address(1))
        .build()
}

/// Where the peer of a link takes ESP.
pub(crate) fn link_address(link: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 10 + link], 4500))
}

/// Where a VTEP takes VXLAN.
pub(crate) fn vtep_address(vtep: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 20 + vtep], 4789))
}

pub(crate) fn vni(number: u32) -> Vni {
    Vni::new(number).expect("in range")
}
