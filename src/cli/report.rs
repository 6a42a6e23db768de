//! What commands about one thing print: pure text from a response.

mod autolock;
mod backup;
pub(super) mod ca;
mod node;
mod store;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;

use super::tables;
use crate::api::types::{
    AttachResponse, ClusterStatus, CreateNetworkResponse, DetachResponse, InitResponse,
    InspectNetworkResponse, JoinResponse, ManagerStatus, Offload, OffloadStatus, ProcessorStatus,
    RemoveNetworkResponse, StatusResponse, TokenResponse,
};
use crate::cluster::{Network, Role};

pub(super) use self::autolock::{unlock, unlock_key, unlock_key_alone};
pub(super) use self::backup::{BackedUp, backup, restore};
pub(super) use self::node::{change_node, inspect_node, leave, remove_node};
pub(super) use self::store::{migrate_store, store};

pub(super) fn init(made: &InitResponse) -> String {
    let mut text = format!(
        "Cluster {} is made; this node, {}, is its manager.\n\n\
         To add a worker, run on it:\n\n    {}\n",
        made.cluster,
        made.node,
        join_command(&made.worker_token, made.manager)
    );
    if let Some(key) = &made.unlock_key {
        write!(text, "\n{}", autolock::advice(key)).expect("a String takes all");
    }
    text
}

pub(super) fn token(token: &TokenResponse) -> String {
    format!("To add a {}, run on it:\n\n    {}\n", token.role, join_command(&token.token, token.manager))
}

pub(super) fn token_alone(token: &TokenResponse) -> String {
    format!("{}\n", token.token)
}

pub(super) fn join(joined: &JoinResponse) -> String {
    format!("This node, {}, is now a {} of cluster {}.\n", joined.node.id, joined.node.role, joined.cluster)
}

pub(super) fn create(created: &CreateNetworkResponse) -> String {
    let Network { id, name, vni, encrypted, subnets, .. } = &created.network;
    let subnets: Vec<_> = subnets.iter().map(|subnet| subnet.cidr).collect();
    let kind = if *encrypted { "encrypted" } else { "unencrypted" };
    format!("{name} ({id}) is created: {kind}, VNI {vni}, {}\n", list(&subnets))
}

pub(super) fn remove(removed: &RemoveNetworkResponse) -> String {
    format!("{} ({}) is removed\n", removed.name, removed.id)
}

pub(super) fn attach(attached: &AttachResponse) -> String {
    let AttachResponse { endpoint, network_name, ifname, mtu, rates, gateways: _ } = attached;
    let limits = if rates.is_none() { String::new() } else { format!(", limited to {rates}") };
    format!(
        "{} is on {network_name}: {ifname} with {}, {}, MTU {mtu}{limits}\n",
        endpoint.id,
        list(&endpoint.addresses),
        endpoint.mac
    )
}

pub(super) fn detach(detached: &DetachResponse) -> String {
    format!("{} is detached\n", detached.endpoint)
}

pub(super) fn inspect(inspected: &InspectNetworkResponse) -> String {
    let InspectNetworkResponse { network, effective_mtu, epoch, nodes, endpoints } = inspected;
    let mut lines = Lines::default();
    lines.add("Name", &network.name);
    lines.add("Id", network.id);
    lines.add("VNI", network.vni);
    lines.add("Encrypted", if network.encrypted { "yes" } else { "no" });
    for subnet in &network.subnets {
        let mut text = subnet.cidr.to_string();
        if let Some(gateway) = subnet.gateway {
            write!(text, ", gateway {gateway}").expect("a String takes all");
        }
        if let Some(range) = subnet.ip_range {
            write!(text, ", addresses from {range}").expect("a String takes all");
        }
        lines.add("Subnet", text);
    }
    match (network.mtu, effective_mtu) {
        (Some(wanted), Some(mtu)) if *mtu < wanted => {
            lines.add("MTU", format!("{mtu} (from the underlay, which is too small for {wanted})"));
        }
        (Some(mtu), _) => lines.add("MTU", mtu),
        (None, Some(mtu)) => lines.add("MTU", format!("{mtu} (from the underlay)")),
        (None, None) => lines.add("MTU", "from the underlay"),
    }
    for (key, value) in &network.labels {
        lines.add("Label", format!("{key}={value}"));
    }
    for (key, value) in &network.node_labels {
        lines.add("Only nodes", format!("labelled {key}={value}"));
    }
    lines.add("Epoch", epoch);
    format!("{}\n{}", lines.text, tables::endpoints(endpoints, nodes))
}

pub(super) fn status(status: &StatusResponse) -> String {
    let mut lines = Lines::default();
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    lines.add("Agent", format!("{}, pid {}, up {uptime}", status.agent_version, status.pid));
    lines.add("State", status.state_dir.display());
    match &status.cluster {
        Some(cluster) => cluster_status(&mut lines, cluster),
        None if status.locked => {
            lines.add(
                "Cluster",
                "LOCKED since the agent was started; run 'overlayd unlock' with the unlock key",
            );
        }
        None => lines.add("Cluster", "none; run 'overlayd init' for a new one, or 'overlayd join'"),
    }
    if let Some(file) = &status.esp_key_log {
        lines.add("WARNING", format!("every key is written to {} (--esp-key-log)", file.display()));
    }
    for warning in &status.warnings {
        lines.add("WARNING", warning);
    }
    lines.text
}

fn cluster_status(lines: &mut Lines, cluster: &ClusterStatus) {
    let ClusterStatus { node, managers, .. } = cluster;
    let expiry = UNIX_EPOCH.checked_add(Duration::from_secs(cluster.certificate_expires_unix_seconds));
    let removed = if cluster.removed { ", from which this node was REMOVED" } else { "" };
    lines.add("Cluster", format!("{}, version {}{removed}", cluster.id, cluster.version));
    lines.add("Node", format!("{} ({}), {}", node.id, node.name, node.role));
    lines.add("TLS at", node.advertise);
    lines.add("Data at", format!("{} (UDP), underlay MTU {}", node.data, node.underlay_mtu));
    match expiry {
        Some(at) => lines.add("Certificate", format!("until {}", humantime::format_rfc3339_seconds(at))),
        None => lines.add("Certificate", "for ever"),
    }
    for ManagerStatus { node, connected } in managers {
        let state = if *connected { "connected" } else { "NOT CONNECTED" };
        lines.add("Manager", format!("{} ({}) at {}, {state}", node.id, node.name, node.advertise));
    }
    lines.add("Carries", format!("{} networks, {} endpoints", cluster.network_count, cluster.endpoint_count));
    lines.add("Lanes", cluster.lane_count);
    lines.add("Processors", processors(cluster.processors));
    offloads(lines, &cluster.offloads);
    if node.role == Role::Worker && !cluster.removed && !managers.iter().any(|manager| manager.connected) {
        lines.add("WARNING", "no manager is connected: what is attached works, nothing can be changed");
    }
}

fn processors(status: ProcessorStatus) -> String {
    let ProcessorStatus { busy_poll_microseconds, keep_awake, streams_first } = status;
    let polled = match busy_poll_microseconds {
        0 => "not polled".to_owned(),
        longest => format!("polled for {longest}us at most"),
    };
    let [awake, first] = [keep_awake, streams_first].map(|is_on| if is_on { "on" } else { "off" });
    format!("{polled}, keep_awake {awake}, streams_first {first}")
}

fn offloads(lines: &mut Lines, offloads: &[OffloadStatus]) {
    let groups = [
        ("ESP", [Some(Offload::EspSegmentation), Some(Offload::EspCoalescing), None]),
        ("VXLAN", [Some(Offload::VxlanSegmentation), Some(Offload::VxlanCoalescing), None]),
        ("containers", [Some(Offload::TapChecksum), Some(Offload::TapTcp), Some(Offload::TapUdp)]),
    ];
    for (name, members) in groups {
        let of = |wanted| offloads.iter().find(move |status| Some(status.offload) == wanted && status.of > 0);
        let told: Vec<_> = members.into_iter().filter_map(of).map(offload).collect();
        if !told.is_empty() {
            lines.add("Offloads", format!("{name}: {}", told.join(", ")));
        }
    }
}

fn offload(status: &OffloadStatus) -> String {
    let name = match status.offload {
        Offload::EspSegmentation | Offload::VxlanSegmentation => "UDP_SEGMENT",
        Offload::EspCoalescing | Offload::VxlanCoalescing => "UDP_GRO",
        Offload::TapChecksum => "checksum",
        Offload::TapTcp => "TCP",
        Offload::TapUdp => "UDP",
    };
    match (status.of - status.used.min(status.of), status.wanted) {
        (0, _) => format!("{name} on"),
        (_, false) => format!("{name} off"),
        (without, true) if without == status.of => format!("{name} REFUSED by the kernel"),
        (without, true) => format!("{name} REFUSED by the kernel for {without} of {}", status.of),
    }
}

/// The command that a node joins with.
fn join_command(token: &str, manager: SocketAddr) -> String {
    format!("overlayd join --token {token} {manager}")
}

fn list(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Lines of `Key:  value` with the values in one column.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn add(&mut self, key: &str, value: impl std::fmt::Display) {
        let key = format!("{key}:");
        writeln!(self.text, "{key:<13}{value}").expect("a String takes all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tables::samples;
    use crate::id::{ClusterId, EndpointId, NodeId};
    use crate::rate::RateLimits;

    #[test]
    fn init_prints_the_exact_join_command() {
        let text = init(&InitResponse {
            cluster: ClusterId::from_entropy([0; 16]),
            node: NodeId::from_entropy([0; 16]),
            worker_token: "OVTKN-1-abc-def".into(),
            manager: "[2001:db8::1]:2377".parse().expect("an address"),
            unlock_key: None,
        });
        assert!(text.contains("\n    overlayd join --token OVTKN-1-abc-def [2001:db8::1]:2377\n"), "{text}");
    }

    #[test]
    fn a_quiet_token_is_the_token_and_nothing_else() {
        let response = TokenResponse {
            role: Role::Manager,
            token: "OVTKN-1-abc-def".into(),
            manager: "192.0.2.1:2377".parse().expect("an address"),
        };
        assert_eq!(token_alone(&response), "OVTKN-1-abc-def\n");
        assert_eq!(
            token(&response),
            "To add a manager, run on it:\n\n    overlayd join --token OVTKN-1-abc-def 192.0.2.1:2377\n"
        );
    }

    #[test]
    fn created_and_attached_things_are_named_with_what_matters() {
        let network = samples::network("red", true);
        assert_eq!(
            create(&CreateNetworkResponse { network }),
            "red (0000000000000000000000000) is created: encrypted, VNI 4097, 10.1.0.0/24, fd00:1::/64\n"
        );
        let mut attached = AttachResponse {
            endpoint: samples::endpoint(),
            network_name: "red".parse().expect("a name"),
            ifname: "eth0".parse().expect("a name"),
            mtu: 1408,
            rates: RateLimits::default(),
            gateways: Vec::new(),
        };
        assert_eq!(
            attach(&attached),
            "0000000000000000000000000 is on red: eth0 with 10.1.0.2/24, fd00:1::2/64, 02:42:0a:01:00:02, MTU 1408\n"
        );
        attached.rates.egress = "100mbit".parse().ok();
        assert!(attach(&attached).ends_with(", MTU 1408, limited to 100mbit out\n"));
        attached.rates.ingress = "2.5gbit".parse().ok();
        assert!(attach(&attached).ends_with(", MTU 1408, limited to 100mbit out, 2.5gbit in\n"));
        let endpoint = EndpointId::from_entropy([0; 16]);
        assert_eq!(detach(&DetachResponse { endpoint }), "0000000000000000000000000 is detached\n");
    }

    #[test]
    fn an_inspected_network_shows_subnets_labels_and_endpoints() {
        let mut network = samples::network("red", false);
        network.labels.insert("team".into(), "a=b".into());
        let text = inspect(&InspectNetworkResponse {
            network,
            effective_mtu: Some(1450),
            epoch: crate::id::Epoch::new(3),
            nodes: vec![samples::node("a", Role::Worker)],
            endpoints: vec![samples::endpoint()],
        });
        assert_eq!(
            text,
            "Name:        red\n\
             Id:          0000000000000000000000000\n\
             VNI:         4097\n\
             Encrypted:   no\n\
             Subnet:      10.1.0.0/24, gateway 10.1.0.1\n\
             Subnet:      fd00:1::/64\n\
             MTU:         1450 (from the underlay)\n\
             Label:       team=a=b\n\
             Epoch:       3\n\
             \n\
             ENDPOINT                   NODE  NAME  ADDRESSES                  MAC\n\
             0000000000000000000000000  a     web   10.1.0.2/24, fd00:1::2/64  02:42:0a:01:00:02\n"
        );
    }

    #[test]
    fn status_without_a_cluster_says_what_to_do_and_warns_of_a_key_log() {
        let text = status(&StatusResponse {
            agent_version: "0.1.0".into(),
            pid: 7,
            uptime_seconds: 3661,
            state_dir: "/var/lib/overlayd".into(),
            esp_key_log: Some("/tmp/keys".into()),
            warnings: vec!["the clock is wrong".into()],
            locked: false,
            cluster: None,
        });
        assert_eq!(
            text,
            "Agent:       0.1.0, pid 7, up 1h 1m 1s\n\
             State:       /var/lib/overlayd\n\
             Cluster:     none; run 'overlayd init' for a new one, or 'overlayd join'\n\
             WARNING:     every key is written to /tmp/keys (--esp-key-log)\n\
             WARNING:     the clock is wrong\n"
        );
    }

    #[test]
    fn status_of_a_worker_without_manager_says_so() {
        let manager = ManagerStatus { node: samples::node("m", Role::Manager), connected: false };
        let text = status(&StatusResponse {
            agent_version: "0.1.0".into(),
            pid: 7,
            uptime_seconds: 0,
            state_dir: "/var/lib/overlayd".into(),
            esp_key_log: None,
            warnings: vec![],
            locked: false,
            cluster: Some(ClusterStatus {
                id: ClusterId::from_entropy([0; 16]),
                node: samples::node("a", Role::Worker),
                version: crate::id::Version::new(12),
                removed: false,
                managers: vec![manager],
                certificate_expires_unix_seconds: 1_800_000_000,
                root_expires_unix_seconds: 1_900_000_000,
                lane_count: 4,
                processors: ProcessorStatus {
                    busy_poll_microseconds: 264,
                    keep_awake: true,
                    streams_first: false,
                },
                network_count: 2,
                endpoint_count: 5,
                offloads: vec![
                    status_of(Offload::EspSegmentation, true, 0, 1),
                    status_of(Offload::EspCoalescing, true, 1, 1),
                    status_of(Offload::VxlanSegmentation, true, 0, 0),
                    status_of(Offload::VxlanCoalescing, true, 0, 0),
                    status_of(Offload::TapChecksum, true, 5, 5),
                    status_of(Offload::TapTcp, false, 0, 5),
                    status_of(Offload::TapUdp, true, 3, 5),
                ],
            }),
        });
        assert_eq!(
            text,
            "Agent:       0.1.0, pid 7, up 0s\n\
             State:       /var/lib/overlayd\n\
             Cluster:     0000000000000000000000000, version 12\n\
             Node:        0000000000000000000000000 (a), worker\n\
             TLS at:      192.0.2.1:2377\n\
             Data at:     192.0.2.1:4500 (UDP), underlay MTU 1500\n\
             Certificate: until 2027-01-15T08:00:00Z\n\
             Manager:     0000000000000000000000000 (m) at 192.0.2.1:2377, NOT CONNECTED\n\
             Carries:     2 networks, 5 endpoints\n\
             Lanes:       4\n\
             Processors:  polled for 264us at most, keep_awake on, streams_first off\n\
             Offloads:    ESP: UDP_SEGMENT REFUSED by the kernel, UDP_GRO on\n\
             Offloads:    containers: checksum on, TCP off, UDP REFUSED by the kernel for 2 of 5\n\
             WARNING:     no manager is connected: what is attached works, nothing can be changed\n"
        );
    }

    fn status_of(offload: Offload, wanted: bool, used: u64, of: u64) -> OffloadStatus {
        OffloadStatus { offload, wanted, used, of }
    }
}
