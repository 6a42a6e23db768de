//! New keys between real agents: at an operator's word under load, at the limits, and where the key
//! channel is cut while data could still pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use overlayd::api::types::{InitResponse, JoinResponse, PeerState, RekeyResponse, RekeyedLink};
use overlayd::boot_time::BootTime;
use overlayd::drop_reason::DropReason;
use overlayd::id::MacAddr;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Host, Ping, Underlay, eventually};

use crate::support::frames::{self, datagrams};
use crate::support::paced::PacedStream;
use crate::support::swarm::{Agent, Attached, Family, PATIENCE, Swarm, V4_SUBNET};
use crate::support::tests;

// The longest first: four run at once.
tests! {
    traffic_stops_at_the_hard_age_without_a_key_channel_and_comes_back_with_it
    rekeys_under_load_lose_no_packet
    old_keys_are_gone_eleven_seconds_after_a_rekey
    keys_are_renewed_without_a_manager_for_twice_their_hard_age
    unknown_spi_is_told_over_tls_only_and_not_for_every_packet
    rekey_of_a_network_or_a_peer_renews_those_links_and_no_others
    rekey_with_a_peer_that_is_away_says_why_and_keeps_the_old_keys
    traffic_stops_at_the_hard_limit_of_packets_without_a_key_channel_and_comes_back_with_it
    ; soak:
    hundred_rekeys_in_hundred_seconds_under_200_mbit_lose_no_packet
}

fn rekeys_under_load_lose_no_packet() {
    assert_rekeys_lose_nothing(20, Duration::from_millis(500), 20_000_000);
}

fn hundred_rekeys_in_hundred_seconds_under_200_mbit_lose_no_packet() {
    assert_rekeys_lose_nothing(100, Duration::from_secs(1), 200_000_000);
}

/// Rekeys in turn from one end, from the other and from both at once, under a steady stream. What the
/// machine itself is too slow for is counted apart; on a machine that is fast enough it is nothing.
fn assert_rekeys_lose_nothing(rekeys: u32, interval: Duration, bits_per_second: u64) {
    let swarm = Swarm::pair();
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "red"]);
    let [one, two] = &[1, 2].map(|number| swarm.attach_quietly(number, "red", &format!("c{number}")));
    swarm.await_keys(1);
    swarm.assert_joined(one, two);
    let [first, second] = [1, 2].map(|number| swarm.agent(number));
    let mut seen = BTreeSet::from([first.peers().peers[0].outbound_spis.clone()]);

    let stream = PacedStream::start(&[first, second], (one, two), bits_per_second);
    let started = boot_time();
    for number in 0..rekeys {
        wait_until(started + interval * number);
        // The SPIs that the first agent sends on, as each rekey told them.
        let told: Vec<_> = match number % 3 {
            0 => vec![rekey(first, &[]).outbound_spis],
            1 => vec![rekey(second, &["red"]).inbound_spis],
            _ => std::thread::scope(|scope| {
                let other = scope.spawn(|| rekey(second, &[]).inbound_spis);
                vec![rekey(first, &[]).outbound_spis, other.join().unwrap()]
            }),
        };
        for peer in [first, second].map(|agent| agent.peers().peers.remove(0)) {
            assert!(
                peer.lingering_spis.len() <= peer.inbound_spis.len(),
                "more than two generations: {peer:?}"
            );
        }
        // Asked for by both at once it may be one pair or two, but both ends end with the same one.
        assert!(agree(first, second), "{:?}", [first, second].map(Agent::peers));
        let current = first.peers().peers.remove(0).outbound_spis;
        assert!(told.contains(&current), "rekey {number}: {current:?} are in use, {told:?} were told");
        assert!(seen.insert(current), "rekey {number} brought old keys back");
    }
    let elapsed = boot_time().since(started);
    assert!(elapsed < interval * rekeys + Duration::from_secs(5), "{rekeys} rekeys took {elapsed:?}");
    let report = stream.stop_without_loss();

    crate::support::tell(&format!("{} rekeys in {elapsed:?}: {report:?}", seen.len() - 1));
}

fn old_keys_are_gone_eleven_seconds_after_a_rekey() {
    let swarm = Swarm::formed(2, Family::V4, Underlay { segment_offload: false, ..Underlay::default() });
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "red"]);
    let [one, two] = &[1, 2].map(|number| swarm.attach_quietly(number, "red", &format!("c{number}")));
    swarm.await_keys(1);
    let wire = swarm.capture(1);
    swarm.assert_reaches(two, one, PATIENCE);
    let from = swarm.lab.host(2).v4();
    let mut old = wire.stop().unwrap();
    old.retain(|frame| {
        datagrams(std::slice::from_ref(frame)).iter().any(|d| d.from.ip() == from && d.esp().is_some())
    });
    // A checksum that was still to be computed.
    old.iter_mut().for_each(|frame| frame[40..42].fill(0));

    let spis = swarm.agent(1).peers().peers[0].inbound_spis.clone();
    let link = rekey(swarm.agent(2), &[]);
    let rekeyed = boot_time();
    assert!(eventually(PATIENCE, || swarm.agent(1).peers().peers[0].inbound_spis == link.outbound_spis));
    assert_eq!(swarm.agent(1).peers().peers[0].lingering_spis, spis);
    let send = || frames::send(swarm.lab.host(2).namespace(), &Host::underlay_name(), &old);
    let dropped = |reason| swarm.agent(1).dropped(reason);
    let count = old.len() as u64;
    send();
    assert!(eventually(PATIENCE, || dropped(DropReason::Replayed) == count), "{}", swarm.drops());

    wait_until(rekeyed + Duration::from_secs(11));
    assert_eq!(swarm.agent(1).peers().peers[0].lingering_spis, []);
    assert_eq!(dropped(DropReason::UnknownSpi), 0);
    send();
    assert!(eventually(PATIENCE, || dropped(DropReason::UnknownSpi) == count), "{}", swarm.drops());
    assert_eq!(dropped(DropReason::Replayed), count);
    swarm.assert_joined(one, two);
}

fn rekey_of_a_network_or_a_peer_renews_those_links_and_no_others() {
    let swarm = Swarm::formed(3, Family::V4, Underlay::default());
    swarm.create(&["--encrypted", "red"]);
    swarm.create(&["--encrypted", "blue"]);
    swarm.create(&["open"]);
    assert!(swarm.agent(1).done(&["rekey"]).starts_with("There are no keys"));
    let attach = |network, number| swarm.attach(number, network, &format!("{network}{number}"));
    let _containers = ["red", "blue", "open"].map(|network| [1, 2, 3].map(|number| attach(network, number)));
    swarm.await_keys(4);
    let agent = swarm.agent(1);
    let pairs = || {
        let peers = agent.peers().peers.into_iter().filter(|peer| peer.state != PeerState::Plain);
        let pairs = peers.map(|peer| ((peer.network_name.to_string(), peer.node), peer.outbound_spis));
        pairs.collect::<BTreeMap<_, _>>()
    };
    let changed = |arguments: &[&str]| {
        let before = pairs();
        let told: RekeyResponse = agent.ask(&[&["rekey"], arguments].concat());
        let told = told.links.into_iter().map(|l| ((l.network_name.to_string(), l.node), l.outbound_spis));
        let mut changed = pairs();
        changed.retain(|link, spis| before[link] != *spis);
        assert_eq!(told.collect::<BTreeMap<_, _>>(), changed, "{arguments:?}");
        changed.into_keys().collect::<Vec<_>>()
    };
    let peer = swarm.agent(2).status().cluster.unwrap().node.id;
    assert_eq!(changed(&[]).len(), 4);
    let of_red = changed(&["red"]);
    assert_eq!(of_red.len(), 2);
    assert!(of_red.iter().all(|(network, _)| network == "red"));
    let of_peer = changed(&["--peer", &peer.to_string()]);
    assert_eq!(of_peer, ["blue", "red"].map(|network| (network.to_owned(), peer)));

    let text = agent.done(&["rekey", "blue"]);
    let rows: Vec<_> = text.lines().collect();
    assert!(rows[0].starts_with("PEER") && rows.len() == 3, "{text}");
    assert!(rows[1..].iter().all(|row| row.contains("blue") && row.contains(" new ")), "{text}");
    // The hosts of a laboratory have one name.
    let name = agent.peers().peers[0].node_name.to_string();
    for (arguments, said) in [
        (&["rekey", "green"][..], "green"),
        (&["rekey", "open"], "is not encrypted"),
        (&["rekey", "--peer", "nobody"], "overlayd peers"),
        (&["rekey", "--peer", &name], "give the id"),
    ] {
        let refusal = agent.refused(arguments);
        assert!(refusal.contains(said), "{arguments:?}: {refusal}");
    }
}

fn rekey_with_a_peer_that_is_away_says_why_and_keeps_the_old_keys() {
    let (swarm, _containers) = Swarm::pair().with_containers();
    let id = |number| swarm.agent(number).status().cluster.unwrap().node.id;
    let (larger, smaller) = if id(1) > id(2) { (1, 2) } else { (2, 1) };
    // The one with the larger id connects, and knows why it cannot; the other waits for it.
    for (here, away, said) in [(larger, smaller, "cannot be reached"), (smaller, larger, "larger one")] {
        let (here, keys) = (swarm.agent(here), swarm.agent(here).peers().peers.remove(0).outbound_spis);
        swarm.agent(away).kill();
        // Until the channel is known to be gone the answer is waited for.
        let told = || {
            let output = here.command().args(["--json", "rekey"]).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            let answer: RekeyResponse = serde_json::from_slice(&output.stdout).unwrap();
            answer.links[0].failure.as_ref().unwrap().contains(said)
        };
        assert!(eventually(PATIENCE, told), "{}", here.log());
        assert_eq!(here.peers().peers[0].outbound_spis, keys);
        if here.number == larger {
            let output = here.command().arg("rekey").output().unwrap();
            assert!(String::from_utf8(output.stdout).unwrap().contains("NOT RENEWED"));
            assert!(String::from_utf8(output.stderr).unwrap().contains("1 of 1 links have no new keys"));
        }
        swarm.start(away);
        swarm.await_keys(1);
    }
}

fn keys_are_renewed_without_a_manager_for_twice_their_hard_age() {
    let config = "[limits]\nsoft_age = \"2s\"\nhard_age = \"5s\"\nlinger = \"1s\"";
    let swarm = with_config(3, config);
    let init = swarm.init(Family::V4);
    [2, 3].into_iter().for_each(|number| drop(swarm.join(number, &init)));
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "red"]);
    let [two, three] = &[2, 3].map(|number| swarm.attach_quietly(number, "red", &format!("c{number}")));
    let [agent, other] = [2, 3].map(|number| swarm.agent(number));
    agent.await_keys(1);
    swarm.assert_joined(two, three);
    let stream = PacedStream::start(&[agent, other], (two, three), 5_000_000);
    swarm.agent(1).kill();
    let until = boot_time() + Duration::from_secs(11);
    let mut seen = BTreeSet::new();
    while boot_time() < until {
        seen.insert(agent.peers().peers.remove(0).outbound_spis);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(seen.len() >= 4, "{} pairs in five times the soft age", seen.len());
    assert!(seen.insert(rekey(other, &[]).inbound_spis), "an operator gets no new keys without a manager");
    let spare = swarm.lab.host(2).container("spare").unwrap();
    for request in [&["attach", "red", "--netns", spare.name()][..], &["create", "blue"]] {
        let refusal = agent.refused(request);
        assert!(refusal.contains("no manager can be reached"), "{request:?}: {refusal}");
    }
    stream.stop_without_loss();
}

fn unknown_spi_is_told_over_tls_only_and_not_for_every_packet() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    swarm.assert_joined(one, two);
    let [victim, liar] = [swarm.lab.host(1), swarm.lab.host(2)];
    let agent = swarm.agent(1);
    let keys = agent.peers().peers.remove(0).outbound_spis;
    let wire = swarm.capture(1);
    let before = agent.dropped(DropReason::UnknownSpi);
    let target = SocketAddr::new(victim.v4(), frames::ESP_PORT);
    let packet = [0x4000_0040_u32.to_be_bytes().as_slice(), &[0x5a; 100]].concat();
    let throw = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..COUNT {
            socket.send_to(&packet, target).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    liar.run_in(throw).unwrap();
    let counted = || agent.dropped(DropReason::UnknownSpi) - before;
    assert!(eventually(PATIENCE, || counted() == COUNT), "{} of {COUNT}", counted());
    // The other node is told, and knows that it does not use this SPI.
    swarm.assert_joined(one, two);
    assert_eq!(agent.peers().peers[0].outbound_spis, keys);
    let seen = wire.stop().unwrap();
    let answered = datagrams(&seen).into_iter().find(|d| d.from.ip() == victim.v4() && d.esp().is_none());
    assert_eq!(answered, None, "an unknown SPI is answered in the open");
    assert!(!seen.iter().any(|frame| frames::see(frame) == frames::Seen::Other), "ICMP was sent");
    let told = seen.iter().filter(|frame| frames::see(frame) == frames::Seen::Tcp(frames::TLS_PORT));
    assert!(told.count() < 100, "every packet is told of");
}

fn traffic_stops_at_the_hard_limit_of_packets_without_a_key_channel_and_comes_back_with_it() {
    let limits = "[limits]\nsoft_packets = 200\nhard_packets = 400";
    // Both ends know that the channel is gone before either limit is reached.
    let pauses = [NOTICED, Duration::from_secs(1)];
    let wire = assert_channel_cut_stops_and_resumes(limits, pauses, DropReason::SaExhausted);
    let last = datagrams(&wire).iter().filter_map(frames::Datagram::esp).map(|(_, seq)| seq).max();
    assert_eq!(last, Some(400), "the last sequence number on the wire");
}

fn traffic_stops_at_the_hard_age_without_a_key_channel_and_comes_back_with_it() {
    let limits = "[limits]\nsoft_age = \"3s\"\nhard_age = \"8s\"";
    // The channel seems to be there when new keys are wanted.
    assert_channel_cut_stops_and_resumes(limits, [Duration::ZERO, NOTICED], DropReason::SaExpired);
}

/// Keys are negotiated over IPv6 and data goes over IPv4, so that the one can be cut without the other.
/// Waits so long before the first packet, and after the last that passes. Gives what crossed the
/// underlay meanwhile.
fn assert_channel_cut_stops_and_resumes(
    limits: &str,
    [before, after]: [Duration; 2],
    reason: DropReason,
) -> Vec<Vec<u8>> {
    let swarm = with_two_addresses(limits);
    swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "red"]);
    let [one, two] = &[1, 2].map(|number| swarm.attach_quietly(number, "red", &format!("c{number}")));
    swarm.await_keys(1);
    swarm.assert_joined(one, two);
    let pings = |count| Ping { count, interval: Duration::from_millis(2), timeout: SOON, ..Ping::default() };
    let renewed = {
        // With the channel they come at the soft limit, and nobody notices.
        let before = swarm.agent(1).peers().peers[0].outbound_spis.clone();
        let mut lost = 0;
        let changed = || {
            let report = pings(50).run(one.container.namespace(), two.address(Family::V4)).unwrap();
            lost += u64::from(!report.is_complete());
            swarm.agent(1).peers().peers[0].outbound_spis != before
        };
        eventually(PATIENCE, changed) && lost == 0
    };
    assert!(renewed, "{}", swarm.drops());

    let wire = swarm.capture(1);
    let restore = cut_key_channel(&swarm);
    std::thread::sleep(before);
    let stopped = || {
        send(one, two, 20);
        send(two, one, 20);
        swarm.agents.iter().all(|agent| agent.dropped(reason) > 0)
    };
    assert!(eventually(PATIENCE, stopped), "{}", swarm.drops());
    let quiet = swarm.capture(1);
    let until = boot_time() + after;
    let mut sent = 0;
    while boot_time() < until {
        send(one, two, 10);
        send(two, one, 10);
        sent += 10;
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(datagrams(&quiet.stop().unwrap()).is_empty(), "something passed without a key");
    assert!(eventually(PATIENCE, || swarm.agents.iter().all(|agent| agent.dropped(reason) >= sent)));
    let seen = wire.stop().unwrap();
    let leaked = seen.iter().find(|frame| frames::contains(frame, CANARY));
    assert!(leaked.is_none(), "it leaked: {leaked:02x?}");
    assert!(datagrams(&seen).iter().all(|d| d.esp().is_some()), "something else than ESP crossed");

    let restored = boot_time();
    restore();
    let back = || one.ping(two.address(Family::V4), &Ping { count: 1, timeout: SOON, ..Ping::default() });
    assert!(eventually(PATIENCE, back), "{}", swarm.drops());
    let elapsed = boot_time().since(restored);
    assert!(elapsed < Duration::from_secs(3), "traffic came back after {elapsed:?}");
    swarm.assert_joined(one, two);
    seen
}

/// Hosts whose agents have a configuration and are in no cluster.
fn with_config(hosts: u8, config: &str) -> Swarm {
    let underlay = Underlay { segment_offload: false, ..Underlay::default() };
    Swarm::unformed_configured(hosts, underlay, config)
}

/// Two hosts in one cluster, which reach each other's TLS over IPv6 and send data over IPv4.
fn with_two_addresses(config: &str) -> Swarm {
    let swarm = with_config(2, config);
    let [one, two] = [1, 2].map(|number| swarm.lab.host(number));
    let (tls, data) = (one.v6().to_string(), one.v4().to_string());
    let init: InitResponse = swarm.agent(1).ask(&["init", "--advertise-addr", &tls, "--data-addr", &data]);
    let (tls, data, manager) = (two.v6().to_string(), two.v4().to_string(), init.manager.to_string());
    let own = ["--advertise-addr", &tls, "--data-addr", &data];
    let join = ["join", "--token", &init.worker_token, &manager];
    let _: JoinResponse = swarm.agent(2).ask(&[&join[..], &own[..]].concat());
    swarm
}

/// Lets what goes to the IPv6 address of either host get lost; gives what ends it.
fn cut_key_channel(swarm: &Swarm) -> impl FnOnce() {
    let mac = |host: &Host| {
        let link = Netlink::within(host.namespace(), |netlink| netlink.link(&Host::underlay_name()));
        link.unwrap().mac.unwrap()
    };
    let [one, two] = [1, 2].map(|number| swarm.lab.host(number));
    let right = [(one, two, mac(two)), (two, one, mac(one))];
    let set = |host: &Host, other: &Host, mac: MacAddr| {
        let add =
            |netlink: &Netlink| netlink.add_neighbor(&netlink.link(&Host::underlay_name())?, other.v6(), mac);
        Netlink::within(host.namespace(), add).unwrap();
    };
    for (host, other, _) in right {
        set(host, other, "02:00:00:00:00:66".parse().unwrap());
    }
    move || right.into_iter().for_each(|(host, other, mac)| set(host, other, mac))
}

/// Sends frames to the other container, as it would answer to.
fn send(from: &Attached, to: &Attached, count: usize) {
    let [source, destination] = [from, to].map(|end| SocketAddr::new(end.address(Family::V4), 7));
    let frame = frames::udp((from.mac(), to.mac()), source, destination, CANARY);
    frames::send(from.container.namespace(), from.ifname(), &vec![frame; count]);
}

/// Rekeys the only link of an agent.
fn rekey(agent: &Agent, arguments: &[&str]) -> RekeyedLink {
    let mut response: RekeyResponse = agent.ask(&[&["rekey"], arguments].concat());
    assert_eq!(response.links.len(), 1, "{response:?}");
    response.links.remove(0)
}

/// Whether two agents come to use the same keys.
fn agree(one: &Agent, other: &Agent) -> bool {
    eventually(PATIENCE, || {
        let [one, other] = [one, other].map(|agent| agent.peers().peers.remove(0));
        one.outbound_spis == other.inbound_spis && one.inbound_spis == other.outbound_spis
    })
}

fn wait_until(at: BootTime) {
    std::thread::sleep(at.since(boot_time()));
}

const CANARY: &[u8] = b"what must not be seen in the underlay";
/// Packets for an SA that nobody has.
const COUNT: u64 = 2_000;
/// After so long TCP has given up on both sides.
const NOTICED: Duration = Duration::from_secs(8);
const SOON: Duration = Duration::from_millis(200);
