//! More of the processors for an agent that carries streams.
//!
//! Where lanes share processors with the programs whose frames they carry, the scheduler gives each of them
//! its turn. The programs of a stream wait for the lanes, so what lanes are given is not taken from them;
//! and a lane that is not interrupted in its batch has the next one sooner. Who floods with single frames,
//! and who receives them, need their own time as much as the lanes need theirs, and lose what they have no
//! time for. So lanes ask for precedence while they carry super-frames of streams, and none of them carries
//! much else. Owned by `turn`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::wish::{WINDOW, Wish};
use crate::boot_time::BootTime;
use crate::wire::vnet_hdr::{Kind, VnetHeader};

/// What all lanes of an agent ask for together.
#[derive(Debug, Clone)]
pub struct Precedence {
    wish: Wish,
    /// When a lane last had carried many single frames, in nanoseconds of [`BootTime`].
    flooded: Arc<AtomicU64>,
}

impl Precedence {
    /// Of lanes whose process is to be given it as `wish`.
    pub fn new(wish: Wish) -> Self {
        Self { wish, flooded: Arc::default() }
    }
}

/// What a lane has read off TAPs and written to them; what it brings from one to another it does both with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Carried {
    /// Long ones, of TCP.
    super_frames: u32,
    /// All else, as it would be on a wire.
    singles: u32,
}

impl Carried {
    /// A frame in pieces.
    #[inline]
    pub(super) fn add_pieces(&mut self, header: &VnetHeader, pieces: &[&[u8]]) {
        let len = pieces.iter().map(|piece| piece.len()).sum();
        self.add(header, pieces.first().copied().unwrap_or_default(), len);
    }

    /// A frame of `len` octets that begins with `head`.
    #[inline]
    pub(super) fn add(&mut self, header: &VnetHeader, head: &[u8], len: usize) {
        let kind = header.segmentation.map(|segmentation| segmentation.kind);
        if matches!(kind, Some(Kind::Tcp4 | Kind::Tcp6)) && len >= LONG {
            self.super_frames += 1;
        } else {
            let (frames, _) = header.on_the_wire(head, len);
            self.singles = self.singles.saturating_add(u32::try_from(frames).unwrap_or(u32::MAX));
        }
    }
}

/// What a lane has carried lately.
#[derive(Debug)]
pub(super) struct Streams {
    precedence: Option<Precedence>,
    /// When the window began.
    since: BootTime,
    carried: Carried,
}

impl Streams {
    pub(super) fn new(precedence: Option<Precedence>) -> Self {
        Self { precedence, since: BootTime::from_nanos(0), carried: Carried::default() }
    }

    /// A turn has carried that, until `now`.
    #[inline]
    pub(super) fn carried(&mut self, turn: Carried, now: BootTime) {
        let Some(precedence) = &self.precedence else { return };
        let window = now.since(self.since);
        if window >= WINDOW {
            let Carried { super_frames, singles } = std::mem::take(&mut self.carried);
            if singles >= FLOOD && singles > super_frames.saturating_mul(ACKNOWLEDGMENTS) {
                // The window may have ended long before the turn that ends it here.
                let end = self.since + WINDOW;
                precedence.flooded.store(end.as_nanos(), Ordering::Relaxed);
            } else if super_frames >= STREAM && window < WINDOW * 2 {
                let flooded = BootTime::from_nanos(precedence.flooded.load(Ordering::Relaxed));
                if now.since(flooded) >= AWAY {
                    precedence.wish.ask();
                }
            }
            self.since = now;
        }
        self.carried.super_frames = self.carried.super_frames.saturating_add(turn.super_frames);
        self.carried.singles = self.carried.singles.saturating_add(turn.singles);
    }
}

/// The nice value of a session that has precedence: its processes weigh six times as much as another's.
pub const NICE: i32 = -8;
/// What a container sends to be taken for a stream is at least 65 Mbit/s with [`STREAM`].
const LONG: usize = 8 * 1024;
/// In a window: half a gigabit a second, if they are as long as can be.
const STREAM: u32 = 50;
/// In a window: 20,000 a second.
const FLOOD: u32 = 1_000;
/// To a super-frame: most cause one, and more than these are somebody else's frames.
const ACKNOWLEDGMENTS: u32 = 4;
/// So long a flood may have been kept waiting by the scheduler, and go on.
const AWAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::wire::vnet_hdr::{Checksum, Segmentation};

    fn super_frame(kind: Kind) -> VnetHeader {
        let size = NonZeroU16::new(1_300).unwrap();
        let segmentation = Some(Segmentation { kind, has_cwr: false, size });
        VnetHeader { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation, header_len: 54 }
    }

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(5_000_000_000 + millis * 1_000_000)
    }

    fn precedence() -> Precedence {
        Precedence::new(Wish::unheard())
    }

    /// Carries the same in each millisecond; when it was asked, in milliseconds.
    fn asked(precedence: &Precedence, millis: std::ops::Range<u64>, each: Carried) -> Vec<u64> {
        let mut streams = Streams::new(Some(precedence.clone()));
        let mut ask = |now: &u64| {
            streams.carried(each, at(*now));
            precedence.wish.take_asked()
        };
        millis.filter(|now| ask(now)).collect()
    }

    #[test]
    fn only_long_super_frames_of_tcp_are_a_stream_s() {
        let mut carried = Carried::default();
        let head = [0x50; 54];
        carried.add(&super_frame(Kind::Tcp4), &head, 54 + 40 * 1_300);
        carried.add(&super_frame(Kind::Tcp6), &head, 54 + 40 * 1_300);
        assert_eq!((carried.super_frames, carried.singles), (2, 0));
        carried.add(&super_frame(Kind::Tcp4), &head, 54 + 2 * 1_300);
        assert_eq!((carried.super_frames, carried.singles), (2, 2), "a short one");
        carried.add_pieces(&super_frame(Kind::Udp), &[&head[..42], &[0; 20 * 1_300], &[0; 20 * 1_300]]);
        carried.add(&VnetHeader::COMPLETE, &head, 60);
        assert_eq!((carried.super_frames, carried.singles), (2, 43), "datagrams");
    }

    #[test]
    fn stream_asks_in_every_window_at_either_end() {
        let each = Carried { super_frames: 1, singles: 4 };
        assert_eq!(asked(&precedence(), 0..210, each), [50, 100, 150, 200]);
        let fast = Carried { super_frames: 15, singles: 60 };
        assert_eq!(asked(&precedence(), 0..210, fast), [50, 100, 150, 200], "many acknowledgments");
    }

    #[test]
    fn what_needs_no_precedence_does_not_ask() {
        let none = [0_u64; 0];
        let words = Carried { super_frames: 0, singles: 19 };
        assert_eq!(asked(&precedence(), 0..500, words), none);
        let flood = Carried { super_frames: 0, singles: 200 };
        assert_eq!(asked(&precedence(), 0..500, flood), none);
        let slow = Carried { super_frames: 1, singles: 1 };
        let mut streams = Streams::new(Some(precedence()));
        for second in 0..10 {
            streams.carried(slow, at(second * 1_000));
            for _ in 0..60 {
                streams.carried(slow, at(second * 1_000 + 1));
            }
            assert!(!streams.precedence.as_ref().unwrap().wish.take_asked(), "its window is long over");
        }
    }

    #[test]
    fn nobody_asks_beside_a_flood_of_any_lane_and_soon_after() {
        let precedence = precedence();
        let stream = Carried { super_frames: 5, singles: 5 };
        let beside_it = Carried { super_frames: 5, singles: 60 };
        assert_eq!(asked(&precedence, 0..210, beside_it), [0_u64; 0]);
        // The last window with the flood ended at 200; the next lane's end 50 ms after each other.
        let then = asked(&precedence, 210..1_400, stream);
        assert_eq!(then.first(), Some(&1_210), "{then:?}");
    }
}
