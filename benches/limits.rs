//! What holds containers to their limits: the rates in both directions, and floods above theirs.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use overlayd::bench::pair::{self, NOW, PORT};
use overlayd::datapath::{
    Admission, Context, Delivery, Egress, Encapsulated, FloodLimit, LaneCounters, Merging, Notice, Outlet,
    RateLimit, Run, Shaper,
};
use overlayd::drop_reason::DropReason;
use overlayd::forward::TablesBuilder;
use overlayd::id::{NetSlot, PortSlot};
use overlayd::rate::Rate;
use overlayd::sa::Sealed;
use overlayd::wire::vnet_hdr::VnetHeader;

use timing::{BATCH, each_batch, frames, time};

mod timing;

/// What a lane does for each frame that it reads of a container with a rate limit, and for one that it
/// lets lie in the TAP.
fn egress_rate(c: &mut Criterion) {
    let mut group = c.benchmark_group("limits/egress_rate");
    group.throughput(frames(1, LEN));
    let (limit, mut now) = (limit(), NOW);
    group.bench_function("charged", |b| {
        b.iter(|| {
            now = now + FRAME_TIME;
            assert!(limit.is_open(now));
            limit.charge(LEN, now);
        });
    });
    limit.charge(SPENT, now);
    group.bench_function("left_lying", |b| b.iter(|| assert!(!limit.is_open(now))));
    group.finish();
}

/// What a container with a rate limit is sent: below the rate; above it, in the queue and out again;
/// and when the queue is full.
fn ingress_rate(c: &mut Criterion) {
    let mut group = c.benchmark_group("limits/ingress_rate");
    for len in [64, 1400, 58_900] {
        let frame = vec![0x5a; len];
        group.throughput(frames(BATCH, len));
        let admit = |shaper: &mut Shaper, now| shaper.admit(&VnetHeader::COMPLETE, &[&frame], now);
        let mut shaper = Shaper::new(limit());
        let mut now = NOW;
        group.bench_function(BenchmarkId::new("passes", len), |b| {
            each_batch(b, || {
                now = now + LONG_AFTER;
                time(|| {
                    for _ in 0..BATCH {
                        assert_eq!(admit(&mut shaper, now), Admission::Pass);
                        now = now + FRAME_TIME * 50;
                    }
                })
            });
        });
        let limit = limit();
        let mut shaper = Shaper::new(Arc::clone(&limit));
        group.bench_function(BenchmarkId::new("waits", len), |b| {
            each_batch(b, || {
                limit.charge(SPENT, now);
                let came = time(|| {
                    (0..BATCH).for_each(|_| assert_eq!(admit(&mut shaper, now), Admission::Wait));
                });
                now = now + LONG_AFTER;
                let went = time(|| {
                    for _ in 0..BATCH {
                        let (_, pieces) = shaper.due(now).expect("the first that waits");
                        assert_eq!(pieces[0].len() + pieces[1].len(), len);
                        assert_eq!(shaper.release(now), (1, len));
                        now = now + FRAME_TIME * 50;
                    }
                });
                assert_eq!(shaper.waiting(), 0);
                came + went
            });
        });
        limit.charge(SPENT, now);
        while admit(&mut shaper, now) == Admission::Wait {}
        group.bench_function(BenchmarkId::new("refused", len), |b| {
            b.iter(|| (0..BATCH).for_each(|_| assert_eq!(admit(&mut shaper, now), Admission::Refuse)));
        });
    }
    group.finish();
}

/// Broadcast above a container's limit, which goes no further than the policy.
fn flood(c: &mut Criterion) {
    let tables = TablesBuilder::default().network(NetSlot::new(0), Arc::new(pair::network(1_000, 0))).build();
    let counters = LaneCounters::new();
    let cx = Context { tables: &tables, counters: &counters, now: NOW };
    let mut egress = Egress::new(FloodLimit { frames_per_second: 1, burst: 0 });
    let frame = pair::broadcast(64);
    let mut batch = || {
        for _ in 0..BATCH {
            egress.reserve(&tables, PORT, &mut Nowhere).fill(&frame);
            egress.submit(&cx, PORT, &VnetHeader::COMPLETE, frame.len(), &mut Nowhere);
        }
    };
    batch();
    let mut group = c.benchmark_group("limits/flood");
    group.throughput(frames(BATCH, frame.len()));
    group.bench_function("dropped", |b| b.iter(&mut batch));
    group.finish();
    assert_eq!(counters.dropped(DropReason::FloodRateLimited), counters.port(PORT).frames_sent);
}

/// Where nothing comes to.
struct Nowhere;

impl Outlet for Nowhere {
    fn send_esp(&mut self, _: &Run<'_, Sealed>) {
        panic!("what is above the limit was sent");
    }

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {
        panic!("what is above the limit was sent");
    }

    fn deliver(&mut self, _: PortSlot, _: &VnetHeader, _: &[&[u8]]) -> Delivery {
        panic!("what is above the limit was delivered");
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging::default()
    }

    fn notice(&mut self, _: Notice) {}
}

fn limit() -> Arc<RateLimit> {
    let rate: Rate = "1gbit".parse().expect("a rate");
    Arc::new(RateLimit::new(rate))
}

const LEN: usize = 1_400;
/// Above what a frame of that length takes at the rate.
const FRAME_TIME: Duration = Duration::from_micros(12);
/// Octets that the rate carries in ten seconds.
const SPENT: usize = 1_250_000_000;
const LONG_AFTER: Duration = Duration::from_secs(20);

criterion_group!(benches, egress_rate, ingress_rate, flood);
criterion_main!(benches);
