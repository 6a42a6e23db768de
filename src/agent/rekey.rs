//! `overlayd rekey`: new keys for links now, asked of the task of each peer and waited for.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};

use super::member::Member;
use super::peer::Wish;
use super::placement::{LinkSpec, PeerSpec};
use crate::api::ApiError;
use crate::api::types::{RekeyRequest, RekeyResponse, RekeyedLink};
use crate::cluster::View;
use crate::id::{HostName, NetworkId, NetworkName, NodeId};
use crate::negotiate::Established;

/// Wishes for a peer's links, on their way to its task.
pub(super) type Wished = (NodeId, Vec<Wish>);

/// Has new keys made for the links that the request names, and waits for them.
pub(super) async fn rekey(member: &Member, request: RekeyRequest) -> Result<RekeyResponse, ApiError> {
    let peers = member.dataplane.peers().borrow().clone();
    let network = match &request.network {
        Some(name) => Some(encrypted_network(&*member.dataplane.view().await, name)?),
        None => None,
    };
    let peer = request.peer.as_ref().map(|name| peer_named(&peers, name)).transpose()?;
    let mut waiting = Vec::new();
    for spec in peers.values().filter(|spec| peer.is_none_or(|peer| peer == spec.node.id)) {
        let links = spec.links.iter().filter(|(id, _)| network.is_none_or(|network| network == **id));
        waiting.extend(wish(&member.rekeys, spec, links).await);
    }
    let mut links = Vec::with_capacity(waiting.len());
    for (mut link, told) in waiting {
        match told.await {
            Ok(Ok(Established { suite, outbound, inbound, .. })) => {
                (link.suite, link.outbound_spis, link.inbound_spis) = (Some(suite), outbound, inbound);
            }
            Ok(Err(failure)) => link.failure = Some(failure),
            Err(_) => link.failure = Some(BUSY.to_owned()),
        }
        links.push(link);
    }
    links.sort_by(|a, b| {
        (&a.network_name, &a.node_name, a.node).cmp(&(&b.network_name, &b.node_name, b.node))
    });
    Ok(RekeyResponse { links })
}

/// A link, and where to hear of its new keys.
type Waiting = (RekeyedLink, oneshot::Receiver<Result<Established, String>>);

/// Asks the task of a peer for new keys of some of its links.
async fn wish(
    rekeys: &mpsc::Sender<Wished>,
    peer: &PeerSpec,
    links: impl Iterator<Item = (&NetworkId, &LinkSpec)>,
) -> Vec<Waiting> {
    let (wishes, waiting): (Vec<_>, Vec<_>) = links
        .map(|(network, link)| {
            let (answer, told) = oneshot::channel();
            let link = RekeyedLink {
                node: peer.node.id,
                node_name: peer.node.name.clone(),
                network: *network,
                network_name: link.name.clone(),
                failure: None,
                suite: None,
                outbound_spis: Vec::new(),
                inbound_spis: Vec::new(),
            };
            (Wish { network: *network, answer }, (link, told))
        })
        .unzip();
    if !wishes.is_empty() {
        // Where the node is just leaving its cluster, nobody answers, and that is told.
        let _sent_or_not = rekeys.send((peer.node.id, wishes)).await;
    }
    waiting
}

fn encrypted_network(view: &View, name: &NetworkName) -> Result<NetworkId, ApiError> {
    let named = |id: &NetworkId, network: &NetworkName| network == name || id.to_string() == name.as_str();
    let found = view.networks.iter().find(|(id, view)| named(id, &view.network.name));
    match found {
        Some((id, view)) if view.network.encrypted => Ok(*id),
        Some(_) => Err(ApiError::conflict(format!("network {name} is not encrypted: it has no keys"))),
        None => Err(ApiError::not_found(format!(
            "this node has no keys of a network {name}: `overlayd peers` lists those that it has"
        ))),
    }
}

fn peer_named(peers: &BTreeMap<NodeId, PeerSpec>, name: &HostName) -> Result<NodeId, ApiError> {
    let named = |spec: &&PeerSpec| spec.node.name == *name || spec.node.id.to_string() == name.as_str();
    let mut found = peers.values().filter(named).map(|spec| spec.node.id);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node),
        (Some(one), Some(other)) => Err(ApiError::conflict(format!(
            "several peers are named {name}, {one} and {other} among them: give the id"
        ))),
        (None, _) => Err(ApiError::not_found(format!(
            "no peer {name} shares an encrypted network with this node: `overlayd peers` lists those that do"
        ))),
    }
}

const BUSY: &str = "the agent was too busy, or the link has just ended; ask again";

#[cfg(test)]
mod tests {
    use super::super::testbed::{PaperCluster, network_id, peer};
    use super::*;

    #[test]
    fn networks_and_peers_are_found_by_name_and_by_id_and_refused_with_what_to_do() {
        let mut cluster = PaperCluster::new();
        let view = cluster.view(vec![cluster.network(1, 1, &[2])], &[]);
        let network = &view.networks[&network_id(1)].network;
        for name in [network.name.clone(), network_id(1).to_string().parse().expect("a name")] {
            assert_eq!(encrypted_network(&view, &name).expect("a network"), network_id(1));
        }
        let error = encrypted_network(&view, &"blue".parse().expect("a name")).expect_err("no network");
        assert!(error.message.contains("blue") && error.message.contains("overlayd peers"), "{error}");

        let nodes = &view.networks[&network_id(1)].nodes;
        let node = nodes.iter().find(|node| node.id == peer(2)).expect("a node").clone();
        let spec =
            |id| PeerSpec { node: crate::cluster::Node { id, ..node.clone() }, links: BTreeMap::new() };
        let mut peers = BTreeMap::from([(peer(2), spec(peer(2)))]);
        for name in [node.name.clone(), peer(2).to_string().parse().expect("a name")] {
            assert_eq!(peer_named(&peers, &name).expect("a peer"), peer(2));
        }
        let error = peer_named(&peers, &"nobody".parse().expect("a name")).expect_err("no peer");
        assert!(error.message.contains("nobody") && error.message.contains("overlayd peers"), "{error}");
        peers.insert(peer(3), spec(peer(3)));
        let error = peer_named(&peers, &node.name).expect_err("two peers");
        assert!(error.message.contains("give the id"), "{error}");
    }
}
