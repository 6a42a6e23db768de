//! The counters as Prometheus reads them (OpenMetrics 1.0 text).

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::types::{StatsResponse, Traffic};

/// What an HTTP answer with this text says it is.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of one scrape.
pub(super) fn render(stats: StatsResponse) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("overlayd");
    registry.register_collector(Box::new(Scrape(stats)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape(StatsResponse);

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(stats) = self;
        let build: Labels<'_> = vec![("version", env!("CARGO_PKG_VERSION"))];
        gauge(&mut encoder, "build_info", "The running agent; always 1", &build)?;

        let lanes: Vec<_> = stats.drops.iter().map(|drop| drop.lane.to_string()).collect();
        let drops = stats.drops.iter().zip(&lanes).map(|(drop, lane)| {
            let labels: Labels<'_> = vec![("reason", drop.reason.name()), ("lane", lane)];
            (labels, drop.packets)
        });
        counter(&mut encoder, "drops", "Packets dropped, by reason and lane", drops)?;

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
        traffic(&mut encoder, PEER_METRICS, &peers)?;

        let endpoints: Vec<(Labels<'_>, Traffic, Traffic)> = stats
            .endpoints
            .iter()
            .map(|endpoint| {
                let mut labels = vec![
                    ("network", endpoint.network_name.as_str()),
                    ("endpoint", endpoint.endpoint.as_str()),
                ];
                labels.extend(endpoint.name.as_ref().map(|name| ("name", name.as_str())));
                (labels, endpoint.sent, endpoint.received)
            })
            .collect();
        traffic(&mut encoder, ENDPOINT_METRICS, &endpoints)?;

        let mendings = ConstCounter::new(stats.mendings);
        let help = "Interfaces of containers that were not as they should be, mended";
        mendings.encode(encoder.encode_descriptor("mendings", help, None, mendings.metric_type())?)?;

        let joins = stats.joins.iter().flat_map(|joins| {
            let outcomes = [
                ("admitted", joins.admitted),
                ("refused", joins.refused),
                ("turned_away", joins.turned_away),
            ];
            outcomes.map(|(outcome, count)| (vec![("outcome", outcome)], count))
        });
        counter(&mut encoder, "joins", "Machines that asked this manager to join, by outcome", joins)
    }
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

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, labels: &Labels<'_>) -> fmt::Result {
    let one = ConstGauge::new(1i64);
    let mut family = encoder.encode_descriptor(name, help, None, one.metric_type())?;
    one.encode(family.encode_family(labels)?)
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
    use crate::api::types::{DropCount, EndpointTraffic, JoinTotals, PeerTraffic};
    use crate::drop_reason::DropReason;
    use crate::id::{EndpointId, LaneId, NodeId};

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
        let text = render(stats).expect("text");
        let zeros = "0".repeat(25);
        for line in [
            "# TYPE overlayd_drops counter".to_owned(),
            r#"overlayd_drops_total{reason="no_key",lane="0"} 7"#.to_owned(),
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
    fn a_node_without_traffic_has_metrics_too() {
        let text = render(StatsResponse::default()).expect("text");
        assert!(text.contains("overlayd_build_info{version="), "{text}");
        assert!(text.contains("# TYPE overlayd_drops counter"), "{text}");
    }
}
