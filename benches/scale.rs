//! Whether a packet's cost grows with the number of endpoints and of peers.
//!
//! `hot` is one flow while all others are silent, which a lookup that grew with its table would slow
//! down. `sweep` takes the next endpoint or peer for each frame: what it costs more is that nothing of
//! the next one's row, SA, key and window is in the processor's caches, which is so for any data
//! structure. The fastest quarter of the batches counts: what other programs take in the others is not
//! the packets' cost.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use overlayd::bench::pair::{self, Pair};
use overlayd::id::PortSlot;
use overlayd::io::clock::boot_time;
use overlayd::sa::Suite;
use overlayd::wire::vnet_hdr::VnetHeader;

/// Frames of a batch, as many as a run of `UDP_SEGMENT` holds.
const BATCH: u32 = 32;
const FRAME_LEN: usize = 64;

fn endpoints(c: &mut Criterion) {
    for count in [10, 1_000, 100_000] {
        cost(c, "scale/endpoints", count, Pair::spread(Suite::Aes256Gcm, count, 1), |flow| (0, flow));
    }
}

fn peers(c: &mut Criterion) {
    for count in [10, 1_000, 5_000] {
        cost(c, "scale/peers", count, Pair::spread(Suite::Aes256Gcm, count, count), |flow| (flow, flow));
    }
}

/// There and delivered, one flow and then each in turn; `of` tells between whom a flow is.
fn cost(c: &mut Criterion, name: &str, count: u32, mut pair: Pair, of: impl Fn(u32) -> (u32, u32)) {
    let frame = |(from, to)| (from, pair::frame_between(FRAME_LEN, from, to));
    let frames: Vec<_> = (0..count).map(|flow| frame(of(flow))).collect();
    for (pattern, stride) in [("hot", 0), ("sweep", 1)] {
        let mut group = c.benchmark_group(format!("{name}/{pattern}"));
        group.throughput(Throughput::Elements(BATCH.into()));
        group.sampling_mode(SamplingMode::Flat);
        let mut next = 0;
        let mut batch = || {
            let begin = boot_time();
            for _ in 0..BATCH {
                let (from, frame) = &frames[next];
                pair.submit(PortSlot::new(*from), &VnetHeader::COMPLETE, frame);
                next = (next + stride) % frames.len();
            }
            pair.flush();
            assert_eq!(pair.receive(), BATCH as usize);
            boot_time().since(begin)
        };
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter_custom(|batches| {
                let times = (0..batches).map(|_| batch()).collect();
                of_the_fastest(times).mul_f64(batches as f64)
            });
        });
        group.finish();
    }
}

/// The mean of the fastest quarter.
fn of_the_fastest(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let fastest = &times[..times.len().div_ceil(4)];
    fastest.iter().sum::<Duration>().div_f64(fastest.len() as f64)
}

criterion_group!(benches, endpoints, peers);
criterion_main!(benches);
