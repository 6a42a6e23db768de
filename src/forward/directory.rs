//! The endpoints of one network by MAC and by IP address: FDB and neighbour table in one.
//!
//! It is generic over where a remote endpoint can be: a link (ESP) or a VTEP (plain VXLAN). So an
//! encrypted network's directory has no way to say "send this in the clear". Built by the agent
//! through `forward::NetworkTable`, read by every lane.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;

use crate::id::{LinkSlot, MacAddr, PortSlot, VtepSlot};

/// The endpoints of one network; immutable.
#[derive(Debug)]
pub struct Directory<R> {
    rows: Box<[Row<R>]>,
    by_mac: HashMap<MacAddr, Found<R>, FixedState>,
    by_ip: HashMap<IpAddr, u32, FixedState>,
    local_ports: Box<[PortSlot]>,
    remotes: Box<[R]>,
}

impl<R: Remote> Directory<R> {
    /// Indexes the endpoints. MAC and IP addresses are unique in a network; should two endpoints
    /// claim one nevertheless, the first has it and the other is unreachable by it.
    pub fn new(endpoints: Vec<EndpointSpec<R>>) -> Self {
        let mut by_mac = HashMap::with_capacity_and_hasher(endpoints.len(), FixedState::default());
        let mut by_ip = HashMap::with_capacity_and_hasher(endpoints.len(), FixedState::default());
        let mut local_ports = Vec::new();
        let mut remotes = Vec::new();
        let mut rows = Vec::with_capacity(endpoints.len());
        for (index, EndpointSpec { mac, addresses, place, is_gateway }) in (0u32..).zip(endpoints) {
            by_mac.entry(mac).or_insert(Found { row: index, place });
            for address in &addresses {
                by_ip.entry(*address).or_insert(index);
            }
            match place {
                Place::Local(port) => local_ports.push(port),
                Place::Remote(remote) => remotes.push(remote),
            }
            rows.push(Row::new(mac, &addresses, place, is_gateway));
        }
        remotes.sort_unstable();
        remotes.dedup();
        Self { rows: rows.into(), by_mac, by_ip, local_ports: local_ports.into(), remotes: remotes.into() }
    }

    /// The endpoint with this MAC address.
    pub fn by_mac(&self, mac: MacAddr) -> Option<&Row<R>> {
        self.row(self.by_mac.get(&mac)?.row)
    }

    /// Where the endpoint with this MAC address is.
    pub fn place(&self, mac: MacAddr) -> Option<Place<R>> {
        Some(self.by_mac.get(&mac)?.place)
    }

    /// The endpoint with this MAC address, if it is there.
    pub fn by_mac_at(&self, mac: MacAddr, place: Place<R>) -> Option<&Row<R>> {
        self.row(self.by_mac.get(&mac).filter(|found| found.place == place)?.row)
    }

    /// The endpoint with this IP address, or with this modified EUI-64 link-local address.
    pub fn by_ip(&self, ip: IpAddr) -> Option<&Row<R>> {
        match self.by_ip.get(&ip) {
            Some(index) => self.row(*index),
            None => match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(ip) => self.by_mac(link_local_mac(ip)?).filter(|row| row.mac.link_local() == ip),
            },
        }
    }

    /// The local ports of the network: half of where a flooded frame goes.
    pub fn local_ports(&self) -> &[PortSlot] {
        &self.local_ports
    }

    /// Every remote that has an endpoint, once: the other half.
    pub fn remotes(&self) -> &[R] {
        &self.remotes
    }

    /// All endpoints, in the order they were given.
    pub fn rows(&self) -> &[Row<R>] {
        &self.rows
    }

    pub(super) fn row(&self, index: u32) -> Option<&Row<R>> {
        self.rows.get(usize::try_from(index).ok()?)
    }
}

/// An endpoint as the agent hands it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec<R> {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IP addresses, without link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Where it is.
    pub place: Place<R>,
    /// Whether it holds the network's gateway address, hence may forward packets from outside.
    pub is_gateway: bool,
}

/// Where an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<R> {
    /// On this node.
    Local(PortSlot),
    /// On another.
    Remote(R),
}

/// What a lane most often wants to know of a MAC address: most lookups end here, without the row.
#[derive(Debug, Clone, Copy)]
struct Found<R> {
    row: u32,
    place: Place<R>,
}

/// An endpoint of the directory. A lane that serves very many fetches each row from far away, so that it is
/// one cache line and nothing that is usual lies behind a pointer.
#[derive(Debug)]
#[repr(align(64))]
pub struct Row<R> {
    mac: MacAddr,
    place: Place<R>,
    is_gateway: bool,
    /// The first one of either family, and the others.
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    more: Box<[IpAddr]>,
}

impl<R: Remote> Row<R> {
    fn new(mac: MacAddr, addresses: &[IpAddr], place: Place<R>, is_gateway: bool) -> Self {
        let (mut ipv4, mut ipv6, mut more) = (None, None, Vec::new());
        for address in addresses {
            match *address {
                IpAddr::V4(ip) if ipv4.is_none() => ipv4 = Some(ip),
                IpAddr::V6(ip) if ipv6.is_none() => ipv6 = Some(ip),
                other @ (IpAddr::V4(_) | IpAddr::V6(_)) => more.push(other),
            }
        }
        Self { mac, place, is_gateway, ipv4, ipv6, more: more.into() }
    }

    /// Its MAC address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Where it is.
    pub fn place(&self) -> Place<R> {
        self.place
    }

    /// Whether it may forward packets from outside the network.
    pub fn is_gateway(&self) -> bool {
        self.is_gateway
    }

    /// Whether `ip` is one of its addresses or its link-local address.
    pub fn has(&self, ip: IpAddr) -> bool {
        let is_first = match ip {
            IpAddr::V4(ip) => self.ipv4 == Some(ip),
            IpAddr::V6(ip) => self.ipv6 == Some(ip) || ip == self.mac.link_local(),
        };
        is_first || self.more.contains(&ip)
    }
}

/// Where a remote endpoint can be: behind a link or behind a VTEP.
pub trait Remote: Copy + Ord {
    /// Whether the other end may ask for neighbours over the wire. An agent answers its own
    /// containers from its table; a foreign VTEP, such as the kernel's, has no such table.
    const MAY_ASK: bool;
}

impl Remote for LinkSlot {
    const MAY_ASK: bool = false;
}

impl Remote for VtepSlot {
    const MAY_ASK: bool = true;
}

/// The MAC address in a modified EUI-64 link-local address (RFC 4291 appendix A).
fn link_local_mac(ip: Ipv6Addr) -> Option<MacAddr> {
    match ip.octets() {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
            Some(MacAddr::new([a ^ 2, b, c, d, e, f]))
        }
        [..] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: u8, place: Place<LinkSlot>) -> EndpointSpec<LinkSlot> {
        EndpointSpec {
            mac: MacAddr::new([2, 0, 0, 0, 0, number]),
            addresses: vec![IpAddr::from([10, 0, 0, number])],
            place,
            is_gateway: false,
        }
    }

    #[test]
    fn endpoints_are_found_by_mac_ip_and_link_local_address() {
        let place = Place::Remote(LinkSlot::new(7));
        let directory = Directory::new(vec![endpoint(1, Place::Local(PortSlot::new(0))), endpoint(2, place)]);
        let mac = MacAddr::new([2, 0, 0, 0, 0, 2]);
        for found in [
            directory.by_mac(mac),
            directory.by_ip([10, 0, 0, 2].into()),
            directory.by_ip(mac.link_local().into()),
        ] {
            assert_eq!(found.expect("an endpoint").place(), place);
        }
        assert!(directory.by_ip([10, 0, 0, 3].into()).is_none());
        assert!(directory.by_ip(MacAddr::new([2, 0, 0, 0, 0, 9]).link_local().into()).is_none());
        assert!(directory.by_ip("fe80::1".parse().expect("an address")).is_none());
    }

    #[test]
    fn every_address_of_an_endpoint_is_its_own() {
        let addresses: [IpAddr; 5] = ["10.0.0.1", "10.1.0.1", "fd00::1", "fd01::1", "10.2.0.1"]
            .map(|ip| ip.parse().expect("an address"));
        let spec =
            EndpointSpec { addresses: addresses.into(), ..endpoint(1, Place::Local(PortSlot::new(0))) };
        let directory = Directory::new(vec![spec]);
        let row = directory.by_mac(MacAddr::new([2, 0, 0, 0, 0, 1])).expect("an endpoint");
        for address in addresses.into_iter().chain([row.mac().link_local().into()]) {
            assert!(row.has(address), "{address}");
            assert_eq!(directory.by_ip(address).expect("an endpoint").mac(), row.mac());
        }
        for foreign in ["10.0.0.2", "fd00::2", "::", "::ffff:10.0.0.1"] {
            assert!(!row.has(foreign.parse().expect("an address")), "{foreign}");
        }
    }

    #[test]
    fn endpoint_is_found_where_it_is_and_nowhere_else() {
        let (here, there) = (Place::Local(PortSlot::new(0)), Place::Remote(LinkSlot::new(7)));
        let directory = Directory::new(vec![endpoint(1, here), endpoint(2, there)]);
        let mac = MacAddr::new([2, 0, 0, 0, 0, 2]);
        assert_eq!(directory.place(mac), Some(there));
        assert_eq!(directory.by_mac_at(mac, there).map(Row::mac), Some(mac));
        for elsewhere in [here, Place::Remote(LinkSlot::new(8))] {
            assert!(directory.by_mac_at(mac, elsewhere).is_none());
        }
        assert_eq!(directory.place(MacAddr::new([2, 0, 0, 0, 0, 9])), None);
    }

    #[test]
    fn row_is_one_cache_line() {
        assert_eq!(size_of::<Row<LinkSlot>>(), 64);
        assert_eq!(size_of::<Row<VtepSlot>>(), 64);
    }

    #[test]
    fn each_remote_is_flooded_to_once() {
        let link = |slot| Place::Remote(LinkSlot::new(slot));
        let directory =
            Directory::new(vec![endpoint(1, link(3)), endpoint(2, link(1)), endpoint(3, link(3))]);
        assert_eq!(directory.remotes(), [LinkSlot::new(1), LinkSlot::new(3)]);
        assert!(directory.local_ports().is_empty());
    }

    #[test]
    fn first_of_two_claimants_has_the_address() {
        let (first, second) = (Place::Remote(LinkSlot::new(1)), Place::Remote(LinkSlot::new(2)));
        let directory = Directory::new(vec![endpoint(1, first), endpoint(1, second)]);
        assert_eq!(directory.by_ip([10, 0, 0, 1].into()).expect("an endpoint").place(), first);
    }
}
