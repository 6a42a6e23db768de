//! When a container that floods is left alone for a moment, for another's stream.
//!
//! A frame costs a lane nearly as much whether it holds a few octets or a whole super-frame of a stream. A
//! container that sends small ones as fast as it can therefore takes most of what its lane can do, and with
//! the programs at both ends most of the processors; a stream, which waits for its acknowledgments, is not
//! even there to take its turns. So where the processor is wanted by others, a port that has used up its
//! turn is not read for a while after, if another port has a stream. What it loses by that waits in its
//! container's own queue, and is dropped there by its own kernel, where it costs least.
//!
//! On processors that nobody else wants, and beside containers that only talk, floods are carried without
//! end. Owned by `turn`.

use std::time::Duration;

use crate::boot_time::BootTime;
use crate::id::PortSlot;

/// What a lane knows of its ports' ways.
#[derive(Debug)]
pub(super) struct Courtesy {
    /// The last two ports that had a stream, and when; the latest first.
    streams: [Option<(PortSlot, BootTime)>; 2],
}

impl Courtesy {
    pub(super) fn new() -> Self {
        Self { streams: [None; 2] }
    }

    /// A port has had its turn, of so many frames with so many octets, or of all that it may have. For how
    /// long it is to be left alone now. `is_wanted` is whether others want the processor, and is asked only
    /// where it matters.
    #[inline]
    pub(super) fn served(
        &mut self,
        port: PortSlot,
        (is_flood, octets): (bool, usize),
        now: BootTime,
        is_wanted: impl FnOnce() -> bool,
    ) -> Option<Duration> {
        if !is_flood {
            if octets >= STREAM_OCTETS {
                self.note_stream(port, now);
            }
            return None;
        }
        let is_beside = |(other, at): &(PortSlot, BootTime)| *other != port && now.since(*at) < AWAY;
        if !self.streams.iter().flatten().any(is_beside) {
            return None;
        }
        is_wanted().then_some(REST)
    }

    fn note_stream(&mut self, port: PortSlot, now: BootTime) {
        if self.streams[0].is_none_or(|(latest, _)| latest != port) {
            self.streams[1] = self.streams[0];
        }
        self.streams[0] = Some((port, now));
    }
}

/// What a turn has of a stream: a super-frame of some length.
const STREAM_OCTETS: usize = 16 * 1024;
/// A stream that has had nothing for so long has ended or waits for something else than processors. The
/// scheduler may keep its threads waiting for some milliseconds each.
const AWAY: Duration = Duration::from_millis(20);
/// Some nine times as long as a turn of a flood takes.
const REST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: (bool, usize) = (true, 64 * 64);
    const STREAM: (bool, usize) = (false, 60_000);
    const WORD: (bool, usize) = (false, 80);
    const FLOODER: PortSlot = PortSlot::new(1);
    const STREAMER: PortSlot = PortSlot::new(2);

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn flood_beside_a_stream_rests_where_the_processor_is_wanted() {
        let mut courtesy = Courtesy::new();
        assert_eq!(courtesy.served(STREAMER, STREAM, at(0), || true), None);
        assert_eq!(courtesy.served(FLOODER, FLOOD, at(1), || true), Some(REST));
        assert_eq!(courtesy.served(FLOODER, FLOOD, at(2), || false), None);
    }

    #[test]
    fn flood_alone_or_beside_words_or_another_flood_does_not_rest() {
        let mut courtesy = Courtesy::new();
        for millis in 0..100 {
            assert_eq!(courtesy.served(FLOODER, FLOOD, at(millis), || true), None);
            assert_eq!(courtesy.served(STREAMER, WORD, at(millis), || true), None);
            assert_eq!(courtesy.served(PortSlot::new(3), FLOOD, at(millis), || true), None);
        }
        // Its own stream is no other's.
        assert_eq!(courtesy.served(FLOODER, STREAM, at(100), || true), None);
        assert_eq!(courtesy.served(FLOODER, FLOOD, at(101), || true), None);
    }

    #[test]
    fn stream_is_remembered_for_a_while_also_behind_the_floods_own() {
        let mut courtesy = Courtesy::new();
        assert_eq!(courtesy.served(STREAMER, STREAM, at(0), || true), None);
        assert_eq!(courtesy.served(FLOODER, STREAM, at(1), || true), None);
        assert_eq!(courtesy.served(FLOODER, STREAM, at(2), || true), None);
        assert_eq!(courtesy.served(FLOODER, FLOOD, at(19), || true), Some(REST));
        assert_eq!(courtesy.served(FLOODER, FLOOD, at(20), || true), None);
    }
}
