//! What the agent tells of itself: status, peers and counters, from what is in memory.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::ca;
use super::member::{Member, certificate_warning};
use super::placement::{LinkKey, vtep_of};
use super::returning;
use crate::api::ApiError;
use crate::api::types::{
    ClusterStatus, DropCount, EndpointTraffic, ManagerStatus, PeerState, PeerStatus, PeerTraffic,
    PeersResponse, StatsResponse, Traffic,
};
use crate::cluster::{Network, Node, View};
use crate::control::session::SessionStatus;
use crate::control::store::local::AttachmentState;
use crate::drop_reason::DropReason;
use crate::io::clock::boot_time;
use crate::worker::{Command, LaneCounters, PeerCounters, PortCounters};

/// What `overlayd status` shows of the cluster, and what the operator should know.
pub(super) async fn cluster(member: &Member, warnings: &mut Vec<String>) -> Result<ClusterStatus, ApiError> {
    let view = member.dataplane.view().await;
    let session = member.session.borrow().clone();
    if let SessionStatus::Disconnected(error) = &session {
        let mut warning = format!("no session with a manager: {error}; traffic goes on, changes are refused");
        if returning::may_come(member) {
            warning += ". If the managers have other addresses now, this node finds them with overlayd join --token \
                        TOKEN ADDRESS";
        }
        warnings.push(warning);
    }
    if let SessionStatus::Removed(error) = &session {
        warnings.push(error.to_string());
    }
    let connected = session == SessionStatus::Connected;
    let asked = member.client.preferred();
    let is_only = view.managers.len() == 1;
    let managers = view.managers.iter().map(|node| {
        let connected = connected && (is_only || asked == Some(node.advertise));
        ManagerStatus { node: node.clone(), connected }
    });
    let attachments = member.attachments.all().await?;
    for attachment in &attachments {
        let (id, network) = (attachment.id, &attachment.network);
        let has_port = member.dataplane.port(id).await.is_some();
        let what = match attachment.state {
            AttachmentState::Ready if !has_port => " has no interface",
            AttachmentState::Held => ", of Docker's",
            AttachmentState::Ready | AttachmentState::Pending => "",
        };
        match member.attachments.trouble_of(id) {
            Some(why) => warnings.push(format!("endpoint {id} of network {network}{what}: {why}")),
            None if attachment.state == AttachmentState::Ready && !has_port => {
                warnings.push(format!("endpoint {id} of network {network}{what}"));
            }
            None => {}
        }
    }
    warnings.extend(member.attachments.lost());
    for (network, why) in member.dataplane.refused().await {
        let name = view.networks.get(&network).map(|view| &view.network.name);
        let name = name.map_or_else(|| network.to_string(), ToString::to_string);
        warnings.push(format!("network {name} carries nothing here: {why}"));
    }
    warnings.extend(member.dataplane.narrow().await.iter().map(ToString::to_string));
    if returning::is_due(member) {
        warnings.push(returning::advice(member));
    } else {
        warnings.extend(certificate_warning(&member.credentials));
    }
    let identity = member.credentials.identity();
    warnings.extend(ca::ending(&identity, member.credentials.trust().roots(), member.credentials.now()));
    let unix_seconds = |at: OffsetDateTime| u64::try_from(at.unix_timestamp()).unwrap_or(0);
    Ok(ClusterStatus {
        id: identity.cluster(),
        node: member.node(),
        version: view.version,
        removed: matches!(session, SessionStatus::Removed(_)),
        managers: managers.collect(),
        certificate_expires_unix_seconds: unix_seconds(identity.expires()),
        root_expires_unix_seconds: unix_seconds(identity.root_expires()),
        lane_count: member.dataplane.lane_count().get(),
        processors: member.processors,
        network_count: u64::try_from(view.networks.len()).unwrap_or(u64::MAX),
        endpoint_count: u64::try_from(attachments.len()).unwrap_or(u64::MAX),
        offloads: member.offloads.status(member.dataplane.lanes()),
    })
}

/// What `overlayd peers` shows.
pub(super) async fn peers(member: &Member) -> PeersResponse {
    let now = boot_time();
    let status = member.keys.status();
    let peer = |of: PeerOf<'_>| {
        let plain = PeerStatus {
            node: of.node.id,
            node_name: of.node.name.clone(),
            network: of.network.id,
            network_name: of.network.name.clone(),
            remote: vtep_of(of.node),
            state: PeerState::Plain,
            failure: None,
            suite: None,
            key_age_seconds: None,
            outbound_spis: Vec::new(),
            inbound_spis: Vec::new(),
            lingering_spis: Vec::new(),
            sent: of.sent(),
            received: of.received(),
            last_drop: of.counters.last_drop,
        };
        if !of.network.encrypted {
            return Some(plain);
        }
        let status = status.get(&of.key())?;
        let keys = status.established.as_ref();
        Some(PeerStatus {
            remote: of.node.data,
            state: status.state,
            failure: status.failure.clone(),
            suite: keys.map(|keys| keys.suite),
            key_age_seconds: keys.map(|keys| now.since(keys.created).as_secs()),
            outbound_spis: keys.map(|keys| keys.outbound.clone()).unwrap_or_default(),
            inbound_spis: keys.map(|keys| keys.inbound.clone()).unwrap_or_default(),
            lingering_spis: status.lingering.clone(),
            ..plain
        })
    };
    let view = member.dataplane.view().await;
    PeersResponse { peers: each_peer(member, &view).await.into_iter().filter_map(peer).collect() }
}

/// What `overlayd stats` shows.
pub(super) async fn stats(member: &Member) -> Result<StatsResponse, ApiError> {
    let view = member.dataplane.view().await;
    let mut stats = StatsResponse::default();
    for lane in member.dataplane.lanes() {
        lane.execute(Command::CountOverflow).await?;
        let counts = DropReason::ALL.iter().zip(lane.counters().drops());
        let counts = counts.filter(|(_, packets)| *packets > 0);
        stats.drops.extend(counts.map(|(&reason, packets)| DropCount { lane: lane.id(), reason, packets }));
    }
    stats.peers = each_peer(member, &view)
        .await
        .into_iter()
        .map(|of| PeerTraffic {
            node: of.node.id,
            node_name: of.node.name.clone(),
            network_name: of.network.name.clone(),
            sent: of.sent(),
            received: of.received(),
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
            rates: attachment.rates,
        });
    }
    stats.mendings = member.attachments.mendings();
    stats.joins = member.manager().map(|manager| manager.join_totals());
    Ok(stats)
}

/// A peer in one network with its names and numbers.
struct PeerOf<'v> {
    network: &'v Network,
    node: &'v Node,
    counters: PeerCounters,
}

impl PeerOf<'_> {
    fn key(&self) -> LinkKey {
        (self.network.id, self.node.id)
    }

    fn sent(&self) -> Traffic {
        Traffic { packets: self.counters.packets_sent, bytes: self.counters.bytes_sent }
    }

    fn received(&self) -> Traffic {
        Traffic { packets: self.counters.packets_received, bytes: self.counters.bytes_received }
    }
}

/// Every link and VTEP, in the order of networks.
async fn each_peer<'v>(member: &Member, view: &'v View) -> Vec<PeerOf<'v>> {
    let (links, vteps) = (member.dataplane.links().await, member.dataplane.vteps().await);
    let summed = |count: &dyn Fn(&LaneCounters) -> PeerCounters| {
        let mut total = PeerCounters::default();
        for lane in member.dataplane.lanes() {
            total += count(lane.counters());
        }
        total
    };
    let links = links.into_iter().map(|(key, slot)| (key, summed(&|lane| lane.link(slot))));
    let vteps = vteps.into_iter().map(|(key, slot)| (key, summed(&|lane| lane.vtep(slot))));
    let numbers: BTreeMap<LinkKey, PeerCounters> = links.chain(vteps).collect();
    let named = numbers.into_iter().filter_map(|((network, node), counters)| {
        let view = view.networks.get(&network)?;
        let node = view.nodes.iter().find(|other| other.id == node)?;
        Some(PeerOf { network: &view.network, node, counters })
    });
    named.collect()
}
