//! Super-frames without the kernel: cut and sealed; opened, verified and merged; and the parts alone.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::bench::pair::{self, Pair, SEGMENT, SUPER_FRAME_PAYLOAD};
use overlayd::datapath::SuperFrame;
use overlayd::io::clock::boot_time;
use overlayd::sa::Suite;

fn there_and_delivered(c: &mut Criterion) {
    each_segment(c, "super_frame/there_and_delivered", |sent, received| sent + received);
}

fn cut_and_sealed(c: &mut Criterion) {
    each_segment(c, "super_frame/cut_and_sealed", |sent, _| sent);
}

fn opened_and_merged(c: &mut Criterion) {
    each_segment(c, "super_frame/opened_and_merged", |_, received| received);
}

/// Measures what `part` takes of the times of sending and receiving.
fn each_segment(c: &mut Criterion, name: &str, part: fn(Duration, Duration) -> Duration) {
    let mut group = c.benchmark_group(name);
    for segment in [536, SEGMENT, 8_900] {
        let packets = SUPER_FRAME_PAYLOAD.div_ceil(usize::from(segment));
        // No more become one.
        let merged = packets.div_ceil(64);
        group.throughput(Throughput::ElementsAndBytes {
            elements: packets as u64,
            bytes: SUPER_FRAME_PAYLOAD as u64,
        });
        let mut pair = Pair::new(Suite::Aes256Gcm, 1_000);
        let (header, frame) = pair::super_frame(SUPER_FRAME_PAYLOAD, segment);
        let mut once = || {
            let begin = boot_time();
            pair.send_as(&header, &frame, 1);
            let sent = boot_time();
            assert_eq!(pair.receive(), merged);
            part(sent.since(begin), boot_time().since(sent))
        };
        group.bench_function(BenchmarkId::from_parameter(segment), |b| {
            b.iter_custom(|iterations| (0..iterations).map(|_| once()).sum());
        });
    }
    group.finish();
}

fn cut(c: &mut Criterion) {
    let mut group = c.benchmark_group("super_frame");
    group.throughput(Throughput::Bytes(SUPER_FRAME_PAYLOAD as u64));
    let (header, frame) = pair::super_frame(SUPER_FRAME_PAYLOAD, SEGMENT);
    let mut place = vec![0; 2_000];
    group.bench_function("cut", |b| {
        b.iter(|| {
            let cut = header.segmentation.expect("a super-frame");
            let cut = SuperFrame::parse(&frame, &header, cut).expect("a right one");
            for index in 0..cut.segments() {
                black_box(cut.write(&frame, index, black_box(&mut place), false));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, there_and_delivered, cut_and_sealed, opened_and_merged, cut);
criterion_main!(benches);
