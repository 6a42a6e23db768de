//! Packet sizes end to end: what is too big is answered, connections fit, and the MTU follows the
//! underlay's.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Underlay, eventually, tcp_throughput};

use support::swarm::{Attached, Family, PATIENCE, Swarm, V4_SUBNET, V6_SUBNET};
use support::test_program;

test_program! {
    sender_of_a_packet_that_is_too_big_hears_of_it
    connections_fit_whatever_the_containers_believe
}

fn sender_of_a_packet_that_is_too_big_hears_of_it() {
    for is_encrypted in [true, false] {
        let (swarm, [one, two]) = pair(is_encrypted);
        // As a router in the container would with packets from an interface of its own.
        set_mtu(&one, 9_000);
        for address in two.addresses() {
            let before = swarm.agent(1).dropped(DropReason::FrameTooBig);
            assert!(is_datagram_received(&one, &two, address, 3_000), "{address}: {}", swarm.drops());
            let dropped = swarm.agent(1).dropped(DropReason::FrameTooBig) - before;
            assert!(dropped >= 1, "none was too big, so nothing was answered");
        }
    }
}

fn connections_fit_whatever_the_containers_believe() {
    for is_encrypted in [true, false] {
        let (swarm, [one, two]) = pair(is_encrypted);
        set_mtu(&one, 9_000);
        set_mtu(&two, 9_000);
        for address in two.addresses() {
            let (from, to) = (one.container.namespace(), two.container.namespace());
            let report = tcp_throughput(from, to, address, Duration::from_millis(500)).unwrap();
            assert!(report.bytes > 1_000_000, "{report:?}");
        }
        for agent in &swarm.agents {
            assert_eq!(agent.dropped(DropReason::FrameTooBig), 0, "the segments were not lowered at once");
        }
    }
}

/// Two hosts with a container each that reach each other.
fn pair(is_encrypted: bool) -> (Swarm, [Attached; 2]) {
    pair_over(Underlay::default(), is_encrypted)
}

fn pair_over(underlay: Underlay, is_encrypted: bool) -> (Swarm, [Attached; 2]) {
    let swarm = Swarm::formed(2, Family::V4, underlay);
    let encrypted: &[&str] = if is_encrypted { &["--encrypted"] } else { &[] };
    swarm.create(&[encrypted, &["--subnet", V4_SUBNET, "--subnet", V6_SUBNET, "red"]].concat());
    let containers = [1, 2].map(|number| swarm.attach(number, "red", &format!("c{number}")));
    if is_encrypted {
        swarm.await_keys(1);
    }
    swarm.assert_joined(&containers[0], &containers[1]);
    (swarm, containers)
}

/// Sends datagrams, again and again, until one of them arrives whole.
fn is_datagram_received(from: &Attached, to: &Attached, address: IpAddr, len: usize) -> bool {
    let receiver = to.container.run_in(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let sender = from.container.run_in(|| UdpSocket::bind(SocketAddr::new(any, 0)).unwrap()).unwrap();
    let (bytes, mut buffer) = (vec![7; len], vec![0; len + 1]);
    eventually(PATIENCE, || {
        // An answer to an earlier one is reported here.
        let _ = sender.send_to(&bytes, receiver.local_addr().unwrap());
        std::thread::sleep(Duration::from_millis(20));
        receiver.recv(&mut buffer).is_ok_and(|received| buffer[..received] == bytes)
    })
}

fn set_mtu(container: &Attached, mtu: u32) {
    Netlink::within(container.container.namespace(), |netlink| {
        netlink.set_mtu(&netlink.link(container.ifname())?, mtu)
    })
    .unwrap();
}
