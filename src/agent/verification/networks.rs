//! The networks of this node: what the manager says of them, who may hold their keys, what the lanes
//! look up, and the keys themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::agent::lane_state::{Expected, LaneState};
use crate::agent::member::Member;
use crate::api::ApiError;
use crate::api::types::{MendedBy, PeerState, Verified, VerifiedItem};
use crate::cluster::{NetworkView, View};
use crate::control::rpc::{ErrorKind, messages};
use crate::control::session::SessionStatus;
use crate::id::Spi;

pub(super) async fn items(member: &Member) -> Result<Vec<VerifiedItem>, ApiError> {
    let lanes = LaneState::look(&member.dataplane).await?;
    let view = &lanes.view;
    let mut items = vec![manager(member, view)];
    for (id, network) in &view.networks {
        let name = &network.network.name;
        items.push(told(member, network).await);
        let Some(expected) = lanes.expected(member.id, network) else {
            let refused = lanes.refused.get(id).map(ToString::to_string);
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
        let membership = &expected.carried.membership;
        let nodes = membership.nodes.len();
        items.push(VerifiedItem::ok(
            Verified::Membership,
            name,
            format!("epoch {}, {nodes} nodes", membership.epoch),
        ));
        items.push(tables(network, &expected, &lanes));
    }
    if let Some(surplus) = lanes.surplus_network() {
        let item = (Verified::Tables, "networks that have ended");
        items.push(VerifiedItem::differs(item, surplus, "none", (MendedBy::Agent, ANEW)));
    }
    items.extend(keys(member, &lanes));
    Ok(items)
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
fn tables(view: &NetworkView, expected: &Expected<'_>, lanes: &LaneState) -> VerifiedItem {
    let name = &view.network.name;
    if let Some(wrong) = lanes.wrong_tables(view, expected) {
        return VerifiedItem::differs(
            (Verified::Tables, name),
            wrong,
            format!("{} endpoints", expected.endpoints.len()),
            (MendedBy::Agent, ANEW),
        );
    }
    let (all, here) = (expected.endpoints.len(), expected.here());
    let is = format!("{all} endpoints, {here} of them here, in {} lanes", lanes.inventories.len());
    VerifiedItem::ok(Verified::Tables, name, is)
}

/// The SAs of each link, in the lanes, held against the keys that were agreed on.
fn keys(member: &Member, lanes: &LaneState) -> Vec<VerifiedItem> {
    let (status, found) = (member.keys.status(), lanes.sas());
    let mut items = Vec::new();
    for ((network, node), slot) in &lanes.links {
        let network_view = lanes.view.networks.get(network);
        let peer = network_view.and_then(|view| view.nodes.iter().find(|peer| peer.id == *node));
        let name = peer.map_or_else(|| node.to_string(), |peer| peer.name.to_string());
        let network_name = network_view.map_or_else(|| network.to_string(), |v| v.network.name.to_string());
        let of = format!("{name} on {network_name}");
        let found = found.get(slot).cloned().unwrap_or_default();
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
        let is_old = |spi: &Spi| !keys.inbound.contains(spi);
        let generations = 1 + u32::from(found.inbound.iter().any(is_old));
        let is = format!(
            "generation {} of {}, {} SAs out, {} in, {generations} in all",
            keys.generation,
            keys.suite.name(),
            found.outbound.len(),
            found.inbound.len(),
        );
        items.push(if found.stray(Some(status)).is_none() {
            VerifiedItem::ok(Verified::Keys, of, is)
        } else {
            let should_be = format!("{} SAs out, {} in", keys.outbound.len(), keys.inbound.len());
            let how = "drops what was not agreed on and agrees on new ones within 5 s; report it with the log: it is a bug";
            VerifiedItem::differs((Verified::Keys, of), is, should_be, (MendedBy::Agent, how))
        });
    }
    let ended: Vec<Spi> = lanes.ended_sas(&found).into_values().flatten().collect();
    if !ended.is_empty() {
        let spis = ended.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let how = "drops them within 5 s; report it with the log: it is a bug";
        let item = (Verified::Keys, "links that have ended");
        items.push(VerifiedItem::differs(item, spis, "none", (MendedBy::Agent, how)));
    }
    items
}

const ANEW: &str = "publishes them anew within 5 s; report it with the log: it is a bug";
const ASKED: Duration = Duration::from_secs(5);
