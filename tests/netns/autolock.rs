//! A manager that is locked at each start of its agent: what it does and refuses before it is unlocked, and
//! how it goes on after that.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use memchr::memmem;
use overlayd::api::types::{InitResponse, TokenResponse, UnlockKeyResponse};
use overlayd::boot_time::BootTime;
use overlayd::control::store::{KEY_FILE, STATE_FILE};
use overlayd::io::clock::boot_time;
use overlayd::lab::{Container, Underlay, eventually};
use overlayd::unlock_key::UnlockKey;
use rustix::process::Signal;

use crate::support::etcd::{Etcd, Place};
use crate::support::swarm::{Agent, Family, PATIENCE, Swarm, refused};
use crate::support::tests;

tests! {
    locked_manager_carries_and_changes_nothing_and_goes_on_once_unlocked
    wrong_unlock_key_changes_nothing_and_is_answered_slowly
    changed_unlock_key_replaces_the_earlier_one
    nothing_in_the_state_directory_opens_it
    manager_has_an_unlock_key_once_it_is_given_one
    manager_that_is_added_to_a_locked_one_takes_its_key_until_it_is_a_worker
    whoever_asked_has_the_key_at_whatever_moment_the_agent_dies
}

fn locked_manager_carries_and_changes_nothing_and_goes_on_once_unlocked() {
    let (swarm, init) = autolocked(2);
    let (swarm, containers) = swarm.with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two hosts") };
    swarm.assert_joined(one, two);
    let manager = swarm.agent(1);
    let interfaces = links(&one.container);
    manager.kill();
    swarm.start(1);

    let status = manager.status();
    assert!(status.locked && status.cluster.is_none(), "{status:?}");
    let text = manager.done(&["status"]);
    assert!(text.contains("LOCKED") && text.contains("overlayd unlock"), "{text}");
    for command in [
        &["ls"][..],
        &["peers"],
        &["stats"],
        &["node", "ls"],
        &["token", "worker"],
        &["create", "blue"],
        &["inspect", "red"],
        &["rm", "red"],
        &["attach", "red", "--netns", "c1", "--ifname", "eth1"],
        &["detach", "red", "--netns", "c1"],
        &["leave"],
        &["unlock-key"],
        &["init", "--advertise-addr", "10.9.9.9"],
        &["join", "--token", &init.worker_token, &init.manager.to_string()],
    ] {
        let refusal = manager.refused(command);
        assert!(refusal.contains("is locked") && refusal.contains("`overlayd unlock`"), "{refusal}");
    }
    assert_eq!(links(&one.container), interfaces, "an interface went");
    assert!(!one.pings(two.address(Family::V4), 1), "a locked manager carries traffic");
    assert!(!two.pings(one.address(Family::V4), 1), "a locked manager carries traffic");

    let told = unlock(manager, init.unlock_key.as_ref().unwrap());
    assert!(told.contains("is unlocked"), "{told}");
    swarm.assert_joined(one, two);
    let after = manager.status();
    assert!(!after.locked && after.pid == status.pid, "{after:?}");
    assert_eq!(after.cluster.unwrap().id, init.cluster);
    assert_eq!(links(&one.container), interfaces);
    swarm.create(&["blue"]);
    let _third = swarm.attach(2, "blue", "c3");
    let refusal = refused(&mut unlock_with(manager, init.unlock_key.as_ref().unwrap()), 1);
    assert!(refusal.contains("is not locked"), "{refusal}");
}

fn wrong_unlock_key_changes_nothing_and_is_answered_slowly() {
    let (swarm, init) = autolocked(1);
    let manager = swarm.agent(1);
    manager.kill();
    swarm.start(1);
    let key_file = || std::fs::read(manager.state_dir().join(KEY_FILE)).unwrap();
    let before = key_file();
    let started = boot_time();
    let wrong = UnlockKey::from_entropy([7; 32]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let refusal = refused(&mut unlock_with(manager, &wrong), 1);
                assert!(refusal.contains("not the unlock key") && refusal.contains("nothing was changed"));
            });
        }
    });
    assert!(since(started) >= Duration::from_secs(4), "two attempts took {:?}", since(started));
    for text in ["", "hello", "OVKEY-1-aaaa"] {
        let file = swarm.dir().join("key");
        std::fs::write(&file, text).unwrap();
        let refusal = manager.refused(&["unlock", "--key-file", file.to_str().unwrap()]);
        let expected =
            if text.is_empty() { "cannot read the unlock key" } else { "this is not an unlock key" };
        assert!(refusal.contains(expected) && refusal.contains(file.to_str().unwrap()), "{refusal}");
    }
    let refusal = manager.refused(&["unlock", "--key-file", "/nowhere/key"]);
    assert!(refusal.contains("/nowhere/key"), "{refusal}");
    assert!(manager.status().locked);
    assert!(key_file() == before, "a wrong key changed the key file");
    unlock(manager, init.unlock_key.as_ref().unwrap());
    assert_eq!(manager.status().cluster.unwrap().id, init.cluster);
}

fn changed_unlock_key_replaces_the_earlier_one() {
    let (swarm, init) = autolocked(1);
    let (manager, first) = (swarm.agent(1), init.unlock_key.unwrap());
    swarm.create(&["red"]);
    assert_eq!(manager.done(&["unlock-key", "-q"]), format!("{}\n", first.reveal().as_str()));
    let second = manager.ask::<UnlockKeyResponse>(&["unlock-key", "--rotate"]).key;
    assert_ne!(second, first);
    assert!(manager.done(&["unlock-key"]).contains(second.reveal().as_str()));
    swarm.create(&["blue"]);
    manager.kill();
    swarm.start(1);
    refused(&mut unlock_with(manager, &first), 1);
    let file = swarm.dir().join("key");
    std::fs::write(&file, format!("{}\n", second.reveal().as_str())).unwrap();
    manager.done(&["unlock", "--key-file", file.to_str().unwrap()]);
    for network in ["red", "blue"] {
        manager.inspect(network);
    }
    // A node that is in no cluster has no state to lock.
    manager.done(&["leave"]);
    manager.kill();
    swarm.start(1);
    assert!(!manager.status().locked);
    swarm.init(Family::V4);
}

fn nothing_in_the_state_directory_opens_it() {
    let (swarm, init) = autolocked(1);
    let manager = swarm.agent(1);
    manager.signal(Signal::TERM);
    assert!(manager.await_exit(Duration::from_secs(10)).is_some());
    let key = init.unlock_key.unwrap();
    for file in std::fs::read_dir(manager.state_dir()).unwrap() {
        let file = file.unwrap().path();
        let content = std::fs::read(&file).unwrap();
        for form in [key.as_bytes().as_slice(), key.reveal().as_bytes(), b"\"open\""] {
            assert!(memmem::find(&content, form).is_none(), "{}", file.display());
        }
    }
}

fn manager_has_an_unlock_key_once_it_is_given_one() {
    let swarm = Swarm::pair();
    let refusal = swarm.agent(1).refused(&["unlock-key"]);
    assert!(refusal.contains("--autolock") && refusal.contains("unlock-key --rotate"), "{refusal}");
    for command in [["unlock-key"].as_slice(), &["unlock-key", "--rotate"]] {
        let refusal = swarm.agent(2).refused(command);
        assert!(refusal.contains("is a worker"), "{refusal}");
    }
    let restarted = || {
        swarm.agent(1).kill();
        swarm.start(1);
        swarm.agent(1).status().locked
    };
    let connected = || swarm.agent(1).try_ask::<serde_json::Value>(&["ls"]).is_some();
    assert!(!restarted());
    assert!(eventually(Duration::from_secs(10), connected));
    let key = swarm.agent(1).done(&["unlock-key", "--rotate", "--quiet"]);
    assert!(restarted());
    unlock(swarm.agent(1), &key.trim().parse().unwrap());
    assert!(eventually(Duration::from_secs(10), connected));
}

fn manager_that_is_added_to_a_locked_one_takes_its_key_until_it_is_a_worker() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let host = swarm.lab.host(1);
    let etcd = Etcd::at(vec![Place::within(&Path::new("/run/netns").join(host.name()), host.v4())], None);
    let (one, two, address) = (swarm.agent(1), swarm.agent(2), host.v4().to_string());
    let init = ["init", "--autolock", "--advertise-addr", &address, "--store", &etcd.url()];
    let mut made: Option<InitResponse> = None;
    let is_made = || {
        made = one.try_ask(&init);
        made.is_some()
    };
    assert!(eventually(PATIENCE, is_made), "{}", one.refused(&init));
    let (made, is_manager) = (made.unwrap(), || two.try_ask::<UnlockKeyResponse>(&["unlock-key"]));
    let token: TokenResponse = one.ask(&["token", "manager"]);
    swarm.join(2, &InitResponse { worker_token: token.token, ..made.clone() });
    let first = made.unlock_key.unwrap();
    assert!(eventually(PATIENCE, || is_manager().is_some_and(|told| told.key == first)), "{}", two.log());
    for form in [first.as_bytes().as_slice(), first.reveal().as_bytes(), b"\"open\""] {
        let key_file = std::fs::read(two.state_dir().join(KEY_FILE)).unwrap();
        assert!(memmem::find(&key_file, form).is_none(), "the second manager's state is not locked");
    }

    // Each opens by itself, whether the other is there or not.
    for agent in [1, 2] {
        swarm.agent(agent).kill();
    }
    for (number, network) in [(2, "red"), (1, "blue")] {
        let agent = swarm.agent(number);
        swarm.start(number);
        assert!(agent.status().locked);
        unlock(agent, &first);
        assert!(eventually(PATIENCE, || agent
            .command()
            .args(["create", network])
            .status()
            .unwrap()
            .success()));
    }

    // A new key is that of the one manager.
    let second = two.ask::<UnlockKeyResponse>(&["unlock-key", "--rotate"]).key;
    two.kill();
    swarm.start(2);
    refused(&mut unlock_with(two, &first), 1);
    unlock(two, &second);
    assert_eq!(one.ask::<UnlockKeyResponse>(&["unlock-key"]).key, first);

    let id = two.status().cluster.unwrap().node.id.to_string();
    assert!(eventually(PATIENCE, || one.command().args(["node", "demote", &id]).status().unwrap().success()));
    let key_file = || std::fs::read_to_string(two.state_dir().join(KEY_FILE)).unwrap();
    let is_open = || key_file().contains("\"open\"") && !key_file().contains("\"locked\"");
    assert!(eventually(PATIENCE, is_open), "{}", two.log());
    two.kill();
    swarm.start(2);
    let status = two.status();
    assert!(!status.locked && status.cluster.is_some(), "a worker is locked: {status:?}");
}

fn whoever_asked_has_the_key_at_whatever_moment_the_agent_dies() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let manager = swarm.agent(1);
    let address = swarm.lab.host(1).v4().to_string();
    let init = ["init", "--autolock", "--advertise-addr", &address];
    let begin = boot_time();
    manager.done(&init);
    let undisturbed = boot_time().since(begin);
    manager.done(&["leave"]);
    let mut known: Option<UnlockKey> = None;
    let mut locked = 0;
    for attempt in 0..16 {
        let is_member = manager.status().cluster.is_some();
        let mut command = manager.command();
        if is_member {
            command.args(["unlock-key", "--rotate"]);
        } else {
            command.args(init);
        }
        let before = on_disk(manager);
        let mut asked = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The moment is what is tried here: once so many files were replaced, or all is done, and a bit later.
        let (replacements, later) = (attempt % 5, undisturbed * (attempt / 5) / 10);
        let mut seen = vec![before];
        let mut has_come = || {
            let now = on_disk(manager);
            if seen.last() != Some(&now) {
                seen.push(now);
            }
            let is_done = asked.try_wait().unwrap().is_some();
            is_done || (replacements < 4 && seen.len() > replacements as usize)
        };
        let begin = boot_time();
        while !has_come() {
            assert!(since(begin) < PATIENCE, "attempt {attempt}: {command:?} does not end");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(later);
        manager.kill();
        let output = asked.wait_with_output().unwrap();
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        swarm.start(1);
        if manager.status().locked {
            let new = told.split_whitespace().find_map(|word| word.parse::<UnlockKey>().ok());
            let opens = |key: &UnlockKey| unlock_with(manager, key).status().unwrap().success();
            let opened = new.into_iter().chain(known.take()).find(opens);
            known = Some(opened.unwrap_or_else(|| panic!("no key that was told opens it: {told}")));
            locked += 1;
        }
        if attempt % 5 == 4 && manager.status().cluster.is_some() {
            manager.done(&["leave"]);
        }
    }
    assert!(locked > 2, "the agent died too early each time");
}

/// What tells one key file and state file from those that take their places.
fn on_disk(agent: &Agent) -> [Option<(u64, i64, i64)>; 2] {
    [KEY_FILE, STATE_FILE].map(|file| {
        let found = std::fs::metadata(agent.state_dir().join(file)).ok()?;
        Some((found.ino(), found.ctime(), found.ctime_nsec()))
    })
}

/// A swarm whose manager is locked at each start.
fn autolocked(hosts: u8) -> (Swarm, InitResponse) {
    let swarm = Swarm::unformed(hosts, Underlay::default());
    let address = swarm.lab.host(1).v4().to_string();
    let init: InitResponse = swarm.agent(1).ask(&["init", "--autolock", "--advertise-addr", &address]);
    for number in 2..=usize::from(hosts) {
        swarm.join(number, &init);
    }
    (swarm, init)
}

/// Unlocks with a key on standard input.
fn unlock(agent: &Agent, key: &UnlockKey) -> String {
    let output = unlock_with(agent, key).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The command, with the key in its standard input.
fn unlock_with(agent: &Agent, key: &UnlockKey) -> Command {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writeln!(writer, "{}", key.reveal().as_str()).unwrap();
    let mut command = agent.command();
    command.arg("unlock").stdin(Stdio::from(reader));
    command
}

fn since(start: BootTime) -> Duration {
    boot_time().since(start)
}

fn links(container: &Container) -> Vec<String> {
    let text = container.run_in(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    let names = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    names.collect()
}
