//! Frames into a container's kernel and out of it. Needs root, or the right to make namespaces.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use overlayd::bench::pair;
use overlayd::id::{IfName, LaneCount};
use overlayd::io::clock::boot_time;
use overlayd::io::container_port::{ContainerPort, TapQueue};
use overlayd::io::netlink::Netlink;
use overlayd::io::packet::PacketSocket;
use overlayd::io::tap::Tap;
use overlayd::lab::{Container, Lab, Underlay};
use overlayd::wire::vnet_hdr::VnetHeader;

fn main() {
    // Before the first thread.
    Lab::enter().expect("namespaces and /dev/net/tun");
    benches();
    Criterion::default().configure_from_args().final_summary();
}

/// The container's kernel drops them: they are for an address that it does not have.
fn write(c: &mut Criterion) {
    let (_lab, _container, tap) = container();
    let mut group = c.benchmark_group("tap/write");
    let (super_header, super_frame) = pair::super_frame(pair::SUPER_FRAME_PAYLOAD, pair::SEGMENT);
    for (name, header, frame) in [
        ("64", VnetHeader::COMPLETE, pair::frame(64)),
        ("1400", VnetHeader::COMPLETE, pair::frame(1400)),
        ("super_frame", super_header, super_frame),
    ] {
        group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes: frame.len() as u64 });
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| assert!(tap.write_frame(&header, &[&frame]).expect("a TAP")));
        });
    }
    group.finish();
}

/// The frames are sent by a raw socket in the container; sending is not timed.
fn read(c: &mut Criterion) {
    let (_lab, container, tap) = container();
    let raw = container.run_in(|| {
        let interface = Netlink::here().and_then(|netlink| netlink.link(&eth0())).expect("an interface");
        PacketSocket::open(interface.index).expect("a raw socket")
    });
    let raw = raw.expect("a namespace");
    let mut group = c.benchmark_group("tap/read");
    let mut place = vec![0; 2_048];
    for len in [64, 1400] {
        let frame = pair::frame(len);
        group
            .throughput(Throughput::ElementsAndBytes { elements: BATCH as u64, bytes: (BATCH * len) as u64 });
        let mut batch = || {
            (0..BATCH).for_each(|_| raw.send(&frame).expect("the TAP's queue has room"));
            let begin = boot_time();
            while tap.read_frame(&mut place, &mut []).expect("a TAP").is_some() {}
            boot_time().since(begin)
        };
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter_custom(|iterations| (0..iterations).map(|_| batch()).sum::<Duration>());
        });
    }
    group.finish();
}

fn container() -> (Lab, Container, Tap) {
    let lab = Lab::two_hosts(Underlay::default()).expect("a laboratory");
    let container = lab.host(1).container("bench").expect("a namespace");
    let port = ContainerPort {
        name: eth0(),
        mac: pair::mac(1, 0),
        mtu: 1408,
        addresses: Vec::new(),
        gateways: Vec::new(),
        queue: TapQueue::default(),
        alias: String::new(),
    };
    let mut queues = port.create(container.namespace(), LaneCount::ONE).expect("an interface");
    (lab, container, queues.remove(0))
}

fn eth0() -> IfName {
    "eth0".parse().expect("an interface name")
}

/// Fewer than the queue of a TAP holds.
const BATCH: usize = 32;

criterion_group!(benches, write, read);
