//! What the lanes have, held against what they are to have: the tables that they look things up in, and the SAs
//! that they send and receive with.
//!
//! It changes nothing: `verification` tells what differs, `upkeep` mends it. What is under way differs for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::dataplane::DataPlane;
use super::keys::LinkStatus;
use super::placement::{LinkKey, NotCarried, Placement, vtep_of};
use crate::cluster::{Endpoint, Membership, NetworkView, View};
use crate::forward::{Carrier, Directory, NetworkTable, Place, Remote, Tables};
use crate::id::{EndpointId, LinkSlot, NetworkId, NodeId, PortHold, PortSlot, Spi, Vni, VtepSlot};
use crate::worker::{Inventory, LaneGone};

/// What all lanes had at one moment, and the view and the slots that they had it by.
pub(crate) struct LaneState {
    pub(crate) view: Arc<View>,
    pub(crate) inventories: Vec<Inventory>,
    pub(crate) links: BTreeMap<LinkKey, LinkSlot>,
    vteps: BTreeMap<LinkKey, VtepSlot>,
    pub(crate) ports: BTreeMap<EndpointId, (PortSlot, PortHold)>,
    /// The networks of the view that this node is to carry.
    carried: BTreeMap<NetworkId, Carried>,
    /// Those that it refuses to carry, and why.
    pub(crate) refused: BTreeMap<NetworkId, NotCarried>,
}

/// What a network is carried by, besides the view.
pub(crate) struct Carried {
    pub(crate) membership: Arc<Membership>,
    /// The other nodes that packets are exchanged with.
    peers: BTreeSet<NodeId>,
    mtu: u16,
}

impl LaneState {
    /// Asks every lane; no change is half made meanwhile, but for keys.
    pub(crate) async fn look(dataplane: &DataPlane) -> Result<Self, LaneGone> {
        dataplane.take_inventory(Self::of).await
    }

    fn of(placement: &Placement, inventories: Vec<Inventory>) -> Self {
        let view = Arc::clone(placement.view());
        let carried = view.networks.iter().filter_map(|(id, network)| {
            let membership = Arc::clone(placement.carried_by(*id)?);
            let peers = placement.other_members(network).map(|node| node.id).collect();
            Some((*id, Carried { membership, peers, mtu: placement.mtu(network) }))
        });
        Self {
            carried: carried.collect(),
            inventories,
            links: placement.links(),
            vteps: placement.vteps(),
            ports: placement.ports(),
            refused: placement.refused().clone(),
            view,
        }
    }

    /// What the tables are to have of a network of the view; nothing of one that is not carried.
    pub(crate) fn expected<'v>(&'v self, this: NodeId, view: &'v NetworkView) -> Option<Expected<'v>> {
        let carried = self.carried.get(&view.network.id)?;
        let endpoints = view.endpoints.iter().filter_map(|endpoint| {
            let whither = if endpoint.node == this {
                Whither::Here(self.ports.get(&endpoint.id)?.0)
            } else {
                carried.peers.get(&endpoint.node).copied().map(Whither::At)?
            };
            Some((endpoint, whither))
        });
        Some(Expected { endpoints: endpoints.collect(), carried })
    }

    /// What is wrong of a network in the tables of a lane, if anything is.
    pub(crate) fn wrong_tables(&self, view: &NetworkView, expected: &Expected<'_>) -> Option<String> {
        let Expected { endpoints, carried: Carried { mtu, .. } } = expected;
        self.inventories.iter().enumerate().find_map(|(lane, inventory)| {
            let table = inventory.tables.networks().find(|table| table.vni() == view.network.vni);
            let wrong = match table {
                Some(table) if table.mtu() != *mtu => Some(format!("MTU {} where {mtu} fits", table.mtu())),
                Some(table) => deviation(view, table, &inventory.tables, self, endpoints),
                None => Some("the network is missing".to_owned()),
            };
            Some(format!("lane {lane}: {}", wrong?))
        })
    }

    /// A network in the tables of a lane that none which is carried is.
    pub(crate) fn surplus_network(&self) -> Option<String> {
        let carried = self.carried.keys().filter_map(|id| Some(self.view.networks.get(id)?.network.vni));
        let carried: BTreeSet<Vni> = carried.collect();
        self.inventories.iter().enumerate().find_map(|(lane, inventory)| {
            let vni =
                inventory.tables.networks().map(NetworkTable::vni).find(|vni| !carried.contains(vni))?;
            Some(format!("lane {lane}: the network of VNI {vni}, which is not carried"))
        })
    }

    /// The SAs of each link that has any.
    pub(crate) fn sas(&self) -> BTreeMap<LinkSlot, LinkSas> {
        let mut links: BTreeMap<LinkSlot, LinkSas> = BTreeMap::new();
        for lane in &self.inventories {
            for (link, spi) in &lane.inbound {
                links.entry(*link).or_default().inbound.insert(*spi);
            }
            for (link, spi) in &lane.outbound {
                links.entry(*link).or_default().outbound.insert(*spi);
            }
        }
        links
    }

    /// Those of these SAs that are in slots which no link holds.
    pub(crate) fn ended_sas(&self, sas: &BTreeMap<LinkSlot, LinkSas>) -> BTreeMap<LinkSlot, BTreeSet<Spi>> {
        let held: BTreeSet<LinkSlot> = self.links.values().copied().collect();
        let ended = sas.iter().filter(|(slot, _)| !held.contains(slot));
        ended.map(|(slot, LinkSas { inbound, outbound })| (*slot, inbound | outbound)).collect()
    }
}

/// What the tables are to have of a network.
pub(crate) struct Expected<'v> {
    pub(crate) endpoints: Vec<(&'v Endpoint, Whither)>,
    pub(crate) carried: &'v Carried,
}

impl Expected<'_> {
    /// How many of the endpoints are here.
    pub(crate) fn here(&self) -> usize {
        self.endpoints.iter().filter(|(_, place)| matches!(place, Whither::Here(_))).count()
    }
}

/// The SAs of one link, in all lanes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LinkSas {
    pub(crate) inbound: BTreeSet<Spi>,
    pub(crate) outbound: BTreeSet<Spi>,
}

impl LinkSas {
    /// How they differ from the keys that the link has agreed on, if they do.
    pub(crate) fn stray(&self, status: Option<&LinkStatus>) -> Option<StraySas> {
        let keys = status.and_then(|status| status.established.as_ref());
        let is = |found: &BTreeSet<Spi>, agreed: &[Spi]| {
            found.len() == agreed.len() && agreed.iter().all(|spi| found.contains(spi))
        };
        if keys.is_some_and(|keys| is(&self.inbound, &keys.inbound) && is(&self.outbound, &keys.outbound)) {
            // Nearly always, and of a thousand peers.
            return None;
        }
        let set = |spis: &[Spi]| -> BTreeSet<Spi> { spis.iter().copied().collect() };
        let outbound = keys.map_or_else(BTreeSet::new, |keys| set(&keys.outbound));
        let inbound = keys.map_or_else(BTreeSet::new, |keys| set(&keys.inbound));
        let (mut may_receive, mut may_send) = (inbound.clone(), outbound.clone());
        if let Some(LinkStatus { lingering, coming: [coming_in, coming_out], over, .. }) = status {
            may_receive.extend(lingering.iter().chain(coming_in));
            may_send.extend(coming_out.iter().chain(if keys.is_none() { &over[..] } else { &[] }));
        }
        let unknown = &(&self.inbound - &may_receive) | &(&self.outbound - &may_send);
        let lacks = !self.outbound.is_superset(&outbound) || !self.inbound.is_superset(&inbound);
        (lacks || !unknown.is_empty()).then_some(StraySas { unknown, lacks })
    }
}

/// How the SAs of a link differ from its keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StraySas {
    /// What is there and was not agreed on.
    pub(crate) unknown: BTreeSet<Spi>,
    /// Whether something is not there that was.
    pub(crate) lacks: bool,
}

/// Where an endpoint is to be found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whither {
    Here(PortSlot),
    At(NodeId),
}

fn deviation(
    view: &NetworkView,
    table: &NetworkTable,
    tables: &Tables,
    lanes: &LaneState,
    expected: &[(&Endpoint, Whither)],
) -> Option<String> {
    let id = view.network.id;
    match (table.carrier(), view.network.encrypted) {
        (Carrier::Esp(directory), true) => {
            let slot = |node| lanes.links.get(&(id, node)).copied();
            let wrong = view.nodes.iter().find(|node| {
                slot(node.id).is_some_and(|slot| tables.link(slot).is_none_or(|row| row.remote != node.data))
            });
            let wrong = wrong.map(|node| format!("packets to {} go elsewhere", node.name));
            wrong.or_else(|| misplaced(directory, expected, slot))
        }
        (Carrier::Vxlan(carrier), false) => {
            let slot = |node| lanes.vteps.get(&(id, node)).copied();
            let wrong = view.nodes.iter().find(|node| {
                slot(node.id)
                    .is_some_and(|slot| tables.vtep(slot).is_none_or(|row| row.remote != vtep_of(node)))
            });
            let wrong = wrong.map(|node| format!("packets to {} go elsewhere", node.name));
            wrong.or_else(|| misplaced(carrier.directory(), expected, slot))
        }
        (Carrier::Esp(_), false) | (Carrier::Vxlan(_), true) => {
            Some("encryption is not as the network's".to_owned())
        }
    }
}

fn misplaced<R: Remote>(
    directory: &Directory<R>,
    expected: &[(&Endpoint, Whither)],
    slot: impl Fn(NodeId) -> Option<R>,
) -> Option<String> {
    for (endpoint, place) in expected {
        let place = match place {
            Whither::Here(port) => Some(Place::Local(*port)),
            Whither::At(node) => slot(*node).map(Place::Remote),
        };
        let Some(row) = directory.by_mac(endpoint.mac) else {
            return Some(format!("endpoint {} is missing", endpoint.id));
        };
        if Some(row.place()) != place {
            return Some(format!("endpoint {} is elsewhere", endpoint.id));
        }
        let mut addresses = endpoint.addresses.iter().map(ipnet::IpNet::addr);
        let is_its = |ip: IpAddr| directory.by_ip(ip).is_some_and(|row| row.mac() == endpoint.mac);
        if let Some(other) = addresses.find(|ip| !is_its(*ip)) {
            return Some(format!("{other} is not that of endpoint {}", endpoint.id));
        }
    }
    let more = directory.rows().len().saturating_sub(expected.len());
    (more > 0).then(|| format!("{more} endpoints too many"))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::testbed::{PaperCluster, THIS, mac, network_id, peer, vni};
    use super::*;
    use crate::forward::{EndpointSpec, TablesBuilder};
    use crate::id::NetSlot;

    #[test]
    fn tables_of_a_lane_that_are_wrong_in_whatever_way_are_told() {
        let right = || vec![spec(2, link(2)), spec(3, link(3)), spec(THIS, HERE)];
        let but = |at: usize, other: EndpointSpec<LinkSlot>| {
            let mut wrong = right();
            wrong[at] = other;
            wrong
        };
        let addressed = |n, address| EndpointSpec { addresses: vec![ip(address)], ..spec(n, link(n)) };
        assert_eq!(told(right(), [2, 3]), None);
        for (wrong, remotes, says) in [
            (right()[1..].to_vec(), [2, 3], "is missing"),
            (but(0, spec(2, link(3))), [2, 3], "is elsewhere"),
            (but(0, spec(2, HERE)), [2, 3], "is elsewhere"),
            (but(2, spec(THIS, link(2))), [2, 3], "is elsewhere"),
            (but(1, addressed(3, 9)), [2, 3], "10.0.0.3 is not that of endpoint"),
            ([right(), vec![spec(4, link(3))]].concat(), [2, 3], "1 endpoints too many"),
            (right(), [2, 4], "packets to node-3 go elsewhere"),
        ] {
            let told = told(wrong, remotes).expect(says);
            assert!(told.contains(says), "{told}: {says}");
        }
    }

    /// What is told of one network's table with these endpoints, whose peers 2 and 3 are reached at these hosts.
    fn told(endpoints: Vec<EndpointSpec<LinkSlot>>, remotes: [u8; 2]) -> Option<String> {
        let cluster = PaperCluster::new();
        let view = cluster.network(1, 1, &[2, 3]);
        let table = Arc::new(NetworkTable::encrypted(vni(1), 1408, endpoints));
        let at = |host: u8| SocketAddr::from(([192, 0, 2, host], 4500));
        let net = NetSlot::new(0);
        let tables = TablesBuilder::default().network(net, Arc::clone(&table));
        let tables = tables.link(slot(2), net, at(remotes[0])).link(slot(3), net, at(remotes[1])).build();
        let links = [2, 3].map(|n| ((network_id(1), peer(n)), slot(n))).into();
        let lanes = LaneState { links, ..LaneState::of(&Placement::new(&cluster.identity), Vec::new()) };
        let place = |endpoint: &Endpoint| match endpoint.node == cluster.this() {
            true => Whither::Here(PortSlot::new(0)),
            false => Whither::At(endpoint.node),
        };
        let expected: Vec<_> = view.endpoints.iter().map(|endpoint| (endpoint, place(endpoint))).collect();
        deviation(&view, &table, &tables, &lanes, &expected)
    }

    fn spec(number: u8, place: Place<LinkSlot>) -> EndpointSpec<LinkSlot> {
        EndpointSpec { mac: mac(number), addresses: vec![ip(number)], place, is_gateway: false }
    }

    fn ip(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    const HERE: Place<LinkSlot> = Place::Local(PortSlot::new(0));

    fn link(number: u8) -> Place<LinkSlot> {
        Place::Remote(slot(number))
    }

    fn slot(number: u8) -> LinkSlot {
        LinkSlot::new(u32::from(number))
    }
}
