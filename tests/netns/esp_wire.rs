//! What is on the wire of an encrypted network, as another program reads it: tshark opens every
//! packet with the keys of `--esp-key-log`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use overlayd::io::netns::NetNs;
use overlayd::lab::{Underlay, eventually, write_pcap};
use overlayd::wire::traffic_class::TrafficClass;

use crate::support::frames::{self, Datagram, datagrams};
use crate::support::streams::assert_run_is_intact_as;
use crate::support::swarm::{Agent, Attached, Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    tshark_opens_every_packet_over_ipv4
    tshark_opens_every_packet_over_ipv6
    capture_without_the_keys_does_not_show_what_was_sent
    packets_show_the_dscp_of_what_is_in_them_only_where_the_configuration_says_so
}

fn tshark_opens_every_packet_over_ipv4() {
    assert_opened_by_tshark(Family::V4, 1);
}

fn tshark_opens_every_packet_over_ipv6() {
    assert_opened_by_tshark(Family::V6, 2);
}

fn capture_without_the_keys_does_not_show_what_was_sent() {
    let canary = b"a canary that nobody may see on the wire";
    let find = |flags: &[&str]| {
        let swarm = Swarm::formed(2, Family::V4, PLAIN_WIRE);
        swarm.create(&[flags, &["--subnet", "10.77.0.0/24", "net"]].concat());
        let (one, two) = (swarm.attach_quietly(1, "net", "c1"), swarm.attach_quietly(2, "net", "c2"));
        swarm.assert_joined(&one, &two);
        let (wire, inside) = (swarm.capture(1), two.capture());
        let from = SocketAddr::new(one.address(Family::V4), 7);
        let to = SocketAddr::new(two.address(Family::V4), 7);
        let frame = frames::udp((one.mac(), two.mac()), from, to, canary);
        let before = swarm.agent(2).delivered();
        frames::send(one.container.namespace(), one.ifname(), &[frame]);
        assert!(eventually(PATIENCE, || swarm.agent(2).delivered() > before));
        assert!(inside.stop().unwrap().iter().any(|frame| frames::contains(frame, canary)));
        wire.stop().unwrap().iter().any(|frame| frames::contains(frame, canary))
    };
    assert!(!find(&["--encrypted"]), "the canary is on the wire");
    assert!(find(&[]), "the capture misses what is on the wire, so this test shows nothing");
}

fn packets_show_the_dscp_of_what_is_in_them_only_where_the_configuration_says_so() {
    for (lines, family, shown) in [
        ("", Family::V4, ECT_0),
        ("copy_dscp = false", Family::V6, ECT_0),
        ("copy_dscp = true", Family::V4, EXPEDITED | ECT_0),
        ("copy_dscp = true", Family::V6, EXPEDITED | ECT_0),
    ] {
        let file = tempfile::Builder::new().suffix(".toml").tempfile_in("/run").unwrap();
        std::fs::write(file.path(), lines).unwrap();
        let flags = ["--config", file.path().to_str().unwrap()];
        let swarm = Swarm::unformed_with(2, PLAIN_WIRE, &flags);
        let init = swarm.init(family);
        swarm.join(2, &init);
        let (swarm, containers) = swarm.with_containers();
        let [one, two] = [&containers[0], &containers[1]];
        swarm.assert_joined(one, two);
        let wire = swarm.capture(1);
        for inner in Family::BOTH {
            let class = TrafficClass::new(EXPEDITED | ECT_0);
            for [from, to] in [[one, two], [two, one]] {
                let (from, to) = (at(from, inner), at(to, inner));
                assert_run_is_intact_as(class, from, to);
            }
        }
        let seen: Vec<_> = wire.stop().unwrap().iter().filter_map(|frame| long_class(frame)).collect();
        // Four runs of 30 such datagrams and a shorter one.
        assert_eq!(seen, [shown; 4 * 30], "{lines:?} over {family:?}");
    }
}

fn at(container: &Attached, family: Family) -> (&NetNs, IpAddr) {
    (container.container.namespace(), container.address(family))
}

/// The traffic class of an ESP packet with one of the datagrams of 1,000 octets in it.
fn long_class(frame: &[u8]) -> Option<u8> {
    let is_long = frames::datagrams(&[frame.to_vec()])
        .iter()
        .any(|datagram| datagram.esp().is_some() && datagram.payload.len() > 1_000);
    is_long.then(|| TrafficClass::of_frame(frame).get())
}

/// Sends frames of many sizes each way; `logger` is the agent whose key log is believed.
fn assert_opened_by_tshark(family: Family, logger: usize) {
    let swarm = Swarm::formed(2, family, PLAIN_WIRE);
    // Before there is a key, so that the first packet of each is seen.
    let wire = swarm.capture(2);
    swarm.create_encrypted("red");
    let (one, two) = (swarm.attach(1, "red", "c1"), swarm.attach(2, "red", "c2"));
    swarm.await_keys(1);
    swarm.assert_joined(&one, &two);
    let sent = [send_many(&one, &two, swarm.agent(2)), send_many(&two, &one, swarm.agent(1))];
    let wire = wire.stop().unwrap();

    let esp: Vec<Datagram> = datagrams(&wire).into_iter().filter(|d| d.esp().is_some()).collect();
    assert!(esp.len() >= 2 * FRAMES, "{} packets", esp.len());
    assert!(esp.iter().all(|datagram| datagram.ip_len <= 1500));
    assert_sequences(&esp);

    let log = swarm.agent(logger).key_log();
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let vni = swarm.agent(1).inspect("red").network.vni.get();
    let opened = open(swarm.dir(), &wire, &log);
    assert_eq!(opened.len(), esp.len(), "tshark saw another number of ESP packets");
    for packet in &opened {
        assert_eq!((packet.icv_good, packet.vni), (true, Some(vni)), "{packet:?}");
    }
    for (frames, from) in sent.iter().zip([swarm.lab.host(1), swarm.lab.host(2)]) {
        let inner = opened.iter().zip(&esp).filter(|(_, outer)| outer.from.ip() == family.of(from));
        let inner: Vec<_> = inner.map(|(packet, _)| packet.frame.clone()).filter(|f| is_ours(f)).collect();
        assert!(by_flow(&inner) == by_flow(frames), "{}: other frames than were sent", from.name());
    }
}

/// Sends the frames, and waits until the other container has them as they were.
fn send_many(from: &Attached, to: &Attached, receiver: &Agent) -> Vec<Vec<u8>> {
    let capture = to.capture();
    let largest = usize::from(from.response.mtu);
    let frames: Vec<_> = (0..FRAMES)
        .map(|number| {
            let family = Family::BOTH[number % 2];
            let headers = if family == Family::V4 { 28 } else { 48 };
            // From nothing to all that fits, the largest among them.
            let length = (largest - headers) * (number / 2) / (FRAMES / 2 - 1);
            let payload: Vec<u8> = (0..length).map(|at| (at * 7 + number).to_le_bytes()[0]).collect();
            let [from_ip, to_ip] =
                [from, to].map(|container| SocketAddr::new(container.address(family), PORT));
            frames::udp((from.mac(), to.mac()), from_ip, to_ip, &payload)
        })
        .collect();
    let before = receiver.received();
    frames::send(from.container.namespace(), from.ifname(), &frames);
    receiver.await_received(before, FRAMES as u64);
    let arrived: Vec<_> = capture.stop().unwrap().into_iter().filter(|frame| is_ours(frame)).collect();
    let is_whole = by_flow(&arrived) == by_flow(&frames);
    assert!(is_whole, "{} of {} frames arrived as they were", arrived.len(), frames.len());
    frames
}

/// The frames of IPv4 and of IPv6, each in order. Flows have no order among each other: they may be
/// in different lanes.
fn by_flow(frames: &[Vec<u8>]) -> (Vec<&[u8]>, Vec<&[u8]>) {
    frames.iter().map(Vec::as_slice).partition(|frame| frames::ether_type(frame) == Some(0x0800))
}

fn is_ours(frame: &[u8]) -> bool {
    datagrams(&[frame.to_vec()]).iter().any(|datagram| datagram.to.port() == PORT)
}

/// Every SPI may be used and is used by one sender, which numbers its packets from 1 by 1.
fn assert_sequences(esp: &[Datagram]) {
    let mut senders: BTreeMap<u32, (SocketAddr, u32)> = BTreeMap::new();
    for datagram in esp {
        let (spi, sequence) = datagram.esp().unwrap();
        assert!(spi >= 256, "SPI {spi} is reserved");
        let (sender, last) = senders.entry(spi).or_insert((datagram.from, 0));
        assert_eq!(*sender, datagram.from, "SPI {spi:#x} has two senders");
        assert_eq!(sequence, *last + 1, "SPI {spi:#x}");
        *last = sequence;
    }
    assert!(senders.len() >= 2, "{senders:?}");
}

/// An ESP packet as tshark sees it.
#[derive(Debug)]
struct Opened {
    icv_good: bool,
    vni: Option<u32>,
    frame: Vec<u8>,
}

/// Has tshark open every ESP packet.
fn open(dir: &Path, frames: &[Vec<u8>], key_log: &Path) -> Vec<Opened> {
    let capture = dir.join("wire.pcap");
    write_pcap(&capture, frames).unwrap();
    let config = dir.join("config");
    std::fs::create_dir_all(config.join("wireshark")).unwrap();
    std::fs::copy(key_log, config.join("wireshark/esp_sa")).unwrap();
    let mut tshark = Command::new("tshark");
    tshark.env("XDG_CONFIG_HOME", &config).env("HOME", &config).arg("-r").arg(&capture);
    tshark.args(["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]);
    tshark.args(["-d", "udp.port==4500,udpencap", "-Y", "esp", "-T", "fields", "-E", "occurrence=a"]);
    for field in ["esp.icv_good", "vxlan.vni", "udp.payload"] {
        tshark.args(["-e", field]);
    }
    let output = tshark.output().expect("tshark is installed (Debian: apt-get install tshark)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| opened(line).unwrap_or_else(|| panic!("tshark wrote {line:?}: {said}"))).collect()
}

/// A line of fields: what is good, the VNI, and the payloads of all UDP headers from the outside in.
fn opened(line: &str) -> Option<Opened> {
    let mut fields = line.split('\t');
    let icv_good = matches!(fields.next()?, "1" | "True");
    let vni = fields.next()?.parse().ok();
    // The second is VXLAN's: its header and the frame.
    let vxlan = fields.next()?.split(',').nth(1)?;
    let vxlan = data_encoding::HEXLOWER.decode(vxlan.as_bytes()).ok()?;
    Some(Opened { icv_good, vni, frame: vxlan.get(8..)?.to_vec() })
}

/// Every packet is one that a real wire could carry.
const PLAIN_WIRE: Underlay = Underlay { mtu: 1500, segment_offload: false };
/// Each way.
const FRAMES: usize = 200;
/// Of the frames that are compared.
const PORT: u16 = 7777;
/// Expedited forwarding (RFC 3246), in the upper six bits.
const EXPEDITED: u8 = 0xb8;
/// ECN-capable, which the outer header shows in any case (RFC 6040).
const ECT_0: u8 = 2;
