//! `overlayd node …`: asks a manager, and says which node it is that answers.

use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{
    ChangeNodeRequest, ChangeNodeResponse, InspectNodeRequest, InspectNodeResponse, ListNodesResponse,
    NodeChange, NodeEndpoint, NodeState, NodeSummary, NodeUpdate, RemoveNodeRequest, RemoveNodeResponse,
};
use crate::cluster::{Endpoint, Node, Role};
use crate::control::rpc::{ErrorKind, messages};
use crate::id::{HostName, NetworkName};

pub(super) async fn list(member: &Member) -> Result<ListNodesResponse, ApiError> {
    let nodes = member.client.list_nodes(messages::ListNodes {}).await?.nodes.into_iter();
    Ok(ListNodesResponse { nodes: nodes.map(|status| summary(member, status)).collect() })
}

pub(super) async fn inspect(
    member: &Member,
    request: InspectNodeRequest,
) -> Result<InspectNodeResponse, ApiError> {
    let request = messages::InspectNode { node: request.node };
    let messages::NodeDetail { status, last_seen_seconds, endpoints } =
        member.client.inspect_node(request).await?;
    Ok(InspectNodeResponse {
        summary: summary(member, status),
        last_seen_seconds,
        endpoints: named(endpoints),
    })
}

pub(super) async fn remove(
    member: &Member,
    request: RemoveNodeRequest,
) -> Result<RemoveNodeResponse, ApiError> {
    let RemoveNodeRequest { node, force } = request;
    let removed = member.client.remove_node(messages::RemoveNode { node, force }).await?;
    let endpoint_count = u64::try_from(removed.endpoints).unwrap_or(u64::MAX);
    Ok(RemoveNodeResponse { node: removed.node, endpoint_count })
}

pub(super) async fn change(
    member: &Member,
    request: ChangeNodeRequest,
) -> Result<ChangeNodeResponse, ApiError> {
    let change = match request.change {
        NodeChange::Promote => messages::NodeChange::Promote,
        NodeChange::Demote => messages::NodeChange::Demote,
        NodeChange::Update(NodeUpdate { availability, label_add, label_remove }) => {
            let change = messages::ProfileChange { availability, label_add, label_remove };
            messages::NodeChange::Update(change)
        }
    };
    let is_demotion = change == messages::NodeChange::Demote;
    let wanted = messages::ChangeNode { node: request.node, change };
    let changed = match member.client.change_node(wanted.clone()).await {
        // By the manager that is none any more: its answer may be cut off by that. Another says whether it is so.
        Err(error) if is_demotion && error.kind == ErrorKind::Unavailable => {
            member.client.move_on();
            let nodes = member.client.list_nodes(messages::ListNodes {}).await?.nodes;
            demoted(nodes, &wanted.node).ok_or(error)?
        }
        answer => answer?,
    };
    Ok(ChangeNodeResponse {
        node: changed.node,
        profile: changed.profile,
        lost: named(changed.lost),
        endpoint_count: u64::try_from(changed.endpoints).unwrap_or(u64::MAX),
    })
}

/// The node that was to be demoted, if it is a worker. One of several of that name was not what was asked for.
fn demoted(nodes: Vec<messages::NodeStatus>, wanted: &HostName) -> Option<messages::ChangedNode> {
    let is_it = |node: &Node| node.name == *wanted || node.id.as_str() == wanted.as_str();
    let mut found = nodes.into_iter().filter(|status| is_it(&status.node));
    let (Some(status), None) = (found.next(), found.next()) else { return None };
    let messages::NodeStatus { node, profile, endpoints, .. } = status;
    (node.role == Role::Worker).then(|| messages::ChangedNode { node, profile, endpoints, lost: Vec::new() })
}

fn named(endpoints: Vec<(NetworkName, Endpoint)>) -> Vec<NodeEndpoint> {
    endpoints.into_iter().map(|(network_name, endpoint)| NodeEndpoint { network_name, endpoint }).collect()
}

fn summary(member: &Member, status: messages::NodeStatus) -> NodeSummary {
    NodeSummary {
        is_self: status.node.id == member.node.id,
        state: if status.connected { NodeState::Ready } else { NodeState::Down },
        node: status.node,
        profile: status.profile,
        manager: status.manager,
        endpoint_count: u64::try_from(status.endpoints).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::super::manager::tests::node;
    use super::*;
    use crate::id::NodeId;

    #[test]
    fn demotion_is_believed_done_of_the_one_node_that_was_named_alone() {
        let status = |n, role| messages::NodeStatus {
            node: Node {
                name: "vm".parse().expect("a name"),
                ..node(NodeId::from_entropy([n; 16]), role, n)
            },
            connected: true,
            profile: crate::cluster::NodeProfile::default(),
            endpoints: 0,
            manager: None,
        };
        let (worker, manager) = (status(1, Role::Worker), status(2, Role::Manager));
        let (one, two) = (worker.node.id, manager.node.id);
        let done = |nodes: &[&messages::NodeStatus], wanted: &str| {
            let wanted = wanted.parse().expect("a name");
            demoted(nodes.iter().map(|status| (*status).clone()).collect(), &wanted).map(|done| done.node.id)
        };
        assert_eq!(done(&[&worker], "vm"), Some(one));
        assert_eq!(done(&[&manager], "vm"), None);
        assert_eq!(done(&[&worker, &manager], "vm"), None, "which of them was meant is not known");
        assert_eq!(done(&[&worker, &manager], one.as_str()), Some(one));
        assert_eq!(done(&[&worker, &manager], two.as_str()), None);
    }
}
