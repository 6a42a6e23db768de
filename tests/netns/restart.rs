//! Agents that are killed, stopped and started again: what is attached stays, and comes back.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use overlayd::api::types::{AttachResponse, ListNetworksResponse};
use overlayd::boot_time::BootTime;
use overlayd::drop_reason::DropReason;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::{Link, Netlink};
use overlayd::lab::{Container, Ping, Underlay, eventually};
use rustix::process::Signal;

use crate::support::kills::assert_changes_survive;
use crate::support::swarm::{Agent, Attached, Family, Swarm, refused};
use crate::support::tests;

tests! {
    killed_agent_brings_everything_back
    all_agents_killed_come_back_without_their_manager
    agent_may_be_killed_at_any_moment_of_an_attachment
    agent_may_be_killed_at_any_moment_of_a_detachment
    manager_may_be_killed_at_any_moment_of_an_attachment
    traffic_between_workers_goes_on_without_the_manager
    second_agent_on_a_state_directory_or_socket_is_refused
    damaged_or_foreign_state_is_refused_and_not_replaced
    endpoint_of_a_container_that_ended_goes_and_frees_its_address
    interface_that_somebody_removed_is_made_again
    stopped_agent_ends_soon_and_leaves_the_containers_their_interfaces
    killed_manager_has_all_that_it_acknowledged_and_nothing_half_done
    manager_on_a_full_disk_refuses_changes_and_lives_through_a_kill
    ; soak:
    manager_killed_two_hundred_times_has_all_that_it_acknowledged
}

fn killed_manager_has_all_that_it_acknowledged_and_nothing_half_done() {
    assert_changes_survive_kills(5);
}

fn manager_killed_two_hundred_times_has_all_that_it_acknowledged() {
    assert_changes_survive_kills(200);
}

fn killed_agent_brings_everything_back() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    swarm.assert_joined(one, two);
    // Whichever has the larger node id begins the key exchanges: both are tried.
    for (number, own, other) in [(1, one, two), (2, two, one)] {
        let (link, endpoint) = (link(own), swarm.agent(number).stats().endpoints[0].endpoint);
        swarm.agent(number).kill();
        assert_eq!(self::link(own).index, link.index, "the interface went with its agent");
        assert!(!own.pings(other.address(Family::V4), 1));

        let started = boot_time();
        swarm.agent(number).spawn(swarm.lab.host(number), &[]);
        await_ping(&swarm, own, other, started);
        // Somebody may start it before the kernel has closed all that the killed one had open.
        let mut killed = swarm.agent(number).kill_without_waiting();
        let started = boot_time();
        swarm.agent(number).spawn(swarm.lab.host(number), &[]);
        killed.wait().unwrap();
        await_ping(&swarm, own, other, started);
        await_ping(&swarm, other, own, started);
        let after = self::link(own);
        assert_eq!((after.index, after.mac, after.mtu), (link.index, link.mac, link.mtu));
        assert_eq!(swarm.agent(number).stats().endpoints[0].endpoint, endpoint);
        assert_eq!(swarm.agent(1).inspect("red").endpoints.len(), 2);
    }
}

fn all_agents_killed_come_back_without_their_manager() {
    let (swarm, containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    swarm.assert_joined(&containers[1], &containers[2]);
    swarm.agents.iter().for_each(Agent::kill);
    let started = boot_time();
    for number in [2, 3] {
        swarm.agent(number).spawn(swarm.lab.host(number), &[]);
    }
    await_ping(&swarm, &containers[1], &containers[2], started);
    await_ping(&swarm, &containers[2], &containers[1], started);
    swarm.start(1);
    swarm.assert_joined(&containers[0], &containers[1]);
}

fn agent_may_be_killed_at_any_moment_of_an_attachment() {
    assert_survives_kills(2, &["attach", "red", "--netns", "c2"]);
}

fn agent_may_be_killed_at_any_moment_of_a_detachment() {
    assert_survives_kills(2, &["detach", "red", "--netns", "c2"]);
}

fn manager_may_be_killed_at_any_moment_of_an_attachment() {
    assert_survives_kills(1, &["attach", "red", "--netns", "c2"]);
}

fn traffic_between_workers_goes_on_without_the_manager() {
    let (swarm, containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    let [_, two, three] = containers.as_slice() else { unreachable!("three hosts") };
    swarm.assert_joined(two, three);
    let spare = swarm.lab.host(2).container("spare").unwrap();
    let series = Ping {
        count: 300,
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(1),
        ..Ping::default()
    };
    let report = std::thread::scope(|scope| {
        let pings = scope.spawn(|| series.run(two.container.namespace(), three.address(Family::V4)).unwrap());
        swarm.agent(1).kill();
        let refusal = swarm.agent(2).refused(&["attach", "red", "--netns", spare.name()]);
        assert!(
            refusal.contains("no manager can be reached") || refusal.contains("the manager"),
            "{refusal}"
        );
        let address = swarm.lab.host(1).v4().to_string();
        let refusal = swarm.agent(2).refused(&["create", "blue"]);
        assert!(refusal.contains(&address), "{refusal}");
        swarm.start(1);
        pings.join().unwrap()
    });
    assert!(report.is_complete(), "{} of {} answered", report.received(), report.sent);
    assert_eq!(links(&spare), ["lo"], "a refused attachment left something");
    let attached =
        || swarm.agent(2).try_ask::<AttachResponse>(&["attach", "red", "--netns", "spare"]).is_some();
    assert!(eventually(Duration::from_secs(20), attached), "{}", swarm.agent(2).log());
    assert_eq!(swarm.agent(1).inspect("red").endpoints.len(), 4);
}

fn second_agent_on_a_state_directory_or_socket_is_refused() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let (one, other) = (swarm.agent(1), swarm.dir().join("other"));
    let agent = |socket: &Path, state: &Path| {
        let mut command = Command::new(crate::support::swarm::OVERLAYD);
        command.arg("--socket").arg(socket).args(["agent", "--state-dir"]).arg(state);
        first_line(&refused(&mut command, 1))
    };
    let refusal = agent(&other, &one.state_dir());
    assert!(refusal.contains("is in use by another overlayd agent (pid"), "{refusal}");
    assert!(refusal.contains("--state-dir"), "{refusal}");
    let refusal = agent(&one.socket, &other);
    assert!(refusal.contains(one.socket.to_str().unwrap()) && refusal.contains("--socket"), "{refusal}");
    assert!(one.status().cluster.is_none(), "the first agent goes on");
}

fn damaged_or_foreign_state_is_refused_and_not_replaced() {
    let swarm = Swarm::unformed(1, Underlay::default());
    swarm.init(Family::V4);
    swarm.create_encrypted("red");
    let agent = swarm.agent(1);
    agent.kill();
    let state = agent.state_dir().join("overlayd.redb");
    let good = std::fs::read(&state).unwrap();
    let torn = good[..good.len() / 2].to_vec();
    let zeroed = {
        let mut bytes = good.clone();
        bytes[..good.len() / 2].fill(0);
        bytes
    };
    for bytes in [torn, zeroed, b"a note of somebody else's".to_vec(), Vec::new()] {
        std::fs::write(&state, &bytes).unwrap();
        let mut command = agent.command();
        command.arg("agent").arg("--state-dir").arg(agent.state_dir());
        let refusal = first_line(&refused(&mut command, 1));
        assert!(refusal.contains(state.to_str().unwrap()), "{refusal}");
        assert!(refusal.contains("backup") || refusal.contains("move it away"), "{refusal}");
        assert!(std::fs::read(&state).unwrap() == bytes, "the file was changed");
    }
    File::options().write(true).open(&state).unwrap().set_len(0).unwrap();
    File::options().write(true).open(&state).unwrap().write_all_at(&good, 0).unwrap();
    swarm.start(1);
    assert_eq!(agent.inspect("red").network.name.as_str(), "red");
}

fn endpoint_of_a_container_that_ended_goes_and_frees_its_address() {
    let (swarm, mut containers) = Swarm::pair().with_containers();
    swarm.assert_joined(&containers[0], &containers[1]);
    let gone = containers.pop().unwrap();
    let address = gone.address(Family::V4);
    drop(gone);
    let forgotten = || swarm.agent(1).inspect("red").endpoints.len() == 1;
    assert!(eventually(Duration::from_secs(10), forgotten), "{}", swarm.agent(2).log());
    let again = swarm.attach_with(1, "red", "c3", &["--ip", &address.to_string()]);
    swarm.assert_joined(&containers[0], &again);

    // Also while the agent is away.
    let ended = swarm.attach(2, "red", "c4");
    swarm.agent(2).kill();
    drop(ended);
    swarm.start(2);
    let forgotten = || swarm.agent(1).inspect("red").endpoints.len() == 2;
    assert!(eventually(Duration::from_secs(10), forgotten), "{}", swarm.agent(2).log());
}

fn interface_that_somebody_removed_is_made_again() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    swarm.assert_joined(one, two);
    Netlink::within(two.container.namespace(), |netlink| netlink.delete(&netlink.link(two.ifname())?))
        .unwrap();
    swarm.assert_joined(one, two);
    assert_eq!(link(two).mac, Some(two.mac()));
}

fn manager_on_a_full_disk_refuses_changes_and_lives_through_a_kill() {
    let swarm = Swarm::idle(1, Underlay::default());
    let (agent, dir) = (swarm.agent(1), swarm.agent(1).state_dir());
    std::fs::create_dir(&dir).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "overlayd"]).arg(&dir).status();
    assert!(mounted.unwrap().success());
    swarm.start(1);
    swarm.init(Family::V4);
    let create = |number: u32| ["create".to_owned(), "--encrypted".to_owned(), format!("net-{number}")];
    let listed = || agent.ask::<ListNetworksResponse>(&["ls"]).networks;
    agent.done(&create(0).each_ref().map(String::as_str));
    for round in 0..3 {
        let filler = dir.join("filler");
        let mut file = File::create(&filler).unwrap();
        while file.write(&[0; 4096]).is_ok() {}
        let mut refusal = None;
        for number in 1_000 * (round + 1)..1_000 * (round + 2) {
            let before = listed();
            let output = agent.command().args(create(number)).output().unwrap();
            if !output.status.success() {
                assert_eq!(listed(), before);
                refusal = Some(String::from_utf8(output.stderr).unwrap());
                break;
            }
        }
        let refusal = refusal.expect("the disk is full");
        assert!(refusal.contains("no space left") && refusal.contains("nothing was changed"), "{refusal}");
        let before = listed();
        agent.kill();
        swarm.start(1);
        assert_eq!(listed(), before, "after a kill beside a full disk");
        drop(file);
        std::fs::remove_file(&filler).unwrap();
        agent.done(&create(round + 1).each_ref().map(String::as_str));
        assert_eq!(listed().len(), before.len() + 1);
    }
}

fn stopped_agent_ends_soon_and_leaves_the_containers_their_interfaces() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    swarm.assert_joined(one, two);
    for (number, signal, own) in [(2, Signal::TERM, two), (1, Signal::INT, one)] {
        let (agent, index) = (swarm.agent(number), link(own).index);
        agent.signal(signal);
        let status = agent.await_exit(Duration::from_secs(3)).expect("it ends within 3 s");
        assert_eq!(status.code(), Some(0), "{}", agent.log());
        assert!(!agent.socket.exists(), "the socket is left behind");
        assert_eq!(link(own).index, index);
    }
    swarm.start(1);
    swarm.start(2);
    swarm.assert_joined(one, two);
    assert_eq!(swarm.agent(1).dropped(DropReason::AuthenticationFailed), 0);
}

/// Kills the manager at random instants while several change the cluster, and sometimes while it starts.
fn assert_changes_survive_kills(kills: usize) {
    let swarm = Swarm::idle(2, Underlay::default());
    swarm.start(1);
    let init = swarm.init(Family::V4);
    assert_changes_survive(&swarm, &init, kills, |round| {
        swarm.agent(1).kill();
        if round % 4 == 3 {
            swarm.agent(1).spawn(swarm.lab.host(1), &[]);
            std::thread::sleep(Duration::from_micros(rand::random_range(0..300_000)));
            swarm.agent(1).kill();
        }
        swarm.start(1);
    });
}

/// Kills an agent at many moments of a command of agent 2, and asserts each time that what was
/// promised is there, that nothing is there by half, and that all can be undone.
fn assert_survives_kills(number: usize, command: &[&str]) {
    let swarm = Swarm::pair();
    swarm.create(&["--encrypted", "--subnet", "10.77.0.0/24", "red"]);
    let other = swarm.attach(1, "red", "c1");
    let container = swarm.lab.host(2).container("c2").unwrap();
    let agent = swarm.agent(2);
    let (attach, detach) = (["attach", "red", "--netns", "c2"], ["detach", "red", "--netns", "c2"]);
    // How long it takes, so that the moments are spread over it and beyond.
    agent.done(&attach);
    agent.done(&detach);
    let started = boot_time();
    agent.done(&attach);
    let attaching = boot_time().since(started);
    let started = boot_time();
    agent.done(&detach);
    let takes = if command[0] == "attach" { attaching } else { boot_time().since(started) };
    for moment in 0..KILLS {
        if command[0] == "detach" {
            agent.done(&attach);
        }
        let mut running =
            agent.command().args(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(takes * moment * 2 / KILLS);
        swarm.agent(number).kill();
        swarm.agent(number).spawn(swarm.lab.host(number), &[]);
        let promised = running.wait().unwrap().success();
        swarm.agents.iter().for_each(Agent::await_ready);

        let state = || {
            let here = agent.try_ask::<overlayd::api::types::StatsResponse>(&["stats"])?.endpoints.len();
            let at_manager = swarm.agent(1).inspect("red").endpoints.len() - 1;
            Some((here, at_manager, links(&container).len() - 1))
        };
        let settled = || matches!(state(), Some((0, 0, 0) | (1, 1, 1)));
        assert!(eventually(Duration::from_secs(15), settled), "moment {moment}: {:?}", state());
        let is_equal = || agent.command().args(["status", "--verify"]).output().unwrap().status.success();
        assert!(eventually(Duration::from_secs(15), is_equal), "moment {moment}: {}", agent.verification());
        if promised {
            let expected = if command[0] == "attach" { (1, 1, 1) } else { (0, 0, 0) };
            assert_eq!(state(), Some(expected), "moment {moment}: what was promised is gone");
        }
        if state() == Some((1, 1, 1)) {
            let done = || agent.command().args(detach).output().unwrap().status.success();
            assert!(eventually(Duration::from_secs(10), done), "moment {moment}: it cannot be detached");
        }
        assert_eq!(links(&container), ["lo"]);
    }
    let host = Netlink::within(swarm.lab.host(2).namespace(), Netlink::links).unwrap();
    assert_eq!(host.len(), 2, "an interface was left behind: {host:?}");
    let attached = || agent.command().args(attach).output().unwrap().status.success();
    assert!(eventually(Duration::from_secs(10), attached));
    let [address] = other.endpoint().addresses.as_slice() else { panic!("one address") };
    let pings = || {
        let report = Ping { count: 1, ..Ping::default() }.run(container.namespace(), address.addr()).unwrap();
        report.is_complete()
    };
    assert!(eventually(Duration::from_secs(10), pings), "{}", swarm.drops());
}

/// Waits for a ping, and asserts that it was soon after a start.
fn await_ping(swarm: &Swarm, from: &Attached, to: &Attached, started: BootTime) {
    let ping = Ping { count: 1, timeout: Duration::from_millis(100), ..Ping::default() };
    let reached = || from.ping(to.address(Family::V4), &ping);
    assert!(eventually(Duration::from_secs(15), reached), "{}", swarm.drops());
    let elapsed = boot_time().since(started);
    assert!(elapsed < Duration::from_secs(2), "traffic came back after {elapsed:?}");
}

fn link(container: &Attached) -> Link {
    Netlink::within(container.container.namespace(), |netlink| netlink.link(container.ifname())).unwrap()
}

fn links(container: &Container) -> Vec<String> {
    let links = Netlink::within(container.namespace(), Netlink::links).unwrap();
    links.into_iter().map(|link| link.name).collect()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

const KILLS: u32 = 16;
