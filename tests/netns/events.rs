//! The audit log of real agents: what is in it, over restarts too, and what is not.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::Stdio;
use std::time::Duration;

use overlayd::api::types::IssueTokenResponse;
use overlayd::cluster::{Role, TokenName};
use overlayd::events::{Event, Recorded};
use overlayd::lab::{Underlay, eventually};

use crate::support::swarm::{Agent, Family, Swarm};
use crate::support::tests;

tests! {
    who_did_what_from_where_is_told_and_outlives_the_agents
    followers_see_events_as_they_happen
    forged_packets_are_told_in_bursts
}

fn who_did_what_from_where_is_told_and_outlives_the_agents() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let init = swarm.init(Family::V4);
    let (manager, joining) = (swarm.agent(1), swarm.agent(2));
    let address = init.manager.to_string();
    let once: IssueTokenResponse = manager.ask(&["token", "worker", "--once"]);
    let joined = swarm.join(2, &init).node;
    manager.done(&["token", "rm", &once.info.name.to_string()]);
    swarm.agent(3).refused(&["join", "--token", &once.token, &address]);
    joining.refused(&["create", "red"]);
    swarm.create_encrypted("red");
    let id = joined.id.as_str();
    manager.done(&["node", "update", "--availability", "drain", "--label-add", "disk=ssd", id]);
    manager.done(&["node", "update", "--availability", "active", "--label-rm", "disk", id]);
    manager.refused(&["node", "promote", id]);
    let _containers = [swarm.attach(1, "red", "c1"), swarm.attach(2, "red", "c2")];
    for agent in [manager, joining] {
        agent.await_keys(1);
    }

    let host = |number| Family::V4.of(swarm.lab.host(number));
    let seen = |agent: &Agent, what: &dyn Fn(&Event) -> bool| {
        let told = eventually(Duration::from_secs(10), || events(agent).iter().any(|e| what(&e.event)));
        assert!(told, "{:#?}", events(agent));
    };
    let (uid, cluster) = (rustix::process::geteuid().as_raw(), joined.id);
    seen(joining, &|event| {
        matches!(event, Event::LocalRequest { uid: by, pid: Some(_), request, subject: Some(to), failure: None }
            if *by == uid && request == "join" && to.to_string() == address)
    });
    seen(joining, &|event| {
        matches!(event, Event::LocalRequest { request, failure: Some(why), .. }
            if request == "network/create" && why.to_string().contains("only managers may"))
    });
    seen(manager, &|event| {
        matches!(event, Event::NodeJoined { node, role: Role::Worker, from, token, .. }
            if *node == cluster && from.ip() == host(2) && *token == TokenName::Standing(Role::Worker))
    });
    seen(manager, &|event| {
        matches!(event, Event::JoinRefused { from, reason }
            if from.ip() == host(3) && reason.to_string().contains("the token was removed"))
    });
    seen(manager, &|event| {
        matches!(event, Event::NodeRequest { node, from, request, name: Some(_), failure: None, .. }
            if *node == cluster && from.ip() == host(2) && request == "Attach")
    });
    seen(manager, &|event| {
        matches!(event, Event::NodeRequest { node, request, failure: Some(_), .. }
            if *node == cluster && request == "CreateNetwork")
    });
    seen(manager, &|event| matches!(event, Event::SessionBegun { node, .. } if *node == cluster));
    for agent in [manager, joining] {
        seen(agent, &|event| matches!(event, Event::ManagerReached {}));
        seen(
            agent,
            &|event| matches!(event, Event::KeysEstablished { network, .. } if network.as_str() == "red"),
        );
    }

    joining.done(&["rekey", "--peer", init.node.as_str()]);
    seen(joining, &|event| {
        matches!(event, Event::LocalRequest { request, subject: Some(subject), .. }
            if request == "rekey" && subject.to_string() == format!("peer {}", init.node))
    });
    // What was done to a node, in the log of who asked and in that of the manager that did it.
    for what in ["promote", "drain label-add disk=ssd", "active label-rm disk"] {
        let about = format!("{id} {what}");
        seen(manager, &|event| {
            matches!(event, Event::LocalRequest { request, subject: Some(subject), .. }
                if request == "node/change" && subject.to_string() == about)
        });
        seen(manager, &|event| {
            matches!(event, Event::NodeRequest { request, subject: Some(subject), .. }
                if request == "ChangeNode" && subject.to_string() == about)
        });
    }

    joining.kill();
    seen(manager, &|event| matches!(event, Event::SessionEnded { node } if *node == cluster));
    let before = events(manager);
    manager.kill();
    swarm.start(1);
    let after = events(manager);
    let starts = after.iter().filter(|e| matches!(e.event, Event::AgentStarted { .. })).count();
    assert_eq!(starts, 2);
    let numbers: Vec<_> = after.iter().map(|event| event.number).collect();
    assert!(numbers.is_sorted_by(|one, next| one + 1 == *next), "{numbers:?}");
    // A killed agent may not have written the very last.
    assert!(
        before.len() < after.len() + 2 && after.iter().take(before.len() - 2).eq(&before[..before.len() - 2])
    );

    let kept = std::fs::read_to_string(manager.state_dir().join("events.jsonl")).unwrap();
    for token in [&init.worker_token, &once.token] {
        let secret = token.rsplit('-').next().unwrap();
        assert!(!kept.contains(secret), "a secret is in the log");
    }
}

fn followers_see_events_as_they_happen() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let agent = swarm.agent(1);
    let mut follower = agent.command().arg("events").stdout(Stdio::piped()).spawn().unwrap();
    let mut program = agent.command().args(["--json", "events"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // It has its place in the log once it has been asked for.
    let (told, lines_told) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || lines.for_each(|line| told.send(line.unwrap()).unwrap()));
    let seen = eventually(Duration::from_secs(10), || {
        let _refused = agent.command().args(["rm", "no-such-network"]).output().unwrap();
        lines_told.try_iter().any(|line| line.contains("asked for network/remove no-such-network, failed: "))
    });
    assert!(seen);
    // And as JSON, a line each.
    let (recorded, records) = std::sync::mpsc::channel();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let parsing = std::thread::spawn(move || {
        lines.for_each(|line| {
            recorded.send(serde_json::from_str::<Recorded>(&line.unwrap()).unwrap()).unwrap()
        })
    });
    let mut numbers = Vec::new();
    let recorded = eventually(Duration::from_secs(10), || {
        let _refused = agent.command().args(["rm", "no-such-network"]).output().unwrap();
        let refusals = records.try_iter().filter(|record| {
            numbers.push(record.number);
            matches!(&record.event, Event::LocalRequest { request, failure: Some(_), .. } if request == "network/remove")
        });
        refusals.count() > 0
    });
    assert!(recorded && numbers.is_sorted_by(|one, next| one + 1 == *next), "{numbers:?}");
    agent.signal(rustix::process::Signal::TERM);
    for (mut follower, reading) in [(follower, reading), (program, parsing)] {
        assert!(follower.wait().unwrap().success(), "the end of the agent is the end of the stream");
        reading.join().unwrap();
    }
    assert!(records.try_iter().any(|record| matches!(record.event, Event::AgentStopped { .. })));
    assert!(lines_told.try_iter().any(|line| line.ends_with("agent stops")));
    // The stream ends before the process does, which writes the last line.
    let kept = || std::fs::read_to_string(agent.state_dir().join("events.jsonl")).unwrap();
    let is_kept =
        eventually(Duration::from_secs(10), || kept().lines().last().unwrap().contains("agent_stopped"));
    assert!(is_kept, "{}", kept());
}

fn forged_packets_are_told_in_bursts() {
    let (swarm, containers) = Swarm::pair().with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    swarm.assert_joined(one, two);
    let spi = swarm.agent(1).peers().peers[0].inbound_spis[0];
    let mut packet = spi.get().to_be_bytes().to_vec();
    packet.extend([0x7f; 96]);
    let target = (Family::V4.of(swarm.lab.host(1)), 4500);
    let throw = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..50).for_each(|_| assert_eq!(socket.send_to(&packet, target).unwrap(), packet.len()));
    };
    swarm.lab.host(2).run_in(throw).unwrap();
    let told = || {
        let unauthentic = |recorded: &Recorded| {
            if let Event::ForgedPackets { unauthentic, .. } = recorded.event { unauthentic } else { 0 }
        };
        events(swarm.agent(1)).iter().map(unauthentic).sum::<u64>() == 50
    };
    assert!(eventually(Duration::from_secs(20), told), "{:#?}\n{}", events(swarm.agent(1)), swarm.drops());
}

/// All that an agent has recorded so far.
fn events(agent: &Agent) -> Vec<Recorded> {
    let text = agent.done(&["--json", "events", "--no-follow"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
