//! What a lane counts: drops by reason, and traffic by port, link and VTEP.
//!
//! The lane alone writes, so an increment is a plain load and store; anybody may read at any time.
//! Slots are reused by the agent: a port's numbers begin at zero when it is added, a link's and a
//! VTEP's when they are removed. Owned by the lane, read by `worker::Lane::counters`.

use std::ops::AddAssign;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::boot_time::BootTime;
use crate::drop_reason::DropReason;
use crate::id::{LinkSlot, PortSlot, VtepSlot};

/// The counters of one lane.
#[derive(Debug)]
pub struct LaneCounters {
    /// When the turn began that drops are of, in microseconds.
    turn: Cell,
    drops: [Cell; DropReason::COUNT],
    ports: Blocks,
    links: Blocks,
    vteps: Blocks,
}

impl LaneCounters {
    /// All zero.
    pub fn new() -> Self {
        Self {
            turn: Cell::zero(),
            drops: [const { Cell::zero() }; DropReason::COUNT],
            ports: Blocks::new(),
            links: Blocks::new(),
            vteps: Blocks::new(),
        }
    }

    /// From now on it is `now`, for what is dropped.
    pub(crate) fn begin_turn(&self, now: BootTime) {
        self.turn.0.store(now.as_nanos() / 1000, Ordering::Relaxed);
    }

    /// Packets dropped for one reason; a super-frame is as many as it would have been on the wire.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()].get()
    }

    /// Packets dropped for each reason, in the order of [`DropReason::ALL`].
    pub fn drops(&self) -> [u64; DropReason::COUNT] {
        std::array::from_fn(|index| self.drops[index].get())
    }

    /// The numbers of a port.
    pub fn port(&self, port: PortSlot) -> PortCounters {
        self.ports.get(port.index()).map_or_else(PortCounters::default, |cells| PortCounters {
            frames_sent: cells.packets_out.get(),
            bytes_sent: cells.bytes_out.get(),
            frames_received: cells.packets_in.get(),
            bytes_received: cells.bytes_in.get(),
            drops: cells.drops.get(),
            last_drop: cells.last_drop(),
            last_drop_at: cells.last_drop_at(),
        })
    }

    /// The numbers of a link.
    pub fn link(&self, link: LinkSlot) -> PeerCounters {
        self.links.get(link.index()).map_or_else(PeerCounters::default, Cells::of_peer)
    }

    /// The numbers of a VTEP.
    pub fn vtep(&self, vtep: VtepSlot) -> PeerCounters {
        self.vteps.get(vtep.index()).map_or_else(PeerCounters::default, Cells::of_peer)
    }

    pub(crate) fn drop_unplaced(&self, reason: DropReason, packets: u64) {
        self.drops[reason.index()].add(packets);
    }

    pub(crate) fn drop_at_port(&self, port: PortSlot, reason: DropReason) {
        self.drop_frames_at_port(port, reason, 1);
    }

    pub(crate) fn drop_frames_at_port(&self, port: PortSlot, reason: DropReason, frames: usize) {
        self.drop_unplaced(reason, frames as u64);
        self.ports.with(port.index(), |cells| cells.drop(reason, frames as u64, &self.turn));
    }

    pub(crate) fn drop_at_link(&self, link: LinkSlot, reason: DropReason) {
        self.drop_unplaced(reason, 1);
        self.note_drop_at_link(link, reason);
    }

    /// For a drop that is counted elsewhere already.
    pub(crate) fn note_drop_at_link(&self, link: LinkSlot, reason: DropReason) {
        self.note_drops_at_link(link, reason, 1);
    }

    /// For drops that are counted elsewhere already.
    pub(crate) fn note_drops_at_link(&self, link: LinkSlot, reason: DropReason, packets: u64) {
        self.links.with(link.index(), |cells| cells.drop(reason, packets, &self.turn));
    }

    /// For a drop that is counted elsewhere already.
    pub(crate) fn note_drop_at_vtep(&self, vtep: VtepSlot, reason: DropReason) {
        self.note_drops_at_vtep(vtep, reason, 1);
    }

    /// For drops that are counted elsewhere already.
    pub(crate) fn note_drops_at_vtep(&self, vtep: VtepSlot, reason: DropReason, packets: u64) {
        self.vteps.with(vtep.index(), |cells| cells.drop(reason, packets, &self.turn));
    }

    pub(crate) fn sent_by_port(&self, port: PortSlot, bytes: usize) {
        self.ports.with(port.index(), |cells| cells.count_out(bytes));
    }

    pub(crate) fn received_by_port(&self, port: PortSlot, bytes: usize) {
        self.ports.with(port.index(), |cells| cells.count_in(bytes));
    }

    pub(crate) fn sent_to_link(&self, link: LinkSlot, bytes: usize) {
        self.links.with(link.index(), |cells| cells.count_out(bytes));
    }

    pub(crate) fn received_from_link(&self, link: LinkSlot, bytes: usize) {
        self.links.with(link.index(), |cells| cells.count_in(bytes));
    }

    pub(crate) fn sent_to_vtep(&self, vtep: VtepSlot, bytes: usize) {
        self.vteps.with(vtep.index(), |cells| cells.count_out(bytes));
    }

    pub(crate) fn received_from_vtep(&self, vtep: VtepSlot, bytes: usize) {
        self.vteps.with(vtep.index(), |cells| cells.count_in(bytes));
    }

    /// Begins the numbers of a port at zero.
    pub(crate) fn reset_port(&self, port: PortSlot) {
        self.ports.with(port.index(), Cells::reset);
    }

    /// Begins the numbers of a link at zero.
    pub(crate) fn reset_link(&self, link: LinkSlot) {
        self.links.with(link.index(), Cells::reset);
    }

    /// Begins the numbers of a VTEP at zero.
    pub(crate) fn reset_vtep(&self, vtep: VtepSlot) {
        self.vteps.with(vtep.index(), Cells::reset);
    }
}

impl Default for LaneCounters {
    fn default() -> Self {
        Self::new()
    }
}

/// The numbers of one port in one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortCounters {
    /// Frames that the container sent, dropped ones too.
    pub frames_sent: u64,
    /// Bytes of them, from the Ethernet header on.
    pub bytes_sent: u64,
    /// Frames that were handed to the container.
    pub frames_received: u64,
    /// Bytes of them.
    pub bytes_received: u64,
    /// Frames dropped on the way from or to the container; a super-frame is as many as its segments.
    pub drops: u64,
    /// Why the last of them was.
    pub last_drop: Option<DropReason>,
    /// When that was, as far as the lane knows the time.
    pub last_drop_at: BootTime,
}

impl AddAssign for PortCounters {
    /// Sums up over lanes; of the last drops it keeps the later.
    fn add_assign(&mut self, other: Self) {
        self.frames_sent += other.frames_sent;
        self.bytes_sent += other.bytes_sent;
        self.frames_received += other.frames_received;
        self.bytes_received += other.bytes_received;
        self.drops += other.drops;
        if other.last_drop.is_some() && other.last_drop_at >= self.last_drop_at {
            (self.last_drop, self.last_drop_at) = (other.last_drop, other.last_drop_at);
        }
    }
}

/// The numbers of one peer in one network in one lane: of a link or a VTEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerCounters {
    /// Packets made for the peer.
    pub packets_sent: u64,
    /// Bytes of their frames, from the inner Ethernet header on.
    pub bytes_sent: u64,
    /// Packets from the peer, dropped ones too: authentic ones on a link, on a VTEP what has its address.
    pub packets_received: u64,
    /// Bytes of their frames, from the inner Ethernet header on.
    pub bytes_received: u64,
    /// Packets from or to the peer that were dropped.
    pub drops: u64,
    /// Why the last of them was.
    pub last_drop: Option<DropReason>,
    /// When that was, as far as the lane knows the time.
    pub last_drop_at: BootTime,
}

impl AddAssign for PeerCounters {
    /// Sums up over lanes; of the last drops it keeps the later.
    fn add_assign(&mut self, other: Self) {
        self.packets_sent += other.packets_sent;
        self.bytes_sent += other.bytes_sent;
        self.packets_received += other.packets_received;
        self.bytes_received += other.bytes_received;
        self.drops += other.drops;
        if other.last_drop.is_some() && other.last_drop_at >= self.last_drop_at {
            (self.last_drop, self.last_drop_at) = (other.last_drop, other.last_drop_at);
        }
    }
}

/// A number with one writer.
#[derive(Debug)]
struct Cell(AtomicU64);

impl Cell {
    const fn zero() -> Self {
        Self(AtomicU64::new(0))
    }

    fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers of one slot.
#[derive(Debug)]
struct Cells {
    packets_out: Cell,
    bytes_out: Cell,
    packets_in: Cell,
    bytes_in: Cell,
    drops: Cell,
    /// When, in microseconds, above one octet: one more than the index in [`DropReason::ALL`]; zero for none.
    last_drop: AtomicU64,
}

impl Cells {
    const fn zero() -> Self {
        Self {
            packets_out: Cell::zero(),
            bytes_out: Cell::zero(),
            packets_in: Cell::zero(),
            bytes_in: Cell::zero(),
            drops: Cell::zero(),
            last_drop: AtomicU64::new(0),
        }
    }

    fn of_peer(&self) -> PeerCounters {
        PeerCounters {
            packets_sent: self.packets_out.get(),
            bytes_sent: self.bytes_out.get(),
            packets_received: self.packets_in.get(),
            bytes_received: self.bytes_in.get(),
            drops: self.drops.get(),
            last_drop: self.last_drop(),
            last_drop_at: self.last_drop_at(),
        }
    }

    fn count_out(&self, bytes: usize) {
        self.packets_out.add(1);
        self.bytes_out.add(bytes as u64);
    }

    fn count_in(&self, bytes: usize) {
        self.packets_in.add(1);
        self.bytes_in.add(bytes as u64);
    }

    fn drop(&self, reason: DropReason, packets: u64, turn: &Cell) {
        self.drops.add(packets);
        self.last_drop.store(turn.get() << 8 | (u64::from(reason as u8) + 1), Ordering::Relaxed);
    }

    fn last_drop(&self) -> Option<DropReason> {
        let [reason, ..] = self.last_drop.load(Ordering::Relaxed).to_le_bytes();
        DropReason::ALL.get(usize::from(reason).checked_sub(1)?).copied()
    }

    fn last_drop_at(&self) -> BootTime {
        BootTime::from_nanos((self.last_drop.load(Ordering::Relaxed) >> 8) * 1000)
    }

    fn reset(&self) {
        for cell in [&self.packets_out, &self.bytes_out, &self.packets_in, &self.bytes_in, &self.drops] {
            cell.0.store(0, Ordering::Relaxed);
        }
        self.last_drop.store(0, Ordering::Relaxed);
    }
}

/// Cells of all slots: they never move, so readers need no lock while the lane adds blocks.
#[derive(Debug)]
struct Blocks {
    blocks: Box<[OnceLock<Box<Block>>]>,
}

type Block = [Cells; SLOTS_PER_BLOCK];

impl Blocks {
    fn new() -> Self {
        Self { blocks: (0..BLOCKS).map(|_| OnceLock::new()).collect() }
    }

    fn get(&self, slot: usize) -> Option<&Cells> {
        Some(&self.blocks.get(slot / SLOTS_PER_BLOCK)?.get()?[slot % SLOTS_PER_BLOCK])
    }

    /// Allocates when the slot is the first of its block that is ever used. Slots beyond the last
    /// block are not counted.
    fn with(&self, slot: usize, count: impl FnOnce(&Cells)) {
        if let Some(block) = self.blocks.get(slot / SLOTS_PER_BLOCK) {
            let block = block.get_or_init(|| Box::new([const { Cells::zero() }; SLOTS_PER_BLOCK]));
            count(&block[slot % SLOTS_PER_BLOCK]);
        }
    }
}

const SLOTS_PER_BLOCK: usize = 64;
const BLOCKS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_one_slot_touch_no_other_and_untouched_ones_are_zero() {
        let counters = LaneCounters::new();
        let (port, link) = (PortSlot::new(70), LinkSlot::new(70));
        counters.sent_by_port(port, 100);
        counters.drop_at_link(link, DropReason::NoKey);
        assert_eq!(counters.port(port).bytes_sent, 100);
        assert_eq!(counters.port(PortSlot::new(71)), PortCounters::default());
        assert_eq!(counters.port(PortSlot::new(9_999_999)), PortCounters::default());
        assert_eq!(counters.link(link).last_drop, Some(DropReason::NoKey));
        assert_eq!(counters.dropped(DropReason::NoKey), 1);
        assert_eq!(counters.drops().iter().sum::<u64>(), 1);
    }

    #[test]
    fn of_the_last_drops_of_several_lanes_the_latest_is_told() {
        let lanes = [LaneCounters::new(), LaneCounters::new()];
        let link = LinkSlot::new(1);
        let last = || {
            let mut sum = PeerCounters::default();
            lanes.iter().for_each(|lane| sum += lane.link(link));
            (sum.drops, sum.last_drop)
        };
        assert_eq!(last(), (0, None));
        for (at, (lane, reason)) in (1..).zip([
            (1, DropReason::ForbiddenInner),
            (0, DropReason::PeerIpSpoofed),
            (0, DropReason::Replayed),
            (1, DropReason::NoKey),
        ]) {
            lanes[lane].begin_turn(BootTime::from_nanos(at * 1_000_000));
            lanes[lane].drop_at_link(link, reason);
            assert_eq!(last(), (at, Some(reason)));
        }
    }

    #[test]
    fn reset_port_begins_at_zero() {
        let counters = LaneCounters::new();
        let port = PortSlot::new(1);
        counters.received_by_port(port, 5);
        counters.drop_at_port(port, DropReason::TapFull);
        assert_eq!(counters.port(port).last_drop, Some(DropReason::TapFull));
        counters.reset_port(port);
        assert_eq!(counters.port(port), PortCounters::default());
    }
}
