//! `overlayd node …`: asks a manager, and says which node it is that answers.

use std::sync::Arc;

use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{
    ChangeNodeRequest, ChangeNodeResponse, InspectNodeRequest, InspectNodeResponse, ListNodesResponse,
    NodeChange, NodeEndpoint, NodeState, NodeSummary, NodeUpdate, RemoveNodeRequest, RemoveNodeResponse,
};
use crate::cluster::{Endpoint, Node, Role};
use crate::control::rpc::{ErrorKind, ManagerClient, messages};
use crate::id::{HostName, NetworkName, NodeId};

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
    let nodes = member.client.list_nodes(messages::ListNodes {}).await?.nodes;
    let known = the_one(&nodes, &node).cloned();
    // By its id, so that no other node of that name is taken for it later.
    let id = known.as_ref().and_then(|known| known.node.id.as_str().parse().ok());
    let request = messages::RemoveNode { node: id.unwrap_or(node), force };
    let asked = known.as_ref().and_then(|known| beside(member, &nodes, known.node.id));
    let asked = asked.unwrap_or_else(|| member.client.clone());
    let removed = match (asked.remove_node(request).await, known) {
        // Who was to do it may have died of it, or be cut off: another says whether it is so.
        (Err(error), Some(known)) if error.kind == ErrorKind::Unavailable => {
            asked.move_on();
            let nodes = asked.list_nodes(messages::ListNodes {}).await.map_err(|_| error.clone())?.nodes;
            removed(&nodes, known).ok_or(error)?
        }
        (answer, _) => answer?,
    };
    let endpoint_count = u64::try_from(removed.endpoints).unwrap_or(u64::MAX);
    Ok(RemoveNodeResponse { node: removed.node, endpoint_count })
}

/// A client of the managers but one that is to be removed: its answer would be cut off by that, and what it
/// says of itself then is nothing to go by. This node is asked first if it is a manager.
fn beside(member: &Member, nodes: &[messages::NodeStatus], victim: NodeId) -> Option<ManagerClient> {
    let nodes = nodes.iter().map(|status| &status.node);
    let (managers, workers) = nodes.partition::<Vec<_>, _>(|node| node.role == Role::Manager);
    if workers.iter().any(|node| node.id == victim) {
        return None;
    }
    let mut others: Vec<_> = managers.into_iter().filter(|node| node.id != victim).collect();
    others.sort_by_key(|node| node.id != member.id);
    let addresses: Vec<_> = others.into_iter().map(|node| node.advertise).collect();
    (!addresses.is_empty()).then(|| ManagerClient::new(Arc::clone(&member.credentials), addresses))
}

/// The node that was to be removed, if it is a member no more.
fn removed(nodes: &[messages::NodeStatus], known: messages::NodeStatus) -> Option<messages::RemovedNode> {
    let is_member = nodes.iter().any(|status| status.node.id == known.node.id);
    (!is_member).then_some(messages::RemovedNode { node: known.node, endpoints: known.endpoints })
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
            demoted(&nodes, &wanted.node).ok_or(error)?
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

/// The node that was to be demoted, if it is a worker.
fn demoted(nodes: &[messages::NodeStatus], wanted: &HostName) -> Option<messages::ChangedNode> {
    let messages::NodeStatus { node, profile, endpoints, .. } = the_one(nodes, wanted)?.clone();
    (node.role == Role::Worker).then(|| messages::ChangedNode { node, profile, endpoints, lost: Vec::new() })
}

/// The node that is meant. One of several of that name is not what was asked for.
fn the_one<'a>(nodes: &'a [messages::NodeStatus], wanted: &HostName) -> Option<&'a messages::NodeStatus> {
    let is_it = |node: &Node| node.name == *wanted || node.id.as_str() == wanted.as_str();
    let mut found = nodes.iter().filter(|status| is_it(&status.node));
    let (Some(status), None) = (found.next(), found.next()) else { return None };
    Some(status)
}

fn named(endpoints: Vec<(NetworkName, Endpoint)>) -> Vec<NodeEndpoint> {
    endpoints.into_iter().map(|(network_name, endpoint)| NodeEndpoint { network_name, endpoint }).collect()
}

fn summary(member: &Member, status: messages::NodeStatus) -> NodeSummary {
    NodeSummary {
        is_self: status.node.id == member.id,
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

    #[test]
    fn removal_is_believed_done_of_the_node_that_was_meant_and_is_a_member_no_more() {
        let status = |n| status(n, Role::Manager);
        let (one, two, three) = (status(1), status(2), status(3));
        let done = |nodes: &[&messages::NodeStatus], known: &messages::NodeStatus| {
            let nodes: Vec<_> = nodes.iter().map(|status| (*status).clone()).collect();
            removed(&nodes, known.clone()).map(|done| (done.node.id, done.endpoints))
        };
        assert_eq!(done(&[&one, &three], &two), Some((two.node.id, 2)));
        assert_eq!(done(&[&one, &two], &two), None);
        assert!(the_one(&[one.clone(), two.clone()], &one.node.name).is_none(), "which of them is not known");
        assert!(the_one(&[one, two], &"ghost".parse().expect("a name")).is_none());
    }

    #[test]
    fn demotion_is_believed_done_of_the_one_node_that_was_named_alone() {
        let (worker, manager) = (status(1, Role::Worker), status(2, Role::Manager));
        let (one, two) = (worker.node.id, manager.node.id);
        let done = |nodes: &[&messages::NodeStatus], wanted: &str| {
            let wanted = wanted.parse().expect("a name");
            let nodes: Vec<_> = nodes.iter().map(|status| (*status).clone()).collect();
            demoted(&nodes, &wanted).map(|done| done.node.id)
        };
        assert_eq!(done(&[&worker], "vm"), Some(one));
        assert_eq!(done(&[&manager], "vm"), None);
        assert_eq!(done(&[&worker, &manager], "vm"), None, "which of them was meant is not known");
        assert_eq!(done(&[&worker, &manager], one.as_str()), Some(one));
        assert_eq!(done(&[&worker, &manager], two.as_str()), None);
    }

    /// A node of a name that others have too.
    fn status(n: u8, role: Role) -> messages::NodeStatus {
        messages::NodeStatus {
            node: Node {
                name: "vm".parse().expect("a name"),
                ..node(NodeId::from_entropy([n; 16]), role, n)
            },
            connected: true,
            profile: crate::cluster::NodeProfile::default(),
            endpoints: 2,
            manager: None,
        }
    }
}
