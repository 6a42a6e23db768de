//! The networks of this node: what the manager says of them, who may hold their keys, what the lanes
//! look up, and the keys themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::agent::member::Member;
use crate::agent::placement::{LinkKey, vtep_of};
use crate::api::ApiError;
use crate::api::types::{MendedBy, PeerState, Verified, VerifiedItem};
use crate::cluster::{Endpoint, Membership, NetworkView, View};
use crate::control::rpc::{ErrorKind, messages};
use crate::control::session::SessionStatus;
use crate::forward::{Carrier, Directory, NetworkTable, Place, Remote, Tables};
use crate::id::{LinkSlot, NodeId, Spi, VtepSlot};
use crate::worker::Inventory;

pub(super) async fn items(member: &Member) -> Result<Vec<VerifiedItem>, ApiError> {
    let view = member.dataplane.view().await;
    let mut inventories = Vec::new();
    for lane in member.dataplane.lanes() {
        inventories.push(lane.inventory().await?);
    }
    let mut items = vec![manager(member, &view)];
    let slots = Slots { links: member.dataplane.links().await, vteps: member.dataplane.vteps().await };
    let refused = member.dataplane.refused().await;
    for (id, network) in &view.networks {
        let name = &network.network.name;
        items.push(told(member, network).await);
        let membership = member.dataplane.membership(*id).await;
        let refused = refused.get(id).map(ToString::to_string);
        let membership = membership.filter(|membership| membership.nodes.contains(&member.node.id));
        let (Some(membership), None) = (membership, refused.as_ref()) else {
            let is = refused.unwrap_or_else(|| "this node is not in it".to_owned());
            let how = "carries nothing of the network until a manager has signed one that it can believe";
            items.push(VerifiedItem::differs(
                (Verified::Membership, name),
                is,
                "signed, and names this node",
                (MendedBy::Agent, how),
            ));
            continue;
        };
        let nodes = membership.nodes.len();
        items.push(VerifiedItem::ok(
            Verified::Membership,
            name,
            format!("epoch {}, {nodes} nodes", membership.epoch),
        ));
        items.push(tables(member, network, &membership, &slots, &inventories).await);
    }
    items.extend(keys(member, &view, &slots.links, &inventories));
    Ok(items)
}

/// The slots that things have in the tables and the lanes.
struct Slots {
    links: BTreeMap<LinkKey, LinkSlot>,
    vteps: BTreeMap<LinkKey, VtepSlot>,
}

fn manager(member: &Member, view: &View) -> VerifiedItem {
    let cluster = member.credentials.identity().cluster();
    let should_be = "a session";
    let differs = |is: String, by: MendedBy, how: &str| {
        VerifiedItem::differs((Verified::Manager, cluster), is, should_be, (by, how))
    };
    let session = member.session.borrow().clone();
    match session {
        SessionStatus::Connected => {
            VerifiedItem::ok(Verified::Manager, cluster, format!("a session, version {}", view.version))
        }
        SessionStatus::Connecting => differs("none yet".to_owned(), MendedBy::Agent, "connects"),
        SessionStatus::Disconnected(error) => differs(
            format!("none: {error}"),
            MendedBy::Agent,
            "tries again every few seconds; what is attached works meanwhile",
        ),
        SessionStatus::Removed(error) => differs(
            error.to_string(),
            MendedBy::Operator,
            "this node was removed: 'overlayd leave --force' takes it out for good",
        ),
    }
}

/// What the manager says now of a network, and what this node was told of it.
async fn told(member: &Member, network: &NetworkView) -> VerifiedItem {
    let name = &network.network.name;
    let own = summary(member, network);
    let Some(client) = member.connected_client() else {
        return VerifiedItem::differs(
            (Verified::View, name),
            format!("{own}, as last heard"),
            "what a manager says",
            (MendedBy::Agent, "asks again when it has a session with one"),
        );
    };
    let request = messages::InspectNetwork { name: name.clone() };
    let answer = tokio::time::timeout(ASKED, client.inspect_network(request)).await;
    let follows = "follows as soon as it is told";
    match answer {
        Ok(Ok(detail)) if detail.view == *network => VerifiedItem::ok(Verified::View, name, own),
        Ok(Ok(detail)) => {
            let theirs = summary(member, &detail.view);
            let theirs = if theirs == own { "the same with other particulars".to_owned() } else { theirs };
            VerifiedItem::differs((Verified::View, name), own, theirs, (MendedBy::Agent, follows))
        }
        Ok(Err(error)) if error.kind == ErrorKind::NotFound => {
            VerifiedItem::differs((Verified::View, name), own, "no such network", (MendedBy::Agent, follows))
        }
        Ok(Err(error)) => VerifiedItem::differs(
            (Verified::View, name),
            format!("{own}, as last heard"),
            format!("what the manager says, which is: {error}"),
            (MendedBy::Agent, "asks again"),
        ),
        Err(_) => VerifiedItem::differs(
            (Verified::View, name),
            format!("{own}, as last heard"),
            format!("what the manager says, which did not answer within {} s", ASKED.as_secs()),
            (MendedBy::Agent, "connects again"),
        ),
    }
}

fn summary(member: &Member, view: &NetworkView) -> String {
    let identity = member.credentials.identity();
    let signed =
        view.membership.verify(member.credentials.trust().roots(), identity.cluster(), &BTreeSet::new());
    let epoch = signed.map_or_else(|error| error.to_string(), |signed| format!("epoch {}", signed.epoch));
    format!("{epoch}, {} endpoints, {} nodes", view.endpoints.len(), view.nodes.len())
}

/// Whether every lane has each endpoint and peer of a network where it is, and no others.
async fn tables(
    member: &Member,
    view: &NetworkView,
    membership: &Membership,
    slots: &Slots,
    inventories: &[Inventory],
) -> VerifiedItem {
    let mut expected = Vec::new();
    let mut here = 0;
    for endpoint in &view.endpoints {
        if endpoint.node == member.node.id {
            if let Some(port) = member.dataplane.port(endpoint.id).await {
                here += 1;
                expected.push((endpoint, Expected::Here(port)));
            }
        } else if membership.nodes.contains(&endpoint.node) {
            expected.push((endpoint, Expected::At(endpoint.node)));
        }
    }
    let name = &view.network.name;
    for (lane, inventory) in inventories.iter().enumerate() {
        let table = inventory.tables.networks().find(|table| table.vni() == view.network.vni);
        let wrong = match table {
            Some(table) => deviation(view, table, &inventory.tables, slots, &expected),
            None => Some("the network is missing".to_owned()),
        };
        let mtu = member.dataplane.mtu(view).await;
        let wrong = wrong.or_else(|| {
            let own = table?.mtu();
            (own != mtu).then(|| format!("MTU {own} where {mtu} fits"))
        });
        if let Some(wrong) = wrong {
            return VerifiedItem::differs(
                (Verified::Tables, name),
                format!("lane {lane}: {wrong}"),
                format!("{} endpoints", expected.len()),
                (MendedBy::Operator, "restart the agent, and report it with its log: it is a bug"),
            );
        }
    }
    let is = format!("{} endpoints, {here} of them here, in {} lanes", expected.len(), inventories.len());
    VerifiedItem::ok(Verified::Tables, name, is)
}

/// Where an endpoint is to be found.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Here(crate::id::PortSlot),
    At(NodeId),
}

fn deviation(
    view: &NetworkView,
    table: &NetworkTable,
    tables: &Tables,
    slots: &Slots,
    expected: &[(&Endpoint, Expected)],
) -> Option<String> {
    let id = view.network.id;
    match (table.carrier(), view.network.encrypted) {
        (Carrier::Esp(directory), true) => {
            let slot = |node| slots.links.get(&(id, node)).copied();
            let wrong = view.nodes.iter().find(|node| {
                slot(node.id).is_some_and(|slot| tables.link(slot).is_none_or(|row| row.remote != node.data))
            });
            let wrong = wrong.map(|node| format!("packets to {} go elsewhere", node.name));
            wrong.or_else(|| misplaced(directory, expected, slot))
        }
        (Carrier::Vxlan(carrier), false) => {
            let slot = |node| slots.vteps.get(&(id, node)).copied();
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
    expected: &[(&Endpoint, Expected)],
    slot: impl Fn(NodeId) -> Option<R>,
) -> Option<String> {
    for (endpoint, place) in expected {
        let place = match place {
            Expected::Here(port) => Some(Place::Local(*port)),
            Expected::At(node) => slot(*node).map(Place::Remote),
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

/// The SAs of each link, in the lanes, held against the keys that were agreed on.
fn keys(
    member: &Member,
    view: &View,
    links: &BTreeMap<LinkKey, LinkSlot>,
    inventories: &[Inventory],
) -> Vec<VerifiedItem> {
    let status = member.keys.status();
    let mut items = Vec::new();
    for ((network, node), slot) in links {
        let network_view = view.networks.get(network);
        let peer = network_view.and_then(|view| view.nodes.iter().find(|peer| peer.id == *node));
        let name = peer.map_or_else(|| node.to_string(), |peer| peer.name.to_string());
        let network_name = network_view.map_or_else(|| network.to_string(), |v| v.network.name.to_string());
        let of = format!("{name} on {network_name}");
        let found = Found::of(*slot, inventories);
        let status = status.get(&(*network, *node));
        let Some((status, keys)) = status.and_then(|s| Some((s, s.established.as_ref()?))) else {
            let state = status.map_or(PeerState::Connecting, |status| status.state);
            let failure = status.and_then(|status| status.failure.as_ref());
            let why = failure.map_or_else(String::new, |failure| format!(": {failure}"));
            items.push(VerifiedItem::differs(
                (Verified::Keys, of),
                format!("none, {}{why}", state.name()),
                "keys in use",
                (
                    MendedBy::Agent,
                    "agrees on new ones as soon as the two nodes reach each other on their TLS ports",
                ),
            ));
            continue;
        };
        let wanted_out: BTreeSet<Spi> = keys.outbound.iter().copied().collect();
        let wanted_in: BTreeSet<Spi> = keys.inbound.iter().copied().collect();
        let may_linger: BTreeSet<Spi> = wanted_in.iter().chain(&status.lingering).copied().collect();
        let generations = 1 + u32::from(found.inbound.difference(&wanted_in).next().is_some());
        let is = format!(
            "generation {} of {}, {} SAs out, {} in, {generations} in all",
            keys.generation,
            keys.suite.name(),
            found.outbound.len(),
            found.inbound.len(),
        );
        let is_whole = found.outbound == wanted_out
            && found.inbound.is_superset(&wanted_in)
            && found.inbound.is_subset(&may_linger);
        items.push(if is_whole {
            VerifiedItem::ok(Verified::Keys, of, is)
        } else {
            let should_be = format!("{} SAs out, {} in", wanted_out.len(), wanted_in.len());
            let how = "'overlayd rekey' replaces them all; report it with the log: it is a bug";
            VerifiedItem::differs((Verified::Keys, of), is, should_be, (MendedBy::Operator, how))
        });
    }
    let known: BTreeSet<LinkSlot> = links.values().copied().collect();
    let held = inventories.iter().flat_map(|lane| lane.inbound.iter().chain(&lane.outbound));
    let ended: BTreeSet<Spi> = held.filter(|(slot, _)| !known.contains(slot)).map(|(_, spi)| *spi).collect();
    if !ended.is_empty() {
        let spis = ended.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let how = "restart the agent, and report it with its log: it is a bug";
        let item = (Verified::Keys, "links that have ended");
        items.push(VerifiedItem::differs(item, spis, "none", (MendedBy::Operator, how)));
    }
    items
}

/// The SAs of a link in all lanes.
struct Found {
    inbound: BTreeSet<Spi>,
    outbound: BTreeSet<Spi>,
}

impl Found {
    fn of(slot: LinkSlot, inventories: &[Inventory]) -> Self {
        let own = |sas: &[(LinkSlot, Spi)]| -> Vec<Spi> {
            sas.iter().filter(|(link, _)| *link == slot).map(|(_, spi)| *spi).collect()
        };
        Self {
            inbound: inventories.iter().flat_map(|lane| own(&lane.inbound)).collect(),
            outbound: inventories.iter().flat_map(|lane| own(&lane.outbound)).collect(),
        }
    }
}

const ASKED: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::super::super::testbed::{PaperCluster, THIS, mac, network_id, peer, vni};
    use super::*;
    use crate::forward::{EndpointSpec, TablesBuilder};
    use crate::id::{NetSlot, PortSlot};

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
        let slots = Slots { links, vteps: BTreeMap::new() };
        let place = |endpoint: &Endpoint| match endpoint.node == cluster.this() {
            true => Expected::Here(PortSlot::new(0)),
            false => Expected::At(endpoint.node),
        };
        let expected: Vec<_> = view.endpoints.iter().map(|endpoint| (endpoint, place(endpoint))).collect();
        deviation(&view, &table, &tables, &slots, &expected)
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
