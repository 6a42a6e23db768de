//! Super-frames without the kernel: cut, sealed, opened, verified, merged; and the parts by themselves.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::bench::pair::{self, Pair};
use overlayd::datapath::SuperFrame;
use overlayd::sa::Suite;
use overlayd::wire::checksum::Sum;

/// As long as a container's kernel makes them.
const PAYLOAD: usize = 58_900;
/// What is left of an MTU of 1408 behind IPv4 and TCP.
const SEGMENT: u16 = 1_368;

fn pipeline(c: &mut Criterion) {
    let mut group = c.benchmark_group("super_frame/there_and_delivered");
    group.throughput(Throughput::Bytes(PAYLOAD as u64));
    for segment in [536, SEGMENT, 8_900] {
        let mut pair = Pair::new(Suite::Aes256Gcm, 1_000);
        let (header, frame) = pair::super_frame(PAYLOAD, segment);
        group.bench_function(BenchmarkId::from_parameter(segment), |b| {
            b.iter(|| {
                pair.send_as(&header, &frame, 1);
                pair.receive()
            });
        });
    }
    group.finish();
}

fn parts(c: &mut Criterion) {
    let mut group = c.benchmark_group("super_frame/part");
    group.throughput(Throughput::Bytes(PAYLOAD as u64));
    let (header, frame) = pair::super_frame(PAYLOAD, SEGMENT);
    let mut place = vec![0; 2_000];
    group.bench_function("cut", |b| {
        b.iter(|| {
            let cut = header.segmentation.expect("a super-frame");
            let cut = SuperFrame::parse(&frame, &header, cut).expect("a right one");
            for index in 0..cut.segments() {
                black_box(cut.write(&frame, index, black_box(&mut place)));
            }
        });
    });
    group.bench_function("sum", |b| b.iter(|| Sum::ZERO.plus(black_box(&frame)).folded()));
    group.finish();
}

criterion_group!(benches, pipeline, parts);
criterion_main!(benches);
