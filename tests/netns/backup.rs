//! A manager that is lost and restored from a backup: elsewhere and at its own place, its nodes come back to
//! it, and what must not be restored is refused.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::api::types::{
    InitResponse, ListNetworksResponse, ListNodesResponse, NodeState, RestoreResponse, TokenResponse,
    UnlockKeyResponse,
};
use overlayd::control::state::ClusterState;
use overlayd::control::store::{Backup, Store};
use overlayd::lab::{Ping, Underlay, eventually};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::support::swarm::{Agent, Family, PATIENCE, Swarm, refused};
use crate::support::tests;

tests! {
    manager_restored_on_another_machine_has_its_nodes_back_while_traffic_goes_on
    manager_that_was_replaced_and_knows_nobody_ends_too_when_it_is_started_again
    manager_restored_in_its_place_needs_no_hand_elsewhere
    manager_restored_by_the_agent_that_left_its_cluster_has_its_nodes_back
    manager_is_restored_under_the_root_that_took_anothers_place
    nodes_removed_since_the_backup_are_members_again
    container_whose_address_is_anothers_since_the_restore_is_told_of
    backup_of_a_locked_manager_is_refused_and_its_restore_may_be_locked_anew
    backup_is_refused_where_there_is_nothing_to_back_up_or_something_in_the_way
    backup_on_a_full_disk_leaves_nothing
    what_is_no_backup_is_refused_and_changes_nothing
    restore_over_a_living_cluster_is_refused
    backups_made_while_the_state_changes_are_each_of_one_moment
}

fn manager_restored_on_another_machine_has_its_nodes_back_while_traffic_goes_on() {
    let swarm = Swarm::unformed(5, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm.join(3, &init);
    swarm.create_encrypted("red");
    let old = swarm.attach(1, "red", "c1");
    let (two, three) = (swarm.attach(2, "red", "c2"), swarm.attach(3, "red", "c3"));
    swarm.assert_joined(&two, &three);
    swarm.assert_joined(&old, &two);
    let token: TokenResponse = swarm.agent(1).ask(&["token", "manager"]);
    let file = back_up(&swarm, "correct horse battery");
    // Since the backup: one more endpoint, and memberships that are newer than those in it.
    swarm.create(&["--encrypted", "lost"]);
    let late = swarm.attach(2, "red", "late");
    for number in 0..3 {
        let name = format!("short{number}");
        let _short = swarm.attach(1, "red", &name);
        swarm.agent(1).done(&["detach", "red", "--netns", &name]);
    }

    let series = Ping {
        count: 1000,
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(1),
        ..Ping::default()
    };
    let address = swarm.lab.host(4).v4().to_string();
    let (report, restored) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| series.run(two.container.namespace(), three.address(Family::V4)).unwrap());
        swarm.agent(1).kill();
        let restored = restore(swarm.agent(4), &file, &["--advertise-addr", &address]);
        await_nodes(swarm.agent(4), 2);
        (pings.join().unwrap(), restored)
    });
    assert!(report.is_complete(), "{} of {} answered", report.received(), report.sent);
    assert_eq!((restored.cluster, restored.node), (init.cluster, init.node));
    assert_eq!(restored.manager.to_string(), format!("{address}:2377"));
    assert_eq!(restored.other_node_count, 2);
    let manager = swarm.agent(4);
    assert_eq!(manager.ask::<TokenResponse>(&["token", "manager"]).token, token.token);
    let networks: ListNetworksResponse = manager.ask(&["ls"]);
    assert_eq!(networks.networks.len(), 1, "a network that was made since is not there");

    // What was attached since is known again; what was on the lost machine is gone.
    let endpoints = || {
        let red = manager.inspect("red");
        let mut endpoints: Vec<_> = red.endpoints.iter().map(|endpoint| endpoint.id).collect();
        endpoints.sort_unstable();
        endpoints
    };
    let mut expected = [&two, &three, &late].map(|attached| attached.endpoint().id);
    expected.sort_unstable();
    assert!(eventually(PATIENCE, || endpoints() == expected), "{:?} {expected:?}", endpoints());
    let four = swarm.attach(4, "red", "c4");
    for other in [&two, &three, &late] {
        swarm.assert_joined(&four, other);
    }
    // A node that is started again knows where its manager is, and a new one joins with the old token.
    swarm.agent(2).kill();
    swarm.start(2);
    await_nodes(manager, 2);
    swarm.assert_joined(&two, &three);
    swarm.join(5, &InitResponse { manager: restored.manager, ..init });
    let five = swarm.attach(5, "red", "c5");
    swarm.assert_joined(&five, &two);
    // The restored manager is one that can be started again, and backed up again.
    manager.kill();
    swarm.start(4);
    await_nodes(manager, 3);
    swarm.assert_joined(&four, &five);
    manager.done(&[
        "backup",
        "--passphrase-file",
        text(&passphrase(&swarm, "another one")),
        text(&swarm.dir().join("second")),
    ]);
    // The lost one is found, and somebody starts it. Nobody stays turned to it: a node that it connects to as
    // a peer hears the other again as soon as it has ended.
    assert_ends(&swarm, 1);
    let lost = format!("{}:", swarm.lab.host(1).v4());
    for number in [2, 3, 5] {
        let is_turned = || {
            let log = swarm.agent(number).log();
            log.lines().rfind(|line| line.contains("elsewhere now")).is_some_and(|line| line.contains(&lost))
        };
        assert!(eventually(PATIENCE, || !is_turned()), "{}", swarm.agent(number).log());
    }
    await_nodes(manager, 3);
    swarm.assert_joined(&two, &three);
    swarm.assert_joined(&four, &two);
}

fn manager_that_was_replaced_and_knows_nobody_ends_too_when_it_is_started_again() {
    let swarm = Swarm::unformed(3, Underlay::default());
    swarm.join(2, &swarm.init(Family::V4));
    let file = back_up(&swarm, "correct horse battery");
    // What it did since does not count.
    swarm.agent(1).done(&["create", "since"]);
    swarm.agent(1).kill();
    let address = swarm.lab.host(3).v4().to_string();
    restore(swarm.agent(3), &file, &["--advertise-addr", &address]);
    await_nodes(swarm.agent(3), 1);
    // Without networks it has no key channels: it is told when it says where it is.
    assert_ends(&swarm, 1);
    await_nodes(swarm.agent(3), 1);
    assert!(swarm.agent(2).ask::<ListNetworksResponse>(&["ls"]).networks.is_empty());
}

fn manager_restored_in_its_place_needs_no_hand_elsewhere() {
    let (swarm, containers) = Swarm::formed(3, Family::V6, Underlay::default()).with_containers();
    let [_, two, three] = containers.as_slice() else { unreachable!("three hosts") };
    swarm.assert_joined(two, three);
    let cluster = swarm.agent(1).status().cluster.unwrap();
    let file = back_up(&swarm, "correct horse battery");
    swarm.agent(1).kill();
    std::fs::remove_dir_all(swarm.agent(1).state_dir()).unwrap();
    let address = swarm.lab.host(1).v6().to_string();
    // The wrong machine, for one that is to be where it was.
    let refusal = swarm.agent(2).refused(&["leave"]);
    assert!(refusal.contains("detach"), "{refusal}");
    swarm.start(1);
    let restored = restore(swarm.agent(1), &file, &[]);
    assert_eq!((restored.cluster, restored.node), (cluster.id, cluster.node.id));
    assert!(restored.manager.to_string().contains(&address), "{restored:?}");
    await_nodes(swarm.agent(1), 2);
    let refusal = swarm.agent(1).refused(&["unlock-key"]);
    assert!(refusal.contains("a backup holds none"), "{refusal}");
    swarm.assert_joined(two, three);
    let one = swarm.attach(1, "red", "new");
    swarm.assert_joined(&one, two);
}

fn manager_restored_by_the_agent_that_left_its_cluster_has_its_nodes_back() {
    let (swarm, containers) = Swarm::formed(2, Family::V4, Underlay::default()).with_containers();
    let file = back_up(&swarm, "correct horse battery");
    swarm.agent(1).done(&["leave", "--force"]);
    restore(swarm.agent(1), &file, &[]);
    await_nodes(swarm.agent(1), 1);
    let one = swarm.attach(1, "red", "new");
    swarm.assert_joined(&one, &containers[1]);
}

fn manager_is_restored_under_the_root_that_took_anothers_place() {
    let swarm = Swarm::unformed(4, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm.create_encrypted("red");
    let two = swarm.attach(2, "red", "c2");
    let before = back_up(&swarm, "correct horse battery");
    let kept = swarm.dir().join("before");
    std::fs::rename(before, &kept).unwrap();
    swarm.agent(1).done(&["ca", "rotate"]);
    let file = back_up(&swarm, "correct horse battery");
    let here = |number| swarm.lab.host(number).v4().to_string();
    // The old root does not hide that the manager lives.
    let secret = passphrase(&swarm, "correct horse battery");
    let address = here(3);
    let command = ["restore", "--passphrase-file", text(&secret), "--advertise-addr", &address, text(&kept)];
    let refusal = swarm.agent(3).refused(&command);
    assert!(refusal.contains("still answers"), "{refusal}");
    swarm.agent(1).kill();
    let restored = restore(swarm.agent(3), &file, &["--advertise-addr", &address]);
    await_nodes(swarm.agent(3), 1);
    let three = swarm.attach(3, "red", "c3");
    swarm.assert_joined(&three, &two);
    let token: TokenResponse = swarm.agent(3).ask(&["token", "worker"]);
    swarm.agent(4).done(&["join", "--token", &token.token, &restored.manager.to_string()]);
}

fn nodes_removed_since_the_backup_are_members_again() {
    let (swarm, containers) = Swarm::formed(4, Family::V4, Underlay::default()).with_containers();
    let [_, two, three, _] = containers.as_slice() else { unreachable!("four hosts") };
    swarm.assert_joined(two, three);
    let nodes: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    let condemned = swarm.agent(3).status().cluster.unwrap().node.id;
    let file = back_up(&swarm, "correct horse battery");
    swarm.agent(1).done(&["node", "rm", "--force", condemned.as_str()]);
    assert!(eventually(PATIENCE, || !two.pings(three.address(Family::V4), 1)));
    swarm.agent(1).kill();
    std::fs::remove_dir_all(swarm.agent(1).state_dir()).unwrap();
    swarm.start(1);
    let refusal = swarm.agent(1).refused(&["ls"]);
    assert!(refusal.contains("in no cluster"), "{refusal}");
    restore(swarm.agent(1), &file, &[]);
    // It was told to go away, and asks again when its agent starts again.
    swarm.agent(3).kill();
    swarm.start(3);
    await_nodes(swarm.agent(1), 3);
    let after: ListNodesResponse = swarm.agent(1).ask(&["node", "ls"]);
    let ids = |nodes: &ListNodesResponse| nodes.nodes.iter().map(|node| node.node.id).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&nodes));
    swarm.assert_joined(two, three);
}

/// It was attached after the backup, and the manager that is restored does not know of it.
fn container_whose_address_is_anothers_since_the_restore_is_told_of() {
    let swarm = Swarm::formed(2, Family::V4, Underlay::default());
    swarm.create_encrypted("red");
    let file = back_up(&swarm, "correct horse battery");
    let two = swarm.attach(2, "red", "two");
    let address = two.address(Family::V4).to_string();
    swarm.agent(2).kill();
    swarm.agent(1).kill();
    std::fs::remove_dir_all(swarm.agent(1).state_dir()).unwrap();
    swarm.start(1);
    restore(swarm.agent(1), &file, &[]);
    let _one = swarm.attach_with(1, "red", "one", &["--ip", &address]);
    swarm.start(2);
    let (id, taken) = (two.endpoint().id.to_string(), format!("address {address} is taken"));
    let is_told = |text: &str| text.contains(&id) && text.contains(&taken);
    let warned = || swarm.agent(2).status().warnings.iter().any(|warning| is_told(warning));
    assert!(eventually(PATIENCE, warned), "{:?}", swarm.agent(2).status());
    let verified = swarm.agent(2).verification();
    assert!(is_told(&verified) && verified.contains("not in the view"), "{verified}");
}

fn backup_of_a_locked_manager_is_refused_and_its_restore_may_be_locked_anew() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let address = swarm.lab.host(1).v4().to_string();
    let init: InitResponse = swarm.agent(1).ask(&["init", "--autolock", "--advertise-addr", &address]);
    swarm.create(&["red"]);
    let file = back_up(&swarm, "correct horse battery");
    swarm.agent(1).kill();
    swarm.start(1);
    let secret = passphrase(&swarm, "correct horse battery");
    let other = swarm.dir().join("other");
    let refusal = swarm.agent(1).refused(&["backup", "--passphrase-file", text(&secret), text(&other)]);
    assert!(refusal.contains("is locked") && !other.exists(), "{refusal}");
    let refusal = swarm.agent(1).refused(&["restore", "--passphrase-file", text(&secret), text(&file)]);
    assert!(refusal.contains("is locked"), "{refusal}");

    let there = swarm.lab.host(2).v4().to_string();
    let restored = restore(swarm.agent(2), &file, &["--autolock", "--advertise-addr", &there]);
    let key = restored.unlock_key.unwrap();
    assert_ne!(Some(&key), init.unlock_key.as_ref());
    assert_eq!(swarm.agent(2).ask::<UnlockKeyResponse>(&["unlock-key"]).key, key);
    swarm.agent(2).kill();
    swarm.start(2);
    assert!(swarm.agent(2).status().locked);
    let key_file = swarm.dir().join("key");
    std::fs::write(&key_file, key.reveal().as_bytes()).unwrap();
    swarm.agent(2).done(&["unlock", "--key-file", text(&key_file)]);
    swarm.agent(2).inspect("red");
}

fn backup_is_refused_where_there_is_nothing_to_back_up_or_something_in_the_way() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    let secret = passphrase(&swarm, "correct horse battery");
    let file = swarm.dir().join("backup");
    let backup = |agent: &Agent, secret: &Path, file: &Path| {
        agent.refused(&["backup", "--passphrase-file", text(secret), text(file)])
    };
    let refusal = backup(swarm.agent(2), &secret, &file);
    assert!(refusal.contains("is a worker"), "{refusal}");
    let refusal = backup(swarm.agent(3), &secret, &file);
    assert!(refusal.contains("in no cluster"), "{refusal}");
    let short = swarm.dir().join("short");
    std::fs::write(&short, "seven77\n").unwrap();
    let refusal = backup(swarm.agent(1), &short, &file);
    assert!(refusal.contains("too short"), "{refusal}");
    let refusal = backup(swarm.agent(1), Path::new("/nowhere/passphrase"), &file);
    assert!(refusal.contains("/nowhere/passphrase"), "{refusal}");
    let refusal = backup(swarm.agent(1), &secret, Path::new("/nowhere/backup"));
    assert!(refusal.contains("/nowhere/backup"), "{refusal}");
    assert!(!file.exists());

    std::fs::write(&file, "something dear").unwrap();
    let refusal = backup(swarm.agent(1), &secret, &file);
    assert!(refusal.contains("--force"), "{refusal}");
    assert_eq!(std::fs::read(&file).unwrap(), b"something dear");
    let forced = ["backup", "--force", "--passphrase-file", text(&secret), text(&file)];
    let told = swarm.agent(1).done(&forced);
    assert!(told.contains(text(&file)) && told.contains(init.cluster.as_str()), "{told}");
    let metadata = std::fs::metadata(&file).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let sealed = std::fs::read(&file).unwrap();
    for secret in [init.cluster.as_str(), init.node.as_str(), "founding", "correct horse"] {
        assert!(memchr::memmem::find(&sealed, secret.as_bytes()).is_none(), "{secret}");
    }
}

fn backup_on_a_full_disk_leaves_nothing() {
    let swarm = Swarm::unformed(1, Underlay::default());
    swarm.init(Family::V4);
    let small = swarm.dir().join("small");
    std::fs::create_dir(&small).unwrap();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("small", &small, "tmpfs", flags, c"size=64k,mode=0700").unwrap();
    std::fs::write(small.join("filler"), vec![0; 1 << 20]).unwrap_err();
    let secret = passphrase(&swarm, "correct horse battery");
    let file = small.join("backup");
    let refusal = swarm.agent(1).refused(&["backup", "--passphrase-file", text(&secret), text(&file)]);
    assert!(refusal.contains("cannot write the backup") && refusal.contains("No space left"), "{refusal}");
    let left: Vec<_> = std::fs::read_dir(&small).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["filler"]);
    std::fs::remove_file(small.join("filler")).unwrap();
    swarm.agent(1).done(&["backup", "--passphrase-file", text(&secret), text(&file)]);
    unmount(&small, UnmountFlags::DETACH).unwrap();
}

fn what_is_no_backup_is_refused_and_changes_nothing() {
    let swarm = Swarm::unformed(3, Underlay::default());
    swarm.init(Family::V4);
    let file = back_up(&swarm, "correct horse battery");
    swarm.agent(1).kill();
    let sealed = std::fs::read(&file).unwrap();
    let right = passphrase(&swarm, "correct horse battery");
    let agent = swarm.agent(2);
    let here = swarm.lab.host(2).v4().to_string();
    let bad = swarm.dir().join("bad");
    let altered = {
        let mut altered = sealed.clone();
        *altered.last_mut().unwrap() ^= 1;
        altered
    };
    for (content, words) in [
        (&b""[..], "is not a backup of overlayd"),
        (&b"something else altogether"[..], "is not a backup of overlayd"),
        (&sealed[..10], "is not a backup of overlayd"),
        (&sealed[..40], "is cut off"),
        (&sealed[..sealed.len() - 1], "is cut off"),
        (&altered[..], "is damaged"),
    ] {
        std::fs::write(&bad, content).unwrap();
        let command = ["restore", "--passphrase-file", text(&right), "--advertise-addr", &here, text(&bad)];
        let refusal = agent.refused(&command);
        assert!(refusal.contains(words) && refusal.contains("nothing was changed"), "{refusal}");
    }
    let wrong = swarm.dir().join("wrong");
    std::fs::write(&wrong, "incorrect horse battery\n").unwrap();
    let command = ["restore", "--passphrase-file", text(&wrong), "--advertise-addr", &here, text(&file)];
    let refusal = agent.refused(&command);
    assert!(refusal.contains("not the passphrase") && refusal.contains("nothing was changed"), "{refusal}");
    let missing = swarm.dir().join("no file");
    let refusal = agent.refused(&["restore", "--passphrase-file", text(&right), text(&missing)]);
    assert!(refusal.contains("no file"), "{refusal}");
    // At the manager's own address, which this machine has not.
    let refusal = agent.refused(&["restore", "--passphrase-file", text(&right), text(&file)]);
    assert!(refusal.contains("--advertise-addr"), "{refusal}");
    assert!(agent.status().cluster.is_none());
    // Nothing of it is in the way of another cluster.
    swarm.init_on(2, Family::V4);
}

fn restore_over_a_living_cluster_is_refused() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    let file = back_up(&swarm, "correct horse battery");
    let secret = passphrase(&swarm, "correct horse battery");
    let address = |number| swarm.lab.host(number).v4().to_string();
    for number in [1, 2] {
        let here = address(number);
        let command = ["restore", "--passphrase-file", text(&secret), "--advertise-addr", &here, text(&file)];
        let refusal = swarm.agent(number).refused(&command);
        assert!(refusal.contains("already"), "{refusal}");
    }
    let here = address(3);
    let command = ["restore", "--passphrase-file", text(&secret), "--advertise-addr", &here, text(&file)];
    let refusal = swarm.agent(3).refused(&command);
    let old = format!("still answers at {}", init.manager);
    assert!(refusal.contains(&old) && refusal.contains("nothing was changed"), "{refusal}");
    assert!(swarm.agent(3).status().cluster.is_none());
    await_nodes(swarm.agent(1), 1);
    let mut command = swarm.agent(3).command();
    command.args(["restore", "--listen-addr", "0.0.0.0:2399", text(&file)]);
    assert!(refused(&mut command, 2).contains("--advertise-addr"));
}

fn backups_made_while_the_state_changes_are_each_of_one_moment() {
    let swarm = Swarm::unformed(1, Underlay::default());
    swarm.init(Family::V4);
    swarm.create(&["--encrypted", "red"]);
    let secret = passphrase(&swarm, "correct horse battery");
    let ended = AtomicBool::new(false);
    let files: Vec<PathBuf> = std::thread::scope(|scope| {
        for name in ["c1", "c2"] {
            let (swarm, ended) = (&swarm, &ended);
            scope.spawn(move || {
                let _container = swarm.lab.host(1).container(name).unwrap();
                while !ended.load(Ordering::Relaxed) {
                    swarm.agent(1).done(&["attach", "red", "--netns", name]);
                    swarm.agent(1).done(&["detach", "red", "--netns", name]);
                }
            });
        }
        let files = (0..6).map(|number| {
            let file = swarm.dir().join(format!("backup{number}"));
            swarm.agent(1).done(&["backup", "--passphrase-file", text(&secret), text(&file)]);
            file
        });
        let files = files.collect();
        ended.store(true, Ordering::Relaxed);
        files
    });
    let mut versions = Vec::new();
    for file in files {
        let backup = Backup::open(&std::fs::read(file).unwrap(), "correct horse battery").unwrap();
        let dir = tempfile::tempdir_in("/run").unwrap();
        let store = Store::create(dir.path()).unwrap();
        store.take_over(&backup).unwrap();
        // It is checked as a whole when it is opened.
        let state = ClusterState::open(store, Box::new(|_| Err("nothing is signed".into()))).unwrap();
        versions.push(state.version());
    }
    assert!(versions.is_sorted() && versions.first() < versions.last(), "{versions:?}");
}

fn back_up(swarm: &Swarm, secret: &str) -> PathBuf {
    let file = swarm.dir().join("backup");
    let secret = passphrase(swarm, secret);
    swarm.agent(1).done(&["backup", "--passphrase-file", text(&secret), text(&file)]);
    file
}

/// Restores a backup that [`back_up`] has made.
fn restore(agent: &Agent, file: &Path, flags: &[&str]) -> RestoreResponse {
    let secret = file.with_file_name("passphrase");
    agent.ask(&[&["restore", "--passphrase-file", text(&secret), text(file)], flags].concat())
}

fn passphrase(swarm: &Swarm, secret: &str) -> PathBuf {
    let file = swarm.dir().join("passphrase");
    std::fs::write(&file, format!("{secret}\n")).unwrap();
    file
}

/// Starts a manager that was replaced: it ends as soon as it hears of that, and does not even start again.
fn assert_ends(swarm: &Swarm, number: usize) {
    let agent = swarm.agent(number);
    for time in 1..=2 {
        agent.spawn(swarm.lab.host(number), &[]);
        let ended = agent.await_exit(PATIENCE).unwrap_or_else(|| panic!("{}", agent.log()));
        // For config/overlayd.service, which does not start it again.
        assert_eq!(ended.code(), Some(3));
        let log = agent.log();
        assert_eq!(log.matches("this manager was replaced").count(), time, "{log}");
        assert!(
            log.contains(&format!("Delete its state directory ({})", agent.state_dir().display())),
            "{log}"
        );
    }
}

/// Waits until so many nodes beside it have a session with a manager.
fn await_nodes(manager: &Agent, others: usize) {
    let mut seen = None;
    let ready = eventually(PATIENCE, || {
        let nodes: Option<ListNodesResponse> = manager.try_ask(&["node", "ls"]);
        let ready = nodes.as_ref().is_some_and(|nodes| {
            let ready = nodes.nodes.iter().filter(|node| !node.is_self && node.state == NodeState::Ready);
            ready.count() == others
        });
        seen = nodes;
        ready
    });
    assert!(ready, "{seen:#?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
