//! The lanes of a member: started on their sockets, and heard.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::super::attachments::Attachments;
use super::super::offloads;
use crate::api::types::ProcessorStatus;
use crate::config::AgentConfig;
use crate::forward::Tables;
use crate::id::LaneCount;
use crate::io::autogroup::Autogroup;
use crate::io::cpu;
use crate::io::cpu_latency::{CpuLatency, DEVICE};
use crate::io::steer::Group;
use crate::wire::traffic_class::Dscp;
use crate::wire::vxlan::LeftChecksums;
use crate::worker::{self, Flood, FloodLimit, Lane, LaneConfig, LaneEvent, NICE, Precedence, Wish};

/// One for each of the sockets for ESP, and what they may ask of the processors.
pub(super) fn start_lanes(
    config: &AgentConfig,
    esp: Group,
    vxlan: Option<Group>,
    tables: &Arc<ArcSwap<Tables>>,
) -> Result<(Vec<Arc<Lane>>, ProcessorStatus)> {
    let limit =
        FloodLimit { frames_per_second: config.flood.packets_per_second(), burst: config.flood.burst() };
    let flood = Flood::from(limit);
    let count = LaneCount::clamped(esp.lanes.len());
    let vxlan = vxlan.into_iter().flat_map(|group| group.lanes).map(Some).chain(std::iter::repeat(None));
    let processors = Processors::new(config);
    let busy_poll = processors.busy_poll;
    let precedence = precedence(config);
    let sockets = count.ids().zip(esp.lanes).zip(vxlan);
    let configs = sockets.map(|((id, esp), vxlan)| {
        let (tables, flood) = (Arc::clone(tables), flood.clone());
        let dscp = if config.copy_dscp { Dscp::Copied } else { Dscp::Hidden };
        let checksums =
            if config.offload.remote_checksum { LeftChecksums::Passed } else { LeftChecksums::Made };
        let (vigil, precedence) = (processors.vigil.clone(), precedence.clone());
        LaneConfig { id, esp, vxlan, tables, flood, busy_poll, vigil, precedence, dscp, checksums }
    });
    let keep_awake = processors.vigil.is_some();
    let streams_first = precedence.is_some();
    tracing::info!(lanes = count.get(), ?busy_poll, keep_awake, streams_first, "packets are carried");
    let busy_poll_microseconds = u64::try_from(busy_poll.as_micros()).unwrap_or(u64::MAX);
    let lanes: Result<_> = configs.map(|lane| Ok(Arc::new(worker::spawn(lane)?))).collect();
    Ok((lanes?, ProcessorStatus { busy_poll_microseconds, keep_awake, streams_first }))
}

/// What is done about the time that it takes to wake a processor.
struct Processors {
    busy_poll: Duration,
    vigil: Option<Wish>,
}

impl Processors {
    fn new(config: &AgentConfig) -> Self {
        let is_chosen = config.busy_poll.is_none() || config.keep_awake != Some(false);
        // Without a thread left to measure it the lanes will not start either, and say so.
        let asleep = if is_chosen { cpu::wake_up_time().unwrap_or_default() } else { Duration::ZERO };
        let busy_poll = config.busy_poll.unwrap_or_else(|| worker::longest_window(asleep));
        let is_wanted = config.keep_awake == Some(true);
        let may_pay = || cpu::online().is_ok_and(|processors| worker::may_pay(processors, asleep));
        let vigil = if is_wanted || config.keep_awake.is_none() && may_pay() {
            start_vigil(asleep, is_wanted).unwrap_or_else(|error| {
                let device = DEVICE;
                if is_wanted {
                    tracing::warn!(%error, device, "keep_awake = true is not possible here");
                } else {
                    tracing::info!(%error, device, "processors cannot be kept awake; wake-ups are slow here");
                }
                None
            })
        } else {
            None
        };
        Self { busy_poll, vigil }
    }
}

/// Nobody where it does not shorten wake-ups, which took `asleep`, unless it `is_wanted` all the same.
fn start_vigil(asleep: Duration, is_wanted: bool) -> io::Result<Option<Wish>> {
    let mut latency = CpuLatency::open()?;
    latency.allow_sleep(false)?;
    let awake = cpu::wake_up_time()?;
    latency.allow_sleep(true)?;
    // The first time others may have had the processors.
    let asleep = asleep.min(cpu::wake_up_time()?);
    let pays = worker::pays(asleep, awake);
    tracing::info!(?asleep, ?awake, "how long it takes to wake a processor, and one that is kept awake");
    if is_wanted && !pays {
        tracing::warn!("keep_awake = true wakes nobody sooner here, or somebody else asks for the same");
    }
    if !is_wanted && !pays {
        return Ok(None);
    }
    Wish::start("vigil", move |is_kept| latency.allow_sleep(!is_kept)).map(Some)
}

/// Nothing where the scheduler would not mind it, or does not let the agent have it.
fn precedence(config: &AgentConfig) -> Option<Precedence> {
    if config.streams_first == Some(false) {
        return None;
    }
    start_precedence().map(Some).unwrap_or_else(|error| {
        if config.streams_first == Some(true) {
            tracing::warn!(%error, "streams_first = true is not possible here");
        } else {
            tracing::info!(%error, "streams do not come first");
        }
        None
    })
}

fn start_precedence() -> io::Result<Precedence> {
    let mut session = Autogroup::open()?;
    // Whether the kernel allows it is known now and not when the first stream is there.
    session.set_nice(NICE)?;
    session.set_nice(0)?;
    let wish = Wish::start("precedence", move |is_first| session.set_nice(if is_first { NICE } else { 0 }))?;
    Ok(Precedence::new(wish))
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
