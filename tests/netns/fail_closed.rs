//! Without a key nothing leaves: every frame on the underlay is looked at, every drop is counted.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use overlayd::api::types::{InitResponse, PeerState};
use overlayd::drop_reason::DropReason;
use overlayd::id::MacAddr;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Host, Underlay, eventually};
use rustix::process::Signal;

use crate::support::frames::{self, Seen, TLS_PORT, see};
use crate::support::swarm::{Attached, Family, Swarm};
use crate::support::tests;

tests! {
    nothing_leaves_while_the_peers_agent_is_stopped
    nothing_leaves_while_the_peers_agent_is_dead
    nothing_leaves_while_the_key_channel_is_blocked
    nothing_leaves_after_the_keys_have_expired
    nothing_leaves_for_a_peer_that_is_no_member_any_more
}

fn nothing_leaves_while_the_peers_agent_is_stopped() {
    let swarm = formed_of_three(Family::V4);
    let quiet = swarm.attach_quietly(3, "red", "c3");
    swarm.agent(3).signal(Signal::STOP);
    let sender = swarm.attach_quietly(2, "red", "c2");
    assert_nothing_leaves(&swarm, &sender, &quiet, DropReason::NoKey, Duration::from_secs(10));

    swarm.agent(3).signal(Signal::CONT);
    swarm.assert_reaches(&sender, &quiet, Duration::from_secs(10));
}

fn nothing_leaves_while_the_peers_agent_is_dead() {
    let swarm = formed_of_three(Family::V6);
    let quiet = swarm.attach_quietly(3, "red", "c3");
    swarm.agent(3).kill();
    let sender = swarm.attach_quietly(2, "red", "c2");
    assert_nothing_leaves(&swarm, &sender, &quiet, DropReason::NoKey, Duration::from_secs(3));

    swarm.start(3);
    swarm.assert_reaches(&sender, &quiet, Duration::from_secs(10));
}

/// The nodes agree on keys over IPv4, which is cut between them, and send data over IPv6.
fn nothing_leaves_while_the_key_channel_is_blocked() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let init = swarm.init(Family::V4);
    let [two, three] = [2, 3].map(|number| swarm.lab.host(number));
    for host in [two, three] {
        join_with_data_over_ipv6(&swarm, host, &init);
    }
    cut(two, three, "02:00:00:00:00:66");
    cut(three, two, "02:00:00:00:00:66");
    swarm.create(&["--encrypted", "--subnet", "10.77.0.0/24", "red"]);
    let quiet = swarm.attach_quietly(3, "red", "c3");
    let sender = swarm.attach_quietly(2, "red", "c2");
    assert_nothing_leaves(&swarm, &sender, &quiet, DropReason::NoKey, Duration::from_secs(10));
    let peers = swarm.agent(2).peers().peers;
    assert!(peers.iter().all(|peer| peer.state != PeerState::Established), "{peers:?}");

    for (from, to) in [(two, three), (three, two)] {
        cut(from, to, &mac(to).to_string());
    }
    swarm.assert_reaches(&sender, &quiet, Duration::from_secs(20));
}

fn nothing_leaves_after_the_keys_have_expired() {
    let config = "[limits]\nsoft_age = \"1s\"\nhard_age = \"3s\"\n";
    let swarm = Swarm::unformed_configured(3, Underlay::default(), config);
    let init = swarm.init(Family::V4);
    (2..=3).for_each(|number| drop(swarm.join(number, &init)));
    swarm.create(&["--encrypted", "--subnet", "10.77.0.0/24", "red"]);
    let (sender, quiet) = (swarm.attach_quietly(2, "red", "c2"), swarm.attach_quietly(3, "red", "c3"));
    swarm.assert_reaches(&sender, &quiet, Duration::from_secs(10));
    // The keys age, and are replaced without a loss.
    let spis = || swarm.agent(2).peers().peers[0].outbound_spis.iter().copied().collect::<BTreeSet<_>>();
    let first = spis();
    while spis() == first {
        assert!(sender.pings(quiet.address(Family::V4), 1), "a ping was lost\n{}", swarm.drops());
    }

    swarm.agent(3).signal(Signal::STOP);
    let expired = || {
        send(&sender, &quiet, 1);
        swarm.agent(2).dropped(DropReason::SaExpired) > 0
    };
    assert!(eventually(Duration::from_secs(10), expired), "the keys never expire");
    assert_nothing_leaves(&swarm, &sender, &quiet, DropReason::SaExpired, Duration::from_secs(3));
    swarm.agent(3).signal(Signal::CONT);
    swarm.assert_reaches(&sender, &quiet, Duration::from_secs(10));
}

fn nothing_leaves_for_a_peer_that_is_no_member_any_more() {
    let swarm = formed_of_three(Family::V4);
    let (sender, quiet) = (swarm.attach_quietly(2, "red", "c2"), swarm.attach_quietly(3, "red", "c3"));
    swarm.assert_reaches(&sender, &quiet, Duration::from_secs(10));
    swarm.agent(3).done(&["detach", "red", "--netns", "c3"]);
    let gone = || swarm.agent(2).peers().peers.is_empty();
    assert!(eventually(Duration::from_secs(5), gone), "its keys are kept");
    assert_nothing_leaves(&swarm, &sender, &quiet, DropReason::UnknownDestination, Duration::from_secs(1));
}

/// A manager and two workers with an encrypted IPv4 network `red`.
fn formed_of_three(family: Family) -> Swarm {
    let swarm = Swarm::formed(3, family, Underlay::default());
    swarm.create(&["--encrypted", "--subnet", "10.77.0.0/24", "red"]);
    swarm
}

/// Sends for a while, and asserts that the sender's host puts nothing on the underlay but its own
/// housekeeping and attempts to connect, and that the drops are the frames sent.
fn assert_nothing_leaves(
    swarm: &Swarm,
    sender: &Attached,
    receiver: &Attached,
    reason: DropReason,
    duration: Duration,
) {
    let wire = swarm.capture(2);
    let is_attached = Netlink::within(receiver.container.namespace(), |n| n.link(receiver.ifname())).is_ok();
    let inside = is_attached.then(|| receiver.capture());
    let before = swarm.agent(2).dropped(reason);
    let end = boot_time() + duration;
    let mut sent = 0;
    while boot_time() < end {
        send(sender, receiver, 10);
        sent += 10;
        std::thread::sleep(Duration::from_millis(50));
    }
    let dropped = || swarm.agent(2).dropped(reason) - before;
    eventually(Duration::from_secs(5), || dropped() >= sent);
    assert_eq!(dropped(), sent, "dropped of the frames sent\n{}", swarm.drops());
    for frame in wire.stop().unwrap() {
        assert!(!frames::contains(&frame, CANARY), "a frame left as it was: {frame:02x?}");
        match see(&frame) {
            Seen::Neighbors | Seen::Tcp(TLS_PORT) => {}
            other @ (Seen::Tcp(_) | Seen::Udp(_) | Seen::Other) => {
                panic!("on the wire: {other:?}: {frame:02x?}")
            }
        }
    }
    let arrived = inside.map(|capture| capture.stop().unwrap()).unwrap_or_default();
    assert!(!arrived.iter().any(|frame| frames::contains(frame, CANARY)));
}

/// Sends frames to the other container, as it would answer to.
fn send(from: &Attached, to: &Attached, count: usize) {
    let [source, destination] = [from, to].map(|end| SocketAddr::new(end.address(Family::V4), 7));
    let frame = frames::udp((from.mac(), to.mac()), source, destination, CANARY);
    frames::send(from.container.namespace(), from.ifname(), &vec![frame; count]);
}

fn join_with_data_over_ipv6(swarm: &Swarm, host: &Host, init: &InitResponse) {
    let number = if host.name() == "host2" { 2 } else { 3 };
    let (control, data, manager) = (host.v4().to_string(), host.v6().to_string(), init.manager.to_string());
    let addresses = ["--advertise-addr", &control, "--data-addr", &data];
    swarm
        .agent(number)
        .done(&[&["join", "--token", &init.worker_token], &addresses[..], &[&manager]].concat());
}

/// Makes a host send what is for another's IPv4 address to a MAC address.
fn cut(host: &Host, other: &Host, mac: &str) {
    Netlink::within(host.namespace(), |netlink| {
        netlink.add_neighbor(&netlink.link(&Host::underlay_name())?, other.v4(), mac.parse().unwrap())
    })
    .unwrap();
}

fn mac(host: &Host) -> MacAddr {
    let link = Netlink::within(host.namespace(), |netlink| netlink.link(&Host::underlay_name()));
    link.unwrap().mac.unwrap()
}

const CANARY: &[u8] = b"what must not be seen outside";
