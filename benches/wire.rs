//! Reading and writing headers, and what is changed in frames.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::bench::pair;
use overlayd::id::{MacAddr, Vni};
use overlayd::wire::checksum::Sum;
use overlayd::wire::traffic_class::{Dscp, TrafficClass};
use overlayd::wire::{arp, esp, frame::Frame, icmp, mss, ndp, udp, vxlan};
use std::hint::black_box;
use std::net::Ipv6Addr;

mod packets;

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/parse");
    group.throughput(Throughput::Elements(1));
    let udp4 = pair::frame(1400);
    group.bench_function("frame_ipv4_udp", |b| {
        b.iter(|| Frame::parse(black_box(&udp4)).map(|frame| frame.flow_hash()))
    });
    let mut advertisement = [0; ndp::ADVERTISEMENT_LEN];
    reply().write_frame(&mut advertisement);
    group.bench_function("frame_neighbor_advertisement", |b| {
        b.iter(|| Frame::parse(black_box(&advertisement)))
    });
    let mut vxlan_header = [0; 8];
    vxlan::write_header(&mut vxlan_header, Vni::new(7).expect("in range"), None);
    group.bench_function("vxlan", |b| {
        b.iter(|| vxlan::parse(black_box(&vxlan_header)).map(|packet| packet.vni))
    });
    let packet = [1; 100];
    group.bench_function("esp_classify", |b| b.iter(|| esp::classify(black_box(&packet))));
    group.finish();
}

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/write");
    group.throughput(Throughput::Elements(1));
    let vni = Vni::new(7).expect("in range");
    let mut headers = [0; 16];
    group.bench_function("inner_udp_and_vxlan", |b| {
        b.iter(|| {
            udp::write_header(black_box(&mut headers), udp::entropy_port(black_box(99)), vxlan::PORT, 1408);
            vxlan::write_header(black_box(&mut headers[8..]), vni, None);
        });
    });
    let mut frame = [0; 96];
    let request = arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: pair::mac(0, 0),
        sender_ip: pair::ip(0, 0),
        target_mac: MacAddr::new([0; 6]),
        target_ip: pair::ip(1, 0),
    };
    group.bench_function("arp_reply", |b| {
        b.iter(|| request.answer(pair::mac(1, 0)).write_frame(request.sender_mac, black_box(&mut frame)))
    });
    group.bench_function("neighbor_advertisement", |b| b.iter(|| reply().write_frame(black_box(&mut frame))));
    group.finish();
}

/// What `datapath` has these look at in each frame, and what they change in few.
fn rewrite(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/rewrite");
    group.throughput(Throughput::Elements(1));
    let mut data = pair::frame(1400);
    group
        .bench_function("segment_size_of_no_syn", |b| b.iter(|| mss::clamp(black_box(&mut data), MTU, true)));
    let syn: [u8; 58] = packets::syn(0, 8_960).try_into().expect("headers and one option");
    let mut clamped = syn;
    mss::clamp(&mut clamped, MTU, true);
    assert_ne!(clamped, syn);
    group.bench_function("segment_size_of_a_syn", |b| {
        b.iter(|| {
            let mut frame = black_box(syn);
            mss::clamp(&mut frame, MTU, true);
            frame
        });
    });
    group.bench_function("class_of_a_frame", |b| {
        b.iter(|| TrafficClass::of_frame(black_box(&data)).outer(black_box(Dscp::Copied)))
    });
    group.bench_function("mark_of_none", |b| {
        b.iter(|| black_box(TrafficClass::ZERO).enter(black_box(&mut data)))
    });
    data[15] = 0b10;
    let capable: [u8; 64] = *data.first_chunk().expect("a frame");
    let congested = TrafficClass::new(0b11);
    let mut marked = capable;
    assert_eq!((congested.enter(&mut marked), marked[15]), (Ok(()), 0b11));
    group.bench_function("mark_of_congestion", |b| {
        b.iter(|| {
            let mut frame = black_box(capable);
            let entered = black_box(congested).enter(&mut frame);
            (frame, entered)
        });
    });
    group.finish();
}

/// The answers to packets that are too big, which quote them.
fn too_big(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/too_big");
    group.throughput(Throughput::Elements(1));
    let ipv4 = pair::frame(1400);
    let ipv6 = packets::udp6(0, 1_462);
    let mut answer = [0; icmp::TOO_BIG_ROOM];
    for (name, frame) in [("icmp", &ipv4), ("icmpv6", &ipv6)] {
        assert!(icmp::write_too_big(frame, 1280, &mut answer).is_some());
        group.bench_function(name, |b| {
            b.iter(|| icmp::write_too_big(black_box(frame), 1280, black_box(&mut answer)))
        });
    }
    group.finish();
}

/// Of TCP and UDP: each is computed where a super-frame is cut, and verified before frames are merged.
fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/checksum");
    for len in [64, 1400, 58_900] {
        let bytes = vec![0x5a; len];
        group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes: len as u64 });
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| Sum::ZERO.plus(black_box(&bytes)).folded());
        });
    }
    group.finish();
}

const MTU: u16 = 1_408;

fn reply() -> ndp::Advertisement {
    let (owner, asker) = (pair::mac(1, 0), pair::mac(0, 0));
    ndp::Advertisement {
        target: owner.link_local(),
        owner,
        router: false,
        asker,
        asker_ip: Ipv6Addr::from_bits(1),
    }
}

criterion_group!(benches, parse, write, rewrite, too_big, checksum);
criterion_main!(benches);
