//! Rate limits of endpoints, seen by whoever receives: real agents, real TCP and UDP.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::io::clock::boot_time;
use overlayd::io::udp::{RecvRing, UdpOptions, UdpSocket};
use overlayd::lab::{Ping, udp_blast};
use overlayd::rate::Rate;

use support::stream_rate::stream_rate;
use support::swarm::{Agent, Attached, Family, Swarm};
use support::test_program;

test_program! {
    one at a time:
    egress_rate_holds_for_streams_and_datagrams
    ingress_rate_holds_for_streams_and_datagrams
    limit_holds_between_containers_of_one_node
    limited_stream_leaves_its_container_able_to_answer
    datagrams_above_the_ingress_rate_are_counted
    limits_are_shown_and_survive_a_restart
}

fn egress_rate_holds_for_streams_and_datagrams() {
    assert_rates_hold("--egress-rate", 1);
}

fn ingress_rate_holds_for_streams_and_datagrams() {
    assert_rates_hold("--ingress-rate", 2);
}

fn assert_rates_hold(flag: &str, limited: usize) {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let free = swarm.attach(3 - limited, "red", "free");
    let unlimited = swarm.attach(limited, "red", "unlimited");
    swarm.await_keys(1);
    swarm.assert_joined(&unlimited, &free);
    // An unoptimised program on a busy machine may be slower than the fastest of the limits.
    let most = tcp_rate(&unlimited, &free);
    for rate in ["10mbit", "100mbit", "500mbit"] {
        let container = swarm.attach_with(limited, "red", &format!("c{rate}"), &[flag, rate]);
        let (from, to) = if limited == 1 { (&container, &free) } else { (&free, &container) };
        swarm.assert_joined(from, to);
        let rate: Rate = rate.parse().unwrap();
        let least = rate.bits_per_second().min(most / 2);
        assert_holds(&swarm, &format!("{flag}, TCP"), rate, least, || tcp_rate(from, to));
        assert_holds(&swarm, &format!("{flag}, UDP"), rate, least, || udp_rate(from, to, rate));
        swarm.agent(limited).done(&["detach", "red", "--netns", container.container.name()]);
    }
}

fn limit_holds_between_containers_of_one_node() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let free = swarm.attach(1, "red", "free");
    for flag in ["--egress-rate", "--ingress-rate"] {
        let container = swarm.attach_with(1, "red", &format!("c{flag}"), &[flag, "100mbit"]);
        let is_sender = flag == "--egress-rate";
        let (from, to) = if is_sender { (&container, &free) } else { (&free, &container) };
        swarm.assert_joined(from, to);
        let rate: Rate = "100mbit".parse().unwrap();
        assert_holds(&swarm, &format!("{flag}, TCP"), rate, rate.bits_per_second(), || tcp_rate(from, to));
        assert_holds(&swarm, &format!("{flag}, UDP"), rate, rate.bits_per_second(), || {
            udp_rate(from, to, rate)
        });
    }
}

/// What waits for its turn is bounded: by the TAP's queue on the way out, by the lane's on the way in.
fn limited_stream_leaves_its_container_able_to_answer() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let limits = ["--egress-rate", "10mbit", "--ingress-rate", "10mbit"];
    let (limited, free) = (swarm.attach_with(1, "red", "limited", &limits), swarm.attach(2, "red", "free"));
    swarm.await_keys(1);
    swarm.assert_joined(&limited, &free);
    for (from, to) in [(&limited, &free), (&free, &limited)] {
        let mut times = std::thread::scope(|scope| {
            let stream = scope.spawn(|| tcp_rate(from, to));
            let ping = Ping { count: 20, interval: Duration::from_millis(100), ..Ping::default() };
            let report = ping.run(from.container.namespace(), to.address(Family::V4)).unwrap();
            stream.join().unwrap();
            report.round_trips
        });
        times.sort();
        assert!(times.len() >= 10, "{times:?}");
        let median = times[times.len() / 2];
        assert!(median < Duration::from_millis(250), "{median:?} behind a stream at 10 Mbit/s: {times:?}");
    }
}

fn datagrams_above_the_ingress_rate_are_counted() {
    const COUNT: u64 = 4_000;
    let swarm = Swarm::pair();
    swarm.create(&["--encrypted", "--subnet", support::swarm::V4_SUBNET, "red"]);
    let (from, to) =
        (swarm.attach(1, "red", "c1"), swarm.attach_with(2, "red", "c2", &["--ingress-rate", "10mbit"]));
    swarm.await_keys(1);
    assert!(from.pings(to.address(Family::V4), 3));
    let (namespace, at) = (from.container.namespace(), to.address(Family::V4));
    let report = udp_blast(namespace, to.container.namespace(), at, &[0x5a; 1_000], COUNT).unwrap();
    assert_eq!(report.sent, COUNT);
    let refused = swarm.agent(2).dropped(DropReason::RateLimited);
    assert!(refused > 0 && report.received > 0, "{report:?}, {refused} refused");
    let overflown = from.tx_dropped();
    assert_eq!(report.received + refused + overflown, COUNT, "{}", swarm.drops());
}

fn limits_are_shown_and_survive_a_restart() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let limited =
        swarm.attach_with(1, "red", "limited", &["--egress-rate", "20mbit", "--ingress-rate", "2.5gbit"]);
    let rates = limited.response.rates;
    assert_eq!(rates.to_string(), "20mbit out, 2.5gbit in");
    let shown =
        |number: usize| swarm.agent(number).done(&["stats"]).matches("20mbit out, 2.5gbit in").count();
    assert_eq!(shown(1), 1);
    swarm.agent(1).kill();
    swarm.start(1);
    swarm.await_keys(1);
    swarm.assert_joined(&limited, &containers[1]);
    assert_eq!(shown(1), 1);
    let of = |id| swarm.agent(1).stats().endpoints.into_iter().find(|e| e.endpoint == id).unwrap().rates;
    assert_eq!(of(limited.endpoint().id), rates);
    assert!(of(containers[0].endpoint().id).is_none());
    let rate = rates.egress.unwrap();
    let seen = || tcp_rate(&limited, &containers[1]);
    assert_holds(&swarm, "after a restart, TCP", rate, rate.bits_per_second(), seen);
}

/// Never more than 5 % above the rate; not more than 5 % below `least` either, unless the lanes had to
/// wait for a processor: then it is tried again, and where they never have one it need only flow.
fn assert_holds(swarm: &Swarm, what: &str, rate: Rate, least: u64, measure: impl Fn() -> u64) {
    let waited = || swarm.agents.iter().map(Agent::lanes_waited).sum::<Duration>();
    let mut most = 0;
    for _ in 0..TRIES {
        let before = waited();
        let bits = measure();
        let waited = waited() - before;
        most = most.max(bits);
        let percent = 100.0 * bits as f64 / rate.bits_per_second() as f64;
        let seen = format!("{what}: {percent:.1} % of {rate}, lanes waited for {waited:?}");
        let _ = writeln!(io::stderr(), "{seen}");
        assert!(bits <= rate.bits_per_second() / 100 * 105, "{seen}");
        if bits >= least / 100 * 95 {
            return;
        }
        assert!(waited > MEASURED / 20, "{seen}\n{}", swarm.drops());
    }
    assert!(most > 0, "{what}\n{}", swarm.drops());
}

/// Bits per second of the frames of a TCP stream, at its receiver.
fn tcp_rate(from: &Attached, to: &Attached) -> u64 {
    // Ethernet, IPv4, and TCP with time stamps around each segment.
    let segment = u64::from(to.response.mtu) - 52;
    stream_rate(from, to, MEASURED) * (segment + 66) / segment
}

/// Bits per second of the frames of UDP, sent at one and a half times the rate, at the receiver: of some
/// flows, so that each lane has one.
fn udp_rate(from: &Attached, to: &Attached, rate: Rate) -> u64 {
    let any: SocketAddr = ([0, 0, 0, 0], 0).into();
    let bind = |container: &Attached, at: IpAddr| {
        let local = SocketAddr::new(at, any.port());
        // Uncoalesced, its kernel counts one by one what the receiver is too slow for.
        let options = UdpOptions { coalescing: false, ..UdpOptions::default() };
        container.container.run_in(|| UdpSocket::bind(local, &options).unwrap()).unwrap()
    };
    let receiver = bind(to, to.address(Family::V4));
    let senders: Vec<_> = (0..FLOWS).map(|_| bind(from, any.ip())).collect();
    let address = receiver.local_addr().unwrap();
    let run = vec![0x5a; PAYLOAD * 8];
    let interval = rate.time_of((PAYLOAD + 42) * 8) * 2 / 3;
    let begin = boot_time();
    let end = begin + WARM + MEASURED;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = begin;
            for sender in senders.iter().cycle() {
                if boot_time() >= end {
                    break;
                }
                if boot_time() < next {
                    std::thread::sleep(next.since(boot_time()));
                }
                let _ = sender.send_run(address, &run, u16::try_from(PAYLOAD).unwrap()).unwrap();
                next = next + interval;
            }
        });
        let (mut ring, mut datagrams) = (RecvRing::new(), 0);
        let mut until = |end| {
            while boot_time() < end {
                std::thread::sleep(Duration::from_millis(1));
                while receiver.recv(&mut ring).unwrap() > 0 {
                    datagrams += ring.datagrams().count();
                }
            }
            datagrams + to.overflown()
        };
        let (before, after) = (until(begin + WARM), until(end));
        ((after - before) * (PAYLOAD + 42) * 8 * 1_000) as u64 / u64::try_from(MEASURED.as_millis()).unwrap()
    })
}

const TRIES: usize = 6;
const FLOWS: usize = 8;
const PAYLOAD: usize = 1_300;
const MEASURED: Duration = Duration::from_secs(3);
const WARM: Duration = Duration::from_millis(500);
