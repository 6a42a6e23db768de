//! Hosts that hear nothing of some others, and what a node that is cut off goes on sending.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use overlayd::boot_time::BootTime;
use overlayd::io::clock::boot_time;
use overlayd::lab::Host;

use super::swarm::{Attached, Family};

/// Datagrams from one container to all others, again and again.
pub(crate) struct Traffic {
    sender: UdpSocket,
    receivers: Vec<(UdpSocket, SocketAddr)>,
    /// When something arrived last at each, in nanoseconds; zero for never.
    arrivals: Vec<AtomicU64>,
    pub(crate) sent: AtomicU64,
}

impl Traffic {
    pub(crate) fn new(from: &Attached, to: &[Attached]) -> Self {
        let bind = |container: &Attached| {
            let address = SocketAddr::new(container.address(Family::V4), 7000);
            let socket = container.container.run_in(|| UdpSocket::bind(address).unwrap()).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            (socket, address)
        };
        let receivers: Vec<_> = to.iter().map(bind).collect();
        let arrivals = receivers.iter().map(|_| AtomicU64::new(0)).collect();
        Self { sender: bind(from).0, receivers, arrivals, sent: AtomicU64::new(0) }
    }

    pub(crate) fn run<'s>(&'s self, scope: &'s std::thread::Scope<'s, '_>, ended: &'s AtomicBool) {
        scope.spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                for (_, address) in &self.receivers {
                    if self.sender.send_to(b"from the condemned", address).is_ok() {
                        self.sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        for ((socket, _), arrival) in self.receivers.iter().zip(&self.arrivals) {
            scope.spawn(move || {
                let mut datagram = [0; 64];
                while !ended.load(Ordering::Relaxed) {
                    if socket.recv(&mut datagram).is_ok() {
                        arrival.store(boot_time().as_nanos(), Ordering::Relaxed);
                    }
                }
            });
        }
    }

    pub(crate) fn arrived(&self) -> Vec<Option<BootTime>> {
        let at = self.arrivals.iter().map(|at| at.load(Ordering::Relaxed));
        at.map(|nanos| (nanos > 0).then(|| BootTime::from_nanos(nanos))).collect()
    }
}

/// Lets nothing of TCP leave a host for others, not even what is part of a connection.
pub(crate) fn cut_tcp(from: &Host, to: &[&Host]) {
    to.iter().for_each(|to| rule(from, "add", to, &[]));
}

pub(crate) fn mend_tcp(from: &Host, to: &[&Host]) {
    to.iter().for_each(|to| rule(from, "del", to, &[]));
}

/// The same for what overlayd's own connections need alone: what else runs on both goes on.
pub(crate) fn cut_overlayd(from: &Host, to: &[&Host]) {
    for ports in OVERLAYD_PORTS {
        to.iter().for_each(|to| rule(from, "add", to, &ports));
    }
}

pub(crate) fn mend_overlayd(from: &Host, to: &[&Host]) {
    for ports in OVERLAYD_PORTS {
        to.iter().for_each(|to| rule(from, "del", to, &ports));
    }
}

const OVERLAYD_PORTS: [[&str; 2]; 2] = [["sport", "2377"], ["dport", "2377"]];

/// A rule for what arrives would come too late: the table of local addresses is asked first.
fn rule(host: &Host, what: &str, to: &Host, ports: &[&str]) {
    let address = to.v4().to_string();
    let mut command = Command::new("ip");
    command.args(["rule", what, "to", &address, "ipproto", "tcp"]).args(ports).arg("blackhole");
    assert!(host.spawn(command).unwrap().wait().unwrap().success(), "ip rule {what} to {address}");
}

/// Takes a host off the switch: both ends see their link up, and hear nothing any more.
pub(crate) fn unplug(host: &Host) {
    port(host, &["nomaster"]);
}

pub(crate) fn plug_in(host: &Host) {
    port(host, &["master", "br0"]);
}

fn port(host: &Host, change: &[&str]) {
    let mut command = Command::new("nsenter");
    command.args(["--net=/run/netns/switch", "ip", "link", "set", host.name()]).args(change);
    assert!(command.status().unwrap().success(), "ip link set {} {change:?}", host.name());
}
