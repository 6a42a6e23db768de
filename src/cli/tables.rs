//! What commands about many things print: tables with stable columns, pure text from a response.

mod joins;
mod node;
mod rekey;
mod tokens;
mod verify;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table};

use crate::api::types::{
    EndpointTraffic, ListNetworksResponse, ListNodesResponse, PeerStatus, PeerTraffic, PeersResponse,
    StatsResponse, Traffic,
};
use crate::cluster::{Endpoint, Node};
use crate::drop_reason::DropReason;
use crate::id::Spi;

use self::node::NODE_COLUMNS;
pub(super) use self::node::{manager_state, node_endpoints, node_labels, node_state};
pub(super) use self::tokens::{issued, issued_alone, removed, tokens};
pub(super) use rekey::rekeyed;
pub(super) use verify::verified;

pub(super) fn networks(listed: &ListNetworksResponse) -> String {
    let mut table = table(&["NAME", "ID", "VNI", "ENCRYPTED", "SUBNETS", "ENDPOINTS"]);
    for summary in &listed.networks {
        let network = &summary.network;
        table.add_row([
            network.name.to_string(),
            network.id.to_string(),
            network.vni.to_string(),
            if network.encrypted { "yes" } else { "no" }.to_owned(),
            joined(network.subnets.iter().map(|subnet| subnet.cidr)),
            summary.endpoint_count.to_string(),
        ]);
    }
    text(&table)
}

pub(super) fn nodes(listed: &ListNodesResponse) -> String {
    let mut table = table(&NODE_COLUMNS);
    for summary in &listed.nodes {
        let node = &summary.node;
        table.add_row([
            format!("{}{}", node.id, if summary.is_self { " *" } else { "" }),
            node.name.to_string(),
            node.role.to_string(),
            node_state(summary.state).to_owned(),
            manager_state(summary.manager).to_owned(),
            summary.profile.availability.to_string(),
            summary.endpoint_count.to_string(),
            node_labels(&summary.profile.labels),
            node.advertise.to_string(),
            node.data.to_string(),
        ]);
    }
    text(&table)
}

pub(super) fn endpoints(endpoints: &[Endpoint], nodes: &[Node]) -> String {
    let mut table = table(&["ENDPOINT", "NODE", "NAME", "ADDRESSES", "MAC"]);
    for endpoint in endpoints {
        let node = nodes.iter().find(|node| node.id == endpoint.node);
        table.add_row([
            endpoint.id.to_string(),
            node.map_or_else(|| endpoint.node.to_string(), |node| node.name.to_string()),
            optional(endpoint.name.as_ref()),
            joined(&endpoint.addresses),
            endpoint.mac.to_string(),
        ]);
    }
    text(&table)
}

pub(super) fn peers(listed: &PeersResponse) -> String {
    let mut table = table(&[
        "PEER",
        "NETWORK",
        "DATA AT",
        "STATE",
        "SUITE",
        "KEY AGE",
        "SPI OUT",
        "SPI IN",
        "SENT",
        "RECEIVED",
        "LAST DROP",
    ]);
    for peer in &listed.peers {
        table.add_row([
            peer.node_name.to_string(),
            peer.network_name.to_string(),
            peer.remote.to_string(),
            peer.state.name().to_owned(),
            optional(peer.suite),
            optional(peer.key_age_seconds.map(|s| humantime::format_duration(Duration::from_secs(s)))),
            spis(&peer.outbound_spis),
            spis(&peer.inbound_spis),
            traffic(peer.sent),
            traffic(peer.received),
            optional(peer.last_drop.map(DropReason::name)),
        ]);
    }
    let mut text = text(&table);
    for PeerStatus { node_name, network_name, failure, .. } in &listed.peers {
        if let Some(failure) = failure {
            writeln!(text, "{node_name} on {network_name}: {failure}").expect("a String takes all");
        }
    }
    text
}

pub(super) fn stats(stats: &StatsResponse) -> String {
    let mut sections = vec![drops(stats)];
    if !stats.peers.is_empty() {
        let mut table = table(&["PEER", "NETWORK", "SENT", "RECEIVED"]);
        for PeerTraffic { node_name, network_name, sent, received, .. } in &stats.peers {
            table.add_row([
                node_name.to_string(),
                network_name.to_string(),
                traffic(*sent),
                traffic(*received),
            ]);
        }
        sections.push(text(&table));
    }
    if !stats.endpoints.is_empty() {
        let mut table = table(&["ENDPOINT", "NAME", "NETWORK", "FROM CONTAINER", "TO CONTAINER", "LIMITS"]);
        for EndpointTraffic { endpoint, name, network_name, sent, received, rates } in &stats.endpoints {
            table.add_row([
                endpoint.to_string(),
                optional(name.as_ref()),
                network_name.to_string(),
                traffic(*sent),
                traffic(*received),
                rates.to_string(),
            ]);
        }
        sections.push(text(&table));
    }
    if stats.mendings > 0 {
        sections.push(format!(
            "Interfaces of containers were mended {} times; 'overlayd events --no-follow' says how.\n",
            stats.mendings
        ));
    }
    sections.extend(stats.joins.map(joins::table));
    sections.join("\n")
}

fn drops(stats: &StatsResponse) -> String {
    let mut by_reason: BTreeMap<DropReason, u64> = BTreeMap::new();
    for drop in stats.drops.iter().filter(|drop| drop.packets > 0) {
        let sum = by_reason.entry(drop.reason).or_default();
        *sum = sum.saturating_add(drop.packets);
    }
    if by_reason.is_empty() {
        return "Nothing was dropped.\n".into();
    }
    let mut table = table(&["DROPPED", "REASON", "EXPLANATION"]);
    for (reason, packets) in by_reason {
        table.add_row([
            Cell::new(packets).set_alignment(CellAlignment::Right),
            Cell::new(reason.name()),
            Cell::new(reason.explanation()),
        ]);
    }
    text(&table)
}

fn spis(spis: &[Spi]) -> String {
    if spis.is_empty() { "-".into() } else { joined(spis) }
}

fn traffic(traffic: Traffic) -> String {
    format!("{} ({})", traffic.packets, Size(traffic.bytes))
}

fn optional(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn joined(values: impl IntoIterator<Item = impl fmt::Display>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(", ")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The table without the blanks at the ends of its lines.
fn text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Bytes as people read them, in powers of ten.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tenths = u128::from(self.0) * 10;
        for unit in ["B", "kB", "MB", "GB", "TB"] {
            if tenths < 10_000 {
                return match (unit, tenths % 10) {
                    ("B", _) => write!(f, "{} B", tenths / 10),
                    (_, tenth) => write!(f, "{}.{tenth} {unit}", tenths / 10),
                };
            }
            tenths /= 1_000;
        }
        write!(f, "{}.{} PB", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
pub(super) mod samples {
    use std::collections::BTreeMap;

    use crate::cluster::{Availability, Endpoint, Network, Node, NodeProfile, Role, Subnet};
    use crate::id::{EndpointId, NetworkId, NodeId, Vni};

    pub(crate) fn network(name: &str, encrypted: bool) -> Network {
        let subnet = |cidr: &str, gateway: Option<&str>| Subnet {
            cidr: cidr.parse().expect("a subnet"),
            gateway: gateway.map(|ip| ip.parse().expect("an address")),
            ip_range: None,
        };
        Network {
            id: NetworkId::from_entropy([0; 16]),
            name: name.parse().expect("a name"),
            vni: Vni::new(4097).expect("a VNI"),
            encrypted,
            subnets: vec![subnet("10.1.0.0/24", Some("10.1.0.1")), subnet("fd00:1::/64", None)],
            mtu: None,
            labels: BTreeMap::new(),
            node_labels: BTreeMap::new(),
        }
    }

    pub(crate) fn profile() -> NodeProfile {
        let labels = [("disk", "ssd"), ("zone", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        NodeProfile { availability: Availability::Drain, labels: labels.into() }
    }

    pub(crate) fn node(name: &str, role: Role) -> Node {
        Node {
            id: NodeId::from_entropy([0; 16]),
            name: name.parse().expect("a name"),
            role,
            advertise: "192.0.2.1:2377".parse().expect("an address"),
            data: "192.0.2.1:4500".parse().expect("an address"),
            underlay_mtu: 1500,
        }
    }

    pub(crate) fn endpoint() -> Endpoint {
        Endpoint {
            id: EndpointId::from_entropy([0; 16]),
            network: NetworkId::from_entropy([0; 16]),
            node: NodeId::from_entropy([0; 16]),
            name: Some("web".parse().expect("a name")),
            mac: "02:42:0a:01:00:02".parse().expect("a MAC"),
            addresses: ["10.1.0.2/24", "fd00:1::2/64"].map(|a| a.parse().expect("an address")).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{DropCount, NetworkSummary, NodeState, NodeSummary, PeerState};
    use crate::cluster::Role;
    use crate::cluster::{ManagerState, NodeProfile};
    use crate::id::{LaneId, NetworkId, NodeId};
    use crate::rate::RateLimits;
    use crate::sa::Suite;

    #[test]
    fn networks_are_listed_in_stable_columns() {
        let rows = [("red", true, 2), ("a-longer-name", false, 10)];
        let networks = rows
            .map(|(name, encrypted, endpoint_count)| NetworkSummary {
                network: samples::network(name, encrypted),
                endpoint_count,
            })
            .into();
        assert_eq!(
            super::networks(&ListNetworksResponse { networks }),
            "\
NAME           ID                         VNI   ENCRYPTED  SUBNETS                   ENDPOINTS
red            0000000000000000000000000  4097  yes        10.1.0.0/24, fd00:1::/64  2
a-longer-name  0000000000000000000000000  4097  no         10.1.0.0/24, fd00:1::/64  10
"
        );
        let none = super::networks(&ListNetworksResponse { networks: vec![] });
        assert_eq!(none, "NAME  ID  VNI  ENCRYPTED  SUBNETS  ENDPOINTS\n");
    }

    #[test]
    fn nodes_are_listed_and_the_answering_one_is_marked() {
        let node = |name, role, is_self, state| NodeSummary {
            node: samples::node(name, role),
            is_self,
            state,
            profile: samples::profile(),
            endpoint_count: 2,
            manager: (role == Role::Manager).then_some(ManagerState::Reachable),
        };
        let mut nodes = vec![
            node("m", Role::Manager, true, NodeState::Ready),
            node("w", Role::Worker, false, NodeState::Down),
        ];
        nodes[0].profile = NodeProfile::default();
        assert_eq!(
            super::nodes(&ListNodesResponse { nodes }),
            "\
ID                           NAME  ROLE     STATE  MANAGER    AVAILABILITY  ENDPOINTS  LABELS          TLS AT          DATA AT
0000000000000000000000000 *  m     manager  ready  reachable  active        2          -               192.0.2.1:2377  192.0.2.1:4500
0000000000000000000000000    w     worker   down   -          drain         2          disk=ssd, zone  192.0.2.1:2377  192.0.2.1:4500
"
        );
    }

    #[test]
    fn peers_show_keys_and_why_there_are_none() {
        let established = PeerStatus {
            node: NodeId::from_entropy([0; 16]),
            node_name: "b".parse().expect("a name"),
            network: NetworkId::from_entropy([0; 16]),
            network_name: "red".parse().expect("a name"),
            remote: "192.0.2.2:4500".parse().expect("an address"),
            state: PeerState::Established,
            failure: None,
            suite: Some(Suite::Aes256Gcm),
            key_age_seconds: Some(95),
            outbound_spis: vec![Spi::new(0xabcd_ef00).expect("an SPI")],
            inbound_spis: vec![Spi::new(0x100).expect("an SPI"), Spi::new(0x140).expect("an SPI")],
            lingering_spis: vec![],
            sent: Traffic { packets: 12, bytes: 1_234 },
            received: Traffic { packets: 3, bytes: 294 },
            last_drop: Some(DropReason::Replayed),
        };
        let failed = PeerStatus {
            node_name: "c".parse().expect("a name"),
            state: PeerState::Failed,
            failure: Some("its certificate has expired".into()),
            suite: None,
            key_age_seconds: None,
            outbound_spis: vec![],
            inbound_spis: vec![],
            sent: Traffic::default(),
            received: Traffic::default(),
            last_drop: None,
            ..established.clone()
        };
        let plain = PeerStatus {
            network_name: "open".parse().expect("a name"),
            remote: "192.0.2.3:4789".parse().expect("an address"),
            state: PeerState::Plain,
            failure: None,
            sent: Traffic { packets: 1, bytes: 98 },
            last_drop: Some(DropReason::PeerMacSpoofed),
            ..failed.clone()
        };
        assert_eq!(
            super::peers(&PeersResponse { peers: vec![established, failed, plain] }),
            "\
PEER  NETWORK  DATA AT         STATE        SUITE        KEY AGE  SPI OUT     SPI IN                  SENT         RECEIVED   LAST DROP
b     red      192.0.2.2:4500  established  aes-256-gcm  1m 35s   0xabcdef00  0x00000100, 0x00000140  12 (1.2 kB)  3 (294 B)  replayed
c     red      192.0.2.2:4500  failed       -            -        -           -                       0 (0 B)      0 (0 B)    -
c     open     192.0.2.3:4789  plain        -            -        -           -                       1 (98 B)     0 (0 B)    peer_mac_spoofed
c on red: its certificate has expired
"
        );
    }

    #[test]
    fn stats_sum_drops_over_lanes_and_explain_them() {
        let drop =
            |lane, reason, packets| DropCount { lane: LaneId::new(lane).expect("a lane"), reason, packets };
        let drops = vec![
            drop(0, DropReason::NoKey, 7),
            drop(1, DropReason::NoKey, 5),
            drop(0, DropReason::Replayed, 1),
            drop(1, DropReason::NotLocal, 0),
        ];
        assert_eq!(
            super::stats(&StatsResponse { drops, ..StatsResponse::default() }),
            "\
DROPPED  REASON    EXPLANATION
     12  no_key    To a peer: no key has been negotiated yet, or the last one was removed.
      1  replayed  From the wire: a sequence number seen before.
"
        );
        assert_eq!(super::stats(&StatsResponse::default()), "Nothing was dropped.\n");
    }

    #[test]
    fn stats_show_peers_and_endpoints_below_the_drops() {
        let sent = Traffic { packets: 3, bytes: 3_000_000 };
        let text = super::stats(&StatsResponse {
            drops: vec![],
            peers: vec![PeerTraffic {
                node: NodeId::from_entropy([0; 16]),
                node_name: "b".parse().expect("a name"),
                network_name: "red".parse().expect("a name"),
                sent,
                received: Traffic::default(),
            }],
            endpoints: vec![EndpointTraffic {
                endpoint: samples::endpoint().id,
                name: None,
                network_name: "red".parse().expect("a name"),
                sent,
                received: Traffic::default(),
                rates: RateLimits { egress: None, ingress: "10mbit".parse().ok() },
            }],
            joins: None,
            mendings: 3,
        });
        assert_eq!(
            text,
            "\
Nothing was dropped.

PEER  NETWORK  SENT        RECEIVED
b     red      3 (3.0 MB)  0 (0 B)

ENDPOINT                   NAME  NETWORK  FROM CONTAINER  TO CONTAINER  LIMITS
0000000000000000000000000  -     red      3 (3.0 MB)      0 (0 B)       10mbit in

Interfaces of containers were mended 3 times; 'overlayd events --no-follow' says how.
"
        );
    }

    #[test]
    fn sizes_have_one_decimal_and_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_234_567, "1.2 MB"),
            (999_999_999, "999.9 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
