//! Everything works with each of the kernel's offloads switched off by the operator, and `overlayd
//! status` says so: real agents, streams, runs and pings of both families, in both kinds of network.

use std::net::IpAddr;
use std::time::Duration;

use overlayd::api::types::{Offload, OffloadStatus};
use overlayd::io::netns::NetNs;
use overlayd::lab::{Underlay, eventually};

use crate::support::streams::{assert_run_is_intact, assert_stream_is_intact};
use crate::support::swarm::{Agent, Attached, Family, Swarm};
use crate::support::tests;

tests! {
    everything_is_on_by_default
    without_checksums_left_by_containers
    without_tcp_super_frames
    without_udp_super_frames
    without_runs_sent_in_one_call
    without_runs_received_in_one_call
    with_checksums_made_for_peers
    without_any_of_it
    what_was_switched_off_is_off_for_interfaces_of_the_last_run
}

fn everything_is_on_by_default() {
    let bed = Bed::new("");
    bed.assert_status([(true, true); 7]);
    let text = bed.swarm.agent(1).done(&["status"]);
    for line in [
        "Offloads:    ESP: UDP_SEGMENT on, UDP_GRO on",
        "Offloads:    VXLAN: UDP_SEGMENT on, UDP_GRO on",
        "Offloads:    containers: checksum on, TCP on, UDP on",
    ] {
        assert!(text.lines().any(|told| told == line), "{text}");
    }
    bed.assert_all_is_intact();
    // The check of the checks below.
    let Longest { sent, received, on_the_wire } = bed.longest_of_streams();
    assert!(sent > FRAME && received > FRAME && on_the_wire > FRAME, "{sent} {received} {on_the_wire}");
    assert!(bed.longest_of_runs() > FRAME);
}

fn without_checksums_left_by_containers() {
    let bed = Bed::new("tap_checksum = false");
    bed.assert_status([ON, ON, ON, ON, OFF, OFF, OFF]);
    bed.assert_all_is_intact();
    let Longest { sent, received, .. } = bed.longest_of_streams();
    assert!(sent <= FRAME && received <= FRAME, "{sent} and {received}");
    assert!(bed.longest_of_runs() <= FRAME);
}

fn without_tcp_super_frames() {
    let bed = Bed::new("tap_tcp = false");
    bed.assert_status([ON, ON, ON, ON, ON, OFF, ON]);
    bed.assert_all_is_intact();
    let Longest { sent, received, .. } = bed.longest_of_streams();
    assert!(sent <= FRAME && received <= FRAME, "{sent} and {received}");
    assert!(bed.longest_of_runs() > FRAME, "UDP went with it");
}

fn without_udp_super_frames() {
    let bed = Bed::new("tap_udp = false");
    bed.assert_status([ON, ON, ON, ON, ON, ON, OFF]);
    bed.assert_all_is_intact();
    assert!(bed.longest_of_runs() <= FRAME);
    assert!(bed.longest_of_streams().sent > FRAME, "TCP went with it");
}

fn without_runs_sent_in_one_call() {
    let bed = Bed::new("udp_segment = false");
    bed.assert_status([OFF, ON, OFF, ON, ON, ON, ON]);
    bed.assert_all_is_intact();
    let Longest { sent, on_the_wire, .. } = bed.longest_of_streams();
    assert!(sent > FRAME && on_the_wire <= FRAME, "{sent} and {on_the_wire}");
}

fn without_runs_received_in_one_call() {
    let bed = Bed::new("udp_gro = false");
    bed.assert_status([ON, OFF, ON, OFF, ON, ON, ON]);
    bed.assert_all_is_intact();
    assert!(bed.longest_of_streams().on_the_wire > FRAME);
}

fn with_checksums_made_for_peers() {
    let bed = Bed::new("remote_checksum = false");
    bed.assert_status([ON; 7]);
    bed.assert_all_is_intact();
    let Longest { sent, received, .. } = bed.longest_of_streams();
    assert!(sent > FRAME && received > FRAME, "{sent} and {received}");
}

fn without_any_of_it() {
    let switches = ["tap_checksum", "udp_segment", "udp_gro", "remote_checksum"];
    let bed = Bed::new(&switches.map(|switch| format!("{switch} = false")).join("\n"));
    bed.assert_status([OFF; 7]);
    bed.assert_all_is_intact();
    let Longest { sent, received, on_the_wire } = bed.longest_of_streams();
    assert!(sent.max(received).max(on_the_wire) <= FRAME, "{sent} {received} {on_the_wire}");
    let text = bed.swarm.agent(1).done(&["status"]);
    assert!(text.contains("Offloads:    ESP: UDP_SEGMENT off, UDP_GRO off\n"), "{text}");
}

fn what_was_switched_off_is_off_for_interfaces_of_the_last_run() {
    let bed = Bed::new("");
    let flags = bed.write_config("tap_tcp = false");
    for agent in &bed.swarm.agents {
        agent.kill();
        agent.spawn(bed.swarm.host(agent), &flags.each_ref().map(String::as_str));
        agent.await_ready();
    }
    bed.assert_status([ON, ON, ON, ON, ON, OFF, ON]);
    bed.assert_all_is_intact();
    let Longest { sent, received, .. } = bed.longest_of_streams();
    assert!(sent <= FRAME && received <= FRAME, "{sent} and {received}");
}

/// Two agents with an encrypted and an unencrypted network and a container of each in both.
struct Bed {
    swarm: Swarm,
    /// Of the encrypted network, then of the other.
    pairs: [[Attached; 2]; 2],
}

/// The longest frames seen while a stream crossed, in bytes.
struct Longest {
    sent: usize,
    received: usize,
    on_the_wire: usize,
}

impl Bed {
    /// Agents with `offload` as that section of their configuration.
    fn new(offload: &str) -> Self {
        let file = tempfile::Builder::new().suffix(".toml").tempfile_in("/run").unwrap();
        std::fs::write(file.path(), format!("[offload]\n{offload}\n")).unwrap();
        let flags = ["--config", file.path().to_str().unwrap()];
        let swarm = Swarm::unformed_with(2, Underlay::default(), &flags);
        let init = swarm.init(Family::V4);
        swarm.join(2, &init);
        swarm.create_encrypted("red");
        swarm.create(&["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "plain"]);
        let red = [1, 2].map(|number| swarm.attach(number, "red", &format!("red{number}")));
        let plain = [1, 2].map(|number| swarm.attach(number, "plain", &format!("plain{number}")));
        swarm.await_keys(1);
        Self { swarm, pairs: [red, plain] }
    }

    fn write_config(&self, offload: &str) -> [String; 2] {
        let file = self.swarm.dir().join("offload.toml");
        std::fs::write(&file, format!("[offload]\n{offload}\n")).unwrap();
        ["--config".to_owned(), file.to_str().unwrap().to_owned()]
    }

    /// What is wanted and used, in the order of [`Offload`].
    fn assert_status(&self, expected: [(bool, bool); 7]) {
        let order = [
            Offload::EspSegmentation,
            Offload::EspCoalescing,
            Offload::VxlanSegmentation,
            Offload::VxlanCoalescing,
            Offload::TapChecksum,
            Offload::TapTcp,
            Offload::TapUdp,
        ];
        let state = |agent: &Agent| {
            let rows = agent.status().cluster.unwrap().offloads;
            order.map(|offload| *rows.iter().find(|row| row.offload == offload).unwrap())
        };
        let as_expected = |row: &OffloadStatus, (wanted, used): (bool, bool)| {
            row.of > 0 && row.wanted == wanted && row.used == if used { row.of } else { 0 }
        };
        for agent in &self.swarm.agents {
            let holds =
                || state(agent).iter().zip(expected).all(|(row, expected)| as_expected(row, expected));
            assert!(eventually(PATIENCE, holds), "{:?}", state(agent));
        }
    }

    fn assert_all_is_intact(&self) {
        for [one, two] in &self.pairs {
            self.swarm.assert_joined(one, two);
            for (from, to) in [(one, two), (two, one)] {
                for family in Family::BOTH {
                    assert_stream_is_intact(from.container.namespace(), at(to, family), STREAM);
                    assert_run_is_intact(at(from, family), at(to, family));
                }
            }
        }
    }

    fn longest_of_streams(&self) -> Longest {
        let [one, two] = &self.pairs[0];
        self.swarm.assert_joined(one, two);
        let captures = [one.capture(), two.capture(), self.swarm.capture(1)];
        for family in Family::BOTH {
            assert_stream_is_intact(one.container.namespace(), at(two, family), STREAM);
        }
        let longest = captures.map(|capture| capture.stop().unwrap().iter().map(Vec::len).max().unwrap());
        let [sent, received, on_the_wire] = longest;
        Longest { sent, received, on_the_wire }
    }

    /// The longest frame that left a container while it sent runs of datagrams.
    fn longest_of_runs(&self) -> usize {
        let [one, two] = &self.pairs[1];
        let capture = one.capture();
        for family in Family::BOTH {
            assert_run_is_intact(at(one, family), at(two, family));
        }
        capture.stop().unwrap().iter().map(Vec::len).max().unwrap()
    }
}

fn at(container: &Attached, family: Family) -> (&NetNs, IpAddr) {
    (container.container.namespace(), container.address(family))
}

const ON: (bool, bool) = (true, true);
const OFF: (bool, bool) = (false, false);
/// The longest frame of the underlay; those of containers are shorter.
const FRAME: usize = 1_514;
/// Bytes of a stream.
const STREAM: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
