//! The counters as Prometheus reads them (OpenMetrics 1.0 text).

mod tcp;

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::VERSION;
use super::types::{ClusterStatus, PeerState, PeersResponse, StatsResponse, Traffic};
use crate::drop_reason::DropReason;
use crate::id::LaneCount;

pub use self::tcp::serve;
#[cfg(test)]
pub(super) use self::tcp::serve_within;

/// What an HTTP answer with this text says it is.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of one scrape.
pub(super) fn render(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("overlayd");
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// What is told in one scrape; of a node in no cluster, and of one that is locked, it is little.
#[derive(Debug)]
pub(super) struct Scrape {
    pub(super) is_locked: bool,
    pub(super) member: Option<(ClusterStatus, StatsResponse, PeersResponse)>,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let build = [(vec![("version", VERSION)], 1)];
        gauge(&mut encoder, "build_info", "The running agent; always 1", build)?;
        let locked = i64::from(self.is_locked);
        plain_gauge(&mut encoder, "locked", "Whether this manager waits for its unlock key", locked)?;
        let Some((cluster, stats, peers)) = &self.member else { return Ok(()) };
        encode_cluster(&mut encoder, cluster)?;
        encode_links(&mut encoder, peers)?;
        encode_drops(&mut encoder, cluster, stats)?;
        encode_stats(&mut encoder, stats)
    }
}

fn encode_cluster(encoder: &mut DescriptorEncoder<'_>, cluster: &ClusterStatus) -> fmt::Result {
    let is_connected = cluster.managers.iter().any(|manager| manager.connected);
    let moment = |unix_seconds: u64| i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    for (name, help, value) in [
        (
            "manager_connected",
            "Whether this node has a session with a manager, or is it",
            i64::from(is_connected),
        ),
        ("removed", "Whether this node was removed from its cluster", i64::from(cluster.removed)),
        (
            "certificate_expiry_timestamp_seconds",
            "When this node's certificate expires, in Unix time",
            moment(cluster.certificate_expires_unix_seconds),
        ),
        (
            "root_expiry_timestamp_seconds",
            "When the root of this node's certificate expires, in Unix time",
            moment(cluster.root_expires_unix_seconds),
        ),
    ] {
        plain_gauge(encoder, name, help, value)?;
    }
    Ok(())
}

fn encode_links(encoder: &mut DescriptorEncoder<'_>, peers: &PeersResponse) -> fmt::Result {
    let links = PeerState::ALL.map(|state| {
        let count = peers.peers.iter().filter(|peer| peer.state == state).count();
        (vec![("state", state.name())], i64::try_from(count).unwrap_or(i64::MAX))
    });
    gauge(
        encoder,
        "links",
        "Peers, once for each network shared with them, by the state of their keys",
        links,
    )
}

/// Each counter from its birth at zero: what is first seen at one has not increased.
fn encode_drops(
    encoder: &mut DescriptorEncoder<'_>,
    cluster: &ClusterStatus,
    stats: &StatsResponse,
) -> fmt::Result {
    let lanes: Vec<_> =
        LaneCount::clamped(cluster.lane_count.into()).ids().map(|lane| (lane, lane.to_string())).collect();
    let counted: BTreeMap<_, _> =
        stats.drops.iter().map(|drop| ((drop.lane, drop.reason), drop.packets)).collect();
    let drops = lanes.iter().flat_map(|(lane, name)| {
        DropReason::ALL.iter().map(|reason| {
            let labels: Labels<'_> = vec![("reason", reason.name()), ("lane", name)];
            (labels, counted.get(&(*lane, *reason)).copied().unwrap_or(0))
        })
    });
    counter(encoder, "drops", "Packets dropped, by reason and lane", drops)
}

fn encode_stats(encoder: &mut DescriptorEncoder<'_>, stats: &StatsResponse) -> fmt::Result {
    let peers: Vec<(Labels<'_>, Traffic, Traffic)> = stats
        .peers
        .iter()
        .map(|peer| {
            let labels = vec![
                ("network", peer.network_name.as_str()),
                ("peer", peer.node.as_str()),
                ("peer_name", peer.node_name.as_str()),
            ];
            (labels, peer.sent, peer.received)
        })
        .collect();
    traffic(encoder, PEER_METRICS, &peers)?;

    let endpoints: Vec<(Labels<'_>, Traffic, Traffic)> = stats
        .endpoints
        .iter()
        .map(|endpoint| {
            let mut labels =
                vec![("network", endpoint.network_name.as_str()), ("endpoint", endpoint.endpoint.as_str())];
            labels.extend(endpoint.name.as_ref().map(|name| ("name", name.as_str())));
            (labels, endpoint.sent, endpoint.received)
        })
        .collect();
    traffic(encoder, ENDPOINT_METRICS, &endpoints)?;

    let mendings = ConstCounter::new(stats.mendings);
    let help = "Interfaces of containers that were not as they should be, mended";
    mendings.encode(encoder.encode_descriptor("mendings", help, None, mendings.metric_type())?)?;

    let joins = stats.joins.iter().flat_map(|joins| {
        let outcomes =
            [("admitted", joins.admitted), ("refused", joins.refused), ("turned_away", joins.turned_away)];
        outcomes.map(|(outcome, count)| (vec![("outcome", outcome)], count))
    });
    counter(encoder, "joins", "Machines that asked this manager to join, by outcome", joins)
}

/// The four metrics of a thing that sends and receives: name, help and the value's place.
type TrafficMetrics = [(&'static str, &'static str, fn(&Traffic, &Traffic) -> u64); 4];

fn traffic(
    encoder: &mut DescriptorEncoder<'_>,
    metrics: TrafficMetrics,
    rows: &[(Labels<'_>, Traffic, Traffic)],
) -> fmt::Result {
    for (name, help, value) in metrics {
        let rows = rows.iter().map(|(labels, sent, received)| (labels.clone(), value(sent, received)));
        counter(encoder, name, help, rows)?;
    }
    Ok(())
}

fn counter<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0u64).metric_type())?;
    for (labels, value) in rows {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// One without labels.
fn plain_gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn gauge<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<'a>, i64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, ConstGauge::new(0i64).metric_type())?;
    for (labels, value) in rows {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

const PEER_METRICS: TrafficMetrics = [
    ("peer_sent_packets", "Packets sent to a peer", |sent, _| sent.packets),
    ("peer_sent_bytes", "Bytes of frames sent to a peer", |sent, _| sent.bytes),
    ("peer_received_packets", "Packets received from a peer and delivered", |_, received| received.packets),
    ("peer_received_bytes", "Bytes of frames received from a peer and delivered", |_, received| {
        received.bytes
    }),
];

const ENDPOINT_METRICS: TrafficMetrics = [
    ("endpoint_sent_packets", "Packets taken from a container", |sent, _| sent.packets),
    ("endpoint_sent_bytes", "Bytes of frames taken from a container", |sent, _| sent.bytes),
    ("endpoint_received_packets", "Packets delivered to a container", |_, received| received.packets),
    ("endpoint_received_bytes", "Bytes of frames delivered to a container", |_, received| received.bytes),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{DropCount, EndpointTraffic, JoinTotals, ManagerStatus, PeerTraffic};
    use crate::cluster::{Node, Role};
    use crate::id::{ClusterId, EndpointId, LaneId, NodeId};

    fn cluster() -> ClusterStatus {
        let at = "192.0.2.1:2377".parse().expect("an address");
        let node = Node {
            id: NodeId::from_entropy([0; 16]),
            name: "a".parse().expect("a name"),
            role: Role::Manager,
            advertise: at,
            data: at,
            underlay_mtu: 1500,
        };
        ClusterStatus {
            id: ClusterId::from_entropy([0; 16]),
            managers: vec![ManagerStatus { node: node.clone(), connected: true }],
            node,
            version: Default::default(),
            removed: false,
            certificate_expires_unix_seconds: 1_800_000_000,
            root_expires_unix_seconds: 1_900_000_000,
            lane_count: 2,
            processors: Default::default(),
            network_count: 1,
            endpoint_count: 1,
            offloads: Vec::new(),
        }
    }

    fn text(stats: StatsResponse) -> String {
        let member = Some((cluster(), stats, PeersResponse { peers: Vec::new() }));
        render(Scrape { is_locked: false, member }).expect("text")
    }

    #[test]
    fn a_scrape_has_drops_peers_and_endpoints_with_their_labels() {
        let sent = Traffic { packets: 3, bytes: 300 };
        let received = Traffic { packets: 4, bytes: 400 };
        let stats = StatsResponse {
            drops: vec![DropCount {
                lane: LaneId::new(0).expect("a lane"),
                reason: DropReason::NoKey,
                packets: 7,
            }],
            peers: vec![PeerTraffic {
                node: NodeId::from_entropy([0; 16]),
                node_name: "b".parse().expect("a name"),
                network_name: "red".parse().expect("a name"),
                sent,
                received,
            }],
            endpoints: vec![EndpointTraffic {
                endpoint: EndpointId::from_entropy([0; 16]),
                name: None,
                network_name: "red".parse().expect("a name"),
                sent,
                received,
                rates: crate::rate::RateLimits::default(),
            }],
            joins: Some(JoinTotals { admitted: 1, refused: 2, turned_away: 3 }),
            mendings: 4,
        };
        let text = text(stats);
        let zeros = "0".repeat(25);
        for line in [
            "# TYPE overlayd_drops counter".to_owned(),
            r#"overlayd_drops_total{reason="no_key",lane="0"} 7"#.to_owned(),
            r#"overlayd_drops_total{reason="no_key",lane="1"} 0"#.to_owned(),
            "overlayd_locked 0".to_owned(),
            "overlayd_manager_connected 1".to_owned(),
            "overlayd_removed 0".to_owned(),
            "overlayd_certificate_expiry_timestamp_seconds 1800000000".to_owned(),
            "overlayd_root_expiry_timestamp_seconds 1900000000".to_owned(),
            r#"overlayd_links{state="failed"} 0"#.to_owned(),
            format!(r#"overlayd_peer_sent_bytes_total{{network="red",peer="{zeros}",peer_name="b"}} 300"#),
            format!(
                r#"overlayd_peer_received_packets_total{{network="red",peer="{zeros}",peer_name="b"}} 4"#
            ),
            format!(r#"overlayd_endpoint_sent_packets_total{{network="red",endpoint="{zeros}"}} 3"#),
            "overlayd_mendings_total 4".to_owned(),
            r#"overlayd_joins_total{outcome="turned_away"} 3"#.to_owned(),
            "# EOF".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line}\nin {text}");
        }
    }

    #[test]
    fn every_drop_is_counted_from_zero() {
        let text = text(StatsResponse::default());
        let zeros =
            text.lines().filter(|l| l.starts_with("overlayd_drops_total{") && l.ends_with(" 0")).count();
        assert_eq!(zeros, 2 * DropReason::COUNT, "{text}");
    }

    #[test]
    fn a_node_that_is_locked_or_in_no_cluster_has_metrics_too() {
        let text = render(Scrape { is_locked: true, member: None }).expect("text");
        assert!(text.contains(&format!("overlayd_build_info{{version=\"{VERSION}\"}} 1")), "{text}");
        assert!(text.contains("overlayd_locked 1\n") && text.ends_with("# EOF\n"), "{text}");
    }
}
