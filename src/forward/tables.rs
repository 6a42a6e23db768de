//! The snapshot of everything a lane looks up: networks, local ports, links and VTEPs.
//!
//! Slots are dense indexes that the agent assigns; a port's and a VTEP's row follow from the
//! networks, so that they cannot contradict them. A network that did not change is carried over
//! by its `Arc`. Lanes read it, nobody changes it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::directory::{Directory, EndpointSpec, Place, Remote, Row};
use crate::id::{LinkSlot, NetSlot, PortSlot, Vni, VtepSlot};

/// One immutable snapshot; the default one is empty and drops everything.
#[derive(Debug, Default)]
pub struct Tables {
    networks: Box<[Option<Arc<NetworkTable>>]>,
    ports: Box<[Option<PortRow>]>,
    links: Box<[Option<LinkRow>]>,
    vteps: Box<[Option<VtepRow>]>,
    plain_vnis: HashMap<Vni, NetSlot, FixedState>,
    encrypted_vnis: HashSet<Vni, FixedState>,
}

impl Tables {
    /// The network in a slot.
    pub fn network(&self, slot: NetSlot) -> Option<&NetworkTable> {
        self.networks.get(slot.index())?.as_deref()
    }

    /// The network in a slot, to be carried over into the next snapshot.
    pub fn shared_network(&self, slot: NetSlot) -> Option<&Arc<NetworkTable>> {
        self.networks.get(slot.index())?.as_ref()
    }

    /// All networks.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkTable> {
        self.networks.iter().flatten().map(|network| &**network)
    }

    /// The local port in a slot.
    pub fn port(&self, slot: PortSlot) -> Option<PortRow> {
        *self.ports.get(slot.index())?
    }

    /// The link in a slot.
    pub fn link(&self, slot: LinkSlot) -> Option<LinkRow> {
        *self.links.get(slot.index())?
    }

    /// The VTEP in a slot.
    pub fn vtep(&self, slot: VtepSlot) -> Option<VtepRow> {
        *self.vteps.get(slot.index())?
    }

    /// The unencrypted network with this VNI.
    pub fn plain_network(&self, vni: Vni) -> Option<(&NetworkTable, &PlainCarrier)> {
        let network = self.network(*self.plain_vnis.get(&vni)?)?;
        match network.carrier() {
            Carrier::Vxlan(carrier) => Some((network, carrier)),
            Carrier::Esp(_) => None,
        }
    }

    /// Whether an encrypted network of this node has this VNI.
    pub fn is_encrypted(&self, vni: Vni) -> bool {
        self.encrypted_vnis.contains(&vni)
    }
}

/// Puts a snapshot together.
#[derive(Debug, Default)]
pub struct TablesBuilder {
    networks: Vec<Option<Arc<NetworkTable>>>,
    links: Vec<Option<LinkRow>>,
}

impl TablesBuilder {
    /// Puts a network in a slot; its local endpoints become ports.
    #[must_use]
    pub fn network(mut self, slot: NetSlot, network: Arc<NetworkTable>) -> Self {
        set(&mut self.networks, slot.index(), network);
        self
    }

    /// Puts a link of the network `net` in a slot: its packets go to `remote` (the peer's ESP port).
    #[must_use]
    pub fn link(mut self, slot: LinkSlot, net: NetSlot, remote: SocketAddr) -> Self {
        set(&mut self.links, slot.index(), LinkRow { net, remote });
        self
    }

    /// The snapshot.
    pub fn build(self) -> Tables {
        let (mut ports, mut vteps) = (Vec::new(), Vec::new());
        let mut plain_vnis = HashMap::default();
        let mut encrypted_vnis = HashSet::default();
        for (net, network) in (0u32..).zip(&self.networks) {
            let Some(network) = network else { continue };
            let net = NetSlot::new(net);
            match &network.carrier {
                Carrier::Esp(directory) => {
                    encrypted_vnis.insert(network.vni);
                    add_ports(&mut ports, net, directory);
                }
                Carrier::Vxlan(carrier) => {
                    plain_vnis.insert(network.vni, net);
                    add_ports(&mut ports, net, &carrier.directory);
                    for (slot, remote) in &carrier.vteps {
                        set(&mut vteps, slot.index(), VtepRow { net, remote: *remote });
                    }
                }
            }
        }
        Tables {
            networks: self.networks.into(),
            ports: ports.into(),
            links: self.links.into(),
            vteps: vteps.into(),
            plain_vnis,
            encrypted_vnis,
        }
    }
}

/// A local endpoint: its network and its row there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRow {
    net: NetSlot,
    row: u32,
}

impl PortRow {
    /// Its network.
    pub fn net(self) -> NetSlot {
        self.net
    }

    /// Its endpoint in the directory of its network.
    pub fn endpoint<R: Remote>(self, directory: &Directory<R>) -> Option<&Row<R>> {
        directory.row(self.row)
    }
}

/// A peer in one encrypted network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkRow {
    /// The network.
    pub net: NetSlot,
    /// Where the peer's ESP port is.
    pub remote: SocketAddr,
}

/// A peer in one unencrypted network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VtepRow {
    /// The network.
    pub net: NetSlot,
    /// Where the peer's VXLAN port is.
    pub remote: SocketAddr,
}

/// One network.
#[derive(Debug)]
pub struct NetworkTable {
    vni: Vni,
    mtu: u16,
    carrier: Carrier,
}

impl NetworkTable {
    /// An encrypted network: its remote endpoints are behind links.
    pub fn encrypted(vni: Vni, mtu: u16, endpoints: Vec<EndpointSpec<LinkSlot>>) -> Self {
        Self { vni, mtu, carrier: Carrier::Esp(Directory::new(endpoints)) }
    }

    /// An unencrypted network: its remote endpoints are behind `vteps`. Their slots are theirs alone
    /// among those of all networks.
    pub fn plain(
        vni: Vni,
        mtu: u16,
        vteps: Vec<(VtepSlot, SocketAddr)>,
        endpoints: Vec<EndpointSpec<VtepSlot>>,
    ) -> Self {
        let by_ip = vteps.iter().map(|(slot, remote)| (remote.ip(), *slot)).collect();
        let directory = Directory::new(endpoints);
        Self { vni, mtu, carrier: Carrier::Vxlan(PlainCarrier { directory, vteps: vteps.into(), by_ip }) }
    }

    /// Its VNI.
    pub fn vni(&self) -> Vni {
        self.vni
    }

    /// The MTU of its containers' interfaces, in bytes of IP.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// How its frames travel, with its endpoints.
    pub fn carrier(&self) -> &Carrier {
        &self.carrier
    }
}

/// How the frames of a network travel between nodes, with the endpoints placed accordingly.
#[derive(Debug)]
pub enum Carrier {
    /// In ESP, to links.
    Esp(Directory<LinkSlot>),
    /// In plain VXLAN, to VTEPs.
    Vxlan(PlainCarrier),
}

/// The endpoints and VTEPs of an unencrypted network.
#[derive(Debug)]
pub struct PlainCarrier {
    directory: Directory<VtepSlot>,
    vteps: Box<[(VtepSlot, SocketAddr)]>,
    by_ip: HashMap<IpAddr, VtepSlot, FixedState>,
}

impl PlainCarrier {
    /// The endpoints.
    pub fn directory(&self) -> &Directory<VtepSlot> {
        &self.directory
    }

    /// The VTEP that sends from this address; RFC 7348 leaves its source port open.
    pub fn sender(&self, ip: IpAddr) -> Option<VtepSlot> {
        self.by_ip.get(&ip.to_canonical()).copied()
    }
}

fn add_ports<R: Remote>(ports: &mut Vec<Option<PortRow>>, net: NetSlot, directory: &Directory<R>) {
    for (row, endpoint) in (0u32..).zip(directory.rows()) {
        match endpoint.place() {
            Place::Local(port) => set(ports, port.index(), PortRow { net, row }),
            Place::Remote(_) => {}
        }
    }
}

fn set<T>(slots: &mut Vec<Option<T>>, index: usize, value: T) {
    if slots.len() <= index {
        slots.resize_with(index + 1, || None);
    }
    slots[index] = Some(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MacAddr;

    fn vni(number: u32) -> Vni {
        Vni::new(number).expect("in range")
    }

    fn local<R>(number: u8, port: u32) -> EndpointSpec<R> {
        EndpointSpec {
            mac: MacAddr::new([2, 0, 0, 0, 0, number]),
            addresses: vec![IpAddr::from([10, 0, 0, number])],
            place: Place::Local(PortSlot::new(port)),
            is_gateway: false,
        }
    }

    #[test]
    fn empty_tables_know_nothing() {
        let tables = Tables::default();
        assert!(tables.port(PortSlot::new(0)).is_none());
        assert!(tables.link(LinkSlot::new(0)).is_none());
        assert!(tables.network(NetSlot::new(0)).is_none());
        assert!(tables.plain_network(vni(1)).is_none());
        assert!(!tables.is_encrypted(vni(1)));
    }

    #[test]
    fn ports_follow_from_the_local_endpoints() {
        let network = Arc::new(NetworkTable::encrypted(vni(5), 1408, vec![local(1, 3), local(2, 9)]));
        let tables = TablesBuilder::default().network(NetSlot::new(2), network).build();
        assert_eq!(tables.port(PortSlot::new(9)), Some(PortRow { net: NetSlot::new(2), row: 1 }));
        assert!(tables.port(PortSlot::new(4)).is_none());
        assert!(tables.is_encrypted(vni(5)));
        assert!(tables.plain_network(vni(5)).is_none());
    }

    #[test]
    fn unchanged_network_is_carried_over_by_reference() {
        let network = Arc::new(NetworkTable::encrypted(vni(5), 1408, vec![local(1, 0)]));
        let old = TablesBuilder::default().network(NetSlot::new(0), network.clone()).build();
        let carried = old.shared_network(NetSlot::new(0)).expect("a network").clone();
        let new = TablesBuilder::default().network(NetSlot::new(0), carried).build();
        assert!(Arc::ptr_eq(new.shared_network(NetSlot::new(0)).expect("a network"), &network));
    }

    #[test]
    fn vteps_are_known_by_source_address_alone() {
        let vtep: SocketAddr = "192.0.2.2:4789".parse().expect("an address");
        let slot = VtepSlot::new(4);
        let network = Arc::new(NetworkTable::plain(vni(6), 1450, vec![(slot, vtep)], vec![local(1, 0)]));
        let tables = TablesBuilder::default().network(NetSlot::new(2), network).build();
        let (_, carrier) = tables.plain_network(vni(6)).expect("a plain network");
        assert_eq!(carrier.sender("::ffff:192.0.2.2".parse().expect("an address")), Some(slot));
        assert_eq!(carrier.sender([192, 0, 2, 3].into()), None);
        assert_eq!(tables.vtep(slot), Some(VtepRow { net: NetSlot::new(2), remote: vtep }));
        assert_eq!(tables.vtep(VtepSlot::new(0)), None);
        assert!(!tables.is_encrypted(vni(6)));
    }
}
