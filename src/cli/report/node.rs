//! What `overlayd node …` and `overlayd leave` print about one node.

use super::Lines;
use crate::api::types::{
    ChangeNodeResponse, InspectNodeResponse, LeaveResponse, NodeState, NodeSummary, RemoveNodeResponse,
};
use crate::cli::tables;
use crate::cluster::Availability;

pub(in crate::cli) fn leave(left: &LeaveResponse) -> String {
    let mut text = format!("This node, {}, has left cluster {}.\n", left.node, left.cluster);
    if let Some(why) = &left.untold {
        text += &format!(
            "No manager has heard of it ({why}), so the cluster goes on believing this node if it was a member still.\n\
             To make every node refuse it, run on a manager, where 'overlayd node ls' shows it:\n\n    \
             overlayd node rm --force {}\n",
            left.node
        );
    }
    text
}

pub(in crate::cli) fn remove_node(removed: &RemoveNodeResponse) -> String {
    let RemoveNodeResponse { node, endpoint_count } = removed;
    let endpoints = match endpoint_count {
        0 => String::new(),
        count => format!(" with its {count} endpoints"),
    };
    format!(
        "{} ({}) is removed{endpoints}: every node refuses it from now on.\n\
         To use that machine again, run 'overlayd leave --force' on it, and let it join as a new node.\n",
        node.name, node.id
    )
}

pub(in crate::cli) fn change_node(changed: &ChangeNodeResponse) -> String {
    let ChangeNodeResponse { node, profile, lost, endpoint_count } = changed;
    let labels = tables::node_labels(&profile.labels);
    let mut text = format!("{} ({}) is a {}, {}", node.name, node.id, node.role, profile.availability);
    if !profile.labels.is_empty() {
        text += &format!(", labelled {labels}");
    }
    text += "\n";
    if profile.availability == Availability::Drain && *endpoint_count > 0 {
        text += &format!(
            "It takes no new endpoints. The {endpoint_count} that it has work on until they are detached there;\n\
             'overlayd node inspect {}' lists them.\n",
            node.id
        );
    }
    if !lost.is_empty() {
        text += &format!(
            "It has not the labels of these endpoints' networks any more, and has lost them:\n\n{}",
            tables::node_endpoints(lost)
        );
    }
    text
}

pub(in crate::cli) fn inspect_node(inspected: &InspectNodeResponse) -> String {
    let InspectNodeResponse { summary, last_seen_seconds, endpoints } = inspected;
    let NodeSummary { node, is_self, profile, .. } = summary;
    let mut lines = Lines::default();
    lines.add("Name", &node.name);
    lines.add("Id", format!("{}{}", node.id, if *is_self { " (this node)" } else { "" }));
    lines.add("Role", node.role);
    let state = tables::node_state(summary.state);
    match last_seen_seconds {
        Some(seconds) if summary.state == NodeState::Down => {
            let ago = humantime::format_duration(std::time::Duration::from_secs(*seconds));
            lines.add("State", format!("{state}, last seen {ago} ago"));
        }
        Some(_) | None => lines.add("State", state),
    }
    if summary.manager.is_some() {
        lines.add("Manager", tables::manager_state(summary.manager));
    }
    match (profile.availability, endpoints.len()) {
        (Availability::Drain, left) if left > 0 => {
            lines.add("Available", format!("drain, {left} endpoints left to detach there"));
        }
        (availability, _) => lines.add("Available", availability),
    }
    for (key, value) in &profile.labels {
        lines.add("Label", format!("{key}={value}"));
    }
    lines.add("TLS at", node.advertise);
    lines.add("Data at", format!("{} (UDP), underlay MTU {}", node.data, node.underlay_mtu));
    format!("{}\n{}", lines.text, tables::node_endpoints(endpoints))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::NodeEndpoint;
    use crate::cli::tables::samples;
    use crate::cluster::{NodeProfile, Role};
    use crate::id::{ClusterId, NodeId};

    #[test]
    fn an_inspected_node_shows_where_it_is_and_what_is_on_it() {
        let mut inspected = InspectNodeResponse {
            summary: NodeSummary {
                node: samples::node("w", Role::Worker),
                is_self: false,
                state: NodeState::Down,
                profile: samples::profile(),
                endpoint_count: 1,
                manager: None,
            },
            last_seen_seconds: Some(61),
            endpoints: vec![NodeEndpoint {
                network_name: "red".parse().expect("a name"),
                endpoint: samples::endpoint(),
            }],
        };
        assert_eq!(
            inspect_node(&inspected),
            "Name:        w\n\
             Id:          0000000000000000000000000\n\
             Role:        worker\n\
             State:       down, last seen 1m 1s ago\n\
             Available:   drain, 1 endpoints left to detach there\n\
             Label:       disk=ssd\n\
             Label:       zone=\n\
             TLS at:      192.0.2.1:2377\n\
             Data at:     192.0.2.1:4500 (UDP), underlay MTU 1500\n\
             \n\
             ENDPOINT                   NETWORK  NAME  ADDRESSES                  MAC\n\
             0000000000000000000000000  red      web   10.1.0.2/24, fd00:1::2/64  02:42:0a:01:00:02\n"
        );
        (inspected.summary.is_self, inspected.summary.state) = (true, NodeState::Ready);
        inspected.last_seen_seconds = None;
        let text = inspect_node(&inspected);
        assert!(text.contains("0000000000000000000000000 (this node)\n"), "{text}");
        assert!(text.contains("State:       ready\n"), "{text}");
    }

    #[test]
    fn a_removed_or_departed_node_is_told_what_is_left_to_do() {
        let node = samples::node("w", Role::Worker);
        let text = remove_node(&RemoveNodeResponse { node: node.clone(), endpoint_count: 2 });
        assert!(
            text.starts_with("w (0000000000000000000000000) is removed with its 2 endpoints: "),
            "{text}"
        );
        assert!(text.contains("'overlayd leave --force'"), "{text}");
        let mut left = LeaveResponse {
            cluster: ClusterId::from_entropy([0; 16]),
            node: NodeId::from_entropy([0; 16]),
            untold: None,
        };
        assert_eq!(leave(&left).lines().count(), 1);
        left.untold = Some("no answer".into());
        assert!(leave(&left).contains(" if it was a member still."));
        assert!(leave(&left).ends_with("\n    overlayd node rm --force 0000000000000000000000000\n"));
    }

    #[test]
    fn a_changed_node_shows_what_it_is_what_it_lost_and_what_is_left_to_do() {
        let mut changed = ChangeNodeResponse {
            node: samples::node("w", Role::Worker),
            profile: NodeProfile::default(),
            lost: Vec::new(),
            endpoint_count: 3,
        };
        assert_eq!(change_node(&changed), "w (0000000000000000000000000) is a worker, active\n");
        changed.profile = samples::profile();
        let text = change_node(&changed);
        assert!(text.contains(" is a worker, drain, labelled disk=ssd, zone\n"), "{text}");
        assert!(
            text.contains("The 3 that it has work on")
                && text.contains("node inspect 0000000000000000000000000"),
            "{text}"
        );
        changed.lost = vec![NodeEndpoint {
            network_name: "red".parse().expect("a name"),
            endpoint: samples::endpoint(),
        }];
        let text = change_node(&changed);
        assert!(text.contains("has lost them:\n\nENDPOINT") && text.contains("  red      web"), "{text}");
    }
}
