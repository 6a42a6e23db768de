//! The overlay end to end: real agents, their command line, containers as namespaces, real packets.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::api::types::{
    DetachResponse, InspectNetworkResponse, ListNetworksResponse, ListNodesResponse, NodeState, PeerState,
};
use overlayd::cluster::Role;
use overlayd::drop_reason::DropReason;
use overlayd::id::IfName;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Ping, Underlay, eventually, tcp_throughput};

use crate::support::frames::{self, Seen, datagrams, see};
use crate::support::swarm::{Agent, Attached, Family, Swarm};
use crate::support::tests;

tests! {
    containers_ping_over_either_underlay
    containers_of_three_hosts_ping_each_other
    containers_of_an_unencrypted_network_ping
    tcp_crosses_the_encrypted_network
    frames_between_local_containers_never_leave_the_node
    broadcast_reaches_every_member_once
    neighbors_are_answered_from_the_table
    largest_packet_passes_over_either_underlay
    container_reaches_the_holder_of_the_gateway_address
    detached_containers_go_and_their_network_with_them
    worker_that_left_can_join_again
    listings_tell_what_is_there
}

fn containers_ping_over_either_underlay() {
    for family in Family::BOTH {
        let (swarm, containers) = Swarm::formed(2, family, Underlay::default()).with_containers();
        swarm.assert_joined(&containers[0], &containers[1]);
    }
}

fn containers_of_three_hosts_ping_each_other() {
    let (swarm, containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    for (index, from) in containers.iter().enumerate() {
        for to in &containers[index + 1..] {
            swarm.assert_joined(from, to);
        }
    }
}

fn containers_of_an_unencrypted_network_ping() {
    for family in Family::BOTH {
        let swarm = Swarm::formed(2, family, Underlay::default());
        swarm.create(&["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "plain"]);
        let (one, two) = (swarm.attach(1, "plain", "c1"), swarm.attach(2, "plain", "c2"));
        let overhead = if family == Family::V4 { 50 } else { 70 };
        assert_eq!((one.response.mtu, two.response.mtu), (1500 - overhead, 1500 - overhead));
        let capture = swarm.capture(1);
        swarm.assert_joined(&one, &two);
        let seen = datagrams(&capture.stop().unwrap());
        assert!(seen.len() >= 12, "{} datagrams", seen.len());
        assert!(seen.iter().all(|datagram| datagram.to.port() == frames::VXLAN_PORT), "{seen:?}");

        let vtep = SocketAddr::new(family.of(swarm.lab.host(2)), frames::VXLAN_PORT);
        let peers = swarm.agent(1).peers().peers;
        let [peer] = peers.as_slice() else { panic!("{peers:?}") };
        assert_eq!((peer.network_name.as_str(), peer.state, peer.remote), ("plain", PeerState::Plain, vtep));
        assert!(peer.suite.is_none() && peer.outbound_spis.is_empty() && peer.inbound_spis.is_empty());
        let stats = swarm.agent(1).stats();
        let [traffic] = stats.peers.as_slice() else { panic!("{stats:?}") };
        for (sent, received) in [(peer.sent, peer.received), (traffic.sent, traffic.received)] {
            assert!(sent.packets >= 12 && sent.bytes >= 12 * 98, "{sent:?}");
            assert!(received.packets >= 12 && received.bytes >= 12 * 98, "{received:?}");
        }
        assert!(swarm.agent(1).done(&["peers"]).contains("plain"));

        // The slot that it had begins anew for the next one.
        swarm.agent(2).done(&["detach", "plain", "--netns", "c2"]);
        assert!(eventually(Duration::from_secs(10), || swarm.agent(1).peers().peers.is_empty()));
        let _third = swarm.attach(2, "plain", "c3");
        let back = || swarm.agent(1).peers().peers.first().is_some_and(|peer| peer.sent.packets < 12);
        assert!(eventually(Duration::from_secs(10), back), "{:?}", swarm.agent(1).peers());
    }
}

fn tcp_crosses_the_encrypted_network() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    swarm.assert_joined(one, two);
    for address in two.addresses() {
        let (from, to) = (one.container.namespace(), two.container.namespace());
        let report = tcp_throughput(from, to, address, Duration::from_millis(500)).unwrap();
        assert!(report.bytes > 1_000_000, "{report:?}");
    }
}

fn frames_between_local_containers_never_leave_the_node() {
    let swarm = Swarm::pair();
    // Encrypted, what the containers say of themselves to all (MLD) could not be told from the rest.
    swarm.create(&["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "plain"]);
    let [one, neighbor] = ["c1", "c2"].map(|name| swarm.attach(1, "plain", name));
    let other = swarm.attach(2, "plain", "c3");
    let leaving = |to: &Attached| {
        let capture = swarm.capture(1);
        swarm.assert_joined(&one, to);
        let seen = datagrams(&capture.stop().unwrap());
        let is_unicast = |datagram: &&frames::Datagram| datagram.payload[8] & 1 == 0;
        seen.iter().filter(is_unicast).count()
    };
    assert_eq!(leaving(&neighbor), 0);
    assert!(leaving(&other) > 0, "the capture shows nothing, and so does this test");
}

fn broadcast_reaches_every_member_once() {
    let (swarm, mut containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    containers.push(swarm.attach(1, "red", "c4"));
    for to in &containers[1..] {
        swarm.assert_joined(&containers[0], to);
    }
    let captures: Vec<_> = containers.iter().map(Attached::capture).collect();
    let before: Vec<_> = swarm.agents[1..].iter().map(Agent::received).collect();
    let group: [SocketAddr; 3] =
        ["10.77.0.255:7", "239.1.2.3:7", "[ff02::1]:7"].map(|address| address.parse().unwrap());
    for to in group {
        let from = SocketAddr::new(if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
        containers[0]
            .container
            .run_in(|| {
                let socket = UdpSocket::bind(from).unwrap();
                socket.set_broadcast(true).unwrap();
                let index = Netlink::here().unwrap().link(containers[0].ifname()).unwrap().index;
                let to = match to {
                    SocketAddr::V6(to) => std::net::SocketAddrV6::new(*to.ip(), to.port(), 0, index).into(),
                    SocketAddr::V4(_) => to,
                };
                // IPv4 multicast needs a route, which a network without gateway does not give.
                if let IpAddr::V4(ip) = to.ip()
                    && ip.is_multicast()
                {
                    let socket = socket2::SockRef::from(&socket);
                    let IpAddr::V4(own) = containers[0].address(Family::V4) else { unreachable!("IPv4") };
                    socket.set_multicast_if_v4(&own).unwrap();
                }
                socket.send_to(b"to everybody", to).unwrap();
            })
            .unwrap();
    }
    for (agent, received) in swarm.agents[1..].iter().zip(&before) {
        agent.await_received(*received, 3);
    }
    for (capture, container) in captures.into_iter().zip(&containers) {
        let seen = datagrams(&capture.stop().unwrap());
        for to in group {
            let copies = seen.iter().filter(|d| d.to.ip() == to.ip() && d.payload == b"to everybody").count();
            assert_eq!(copies, 1, "{} to {to}", container.container.name());
        }
    }
}

fn neighbors_are_answered_from_the_table() {
    let swarm = Swarm::pair();
    // Unencrypted, so that the test would see what crosses.
    swarm.create(&["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "plain"]);
    let (one, two) = (swarm.attach(1, "plain", "c1"), swarm.attach(2, "plain", "c2"));
    let (wire, inside) = (swarm.capture(1), one.capture());
    swarm.assert_joined(&one, &two);
    let nobody = "10.9.0.99".parse().unwrap();
    assert!(!one.pings(nobody, 1));
    let inside = inside.stop().unwrap();
    let asked = inside.iter().any(|frame| frames::ether_type(frame) == Some(0x0806) && frame[21] == 1);
    assert!(asked, "the container asked for nobody, so this test shows nothing");
    for datagram in datagrams(&wire.stop().unwrap()) {
        let inner = &datagram.payload[8..];
        assert_ne!(frames::ether_type(inner), Some(0x0806), "ARP crossed the wire");
        let is_discovery = inner.get(12..14) == Some(&[0x86, 0xdd])
            && inner.get(20) == Some(&58)
            && matches!(inner.get(54), Some(133..=135 | 137));
        assert!(!is_discovery, "neighbour discovery crossed the wire: {inner:02x?}");
    }
    assert!(swarm.agent(1).dropped(DropReason::UnknownNeighbor) >= 1);
}

fn largest_packet_passes_over_either_underlay() {
    for (family, mtu) in [(Family::V4, 1408), (Family::V6, 1388)] {
        let underlay = Underlay { segment_offload: false, ..Underlay::default() };
        let (swarm, containers) = Swarm::formed(2, family, underlay).with_containers();
        let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
        for container in [one, two] {
            assert_eq!(container.response.mtu, mtu);
            let link = Netlink::within(container.container.namespace(), |n| n.link(container.ifname()));
            assert_eq!(link.unwrap().mtu, u32::from(mtu));
        }
        swarm.assert_joined(one, two);
        let (wire, inside) = (swarm.capture(2), two.capture());
        for (to, headers) in [(two.address(Family::V4), 28), (two.address(Family::V6), 48)] {
            let largest = Ping { payload: vec![0xa5; usize::from(mtu) - headers], ..Ping::default() };
            assert!(one.ping(to, &largest), "{to} with {mtu} bytes\n");
        }
        let whole = inside.stop().unwrap().into_iter().filter(|f| f.len() == 14 + usize::from(mtu)).count();
        assert_eq!(whole, 20, "each of the echo messages in one piece");
        let mut largest = 0;
        for frame in wire.stop().unwrap() {
            assert!(frame.len() <= 1514, "{} bytes on a wire of 1500", frame.len());
            assert_ne!(see(&frame), Seen::Other, "a fragment? {frame:02x?}");
            largest = largest.max(frame.len());
        }
        assert!(largest > 1500, "{largest} bytes at most: the underlay could carry more");
    }
}

fn container_reaches_the_holder_of_the_gateway_address() {
    let swarm = Swarm::pair();
    let gateways = ["--gateway", "10.77.0.1", "--gateway", "fd77::1"];
    let subnets = ["--encrypted", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"];
    swarm.create(&[subnets.as_slice(), &gateways, &["red"]].concat());
    let one = swarm.attach(1, "red", "c1");
    let gateway = swarm.attach_with(2, "red", "gateway", &["--ip", "10.77.0.1", "--ip", "fd77::1"]);
    swarm.await_keys(1);
    // A host behind the gateway, which forwards.
    let outside = swarm.lab.host(2).container("outside").unwrap();
    let (inner, outer): (IfName, IfName) = ("outward".parse().unwrap(), "eth0".parse().unwrap());
    Netlink::within(gateway.container.namespace(), |netlink| {
        netlink.add_veth(&inner, &outer, outside.namespace())?;
        let link = netlink.link(&inner)?;
        netlink.configure(&link, &nets(["198.51.100.1/24", "2001:db8:99::1/64"]), &[])
    })
    .unwrap();
    Netlink::within(outside.namespace(), |netlink| {
        let gateways = ["198.51.100.1", "2001:db8:99::1"].map(|gateway| gateway.parse().unwrap());
        let link = netlink.link(&outer)?;
        netlink.configure(&link, &nets(["198.51.100.2/24", "2001:db8:99::2/64"]), &gateways)
    })
    .unwrap();
    gateway
        .container
        .run_in(|| {
            for family in ["ipv4", "ipv6"] {
                std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").unwrap();
            }
        })
        .unwrap();
    for address in ["198.51.100.2", "2001:db8:99::2"] {
        let reached = || one.pings(address.parse().unwrap(), 2);
        assert!(eventually(Duration::from_secs(10), reached), "{address}\n{}", swarm.drops());
    }
}

fn detached_containers_go_and_their_network_with_them() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    swarm.assert_joined(one, two);
    let refusal = swarm.agent(1).refused(&["rm", "red"]);
    assert!(refusal.contains(&one.endpoint().id.to_string()) || refusal.contains("c1"), "{refusal}");

    let gone: DetachResponse = swarm.agent(1).ask(&["detach", "red", "--netns", "c1"]);
    assert_eq!(gone.endpoint, one.endpoint().id);
    let link = Netlink::within(one.container.namespace(), |netlink| netlink.link(one.ifname()));
    assert!(link.is_err(), "the interface is still there");
    let refusal = swarm.agent(1).refused(&["detach", "red", "--netns", "c1"]);
    assert!(refusal.contains("no endpoint in"), "{refusal}");
    // The node is no member any more, so the other one forgets its keys.
    swarm.agent(2).await_keys(0);

    let again = swarm.attach_with(1, "red", "c3", &["--ip", &one.address(Family::V4).to_string()]);
    swarm.await_keys(1);
    swarm.assert_joined(&again, two);
    let id = two.endpoint().id.to_string();
    let _: DetachResponse = swarm.agent(2).ask(&["detach", "red", "--endpoint", &id]);
    swarm.agent(1).done(&["detach", "red", "--netns", "c3"]);
    swarm.agent(1).done(&["rm", "red"]);
    let left: ListNetworksResponse = swarm.agent(1).ask(&["ls"]);
    assert!(left.networks.is_empty());
}

fn worker_that_left_can_join_again() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let init = swarm.init(Family::V4);
    let first = swarm.join(2, &init);
    swarm.create_encrypted("red");
    let one = swarm.attach(1, "red", "c1");
    let _two = swarm.attach(2, "red", "c2");
    let refusal = swarm.agent(2).refused(&["leave"]);
    assert!(refusal.contains("detach them first"), "{refusal}");
    swarm.agent(2).done(&["detach", "red", "--netns", "c2"]);
    swarm.agent(2).done(&["leave"]);
    assert!(swarm.agent(2).status().cluster.is_none());
    let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    assert_eq!(nodes.nodes.len(), 1);

    let second = swarm.join(2, &init);
    assert_ne!(first.node.id, second.node.id);
    let two = swarm.attach(2, "red", "c3");
    swarm.assert_joined(&one, &two);
}

fn listings_tell_what_is_there() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    swarm.assert_joined(one, two);
    let (manager, worker) = (swarm.agent(1), swarm.agent(2));

    let nodes: ListNodesResponse = manager.ask(&["node", "ls"]);
    let mut roles: Vec<_> = nodes.nodes.iter().map(|n| (n.node.role, n.is_self, n.state)).collect();
    roles.sort_by_key(|(role, ..)| *role == Role::Worker);
    assert_eq!(roles, [(Role::Manager, true, NodeState::Ready), (Role::Worker, false, NodeState::Ready)]);

    for agent in [manager, worker] {
        let status = agent.status();
        assert_eq!(status.esp_key_log.as_ref(), Some(&agent.key_log()));
        let cluster = status.cluster.expect("a cluster");
        assert_eq!((cluster.network_count, cluster.endpoint_count), (1, 1));
        assert_eq!(cluster.node.underlay_mtu, 1500);
        assert!(cluster.managers.iter().all(|manager| manager.connected) && cluster.managers.len() == 1);

        let peers = agent.peers().peers;
        let [peer] = peers.as_slice() else { panic!("{peers:?}") };
        assert_eq!((peer.state, &peer.failure), (PeerState::Established, &None));
        // One for each lane that sends; on one machine both nodes have as many lanes.
        let lanes = usize::from(cluster.lane_count);
        assert_eq!((peer.outbound_spis.len(), peer.inbound_spis.len()), (lanes, lanes));
        assert!(peer.sent.packets >= 6 && peer.received.packets >= 6, "{peer:?}");
        assert!(peer.suite.is_some() && peer.key_age_seconds.is_some_and(|age| age < 60));
        assert_eq!(peer.remote.port(), frames::ESP_PORT);

        let stats = agent.stats();
        assert!(stats.endpoints.len() == 1 && stats.endpoints[0].sent.packets >= 6, "{stats:?}");
        for reason in [DropReason::SourceIpSpoofed, DropReason::AuthenticationFailed, DropReason::SendFailed]
        {
            assert_eq!(agent.dropped(reason), 0, "{reason:?}");
        }
    }
    let inspected: InspectNetworkResponse = manager.inspect("red");
    assert_eq!(inspected.effective_mtu, Some(1408));
    let mut endpoints: Vec<_> = inspected.endpoints.iter().map(|endpoint| endpoint.id).collect();
    let mut expected = vec![one.endpoint().id, two.endpoint().id];
    endpoints.sort();
    expected.sort();
    assert_eq!((endpoints, inspected.nodes.len()), (expected, 2));
    let networks: ListNetworksResponse = manager.ask(&["ls"]);
    assert_eq!((networks.networks.len(), networks.networks[0].endpoint_count), (1, 2));

    // What people see names the same things.
    for (command, word) in [("ls", "red"), ("peers", "established"), ("status", "WARNING"), ("stats", "red")]
    {
        let text = manager.done(&[command]);
        assert!(text.contains(word), "{command}: {text}");
    }
    let refusal = worker.refused(&["create", "blue"]);
    let address = swarm.lab.host(1).v4().to_string();
    assert!(refusal.contains("only managers may") && refusal.contains(&address), "{refusal}");
}

fn nets<const N: usize>(nets: [&str; N]) -> [IpNet; N] {
    nets.map(|net| net.parse().unwrap())
}
