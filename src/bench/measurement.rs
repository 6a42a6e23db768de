//! One measurement: frames there and back in memory for a while, on some threads at once.

use std::fmt;
use std::sync::Barrier;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::pair::{self, Pair, SEGMENT, SUPER_FRAME_PAYLOAD};
use crate::io::clock::boot_time;
use crate::sa::Suite;
use crate::wire::vnet_hdr::VnetHeader;

/// What a container sends again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Frames of so many bytes.
    Frames(usize),
    /// TCP super-frames, which are cut into frames for an MTU of 1408 and merged again.
    SuperFrames,
}

impl Load {
    /// The loads that are measured.
    pub const ALL: [Self; 4] = [Self::Frames(64), Self::Frames(512), Self::Frames(1400), Self::SuperFrames];

    /// The frame, what its kernel says of it, and how many of them are a batch.
    fn batch(self) -> (VnetHeader, Vec<u8>, usize) {
        match self {
            Self::Frames(len) => (VnetHeader::COMPLETE, pair::frame(len), FRAMES),
            Self::SuperFrames => {
                let (header, frame) = pair::super_frame(SUPER_FRAME_PAYLOAD, SEGMENT);
                (header, frame, 1)
            }
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(len) => f.pad(&format!("{len} B")),
            Self::SuperFrames => f.pad("super-frames"),
        }
    }
}

impl Serialize for Load {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What both ends of a tunnel did with a load.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// The cipher.
    pub suite: Suite,
    /// What was sent.
    pub load: Load,
    /// Threads that did so at once, each for itself.
    pub threads: usize,
    /// ESP packets that were sealed and opened, by all threads.
    pub packets: u64,
    /// Bytes of the frames that the containers sent.
    pub bytes: u64,
    /// From the first batch to the last.
    pub elapsed_ns: u64,
    /// Bits of frames a second.
    pub bits_per_second: u64,
    /// Packets a second.
    pub packets_per_second: u64,
    /// How long a thread is busy with a packet, at both ends together.
    pub ns_per_packet: u64,
    /// Packets a second in the slowest pass; the other figures are those of the fastest.
    pub slowest_packets_per_second: u64,
}

impl Measurement {
    pub(super) fn new(
        (suite, load, threads): (Suite, Load, usize),
        packets: u64,
        bytes: u64,
        elapsed: Duration,
    ) -> Self {
        let per_second = |count: u64| {
            let scaled = u128::from(count) * NANOS_PER_SECOND / elapsed.as_nanos().max(1);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        let busy = elapsed.as_nanos() * u128::try_from(threads).expect("few");
        Self {
            suite,
            load,
            threads,
            packets,
            bytes,
            elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            bits_per_second: per_second(bytes.saturating_mul(8)),
            packets_per_second: per_second(packets),
            slowest_packets_per_second: per_second(packets),
            ns_per_packet: u64::try_from(busy / u128::from(packets.max(1))).unwrap_or(u64::MAX),
        }
    }

    /// Takes another pass in: nothing makes one faster than the processor is, and much makes it slower.
    pub(super) fn repeat(&mut self, again: Self) {
        let slowest = self.slowest_packets_per_second.min(again.slowest_packets_per_second);
        if again.packets_per_second > self.packets_per_second {
            *self = again;
        }
        self.slowest_packets_per_second = slowest;
    }
}

/// Lets `threads` pairs work for `duration`.
pub(super) fn measure(suite: Suite, load: Load, threads: usize, duration: Duration) -> Measurement {
    let start = Barrier::new(threads);
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| carry(suite, load, duration, &start))).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let packets = results.iter().map(|(packets, _, _)| packets).sum();
    let bytes = results.iter().map(|(_, bytes, _)| bytes).sum();
    let elapsed = results.iter().map(|(_, _, elapsed)| *elapsed).max().unwrap_or_default();
    Measurement::new((suite, load, threads), packets, bytes, elapsed)
}

/// One thread's packets, bytes and time.
fn carry(suite: Suite, load: Load, duration: Duration, start: &Barrier) -> (u64, u64, Duration) {
    let mut pair = Pair::new(suite, ENDPOINTS);
    let (header, frame, count) = load.batch();
    let mut batch = || {
        pair.send_as(&header, &frame, count);
        let packets = pair.on_the_wire();
        assert!(pair.receive() > 0, "a container's own frames are delivered");
        u64::try_from(packets).expect("a batch")
    };
    batch();
    start.wait();
    let (begin, mut packets, mut batches) = (boot_time(), 0, 0);
    loop {
        packets += batch();
        batches += 1;
        let elapsed = boot_time().since(begin);
        if elapsed >= duration {
            let bytes = batches * u64::try_from(count * frame.len()).expect("a batch");
            return (packets, bytes, elapsed);
        }
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;
/// On each side of the network: more than fit into the innermost cache, as in a network that is used.
const ENDPOINTS: u32 = 1_000;
/// As many as a run of `UDP_SEGMENT` often has.
const FRAMES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_all_threads_and_times_of_one() {
        let load = (Suite::Aes256Gcm, Load::Frames(64), 2);
        let measured = Measurement::new(load, 1_000, 64_000, Duration::from_millis(1));
        assert_eq!(measured.packets_per_second, 1_000_000);
        assert_eq!(measured.bits_per_second, 512_000_000);
        assert_eq!(measured.ns_per_packet, 2_000);
    }

    #[test]
    fn the_fastest_pass_counts_and_the_slowest_is_remembered() {
        let of = |packets| {
            Measurement::new(
                (Suite::Aes256Gcm, Load::SuperFrames, 1),
                packets,
                packets,
                Duration::from_secs(1),
            )
        };
        let mut measured = of(200);
        measured.repeat(of(300));
        measured.repeat(of(100));
        assert_eq!((measured.packets_per_second, measured.slowest_packets_per_second), (300, 100));
    }

    #[test]
    fn a_super_frame_counts_as_the_packets_that_it_becomes() {
        let measured = measure(Suite::Aes256Gcm, Load::SuperFrames, 2, Duration::ZERO);
        assert_eq!((measured.packets, measured.bytes), (2 * 44, 2 * (54 + 58_900)));
    }
}
