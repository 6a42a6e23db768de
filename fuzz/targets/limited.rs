//! Ports with a rate limit, as a worker has them, and a judge of what the limit does: what waits leaves
//! in its order and as it came, and no more passes than the rate allows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use overlayd::boot_time::BootTime;
use overlayd::datapath::{Admission, Delivery, Merging, RateLimit, Shaper};
use overlayd::drop_reason::DropReason;
use overlayd::id::PortSlot;
use overlayd::rate::Rate;
use overlayd::wire::vnet_hdr::VnetHeader;

use super::overlay::{NO_PORT, NOW};

/// What containers are sent, by what bits 0 and 1 say: without limit, at a slow rate, at a fast one, at a
/// slow one with a queue that is all but full.
pub(super) struct Limited {
    ports: Option<Vec<Queue>>,
    now: BootTime,
}

impl Limited {
    pub(super) fn new(kind: u8) -> Self {
        let queues = |rate, busy| (0..NO_PORT.get()).map(|_| Queue::new(rate, busy)).collect();
        let ports = match kind & 3 {
            0 => None,
            1 => Some(queues(SLOW, 0)),
            2 => Some(queues(FAST, 0)),
            _ => Some(queues(SLOW, ALL_BUT_FULL)),
        };
        Self { ports, now: NOW }
    }

    /// What becomes of a frame that has been judged.
    pub(super) fn deliver(&mut self, port: PortSlot, header: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        match &mut self.ports {
            Some(queues) => queues[port.index()].deliver(header, pieces, self.now),
            None => Delivery::Taken,
        }
    }

    /// What containers take, of which `takes` is what their kernels do.
    pub(super) fn merging(&self, port: PortSlot, takes: Merging) -> Merging {
        match &self.ports {
            Some(queues) if !queues[port.index()].shaper.takes_super_frames() => Merging::default(),
            Some(_) | None => takes,
        }
    }

    /// Time passes, and what is due is handed on.
    pub(super) fn advance(&mut self, now: BootTime) {
        self.now = now;
        self.ports.iter_mut().flatten().for_each(|queue| queue.release(now));
    }
}

/// The limit of one direction of a port, and what has passed.
pub(super) struct Allowance {
    limit: Arc<RateLimit>,
    frames: u64,
    passed: usize,
    longest: usize,
}

impl Allowance {
    pub(super) fn new(rate: u64) -> Self {
        let rate = Rate::new(rate).expect("a rate");
        Self { limit: Arc::new(RateLimit::new(rate)), frames: 0, passed: 0, longest: 0 }
    }

    /// Whether a frame passes, which then is charged.
    pub(super) fn passes(&mut self, header: &VnetHeader, frame: &[u8], now: BootTime) -> bool {
        if !self.limit.is_open(now) {
            return false;
        }
        let (_, octets) = header.on_the_wire(frame, frame.len());
        self.limit.charge(octets, now);
        self.assert_kept(octets, now);
        true
    }

    /// Panics if more has passed than the rate, the burst and one frame; times are whole nanoseconds.
    fn assert_kept(&mut self, octets: usize, now: BootTime) {
        self.frames += 1;
        self.passed += octets;
        self.longest = self.longest.max(octets);
        let earned = self.limit.rate().octets_in(now.since(NOW) + BURST + Duration::from_nanos(self.frames));
        assert!(self.passed <= earned + self.longest, "{} passed where {earned} may", self.passed);
    }
}

/// A rate at which hardly anything passes at once, and one at which everything does.
pub(super) const SLOW: u64 = 100_000;
pub(super) const FAST: u64 = 100_000_000_000;

struct Queue {
    shaper: Shaper,
    allowance: Allowance,
    /// What waits, as it came.
    waiting: VecDeque<(VnetHeader, Vec<u8>)>,
    /// So many frames wait before the first that is judged.
    busy: usize,
}

impl Queue {
    fn new(rate: u64, busy: usize) -> Self {
        let allowance = Allowance::new(rate);
        let shaper = Shaper::new(Arc::clone(&allowance.limit));
        Self { shaper, allowance, waiting: VecDeque::new(), busy }
    }

    fn deliver(&mut self, header: &VnetHeader, pieces: &[&[u8]], now: BootTime) -> Delivery {
        for _ in 0..std::mem::take(&mut self.busy) {
            let _ = self.admit(&VnetHeader::COMPLETE, &[&[0; 60]], now);
        }
        self.admit(header, pieces, now)
    }

    fn admit(&mut self, header: &VnetHeader, pieces: &[&[u8]], now: BootTime) -> Delivery {
        let frame = pieces.concat();
        let (segments, octets) = header.on_the_wire(&frame, frame.len());
        let before = self.shaper.waiting();
        match self.shaper.admit(header, pieces, now) {
            Admission::Pass => {
                assert!(self.waiting.is_empty(), "a frame overtakes those that wait");
                self.allowance.assert_kept(octets, now);
                Delivery::Taken
            }
            Admission::Wait => {
                assert_eq!(self.shaper.waiting(), before + segments);
                self.waiting.push_back((*header, frame));
                Delivery::Waits
            }
            Admission::Refuse => {
                assert!(!self.waiting.is_empty(), "there is room");
                assert_eq!(self.shaper.waiting(), before);
                Delivery::Dropped(DropReason::RateLimited)
            }
        }
    }

    fn release(&mut self, now: BootTime) {
        while let Some((header, pieces)) = self.shaper.due(now) {
            let (came_as, frame) = self.waiting.pop_front().expect("it has waited");
            assert!(*header == came_as && pieces.concat() == frame, "it leaves as another");
            let (_, octets) = header.on_the_wire(&frame, frame.len());
            assert_eq!(self.shaper.release(now).1, frame.len());
            self.allowance.assert_kept(octets, now);
        }
        assert_eq!(self.shaper.wakes_at().is_none(), self.waiting.is_empty());
    }
}

/// As many as pass at once at the slow rate, and all but three of the 1,024 places in its queue.
const ALL_BUT_FULL: usize = 5 + 1_021;
/// What may pass at once after a silence.
const BURST: Duration = Duration::from_millis(20);
