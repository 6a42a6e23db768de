//! What waits for a container that is sent more than its limit allows: a bounded queue for each port
//! and lane, and a bound of the same size for those of a port together. A stream so is slowed down by
//! the time that its segments wait, rather than by losing them.
//!
//! Frames leave in the order of their arrival. What does not fit is dropped, by name. The queue is
//! made with the port and does not grow; a port without a limit has none. Owned by the worker, which
//! hands over what is due.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::limit::RateLimit;
use crate::boot_time::BootTime;
use crate::wire::vnet_hdr::VnetHeader;

/// The limit of what a container is sent, with what waits for it.
#[derive(Debug)]
pub struct Shaper {
    limit: Arc<RateLimit>,
    frames: VecDeque<Waiting>,
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Shaper {
    /// An empty queue. This is all that it will ever allocate.
    pub fn new(limit: Arc<RateLimit>) -> Self {
        let capacity = limit.rate().octets_in(LONGEST_WAIT).clamp(MIN_BYTES, MAX_BYTES);
        Self {
            limit,
            frames: VecDeque::with_capacity(capacity / BYTES_PER_FRAME),
            bytes: VecDeque::with_capacity(capacity),
            capacity,
        }
    }

    /// Whether super-frames may come: the queue holds many, and one is no long wait for what is behind it.
    pub fn takes_super_frames(&self) -> bool {
        self.limit.rate().time_of(LONGEST_SUPER_FRAME) <= SHORT_WAIT
    }

    /// Judges a frame that has come, in pieces that follow each other.
    pub fn admit(&mut self, header: &VnetHeader, pieces: &[&[u8]], now: BootTime) -> Admission {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let (segments, octets) = header.on_the_wire(pieces.first().copied().unwrap_or_default(), len);
        if self.frames.is_empty() && self.limit.is_open(now) {
            self.limit.charge(octets, now);
            return Admission::Pass;
        }
        let has_place = self.frames.len() < self.capacity / BYTES_PER_FRAME;
        if !has_place || !self.limit.begin_waiting(len, self.capacity) {
            return Admission::Refuse;
        }
        pieces.iter().for_each(|piece| self.bytes.extend(*piece));
        self.frames.push_back(Waiting { header: *header, len, octets, segments });
        Admission::Wait
    }

    /// The first frame that waits, in two pieces, if it is due; it is gone with [`Self::release`].
    pub fn due(&self, now: BootTime) -> Option<(&VnetHeader, [&[u8]; 2])> {
        let first = self.frames.front().filter(|_| self.limit.is_open(now))?;
        let (head, rest) = self.bytes.as_slices();
        let (head, rest) = match head.get(..first.len) {
            Some(whole) => (whole, &[][..]),
            None => (head, &rest[..first.len - head.len()]),
        };
        Some((&first.header, [head, rest]))
    }

    /// Takes the first frame out, as one that has passed: how many segments it has, and its length.
    pub fn release(&mut self, now: BootTime) -> (usize, usize) {
        let Some(Waiting { len, octets, segments, .. }) = self.frames.pop_front() else { return (0, 0) };
        self.limit.charge(octets, now);
        self.limit.end_waiting(len);
        self.bytes.drain(..len);
        (segments, len)
    }

    /// When the first frame that waits may pass; `None` if there is none.
    pub fn wakes_at(&self) -> Option<BootTime> {
        (!self.frames.is_empty()).then(|| self.limit.opens_at())
    }

    /// How many frames wait, each segment of a super-frame for itself.
    pub fn waiting(&self) -> usize {
        self.frames.iter().map(|frame| frame.segments).sum()
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.limit.end_waiting(self.bytes.len());
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a frame that passes is to be handed on, and one that is refused to be counted"]
pub enum Admission {
    /// It is to be handed on now, and has been charged.
    Pass,
    /// It has been copied, and is handed on later.
    Wait,
    /// There is no room for it.
    Refuse,
}

/// A frame whose bytes lie behind those of the frames before it.
#[derive(Debug)]
struct Waiting {
    header: VnetHeader,
    len: usize,
    /// Of all its segments, with their headers.
    octets: usize,
    segments: usize,
}

/// Enough for a stream over some 25 ms to use its rate; more would be felt by who waits behind it.
const LONGEST_WAIT: Duration = Duration::from_millis(25);
/// For slow rates: a stream needs some 90 segments to get over a loss.
const MIN_BYTES: usize = 1 << 17;
const LONGEST_SUPER_FRAME: usize = 1 << 16;
const SHORT_WAIT: Duration = Duration::from_millis(2);
/// For fast ones, for which a lane is hardly ever too slow.
const MAX_BYTES: usize = 1 << 22;
/// So many bytes of queue for each place in the list: short frames find its end before that of the bytes.
const BYTES_PER_FRAME: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::Rate;

    const START: BootTime = BootTime::from_nanos(5_000_000_000);

    fn shaper() -> Shaper {
        let rate: Rate = "10mbit".parse().expect("a rate");
        Shaper::new(Arc::new(RateLimit::new(rate)))
    }

    fn admit(shaper: &mut Shaper, pieces: &[&[u8]], now: BootTime) -> Admission {
        shaper.admit(&VnetHeader::COMPLETE, pieces, now)
    }

    /// Fills it to the brim with frames of a number each; how many passed, and how many wait.
    fn fill(shaper: &mut Shaper, len: usize) -> (usize, usize) {
        let (mut passed, mut waiting) = (0, 0);
        for number in 0u32.. {
            let number = number.to_be_bytes();
            match admit(shaper, &[&number, &vec![0xa5; len - 4]], START) {
                Admission::Pass => passed += 1,
                Admission::Wait => waiting += 1,
                Admission::Refuse => break,
            }
        }
        (passed, waiting)
    }

    #[test]
    fn frames_pass_then_wait_then_are_refused() {
        let (passed, waiting) = fill(&mut shaper(), 1_000);
        // 20 ms at once, and the debt of one frame; then 128 KiB.
        assert_eq!((passed, waiting), (26, 131));
        let (_, waiting) = fill(&mut shaper(), 64);
        assert_eq!(waiting, MIN_BYTES / BYTES_PER_FRAME);
    }

    #[test]
    fn frames_that_wait_leave_whole_in_order_and_at_the_rate() {
        let mut shaper = shaper();
        let (passed, waiting) = fill(&mut shaper, 1_000);
        let number = |frame: usize| u32::try_from(frame).expect("few").to_be_bytes();
        let (mut now, mut joined) = (START, 0);
        for next in passed..passed + 2 * waiting {
            now = now.max(shaper.wakes_at().expect("frames wait"));
            let (_, [head, rest]) = shaper.due(now).expect("it is due");
            joined += usize::from(!rest.is_empty());
            let frame = [head, rest].concat();
            assert_eq!((frame.len(), &frame[..4]), (1_000, &number(next)[..]));
            assert_eq!(shaper.release(now), (1, 1_000));
            // Another comes in its place, so that the ring of bytes goes around.
            let other = number(next + waiting);
            assert_eq!(admit(&mut shaper, &[&other, &[0xa5; 996]], now), Admission::Wait);
        }
        assert!(joined > 0, "no frame lay across the end of the ring");
        // 800 us for each, but for those of the burst.
        let expected = Duration::from_micros(800) * u32::try_from(passed + 2 * waiting - 26).expect("few");
        assert_eq!(now.since(START), expected);
    }

    #[test]
    fn queues_of_all_lanes_together_hold_no_more_than_that_of_one() {
        let limit = Arc::clone(&shaper().limit);
        let lane = || Shaper::new(Arc::clone(&limit));
        let (mut one, mut two) = (lane(), lane());
        let (_, waiting) = fill(&mut one, 1_000);
        assert_eq!((waiting, fill(&mut two, 1_000)), (131, (0, 0)));
        // A stream in one lane has the place that another lane's has left.
        let (due, later) = (START + Duration::from_millis(1), START + Duration::from_secs(1));
        assert!(one.due(due).is_some());
        assert_eq!(one.release(due), (1, 1_000));
        assert_eq!(admit(&mut two, &[&[1; 1_000]], due), Admission::Wait);
        assert_eq!(admit(&mut two, &[&[1; 1_000]], due), Admission::Refuse);
        drop(one);
        assert_eq!(fill(&mut two, 1_000).1, 130);
        assert!(two.due(later).is_some());
    }

    #[test]
    fn nothing_overtakes_what_waits() {
        let mut shaper = shaper();
        let _ = fill(&mut shaper, 60_000);
        let later = START + Duration::from_secs(1);
        assert_ne!(admit(&mut shaper, &[&[1; 60]], later), Admission::Pass);
        while shaper.due(later + Duration::from_secs(9)).is_some() {
            shaper.release(START);
        }
        assert_eq!((shaper.waiting(), shaper.wakes_at()), (0, None));
    }
}
