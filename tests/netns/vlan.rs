//! VLANs of the containers: their tags cross either kind of network, and what the kernels at its ends make
//! of them.
//!
//! The frames are made by hand, because a kernel may be without devices for VLANs.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::id::MacAddr;
use overlayd::lab::{Underlay, eventually};

use crate::support::frames;
use crate::support::swarm::{Attached, Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    frames_arrive_with_the_tag_that_they_were_sent_with
    tagged_question_is_answered_with_its_tag
    kernel_takes_tagged_frames_of_vlan_0
    tagged_packet_that_is_too_big_is_answered_in_its_vlan
}

fn frames_arrive_with_the_tag_that_they_were_sent_with() {
    for encrypted in [&["--encrypted"][..], &[]] {
        let swarm = Swarm::formed(2, Family::V4, Underlay::default());
        swarm.create(&[encrypted, &["--subnet", "10.77.0.0/24", "net"]].concat());
        let (one, two) = (swarm.attach_quietly(1, "net", "c1"), swarm.attach_quietly(2, "net", "c2"));
        let neighbor = swarm.attach_quietly(1, "net", "c3");
        swarm.assert_joined(&one, &two);
        for (host, to) in [(2, &two), (1, &neighbor)] {
            let inside = to.capture();
            // Also another VLAN and priority, and to everybody.
            let mut sent = [7, 0xe008, 7].map(|tci| in_vlan(tci, &datagram(&one, to, Family::V4)));
            sent[2][..6].copy_from_slice(&MacAddr::BROADCAST.octets());
            let before = swarm.agent(host).delivered();
            frames::send(one.container.namespace(), one.ifname(), &sent);
            let are_delivered = || swarm.agent(host).delivered() - before == sent.len() as u64;
            assert!(eventually(PATIENCE, are_delivered), "{}", swarm.drops());
            let mut arrived = inside.stop().unwrap();
            arrived.retain(|frame| frames::contains(frame, PAYLOAD));
            assert_eq!(arrived, sent, "{encrypted:?} {}", swarm.drops());
        }
    }
}

fn tagged_question_is_answered_with_its_tag() {
    let (swarm, one, two) = joined();
    let (IpAddr::V4(own), IpAddr::V4(wanted)) = (one.address(Family::V4), two.address(Family::V4)) else {
        unreachable!("IPv4")
    };
    let (inside, wire) = (one.capture(), swarm.capture(1));
    let nobody = MacAddr::new([0; 6]);
    let question = frames::arp((one.mac(), MacAddr::BROADCAST), 1, (one.mac(), own), (nobody, wanted));
    let answer = frames::arp((two.mac(), one.mac()), 2, (two.mac(), wanted), (one.mac(), own));
    let before = swarm.agent(1).delivered();
    frames::send(one.container.namespace(), one.ifname(), &[in_vlan(7, &question)]);
    assert!(eventually(PATIENCE, || swarm.agent(1).delivered() > before), "{}", swarm.drops());
    let seen = inside.stop().unwrap();
    assert!(seen.contains(&in_vlan(7, &answer)), "{seen:02x?}");
    assert!(!seen.contains(&answer));
    let asked = |frame: &Vec<u8>| frames::contains(frame, &question[14..]);
    assert!(!wire.stop().unwrap().iter().any(asked), "the question crossed the wire");
}

/// VLAN 0 is none: the tag carries a priority, and is taken off where the packet is taken.
fn kernel_takes_tagged_frames_of_vlan_0() {
    const COUNT: usize = 40;
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = [&containers[0], &containers[1]];
    swarm.assert_joined(one, two);
    for family in Family::BOTH {
        let to = SocketAddr::new(two.address(family), PORT);
        let socket = two.container.run_in(|| UdpSocket::bind(to)).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // A train, so that the lanes have something to merge.
        let train = vec![in_vlan(0x6000, &datagram(one, two, family)); COUNT];
        frames::send(one.container.namespace(), one.ifname(), &train);
        for number in 0..COUNT {
            let mut buffer = [0; 2_000];
            let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| {
                panic!("datagram {number} over {family:?}: {error}\n{}", swarm.drops())
            });
            assert_eq!((from, &buffer[..length]), (SocketAddr::new(one.address(family), PORT), PAYLOAD));
        }
    }
}

fn tagged_packet_that_is_too_big_is_answered_in_its_vlan() {
    let (swarm, one, two) = joined();
    let mtu = one.response.mtu - 4;
    let inside = one.capture();
    let [fits, long] = [0, 1].map(|more| {
        let payload = vec![0xa5; usize::from(mtu) - 28 + more];
        let [from, to] = [&one, &two].map(|container| SocketAddr::new(container.address(Family::V4), PORT));
        in_vlan(7, &frames::udp((one.mac(), two.mac()), from, to, &payload))
    });
    let before = swarm.agent(2).delivered();
    frames::send(one.container.namespace(), one.ifname(), &[fits, long.clone()]);
    assert!(
        eventually(PATIENCE, || swarm.agent(1).dropped(DropReason::FrameTooBig) == 1),
        "{}",
        swarm.drops()
    );
    assert!(eventually(PATIENCE, || swarm.agent(2).delivered() == before + 1), "{}", swarm.drops());
    std::thread::sleep(Duration::from_millis(50));
    let seen = inside.stop().unwrap();
    // Destination unreachable, fragmentation needed, and the packet from its IP header on.
    let told = |frame: &&Vec<u8>| frame[12..16] == [0x81, 0, 0, 7] && frame[38..40] == [3, 4];
    let answer = seen.iter().find(told).expect("an answer");
    assert_eq!((&answer[44..46], &answer[46..66]), (&mtu.to_be_bytes()[..], &long[18..38]));
}

/// Two hosts with an encrypted network, and containers that send nothing but what the test sends.
fn joined() -> (Swarm, Attached, Attached) {
    let swarm = Swarm::formed(2, Family::V4, Underlay::default());
    swarm.create(&["--encrypted", "--subnet", "10.77.0.0/24", "red"]);
    let (one, two) = (swarm.attach_quietly(1, "red", "c1"), swarm.attach_quietly(2, "red", "c2"));
    swarm.assert_joined(&one, &two);
    (swarm, one, two)
}

fn datagram(from: &Attached, to: &Attached, family: Family) -> Vec<u8> {
    let at = |container: &Attached| SocketAddr::new(container.address(family), PORT);
    frames::udp((from.mac(), to.mac()), at(from), at(to), PAYLOAD)
}

fn in_vlan(tci: u16, frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &[0x81, 0x00], &tci.to_be_bytes(), rest].concat()
}

const PORT: u16 = 7_777;
const PAYLOAD: &[u8] = b"what is in a VLAN of the containers' own";
