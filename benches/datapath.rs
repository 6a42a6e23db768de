//! The way of a packet without the kernel, by suite and size: policy, table, seal; open, checks,
//! delivery. Floods, and what never leaves the node: answers and drops.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::bench::pair::{self, Pair};
use overlayd::id::MacAddr;
use overlayd::sa::Suite;
use overlayd::wire::arp;

use timing::{BATCH, each_batch, frames, time};

mod timing;

fn there_and_delivered(c: &mut Criterion) {
    each_load(c, "datapath/there_and_delivered", |pair, frame| {
        time(|| {
            pair.send(frame, BATCH);
            assert_eq!(pair.receive(), BATCH);
        })
    });
}

fn egress(c: &mut Criterion) {
    each_load(c, "datapath/egress", |pair, frame| {
        let elapsed = time(|| pair.send(frame, BATCH));
        assert_eq!(pair.receive(), BATCH);
        elapsed
    });
}

fn ingress(c: &mut Criterion) {
    each_load(c, "datapath/ingress", |pair, frame| {
        pair.send(frame, BATCH);
        time(|| assert_eq!(pair.receive(), BATCH))
    });
}

/// Measures what `batch` says that a batch takes.
fn each_load(c: &mut Criterion, name: &str, batch: impl Fn(&mut Pair, &[u8]) -> Duration) {
    let mut group = c.benchmark_group(name);
    for suite in Suite::ALL {
        for len in [64, 512, 1400, 8900] {
            group.throughput(frames(BATCH, len));
            let mut pair = Pair::new(suite, 1_000);
            let frame = pair::frame(len);
            group.bench_function(BenchmarkId::new(suite.name(), len), |b| {
                each_batch(b, || batch(&mut pair, &frame));
            });
        }
    }
    group.finish();
}

fn stays_here(c: &mut Criterion) {
    let mut group = c.benchmark_group("datapath");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut pair = Pair::new(Suite::Aes256Gcm, 1_000);
    let mut spoofed = pair::frame(64);
    spoofed[6] ^= 4;
    group.bench_function("spoofed_frame_dropped", |b| b.iter(|| pair.send(&spoofed, BATCH)));
    let mut question = [0; arp::REPLY_LEN];
    arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: pair::mac(0, 0),
        sender_ip: pair::ip(0, 0),
        target_mac: MacAddr::new([0; 6]),
        target_ip: pair::ip(1, 50),
    }
    .write_frame(MacAddr::BROADCAST, &mut question);
    group.bench_function("arp_answered", |b| b.iter(|| pair.send(&question, BATCH)));
    assert_eq!(pair.on_the_wire(), 0);
    group.finish();
}

/// One frame to everybody: each other container here, and once to each other node; and what comes so, to
/// each container here.
fn to_all(c: &mut Criterion) {
    let mut group = c.benchmark_group("datapath/to_all");
    for (nodes, len) in [(1, 300), (10, 300), (100, 300), (100, 1400)] {
        let mut pair = Pair::spread(Suite::Aes256Gcm, nodes, nodes);
        let frame = pair::broadcast(len);
        // The sender is one of as many containers.
        let (remote, local) = (nodes as usize, nodes as usize - 1);
        group.throughput(frames(remote + local, len));
        group.bench_function(BenchmarkId::new(format!("egress_{nodes}_nodes"), len), |b| {
            each_batch(b, || {
                let answered = pair.answered();
                let took = time(|| pair.send(&frame, 1));
                assert_eq!((pair.on_the_wire(), pair.answered()), (remote, answered + local));
                pair.receive();
                took
            });
        });
        let containers = nodes.min(10);
        let mut pair = Pair::spread(Suite::Aes256Gcm, containers, 1);
        group.throughput(frames(BATCH * containers as usize, len));
        if nodes != 10 {
            group.bench_function(BenchmarkId::new(format!("ingress_{containers}_containers"), len), |b| {
                each_batch(b, || {
                    pair.send(&frame, BATCH);
                    time(|| assert_eq!(pair.receive(), BATCH * containers as usize))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, there_and_delivered, egress, ingress, to_all, stays_here);
criterion_main!(benches);
