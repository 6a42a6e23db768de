//! Overload: what a flood loses is counted, all of it.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::io::{self, Write as _};

use overlayd::lab::{Underlay, eventually, udp_blast};

use support::swarm::{Family, PATIENCE, Swarm};
use support::test_program;

test_program! {
    one at a time:
    every_datagram_of_a_flood_is_delivered_or_counted
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
