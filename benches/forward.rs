//! Looking up endpoints, judging their frames, and building their tables.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::bench::pair;
use overlayd::forward::{Carrier, policy};
use overlayd::wire::frame::Frame;
use std::hint::black_box;
use std::net::IpAddr;

fn lookup(c: &mut Criterion) {
    for (name, by_ip) in [("forward/by_mac", false), ("forward/by_ip", true)] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        for endpoints in [10, 1_000, 100_000] {
            let network = pair::network(endpoints, 0);
            let Carrier::Esp(directory) = network.carrier() else { panic!("an encrypted network") };
            let mut endpoint = 0u32;
            group.bench_function(BenchmarkId::from_parameter(endpoints), |b| {
                b.iter(|| {
                    // A stride that no cache foresees.
                    endpoint = endpoint.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let wanted = endpoint % endpoints;
                    if by_ip {
                        directory.by_ip(black_box(IpAddr::V4(pair::ip(1, wanted)))).is_some()
                    } else {
                        directory.by_mac(black_box(pair::mac(1, wanted))).is_some()
                    }
                });
            });
        }
        group.finish();
    }
}

fn judge(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward/policy");
    group.throughput(Throughput::Elements(1));
    let frame = pair::frame(1400);
    let frame = Frame::parse(&frame).expect("a right one");
    for endpoints in [10, 1_000, 100_000] {
        // As the sender's node sees the network, and as the receiver's does.
        let [sender, receiver] = [0, 1].map(|node| pair::network(endpoints, node));
        let (Carrier::Esp(sender), Carrier::Esp(receiver)) = (sender.carrier(), receiver.carrier()) else {
            panic!("encrypted networks")
        };
        let row = sender.by_mac(pair::mac(0, 0)).expect("the sender");
        group.bench_function(BenchmarkId::new("outward", endpoints), |b| {
            b.iter(|| policy::outward(sender, black_box(row), black_box(&frame)))
        });
        group.bench_function(BenchmarkId::new("inward", endpoints), |b| {
            b.iter(|| policy::inward(receiver, black_box(pair::LINK), black_box(&frame)))
        });
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward/build");
    group.sample_size(10);
    for endpoints in [10, 1_000, 100_000] {
        group.throughput(Throughput::Elements(endpoints.into()));
        group.bench_function(BenchmarkId::from_parameter(endpoints), |b| {
            b.iter(|| pair::network(black_box(endpoints), 0))
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, judge, build);
criterion_main!(benches);
