//! Rate limits of endpoints, seen by whoever receives: real agents, real TCP and UDP.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::io::clock::boot_time;
use overlayd::io::udp::{UdpOptions, UdpSocket};
use overlayd::lab::{Ping, udp_blast};
use overlayd::rate::Rate;

use support::long_stream::Stream;
use support::swarm::{Agent, Attached, Family, Swarm};
use support::{tell, test_program};

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

/// With frames of 64 octets, of a packet, and super-frames.
fn assert_rates_hold(flag: &str, limited: usize) {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let free = swarm.attach(3 - limited, "red", "free");
    let unlimited = swarm.attach(limited, "red", "unlimited");
    swarm.await_keys(1);
    swarm.assert_joined(&unlimited, &free);
    // An unoptimised program on a busy machine may be slower than the fastest of the limits.
    let most = Traffic::Stream.rate(&unlimited, &free, rate("10gbit"));
    for (text, all) in [
        ("10mbit", &[Traffic::Datagrams(22), Traffic::Stream][..]),
        ("100mbit", &[Traffic::Datagrams(1_300), Traffic::Stream]),
        ("500mbit", &[Traffic::Stream]),
    ] {
        let container = swarm.attach_with(limited, "red", &format!("c{text}"), &[flag, text]);
        let (from, to) = if limited == 1 { (&container, &free) } else { (&free, &container) };
        swarm.assert_joined(from, to);
        let least = rate(text).bits_per_second().min(most / 2);
        for traffic in all {
            assert_holds(&swarm, flag, (from, to), *traffic, rate(text), least);
        }
        swarm.agent(limited).done(&["detach", "red", "--netns", container.container.name()]);
    }
}

/// Frames cross in one piece here, so that the fastest limit is no trouble to anybody.
fn limit_holds_between_containers_of_one_node() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let free = swarm.attach(1, "red", "free");
    for flag in ["--egress-rate", "--ingress-rate"] {
        let container = swarm.attach_with(1, "red", &format!("c{flag}"), &[flag, "500mbit"]);
        let is_sender = flag == "--egress-rate";
        let (from, to) = if is_sender { (&container, &free) } else { (&free, &container) };
        swarm.assert_joined(from, to);
        let limit = rate("500mbit");
        for traffic in [Traffic::Stream, Traffic::Datagrams(1_300)] {
            assert_holds(&swarm, flag, (from, to), traffic, limit, limit.bits_per_second());
        }
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
        let stream = Stream::start(from, to);
        std::thread::sleep(WARM);
        let ping = Ping { count: 20, interval: Duration::from_millis(50), ..Ping::default() };
        let mut times = ping.run(from.container.namespace(), to.address(Family::V4)).unwrap().round_trips;
        drop(stream);
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
    let ends = (&limited, &containers[1]);
    assert_holds(&swarm, "after a restart", ends, Traffic::Stream, rate, rate.bits_per_second());
}

/// What a container sends to another.
#[derive(Debug, Clone, Copy)]
enum Traffic {
    Stream,
    /// UDP with so many octets of payload each, one and a half times of what is allowed, in some flows, so
    /// that each lane has one.
    Datagrams(usize),
}

impl Traffic {
    /// Bits per second of the frames that arrive, each with its own headers, by the receiver's kernel: its
    /// programs may be late, and read what has come meanwhile.
    fn rate(self, from: &Attached, to: &Attached, limit: Rate) -> u64 {
        // Ethernet, IPv4, and UDP or TCP with time stamps.
        let (headers, payload) = match self {
            Self::Datagrams(payload) => (42, payload as u64),
            Self::Stream => (66, u64::from(to.response.mtu) - 52),
        };
        let measure = || {
            std::thread::sleep(WARM);
            let (begin, before) = (boot_time(), to.payload_received(headers));
            std::thread::sleep(MEASURED);
            let (end, after) = (boot_time(), to.payload_received(headers));
            let micros = u64::try_from(end.since(begin).as_micros()).unwrap();
            (after - before) * 8 * 1_000_000 / micros * (payload + headers) / payload
        };
        match self {
            Self::Stream => {
                let _stream = Stream::start(from, to);
                measure()
            }
            Self::Datagrams(payload) => {
                let done = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| pour(from, to, payload, limit, &done));
                    let rate = measure();
                    done.store(true, Ordering::Relaxed);
                    rate
                })
            }
        }
    }
}

/// Sends datagrams at one and a half times the limit until it is done. Nobody reads them.
fn pour(from: &Attached, to: &Attached, payload: usize, limit: Rate, done: &AtomicBool) {
    let bind = |container: &Attached, at: IpAddr| {
        let bind = || UdpSocket::bind(SocketAddr::new(at, 0), &UdpOptions::default()).unwrap();
        container.container.run_in(bind).unwrap()
    };
    let receiver = bind(to, to.address(Family::V4));
    let senders: Vec<_> = (0..FLOWS).map(|_| bind(from, [0, 0, 0, 0].into())).collect();
    let address = receiver.local_addr().unwrap();
    let run = vec![0x5a; payload * RUN];
    let interval = limit.time_of((payload + 42) * RUN) * 2 / 3;
    let mut next = boot_time();
    for sender in senders.iter().cycle() {
        if done.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(next.since(boot_time()));
        let _ = sender.send_run(address, &run, u16::try_from(payload).unwrap()).unwrap();
        next = next + interval;
    }
}

/// Never more than 5 % above the limit; not more than 5 % below `least` either, unless the lanes had to
/// wait for a processor: then it is tried again, and where they never have one it must still be half.
fn assert_holds(
    swarm: &Swarm,
    what: &str,
    (from, to): (&Attached, &Attached),
    traffic: Traffic,
    limit: Rate,
    least: u64,
) {
    let waited = || swarm.agents.iter().map(Agent::lanes_waited).sum::<Duration>();
    let mut most = 0;
    for _ in 0..TRIES {
        let before = waited();
        let bits = traffic.rate(from, to, limit);
        let waited = waited() - before;
        most = most.max(bits);
        let percent = 100.0 * bits as f64 / limit.bits_per_second() as f64;
        let seen = format!("{what}, {traffic:?}: {percent:.1} % of {limit}, lanes waited for {waited:?}");
        tell(&seen);
        assert!(bits <= limit.bits_per_second() / 100 * 105, "{seen}");
        if bits >= least / 100 * 95 {
            return;
        }
        assert!(waited > MEASURED / 10, "{seen}\n{}", swarm.drops());
    }
    assert!(most >= least / 2, "{what}, {traffic:?}: {most} of {least}\n{}", swarm.drops());
}

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

const TRIES: usize = 8;
const FLOWS: usize = 8;
/// Datagrams that are sent with one call.
const RUN: usize = 16;
const MEASURED: Duration = Duration::from_secs(1);
/// A stream has found its pace, and what was saved up in a silence is spent.
const WARM: Duration = Duration::from_millis(500);
