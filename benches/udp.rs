//! UDP over loopback: a run of datagrams sent and received, with the kernel's offloads and without.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::io::udp::{RecvRing, UdpOptions, UdpSocket};

fn there(c: &mut Criterion) {
    let mut group = c.benchmark_group("udp/there");
    for (name, segmentation, coalescing) in
        [("gso_and_gro", true, true), ("gso", true, false), ("neither", false, false)]
    {
        for len in [160, 1_500] {
            let options = UdpOptions { segmentation, coalescing, ..UdpOptions::default() };
            let [sender, receiver] = [(); 2].map(|()| socket(&options));
            let to = receiver.local_addr().expect("a bound socket");
            let (run, mut ring) = (vec![0x5a; RUN * len], RecvRing::new());
            let segment = u16::try_from(len).expect("a datagram");
            group
                .throughput(Throughput::ElementsAndBytes { elements: RUN as u64, bytes: (RUN * len) as u64 });
            group.bench_function(BenchmarkId::new(name, len), |b| {
                b.iter(|| {
                    let sent = sender.send_run(to, &run, segment).expect("loopback takes it");
                    let mut arrived = 0;
                    // Loopback delivers before sending returns.
                    while arrived < sent.datagrams && receiver.recv(&mut ring).expect("a socket") > 0 {
                        arrived += ring.datagrams().count();
                    }
                    assert_eq!(arrived, RUN);
                });
            });
        }
    }
    group.finish();
}

fn socket(options: &UdpOptions) -> UdpSocket {
    UdpSocket::bind(([127, 0, 0, 1], 0).into(), options).expect("a free port of loopback")
}

/// Datagrams of a run.
const RUN: usize = 32;

criterion_group!(benches, there);
criterion_main!(benches);
