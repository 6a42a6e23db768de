//! The ports of a lane: its queue of each container's TAP, and the limits of what passes there.
//!
//! While a container has sent more than its limit allows, its TAP is not read, and not waited for
//! either: what it sends goes on waiting in the TAP's own queue, in its kernel. So it is while one that
//! floods is left alone ([`super::courtesy`]). What a container is
//! sent above its limit waits in a [`Shaper`]. Both end by time, which the lane's sleep observes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::datapath::{Admission, Delivery, LaneCounters, Merging, PortLimits, RateLimit, Shaper};
use crate::drop_reason::DropReason;
use crate::id::{PortHold, PortSlot};
use crate::io::epoll::Epoll;
use crate::io::tap::{Tap, TapOffloads};
use crate::wire::vnet_hdr::VnetHeader;

/// The ports of a lane by their slots.
#[derive(Debug, Default)]
pub(super) struct Ports {
    ports: Vec<Option<Port>>,
    /// Those with something that time will end, each once; there is room for all.
    waiting: Vec<PortSlot>,
    wakes_at: Option<BootTime>,
    /// Whose device is gone, found by another way than by reading it; each is waiting, too.
    lost: Vec<PortSlot>,
}

impl Ports {
    /// Serves a TAP, and waits for it with `token`.
    pub(super) fn open(
        &mut self,
        epoll: &Epoll,
        (slot, hold): (PortSlot, PortHold),
        token: u64,
        (tap, limits): (Tap, PortLimits),
    ) -> io::Result<()> {
        epoll.add(&tap, token)?;
        if self.ports.len() <= slot.index() {
            self.ports.resize_with(slot.index() + 1, || None);
        }
        let PortLimits { egress, ingress } = limits;
        let ingress = ingress.map(Shaper::new);
        let rests_until = BootTime::from_nanos(0);
        self.ports[slot.index()] =
            Some(Port { tap, hold, token, egress, ingress, rests_until, is_paused: false, is_listed: false });
        self.waiting.reserve(self.ports.len());
        self.lost.reserve(self.ports.len());
        Ok(())
    }

    /// Closes the queue; what waited for the container is counted as dropped. Whose it was.
    pub(super) fn close(
        &mut self,
        epoll: &Epoll,
        counters: &LaneCounters,
        slot: PortSlot,
    ) -> Option<PortHold> {
        let port = self.ports.get_mut(slot.index()).and_then(Option::take)?;
        self.waiting.retain(|waiting| *waiting != slot);
        if !port.is_paused {
            // It goes from the list with its last descriptor in any case.
            let _ = epoll.remove(&port.tap);
        }
        let lost = port.ingress.as_ref().map_or(0, Shaper::waiting);
        counters.drop_frames_at_port(slot, DropReason::NoSuchPort, lost);
        Some(port.hold)
    }

    /// A port whose device is gone, not yet closed; each is told once.
    pub(super) fn next_lost(&mut self) -> Option<PortSlot> {
        self.lost.pop()
    }

    /// The slots of all ports.
    pub(super) fn slots(&self) -> impl Iterator<Item = PortSlot> {
        (0u32..).zip(&self.ports).filter(|(_, port)| port.is_some()).map(|(slot, _)| PortSlot::new(slot))
    }

    /// The TAP of a port, if its container may send now.
    pub(super) fn readable(&self, slot: PortSlot, now: BootTime) -> Option<&Tap> {
        self.get(slot).filter(|port| port.is_open(now)).map(|port| &port.tap)
    }

    /// Charges a container for a frame of `len` octets that begins with `head`.
    pub(super) fn charge(&self, slot: PortSlot, header: &VnetHeader, head: &[u8], len: usize, now: BootTime) {
        if let Some(limit) = self.get(slot).and_then(|port| port.egress.as_ref()) {
            let (_, octets) = header.on_the_wire(head, len);
            limit.charge(octets, now);
        }
    }

    /// Lets a container send nothing until then.
    pub(super) fn rest(&mut self, slot: PortSlot, until: BootTime) {
        if let Some(port) = self.ports.get_mut(slot.index()).and_then(Option::as_mut) {
            port.rests_until = until;
        }
    }

    /// Stops waiting for a TAP whose container may not send, until it may.
    pub(super) fn pause_spent(&mut self, epoll: &Epoll, slot: PortSlot, now: BootTime) {
        let Some(port) = self.ports.get_mut(slot.index()).and_then(Option::as_mut) else { return };
        if port.is_open(now) {
            return;
        }
        let opens_at = port.opens_at(now);
        // What cannot be removed is reported again, and found spent again.
        port.is_paused = port.is_paused || epoll.remove(&port.tap).is_ok();
        self.wake_later(slot, opens_at, now);
    }

    /// Hands a frame to a container, now or in its turn.
    pub(super) fn deliver(
        &mut self,
        slot: PortSlot,
        header: &VnetHeader,
        pieces: &[&[u8]],
        now: BootTime,
    ) -> Delivery {
        let Some(port) = self.ports.get_mut(slot.index()).and_then(Option::as_mut) else {
            return Delivery::Dropped(DropReason::TapFull);
        };
        if let Some(shaper) = &mut port.ingress {
            match shaper.admit(header, pieces, now) {
                Admission::Pass => {}
                Admission::Refuse => return Delivery::Dropped(DropReason::RateLimited),
                Admission::Wait => {
                    if let Some(at) = shaper.wakes_at() {
                        self.wake_later(slot, at, now);
                    }
                    return Delivery::Waits;
                }
            }
        }
        if port.tap.write_frame(header, pieces).unwrap_or(false) {
            Delivery::Taken
        } else {
            Delivery::Dropped(DropReason::TapFull)
        }
    }

    /// What a container is to be handed as super-frames: what its kernel takes, unless a slow limit's
    /// queue would be full of two.
    pub(super) fn merging(&self, slot: PortSlot) -> Merging {
        match self.get(slot) {
            Some(port) if port.ingress.as_ref().is_none_or(Shaper::takes_super_frames) => {
                let TapOffloads { tcp, udp, .. } = port.tap.offloads();
                Merging { tcp, udp }
            }
            Some(_) | None => Merging::default(),
        }
    }

    /// When something is to be done that only time brings.
    pub(super) fn wakes_at(&self) -> Option<BootTime> {
        self.wakes_at
    }

    /// Hands over what has waited long enough, and reads again what may be read.
    pub(super) fn wake(&mut self, epoll: &Epoll, counters: &LaneCounters, now: BootTime) {
        if self.wakes_at.is_none_or(|at| now < at) {
            return;
        }
        self.wakes_at = None;
        let mut index = 0;
        while let Some(&slot) = self.waiting.get(index) {
            let port = self.ports.get_mut(slot.index()).and_then(Option::as_mut);
            match port.and_then(|port| port.wake(slot, epoll, counters, now)) {
                Some(at) => {
                    if self.get(slot).is_some_and(|port| port.is_paused && port.tap.is_gone()) {
                        self.lost.push(slot);
                    }
                    self.note_wake(at, now);
                    index += 1;
                }
                None => drop(self.waiting.swap_remove(index)),
            }
        }
    }

    fn get(&self, slot: PortSlot) -> Option<&Port> {
        self.ports.get(slot.index())?.as_ref()
    }

    fn wake_later(&mut self, slot: PortSlot, at: BootTime, now: BootTime) {
        let Some(port) = self.ports.get_mut(slot.index()).and_then(Option::as_mut) else { return };
        if !std::mem::replace(&mut port.is_listed, true) {
            self.waiting.push(slot);
        }
        self.note_wake(at, now);
    }

    fn note_wake(&mut self, at: BootTime, now: BootTime) {
        let at = at.max(now + SHORTEST_WAIT);
        self.wakes_at = Some(self.wakes_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// A container's TAP in this lane.
#[derive(Debug)]
struct Port {
    tap: Tap,
    hold: PortHold,
    token: u64,
    egress: Option<Arc<RateLimit>>,
    ingress: Option<Shaper>,
    /// It is not read until then, whatever its limit.
    rests_until: BootTime,
    /// Not waited for.
    is_paused: bool,
    /// Among those that time will wake.
    is_listed: bool,
}

impl Port {
    /// Whether its container may send.
    fn is_open(&self, now: BootTime) -> bool {
        now >= self.rests_until && self.egress.as_ref().is_none_or(|limit| limit.is_open(now))
    }

    /// When to look whether its container may send.
    fn opens_at(&self, now: BootTime) -> BootTime {
        let of_limit = self.egress.as_ref().map_or(self.rests_until, |limit| limit.opens_at());
        of_limit.max(self.rests_until).min(now + LONGEST_UNSEEN)
    }

    /// Does what is due; when there will be more to do.
    fn wake(
        &mut self,
        slot: PortSlot,
        epoll: &Epoll,
        counters: &LaneCounters,
        now: BootTime,
    ) -> Option<BootTime> {
        let mut next = None;
        if let Some(shaper) = &mut self.ingress {
            while let Some((header, pieces)) = shaper.due(now) {
                let is_taken = self.tap.write_frame(header, &pieces).unwrap_or(false);
                let (frames, len) = shaper.release(now);
                if is_taken {
                    counters.received_by_port(slot, len);
                } else {
                    counters.drop_frames_at_port(slot, DropReason::TapFull, frames);
                }
            }
            next = shaper.wakes_at();
        }
        if self.is_paused {
            if self.is_open(now) && epoll.add(&self.tap, self.token).is_ok() {
                self.is_paused = false;
            } else {
                let opens_at = self.opens_at(now);
                next = Some(next.map_or(opens_at, |at| at.min(opens_at)));
            }
        }
        self.is_listed = next.is_some();
        next
    }
}

/// So that a container at its limit costs a thousand turns a second and not one for each frame.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// A device that is not waited for is looked at so often: it may go meanwhile.
const LONGEST_UNSEEN: Duration = Duration::from_millis(500);
