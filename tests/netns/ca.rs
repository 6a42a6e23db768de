//! The cluster's certificate authority, on real agents: its root, one that the operator brings, and
//! its replacement by another.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::api::types::{
    CaResponse, CaRotation, CaStatusResponse, ListNodesResponse, NodeState, StatusResponse, TokenResponse,
};
use overlayd::cluster::RotationStep;
use overlayd::events::{Event, Recorded};
use overlayd::lab::{Underlay, eventually};
use rcgen::IsCa;
use sha2::{Digest, Sha256};

use crate::support::certificates::root_files;
use crate::support::managers::three_managers_and_two_workers;
use crate::support::swarm::{Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    rotation_goes_on_by_other_managers_after_the_one_that_took_a_step_was_killed
    root_is_the_same_on_every_node_and_in_the_token
    root_that_the_operator_brought_carries_traffic
    root_that_cannot_be_used_is_refused_and_nothing_is_made
    end_of_the_root_is_told_on_every_node_until_the_root_is_replaced
    root_is_replaced_under_traffic_without_a_loss
    certificate_of_the_old_root_is_worth_nothing_afterwards
    dead_node_is_named_and_machines_join_while_it_is_waited_for
    dead_node_that_is_removed_is_waited_for_no_more
    rotation_goes_on_after_the_manager_was_killed_between_its_steps
    rotation_goes_on_after_the_manager_was_killed_in_each_step
    rotation_that_cannot_be_is_refused_and_nothing_changes
}

fn root_is_the_same_on_every_node_and_in_the_token() {
    let swarm = Swarm::pair();
    let [one, two] = [1, 2].map(|number| swarm.agent(number).done(&["ca"]));
    assert!(one.starts_with("-----BEGIN CERTIFICATE-----\n"), "{one}");
    assert_eq!(one, two);
    let answer: CaResponse = swarm.agent(2).ask(&["ca"]);
    let [root] = answer.roots.as_slice() else { panic!("one root: {answer:?}") };
    let body: String = one.lines().filter(|line| !line.starts_with('-')).collect();
    let der = data_encoding::BASE64.decode(body.as_bytes()).unwrap();
    assert_eq!(root.fingerprint_sha256, data_encoding::HEXLOWER.encode(&Sha256::digest(der)));
    let years = (root.ends_unix_seconds - root.begins_unix_seconds) / (365 * 24 * 3600);
    assert_eq!(years, 20);
}

fn root_that_the_operator_brought_carries_traffic() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let (cert, key) = root_files(swarm.dir(), "own", &rcgen::PKCS_ECDSA_P384_SHA384, |_| {});
    let address = swarm.lab.host(1).v4().to_string();
    let init = ["init", "--advertise-addr", &address, "--ca-cert", text(&cert), "--ca-key", text(&key)];
    swarm.join(2, &swarm.agent(1).ask(&init));
    let printed = swarm.agent(2).done(&["ca"]);
    assert_eq!(printed.replace('\n', ""), std::fs::read_to_string(&cert).unwrap().replace(['\r', '\n'], ""));
    let (swarm, containers) = swarm.with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    swarm.assert_joined(one, two);
    // What it was made with is in the state: the files are not needed again.
    std::fs::remove_file(&cert).unwrap();
    std::fs::remove_file(&key).unwrap();
    for agent in &swarm.agents {
        agent.kill();
        swarm.start(agent.number);
    }
    swarm.await_keys(1);
    swarm.assert_joined(one, two);
}

fn root_that_cannot_be_used_is_refused_and_nothing_is_made() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let address = swarm.lab.host(1).v4().to_string();
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (cert, key) = root_files(swarm.dir(), "good", p256, |_| {});
    let (other_cert, other_key) = root_files(swarm.dir(), "other", p256, |_| {});
    let leaf = root_files(swarm.dir(), "leaf", p256, |params| params.is_ca = IsCa::ExplicitNoCa);
    let now = time::OffsetDateTime::now_utc();
    let old = root_files(swarm.dir(), "old", p256, |params| params.not_after = now - time::Duration::DAY);
    let short = root_files(swarm.dir(), "short", p256, |params| params.not_after = now + time::Duration::DAY);
    let edwards = root_files(swarm.dir(), "edwards", &rcgen::PKCS_ED25519, |_| {});
    for ((cert, key), words) in [
        ((cert.clone(), other_key), "does not belong to the CA certificate"),
        ((other_cert, key.clone()), "does not belong to the CA certificate"),
        (leaf, "is no CA"),
        (old, "expired at"),
        (short, "should live for years"),
        (edwards, "P-256 or P-384"),
        ((key.clone(), key.clone()), "no PEM certificate"),
        ((cert.clone(), cert.clone()), "no PEM private key"),
        ((cert.clone(), swarm.dir().join("nowhere")), "nowhere"),
    ] {
        let init = ["init", "--advertise-addr", &address, "--ca-cert", text(&cert), "--ca-key", text(&key)];
        let refusal = swarm.agent(1).refused(&init);
        assert!(refusal.contains(words), "{refusal:?} lacks {words:?}");
        assert!(refusal.contains(text(&key)), "{refusal:?} does not name the file");
        let status: StatusResponse = swarm.agent(1).status();
        assert_eq!(status.cluster, None, "{words}");
    }
    // Nothing was left that stands in the way of a good one.
    let init = ["init", "--advertise-addr", &address, "--ca-cert", text(&cert), "--ca-key", text(&key)];
    swarm.agent(1).done(&init);
    assert!(swarm.agent(1).status().cluster.is_some());
}

fn end_of_the_root_is_told_on_every_node_until_the_root_is_replaced() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let end = time::OffsetDateTime::now_utc() + time::Duration::days(120);
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (cert, key) = root_files(swarm.dir(), "own", p256, |params| params.not_after = end);
    let address = swarm.lab.host(1).v4().to_string();
    let init = ["init", "--advertise-addr", &address, "--ca-cert", text(&cert), "--ca-key", text(&key)];
    swarm.join(2, &swarm.agent(1).ask(&init));
    let told = |number: usize| {
        let warnings = swarm.agent(number).status().warnings;
        warnings.iter().any(|warning| warning.contains("root certificate ends at"))
    };
    for number in [1, 2] {
        assert!(told(number), "{:?}", swarm.agent(number).status());
        let cluster = swarm.agent(number).status().cluster.unwrap();
        assert_eq!(i64::try_from(cluster.root_expires_unix_seconds).unwrap(), end.unix_timestamp());
    }
    let status: CaStatusResponse = swarm.agent(2).ask(&["ca", "status"]);
    assert_eq!(status.issuing_ends_unix_seconds, Some(end.unix_timestamp()));

    swarm.agent(1).done(&["ca", "rotate"]);
    assert!(![1, 2].map(told).contains(&true), "{:?}", swarm.agent(2).status());
}

fn root_is_replaced_under_traffic_without_a_loss() {
    let (swarm, containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    let pairs = [(0, 1), (1, 2), (2, 0)].map(|(from, to)| (&containers[from], &containers[to]));
    pairs.iter().for_each(|(from, to)| swarm.assert_joined(from, to));
    let before = swarm.agents.iter().map(|agent| root(&swarm, agent.number)).collect::<Vec<_>>();
    let epoch = swarm.agent(1).inspect("red").epoch;

    let done = &AtomicBool::new(false);
    let (said, told) = std::thread::scope(|scope| {
        let pings =
            pairs.map(|(from, to)| scope.spawn(move || from.pings_until(done, to, Duration::from_millis(2))));
        let said = swarm.agent(1).done(&["--json", "ca", "rotate"]);
        // And once more, to one that is brought.
        let (cert, key) = root_files(swarm.dir(), "own", &rcgen::PKCS_ECDSA_P384_SHA384, |_| {});
        let told = swarm.agent(1).done(&["ca", "rotate", "--cert", text(&cert), "--key", text(&key)]);
        done.store(true, Ordering::Relaxed);
        for (pings, (from, to)) in pings.into_iter().zip(pairs) {
            let (sent, received) = pings.join().unwrap();
            let lost = format!("{} to {}: {received} of {sent}", from.container.name(), to.container.name());
            assert!(sent > 100 && received == sent, "{lost}\n{}", swarm.drops());
        }
        (said, told)
    });

    let steps: Vec<CaStatusResponse> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(steps.len() >= 2 && steps.last().unwrap().rotation.is_none(), "{said}");
    assert_ne!(steps.last().unwrap().issuing_sha256, before[0]);
    for words in ["Join tokens printed before are void", "overlayd token worker", "make a new one"] {
        assert!(told.contains(words), "{told}");
    }
    let after = root(&swarm, 1);
    assert!(after != before[0] && after != steps.last().unwrap().issuing_sha256);
    assert!(swarm.agents.iter().all(|agent| root(&swarm, agent.number) == after));
    assert!(swarm.agent(1).inspect("red").epoch > epoch, "memberships of the old root are in force");
    assert_told(&swarm, &after);
    // All of it is on the disks.
    for agent in &swarm.agents {
        agent.kill();
        swarm.start(agent.number);
    }
    swarm.await_keys(2);
    pairs.iter().for_each(|(from, to)| swarm.assert_joined(from, to));
    assert!(swarm.agents.iter().all(|agent| root(&swarm, agent.number) == after));
}

/// Each node's audit log tells what it trusts now, and the manager's that it was done.
fn assert_told(swarm: &Swarm, root: &str) {
    for agent in &swarm.agents {
        let told = || {
            let log = agent.done(&["--json", "events", "--no-follow"]);
            let log = log.lines().map(|line| serde_json::from_str::<Recorded>(line).unwrap().event);
            log.collect::<Vec<_>>()
        };
        let roots = |event: &Event| matches!(event, Event::RootsChanged { .. });
        let now = Event::RootsChanged { trusted: vec![root.to_owned()], issuer: root.to_owned() };
        let is_told = || told().into_iter().rfind(roots).as_ref() == Some(&now);
        assert!(eventually(PATIENCE, is_told), "{:#?}", told());
    }
    let log = swarm.agent(1).done(&["events", "--no-follow"]);
    for step in RotationStep::ALL {
        assert_eq!(
            log.matches(&format!("the root is being replaced: {}", step.describe())).count(),
            2,
            "{log}"
        );
    }
    assert_eq!(log.matches("the root is replaced on every node").count(), 2, "{log}");
}

fn certificate_of_the_old_root_is_worth_nothing_afterwards() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    let stolen = swarm.dir().join("stolen");
    swarm.agent(2).kill();
    copy(&swarm.agent(2).state_dir(), &stolen);
    swarm.start(2);
    await_connected(&swarm, 2);
    swarm.agent(1).done(&["ca", "rotate"]);

    // With the token of the old root nobody joins; with a new one, everybody.
    let manager = init.manager.to_string();
    let refusal = swarm.agent(3).refused(&["join", "--token", &init.worker_token, &manager]);
    assert!(
        refusal.contains("its root was replaced") && refusal.contains("overlayd token worker"),
        "{refusal}"
    );
    let token: TokenResponse = swarm.agent(1).ask(&["token", "worker"]);
    assert_ne!(token.token, init.worker_token);
    swarm.agent(3).done(&["join", "--token", &token.token, &manager]);

    swarm.agent(2).kill();
    std::fs::remove_dir_all(swarm.agent(2).state_dir()).unwrap();
    copy(&stolen, &swarm.agent(2).state_dir());
    swarm.start(2);
    let told = || swarm.agent(1).log().contains("not signed by the root of this cluster (wrong CA)");
    assert!(eventually(Duration::from_secs(10), told), "{}", swarm.agent(1).log());
    let refusal = swarm.agent(2).refused(&["ls"]);
    assert!(refusal.contains("wrong CA"), "{refusal}");
}

fn dead_node_is_named_and_machines_join_while_it_is_waited_for() {
    let swarm = Swarm::unformed(4, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    await_connected(&swarm, 2);
    swarm.agent(2).kill();
    let begun: CaStatusResponse = swarm.agent(1).ask(&["ca", "rotate", "--detach"]);
    assert_eq!(begun.rotation.unwrap().step, RotationStep::Trust);
    let waits_for_the_dead = || {
        let rotation = rotation(&swarm).unwrap();
        assert_eq!(rotation.step, RotationStep::Trust);
        rotation.waiting.len() == 1 && rotation.waiting[0].offline_since_unix_seconds.is_some()
    };
    assert!(eventually(Duration::from_secs(10), waits_for_the_dead), "{:?}", rotation(&swarm));
    let said = swarm.agent(1).done(&["ca", "status"]);
    for words in ["1 of 3", "does not trust the new root yet, offline since", "overlayd node rm"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(swarm.agent(1).done(&["ca"]).matches("BEGIN CERTIFICATE").count(), 2);

    // The token that was printed before is good until the old root goes, and so is one printed now.
    swarm.join(3, &init);
    let token: TokenResponse = swarm.agent(1).ask(&["token", "worker"]);
    swarm.agent(4).done(&["join", "--token", &token.token, &init.manager.to_string()]);
    assert_eq!(swarm.agent(4).done(&["ca"]).matches("BEGIN CERTIFICATE").count(), 2);
    assert!(eventually(Duration::from_secs(10), waits_for_the_dead), "{:?}", rotation(&swarm));

    swarm.start(2);
    await_end(&swarm);
    let new = root(&swarm, 1);
    assert!(swarm.agents.iter().all(|agent| root(&swarm, agent.number) == new));
}

fn dead_node_that_is_removed_is_waited_for_no_more() {
    let swarm = Swarm::formed(3, Family::V4, Underlay::default());
    let dead = swarm.agent(3).status().cluster.unwrap().node.id;
    swarm.agent(3).kill();
    // Whoever watches it is told for whom it waits, and why.
    let said = swarm.dir().join("said");
    let mut watching = swarm.agent(1).command();
    watching.args(["ca", "rotate"]).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
    let mut watching = watching.spawn().unwrap();
    let said = || std::fs::read_to_string(&said).unwrap();
    let named = format!("({dead}): does not trust the new root yet, offline since");
    assert!(eventually(Duration::from_secs(10), || said().contains(&named)), "{}", said());
    let waiting = || rotation(&swarm).unwrap().waiting.iter().map(|node| node.node).collect::<Vec<_>>();
    assert!(eventually(Duration::from_secs(10), || waiting() == [dead]), "{:?}", waiting());
    assert_eq!(watching.try_wait().unwrap(), None, "{}", said());
    swarm.agent(1).done(&["node", "rm", "--force", dead.as_str()]);
    let mut ended = None;
    let is_over = || {
        ended = watching.try_wait().unwrap();
        ended.is_some()
    };
    assert!(eventually(Duration::from_secs(60), is_over), "{}", said());
    assert!(ended.unwrap().success() && rotation(&swarm).is_none(), "{}", said());
    assert_eq!(root(&swarm, 1), root(&swarm, 2));
}

/// With all nodes there the steps take as long as it takes to tell of them.
fn rotation_goes_on_after_the_manager_was_killed_between_its_steps() {
    let (swarm, containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    let [one, two, three] = containers.as_slice() else { unreachable!("three hosts") };
    swarm.assert_joined(two, three);
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pings = [(two, three), (three, two)]
            .map(|(from, to)| scope.spawn(move || from.pings_until(done, to, Duration::from_millis(5))));
        for kills in [1, 3] {
            let old = root(&swarm, 1);
            swarm.agent(1).done(&["ca", "rotate", "--detach"]);
            let mut seen = Vec::new();
            for _ in 0..kills {
                std::thread::sleep(Duration::from_micros(rand::random_range(0..100_000)));
                swarm.agent(1).kill();
                swarm.start(1);
                seen.push(rotation(&swarm).map(|rotation| rotation.step));
            }
            crate::support::tell(&format!("found after each kill: {seen:?}"));
            await_end(&swarm);
            let new = root(&swarm, 1);
            let is_alone = |number: usize| {
                let roots = swarm.agent(number).ask::<CaResponse>(&["ca"]).roots;
                matches!(roots.as_slice(), [root] if root.fingerprint_sha256 == new)
            };
            let everywhere = || [2, 3].into_iter().all(is_alone);
            assert!(new != old && eventually(Duration::from_secs(5), everywhere), "{seen:?}");
        }
        done.store(true, Ordering::Relaxed);
        for pings in pings {
            let (sent, received) = pings.join().unwrap();
            assert!(sent > 100 && received == sent, "{received} of {sent}\n{}", swarm.drops());
        }
    });
    swarm.await_keys(2);
    [two, three].iter().for_each(|other| swarm.assert_joined(one, other));
}

/// In each step another node is away, so that the step lasts until the manager was killed in it.
fn rotation_goes_on_after_the_manager_was_killed_in_each_step() {
    let (swarm, containers) = Swarm::formed(3, Family::V4, Underlay::default()).with_containers();
    let pairs = [(0, 1), (1, 2), (2, 0)].map(|(from, to)| (&containers[from], &containers[to]));
    pairs.iter().for_each(|(from, to)| swarm.assert_joined(from, to));
    let ids = [1, 2, 3].map(|number| swarm.agent(number).status().cluster.unwrap().node.id);
    let old = root(&swarm, 1);
    let kill_in = |step: RotationStep, away: usize| {
        let mut last = None;
        let waits = || {
            last = rotation(&swarm);
            last.as_ref().is_some_and(|last| last.step == step && last.waiting.len() == 1)
        };
        let waited = eventually(Duration::from_secs(30), waits);
        assert!(waited, "not {step:?}: {last:?}\n{}", swarm.agent(1).log());
        swarm.agent(1).kill();
        swarm.start(1);
        let CaRotation { step: after, waiting, .. } = rotation(&swarm).unwrap();
        let waiting: Vec<_> = waiting.into_iter().map(|node| node.node).collect();
        assert_eq!((after, waiting), (step, vec![ids[away - 1]]));
    };

    swarm.agent(2).kill();
    swarm.agent(1).done(&["ca", "rotate", "--detach"]);
    kill_in(RotationStep::Trust, 2);
    swarm.agent(3).kill();
    swarm.start(2);
    kill_in(RotationStep::Reissue, 3);
    swarm.agent(2).kill();
    swarm.start(3);
    kill_in(RotationStep::Retire, 2);
    swarm.start(2);
    await_end(&swarm);

    swarm.await_keys(2);
    pairs.iter().for_each(|(from, to)| swarm.assert_joined(from, to));
    let new = root(&swarm, 1);
    assert!(new != old && [2, 3].iter().all(|number| root(&swarm, *number) == new));
}

/// Each step waits for a manager that is dead. Before that one is back, another dies that may have taken the
/// step, so it is for the others to take the next, which waits for the one that died.
fn rotation_goes_on_by_other_managers_after_the_one_that_took_a_step_was_killed() {
    let (swarm, _etcd) = three_managers_and_two_workers();
    swarm.create_encrypted("red");
    let (four, five) = (swarm.attach(4, "red", "c4"), swarm.attach(5, "red", "c5"));
    swarm.assert_joined(&four, &five);
    let ids = [1, 2, 3].map(|number| swarm.agent(number).status().cluster.unwrap().node.id);
    let await_step = |asked: usize, step: RotationStep, dead: usize| {
        let mut last = None;
        let waits = || {
            last = rotation_by(&swarm, asked);
            let waiting = last.iter().flat_map(|last| last.waiting.iter().map(|node| &node.node));
            last.as_ref().is_some_and(|last| last.step == step) && waiting.eq([&ids[dead - 1]])
        };
        assert!(eventually(PATIENCE, waits), "not {step:?}: {last:?}\n{}", swarm.agent(asked).log());
    };
    let await_end_by = |asked: usize, old: &str| {
        let is_over = || rotation_by(&swarm, asked).is_none() && root(&swarm, asked) != old;
        assert!(eventually(PATIENCE, is_over), "{:?}", rotation_by(&swarm, asked));
    };
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pings = [(&four, &five), (&five, &four)]
            .map(|(from, to)| scope.spawn(move || from.pings_until(done, to, Duration::from_millis(5))));
        let old = root(&swarm, 4);
        swarm.agent(3).kill();
        swarm.agent(1).done(&["ca", "rotate", "--detach"]);
        await_step(2, RotationStep::Trust, 3);
        swarm.agent(1).kill();
        swarm.start(3);
        await_step(2, RotationStep::Reissue, 1);
        swarm.agent(2).kill();
        swarm.start(1);
        await_step(3, RotationStep::Retire, 2);
        swarm.agent(3).kill();
        swarm.start(2);
        await_end_by(2, &old);
        swarm.start(3);

        // And at any instant.
        let old = root(&swarm, 1);
        swarm.agent(1).done(&["ca", "rotate", "--detach"]);
        std::thread::sleep(Duration::from_micros(rand::random_range(0..200_000)));
        swarm.agent(1).kill();
        crate::support::tell(&format!(
            "killed in {:?}",
            rotation_by(&swarm, 2).map(|rotation| rotation.step)
        ));
        swarm.start(1);
        await_end_by(1, &old);
        done.store(true, Ordering::Relaxed);
        for pings in pings {
            let (sent, received) = pings.join().unwrap();
            assert!(sent > 100 && received == sent, "{received} of {sent}\n{}", swarm.drops());
        }
    });
    let new = root(&swarm, 1);
    let is_everywhere = || swarm.agents.iter().all(|agent| trusted(&swarm, agent.number) == [new.as_str()]);
    assert!(
        eventually(PATIENCE, is_everywhere),
        "{:?}",
        [1, 2, 3, 4, 5].map(|number| trusted(&swarm, number))
    );
    // What was signed anew is believed, and there are keys by the new certificates.
    swarm.agent(4).done(&["rekey"]);
    let _late = swarm.attach(3, "red", "c3");
    swarm.agent(4).await_keys(2);
    swarm.assert_joined(&four, &five);
}

fn rotation_that_cannot_be_is_refused_and_nothing_changes() {
    let swarm = Swarm::pair();
    let before = root(&swarm, 1);
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (cert, key) = root_files(swarm.dir(), "good", p256, |_| {});
    let (_, other_key) = root_files(swarm.dir(), "other", p256, |_| {});
    let leaf = root_files(swarm.dir(), "leaf", p256, |params| params.is_ca = IsCa::ExplicitNoCa);
    let rotate = |cert: &Path, key: &Path| {
        swarm.agent(1).refused(&["ca", "rotate", "--cert", text(cert), "--key", text(key)])
    };
    let present = swarm.dir().join("present.pem");
    std::fs::write(&present, swarm.agent(1).done(&["ca"])).unwrap();
    for (refusal, words) in [
        (rotate(&cert, &other_key), "does not belong to the CA certificate"),
        (rotate(&leaf.0, &leaf.1), "is no CA"),
        (rotate(&present, &key), "does not belong to the CA certificate"),
        (swarm.agent(2).refused(&["ca", "rotate"]), "only managers may rotate the certificate authority"),
    ] {
        assert!(refusal.contains(words), "{refusal:?} lacks {words:?}");
    }
    assert_eq!((rotation(&swarm), root(&swarm, 1)), (None, before));
    swarm.agent(2).kill();
    swarm.agent(1).done(&["ca", "rotate", "--detach"]);
    let refusal = swarm.agent(1).refused(&["ca", "rotate"]);
    assert!(refusal.contains("under way") && refusal.contains("overlayd ca status"), "{refusal}");
}

fn rotation(swarm: &Swarm) -> Option<CaRotation> {
    rotation_by(swarm, 1)
}

/// As one of the managers has it, once it can be asked.
fn rotation_by(swarm: &Swarm, number: usize) -> Option<CaRotation> {
    let mut told = None;
    let is_told = eventually(PATIENCE, || {
        told = swarm.agent(number).try_ask::<CaStatusResponse>(&["ca", "status"]);
        told.is_some()
    });
    assert!(is_told, "{}", swarm.agent(number).log());
    told.unwrap().rotation
}

fn await_end(swarm: &Swarm) {
    let over = eventually(Duration::from_secs(60), || rotation(swarm).is_none());
    assert!(over, "{}", swarm.agent(1).done(&["ca", "status"]));
}

fn await_connected(swarm: &Swarm, nodes: usize) {
    let connected = || {
        let listed: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
        listed.nodes.iter().filter(|node| node.state == NodeState::Ready).count() == nodes
    };
    assert!(eventually(Duration::from_secs(10), connected));
}

/// The one root that an agent trusts.
fn root(swarm: &Swarm, number: usize) -> String {
    let trusted = trusted(swarm, number);
    let [root] = trusted.as_slice() else { panic!("agent {number} trusts {trusted:?}") };
    root.clone()
}

/// The roots that an agent trusts.
fn trusted(swarm: &Swarm, number: usize) -> Vec<String> {
    let answer: CaResponse = swarm.agent(number).ask(&["ca"]);
    answer.roots.into_iter().map(|root| root.fingerprint_sha256).collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
