//! Bad input to real agents: a clear message that says what to do, the exit code, nothing half done.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use overlayd::api::types::{
    InitResponse, IssueTokenResponse, JoinResponse, ListNetworksResponse, ListNodesResponse,
    ListTokensResponse, TokenResponse,
};
use overlayd::cluster::TokenState;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Container, Underlay, eventually};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::support::certificates::{Clock, shift_certificate};
use crate::support::swarm::{Agent, Family, Swarm, refused};
use crate::support::tests;

tests! {
    malformed_token_is_refused
    token_of_another_cluster_is_refused
    rotated_token_is_void
    ended_tokens_say_how_they_ended
    unreachable_manager_is_named
    manager_whose_clock_was_ahead_renews_its_certificate_and_admits_others
    clock_outside_the_managers_certificate_is_told
    clock_outside_the_own_certificate_is_told
    node_without_cluster_says_how_to_get_one
    second_init_and_join_are_refused
    advertised_address_of_another_machine_is_refused
    node_whose_port_is_taken_does_not_join_and_is_not_listed
    network_name_that_is_taken_is_refused
    subnets_that_overlap_are_refused
    mtu_out_of_range_is_refused
    unknown_network_is_named
    addresses_that_cannot_be_had_are_refused
    container_without_ipv6_is_told
    used_up_subnet_is_told
    unknown_namespace_is_named
    interface_names_that_cannot_be_had_are_refused
    container_is_attached_once
    socket_is_for_root_and_its_group
    unknown_key_of_the_configuration_is_named_with_its_line
    full_disk_is_told_and_nothing_is_half_done
}

fn malformed_token_is_refused() {
    let (swarm, init) = formed();
    let manager = init.manager.to_string();
    let mistyped = {
        let mut token = init.worker_token.clone();
        token.truncate(token.len() - 1);
        token
    };
    let other_hash = init.worker_token.replacen("-1-", "-9-", 1);
    for (token, words) in [
        ("hello", "this is not a join token"),
        (mistyped.as_str(), "copy it whole"),
        (other_hash.as_str(), "upgrade this node"),
        ("", "this is not a join token"),
    ] {
        let refusal = swarm.agent(2).refused(&["join", "--token", token, &manager]);
        assert!(refusal.contains(words), "{token:?}: {refusal}");
        assert!(!refusal.contains(&init.worker_token), "the refusal shows a token");
    }
    assert_outside(&swarm, 2);
}

fn token_of_another_cluster_is_refused() {
    let (swarm, init) = formed();
    let other = swarm.init_on(3, Family::V4);
    let manager = init.manager.to_string();
    let refusal = swarm.agent(2).refused(&["join", "--token", &other.worker_token, &manager]);
    assert!(refusal.contains("the token is of another cluster"), "{refusal}");
    assert_outside(&swarm, 2);
}

fn rotated_token_is_void() {
    let (swarm, init) = formed();
    let rotated: TokenResponse = swarm.agent(1).ask(&["token", "worker", "--rotate"]);
    let manager = init.manager.to_string();
    let refusal = swarm.agent(2).refused(&["join", "--token", &init.worker_token, &manager]);
    assert!(refusal.contains("token"), "{refusal}");
    assert_outside(&swarm, 2);
    swarm.agent(2).done(&["join", "--token", &rotated.token, &manager]);
}

fn ended_tokens_say_how_they_ended() {
    let (swarm, init) = formed();
    let (manager, joining) = (init.manager.to_string(), swarm.agent(2));
    let issue = |flags: &[&str]| -> IssueTokenResponse {
        swarm.agent(1).ask(&[&["token", "worker"], flags].concat())
    };
    let refusal = |token: &str| joining.refused(&["join", "--token", token, &manager]);

    let short = issue(&["--ttl", "1s"]);
    let expired = eventually(Duration::from_secs(10), || {
        let listed: ListTokensResponse = swarm.agent(1).ask(&["token", "ls"]);
        listed.tokens.iter().any(|token| token.name == short.info.name && token.state == TokenState::Expired)
    });
    assert!(expired, "the token does not expire");
    assert!(refusal(&short.token).contains("the token has expired; make another"));

    let removed = issue(&["--ttl", "2h"]);
    swarm.agent(1).done(&["token", "rm", &removed.info.name.to_string()]);
    assert!(refusal(&removed.token).contains("the token was removed"));
    assert_outside(&swarm, 2);

    let once = issue(&["--once"]);
    let joined: JoinResponse = swarm.agent(3).ask(&["join", "--token", &once.token, &manager]);
    let told = refusal(&once.token);
    assert!(told.contains(&format!("works once, and node {} has joined", joined.node.id)), "{told}");
    // So it is after a restart too.
    swarm.agent(1).kill();
    swarm.start(1);
    assert!(refusal(&once.token).contains("works once"));
    assert_outside(&swarm, 2);

    let listed = swarm.agent(1).done(&["token", "ls"]);
    for secret in [&short, &removed, &once].map(|issued| issued.token.rsplit('-').next().unwrap()) {
        assert!(!listed.contains(secret) && !swarm.agent(1).log().contains(secret), "a secret is shown");
    }
    let told = swarm.agent(1).refused(&["token", "rm", "worker"]);
    assert!(told.contains("overlayd token worker --rotate"), "{told}");
    let told = swarm.agent(1).refused(&["token", "rm", "0000000000000000000000000"]);
    assert!(told.contains("overlayd token ls"), "{told}");
    let told = swarm.agent(3).refused(&["token", "ls"]);
    assert!(told.contains("only managers may list join tokens"), "{told}");
}

fn unreachable_manager_is_named() {
    let (swarm, init) = formed();
    let closed = format!("{}:2399", swarm.lab.host(1).v4());
    for manager in [closed.as_str(), "no-such-host.invalid:2377"] {
        let refusal = swarm.agent(2).refused(&["join", "--token", &init.worker_token, manager]);
        let name = manager.split(':').next().unwrap();
        assert!(refusal.contains(name), "{refusal}");
    }
    assert_outside(&swarm, 2);
}

fn manager_whose_clock_was_ahead_renews_its_certificate_and_admits_others() {
    let (swarm, init) = formed();
    swarm.agent(1).kill();
    shift_certificate(swarm.agent(1), swarm.agent(1), time::Duration::days(300));
    swarm.start(1);
    let is_renewed = || swarm.agent(1).log().contains("this node's certificate was renewed");
    assert!(eventually(Duration::from_secs(10), is_renewed), "{}", swarm.agent(1).log());
    swarm.join(2, &init);
}

fn clock_outside_the_managers_certificate_is_told() {
    let (swarm, init) = formed();
    let (agent, clock) = (swarm.agent(2), Clock::new(swarm.dir(), "clock"));
    clock.set("-300d");
    agent.kill();
    agent.spawn_in(swarm.host(agent), &[], &clock.environment());
    agent.await_ready();
    let manager = init.manager.to_string();
    let refusal = swarm.agent(2).refused(&["join", "--token", &init.worker_token, &manager]);
    for words in ["certificate is not yet valid", "the clock of this machine says", "set the clock"] {
        assert!(refusal.contains(words), "{refusal}");
    }
    assert_outside(&swarm, 2);
}

fn clock_outside_the_own_certificate_is_told() {
    let (swarm, init) = formed();
    swarm.join(2, &init);
    swarm.agents[..2].iter().for_each(Agent::kill);
    shift_certificate(swarm.agent(1), swarm.agent(2), -time::Duration::days(300));
    swarm.start(1);
    swarm.start(2);
    let said = |number: usize, words: &str| {
        let told = eventually(Duration::from_secs(10), || swarm.agent(number).log().contains(words));
        assert!(told, "agent {number} does not say {words:?}:\n{}", swarm.agent(number).log());
    };
    said(1, "certificate expired at");
    said(2, "the other side refused this node: its certificate");
    let refusal = swarm.agent(2).refused(&["ls"]);
    assert!(refusal.contains("certificate"), "{refusal}");
}

fn node_without_cluster_says_how_to_get_one() {
    let (swarm, _) = formed();
    for command in [&["create", "red"][..], &["ls"], &["token", "worker"], &["leave"], &["peers"]] {
        let refusal = swarm.agent(2).refused(command);
        assert!(refusal.contains("overlayd init") && refusal.contains("join"), "{refusal}");
    }
}

fn second_init_and_join_are_refused() {
    let (swarm, init) = formed();
    let address = swarm.lab.host(1).v4().to_string();
    let refusal = swarm.agent(1).refused(&["init", "--advertise-addr", &address]);
    assert!(refusal.contains("in cluster") && refusal.contains("overlayd leave"), "{refusal}");
    swarm.join(2, &init);
    let refusal = swarm.agent(2).refused(&["join", "--token", &init.worker_token, &init.manager.to_string()]);
    assert!(refusal.contains("overlayd leave"), "{refusal}");
    let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    assert_eq!(nodes.nodes.len(), 2);
}

fn advertised_address_of_another_machine_is_refused() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let refusal = swarm.agent(1).refused(&["init", "--advertise-addr", "198.51.100.7"]);
    assert!(refusal.contains("198.51.100.7") && refusal.contains("with --advertise-addr"), "{refusal}");
    assert_outside(&swarm, 1);
    for unreachable in ["0.0.0.0", "127.0.0.1", "[::1]"] {
        let refusal = usage(swarm.agent(1), &["init", "--advertise-addr", unreachable]);
        assert!(refusal.contains("--advertise-addr"), "{refusal}");
    }

    let init = swarm.init(Family::V4);
    let (token, manager) = (init.worker_token.as_str(), init.manager.to_string());
    let flags = ["join", "--token", token, "--data-addr", "198.51.100.7", manager.as_str()];
    let refusal = swarm.agent(2).refused(&flags);
    assert!(refusal.contains("198.51.100.7") && refusal.contains("with --data-addr"), "{refusal}");
    assert_outside(&swarm, 2);
    let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    assert_eq!(nodes.nodes.len(), 1, "a node that could not join is listed");
}

fn node_whose_port_is_taken_does_not_join_and_is_not_listed() {
    // The usual port is asked for before the node is one, and of any other it is heard afterwards.
    for (port, told) in
        [("4500", "the manager refuses: UDP 4500"), ("4600", "the manager has forgotten it again")]
    {
        let swarm = Swarm::unformed(2, Underlay::default());
        let init: InitResponse =
            swarm.agent(1).ask(&["init", "--advertise-addr", "192.0.2.1", "--data-port", port]);
        let manager = init.manager.to_string();
        let issued: IssueTokenResponse = swarm.agent(1).ask(&["token", "worker", "--once"]);
        let host = swarm.host(swarm.agent(2));
        let join = ["join", "--token", &issued.token, &manager];

        let has_it = host.run_in(|| std::net::TcpListener::bind("0.0.0.0:2377")).unwrap().unwrap();
        let refusal = swarm.agent(2).refused(&join);
        assert!(
            refusal.contains("TCP 0.0.0.0:2377") && refusal.contains("--advertise-addr IP:PORT"),
            "{refusal}"
        );
        drop(has_it);

        let address = format!("0.0.0.0:{port}");
        let has_it = host.run_in(|| std::net::UdpSocket::bind(address)).unwrap().unwrap();
        let refusal = swarm.agent(2).refused(&join);
        assert!(refusal.contains(told) && refusal.contains("`ss -lunp` names it"), "{refusal}");
        assert!(!refusal.contains("--"), "no flag of join's helps: {refusal}");
        let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
        assert_eq!(nodes.nodes.len(), 1, "a node that could not join is listed");
        drop(has_it);
        let listed: ListTokensResponse = swarm.agent(1).ask(&["token", "ls"]);
        let is_active = listed
            .tokens
            .iter()
            .any(|token| token.name == issued.info.name && token.state == TokenState::Valid);
        assert_eq!(is_active, port == "4500");
        if is_active {
            swarm.agent(2).done(&join);
        }
    }
}

fn network_name_that_is_taken_is_refused() {
    let (swarm, _) = formed();
    swarm.create_encrypted("red");
    let refusal = swarm.agent(1).refused(&["create", "red"]);
    assert!(refusal.contains("network name red is taken"), "{refusal}");
    let refusal = usage(swarm.agent(1), &["create", "no/name"]);
    assert!(refusal.contains("no/name"), "{refusal}");
    assert_networks(&swarm, 1);
}

fn subnets_that_overlap_are_refused() {
    let (swarm, _) = formed();
    swarm.create_encrypted("red");
    let host = swarm.lab.host(1).v4().to_string();
    for (subnet, words) in [
        ("10.77.0.128/25", vec!["10.77.0.0/24", "network red"]),
        ("10.0.0.0/8", vec!["10.77.0.0/24", "network red"]),
        ("fd77::/48", vec!["fd77::/64", "network red"]),
        ("192.0.2.0/25", vec!["underlay address", &host]),
        ("127.0.0.0/8", vec!["127.0.0.0/8"]),
        ("10.9.0.1/24", vec!["host bits", "10.9.0.0/24"]),
        ("10.9.0.0/32", vec!["too small"]),
    ] {
        let refusal = swarm.agent(1).refused(&["create", "--subnet", subnet, "blue"]);
        for word in words {
            assert!(refusal.contains(word), "{subnet}: {refusal}");
        }
    }
    let refusal =
        usage(swarm.agent(1), &["create", "--subnet", "10.9.0.0/24", "--gateway", "10.8.0.1", "blue"]);
    assert!(refusal.contains("--gateway 10.8.0.1 is in none of the subnets"), "{refusal}");
    assert_networks(&swarm, 1);
}

fn mtu_out_of_range_is_refused() {
    let (swarm, _) = formed();
    for (mtu, subnet, words) in [
        ("67", "10.9.0.0/24", "out of range"),
        ("1279", "fd09::/64", "out of range"),
        ("1409", "10.9.0.0/24", "which leaves 1408 for a container"),
    ] {
        let command = ["create", "--encrypted", "--mtu", mtu, "--subnet", subnet, "blue"];
        let refusal = swarm.agent(1).refused(&command);
        assert!(refusal.contains(words), "{mtu}: {refusal}");
    }
    assert_networks(&swarm, 0);
    swarm.create(&["--encrypted", "--mtu", "1408", "--subnet", "10.9.0.0/24", "blue"]);
}

fn unknown_network_is_named() {
    let (swarm, _) = formed();
    let container = swarm.lab.host(1).container("c1").unwrap();
    for command in [&["inspect", "nowhere"][..], &["rm", "nowhere"], &["attach", "nowhere", "--netns", "c1"]]
    {
        let refusal = swarm.agent(1).refused(command);
        assert!(refusal.contains("there is no network nowhere"), "{refusal}");
    }
    assert_untouched(&container);
}

fn addresses_that_cannot_be_had_are_refused() {
    let (swarm, _) = formed();
    swarm.create_encrypted("red");
    let first = swarm.attach(1, "red", "c1");
    let taken = first.address(Family::V4).to_string();
    let container = swarm.lab.host(1).container("c2").unwrap();
    let mac = first.mac().to_string();
    for (flag, value, words) in [
        ("--ip", "10.78.0.9", "does not lie in a subnet of network red (10.77.0.0/24"),
        ("--ip", taken.as_str(), "is taken in network red"),
        ("--ip", "10.77.0.0", "choose another"),
        ("--ip", "10.77.0.255", "choose another"),
        ("--mac", mac.as_str(), "is taken in network red"),
        ("--mac", "01:00:5e:00:00:01", "MAC address"),
    ] {
        let refusal = swarm.agent(1).refused(&["attach", "red", "--netns", "c2", flag, value]);
        assert!(refusal.contains(words), "{value}: {refusal}");
        assert_untouched(&container);
    }
    assert_eq!(swarm.agent(1).inspect("red").endpoints.len(), 1);
    assert_eq!(swarm.agent(1).stats().endpoints.len(), 1);
}

/// As Docker leaves those without an IPv6 network.
fn container_without_ipv6_is_told() {
    let (swarm, _) = formed();
    swarm.create_encrypted("red");
    let container = swarm.lab.host(1).container("c1").unwrap();
    let switch_off = || {
        ["all", "default"]
            .map(|of| std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "1").unwrap())
    };
    container.run_in(switch_off).unwrap();
    let refusal = swarm.agent(1).refused(&["attach", "red", "--netns", "c1"]);
    for part in ["IPv6 is switched off in the container", "disable_ipv6=0", "without IPv6 subnets"] {
        assert!(refusal.contains(part), "{part} is not in: {refusal}");
    }
    swarm.create(&["--encrypted", "--subnet", "10.9.0.0/24", "blue"]);
    swarm.agent(1).done(&["attach", "blue", "--netns", "c1"]);
}

fn used_up_subnet_is_told() {
    let (swarm, _) = formed();
    swarm.create(&["--subnet", "10.9.0.0/30", "tiny"]);
    let held: Vec<_> = ["c1", "c2"].map(|name| swarm.attach(1, "tiny", name)).into();
    let container = swarm.lab.host(1).container("c3").unwrap();
    let refusal = swarm.agent(1).refused(&["attach", "tiny", "--netns", "c3"]);
    assert!(refusal.contains("no address is free in 10.9.0.0/30 of network tiny"), "{refusal}");
    assert_untouched(&container);
    swarm.agent(1).done(&["detach", "tiny", "--netns", held[0].container.name()]);
    swarm.agent(1).done(&["attach", "tiny", "--netns", "c3"]);
}

fn unknown_namespace_is_named() {
    let (swarm, _) = formed();
    swarm.create_encrypted("red");
    for (netns, words) in [
        ("nobody", "/run/netns/nobody"),
        ("4000000", "/proc/4000000/ns/net"),
        ("/etc/passwd", "/etc/passwd is not a network namespace"),
        ("/proc/self/ns/mnt", "not a network namespace"),
    ] {
        let refusal = swarm.agent(1).refused(&["attach", "red", "--netns", netns]);
        assert!(refusal.contains(words), "{netns}: {refusal}");
    }
    assert!(swarm.agent(1).inspect("red").endpoints.is_empty());
}

fn interface_names_that_cannot_be_had_are_refused() {
    let (swarm, _) = formed();
    swarm.create_encrypted("red");
    let container = swarm.lab.host(1).container("c1").unwrap();
    let refusal = swarm.agent(1).refused(&["attach", "red", "--netns", "c1", "--ifname", "lo"]);
    assert!(refusal.contains("lo"), "{refusal}");
    for name in ["sixteen-bytes-xx", "a/b", "with space", ""] {
        let refusal = usage(swarm.agent(1), &["attach", "red", "--netns", "c1", "--ifname", name]);
        assert!(refusal.contains("--ifname"), "{name}: {refusal}");
    }
    assert_untouched(&container);
    assert!(swarm.agent(1).inspect("red").endpoints.is_empty());
    swarm.agent(1).done(&["attach", "red", "--netns", "c1", "--ifname", "fifteen-bytes-x"]);
}

fn container_is_attached_once() {
    let (swarm, _) = formed();
    swarm.create_encrypted("red");
    swarm.create(&["--subnet", "10.9.0.0/24", "blue"]);
    let attached = swarm.attach(1, "red", "c1");
    let again = ["attach", "red", "--netns", "c1", "--ifname", "eth1"];
    let refusal = swarm.agent(1).refused(&again);
    let id = attached.endpoint().id.to_string();
    assert!(refusal.contains("attached to network red already") && refusal.contains(&id), "{refusal}");
    let refusal = swarm.agent(1).refused(&["attach", "blue", "--netns", "c1"]);
    assert!(refusal.contains("eth0"), "{refusal}");
    assert_eq!(swarm.agent(1).inspect("red").endpoints.len(), 1);
    assert!(swarm.agent(1).inspect("blue").endpoints.is_empty());
    // Another network under another name is fine.
    swarm.agent(1).done(&["attach", "blue", "--netns", "c1", "--ifname", "eth1"]);
}

fn socket_is_for_root_and_its_group() {
    let (swarm, _) = formed();
    let agent = swarm.agent(1);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(matches!(mode(&agent.socket), 0o600 | 0o660), "{:o}", mode(&agent.socket));
    assert_eq!(mode(&agent.state_dir()), 0o700);
    assert_eq!(mode(&agent.state_dir().join("overlayd.redb")) & 0o077, 0);
}

fn unknown_key_of_the_configuration_is_named_with_its_line() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let config = swarm.dir().join("config.toml");
    std::fs::write(&config, "[log]\nlevel = \"info\"\nlevle = \"debug\"\n").unwrap();
    let state = swarm.dir().join("state-of-nobody");
    let mut command = Command::new(crate::support::swarm::OVERLAYD);
    command.args(["agent", "--config"]).arg(&config).arg("--state-dir").arg(&state);
    let refusal = refused(&mut command, 1);
    assert!(refusal.contains("config.toml:3:") && refusal.contains("levle"), "{refusal}");
    assert!(!state.exists());
}

fn full_disk_is_told_and_nothing_is_half_done() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let agent = swarm.agent(1);
    agent.kill();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("small", agent.state_dir(), "tmpfs", flags, c"size=8m,mode=0700").unwrap();
    swarm.start(1);
    swarm.init(Family::V4);
    let container = swarm.lab.host(1).container("c1").unwrap();
    swarm.create_encrypted("red");
    let filler = agent.state_dir().join("filler");
    // One page after the other, until not one more fits.
    let full = std::fs::write(&filler, vec![0; 16 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    // The file has room of its own for a while.
    let mut created = 1;
    let refusal = loop {
        let name = format!("net{created}");
        let output = agent.command().args(["create", &name]).output().unwrap();
        if !output.status.success() {
            break String::from_utf8(output.stderr).unwrap();
        }
        created += 1;
        assert!(created < 5000, "the disk never gets full");
    };
    assert!(refusal.contains("no space left") && refusal.contains("try again"), "{refusal}");
    assert_networks(&swarm, created);
    let refusal = agent.refused(&["attach", "red", "--netns", "c1"]);
    assert!(refusal.contains("no space left"), "{refusal}");
    assert_untouched(&container);
    // The file of events has a little room of its own too.
    let warns = || agent.done(&["status"]).contains("events are kept in memory alone");
    let fills = || {
        let _refusal = agent.refused(&["rm", "no-such-network"]);
        warns()
    };
    assert!(eventually(Duration::from_secs(20), fills), "{}", agent.done(&["status"]));

    std::fs::remove_file(&filler).unwrap();
    swarm.create(&[&format!("net{created}")]);
    // What could not even be taken back on a full disk is taken back soon.
    let attached =
        || agent.command().args(["attach", "red", "--netns", "c1"]).output().unwrap().status.success();
    assert!(eventually(Duration::from_secs(10), attached), "{}", agent.log());
    assert!(eventually(Duration::from_secs(10), || !warns()), "events are not written again");
    let kept = std::fs::read_to_string(agent.state_dir().join("events.jsonl")).unwrap();
    let numbers = kept.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["seq"].as_u64().unwrap()
    });
    let numbers: Vec<_> = numbers.collect();
    assert!(numbers.is_sorted_by(|one, next| one + 1 == *next), "{numbers:?}");
    agent.kill();
    swarm.start(1);
    assert_networks(&swarm, created + 1);
    assert_eq!(agent.inspect("red").endpoints.len(), 1);
    agent.kill();
    unmount(agent.state_dir(), UnmountFlags::DETACH).unwrap();
}

/// Three hosts; agent 1 has a cluster of its own.
fn formed() -> (Swarm, InitResponse) {
    let swarm = Swarm::unformed(3, Underlay::default());
    let init = swarm.init(Family::V4);
    (swarm, init)
}

/// A command that is wrong by itself.
fn usage(agent: &Agent, arguments: &[&str]) -> String {
    refused(agent.command().args(arguments), 2)
}

fn assert_outside(swarm: &Swarm, number: usize) {
    assert!(swarm.agent(number).status().cluster.is_none(), "agent {number} is in a cluster");
}

fn assert_networks(swarm: &Swarm, count: usize) {
    let listed: ListNetworksResponse = swarm.agent(1).ask(&["ls"]);
    assert_eq!(listed.networks.len(), count);
}

fn assert_untouched(container: &Container) {
    let links = Netlink::within(container.namespace(), Netlink::links).unwrap();
    assert_eq!(links.len(), 1, "something was left in the container: {links:?}");
}
