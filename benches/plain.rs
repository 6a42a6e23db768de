//! What crosses no cipher: plain VXLAN of unencrypted networks, and frames to the container next door;
//! without the kernel, frames and super-frames.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use overlayd::bench::pair::{self, NEIGHBOR_PORT, PLAIN, PLAIN_PORT, Pair, SEGMENT, SUPER_FRAME_PAYLOAD};
use overlayd::sa::Suite;
use overlayd::wire::vnet_hdr::VnetHeader;

use timing::{BATCH, each_batch, frames, time};

mod timing;

fn there_and_delivered(c: &mut Criterion) {
    each_load(c, "plain/there_and_delivered", |sent, received| sent + received);
}

fn egress(c: &mut Criterion) {
    each_load(c, "plain/egress", |sent, _| sent);
}

fn ingress(c: &mut Criterion) {
    each_load(c, "plain/ingress", |_, received| received);
}

/// Measures what `part` takes of the times of sending and receiving.
fn each_load(c: &mut Criterion, name: &str, part: fn(Duration, Duration) -> Duration) {
    let mut group = c.benchmark_group(name);
    for len in [64, 512, 1400, 8900] {
        let frame = pair::plain_frame(len, pair::mac(PLAIN + 1, 0));
        let mut pair = pair();
        group.throughput(frames(BATCH, len));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            each_batch(b, || {
                let sent = time(|| pair.send_from(PLAIN_PORT, &VnetHeader::COMPLETE, &frame, BATCH));
                assert_eq!(pair.on_the_wire(), BATCH);
                part(sent, time(|| assert_eq!(pair.receive(), BATCH)))
            });
        });
    }
    let (header, frame) = pair::super_frame_in(PLAIN, SUPER_FRAME_PAYLOAD, SEGMENT);
    let mut pair = pair();
    let segments = SUPER_FRAME_PAYLOAD.div_ceil(SEGMENT.into());
    group.throughput(criterion::Throughput::ElementsAndBytes {
        elements: segments as u64,
        bytes: SUPER_FRAME_PAYLOAD as u64,
    });
    group.bench_function("super_frame", |b| {
        each_batch(b, || {
            let sent = time(|| pair.send_from(PLAIN_PORT, &header, &frame, 1));
            assert_eq!(pair.on_the_wire(), segments);
            part(sent, time(|| assert_eq!(pair.receive(), 1, "merged again")))
        });
    });
    group.finish();
}

/// Of each super-frame the other container's kernel gets the whole, as the first one's made it.
fn next_door(c: &mut Criterion) {
    let mut group = c.benchmark_group("local/next_door");
    let neighbor = pair::mac(PLAIN, 1);
    let (super_header, mut super_frame) = pair::super_frame_in(PLAIN, SUPER_FRAME_PAYLOAD, SEGMENT);
    super_frame[..6].copy_from_slice(&neighbor.octets());
    for (name, header, frame) in [
        ("64", VnetHeader::COMPLETE, pair::plain_frame(64, neighbor)),
        ("1400", VnetHeader::COMPLETE, pair::plain_frame(1400, neighbor)),
        ("super_frame", super_header, super_frame),
    ] {
        let mut pair = pair();
        let mut batch = || time(|| pair.send_from(PLAIN_PORT, &header, &frame, BATCH));
        batch();
        group.throughput(frames(BATCH, frame.len()));
        group.bench_function(BenchmarkId::from_parameter(name), |b| each_batch(b, &mut batch));
        let counters = pair.counters();
        let (sent, received) = (counters.port(PLAIN_PORT), counters.port(NEIGHBOR_PORT));
        assert_eq!((pair.on_the_wire(), received.bytes_received), (0, sent.bytes_sent));
        assert_eq!(received.frames_received, sent.frames_sent, "none was cut");
    }
    group.finish();
}

fn pair() -> Pair {
    Pair::new(Suite::Aes256Gcm, 1_000)
}

criterion_group!(benches, there_and_delivered, egress, ingress, next_door);
criterion_main!(benches);
