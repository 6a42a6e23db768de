//! The lanes of a member: started on their sockets, and heard.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::super::attachments::Attachments;
use super::super::offloads;
use crate::config::AgentConfig;
use crate::forward::Tables;
use crate::id::LaneCount;
use crate::io::cpu;
use crate::io::steer::Group;
use crate::wire::traffic_class::Dscp;
use crate::wire::vxlan::LeftChecksums;
use crate::worker::{self, Flood, FloodLimit, Lane, LaneConfig, LaneEvent};

/// One for each of the sockets for ESP.
pub(super) fn start_lanes(
    config: &AgentConfig,
    esp: Group,
    vxlan: Option<Group>,
    tables: &Arc<ArcSwap<Tables>>,
) -> Result<Vec<Arc<Lane>>> {
    let limit =
        FloodLimit { frames_per_second: config.flood.packets_per_second(), burst: config.flood.burst() };
    let flood = Flood::from(limit);
    let count = LaneCount::clamped(esp.lanes.len());
    let vxlan = vxlan.into_iter().flat_map(|group| group.lanes).map(Some).chain(std::iter::repeat(None));
    let busy_poll = config.busy_poll.unwrap_or_else(choose_busy_poll);
    let sockets = count.ids().zip(esp.lanes).zip(vxlan);
    let configs = sockets.map(|((id, esp), vxlan)| {
        let (tables, flood) = (Arc::clone(tables), flood.clone());
        let dscp = if config.copy_dscp { Dscp::Copied } else { Dscp::Hidden };
        let checksums =
            if config.offload.remote_checksum { LeftChecksums::Passed } else { LeftChecksums::Made };
        LaneConfig { id, esp, vxlan, tables, flood, busy_poll, dscp, checksums }
    });
    tracing::info!(lanes = count.get(), ?busy_poll, "packets are carried");
    configs.map(|lane| Ok(Arc::new(worker::spawn(lane)?))).collect()
}

fn choose_busy_poll() -> Duration {
    // Without a thread left for it the lanes will not start either, and say so.
    worker::longest_window(cpu::wake_up_time().unwrap_or_default())
}

/// Passes on what a lane has to tell until it has ended.
pub(super) async fn hear(lane: &Lane, events: &mpsc::Sender<LaneEvent>, attachments: &Attachments) {
    while let Some(event) = lane.next_event().await {
        match event {
            LaneEvent::PortGone { slot, hold } => attachments.port_gone(slot, hold).await,
            LaneEvent::SegmentationGivenUp { socket } => offloads::tell_given_up(socket),
            LaneEvent::RekeyWanted { .. } | LaneEvent::NoKey { .. } | LaneEvent::UnknownSpi { .. } => {
                // Full: what traffic causes is repeated while the cause lasts.
                let _ = events.try_send(event);
            }
        }
    }
}
