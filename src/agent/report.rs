//! What the agent tells of itself: status, peers and counters, from what is in memory.

use std::collections::BTreeMap;

use super::member::{Member, certificate_warning};
use super::placement::LinkKey;
use crate::api::ApiError;
use crate::api::types::{
    ClusterStatus, DropCount, EndpointTraffic, ManagerStatus, PeerStatus, PeerTraffic, PeersResponse,
    StatsResponse, Traffic,
};
use crate::cluster::View;
use crate::control::session::SessionStatus;
use crate::control::store::local::AttachmentState;
use crate::drop_reason::DropReason;
use crate::id::LinkSlot;
use crate::io::clock::boot_time;
use crate::worker::{LinkCounters, PortCounters};

/// What `overlayd status` shows of the cluster, and what the operator should know.
pub(super) async fn cluster(member: &Member, warnings: &mut Vec<String>) -> Result<ClusterStatus, ApiError> {
    let view = member.dataplane.view().await;
    let session = member.session.borrow().clone();
    if let SessionStatus::Disconnected(error) = &session {
        warnings.push(format!("no session with a manager: {error}; traffic goes on, changes are refused"));
    }
    let connected = session == SessionStatus::Connected;
    let managers = view.managers.iter().map(|node| ManagerStatus { node: node.clone(), connected });
    let attachments = member.attachments.all().await?;
    for attachment in &attachments {
        let is_ready = attachment.state == AttachmentState::Ready;
        if is_ready && member.dataplane.port(attachment.id).await.is_none() {
            let why = member.attachments.trouble_of(attachment.id);
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let (id, network) = (attachment.id, &attachment.network);
            warnings.push(format!("endpoint {id} of network {network} has no interface{why}"));
        }
    }
    for (network, why) in member.dataplane.refused().await {
        let name = view.networks.get(&network).map(|view| &view.network.name);
        let name = name.map_or_else(|| network.to_string(), ToString::to_string);
        warnings.push(format!("network {name} carries nothing here: {why}"));
    }
    warnings.extend(certificate_warning(&member.credentials));
    let expires = member.credentials.identity().expires().unix_timestamp();
    Ok(ClusterStatus {
        id: member.credentials.identity().cluster(),
        node: member.node.clone(),
        version: view.version,
        managers: managers.collect(),
        certificate_expires_unix_seconds: u64::try_from(expires).unwrap_or(0),
        network_count: u64::try_from(view.networks.len()).unwrap_or(u64::MAX),
        endpoint_count: u64::try_from(attachments.len()).unwrap_or(u64::MAX),
    })
}

/// What `overlayd peers` shows.
pub(super) async fn peers(member: &Member) -> PeersResponse {
    let now = boot_time();
    let status = member.keys.status();
    let peer = |link: LinkOf<'_>| {
        let status = status.get(&link.key)?;
        let keys = status.established.as_ref();
        Some(PeerStatus {
            node: link.node.id,
            node_name: link.node.name.clone(),
            network: link.key.0,
            network_name: link.network.name.clone(),
            remote: link.node.data,
            state: status.state,
            failure: status.failure.clone(),
            suite: keys.map(|keys| keys.suite),
            key_age_seconds: keys.map(|keys| now.since(keys.created).as_secs()),
            outbound_spis: keys.map(|keys| keys.outbound.clone()).unwrap_or_default(),
            inbound_spis: keys.map(|keys| keys.inbound.clone()).unwrap_or_default(),
            sent: link.sent(),
            received: link.received(),
            last_drop: link.counters.last_drop,
        })
    };
    let view = member.dataplane.view().await;
    let links = links(member, &view).await;
    PeersResponse { peers: links.into_iter().filter_map(peer).collect() }
}

/// What `overlayd stats` shows.
pub(super) async fn stats(member: &Member) -> Result<StatsResponse, ApiError> {
    let view = member.dataplane.view().await;
    let mut stats = StatsResponse::default();
    for lane in member.dataplane.lanes() {
        let counts = DropReason::ALL.iter().zip(lane.counters().drops());
        let counts = counts.filter(|(_, packets)| *packets > 0);
        stats.drops.extend(counts.map(|(&reason, packets)| DropCount { lane: lane.id(), reason, packets }));
    }
    stats.peers = links(member, &view)
        .await
        .into_iter()
        .map(|link| PeerTraffic {
            node: link.node.id,
            node_name: link.node.name.clone(),
            network_name: link.network.name.clone(),
            sent: link.sent(),
            received: link.received(),
        })
        .collect();
    for attachment in member.attachments.all().await? {
        let Some(slot) = member.dataplane.port(attachment.id).await else { continue };
        let mut total = PortCounters::default();
        for lane in member.dataplane.lanes() {
            total += lane.counters().port(slot);
        }
        stats.endpoints.push(EndpointTraffic {
            endpoint: attachment.id,
            name: attachment.name,
            network_name: attachment.network,
            sent: Traffic { packets: total.frames_sent, bytes: total.bytes_sent },
            received: Traffic { packets: total.frames_received, bytes: total.bytes_received },
        });
    }
    Ok(stats)
}

/// A link with its names and numbers.
struct LinkOf<'v> {
    key: LinkKey,
    network: &'v crate::cluster::Network,
    node: &'v crate::cluster::Node,
    counters: LinkCounters,
}

impl LinkOf<'_> {
    fn sent(&self) -> Traffic {
        Traffic { packets: self.counters.packets_sent, bytes: self.counters.bytes_sent }
    }

    fn received(&self) -> Traffic {
        Traffic { packets: self.counters.packets_received, bytes: self.counters.bytes_received }
    }
}

async fn links<'v>(member: &Member, view: &'v View) -> Vec<LinkOf<'v>> {
    let slots: BTreeMap<LinkKey, LinkSlot> = member.dataplane.links().await;
    let named = slots.into_iter().filter_map(|(key, slot)| {
        let network = view.networks.get(&key.0)?;
        let node = network.nodes.iter().find(|node| node.id == key.1)?;
        let mut counters = LinkCounters::default();
        for lane in member.dataplane.lanes() {
            counters += lane.counters().link(slot);
        }
        Some(LinkOf { key, network: &network.network, node, counters })
    });
    named.collect()
}
