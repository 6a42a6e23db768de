//! The replay window: one check and one acceptance, for packets in order, out of order, and after
//! losses.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use overlayd::sa::ReplayWindow;

fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(1));
    let patterns: [(&str, Pattern); 3] =
        [("in_order", |n| n), ("pairs_swapped", |n| n ^ 1), ("every_hundredth", |n| n.wrapping_mul(100))];
    for (name, sequence_of) in patterns {
        group.bench_function(name, |bencher| {
            let mut window = ReplayWindow::new();
            let mut n = 1;
            bencher.iter(|| {
                let sequence = sequence_of(n);
                n = n.wrapping_add(1);
                let verdict = window.check(sequence);
                if verdict.is_ok() {
                    window.accept(sequence);
                }
                verdict
            });
        });
    }
}

/// The sequence number of the n-th packet.
type Pattern = fn(u32) -> u32;

criterion_group!(benches, replay);
criterion_main!(benches);
