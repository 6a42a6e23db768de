//! What there is held against what should be: each difference is mended or told by name, and nothing is
//! left behind.

mod mix;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use overlayd::api::types::{MendedBy, Verdict, Verified, VerifiedItem, VerifyResponse};
use overlayd::id::{EndpointId, IfName, NodeId};
use overlayd::io::netlink::Netlink;
use overlayd::io::netns::NetNs;
use overlayd::io::tap::Tap;
use overlayd::lab::{Underlay, eventually};

use crate::support::swarm::{Agent, Attached, Family, Swarm, V4_SUBNET, V6_SUBNET};
use crate::support::tests;
use mix::Form;

tests! {
    what_a_container_cannot_do_without_is_given_again
    what_somebody_set_in_a_container_is_told_and_left
    leftovers_are_found_at_the_start_removed_and_told_once
    all_is_equal_soon_after_whatever_happened
    all_is_equal_soon_after_whatever_happened_to_managers_on_etcd
    host_and_cluster_are_looked_at_too
    ; soak:
    all_is_equal_soon_after_many_mixes
    all_is_equal_soon_after_many_mixes_of_managers_on_etcd
}

fn what_a_container_cannot_do_without_is_given_again() {
    let (swarm, [one, two]) = gated();
    let elsewhere = swarm.lab.host(2).container("elsewhere").unwrap();
    let agent = swarm.agent(2);
    let before = agent.stats().mendings;
    let (v4, v6) = (address(&two, Family::V4), address(&two, Family::V6));
    let mac = two.mac().to_string();
    for (what, commands) in [
        (format!("address {v4}"), vec![format!("address del {v4} dev eth0")]),
        (format!("address {v6}"), vec![format!("address del {v6} dev eth0")]),
        ("route default via 10.77.0.1".to_owned(), vec!["route del default".to_owned()]),
        (format!("route {V4_SUBNET}"), vec![format!("route del {V4_SUBNET}")]),
        (format!("route {V6_SUBNET}"), vec![format!("-6 route del {V6_SUBNET} dev eth0")]),
        ("MAC address".to_owned(), vec!["link set eth0 address 02:00:00:00:00:99".to_owned()]),
        ("removed by somebody and made again".to_owned(), vec!["link del eth0".to_owned()]),
        ("alias given again".to_owned(), vec!["link set eth0 alias mine".to_owned()]),
        ("removed by somebody and made again".to_owned(), vec!["link set eth0 netns elsewhere".to_owned()]),
        (format!("address {v6}"), vec!["link set eth0 down".to_owned(), "link set eth0 up".to_owned()]),
    ] {
        let told = events(agent);
        for command in commands {
            ip(&swarm, &two, &command);
        }
        let is_told = || events(agent).lines().skip(told.lines().count()).any(|line| line.contains(&what));
        assert!(eventually(SOON, is_told), "{what}\n{}\n{}", events(agent), agent.log());
        assert_equal(agent);
        assert_eq!(ip(&swarm, &two, "link show eth0").matches(&mac).count(), 1);
        swarm.assert_reaches(&one, &two, SOON);
    }
    assert!(agent.stats().mendings >= before + 10);
    assert!(eventually(SOON, || links(elsewhere.namespace()) == ["lo"]), "what was moved away is left there");
}

fn what_somebody_set_in_a_container_is_told_and_left() {
    let (swarm, [_one, two]) = gated();
    let agent = swarm.agent(2);
    for (item, set, is, should_be, undo) in [
        (Verified::Mtu, "link set eth0 mtu 1300", "1300", "1408", "link set eth0 mtu 1408"),
        (
            Verified::Addresses,
            "address add 192.0.2.77/32 dev eth0",
            "192.0.2.77/32",
            V4_PREFIX,
            "address del 192.0.2.77/32 dev eth0",
        ),
        (Verified::Up, "link set eth0 down", "down", "up", "link set eth0 up"),
        (Verified::Name, "link set eth0 name net7", "net7", "eth0", "link set net7 name eth0"),
    ] {
        ip(&swarm, &two, set);
        let found = differing(agent, item);
        assert!(found.is.contains(is), "{found:?}");
        let Verdict::Differs { should_be: wanted, mended_by, how } = &found.verdict else {
            panic!("{found:?}")
        };
        assert!(wanted.contains(should_be), "{found:?}");
        assert_eq!(*mended_by, MendedBy::Operator);
        assert!(
            how.contains("ip ") && how.contains("in the container") && found.of.contains("eth0"),
            "{found:?}"
        );
        ip(&swarm, &two, undo);
        assert_equal(agent);
    }
    // Whatever it is called, it is kept as it should be otherwise.
    ip(&swarm, &two, "link set eth0 name net7");
    ip(&swarm, &two, &format!("address del {} dev net7", address(&two, Family::V4)));
    let only_name = || verify(agent).differing().all(|found| found.item == Verified::Name);
    assert!(eventually(SOON, only_name), "{}", agent.verification());

    // A router of the container's own is where ours should be.
    let other = swarm.attach_again(&two, "blue", "eth1");
    ip(&swarm, &two, "route replace default via 10.78.0.9 dev eth1");
    let found = differing(agent, Verified::Routes);
    let Verdict::Differs { how, .. } = &found.verdict else { panic!("{found:?}") };
    assert!(
        how.contains("default route via 10.77.0.1") && how.contains("remove it in the container"),
        "{found:?}"
    );
    drop(other);
}

fn leftovers_are_found_at_the_start_removed_and_told_once() {
    let (swarm, [one, two]) = gated();
    let agent = swarm.agent(2);
    let (node, state) = (agent.status().cluster.unwrap().node.id, agent.state_dir());
    // Of a container whose path is gone while a process lives in it.
    let lost = swarm.attach(2, "red", "lost");
    let resident = {
        let mut command = Command::new("sleep");
        command.arg("1000");
        swarm.lab.host(2).spawn_in(&lost.container, command).unwrap()
    };
    let resident = Resident(resident);
    let Attached { container, response } = lost;
    let id = response.endpoint.id;
    let held = NetNs::open(&container.path()).unwrap();
    drop(container);
    let is_told = |what: &str| events(agent).matches(what).count();
    let ended = format!("leftover removed: endpoint {id} of red, whose container /run/netns/lost has ended");
    assert!(eventually(SOON, || is_told(&ended) == 1), "{}", events(agent));
    assert!(eventually(SOON, || links(&held) == ["lo"]), "{:?}", links(&held));
    drop(resident);

    // Of endpoints that nothing is written down of, in a container that the agent knows and in one that it
    // does not know; and beside them one of another node, which is none of this agent's business.
    let stranger = swarm.lab.host(2).container("stranger").unwrap();
    let (first, second) = (EndpointId::from_entropy([1; 16]), EndpointId::from_entropy([2; 16]));
    let other = NodeId::from_entropy([3; 16]);
    agent.kill();
    tap(two.container.namespace(), "old0", &format!("overlayd endpoint {first} of node {node}"));
    tap(stranger.namespace(), "old1", &format!("overlayd endpoint {second} of node {node}"));
    tap(stranger.namespace(), "other0", &format!("overlayd endpoint {second} of node {other}"));
    let drafts = ["overlayd.redb.new", "overlayd.key.new"].map(|name| state.join(name));
    drafts.iter().for_each(|draft| std::fs::write(draft, "half").unwrap());
    assert!(agent.socket.exists(), "a killed agent leaves its socket");
    swarm.start(2);
    let told = [
        format!("leftover removed: interface old0 of endpoint {first} in /run/netns/c2"),
        format!("leftover removed: interface old1 of endpoint {second} in /run/netns/stranger"),
        format!("leftover removed: file {}", drafts[0].display()),
        format!("leftover removed: file {}", drafts[1].display()),
        format!("leftover removed: file {}", agent.socket.display()),
    ];
    assert!(eventually(SOON, || told.iter().all(|what| is_told(what) == 1)), "{}", events(agent));
    assert_eq!(links(stranger.namespace()), ["lo", "other0"]);
    assert!(drafts.iter().all(|draft| !draft.exists()));
    assert_equal(agent);
    swarm.assert_reaches(&one, &two, SOON);

    // What comes later is seen, and removed with the next start.
    tap(stranger.namespace(), "old2", &format!("overlayd endpoint {first} of node {node}"));
    let found = differing(agent, Verified::Leftovers);
    assert!(found.is.contains("old2") && found.is.contains("/run/netns/stranger"), "{found:?}");
    agent.signal(rustix::process::Signal::TERM);
    agent.await_exit(SOON).unwrap();
    swarm.start(2);
    assert!(eventually(SOON, || links(stranger.namespace()) == ["lo", "other0"]));
    assert!(told.iter().all(|what| is_told(what) == 1), "told again:\n{}", events(agent));
}

fn all_is_equal_soon_after_whatever_happened() {
    mix::live_through_each(Form::Embedded, 0);
}

fn all_is_equal_soon_after_whatever_happened_to_managers_on_etcd() {
    // A member of etcd dies, a worker becomes a manager, a manager is removed, among others.
    mix::live(Form::Etcd, 2, 7);
}

fn all_is_equal_soon_after_many_mixes() {
    live_through_many(Form::Embedded);
}

fn all_is_equal_soon_after_many_mixes_of_managers_on_etcd() {
    live_through_many(Form::Etcd);
}

fn live_through_many(form: Form) {
    let seeds = std::env::var("OVERLAYD_MIX").ok().map(|seed| vec![seed.parse().unwrap()]);
    seeds.unwrap_or_else(|| (0..20).collect()).into_iter().for_each(|seed| mix::live(form, seed, 30));
}

fn host_and_cluster_are_looked_at_too() {
    let (swarm, [_one, _two]) = gated();
    let agent = swarm.agent(2);
    let state = agent.state_dir().join("overlayd.redb");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o644)).unwrap();
    let found = differing(agent, Verified::File);
    assert_eq!((found.of.as_str(), found.is.as_str()), (state.to_str().unwrap(), "mode 0644 of uid 0"));
    let output = agent.command().args(["status", "--verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("overlayd: 1 of ") && said.contains("are not as they should be"), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains(&format!("file of {}, for you: ", state.display())), "{printed}");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_equal(agent);

    swarm.agent(1).kill();
    for item in [Verified::Manager, Verified::View] {
        let found = differing(agent, item);
        assert!(matches!(found.verdict, Verdict::Differs { mended_by: MendedBy::Agent, .. }), "{found:?}");
    }
    swarm.start(1);
    swarm.agents.iter().for_each(assert_equal);
    let kinds = verify(agent).items.into_iter().map(|item| item.item.name());
    let kinds: std::collections::BTreeSet<_> = kinds.collect();
    for kind in [
        "manager",
        "view",
        "membership",
        "tables",
        "keys",
        "endpoint",
        "interface",
        "routes",
        "underlay",
        "socket",
        "file",
    ] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
}

/// A process that ends with this.
struct Resident(std::process::Child);

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a persistent TAP with a remark.
fn tap(netns: &NetNs, name: &str, alias: &str) {
    let name: IfName = name.parse().unwrap();
    netns.run_in(|| Tap::create(&name).unwrap().set_persistent(true).unwrap()).unwrap();
    let command = ["link", "set", name.as_str(), "alias", alias];
    let set = || Command::new("ip").args(command).status().unwrap().success();
    assert!(netns.run_in(set).unwrap());
}

fn links(netns: &NetNs) -> Vec<String> {
    Netlink::within(netns, Netlink::links).unwrap().into_iter().map(|link| link.name).collect()
}

/// Two hosts with a container each on a network with a router, and an unencrypted network beside it.
fn gated() -> (Swarm, [Attached; 2]) {
    let swarm = Swarm::formed(2, Family::V4, Underlay::default());
    swarm.create(&[
        "--encrypted",
        "--subnet",
        V4_SUBNET,
        "--gateway",
        "10.77.0.1",
        "--subnet",
        V6_SUBNET,
        "red",
    ]);
    swarm.create(&["--subnet", "10.78.0.0/24", "blue"]);
    let containers = [1, 2].map(|number| swarm.attach(number, "red", &format!("c{number}")));
    swarm.agents.iter().for_each(assert_equal);
    (swarm, containers)
}

fn address(container: &Attached, family: Family) -> String {
    let own = container.endpoint().addresses.iter();
    own.filter(|address| address.addr() == container.address(family)).map(ToString::to_string).collect()
}

/// Runs `ip` in a container.
fn ip(swarm: &Swarm, container: &Attached, arguments: &str) -> String {
    let mut command = Command::new("ip");
    command.args(arguments.split(' ')).stdout(Stdio::piped());
    let child = swarm.lab.host(1).spawn_in(&container.container, command).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "ip {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

fn events(agent: &Agent) -> String {
    agent.done(&["events", "--no-follow"])
}

fn verify(agent: &Agent) -> VerifyResponse {
    agent.try_ask(&["status", "--verify"]).expect("it answers")
}

/// Asserts that all is as it should be, soon.
fn assert_equal(agent: &Agent) {
    let is_equal = || agent.command().args(["status", "--verify"]).output().unwrap().status.success();
    assert!(eventually(SOON, is_equal), "agent {}:\n{}", agent.number, agent.verification());
}

/// What differs of a kind, soon.
fn differing(agent: &Agent, item: Verified) -> VerifiedItem {
    let mut found = None;
    let is_found = eventually(SOON, || {
        found = verify(agent).differing().find(|found| found.item == item).cloned();
        found.is_some()
    });
    assert!(is_found, "no {} differs:\n{}", item.name(), agent.verification());
    found.unwrap()
}

/// What the agents promise.
const SOON: Duration = Duration::from_secs(5);
const V4_PREFIX: &str = "10.77.0.";
