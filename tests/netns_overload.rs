//! Overload: a container that floods does not starve its neighbours, and what is lost is counted.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::lab::{Underlay, eventually, udp_blast};

use support::stream_rate::stream_rate;
use support::swarm::{Attached, Family, PATIENCE, Swarm};
use support::test_program;

test_program! {
    one at a time:
    stream_keeps_a_third_of_its_rate_beside_a_flood_of_short_datagrams
    every_datagram_of_a_flood_is_delivered_or_counted
}

/// Two containers of one host send to two of the other, one as many datagrams as it can.
fn stream_keeps_a_third_of_its_rate_beside_a_flood_of_short_datagrams() {
    let payload = 64;
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let [flooder, sender] = ["flooder", "sender"].map(|name| swarm.attach(1, "red", name));
    let [flooded, receiver] = ["flooded", "receiver"].map(|name| swarm.attach(2, "red", name));
    swarm.await_keys(1);
    swarm.assert_joined(&sender, &receiver);
    swarm.assert_joined(&flooder, &flooded);
    let is_kept = (0..TRIES).any(|_| {
        let (alone, beside) = stream_rates(&flooder, &flooded, &sender, &receiver, payload);
        let _ = writeln!(
            io::stderr(),
            "beside a flood of {payload} bytes: {} of {} Mbit/s\n{}",
            beside / 1_000_000,
            alone / 1_000_000,
            swarm.drops()
        );
        beside * 3 >= alone
    });
    assert!(is_kept, "less than a third, {TRIES} times");
}

/// The rate of a stream alone and beside a flood, in bit/s. Each is the mean of some rounds in turn, so
/// that whatever else the machine does falls on both.
fn stream_rates(
    flooder: &Attached,
    flooded: &Attached,
    sender: &Attached,
    receiver: &Attached,
    payload: usize,
) -> (u64, u64) {
    let (mut alone, mut beside) = (0, 0);
    for _ in 0..ROUNDS {
        alone += stream_rate(sender, receiver, ROUND);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| flood(flooder, flooded, payload, &is_over));
            beside += stream_rate(sender, receiver, ROUND);
            is_over.store(true, Ordering::Relaxed);
        });
    }
    (alone / ROUNDS, beside / ROUNDS)
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

fn flood(from: &Attached, to: &Attached, payload: usize, is_over: &AtomicBool) {
    // Nobody reads it: what the flood costs is the network's part alone.
    let sink = to.container.run_in(|| UdpSocket::bind((to.address(Family::V4), 0)).unwrap()).unwrap();
    let any: SocketAddr = ([0, 0, 0, 0], 0).into();
    let source = from.container.run_in(|| UdpSocket::bind(any).unwrap()).unwrap();
    source.connect(sink.local_addr().unwrap()).unwrap();
    let datagram = vec![0x5a; payload];
    while !is_over.load(Ordering::Relaxed) {
        let _ = source.send(&datagram);
    }
}

/// The program that floods takes a processor from the one that sends, which is no doing of the network;
/// how much, the scheduler decides anew each time.
const TRIES: usize = 5;
const ROUNDS: u64 = 3;
const ROUND: Duration = Duration::from_secs(1);
