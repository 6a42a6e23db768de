//! What hostile hosts, peers and containers send never reaches a container, and is counted by name.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use overlayd::drop_reason::DropReason;
use overlayd::id::MacAddr;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Capture, Host, Underlay, eventually};
use overlayd::sa::{KeyMaterial, Limits, OutboundSa, Suite};

use crate::support::frames::{self, ESP_PORT, TLS_PORT, VXLAN_PORT};
use crate::support::swarm::{Agent, Attached, Family, Swarm};
use crate::support::tests;

tests! {
    garbage_on_every_port_reaches_nobody
    plaintext_for_an_encrypted_network_reaches_nobody
    replayed_packets_reach_nobody
    changed_packets_reach_nobody_and_the_genuine_one_still_does
    peer_with_keys_cannot_speak_for_others
    peer_of_an_unencrypted_network_cannot_speak_for_others
    container_cannot_speak_for_others
}

fn garbage_on_every_port_reaches_nobody() {
    let (swarm, containers) = joined();
    let (agent, target) = (swarm.agent(1), swarm.lab.host(1).v4());
    let watch = Watch::over(&containers[0]);
    let throw = |port, bytes: &[u8], reason| {
        assert_counted(agent, reason, TIMES, || {
            throw(swarm.lab.host(2), SocketAddr::new(target, port), bytes)
        });
    };
    let esp = |spi: u32, length| [spi.to_be_bytes().as_slice(), CANARY, &vec![0x5a; length]].concat();
    throw(ESP_PORT, &[0xff], DropReason::NatKeepalive);
    throw(ESP_PORT, &esp(0, 64), DropReason::NonEsp);
    throw(ESP_PORT, &esp(255, 64), DropReason::MalformedEsp);
    throw(ESP_PORT, b"short", DropReason::MalformedEsp);
    throw(ESP_PORT, &esp(0x4000_0000, 1000), DropReason::UnknownSpi);
    throw(VXLAN_PORT, &[8], DropReason::MalformedVxlan);
    throw(VXLAN_PORT, CANARY, DropReason::MalformedVxlan);
    let own = agent.peers().peers[0].inbound_spis[0].get();
    throw(ESP_PORT, &esp(own, 0)[..20], DropReason::MalformedEsp);
    throw(ESP_PORT, &esp(own, 900), DropReason::AuthenticationFailed);
    swarm
        .lab
        .host(2)
        .run_in(|| {
            for _ in 0..5 {
                let mut tcp = TcpStream::connect((target, TLS_PORT)).unwrap();
                // It may be refused before all is written.
                let _ = tcp.write_all(&vec![0x16; 100_000]);
            }
        })
        .unwrap();
    watch.assert_nothing_arrived();
    swarm.assert_joined(&containers[0], &containers[1]);
}

fn plaintext_for_an_encrypted_network_reaches_nobody() {
    let (swarm, containers) = joined();
    let agent = swarm.agent(1);
    let vni = agent.inspect("red").network.vni.get();
    let target = SocketAddr::new(swarm.lab.host(1).v4(), VXLAN_PORT);
    let watch = Watch::over(&containers[0]);
    let frame = between(&containers[1], &containers[0], Family::V4);
    let plain = frames::vxlan(vni, &frame);
    // From the peer itself, and from a host that is none.
    for host in [2, 3] {
        let throw = || throw(swarm.lab.host(host), target, &plain);
        assert_counted(agent, DropReason::PlaintextForEncryptedNetwork, TIMES, throw);
    }
    let throw = || throw(swarm.lab.host(2), target, &frames::vxlan(vni + 1, &frame));
    assert_counted(agent, DropReason::UnknownVni, TIMES, throw);
    watch.assert_nothing_arrived();
}

fn replayed_packets_reach_nobody() {
    let (swarm, containers) = joined_quietly();
    let capture = swarm.capture(1);
    let before = swarm.agent(1).received();
    let frames = vec![between(&containers[1], &containers[0], Family::V4); 50];
    frames::send(containers[1].container.namespace(), containers[1].ifname(), &frames);
    swarm.agent(1).await_received(before, 50);
    let packets = esp_from(&capture.stop().unwrap(), swarm.lab.host(2));
    assert_eq!(packets.len(), 50);

    let watch = Watch::over(&containers[0]);
    let count = u64::try_from(packets.len()).unwrap();
    assert_counted(swarm.agent(1), DropReason::Replayed, 2 * count, || {
        for _ in 0..2 {
            frames::send(swarm.lab.host(2).namespace(), &Host::underlay_name(), &packets);
        }
    });
    watch.assert_nothing_arrived();
    swarm.assert_joined(&containers[0], &containers[1]);
}

fn changed_packets_reach_nobody_and_the_genuine_one_still_does() {
    let (swarm, containers) = joined_quietly();
    let [one, two] = [swarm.lab.host(1), swarm.lab.host(2)];
    // What host2 sends gets lost on the way, so that the receiver sees only what we let it see.
    let right = mac(one);
    set_neighbor(two, one, "02:00:00:00:00:66".parse().unwrap());
    let capture = swarm.capture(2);
    let frame = between(&containers[1], &containers[0], Family::V4);
    let sent = || swarm.agent(2).peers().peers[0].sent.packets;
    let before = sent();
    frames::send(containers[1].container.namespace(), containers[1].ifname(), &[frame]);
    assert!(eventually(Duration::from_secs(5), || sent() > before));
    let mut packets = esp_from(&capture.stop().unwrap(), two);
    let mut genuine = packets.pop().expect("a lost packet");
    genuine[..6].copy_from_slice(&right.octets());

    let watch = Watch::over(&containers[0]);
    // Behind Ethernet, IPv4, UDP and the SPI: a bit of every octet of the packet.
    let changed: Vec<_> = (46..genuine.len())
        .map(|at| {
            let mut changed = genuine.clone();
            changed[at] ^= 1 << (at % 8);
            changed
        })
        .collect();
    let interface = Host::underlay_name();
    let (count, agent) = (u64::try_from(changed.len()).unwrap(), swarm.agent(1));
    let drops = || agent.dropped(DropReason::AuthenticationFailed) + agent.dropped(DropReason::Replayed);
    let before = drops();
    frames::send(two.namespace(), &interface, &changed);
    assert!(eventually(Duration::from_secs(5), || drops() >= before + count));
    assert_eq!(drops(), before + count);
    // But for the few whose sequence number became an old one.
    assert!(agent.dropped(DropReason::AuthenticationFailed) >= count - 32);
    watch.assert_nothing_arrived();

    let inside = containers[0].capture();
    let before = agent.received();
    frames::send(two.namespace(), &interface, &[genuine]);
    agent.await_received(before, 1);
    assert!(inside.stop().unwrap().iter().any(|frame| frames::contains(frame, CANARY)));
}

fn peer_with_keys_cannot_speak_for_others() {
    let (swarm, containers) = joined();
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    let agent = swarm.agent(1);
    let vni = agent.inspect("red").network.vni.get();
    let mut peer = HostilePeer::with_keys_of(swarm.agent(2));
    let target = SocketAddr::new(swarm.lab.host(1).v4(), ESP_PORT);
    let watch = Watch::over(one);
    let mut send = |vni: u32, frame: &[u8], reason| {
        assert_counted(agent, reason, TIMES, || {
            for _ in 0..TIMES {
                let packet = peer.seal(VXLAN_PORT, &frames::vxlan(vni, frame));
                throw_once(swarm.lab.host(2), target, &packet);
            }
        });
    };
    for (frame, reason) in forgeries(one, two) {
        send(vni, &frame, reason);
    }
    send(vni + 1, &between(two, one, Family::V4), DropReason::WrongVni);
    let (IpAddr::V4(own), IpAddr::V4(asked)) = (two.address(Family::V4), one.address(Family::V4)) else {
        unreachable!("IPv4")
    };
    let request = frames::arp((two.mac(), MacAddr::BROADCAST), 1, (two.mac(), own), (one.mac(), asked));
    send(vni, &request, DropReason::ForbiddenInner);
    watch.assert_nothing_arrived();

    // Such packets do get through when they are honest.
    let before = agent.delivered();
    let packet = peer.seal(VXLAN_PORT, &frames::vxlan(vni, &between(two, one, Family::V4)));
    throw_once(swarm.lab.host(2), target, &packet);
    assert!(eventually(Duration::from_secs(5), || agent.delivered() > before), "{}", swarm.drops());
}

fn peer_of_an_unencrypted_network_cannot_speak_for_others() {
    let swarm = Swarm::formed(3, Family::V4, Underlay::default());
    swarm.create(&["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "plain"]);
    let (one, two) = (swarm.attach(1, "plain", "c1"), swarm.attach(2, "plain", "c2"));
    swarm.assert_joined(&one, &two);
    let agent = swarm.agent(1);
    let vni = agent.inspect("plain").network.vni.get();
    let target = SocketAddr::new(swarm.lab.host(1).v4(), VXLAN_PORT);
    let watch = Watch::over(&one);
    for (frame, reason) in forgeries(&one, &two) {
        let throw = || throw(swarm.lab.host(2), target, &frames::vxlan(vni, &frame));
        assert_counted(agent, reason, TIMES, throw);
    }
    let honest = frames::vxlan(vni, &between(&two, &one, Family::V4));
    let from_stranger = || throw(swarm.lab.host(3), target, &honest);
    assert_counted(agent, DropReason::UnknownVtep, TIMES, from_stranger);
    watch.assert_nothing_arrived();
    let before = agent.delivered();
    throw_once(swarm.lab.host(2), target, &honest);
    assert!(eventually(Duration::from_secs(5), || agent.delivered() > before), "{}", swarm.drops());
}

fn container_cannot_speak_for_others() {
    let (swarm, containers) = joined();
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    let neighbor = swarm.attach(1, "red", "c3");
    swarm.assert_joined(one, &neighbor);
    let watches = [Watch::over(two), Watch::over(&neighbor)];
    let (IpAddr::V4(own), IpAddr::V4(others)) = (one.address(Family::V4), two.address(Family::V4)) else {
        unreachable!("IPv4")
    };
    let (IpAddr::V6(own_v6), IpAddr::V6(others_v6)) = (one.address(Family::V6), two.address(Family::V6))
    else {
        unreachable!("IPv6")
    };
    let everybody = (one.mac(), MacAddr::BROADCAST);
    let nobody = "02:00:00:00:00:99".parse().unwrap();
    let tagged = |tags: &[u8], mut frame: Vec<u8>| {
        frame.splice(12..12, tags.iter().copied());
        frame
    };
    let stranger = "10.77.0.250".parse().unwrap();
    let cases = [
        (from_mac(between(one, two, Family::V4), two.mac()), DropReason::SourceMacSpoofed),
        (from_mac(between(one, two, Family::V6), nobody), DropReason::SourceMacSpoofed),
        (udp_from(one, others.into(), &neighbor), DropReason::SourceIpSpoofed),
        (udp_from(one, stranger, &neighbor), DropReason::SourceIpSpoofed),
        (udp_from(one, others_v6.into(), two), DropReason::SourceIpSpoofed),
        (frames::arp(everybody, 2, (one.mac(), others), (one.mac(), others)), DropReason::NeighborSpoofed),
        (frames::arp(everybody, 1, (two.mac(), own), (one.mac(), others)), DropReason::NeighborSpoofed),
        (advertisement(one, own_v6, others_v6, one.mac()), DropReason::NeighborSpoofed),
        (advertisement(one, own_v6, own_v6, two.mac()), DropReason::NeighborSpoofed),
        (router_advertisement(one), DropReason::RogueRouterMessage),
        (
            tagged(&[0x81, 0, 0, 7, 0x81, 0, 0, 8], between(one, two, Family::V4)),
            DropReason::UnsupportedEthertype,
        ),
        (tagged(&[0x81, 0, 0, 7], udp_from(one, stranger, &neighbor)), DropReason::SourceIpSpoofed),
        (to_mac(between(one, two, Family::V4), nobody), DropReason::UnknownDestination),
        (between(one, two, Family::V4)[..30].to_vec(), DropReason::MalformedFrame),
    ];
    for (frame, reason) in cases {
        let frames = vec![frame; usize::try_from(TIMES).unwrap()];
        let send = || frames::send(one.container.namespace(), one.ifname(), &frames);
        assert_counted(swarm.agent(1), reason, TIMES, send);
    }
    for watch in watches {
        watch.assert_nothing_arrived();
    }
    swarm.assert_joined(one, two);
}

/// Three hosts, an encrypted network, and a container on each of the first two.
fn joined() -> (Swarm, Vec<Attached>) {
    let swarm = Swarm::formed(3, Family::V4, Underlay { segment_offload: false, ..Underlay::default() });
    swarm.create_encrypted("red");
    let containers = vec![swarm.attach(1, "red", "c1"), swarm.attach(2, "red", "c2")];
    swarm.assert_joined(&containers[0], &containers[1]);
    (swarm, containers)
}

/// As [`joined`], with containers that send nothing but what the test sends.
fn joined_quietly() -> (Swarm, Vec<Attached>) {
    let swarm = Swarm::formed(2, Family::V4, Underlay { segment_offload: false, ..Underlay::default() });
    swarm.create(&["--encrypted", "--subnet", "10.77.0.0/24", "red"]);
    let containers = vec![swarm.attach_quietly(1, "red", "c1"), swarm.attach_quietly(2, "red", "c2")];
    swarm.assert_joined(&containers[0], &containers[1]);
    (swarm, containers)
}

/// What a peer that has `two` may not send to `one`.
fn forgeries(one: &Attached, two: &Attached) -> [(Vec<u8>, DropReason); 6] {
    let nobody = "02:00:00:00:00:99".parse().unwrap();
    [
        (from_mac(between(two, one, Family::V4), nobody), DropReason::PeerMacSpoofed),
        (from_mac(between(two, one, Family::V4), one.mac()), DropReason::PeerMacSpoofed),
        (udp_from(two, "10.77.0.250".parse().unwrap(), one), DropReason::PeerIpSpoofed),
        (udp_from(two, "fd77::250".parse().unwrap(), one), DropReason::PeerIpSpoofed),
        (to_mac(between(two, one, Family::V4), nobody), DropReason::NotLocal),
        (router_advertisement(two), DropReason::ForbiddenInner),
    ]
}

/// Looks at a container for as long as it is attacked.
struct Watch(Capture);

impl Watch {
    fn over(container: &Attached) -> Self {
        Self(container.capture())
    }

    fn assert_nothing_arrived(self) {
        let seen = self.0.stop().unwrap();
        let arrived = seen.iter().find(|frame| frames::contains(frame, CANARY));
        assert!(arrived.is_none(), "it got in: {arrived:02x?}");
    }
}

/// A member of a network that uses its key as no agent would.
struct HostilePeer(Box<OutboundSa>);

impl HostilePeer {
    fn with_keys_of(agent: &Agent) -> Self {
        let spi = agent.peers().peers[0].outbound_spis[0];
        let log = std::fs::read_to_string(agent.key_log()).unwrap();
        let row = log.lines().find(|row| row.contains(&format!("\"{spi}\""))).expect("the key is logged");
        let key = row.split("\"0x").last().unwrap().split('"').next().unwrap();
        let key: [u8; KeyMaterial::LEN] =
            data_encoding::HEXLOWER.decode(key.as_bytes()).unwrap().try_into().unwrap();
        let key = KeyMaterial::new(Suite::Aes256Gcm, &key);
        let mut peer = Self(OutboundSa::new(spi, key, Limits::standard(Suite::Aes256Gcm), boot_time()));
        // Past what the agent has sent.
        for _ in 0..1000 {
            peer.seal(VXLAN_PORT, b"");
        }
        peer
    }

    fn seal(&mut self, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 16];
        for field in [50_000, port, u16::try_from(8 + payload.len()).unwrap(), 0] {
            packet.extend(field.to_be_bytes());
        }
        packet.extend(payload);
        let plain_len = packet.len() - 16;
        packet.resize(packet.len() + 24, 0);
        let sealed = self.0.seal(boot_time(), &mut packet, plain_len).unwrap();
        packet.truncate(sealed.len());
        packet
    }
}

/// Asserts that `deed` makes a counter grow by `packets`, and no more.
fn assert_counted(agent: &Agent, reason: DropReason, packets: u64, deed: impl FnOnce()) {
    let before = agent.dropped(reason);
    deed();
    let dropped = || agent.dropped(reason) - before;
    eventually(Duration::from_secs(5), || dropped() >= packets);
    assert_eq!(dropped(), packets, "{}: {:?}", reason.name(), agent.stats().drops);
}

/// Sends a datagram [`TIMES`] times.
fn throw(host: &Host, to: SocketAddr, bytes: &[u8]) {
    (0..TIMES).for_each(|_| throw_once(host, to, bytes));
}

fn throw_once(host: &Host, to: SocketAddr, bytes: &[u8]) {
    let sent = host.run_in(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(bytes, to));
    assert_eq!(sent.unwrap().unwrap(), bytes.len());
}

/// The frames that carry ESP from a host, without UDP checksum: in a capture it is not final.
fn esp_from(frames: &[Vec<u8>], host: &Host) -> Vec<Vec<u8>> {
    let is_esp = |frame: &&Vec<u8>| {
        let datagrams = frames::datagrams(&[frame.to_vec()]);
        datagrams.iter().any(|d| d.from.ip() == host.v4() && d.esp().is_some())
    };
    let mut packets: Vec<_> = frames.iter().filter(is_esp).cloned().collect();
    packets.iter_mut().for_each(|frame| frame[40..42].fill(0));
    packets
}

/// A datagram from one container to another.
fn between(from: &Attached, to: &Attached, family: Family) -> Vec<u8> {
    let [source, destination] = [from, to].map(|end| SocketAddr::new(end.address(family), 7));
    frames::udp((from.mac(), to.mac()), source, destination, CANARY)
}

/// A datagram whose source address is another.
fn udp_from(from: &Attached, source: IpAddr, to: &Attached) -> Vec<u8> {
    let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
    let destination = SocketAddr::new(to.address(family), 7);
    frames::udp((from.mac(), to.mac()), SocketAddr::new(source, 7), destination, CANARY)
}

fn from_mac(mut frame: Vec<u8>, mac: MacAddr) -> Vec<u8> {
    frame[6..12].copy_from_slice(&mac.octets());
    frame
}

fn to_mac(mut frame: Vec<u8>, mac: MacAddr) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac.octets());
    frame
}

/// An unsolicited neighbour advertisement (RFC 4861 §4.4).
fn advertisement(from: &Attached, source: Ipv6Addr, target: Ipv6Addr, link: MacAddr) -> Vec<u8> {
    let option = [&[2, 1], link.octets().as_slice()].concat();
    icmpv6(from.mac(), source, 136, [0x20, 0, 0, 0], &[target.octets().as_slice(), &option].concat())
}

/// A router advertisement for everybody (RFC 4861 §4.2).
fn router_advertisement(from: &Attached) -> Vec<u8> {
    let [a, b, c, d, e, f] = from.mac().octets();
    let link_local = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    icmpv6(from.mac(), link_local, 134, [64, 0, 0x07, 0x08], &[0; 8])
}

fn icmpv6(from: MacAddr, source: Ipv6Addr, kind: u8, first: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.octets(), [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(source.octets(), all_nodes.octets(), 255)
        .icmpv6_raw(kind, 0, first)
        .write(&mut frame, rest)
        .unwrap();
    frame
}

fn set_neighbor(host: &Host, other: &Host, mac: MacAddr) {
    Netlink::within(host.namespace(), |netlink| {
        netlink.add_neighbor(&netlink.link(&Host::underlay_name())?, other.v4(), mac)
    })
    .unwrap();
}

fn mac(host: &Host) -> MacAddr {
    let link = Netlink::within(host.namespace(), |netlink| netlink.link(&Host::underlay_name()));
    link.unwrap().mac.unwrap()
}

const CANARY: &[u8] = b"what must not get in";
/// Often enough to tell from accidents.
const TIMES: u64 = 20;
