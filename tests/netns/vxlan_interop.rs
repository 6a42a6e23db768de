//! Unencrypted networks are VXLAN as RFC 7348 has it: the kernel's own device is the other end.

use std::net::SocketAddr;
use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::id::{IfName, MacAddr};
use overlayd::io::netlink::{Netlink, Vxlan};
use overlayd::io::netns::NetNs;
use overlayd::lab::{Capture, Ping, Underlay, eventually};

use crate::support::frames::{self, VXLAN_PORT, datagrams};
use crate::support::swarm::{Attached, Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    kernel_vxlan_device_and_container_ping_each_other_over_ipv4
    kernel_vxlan_device_and_container_ping_each_other_over_ipv6
    address_that_is_not_placed_on_the_kernels_host_does_not_get_in
    tagged_frames_pass_between_the_kernels_device_and_a_container
}

fn kernel_vxlan_device_and_container_ping_each_other_over_ipv4() {
    assert_interoperates(Family::V4);
}

fn kernel_vxlan_device_and_container_ping_each_other_over_ipv6() {
    assert_interoperates(Family::V6);
}

fn address_that_is_not_placed_on_the_kernels_host_does_not_get_in() {
    let (swarm, one, two) = with_kernel_device(Family::V4);
    assert_reached_from_kernel(&swarm, &one);
    let forged = "10.9.0.77/24".parse().unwrap();
    Netlink::within(swarm.lab.host(2).namespace(), |netlink| {
        let link = netlink.link(&device())?;
        netlink.delete(&link)
    })
    .unwrap();
    add_device(&swarm, &one, Family::V4, two.mac(), &[forged]);
    let inside = one.capture();
    let ping = Ping { count: 3, timeout: Duration::from_millis(200), ..Ping::default() };
    let to = one.address(Family::V4);
    assert_eq!(ping.run(swarm.lab.host(2).namespace(), to).unwrap().received(), 0);
    let drops = || {
        let agent = swarm.agent(1);
        agent.dropped(DropReason::PeerNeighborSpoofed) + agent.dropped(DropReason::PeerIpSpoofed)
    };
    assert!(eventually(Duration::from_secs(5), || drops() > 0));
    let expected = [DropReason::PeerNeighborSpoofed, DropReason::PeerIpSpoofed];
    // The kernel's device also looks for routers, which is dropped for another reason.
    let is_told = || {
        assert_eq!(ping.run(swarm.lab.host(2).namespace(), to).unwrap().received(), 0);
        swarm.agent(1).peers().peers[0].last_drop.is_some_and(|reason| expected.contains(&reason))
    };
    assert!(eventually(Duration::from_secs(5), is_told), "{:?}", swarm.agent(1).peers());
    let seen = inside.stop().unwrap();
    assert!(!seen.iter().any(|frame| frames::contains(frame, &[10, 9, 0, 77])), "the forgery got in");
}

fn tagged_frames_pass_between_the_kernels_device_and_a_container() {
    let (swarm, one, two) = with_kernel_device(Family::V4);
    assert_reached_from_kernel(&swarm, &one);
    let payload = b"in a VLAN";
    let tagged = |from: &Attached, to: &Attached| {
        let at = |container: &Attached| SocketAddr::new(container.address(Family::V4), 7);
        let mut frame = frames::udp((from.mac(), to.mac()), at(from), at(to), payload);
        frame.splice(12..12, [0x81, 0, 0x20, 7]);
        frame
    };
    let crosses = |(from, from_name): (&NetNs, &IfName), (to, to_name): (&NetNs, &IfName), frame: Vec<u8>| {
        let crosses = || {
            let capture = Capture::start(to, to_name).unwrap();
            frames::send(from, from_name, std::slice::from_ref(&frame));
            std::thread::sleep(Duration::from_millis(50));
            let mut seen = capture.stop().unwrap();
            seen.retain(|frame| frames::contains(frame, payload));
            assert!(seen.iter().all(|seen| *seen == frame), "{seen:02x?}");
            !seen.is_empty()
        };
        assert!(eventually(PATIENCE, crosses), "{:?}", swarm.agent(1).stats());
    };
    let name = device();
    let [device, container] =
        [(swarm.lab.host(2).namespace(), &name), (one.container.namespace(), one.ifname())];
    crosses(device, container, tagged(&two, &one));
    crosses(container, device, tagged(&one, &two));
}

fn assert_interoperates(family: Family) {
    let (swarm, one, two) = with_kernel_device(family);
    let capture = swarm.capture(1);
    assert_reached_from_kernel(&swarm, &one);
    swarm.assert_reaches(&one, &two, Duration::from_secs(10));
    let mtu = one.response.mtu;
    for (to, headers) in [(Family::V4, 28), (Family::V6, 48)] {
        let largest = Ping { payload: vec![0xa5; usize::from(mtu) - headers], ..Ping::default() };
        assert!(one.ping(two.address(to), &largest), "{mtu} bytes to {to:?}");
    }

    let seen = datagrams(&capture.stop().unwrap());
    let hosts = [family.of(swarm.lab.host(1)), family.of(swarm.lab.host(2))];
    for from in hosts {
        assert!(seen.iter().filter(|datagram| datagram.from.ip() == from).count() > 12);
    }
    for datagram in &seen {
        assert_eq!(datagram.to.port(), VXLAN_PORT, "{datagram:?}");
        // The I flag alone, reserved bits zero.
        assert_eq!((&datagram.payload[..4], datagram.payload[7]), ([8, 0, 0, 0].as_slice(), 0));
    }
}

/// A network of two hosts; on the second, a kernel device has taken the place of agent and container.
fn with_kernel_device(family: Family) -> (Swarm, Attached, Attached) {
    let swarm = Swarm::formed(2, family, Underlay::default());
    swarm.create(&["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "plain"]);
    let (one, two) = (swarm.attach(1, "plain", "c1"), swarm.attach(2, "plain", "c2"));
    swarm.assert_joined(&one, &two);
    swarm.agent(2).kill();
    Netlink::within(two.container.namespace(), |netlink| netlink.delete(&netlink.link(two.ifname())?))
        .unwrap();
    add_device(&swarm, &one, family, two.mac(), &two.endpoint().addresses);
    (swarm, one, two)
}

fn add_device(swarm: &Swarm, one: &Attached, family: Family, mac: MacAddr, addresses: &[ipnet::IpNet]) {
    let vni = swarm.agent(1).inspect("plain").network.vni;
    let (host, remote) = (swarm.lab.host(2), family.of(swarm.lab.host(1)));
    let name = device();
    Netlink::within(host.namespace(), |netlink| {
        netlink.add_vxlan(&Vxlan { name: &name, vni, local: family.of(host), port: VXLAN_PORT })?;
        let link = netlink.link(&name)?;
        netlink.set_mac(&link, mac)?;
        netlink.set_mtu(&link, one.response.mtu.into())?;
        // The container, and what has no entry of its own: ARP and neighbour solicitations.
        netlink.add_vxlan_remote(&link, one.mac(), remote)?;
        netlink.add_vxlan_remote(&link, MacAddr::new([0; 6]), remote)?;
        netlink.configure(&link, addresses, &[])
    })
    .unwrap();
}

fn assert_reached_from_kernel(swarm: &Swarm, one: &Attached) {
    let ping = Ping { count: 3, timeout: Duration::from_millis(500), ..Ping::default() };
    for to in one.addresses() {
        let reached = || ping.run(swarm.lab.host(2).namespace(), to).is_ok_and(|report| report.is_complete());
        assert!(eventually(Duration::from_secs(10), reached), "{to}: {:?}", swarm.agent(1).stats());
    }
}

fn device() -> IfName {
    "vxlan0".parse().unwrap()
}
