//! Certificates over the years, on real agents: renewed under traffic, expired, and under clocks that move.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::api::types::{
    InitResponse, JoinResponse, ListNodesResponse, NodeState, RekeyResponse, TokenResponse,
};
use overlayd::io::clock::{boot_time, wall_clock};
use overlayd::lab::{Underlay, eventually};

use crate::support::certificates::{Clock, shift_certificate};
use crate::support::swarm::{Agent, Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    certificates_of_fifteen_seconds_are_renewed_under_traffic_without_a_gap
    life_below_an_hour_is_refused
    expired_node_comes_back_as_what_it_was
    expired_node_that_was_removed_stays_out
    clocks_that_move_two_days_either_way_drop_nothing
    ; soak:
    ten_nodes_with_certificates_of_a_minute_renew_for_an_hour
}

fn certificates_of_fifteen_seconds_are_renewed_under_traffic_without_a_gap() {
    assert_renewals_lose_nothing(3, "15s", 2);
}

fn ten_nodes_with_certificates_of_a_minute_renew_for_an_hour() {
    // One comes after 39 s on the average.
    assert_renewals_lose_nothing(10, "1m", 92);
}

/// Every node renews so many times, while each pings the next all the time.
fn assert_renewals_lose_nothing(nodes: u8, life: &str, times: usize) {
    let (swarm, init) = short_lived(nodes, life);
    for number in 2..=swarm.agents.len() {
        swarm.join(number, &init);
    }
    let (swarm, containers) = swarm.with_containers();
    let pairs: Vec<_> = containers.iter().zip(containers.iter().cycle().skip(1)).collect();
    pairs.iter().for_each(|(from, to)| swarm.assert_joined(from, to));
    let renewals = |agent: &Agent| agent.log().matches("this node's certificate was renewed").count();

    let done = &AtomicBool::new(false);
    let started = boot_time();
    let sent: usize = std::thread::scope(|scope| {
        let pings: Vec<_> = pairs
            .iter()
            .map(|(from, to)| scope.spawn(|| from.pings_until(done, to, Duration::from_millis(10))))
            .collect();
        let enough = || swarm.agents.iter().all(|agent| renewals(agent) >= times);
        let renewed = eventually(Duration::from_mins(75), || {
            std::thread::sleep(Duration::from_millis(200));
            enough()
        });
        done.store(true, Ordering::Relaxed);
        let counts: Vec<_> = swarm.agents.iter().map(renewals).collect();
        assert!(renewed, "{counts:?}");
        let each = pings.into_iter().zip(&pairs).map(|(pings, (from, to))| {
            let (sent, received) = pings.join().unwrap();
            let lost = format!("{} to {}: {received} of {sent}", from.container.name(), to.container.name());
            assert!(sent > 100 && received == sent, "{lost}\n{}", swarm.drops());
            sent
        });
        each.sum()
    });
    let elapsed = boot_time().since(started);
    let counts: Vec<_> = swarm.agents.iter().map(renewals).collect();
    crate::support::tell(&format!(
        "certificates of {life}: {counts:?} renewals in {elapsed:?}, {sent} pings, all answered"
    ));

    // No node lives on what it had before.
    await_ready(&swarm);
    swarm.agent(2).ask::<RekeyResponse>(&["rekey"]);
    swarm.agent(2).kill();
    swarm.start(2);
    swarm.agent(2).await_keys(swarm.agents.len() - 1);
    pairs.iter().for_each(|(from, to)| swarm.assert_joined(from, to));
}

fn life_below_an_hour_is_refused() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let address = swarm.lab.host(1).v4().to_string();
    let refusal = swarm.agent(1).refused(&["init", "--advertise-addr", &address, "--cert-expiry", "59m"]);
    assert!(refusal.contains("certificates live for at least 1h"), "{refusal}");
    assert_eq!(swarm.agent(1).status().cluster, None);
    swarm.agent(1).done(&["init", "--advertise-addr", &address, "--cert-expiry", "1h"]);
}

fn expired_node_comes_back_as_what_it_was() {
    let (swarm, containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    let [_, two, three] = containers.as_slice() else { unreachable!("three containers") };
    swarm.assert_joined(two, three);
    let [before, view] =
        [swarm.agent(2).status().cluster.unwrap().node, swarm.agent(3).status().cluster.unwrap().node];
    let epoch = swarm.agent(1).inspect("red").epoch;
    let token: TokenResponse = swarm.agent(1).ask(&["token", "worker"]);
    let manager = token.manager.to_string();
    let join = ["join", "--token", &token.token, &manager];
    assert!(swarm.agent(2).refused(&join).contains("overlayd leave"), "its certificate is good");

    expire(&swarm, 2);
    let status = swarm.agent(2).status();
    let warning = status.warnings.iter().find(|warning| warning.contains("of this node expired")).unwrap();
    for words in ["overlayd token worker", "overlayd join --token TOKEN", &manager, before.id.as_str()] {
        assert!(warning.contains(words), "{warning}");
    }
    assert!(swarm.agent(2).refused(&["ls"]).contains("certificate"));
    let refusal =
        swarm.agent(2).refused(&["join", "--token", &token.token, "--data-addr", "192.0.2.9", &manager]);
    assert!(refusal.contains("leave --advertise-addr and --data-addr out"), "{refusal}");
    let old = swarm.agent(1).ask::<TokenResponse>(&["token", "worker", "--rotate"]);
    assert!(swarm.agent(2).refused(&join).contains("no longer"), "a token that is void");

    let joined: JoinResponse = swarm.agent(2).ask(&["join", "--token", &old.token, &manager]);
    assert_eq!((&joined.node, &view.id), (&before, &view.id));
    await_ready(&swarm);
    let listed: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    assert_eq!(listed.nodes.len(), 3);
    // The interface was never away, and nobody had to be told of another membership.
    for to in [&containers[0], three] {
        swarm.assert_joined(two, to);
    }
    assert_eq!(swarm.agent(1).inspect("red").epoch, epoch);
    let endpoints = swarm.agent(1).inspect("red").endpoints;
    assert!(endpoints.contains(two.endpoint()));
    assert!(!swarm.agent(2).status().warnings.iter().any(|warning| warning.contains("of this node expired")));
    // It is on the disk.
    swarm.agent(2).kill();
    swarm.start(2);
    swarm.await_keys(2);
    swarm.assert_joined(two, three);
    assert!(swarm.agent(2).refused(&join).contains("overlayd leave"));
}

fn expired_node_that_was_removed_stays_out() {
    let (swarm, _containers) = Swarm::pair().with_containers();
    let node = swarm.agent(2).status().cluster.unwrap().node.id;
    expire(&swarm, 2);
    swarm.agent(1).done(&["node", "rm", "--force", node.as_str()]);
    let token: TokenResponse = swarm.agent(1).ask(&["token", "worker"]);
    let join = ["join", "--token", &token.token, &token.manager.to_string()];
    let refusal = swarm.agent(2).refused(&join);
    assert!(refusal.contains("was removed") && refusal.contains("overlayd leave --force"), "{refusal}");
    let listed: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    assert_eq!(listed.nodes.len(), 1);
    // What it is told to do helps.
    swarm.agent(2).done(&["leave", "--force"]);
    let joined: JoinResponse = swarm.agent(2).ask(&join);
    assert_ne!(joined.node.id, node);
}

fn clocks_that_move_two_days_either_way_drop_nothing() {
    let swarm = Swarm::idle(4, Underlay::default());
    let clocks: Vec<_> = (1..=4).map(|number| Clock::new(swarm.dir(), &format!("clock{number}"))).collect();
    let config = swarm.dir().join("debug.toml");
    std::fs::write(&config, "[log]\nlevel = \"info,overlayd::agent::peer=debug\"\n").unwrap();
    let start = |number: usize| {
        let agent = swarm.agent(number);
        let flags = ["--config", config.to_str().unwrap()];
        agent.spawn_in(swarm.host(agent), &flags, &clocks[number - 1].environment());
        agent.await_ready();
    };
    (1..=4).for_each(start);
    let init = swarm.init(Family::V4);
    for number in [2, 3] {
        swarm.join(number, &init);
    }
    swarm.create_encrypted("red");
    let containers = [1, 2, 3].map(|number| swarm.attach(number, "red", &format!("c{number}")));
    let [one, two, three] = &containers;
    let await_keys = || (1..=3).for_each(|number| swarm.agent(number).await_keys(2));
    await_keys();
    swarm.assert_joined(one, two);
    // The manager has one with itself.
    let sessions =
        || [1, 2].map(|number| swarm.agent(number).log().matches("session with a manager").count());
    let before = sessions();

    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pings = [(one, two), (two, one)]
            .map(|(from, to)| scope.spawn(move || from.pings_until(done, to, Duration::from_millis(10))));
        for days in [[0, 2, -2], [0, -2, 2], [0, 0, 0], [2, 0, 0], [-2, 0, 2]] {
            // Agent 3 has traffic until it is started again.
            let moved = &AtomicBool::new(false);
            std::thread::scope(|scope| {
                let pings = [(one, three), (three, one), (two, three), (three, two)].map(|(from, to)| {
                    scope.spawn(move || from.pings_until(moved, to, Duration::from_millis(2)))
                });
                for (clock, days) in clocks.iter().zip(days) {
                    clock.set(&format!("{days:+}d"));
                }
                for agent in [1, 2, 3] {
                    swarm.agent(agent).ask::<RekeyResponse>(&["rekey"]);
                }
                moved.store(true, Ordering::Relaxed);
                for pings in pings {
                    let (sent, received) = pings.join().unwrap();
                    assert!(sent > 0 && received == sent, "{received} of {sent}\n{}", swarm.drops());
                }
            });
            // New connections with the clocks as they are now.
            swarm.agent(3).kill();
            start(3);
            await_keys();
            [one, two].iter().for_each(|other| swarm.assert_joined(other, three));
            await_ready(&swarm);
            for (agent, days) in swarm.agents.iter().zip(days) {
                let day = (wall_clock() + time::Duration::days(days)).date().to_string();
                let log = agent.log();
                let mut told = log.lines().filter(|line| line.contains("key channel is up"));
                assert!(
                    told.next_back().unwrap().contains(&day),
                    "the clock of agent {} is not off by {days} days:\n{log}",
                    agent.number
                );
            }
        }
        // A certificate that was made two days ago by the manager's clock.
        swarm.join(4, &init);
        let four = swarm.attach(4, "red", "c4");
        swarm.agent(4).await_keys(3);
        [one, two, three].iter().for_each(|other| swarm.assert_joined(&four, other));
        done.store(true, Ordering::Relaxed);
        for pings in pings {
            let (sent, received) = pings.join().unwrap();
            assert!(sent > 100 && received == sent, "{received} of {sent}\n{}", swarm.drops());
        }
    });
    assert_eq!(sessions(), before, "a session with the manager was dropped");
}

/// Agents that allow certificates which live as long, and a cluster of the first that has them.
fn short_lived(nodes: u8, life: &str) -> (Swarm, InitResponse) {
    let swarm = Swarm::idle(nodes, Underlay::default());
    let config: PathBuf = swarm.dir().join("short.toml");
    std::fs::write(&config, format!("shortest_cert_expiry = \"{life}\"\n")).unwrap();
    for agent in &swarm.agents {
        agent.spawn(swarm.host(agent), &["--config", config.to_str().unwrap()]);
    }
    swarm.agents.iter().for_each(Agent::await_ready);
    let address = swarm.lab.host(1).v4().to_string();
    let init = swarm.agent(1).ask(&["init", "--advertise-addr", &address, "--cert-expiry", life]);
    (swarm, init)
}

/// Turns an agent off and on again long after its certificate has expired.
fn expire(swarm: &Swarm, number: usize) {
    [1, number].iter().for_each(|number| swarm.agent(*number).kill());
    shift_certificate(swarm.agent(1), swarm.agent(number), -time::Duration::days(300));
    [1, number].iter().for_each(|number| swarm.start(*number));
}

fn await_ready(swarm: &Swarm) {
    let ready = || {
        let listed: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
        listed.nodes.iter().all(|node| node.state == NodeState::Ready)
    };
    assert!(eventually(PATIENCE, ready));
}
