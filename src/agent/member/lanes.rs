//! The lanes of a member: started on their sockets, and heard.

use std::io;
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
use crate::io::cpu_latency::{CpuLatency, DEVICE};
use crate::io::steer::Group;
use crate::wire::traffic_class::Dscp;
use crate::wire::vxlan::LeftChecksums;
use crate::worker::{self, Flood, FloodLimit, Lane, LaneConfig, LaneEvent, Vigil};

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
    let processors = Processors::new(config);
    let busy_poll = processors.busy_poll;
    let sockets = count.ids().zip(esp.lanes).zip(vxlan);
    let configs = sockets.map(|((id, esp), vxlan)| {
        let (tables, flood) = (Arc::clone(tables), flood.clone());
        let dscp = if config.copy_dscp { Dscp::Copied } else { Dscp::Hidden };
        let checksums =
            if config.offload.remote_checksum { LeftChecksums::Passed } else { LeftChecksums::Made };
        let vigil = processors.vigil.clone();
        LaneConfig { id, esp, vxlan, tables, flood, busy_poll, vigil, dscp, checksums }
    });
    let keep_awake = processors.vigil.is_some();
    tracing::info!(lanes = count.get(), ?busy_poll, keep_awake, "packets are carried");
    configs.map(|lane| Ok(Arc::new(worker::spawn(lane)?))).collect()
}

/// What is done about the time that it takes to wake a processor.
struct Processors {
    busy_poll: Duration,
    vigil: Option<Vigil>,
}

impl Processors {
    fn new(config: &AgentConfig) -> Self {
        // Without a thread left to measure it the lanes will not start either, and say so.
        let asleep = cpu::wake_up_time().unwrap_or_default();
        let busy_poll = config.busy_poll.unwrap_or_else(|| worker::longest_window(asleep));
        let vigil = match config.keep_awake {
            Some(false) => None,
            Some(true) => start_vigil(None)
                .inspect_err(|error| {
                    tracing::warn!(%error, device = DEVICE, "keep_awake = true is not possible here");
                })
                .unwrap_or_default(),
            None if !worker::may_pay(cpu::online(), asleep) => None,
            None => start_vigil(Some(asleep))
                .inspect_err(|error| {
                    tracing::debug!(%error, device = DEVICE, "the processors cannot be kept awake here");
                })
                .unwrap_or_default(),
        };
        Self { busy_poll, vigil }
    }
}

/// Nobody where it would not shorten wake-ups that take `asleep` otherwise.
fn start_vigil(asleep: Option<Duration>) -> io::Result<Option<Vigil>> {
    let mut latency = CpuLatency::open()?;
    if let Some(asleep) = asleep {
        latency.allow_sleep(false)?;
        let awake = cpu::wake_up_time()?;
        latency.allow_sleep(true)?;
        tracing::debug!(?asleep, ?awake, "how long wake-ups take");
        if !worker::pays(asleep, awake) {
            return Ok(None);
        }
    }
    Vigil::start(move |is_allowed| latency.allow_sleep(is_allowed)).map(Some)
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
