//! What the datapath changes in frames, and answers itself: segment sizes of SYNs, congestion marks
//! (RFC 6040), packets that are too big. Each beside the same frame that needs nothing.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use overlayd::bench::pair::{self, PLAIN, PLAIN_PORT, PORT, Pair};
use overlayd::drop_reason::DropReason;
use overlayd::id::Vni;
use overlayd::sa::Suite;
use overlayd::wire::vnet_hdr::VnetHeader;
use overlayd::wire::{checksum, vxlan};

use packets::{syn, udp6};
use timing::{BATCH, each_batch, frames, time};

mod packets;
mod timing;

/// The sender's container hears of each packet, as far as it may be told.
fn too_big(c: &mut Criterion) {
    let mut group = c.benchmark_group("rewriting/too_big");
    let ipv4 = pair::frame(9_100);
    let ipv6 = udp6(PLAIN, 9_100);
    for (name, port, frame, pause) in [
        ("icmp", PORT, &ipv4, ANSWERS_EARNED),
        ("icmpv6", PLAIN_PORT, &ipv6, ANSWERS_EARNED),
        ("above_the_limit_of_answers", PORT, &ipv4, Duration::ZERO),
    ] {
        let mut pair = pair();
        // The burst is used up.
        pair.send_from(port, &VnetHeader::COMPLETE, frame, 1_000);
        let answers = if pause.is_zero() { 0 } else { BATCH };
        let mut batch = || {
            pair.advance(pause);
            let (answered, dropped) = (pair.answered(), pair.counters().dropped(DropReason::FrameTooBig));
            let took = time(|| pair.send_from(port, &VnetHeader::COMPLETE, frame, BATCH));
            assert_eq!((pair.answered(), pair.on_the_wire()), (answered + answers, 0));
            assert_eq!(pair.counters().dropped(DropReason::FrameTooBig), dropped + BATCH as u64);
            took
        };
        group.throughput(frames(BATCH, frame.len()));
        group.bench_function(name, |b| each_batch(b, &mut batch));
    }
    group.finish();
}

/// In the plain network, where one sees what leaves, and where kernels send that clamp nothing.
fn segment_size(c: &mut Criterion) {
    let mut group = c.benchmark_group("rewriting/syn");
    for (name, size) in [("fits", LARGEST), ("clamped", 65_000)] {
        let frame = syn(PLAIN, size);
        group.throughput(frames(BATCH, frame.len()));
        let mut pair = pair();
        group.bench_function(BenchmarkId::new("egress", name), |b| {
            each_batch(b, || {
                let took = time(|| pair.send_from(PLAIN_PORT, &VnetHeader::COMPLETE, &frame, BATCH));
                let received = pair.receive_changed(|packet| {
                    assert_eq!(size_of(&packet[vxlan::HEADER_LEN..]), LARGEST);
                });
                assert_eq!(received, BATCH);
                took
            });
        });
        let mut from_kernel = vec![0; vxlan::HEADER_LEN];
        vxlan::write_header(&mut from_kernel, Vni::new(9).expect("in range"), None);
        from_kernel.extend_from_slice(&frame);
        pair.throw(&from_kernel, 1);
        assert_eq!(pair.receive_seen(|frame| assert_eq!(size_of(frame), LARGEST)), 1);
        group.bench_function(BenchmarkId::new("ingress", name), |b| {
            each_batch(b, || {
                pair.throw(&from_kernel, BATCH);
                time(|| assert_eq!(pair.receive(), BATCH))
            });
        });
    }
    group.finish();
}

/// Shown outside where the frame has it, and carried into the frame where the underlay set it.
fn congestion(c: &mut Criterion) {
    let mut group = c.benchmark_group("rewriting/ecn");
    for (name, inner, is_congested, expected) in [
        ("not_capable", NOT_ECT, false, NOT_ECT),
        ("capable", ECT_0, false, ECT_0),
        ("congested", ECT_0, true, CE),
    ] {
        let frame = classed(pair::frame(LEN), inner);
        let mut pair = pair();
        let mut batch = || {
            let sent = time(|| pair.send(&frame, BATCH));
            if is_congested {
                // It marks what says outside that it is capable, and nothing else.
                pair.congest();
            }
            (sent, time(|| assert_eq!(pair.receive(), BATCH)))
        };
        group.throughput(frames(BATCH, LEN));
        if !is_congested {
            group.bench_function(BenchmarkId::new("egress", name), |b| each_batch(b, || batch().0));
        }
        group.bench_function(BenchmarkId::new("ingress", name), |b| each_batch(b, || batch().1));
        pair.send(&frame, 1);
        if is_congested {
            pair.congest();
        }
        assert_eq!(pair.receive_seen(|frame| assert_eq!(frame[CLASS], expected)), 1);
        // Whether it is shown outside: else nothing would mark it.
        pair.send(&frame, 1);
        pair.congest();
        let marked = if inner == NOT_ECT { NOT_ECT } else { CE };
        assert_eq!(pair.receive_seen(|frame| assert_eq!(frame[CLASS], marked)), 1);
    }
    group.finish();
}

fn pair() -> Pair {
    Pair::new(Suite::Aes256Gcm, 1_000)
}

/// The segment size that a SYN announces.
fn size_of(syn: &[u8]) -> u16 {
    u16::from_be_bytes([syn[56], syn[57]])
}

/// The IPv4 frame with another class.
fn classed(mut frame: Vec<u8>, class: u8) -> Vec<u8> {
    frame[CLASS] = class;
    frame[24..26].fill(0);
    let sum = checksum::plain(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Where the class of an IPv4 packet lies in its frame.
const CLASS: usize = 15;
const NOT_ECT: u8 = 0b00;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;
const LEN: usize = 1_400;
/// What fits into the network's MTU of 9,000 behind IPv4 and TCP.
const LARGEST: u16 = 8_960;
/// More than it takes to earn the answers to a batch.
const ANSWERS_EARNED: Duration = Duration::from_secs(1);

criterion_group!(benches, too_big, segment_size, congestion);
criterion_main!(benches);
