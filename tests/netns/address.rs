//! Hosts that are given another address: the node goes on at the new one, and everybody finds it.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::api::types::{IssueTokenResponse, ListNetworksResponse, TokenResponse};
use overlayd::boot_time::BootTime;
use overlayd::drop_reason::DropReason;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::{Link, Netlink, NetlinkError};
use overlayd::lab::{Host, Ping, Underlay, eventually};

use crate::support::frames::VXLAN_PORT;
use crate::support::swarm::{Attached, Family, PATIENCE, Swarm};
use crate::support::{tell, tests};

tests! {
    node_whose_address_is_replaced_is_found_by_its_peers_and_its_manager
    manager_whose_address_is_replaced_is_found_by_all_nodes
    nodes_that_move_at_once_find_each_other_through_the_manager
    node_that_moves_with_its_manager_finds_it_where_it_is_told
    node_that_moves_is_found_by_its_peers_without_a_manager
    agent_that_starts_on_a_host_with_another_address_is_found
    agent_that_starts_where_it_was_before_a_move_is_found_without_a_manager
    address_that_is_gone_is_told_of
    address_that_is_taken_and_given_again_changes_nothing
    plain_vxlan_is_carried_at_another_address_once_its_port_is_free_there
}

fn node_whose_address_is_replaced_is_found_by_its_peers_and_its_manager() {
    for family in Family::BOTH {
        let (swarm, containers, plain) = swarm(family);
        // Whichever of two nodes has the larger id connects: with three, both have to.
        for number in [2, 3] {
            let (own, link) = (&containers[number - 1], link(&containers[number - 1]));
            let started = replace_address(&swarm, family, number);
            await_traffic(&swarm, &containers, number, started);
            await_traffic(&swarm, &plain, number, started);
            assert_eq!(self::link(own).index, link.index, "the interface is another");
            let moved = moved(family.of(swarm.lab.host(number)));
            let told = || swarm.agent(1).inspect("red").nodes.iter().any(|node| node.data.ip() == moved);
            assert!(eventually(PATIENCE, told), "the manager does not know of {moved}");
            let node = swarm.agent(number).status().cluster.unwrap().node;
            assert_eq!((node.advertise.ip(), node.data.ip()), (moved, moved));
        }
        for agent in &swarm.agents {
            assert_eq!(agent.dropped(DropReason::AuthenticationFailed), 0);
        }
    }
}

fn manager_whose_address_is_replaced_is_found_by_all_nodes() {
    let (swarm, containers, plain) = swarm(Family::V4);
    // One that shares no network with the manager, which no key channel leads to.
    swarm.agent(3).done(&["detach", "red", "--netns", containers[2].container.name()]);
    swarm.agent(3).done(&["detach", "plain", "--netns", "plain3"]);
    let started = replace_address(&swarm, Family::V4, 1);
    await_traffic(&swarm, &containers[..2], 1, started);
    await_traffic(&swarm, &plain[..2], 1, started);
    await_managed(&swarm, 2, started);
    await_managed(&swarm, 3, started);
    // Whoever is to join is told where it is now.
    let at = moved(swarm.lab.host(1).v4());
    let standing: TokenResponse = swarm.agent(1).ask(&["token", "worker"]);
    let issued: IssueTokenResponse = swarm.agent(1).ask(&["token", "worker", "--once"]);
    assert_eq!((standing.manager.ip(), issued.manager.ip()), (at, at));
    // What follows is as it always was.
    let again = swarm.attach(3, "red", "again");
    swarm.assert_joined(&again, &containers[0]);
    swarm.assert_joined(&again, &containers[1]);
}

fn nodes_that_move_at_once_find_each_other_through_the_manager() {
    let (swarm, containers, plain) = swarm(Family::V4);
    let started = replace_address(&swarm, Family::V4, 2);
    replace_address(&swarm, Family::V4, 3);
    await_traffic(&swarm, &containers, 2, started);
    await_traffic(&swarm, &containers, 3, started);
    await_traffic(&swarm, &plain, 2, started);
}

fn node_that_moves_with_its_manager_finds_it_where_it_is_told() {
    let (swarm, containers, plain) = swarm(Family::V4);
    for number in [1, 2] {
        replace_address(&swarm, Family::V4, number);
    }
    let lost = |warning: &String| warning.contains("overlayd join --token TOKEN ADDRESS");
    let is_lost = || swarm.agent(2).status().warnings.iter().any(lost);
    assert!(eventually(PATIENCE, is_lost), "{:?}", swarm.agent(2).status());
    let token: TokenResponse = swarm.agent(1).ask(&["token", "worker"]);
    let join = |address: &str| ["join", "--token", &token.token, address].map(str::to_owned);
    let nobody = swarm.lab.host(1).v4().to_string();
    let refusal = swarm.agent(2).refused(&join(&nobody).each_ref().map(String::as_str));
    assert!(refusal.contains("already") && refusal.contains(&nobody), "{refusal}");
    let manager = moved(swarm.lab.host(1).v4()).to_string();
    swarm.agent(2).done(&join(&manager).each_ref().map(String::as_str));
    let started = boot_time();
    await_traffic(&swarm, &containers, 2, started);
    await_traffic(&swarm, &plain, 2, started);
    await_managed(&swarm, 2, started);
    assert!(!is_lost());
}

fn node_that_moves_is_found_by_its_peers_without_a_manager() {
    let (swarm, containers, plain) = swarm(Family::V4);
    swarm.agent(1).kill();
    let workers = &containers[1..];
    for number in [2, 3] {
        let started = replace_address(&swarm, Family::V4, number);
        await_ping(&swarm, &workers[0], &workers[1], started);
        await_ping(&swarm, &workers[1], &workers[0], started);
        await_ping(&swarm, &plain[1], &plain[2], started);
    }
    swarm.start(1);
    swarm.assert_joined(&containers[0], &containers[1]);
    swarm.assert_joined(&containers[0], &containers[2]);
}

fn agent_that_starts_on_a_host_with_another_address_is_found() {
    let (swarm, containers, plain) = swarm(Family::V4);
    for number in [2, 1] {
        swarm.agent(number).kill();
        replace_address(&swarm, Family::V4, number);
        let started = boot_time();
        swarm.start(number);
        await_traffic(&swarm, &containers, number, started);
        await_traffic(&swarm, &plain, number, started);
        await_managed(&swarm, 3, started);
    }
}

/// The last view had it there all the time, and its peers were told otherwise.
fn agent_that_starts_where_it_was_before_a_move_is_found_without_a_manager() {
    let (swarm, containers, plain) = swarm(Family::V4);
    swarm.agent(1).kill();
    let workers = &containers[1..];
    // Whichever of two nodes has the larger id connects.
    for (number, other) in [(2, 3), (3, 2)] {
        replace_address(&swarm, Family::V4, number);
        let told = || swarm.agent(other).log().contains("a peer is elsewhere now");
        assert!(eventually(PATIENCE, told), "{}", swarm.agent(other).log());
        swarm.agent(number).kill();
        put_address_back(&swarm, Family::V4, number);
        // What it was told is remembered.
        swarm.agent(other).kill();
        swarm.start(other);
        swarm.start(number);
        let started = boot_time();
        await_ping(&swarm, &workers[0], &workers[1], started);
        await_ping(&swarm, &workers[1], &workers[0], started);
        await_ping(&swarm, &plain[1], &plain[2], started);
    }
}

fn address_that_is_gone_is_told_of() {
    let swarm = Swarm::formed(2, Family::V4, Underlay::default());
    let host = swarm.lab.host(2);
    let change = |of: fn(&Netlink, &Link, IpNet) -> Result<(), NetlinkError>| {
        let change =
            |netlink: &Netlink| of(netlink, &netlink.link(&Host::underlay_name())?, subnet(host.v4()));
        Netlink::within(host.namespace(), change).unwrap();
    };
    let is_it =
        |warning: &String| warning.contains("gone from its host") && warning.contains(&host.v4().to_string());
    let is_told = || swarm.agent(2).status().warnings.iter().any(is_it);
    change(Netlink::remove_address);
    assert!(eventually(PATIENCE, is_told), "{:?}", swarm.agent(2).status());
    change(Netlink::add_address);
    assert!(eventually(PATIENCE, || !is_told()), "{:?}", swarm.agent(2).status());
}

fn address_that_is_taken_and_given_again_changes_nothing() {
    let (swarm, containers, plain) = swarm(Family::V4);
    let host = swarm.lab.host(2);
    let (old, spare) = (subnet(host.v4()), subnet(moved(host.v4())));
    Netlink::within(host.namespace(), |netlink| {
        let link = netlink.link(&Host::underlay_name())?;
        // A secondary address goes with the first one of its subnet.
        netlink.remove_address(&link, old)?;
        netlink.add_address(&link, spare)?;
        netlink.add_address(&link, old)
    })
    .unwrap();
    swarm.assert_joined(&containers[0], &containers[1]);
    swarm.assert_joined(&plain[0], &plain[1]);
    std::thread::sleep(Duration::from_secs(1));
    let node = swarm.agent(2).status().cluster.unwrap().node;
    assert_eq!(node.data.ip(), host.v4());
}

fn plain_vxlan_is_carried_at_another_address_once_its_port_is_free_there() {
    let (swarm, containers, plain) = swarm(Family::V4);
    let (agent, host) = (swarm.agent(2), swarm.lab.host(2));
    let there = moved(host.v4());
    let change = |change: fn(&Netlink, &Link, IpNet) -> Result<(), NetlinkError>, address| {
        Netlink::within(host.namespace(), |netlink| {
            let link = netlink.link(&Host::underlay_name())?;
            change(netlink, &link, address)
        })
        .unwrap();
    };
    // A secondary address, of the same subnet, would go with the first one.
    change(Netlink::add_address, IpNet::new(there, 25).unwrap());
    let taken = host.run_in(|| UdpSocket::bind((there, VXLAN_PORT))).unwrap().unwrap();
    change(Netlink::remove_address, subnet(host.v4()));
    await_traffic(&swarm, &containers, 2, boot_time());
    let told = |of: &str| agent.status().warnings.iter().any(|warning| warning.contains(of));
    assert!(eventually(PATIENCE, || told("unencrypted networks carry nothing here")), "{}", agent.log());
    // Looked at again and again, it stays so.
    std::thread::sleep(LOOK_INTERVAL + Duration::from_secs(1));
    let ping = Ping { count: 1, timeout: Duration::from_millis(100), ..Ping::default() };
    assert!(told("unencrypted networks") && !plain[0].ping(plain[1].address(Family::V4), &ping));

    drop(taken);
    assert!(eventually(2 * LOOK_INTERVAL, || !told("unencrypted networks")), "{}", agent.log());
    swarm.assert_joined(&plain[0], &plain[1]);
}

/// Three hosts in one cluster with a container on each in an encrypted network, and one in a plain one.
fn swarm(family: Family) -> (Swarm, Vec<Attached>, Vec<Attached>) {
    let (swarm, containers) = Swarm::formed(3, family, Underlay::default()).with_containers();
    swarm.create(&["--subnet", "10.78.0.0/24", "plain"]);
    let plain: Vec<_> =
        (1..=3).map(|number| swarm.attach(number, "plain", &format!("plain{number}"))).collect();
    for number in [1, 2] {
        swarm.assert_joined(&containers[0], &containers[number]);
        swarm.assert_joined(&plain[0], &plain[number]);
    }
    (swarm, containers, plain)
}

/// Takes a host's address away and gives it another; when that was.
fn replace_address(swarm: &Swarm, family: Family, number: usize) -> BootTime {
    let host = swarm.lab.host(number);
    let old = family.of(host);
    change_address(host, old, moved(old));
    boot_time()
}

fn put_address_back(swarm: &Swarm, family: Family, number: usize) {
    let host = swarm.lab.host(number);
    let old = family.of(host);
    change_address(host, moved(old), old);
}

fn change_address(host: &Host, from: IpAddr, to: IpAddr) {
    Netlink::within(host.namespace(), |netlink| {
        let link = netlink.link(&Host::underlay_name())?;
        netlink.remove_address(&link, subnet(from))?;
        netlink.add_address(&link, subnet(to))
    })
    .unwrap();
}

/// Where a host moves to.
fn moved(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(ip) => std::net::Ipv4Addr::from_bits(ip.to_bits() | 0x40).into(),
        IpAddr::V6(ip) => std::net::Ipv6Addr::from_bits(ip.to_bits() | 0x40).into(),
    }
}

fn subnet(address: IpAddr) -> IpNet {
    IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).unwrap()
}

/// Waits until a node carries traffic with every other one again, both ways, and asserts that it was soon.
fn await_traffic(swarm: &Swarm, containers: &[Attached], number: usize, started: BootTime) {
    let own = &containers[number - 1];
    for other in containers.iter().filter(|other| other.endpoint().node != own.endpoint().node) {
        await_ping(swarm, own, other, started);
        await_ping(swarm, other, own, started);
    }
}

fn await_ping(swarm: &Swarm, from: &Attached, to: &Attached, started: BootTime) {
    let ping = Ping { count: 1, timeout: Duration::from_millis(100), ..Ping::default() };
    for address in to.addresses() {
        let reached = || from.ping(address, &ping);
        assert!(eventually(Duration::from_secs(20), reached), "{address}: {}", swarm.drops());
    }
    let elapsed = boot_time().since(started);
    tell(&format!("{} reaches {} after {elapsed:?}", from.container.name(), to.container.name()));
    assert!(elapsed < SOON, "traffic came back after {elapsed:?}");
}

/// Waits until the manager serves a node again.
fn await_managed(swarm: &Swarm, number: usize, started: BootTime) {
    let served = || swarm.agent(number).try_ask::<ListNetworksResponse>(&["ls"]).is_some();
    assert!(eventually(Duration::from_secs(30), served), "{}", swarm.agent(number).log());
    let elapsed = boot_time().since(started);
    tell(&format!("the manager serves agent {number} after {elapsed:?}"));
    assert!(elapsed < Duration::from_secs(12), "the manager was found after {elapsed:?}");
}

fn link(container: &Attached) -> Link {
    Netlink::within(container.container.namespace(), |netlink| netlink.link(container.ifname())).unwrap()
}

/// How often an agent looks at its underlay where it is not told of a change.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Seconds, on a busy machine.
const SOON: Duration = Duration::from_secs(6);
