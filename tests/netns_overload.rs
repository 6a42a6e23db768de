//! Overload: a flood leaves others their share, and what it loses is counted, all of it.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::lab::{Underlay, eventually, udp_blast};

use support::long_stream::Stream;
use support::swarm::{Attached, Family, PATIENCE, Swarm};
use support::{tell, test_program};

test_program! {
    one at a time:
    stream_keeps_a_third_of_its_rate_beside_the_flood_of_another_container
    every_datagram_of_a_flood_is_delivered_or_counted
}

/// Two processors have to do for the stream, the flood, whoever sends and receives them and both agents; so of
/// the rate that the stream has alone, a third has to remain.
fn stream_keeps_a_third_of_its_rate_beside_the_flood_of_another_container() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let (from, to) = (swarm.attach(1, "red", "flooder"), swarm.attach(2, "red", "flooded"));
    swarm.assert_joined(&from, &to);
    let stream = Stream::start(&containers[0], &containers[1]);
    let rate = || stream.rate(SETTLED, MEASURED);
    for payload in [64, 1_300] {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        // Where the machine is busy otherwise too, a few rounds prove nothing.
        while alone.len() < LEAST_ROUNDS || median(&beside) < median(&alone) / 3 {
            let told = format!("payload {payload}: {alone:?} bit/s, beside the flood {beside:?}");
            assert!(alone.len() < MOST_ROUNDS, "{told}\n{}", swarm.drops());
            alone.push(rate());
            beside.push(flooded(&from, &to, payload, rate));
        }
        tell(&format!("payload {payload}: {} bit/s, beside the flood {}", median(&alone), median(&beside)));
    }
}

/// Where no device merges datagrams, the kernel's count of them is exact too.
fn every_datagram_of_a_flood_is_delivered_or_counted() {
    const COUNT: u64 = 60_000;
    let underlay = Underlay { segment_offload: false, ..Underlay::default() };
    let swarm = Swarm::formed(2, Family::V4, underlay);
    swarm.create(&["--encrypted", "--subnet", support::swarm::V4_SUBNET, "red"]);
    let (from, to) = (swarm.attach_quietly(1, "red", "c1"), swarm.attach_quietly(2, "red", "c2"));
    swarm.await_keys(1);
    let address = to.address(Family::V4);
    assert!(eventually(PATIENCE, || from.pings(address, 1)));
    let counted = || {
        let drops = swarm.agents.iter().flat_map(|agent| agent.stats().drops);
        let by_agents: u64 = drops.map(|drop| drop.packets).sum();
        by_agents + from.tx_dropped() + to.overflown() as u64
    };
    let before = counted();
    let (source, sink) = (from.container.namespace(), to.container.namespace());
    let report = udp_blast(source, sink, address, &[0x5a; 64], COUNT).unwrap();
    assert_eq!(report.sent, COUNT);
    let lost = counted() - before;
    let _ = writeln!(io::stderr(), "{report:?}, {lost} counted\n{}", swarm.drops());
    assert_eq!(report.received + lost, COUNT, "{}", swarm.drops());
}

/// What is seen while a container sends datagrams to another as fast as its kernel takes them.
fn flooded<T>(from: &Attached, to: &Attached, payload: usize, seen: impl FnOnce() -> T) -> T {
    let bind = |container: &Attached| {
        let address = SocketAddr::new(container.address(Family::V4), 0);
        container.container.run_in(|| UdpSocket::bind(address)).unwrap().unwrap()
    };
    let (source, sink, done) = (bind(from), bind(to), AtomicBool::new(false));
    source.connect(sink.local_addr().unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = source.send(&[0x5a; 1_400][..payload]);
            }
        });
        let seen = seen();
        done.store(true, Ordering::Relaxed);
        seen
    })
}

fn median(rates: &[u64]) -> u64 {
    let mut rates = rates.to_vec();
    rates.sort_unstable();
    rates[rates.len() / 2]
}

const LEAST_ROUNDS: usize = 5;
const MOST_ROUNDS: usize = 20;
const SETTLED: Duration = Duration::from_millis(150);
const MEASURED: Duration = Duration::from_millis(300);
