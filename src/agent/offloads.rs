//! What the kernel does for many packets at once: asked for as configured, told where it is refused.
//!
//! The sockets and TAPs of `io` find out what there is and work without it; here it is limited to what
//! the operator wants, logged once, and counted for `overlayd status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::types::{Offload, OffloadStatus};
use crate::config::OffloadConfig;
use crate::id::EndpointId;
use crate::io::tap::{Tap, TapError, TapOffloads};
use crate::io::udp::{Offloads, UdpOptions};
use crate::worker::{DataSocket, Lane};

/// What this node wants of its kernel, and what each TAP has.
#[derive(Debug)]
pub(crate) struct OffloadBook {
    wanted: OffloadConfig,
    taps: Mutex<Taps>,
}

#[derive(Debug, Default)]
struct Taps {
    granted: BTreeMap<EndpointId, TapOffloads>,
    /// What the log says that the kernel refuses.
    told: Vec<&'static str>,
}

impl OffloadBook {
    /// No TAP yet.
    pub(crate) fn new(wanted: OffloadConfig) -> Self {
        Self { wanted, taps: Mutex::default() }
    }

    /// Takes from an endpoint's TAP what is not wanted, and notes what it has; `queues` are all of it,
    /// since each has to know.
    pub(crate) fn enter(&self, endpoint: EndpointId, queues: &mut [Tap]) -> Result<(), TapError> {
        let OffloadConfig { tap_checksum, tap_tcp, tap_udp, .. } = self.wanted;
        let wanted = TapOffloads { checksum: tap_checksum, tcp: tap_tcp, udp: tap_udp };
        queues.iter_mut().try_for_each(|tap| tap.limit_offloads(wanted))?;
        let granted = queues.first().map_or(TapOffloads::NONE, Tap::offloads);
        let refused = refused_of_tap(wanted, granted);
        let mut taps = self.lock();
        taps.granted.insert(endpoint, granted);
        if !refused.is_empty() && refused != taps.told {
            tracing::warn!(
                refused = refused.join(", "),
                "this kernel does not do it for TAPs; the agent does it by itself, more slowly"
            );
            taps.told = refused;
        }
        Ok(())
    }

    /// The endpoint has no TAP any more.
    pub(crate) fn strike(&self, endpoint: EndpointId) {
        self.lock().granted.remove(&endpoint);
    }

    /// What the kernel left to this program when it was asked for an endpoint's TAP.
    pub(crate) fn granted(&self, endpoint: EndpointId) -> Option<TapOffloads> {
        self.lock().granted.get(&endpoint).copied()
    }

    /// What `overlayd status` shows.
    pub(crate) fn status(&self, lanes: &[Arc<Lane>]) -> Vec<OffloadStatus> {
        let sockets: Vec<_> = lanes.iter().map(|lane| lane.offloads()).collect();
        let taps = self.lock();
        count(self.wanted, &sockets, &taps.granted.values().copied().collect::<Vec<_>>())
    }

    fn lock(&self) -> MutexGuard<'_, Taps> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the data sockets are opened.
pub(crate) fn socket_options(wanted: OffloadConfig) -> UdpOptions {
    UdpOptions { segmentation: wanted.udp_segment, coalescing: wanted.udp_gro, ..UdpOptions::default() }
}

/// Logs what the kernel refused when a data socket was opened.
pub(crate) fn tell_refused(wanted: OffloadConfig, socket: DataSocket, offloads: Offloads) {
    let refused = refused_of_socket(wanted, offloads);
    if !refused.is_empty() {
        let refused = refused.join(", ");
        tracing::warn!(?socket, refused, "this kernel does not do it; packets cost one call each");
    }
}

/// Logs that the kernel refused `UDP_SEGMENT` while packets were sent.
pub(crate) fn tell_given_up(socket: DataSocket) {
    tracing::warn!(?socket, "the kernel refused UDP_SEGMENT; packets cost one call each from now on");
}

fn refused_of_socket(wanted: OffloadConfig, offloads: Offloads) -> Vec<&'static str> {
    missing([
        ("UDP_SEGMENT", wanted.udp_segment, offloads.segmentation),
        ("UDP_GRO", wanted.udp_gro, offloads.coalescing),
    ])
}

fn refused_of_tap(wanted: TapOffloads, granted: TapOffloads) -> Vec<&'static str> {
    missing([
        ("checksums", wanted.checksum, granted.checksum),
        ("TCP super-frames", wanted.tcp, granted.tcp),
        ("UDP super-frames (Linux 6.2 has them)", wanted.udp, granted.udp),
    ])
}

fn missing<const N: usize>(offloads: [(&'static str, bool, bool); N]) -> Vec<&'static str> {
    let missing = offloads.into_iter().filter(|(_, wanted, granted)| *wanted && !granted);
    missing.map(|(name, ..)| name).collect()
}

fn count(
    wanted: OffloadConfig,
    sockets: &[(Offloads, Option<Offloads>)],
    taps: &[TapOffloads],
) -> Vec<OffloadStatus> {
    let esp: Vec<Offloads> = sockets.iter().map(|(esp, _)| *esp).collect();
    let vxlan: Vec<Offloads> = sockets.iter().filter_map(|(_, vxlan)| *vxlan).collect();
    let (segments, merges) = (|socket: &Offloads| socket.segmentation, |socket: &Offloads| socket.coalescing);
    vec![
        row(Offload::EspSegmentation, wanted.udp_segment, &esp, segments),
        row(Offload::EspCoalescing, wanted.udp_gro, &esp, merges),
        row(Offload::VxlanSegmentation, wanted.udp_segment, &vxlan, segments),
        row(Offload::VxlanCoalescing, wanted.udp_gro, &vxlan, merges),
        row(Offload::TapChecksum, wanted.tap_checksum, taps, |tap| tap.checksum),
        row(Offload::TapTcp, wanted.tap_tcp, taps, |tap| tap.tcp),
        row(Offload::TapUdp, wanted.tap_udp, taps, |tap| tap.udp),
    ]
}

fn row<T>(offload: Offload, wanted: bool, all: &[T], is_used: impl Fn(&T) -> bool) -> OffloadStatus {
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let used = all.iter().filter(|one| is_used(one)).count();
    OffloadStatus { offload, wanted, used: number(used), of: number(all.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: TapOffloads = TapOffloads { udp: false, ..TapOffloads::ALL };

    #[test]
    fn what_is_refused_is_what_was_wanted_and_is_not_there() {
        assert_eq!(refused_of_tap(TapOffloads::ALL, TapOffloads::ALL), [""; 0]);
        assert_eq!(refused_of_tap(SOME, SOME), [""; 0]);
        assert_eq!(refused_of_tap(TapOffloads::ALL, SOME), ["UDP super-frames (Linux 6.2 has them)"]);
        let wanted = OffloadConfig { udp_gro: false, ..OffloadConfig::default() };
        let none = Offloads { segmentation: false, coalescing: false };
        assert_eq!(refused_of_socket(wanted, none), ["UDP_SEGMENT"]);
    }

    #[test]
    fn sockets_and_taps_are_counted_by_what_they_have() {
        let socket = Offloads { segmentation: false, coalescing: true };
        let rows = count(OffloadConfig::default(), &[(socket, None)], &[TapOffloads::ALL, SOME]);
        let told: Vec<_> = rows.iter().map(|row| (row.offload, row.used, row.of)).collect();
        assert_eq!(
            told,
            [
                (Offload::EspSegmentation, 0, 1),
                (Offload::EspCoalescing, 1, 1),
                (Offload::VxlanSegmentation, 0, 0),
                (Offload::VxlanCoalescing, 0, 0),
                (Offload::TapChecksum, 2, 2),
                (Offload::TapTcp, 2, 2),
                (Offload::TapUdp, 1, 2),
            ]
        );
        assert!(rows.iter().all(|row| row.wanted));
    }
}
