//! Clusters whose state is in etcd: made there, moved there, without it for a while, and what is refused.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::api::types::{
    InitResponse, ListNetworksResponse, ListNodesResponse, MigrateStoreResponse, NodeState, NodeSummary,
    RestoreResponse, StoreKind, StoreResponse,
};
use overlayd::cluster::Role;
use overlayd::id::NodeId;
use overlayd::lab::{Underlay, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::etcd::{Etcd, Place, Tls};
use crate::support::kills::assert_changes_survive;
use crate::support::swarm::{Agent, Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    traffic_goes_on_without_etcd_and_changes_are_refused_until_it_is_back
    state_moves_to_etcd_without_a_packet_lost_and_is_restored_from_there
    nodes_follow_a_state_that_was_put_back_while_its_manager_was_off
    manager_that_was_demoted_since_its_backup_is_restored_as_what_it_was
    manager_that_was_removed_since_its_backup_is_restored_as_another_node
    locked_manager_has_its_state_in_etcd_once_it_is_unlocked
    etcd_that_cannot_be_used_is_refused_with_what_to_do
    killed_manager_or_etcd_has_all_that_was_acknowledged_and_nothing_half_done
    ; soak:
    manager_and_etcd_killed_a_hundred_times_each_have_all_that_was_acknowledged
}

fn killed_manager_or_etcd_has_all_that_was_acknowledged_and_nothing_half_done() {
    assert_changes_survive_kills(2);
}

fn manager_and_etcd_killed_a_hundred_times_each_have_all_that_was_acknowledged() {
    assert_changes_survive_kills(100);
}

fn traffic_goes_on_without_etcd_and_changes_are_refused_until_it_is_back() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let mut etcd = etcd_on_host_1(&swarm);
    let made = init(&swarm, &etcd.url(), &[]);
    swarm.join(2, &made);
    swarm.create_encrypted("red");
    let (one, two) = (swarm.attach(1, "red", "c1"), swarm.attach(2, "red", "c2"));
    swarm.assert_joined(&one, &two);
    let at = store(swarm.agent(1));
    assert_eq!((at.kind, at.place.as_str()), (StoreKind::Etcd, format!("{}/overlayd", etcd.url()).as_str()));
    assert_eq!(at.trouble, None);
    assert!(swarm.agent(2).refused(&["store"]).contains("this node is a worker"));

    etcd.kill(0);
    let refused = swarm.agent(1).refused(&["create", "blue"]);
    assert!(refused.contains("cannot be reached, so nothing was changed"), "{refused}");
    let shown = swarm.agent(1).done(&["store"]);
    assert!(shown.contains("NOT REACHED") && shown.contains("refuses changes"), "{shown}");
    swarm.assert_reaches(&one, &two, Duration::from_secs(1));
    assert_eq!(networks(swarm.agent(1)), ["red"]);
    // An agent that starts without etcd carries traffic, and is a manager once etcd is there.
    swarm.agent(1).kill();
    swarm.start(1);
    swarm.assert_reaches(&one, &two, PATIENCE);
    let shown = swarm.agent(1).done(&["store"]);
    assert!(shown.contains("is a manager once it has read it"), "{shown}");
    etcd.restart(0);
    let is_back = || store(swarm.agent(1)).version.is_some() && networks(swarm.agent(1)) == ["red"];
    assert!(eventually(PATIENCE, is_back), "{:?}\n{}", store(swarm.agent(1)), swarm.agent(1).log());
    assert!(eventually(PATIENCE, || swarm
        .agent(1)
        .command()
        .args(["create", "blue"])
        .output()
        .unwrap()
        .status
        .success()));
    let _late = swarm.attach(2, "blue", "late");
}

fn state_moves_to_etcd_without_a_packet_lost_and_is_restored_from_there() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let to = swarm.init(Family::V4);
    swarm.join(2, &to);
    swarm.create_encrypted("red");
    let (one, two) = (swarm.attach(1, "red", "c1"), swarm.attach(2, "red", "c2"));
    swarm.assert_joined(&one, &two);
    let etcd = etcd_on_host_1(&swarm);
    assert_eq!(store(swarm.agent(1)).kind, StoreKind::Embedded);
    let moved = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| one.pings_until(&moved, &two, Duration::from_millis(5)));
        let migrated: MigrateStoreResponse =
            swarm.agent(1).ask(&["store", "migrate", &format!("{}/swarm", etcd.url())]);
        assert!(migrated.rows.is_some_and(|rows| rows > 8), "{migrated:?}");
        swarm.create(&["--encrypted", "blue"]);
        moved.store(true, Ordering::Relaxed);
        pings.join().unwrap()
    });
    assert!(sent > 0);
    assert_eq!(sent, received);
    let again: MigrateStoreResponse =
        swarm.agent(1).ask(&["store", "migrate", &format!("{}/swarm", etcd.url())]);
    assert_eq!(again.rows, None, "it was there already");
    swarm.agent(1).kill();
    swarm.start(1);
    let is_back = || store(swarm.agent(1)).version.is_some() && networks(swarm.agent(1)) == ["blue", "red"];
    assert!(eventually(PATIENCE, is_back), "{:?}\n{}", store(swarm.agent(1)), swarm.agent(1).log());
    // The root is replaced over etcd as over the file.
    let rotated = swarm.agent(1).done(&["ca", "rotate"]);
    assert!(rotated.contains("replaced"), "{rotated}");
    // Another manager shares it.
    let two_id = swarm.agent(2).status().cluster.unwrap().node.id;
    swarm.agent(1).done(&["node", "promote", two_id.as_str()]);
    let shares =
        || swarm.agent(2).try_ask::<StoreResponse>(&["store"]).is_some_and(|at| at.version.is_some());
    assert!(eventually(PATIENCE, shares), "{}", swarm.agent(2).log());
    // A backup holds what is in etcd; restored, it is in the state file again.
    let (file, secret) = (swarm.dir().join("backup"), swarm.dir().join("passphrase"));
    std::fs::write(&secret, "correct horse battery\n").unwrap();
    swarm.agent(1).done(&["backup", "--passphrase-file", text(&secret), text(&file)]);
    swarm.agent(1).kill();
    let here = swarm.host(swarm.agent(3)).v4().to_string();
    let arguments = ["restore", "--passphrase-file", text(&secret), "--advertise-addr", &here, text(&file)];
    // What another manager goes on with is not replaced.
    let refused = swarm.agent(3).refused(&arguments);
    assert!(
        refused.contains("another manager of this cluster") && refused.contains("node rm --force"),
        "{refused}"
    );
    assert!(swarm.agent(3).status().cluster.is_none());
    swarm.agent(2).kill();
    let _restored: RestoreResponse = swarm.agent(3).ask(&arguments);
    assert_eq!(networks(swarm.agent(3)), ["blue", "red"]);
    assert_eq!(store(swarm.agent(3)).kind, StoreKind::Embedded);
    // Those that share the old state are managers no more, though it can be reached: one goes on as a node of the
    // restored manager, and the one whose place that has taken ends.
    swarm.start(2);
    let is_worker = || {
        let node = swarm.agent(2).status().cluster.unwrap().node;
        node.role == Role::Worker && networks(swarm.agent(2)) == ["blue", "red"]
    };
    assert!(eventually(PATIENCE, is_worker), "{}", swarm.agent(2).log());
    assert!(swarm.agent(2).refused(&["store"]).contains("this node is a worker"));
    swarm.agent(3).done(&["create", "since"]);
    // By then nobody shares a network with it.
    let is_alone = || swarm.agent(3).inspect("red").endpoints.len() == 1;
    assert!(eventually(PATIENCE, is_alone), "{:?}", swarm.agent(3).inspect("red"));
    swarm.agent(1).spawn(swarm.host(swarm.agent(1)), &[]);
    let ended = swarm.agent(1).await_exit(PATIENCE);
    assert_eq!(ended.and_then(|status| status.code()), Some(3), "{}", swarm.agent(1).log());
    assert!(swarm.agent(1).log().contains("this manager was replaced"), "{}", swarm.agent(1).log());
    assert_eq!(networks(swarm.agent(2)), ["blue", "red", "since"]);
}

fn nodes_follow_a_state_that_was_put_back_while_its_manager_was_off() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let mut etcd = etcd_on_host_1(&swarm);
    let made = init(&swarm, &etcd.url(), &[]);
    swarm.join(2, &made);
    swarm.join(3, &made);
    swarm.create_encrypted("red");
    let two = swarm.attach(2, "red", "c2");
    etcd.kill(0);
    etcd.keep(0);
    etcd.restart(0);
    etcd.wait();
    assert!(eventually(PATIENCE, || store(swarm.agent(1)).trouble.is_none()));
    // Memberships that are newer than what etcd is put back to.
    for number in 0..4 {
        let name = format!("short{number}");
        let _short = swarm.attach(3, "red", &name);
        swarm.agent(3).done(&["detach", "red", "--netns", &name]);
    }
    let late = swarm.attach(2, "red", "late");
    // It is written down a while later how far the state has come.
    std::thread::sleep(Duration::from_secs(10));
    swarm.agent(1).kill();
    etcd.go_back(0);
    swarm.start(1);
    let is_back = || store(swarm.agent(1)).version.is_some();
    assert!(eventually(PATIENCE, is_back), "{}", swarm.agent(1).log());
    let one = swarm.attach(1, "red", "c1");
    swarm.assert_joined(&one, &two);
    // What was attached since is known again.
    assert!(eventually(PATIENCE, || swarm.agent(1).inspect("red").endpoints.len() == 3));
    swarm.assert_joined(&one, &late);
}

fn manager_that_was_demoted_since_its_backup_is_restored_as_what_it_was() {
    let (before, restored) = restored_after(&["node", "demote"]);
    assert_eq!((restored.node, restored.former), (before, None));
}

fn manager_that_was_removed_since_its_backup_is_restored_as_another_node() {
    let (before, restored) = restored_after(&["node", "rm", "--force"]);
    assert_ne!(restored.node, before);
    assert_eq!(restored.former, Some(before));
}

/// What became of a manager that was backed up and restored after another manager had done that to it.
fn restored_after(done: &[&str]) -> (NodeId, RestoreResponse) {
    let swarm = Swarm::unformed(5, Underlay::default());
    let mut etcd = etcd_on_host_1(&swarm);
    let made = init(&swarm, &etcd.url(), &[]);
    let second = swarm.join(2, &made);
    swarm.join(3, &made);
    swarm.join(4, &made);
    swarm.create_encrypted("red");
    let (_old, three) = (swarm.attach(1, "red", "c1"), swarm.attach(3, "red", "c3"));
    let four = swarm.attach(4, "red", "c4");
    swarm.assert_joined(&three, &four);
    let (file, secret) = (swarm.dir().join("backup"), swarm.dir().join("passphrase"));
    std::fs::write(&secret, "correct horse battery\n").unwrap();
    swarm.agent(1).done(&["backup", "--passphrase-file", text(&secret), text(&file)]);
    swarm.agent(1).done(&["node", "promote", second.node.id.as_str()]);
    let is_manager =
        || swarm.agent(2).try_ask::<StoreResponse>(&["store"]).is_some_and(|at| at.version.is_some());
    assert!(eventually(PATIENCE, is_manager), "{}", swarm.agent(2).log());
    swarm.agent(2).done(&[done, &[made.node.as_str()]].concat());
    // All nodes have heard of it.
    swarm.agent(2).done(&["create", "since"]);
    let manages = |nodes: ListNodesResponse| {
        nodes
            .nodes
            .iter()
            .filter(|node| node.state == NodeState::Ready)
            .any(|node| node.node.id == second.node.id)
    };
    for number in [3, 4] {
        let asks = || swarm.agent(number).try_ask::<ListNodesResponse>(&["node", "ls"]).is_some_and(manages);
        assert!(eventually(PATIENCE, asks), "{}", swarm.agent(number).log());
    }
    swarm.agent(1).kill();
    let here = swarm.host(swarm.agent(5)).v4().to_string();
    let arguments = ["restore", "--passphrase-file", text(&secret), "--advertise-addr", &here, text(&file)];
    // The backup knows it as a worker.
    let refusal = swarm.agent(5).refused(&arguments);
    assert!(refusal.contains("another manager of this cluster"), "{refusal}");
    swarm.agent(2).kill();
    etcd.kill(0);

    let restored: RestoreResponse = swarm.agent(5).ask(&arguments);
    let are_back = || {
        let nodes: Option<ListNodesResponse> = swarm.agent(5).try_ask(&["node", "ls"]);
        let ready = |node: &NodeSummary| !node.is_self && node.state == NodeState::Ready;
        nodes.is_some_and(|nodes| nodes.nodes.iter().filter(|node| ready(node)).count() == 2)
    };
    assert!(eventually(PATIENCE, are_back), "{}\n{}", swarm.agent(3).log(), swarm.agent(5).log());
    let five = swarm.attach(5, "red", "c5");
    swarm.assert_joined(&five, &three);
    swarm.assert_joined(&five, &four);
    assert_eq!(swarm.agent(5).inspect("red").endpoints.len(), 3, "those of the old machine are gone");
    (made.node, restored)
}

fn locked_manager_has_its_state_in_etcd_once_it_is_unlocked() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let etcd = etcd_on_host_1(&swarm);
    let made = init(&swarm, &etcd.url(), &["--autolock"]);
    swarm.create_encrypted("red");
    let key = swarm.dir().join("key");
    std::fs::write(&key, made.unlock_key.unwrap().reveal().as_bytes()).unwrap();
    swarm.agent(1).kill();
    swarm.start(1);
    assert!(swarm.agent(1).refused(&["store"]).contains("locked"));
    swarm.agent(1).done(&["unlock", "--key-file", text(&key)]);
    assert!(eventually(PATIENCE, || store(swarm.agent(1)).version.is_some()));
    assert_eq!(networks(swarm.agent(1)), ["red"]);
    // The last one that leaves takes its state along; the place is free for another cluster.
    swarm.agent(1).done(&["leave"]);
    assert_eq!(etcd.ctl(&["get", "--prefix", "overlayd/", "--keys-only"]).trim(), "");
    let _again = init(&swarm, &etcd.url(), &[]);
}

fn etcd_that_cannot_be_used_is_refused_with_what_to_do() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let ip = swarm.host(swarm.agent(1)).v4();
    let authority = Authority::new(swarm.dir(), "ca");
    let stranger = Authority::new(swarm.dir(), "stranger");
    // It shows the same certificate to clients and, as etcdctl, to itself: its name is that of a user.
    let (certificate, key) = authority.issue("root", &ip.to_string());
    let tls = Tls { ca: authority.pem.clone(), certificate, key };
    let namespace = PathBuf::from("/run/netns/host1");
    let etcd = Etcd::at(vec![Place::within(&namespace, ip)], Some(tls));
    etcd.wait();
    for user in ["root", "overlayd", "elsewhere"] {
        etcd.ctl(&["user", "add", user, "--no-password"]);
        etcd.ctl(&["role", "add", user]);
        etcd.ctl(&["user", "grant-role", user, user]);
    }
    etcd.ctl(&["user", "add", "manager:very secret"]);
    etcd.ctl(&["user", "grant-role", "manager", "overlayd"]);
    etcd.ctl(&["role", "grant-permission", "--prefix=true", "overlayd", "readwrite", "overlayd/"]);
    etcd.ctl(&["role", "grant-permission", "--prefix=true", "elsewhere", "readwrite", "elsewhere/"]);
    etcd.ctl(&["auth", "enable"]);
    let (url, ca) = (etcd.url(), text(&authority.pem).to_owned());
    let [own, barred] = ["overlayd", "elsewhere"].map(|name| {
        let (certificate, key) = authority.issue(name, "client");
        [text(&certificate).to_owned(), text(&key).to_owned()]
    });
    let with = |[certificate, key]: &[String; 2]| {
        let flags = ["--store-ca", &ca, "--store-cert", certificate, "--store-key", key];
        flags.map(str::to_owned).to_vec()
    };
    let password = |text_: &str| {
        let file = swarm.dir().join("password");
        std::fs::write(&file, format!("{text_}\n")).unwrap();
        ["--store-user", "manager", "--store-password-file", text(&file)].map(str::to_owned).to_vec()
    };
    let refused = |store: &str, flags: &[String]| {
        let address = ip.to_string();
        let mut arguments = vec!["init", "--advertise-addr", &address, "--store", store];
        arguments.extend(flags.iter().map(String::as_str));
        let refused = swarm.agent(1).refused(&arguments);
        assert!(swarm.agent(1).status().cluster.is_none(), "{refused}");
        refused
    };
    let contains = |refused: String, words: &str| assert!(refused.contains(words), "{words:?}: {refused}");

    contains(refused("http://192.0.2.1", &[]), "write etcd://HOST:2379");
    contains(refused("etcd://192.0.2.1:1", &[]), "cannot be reached");
    contains(refused(&url, &[]), "does it want TLS");
    contains(refused(&url, &["--store-ca".to_owned(), text(&stranger.pem).to_owned()]), "--store-ca");
    contains(refused(&url, &["--store-ca".to_owned(), ca.clone()]), "another client certificate");
    contains(refused(&url, &password("in clear")), "is not sent to another machine in clear");
    contains(refused(&url, &with(&barred)), "may read and write the keys below \"overlayd/\"");
    contains(refused(&url, &[with(&barred), password("a guess")].concat()), "user name or password is wrong");
    contains(refused(&format!("{url}/other"), &with(&own)), "may read and write the keys below \"other/\"");

    // By the name in its certificate, and by user and password.
    let flags = [with(&barred), password("very secret")].concat();
    let made = init(&swarm, &url, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    swarm.create_encrypted("red");
    assert!(!swarm.agent(1).log().contains("very secret"));
    let address = swarm.host(swarm.agent(2)).v4().to_string();
    let mut arguments = vec!["init", "--advertise-addr", &address, "--store", &url];
    let own = with(&own);
    arguments.extend(own.iter().map(String::as_str));
    let taken = swarm.agent(2).refused(&arguments);
    assert!(taken.contains(&format!("holds the state of cluster {} already", made.cluster)), "{taken}");
    let mut migrate = vec!["store", "migrate", &url];
    migrate.extend(own.iter().map(String::as_str));
    swarm.agent(1).done(&migrate);
    swarm.create(&["blue"]);
    assert_eq!(networks(swarm.agent(1)), ["blue", "red"]);
}

/// What signs the certificates of an etcd and of its clients.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pem: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pem = dir.join(format!("{name}.pem"));
        std::fs::write(&pem, issuer.pem()).unwrap();
        Self { issuer, pem }
    }

    /// The files of a certificate and its key.
    fn issue(&self, name: &str, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = ["crt", "key"].map(|kind| self.pem.with_file_name(format!("{name}.{kind}")));
        std::fs::write(&files[0], certificate.pem()).unwrap();
        std::fs::write(&files[1], key.serialize_pem()).unwrap();
        files.into()
    }
}

/// Kills the manager and its etcd in turn, at random instants while several change the cluster, and starts them
/// again, sometimes to kill them as they start.
fn assert_changes_survive_kills(kills_of_each: usize) {
    let swarm = Swarm::idle(2, Underlay::default());
    swarm.start(1);
    let mut etcd = etcd_on_host_1(&swarm);
    let made = init(&swarm, &etcd.url(), &[]);
    let moment = |most| std::thread::sleep(Duration::from_micros(rand::random_range(0..most)));
    assert_changes_survive(&swarm, &made, 2 * kills_of_each, |number| {
        let is_twice = number % 8 >= 6;
        if number % 2 == 0 {
            swarm.agent(1).kill();
            if is_twice {
                swarm.agent(1).spawn(swarm.lab.host(1), &[]);
                moment(300_000);
                swarm.agent(1).kill();
            }
            swarm.start(1);
        } else {
            etcd.kill(0);
            moment(300_000);
            etcd.restart(0);
            if is_twice {
                moment(300_000);
                etcd.restart(0);
            }
        }
    });
}

fn etcd_on_host_1(swarm: &Swarm) -> Etcd {
    let ip = swarm.host(swarm.agent(1)).v4();
    let etcd = Etcd::at(vec![Place::within(Path::new("/run/netns/host1"), ip)], None);
    etcd.wait();
    etcd
}

fn init(swarm: &Swarm, store: &str, flags: &[&str]) -> InitResponse {
    let address = swarm.host(swarm.agent(1)).v4().to_string();
    let arguments = ["init", "--advertise-addr", &address, "--store", store];
    swarm.agent(1).ask(&[&arguments, flags].concat())
}

fn store(agent: &Agent) -> StoreResponse {
    agent.ask(&["store"])
}

fn networks(agent: &Agent) -> Vec<String> {
    let listed: Option<ListNetworksResponse> = agent.try_ask(&["ls"]);
    let networks = listed.into_iter().flat_map(|listed| listed.networks);
    networks.map(|summary| summary.network.name.to_string()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
