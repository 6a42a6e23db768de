//! Looking up endpoints, and building their tables.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use overlayd::bench::pair;
use overlayd::forward::Carrier;
use std::hint::black_box;
use std::net::IpAddr;

fn lookup(c: &mut Criterion) {
    for (name, by_ip) in [("forward/by_mac", false), ("forward/by_ip", true)] {
        let mut group = c.benchmark_group(name);
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

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward/build");
    group.sample_size(10);
    for endpoints in [10, 1_000, 100_000] {
        group.bench_function(BenchmarkId::from_parameter(endpoints), |b| {
            b.iter(|| pair::network(black_box(endpoints), 0))
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, build);
criterion_main!(benches);
