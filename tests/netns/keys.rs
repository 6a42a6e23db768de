//! Keys between real agents: every suite, renewal under load, limits, and refusals that are told.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use overlayd::api::types::PeerState;
use overlayd::drop_reason::DropReason;
use overlayd::lab::{Ping, Underlay, eventually, tcp_throughput};
use rustix::process::Signal;

use crate::support::frames::{self, datagrams};
use crate::support::swarm::{Attached, Family, Swarm, V4_SUBNET};
use crate::support::tests;

tests! {
    every_suite_carries_traffic
    keys_are_renewed_under_load_without_a_loss
    packets_beyond_the_hard_limit_never_leave
    nodes_without_a_common_suite_say_so_and_send_nothing
    restarted_peer_gets_new_keys_and_old_packets_of_it_are_worthless
}

fn every_suite_carries_traffic() {
    for suite in ["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"] {
        let (swarm, containers) = pair_with(&format!("suites = [\"{suite}\"]"));
        let [one, two] = containers.as_slice() else { unreachable!("two containers") };
        swarm.assert_joined(one, two);
        let (from, to) = (one.container.namespace(), two.container.namespace());
        let report = tcp_throughput(from, to, two.address(Family::V4), Duration::from_millis(200)).unwrap();
        assert!(report.bytes > 100_000, "{suite}: {report:?}");
        for agent in &swarm.agents {
            let used = agent.peers().peers[0].suite.map(|used| used.to_string());
            assert_eq!(used.as_deref(), Some(suite));
            assert_eq!(agent.dropped(DropReason::AuthenticationFailed), 0);
        }
    }
}

fn keys_are_renewed_under_load_without_a_loss() {
    let (swarm, containers) = pair_with("[limits]\nsoft_packets = 100");
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    swarm.assert_joined(one, two);
    // But for the containers' asking for routers.
    let drops = || {
        let all = swarm.agents.iter().flat_map(|agent| agent.stats().drops);
        all.filter(|drop| drop.reason != DropReason::UnknownNeighbor).collect::<Vec<_>>()
    };
    let before = drops();
    let mut seen = BTreeSet::new();
    let (series, to) = (Ping { count: 1000, interval: Duration::from_millis(1), ..Ping::default() }, two);
    let report = std::thread::scope(|scope| {
        let pings = scope.spawn(|| series.run(one.container.namespace(), to.address(Family::V4)).unwrap());
        while !pings.is_finished() {
            let peers = swarm.agent(1).peers().peers;
            assert!(peers[0].inbound_spis.len() <= 2, "more than two generations: {peers:?}");
            seen.extend(peers[0].outbound_spis.iter().copied());
        }
        pings.join().unwrap()
    });
    assert!(report.is_complete(), "{} of {} answered\n{}", report.received(), report.sent, swarm.drops());
    assert!(seen.len() >= 3, "{} keys for {} packets", seen.len(), report.sent);
    assert_eq!(drops(), before);
}

fn packets_beyond_the_hard_limit_never_leave() {
    let swarm = agents_with("[limits]\nsoft_packets = 100\nhard_packets = 200");
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "red"]);
    // Every frame is counted, so the containers may send none by themselves.
    let [one, two] = &[1, 2].map(|number| swarm.attach_quietly(number, "red", &format!("c{number}")));
    swarm.await_keys(1);
    swarm.assert_joined(one, two);
    let wire = swarm.capture(2);
    swarm.agent(1).signal(Signal::STOP);
    // Until then the keys may be renewed; then nobody is there to renew them with.
    let exhausted = || {
        send(two, one, 20);
        swarm.agent(2).dropped(DropReason::SaExhausted) > 0
    };
    assert!(eventually(Duration::from_secs(10), exhausted), "{:?}", swarm.agent(2).stats());
    let before = swarm.agent(2).dropped(DropReason::SaExhausted);
    // The frames before may still be under way.
    let settled = || swarm.agent(2).dropped(DropReason::SaExhausted) == before;
    eventually(Duration::from_millis(300), || !settled());
    let before = swarm.agent(2).dropped(DropReason::SaExhausted);
    send(two, one, 500);
    let dropped = || swarm.agent(2).dropped(DropReason::SaExhausted) - before;
    eventually(Duration::from_secs(5), || dropped() >= 500);
    assert_eq!(dropped(), 500);
    let last = datagrams(&wire.stop().unwrap()).iter().filter_map(|d| d.esp()).map(|(_, seq)| seq).max();
    assert_eq!(last, Some(200), "the last sequence number on the wire");
    swarm.agent(1).signal(Signal::CONT);
    swarm.assert_joined(one, two);
}

fn nodes_without_a_common_suite_say_so_and_send_nothing() {
    let swarm = Swarm::pair();
    let config = swarm.dir().join("config.toml");
    std::fs::write(&config, "suites = [\"aes-128-gcm\"]").unwrap();
    swarm.agent(2).kill();
    swarm.agent(2).spawn(swarm.lab.host(2), &["--config", config.to_str().unwrap()]);
    swarm.agent(2).await_ready();
    swarm.create_encrypted("red");
    let (one, two) = (swarm.attach(1, "red", "c1"), swarm.attach(2, "red", "c2"));
    let wire = swarm.capture(1);
    for agent in &swarm.agents {
        let told = || agent.peers().peers.iter().any(|peer| peer.failure.is_some());
        assert!(eventually(Duration::from_secs(10), told), "{:?}", agent.peers());
        let peer = &agent.peers().peers[0];
        assert_ne!(peer.state, PeerState::Established);
        let failure = peer.failure.as_ref().unwrap();
        assert!(failure.contains("suite"), "{failure}");
    }
    let before = swarm.agent(1).dropped(DropReason::NoKey);
    send(&one, &two, 100);
    assert!(eventually(Duration::from_secs(5), || swarm.agent(1).dropped(DropReason::NoKey) >= before + 100));
    assert!(datagrams(&wire.stop().unwrap()).is_empty());
}

fn restarted_peer_gets_new_keys_and_old_packets_of_it_are_worthless() {
    let (swarm, containers) = pair_with("");
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    swarm.assert_joined(one, two);
    let wire = swarm.capture(1);
    swarm.assert_reaches(two, one, Duration::from_secs(5));
    let mut old: Vec<_> = wire.stop().unwrap();
    let from = swarm.lab.host(2).v4();
    old.retain(|frame| {
        datagrams(std::slice::from_ref(frame)).iter().any(|d| d.from.ip() == from && d.esp().is_some())
    });
    old.iter_mut().for_each(|frame| frame[40..42].fill(0));
    assert!(old.len() >= 6);

    let spis = swarm.agent(1).peers().peers[0].inbound_spis.clone();
    swarm.agent(2).kill();
    swarm.start(2);
    swarm.assert_joined(one, two);
    let renewed = swarm.agent(1).peers().peers[0].inbound_spis.clone();
    assert!(renewed.iter().all(|spi| !spis.contains(spi)), "the keys of a dead agent are kept: {renewed:?}");
    let before = swarm.agent(1).dropped(DropReason::UnknownSpi);
    let interface = overlayd::lab::Host::underlay_name();
    frames::send(swarm.lab.host(2).namespace(), &interface, &old);
    let dropped = || swarm.agent(1).dropped(DropReason::UnknownSpi) - before;
    eventually(Duration::from_secs(5), || dropped() >= old.len() as u64);
    assert_eq!(dropped(), old.len() as u64);
    swarm.assert_joined(one, two);
}

/// Two hosts whose agents have a configuration, with an encrypted network and a container on each.
fn pair_with(config: &str) -> (Swarm, Vec<Attached>) {
    agents_with(config).with_containers()
}

/// Two hosts in one cluster whose agents have a configuration.
fn agents_with(config: &str) -> Swarm {
    let underlay = Underlay { segment_offload: false, ..Underlay::default() };
    let swarm = Swarm::unformed_configured(2, underlay, config);
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm
}

/// Sends frames to the other container, as it would answer to.
fn send(from: &Attached, to: &Attached, count: usize) {
    let [source, destination] = [from, to].map(|end| SocketAddr::new(end.address(Family::V4), 7));
    let frame = frames::udp((from.mac(), to.mac()), source, destination, b"a frame");
    frames::send(from.container.namespace(), from.ifname(), &vec![frame; count]);
}
