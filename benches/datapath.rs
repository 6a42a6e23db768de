//! The whole way of a packet without the kernel: policy, table, seal; open, checks, delivery.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::bench::pair::{self, Pair};
use overlayd::sa::Suite;

/// Frames of a batch, as many as a run of `UDP_SEGMENT` holds.
const BATCH: usize = 32;

fn pipeline(c: &mut Criterion) {
    let mut group = c.benchmark_group("datapath/there_and_delivered");
    for len in [64, 512, 1400, 8900] {
        group.throughput(Throughput::Bytes((BATCH * len) as u64));
        let mut pair = Pair::new(Suite::Aes256Gcm, 1_000);
        let frame = pair::frame(len);
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                pair.send(&frame, BATCH);
                assert_eq!(pair.receive(), BATCH);
            });
        });
    }
    group.finish();
}

fn refuse(c: &mut Criterion) {
    let mut group = c.benchmark_group("datapath/spoofed_frame_dropped");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut pair = Pair::new(Suite::Aes256Gcm, 1_000);
    let mut frame = pair::frame(64);
    frame[6] ^= 4;
    group.bench_function("64", |b| b.iter(|| pair.send(&frame, BATCH)));
    assert_eq!(pair.on_the_wire(), 0);
    group.finish();
}

criterion_group!(benches, pipeline, refuse);
criterion_main!(benches);
