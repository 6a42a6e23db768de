//! Packet sizes end to end: what is too big is answered, connections fit, and the MTU follows the
//! underlay's.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Host, Underlay, eventually};

use crate::support::streams::{assert_run_is_intact, assert_stream_is_intact};
use crate::support::swarm::{Attached, Family, PATIENCE, Swarm, V4_SUBNET, V6_SUBNET};
use crate::support::tests;

tests! {
    sender_of_a_packet_that_is_too_big_hears_of_it
    connections_fit_whatever_the_containers_believe
    large_underlay_is_used_without_a_fragment
    nothing_is_fragmented_over_ipv4_whatever_the_mtu
    nothing_is_fragmented_over_ipv6_whatever_the_mtu
    containers_follow_the_underlay_up_and_down
    container_without_ipv6_has_none_after_an_underlay_that_was_too_small_for_it
    smaller_underlay_counts_at_once_without_a_manager
    agent_that_starts_on_another_underlay_fits_its_containers
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
            assert_stream_is_intact(from, (to, address), STREAM);
        }
        for agent in &swarm.agents {
            assert_eq!(agent.dropped(DropReason::FrameTooBig), 0, "the segments were not lowered at once");
        }
    }
}

fn large_underlay_is_used_without_a_fragment() {
    let underlay = Underlay { mtu: 9_000, segment_offload: false };
    for (is_encrypted, mtu) in [(true, 8_908), (false, 8_950)] {
        let (swarm, [one, two]) = pair_over(underlay, is_encrypted);
        assert_eq!([one.response.mtu, two.response.mtu], [mtu; 2]);
        assert_eq!(swarm.agent(1).inspect("red").effective_mtu, Some(mtu));
        let longest = assert_carries(&swarm, &one, &two, mtu);
        assert!((8_990..=9_000).contains(&longest), "{longest}");
    }
}

fn nothing_is_fragmented_over_ipv4_whatever_the_mtu() {
    assert_nothing_is_fragmented(Family::V4);
}

fn nothing_is_fragmented_over_ipv6_whatever_the_mtu() {
    assert_nothing_is_fragmented(Family::V6);
}

/// With super-frames of TCP and UDP, and datagrams as long as the network takes and longer, of which the
/// sender is told: no packet between the hosts is a fragment, may become one or is longer than the underlay.
fn assert_nothing_is_fragmented(family: Family) {
    // 1,280 leaves less than IPv6 needs.
    for (is_encrypted, underlay, subnets) in [
        (true, 1_280, &[V4_SUBNET][..]),
        // No whole words of ESP's are left of it.
        (true, 1_450, BOTH_SUBNETS),
        (false, 1_400, BOTH_SUBNETS),
        (true, 9_000, BOTH_SUBNETS),
    ] {
        let swarm = Swarm::formed(2, family, Underlay { mtu: underlay, segment_offload: false });
        let overhead = match (is_encrypted, family) {
            (true, Family::V4) => 92,
            (true, Family::V6) => 112,
            (false, Family::V4) => 50,
            (false, Family::V6) => 70,
        };
        let [one, two] = containers(&swarm, is_encrypted, subnets);
        let mut mtu = u16::try_from(underlay - overhead).unwrap();
        if is_encrypted {
            mtu -= mtu % 4;
        }
        assert_eq!([one.response.mtu, two.response.mtu], [mtu; 2], "{family:?}, {underlay}");
        let wire = swarm.capture(1);
        for (from, to) in [(&one, &two), (&two, &one)] {
            for address in to.addresses() {
                let own = from.addresses().find(|own| own.is_ipv4() == address.is_ipv4()).unwrap();
                let (source, sink) = (from.container.namespace(), to.container.namespace());
                assert_stream_is_intact(source, (sink, address), STREAM);
                assert_run_is_intact((source, own), (sink, address));
                let fits = usize::from(mtu) - if address.is_ipv4() { 28 } else { 48 };
                assert!(is_datagram_received(from, to, address, fits), "{address}: {}", swarm.drops());
            }
        }
        // As a router in the container would with packets from an interface of its own.
        set_mtu(&one, u32::from(mtu) + 600);
        for address in two.addresses() {
            let fits = usize::from(mtu) - if address.is_ipv4() { 28 } else { 48 };
            assert_told_of_mtu(&swarm, &one, &two, address, fits + 1, mtu);
            assert!(is_datagram_received(&one, &two, address, fits + 500), "{address}: {}", swarm.drops());
        }
        let longest = assert_whole(&wire.stop().unwrap(), family, underlay);
        let underlay = usize::try_from(underlay).unwrap();
        // ESP pads to four octets.
        assert!(longest > underlay - 4, "{longest} of {underlay}: {family:?}, encrypted: {is_encrypted}");
    }
}

/// Asserts that a datagram that may not be fragmented is answered in the container with the network's MTU, and
/// that it arrives once the container's kernel knows.
fn assert_told_of_mtu(swarm: &Swarm, from: &Attached, to: &Attached, address: IpAddr, len: usize, mtu: u16) {
    let (inside, dropped) = (from.capture(), swarm.agent(1).dropped(DropReason::FrameTooBig));
    assert!(is_datagram_received(from, to, address, len), "{len} to {address}: {}", swarm.drops());
    assert!(swarm.agent(1).dropped(DropReason::FrameTooBig) > dropped, "{len} to {address} was not too big");
    let told: Vec<_> = inside.stop().unwrap().iter().filter_map(|frame| told_mtu(frame)).collect();
    assert!(told.contains(&mtu) && told.iter().all(|told| *told == mtu), "{len} to {address}: {told:?}");
}

/// The MTU in "fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443 §3.2).
fn told_mtu(frame: &[u8]) -> Option<u16> {
    let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    match (&frame[12..14], &frame[14..]) {
        ([8, 0], ip) if ip[9] == 1 && ip[20..22] == [3, 4] => Some(number(14 + 26)),
        ([0x86, 0xdd], ip) if ip[6] == 58 && ip[40..42] == [2, 0] => Some(number(14 + 46)),
        _ => None,
    }
}

/// Asserts that no packet between the hosts is a fragment, can become one or is longer than the MTU; octets of
/// the longest datagram.
fn assert_whole(frames: &[Vec<u8>], family: Family, mtu: u32) -> usize {
    let mut longest = 0;
    for frame in frames {
        let (ip, what) = (&frame[14..], &frame[..frame.len().min(60)]);
        assert!(ip.len() <= usize::try_from(mtu).unwrap(), "{} octets in {mtu}: {what:?}", ip.len());
        let is_datagram = match &frame[12..14] {
            [8, 0] => {
                // Neither more fragments nor an offset.
                assert_eq!((ip[6] & 0x3f, ip[7]), (0, 0), "a fragment: {what:?}");
                assert!(ip[9] != 17 || ip[6] == 0x40, "may be fragmented: {what:?}");
                ip[9] == 17 && family == Family::V4
            }
            [0x86, 0xdd] => {
                assert_ne!(ip[6], 44, "a fragment: {what:?}");
                ip[6] == 17 && family == Family::V6
            }
            _ => false,
        };
        longest = longest.max(if is_datagram { ip.len() } else { 0 });
    }
    longest
}

fn containers_follow_the_underlay_up_and_down() {
    let underlay = Underlay { mtu: 1_500, segment_offload: false };
    let (swarm, [one, two]) = pair_over(underlay, true);
    let stream = Stream::start(&one, &two);
    for (underlay, mtu) in [(1_500, 1_408), (9_000, 8_908), (1_500, 1_408), (2_000, 1_908)] {
        for host in swarm.lab.all() {
            set_underlay_mtu(host, underlay);
        }
        await_mtu(&swarm, &[&one, &two], mtu);
        for agent in &swarm.agents {
            let inspect = || agent.inspect("red").effective_mtu == Some(mtu);
            assert!(eventually(PATIENCE, inspect), "agent {} does not show {mtu}", agent.number);
            assert_eq!(agent.status().cluster.unwrap().node.underlay_mtu, underlay);
        }
        stream.assert_flows();
        let longest = assert_carries(&swarm, &one, &two, mtu);
        let underlay = usize::try_from(underlay).unwrap();
        assert!(longest <= underlay && longest > underlay - 4, "{longest} of {underlay}");
        stream.assert_flows();
    }
}

fn smaller_underlay_counts_at_once_without_a_manager() {
    let swarm = Swarm::formed(3, Family::V4, Underlay { mtu: 9_000, ..Underlay::default() });
    swarm.create_encrypted("red");
    let [two, three] = [2, 3].map(|number| swarm.attach(number, "red", &format!("c{number}")));
    for number in [2, 3] {
        swarm.agent(number).await_keys(1);
    }
    swarm.assert_joined(&two, &three);
    swarm.agent(1).kill();
    set_underlay_mtu(swarm.lab.host(2), 1_500);
    await_mtu(&swarm, &[&two], 1_408);
    assert_eq!(mtu_of(&three), 8_908, "nobody could tell it");
    for (from, to) in [(&two, &three), (&three, &two)] {
        for address in to.addresses() {
            assert_stream_is_intact(from.container.namespace(), (to.container.namespace(), address), STREAM);
        }
    }
    // Once the manager is back, everybody hears of it.
    swarm.start(1);
    await_mtu(&swarm, &[&two, &three], 1_408);
}

fn agent_that_starts_on_another_underlay_fits_its_containers() {
    let (swarm, [one, two]) = pair(true);
    swarm.agent(2).kill();
    for host in swarm.lab.all() {
        set_underlay_mtu(host, 3_000);
    }
    swarm.start(2);
    await_mtu(&swarm, &[&one, &two], 2_908);
    swarm.assert_joined(&one, &two);
}

/// With an MTU below 1,280 the kernel takes IPv6 from an interface, and gives it again with a larger one.
fn container_without_ipv6_has_none_after_an_underlay_that_was_too_small_for_it() {
    let swarm = Swarm::formed(2, Family::V4, Underlay::default());
    let containers = containers(&swarm, true, &[V4_SUBNET]);
    let [one, two] = &containers;
    for (underlay, mtu) in [(1_300, 1_208), (1_500, 1_408)] {
        set_underlay_mtu(swarm.lab.host(2), underlay);
        await_mtu(&swarm, &[one, two], mtu);
    }
    for container in &containers {
        let addresses = || {
            let addresses = |netlink: &Netlink| netlink.addresses_of(&netlink.link(container.ifname())?);
            Netlink::within(container.container.namespace(), addresses).unwrap()
        };
        assert!(eventually(PATIENCE, || addresses() == container.endpoint().addresses), "{:?}", addresses());
    }
    for agent in &swarm.agents {
        agent.done(&["status", "--verify"]);
    }
}

/// Two hosts with a container each that reach each other.
fn pair(is_encrypted: bool) -> (Swarm, [Attached; 2]) {
    pair_over(Underlay::default(), is_encrypted)
}

fn pair_over(underlay: Underlay, is_encrypted: bool) -> (Swarm, [Attached; 2]) {
    let swarm = Swarm::formed(2, Family::V4, underlay);
    let containers = containers(&swarm, is_encrypted, BOTH_SUBNETS);
    (swarm, containers)
}

/// A container of each of two hosts in one network.
fn containers(swarm: &Swarm, is_encrypted: bool, subnets: &[&str]) -> [Attached; 2] {
    let encrypted: &[&str] = if is_encrypted { &["--encrypted"] } else { &[] };
    let subnets: Vec<_> = subnets.iter().flat_map(|subnet| ["--subnet", *subnet]).collect();
    swarm.create(&[encrypted, &subnets, &["red"]].concat());
    let containers = [1, 2].map(|number| swarm.attach(number, "red", &format!("c{number}")));
    if is_encrypted {
        swarm.await_keys(1);
    }
    swarm.assert_joined(&containers[0], &containers[1]);
    containers
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

/// Asserts that the largest packets cross, in both families and both ways, that no packet on the underlay is
/// a fragment, and that all IPv4 ones forbid it; octets of the longest.
fn assert_carries(swarm: &Swarm, one: &Attached, two: &Attached, mtu: u16) -> usize {
    let capture = swarm.capture(1);
    for (from, to) in [(one, two), (two, one)] {
        for address in to.addresses() {
            let headers = if address.is_ipv4() { 28 } else { 48 };
            assert!(is_datagram_received(from, to, address, usize::from(mtu) - headers), "{address}");
        }
    }
    let mut longest = 0;
    for frame in capture.stop().unwrap().iter().filter(|frame| frame[12..14] == [8, 0]) {
        let is_datagram = frame[23] == 17;
        assert!(!is_datagram || frame[20..22] == [0x40, 0], "may be fragmented: {:?}", &frame[14..34]);
        if is_datagram {
            longest = longest.max(frame.len() - 14);
        }
    }
    longest
}

/// A TCP connection that sends for as long as it lives.
struct Stream {
    received: Arc<AtomicU64>,
}

impl Stream {
    fn start(from: &Attached, to: &Attached) -> Self {
        let address = to.address(Family::V4);
        let listener = to.container.run_in(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        let mut sender = from.container.run_in(|| TcpStream::connect(to).unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        // They end with the test's process.
        std::thread::spawn(move || {
            while sender.write_all(&[7; 4_096]).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let received = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&received);
        std::thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            while let Ok(len @ 1..) = receiver.read(&mut buffer) {
                counted.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        Self { received }
    }

    fn assert_flows(&self) {
        let before = self.received.load(Ordering::Relaxed);
        let flows = eventually(PATIENCE, || self.received.load(Ordering::Relaxed) > before + (1 << 18));
        assert!(flows, "the connection has come to a halt");
    }
}

fn await_mtu(swarm: &Swarm, containers: &[&Attached], mtu: u16) {
    for container in containers {
        let is_there = eventually(PATIENCE, || mtu_of(container) == u32::from(mtu));
        assert!(is_there, "{} instead of {mtu}: {}", mtu_of(container), swarm.drops());
    }
}

fn mtu_of(container: &Attached) -> u32 {
    Netlink::within(container.container.namespace(), |netlink| netlink.link(container.ifname())).unwrap().mtu
}

fn set_underlay_mtu(host: &Host, mtu: u32) {
    Netlink::within(host.namespace(), |netlink| netlink.set_mtu(&netlink.link(&Host::underlay_name())?, mtu))
        .unwrap();
}

fn set_mtu(container: &Attached, mtu: u32) {
    Netlink::within(container.container.namespace(), |netlink| {
        netlink.set_mtu(&netlink.link(container.ifname())?, mtu)
    })
    .unwrap();
}

/// Bytes of a stream: many segments, none of which may be too long.
const STREAM: usize = 1 << 20;
const BOTH_SUBNETS: &[&str] = &[V4_SUBNET, V6_SUBNET];
