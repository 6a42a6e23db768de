//! The agent as a container runtime has it used: the binary as a CNI plugin, with the words of the specification.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use overlayd::lab::{Container, Underlay, eventually};
use serde_json::{Value, json};

use crate::support::swarm::{Agent, Family, OVERLAYD, Swarm};
use crate::support::tests;

tests! {
    locked_manager_says_so_and_does_not_pretend_to_detach
    network_is_named_by_its_id_as_well
    node_that_cannot_attach_says_so_and_detaches_all_the_same
    runtime_attaches_containers_that_reach_one_another_checks_them_and_detaches_them_as_often_as_it_likes
    container_is_detached_though_its_namespace_is_gone_and_its_agent_was_killed
    garbage_is_what_the_runtime_has_no_more_of_this_configuration
    capabilities_give_addresses_and_rates
    what_cannot_be_done_is_refused_with_the_code_of_the_specification
}

/// A call of a runtime.
struct Call<'a> {
    verb: &'a str,
    container: &'a str,
    netns: String,
    config: Value,
}

impl<'a> Call<'a> {
    fn new(verb: &'a str, agent: &Agent, container: &'a Container) -> Self {
        let config = json!({
            "cniVersion": "1.1.0", "name": "red", "type": "overlayd", "socket": agent.socket(),
        });
        let netns = container.path().to_str().unwrap().to_owned();
        Self { verb, container: container.name(), netns, config }
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// What is said on standard output, and whether it was done.
    fn answer(&self) -> (String, bool) {
        let mut plugin = Command::new(OVERLAYD);
        plugin.env("CNI_COMMAND", self.verb).env("CNI_CONTAINERID", self.container);
        plugin.env("CNI_NETNS", &self.netns).env("CNI_IFNAME", "eth0").env("CNI_PATH", "/opt/cni/bin");
        let mut plugin = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        plugin.stdin.take().unwrap().write_all(self.config.to_string().as_bytes()).unwrap();
        let output = plugin.wait_with_output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    }

    fn done(&self) -> Value {
        let (said, is_done) = self.answer();
        assert!(is_done, "{}: {said}", self.verb);
        if said.is_empty() { Value::Null } else { serde_json::from_str(&said).unwrap() }
    }

    fn refused(&self) -> (u64, String) {
        let (said, is_done) = self.answer();
        assert!(!is_done, "{}: {said}", self.verb);
        let failure: Value = serde_json::from_str(&said).unwrap();
        (failure["code"].as_u64().unwrap(), failure["msg"].as_str().unwrap().to_owned())
    }
}

fn runtime_attaches_containers_that_reach_one_another_checks_them_and_detaches_them_as_often_as_it_likes() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let containers = [1, 2].map(|number| swarm.lab.host(number).container(&format!("c{number}")).unwrap());
    let call = |verb, index: usize| Call::new(verb, swarm.agent(index + 1), &containers[index]);
    let given = [0, 1].map(|index| call("ADD", index).done());
    for (result, container) in given.iter().zip(&containers) {
        let interface = &result["interfaces"][0];
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 1, "{result}");
        assert_eq!(interface["sandbox"], container.path().to_str().unwrap());
        assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
        assert_eq!(result["cniVersion"], "1.1.0");
        assert!(interface["mtu"].as_u64().is_some_and(|mtu| mtu > 1280), "{result}");
    }
    let to = given[1]["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
    let reached = eventually(Duration::from_secs(10), || {
        let mut ping = Command::new("ping");
        ping.args(["-c", "3", "-i", "0.2", "-W", "1", to]).stdout(Stdio::null());
        swarm.lab.host(1).spawn_in(&containers[0], ping).unwrap().wait().unwrap().success()
    });
    assert!(reached, "{}", swarm.drops());

    let check = call("CHECK", 0).with("prevResult", given[0].clone());
    assert_eq!(check.done(), Value::Null);
    let (code, message) = call("CHECK", 0).with("prevResult", given[1].clone()).refused();
    assert_eq!((code, message.contains("which prevResult has not")), (101, true), "{message}");
    let (code, message) = call("ADD", 0).refused();
    assert_eq!((code, message.contains("attached to network red already")), (100, true), "{message}");
    let set = |state: &str| {
        let mut link = Command::new("ip");
        link.args(["link", "set", "eth0", state]);
        assert!(swarm.lab.host(1).spawn_in(&containers[0], link).unwrap().wait().unwrap().success());
    };
    set("down");
    let (code, message) = check.refused();
    assert_eq!((code, message.contains("up: down")), (101, true), "{message}");
    set("up");
    // The agent gives it its routes again.
    assert!(eventually(Duration::from_secs(10), || check.answer() == (String::new(), true)));
    for (change, arguments) in [
        ("one more address", &["addr", "add", "10.77.0.7/24", "dev", "eth0"][..]),
        ("a smaller MTU", &["link", "set", "eth0", "mtu", "1300"]),
    ] {
        let mut tune = Command::new("ip");
        tune.args(arguments);
        assert!(swarm.lab.host(1).spawn_in(&containers[0], tune).unwrap().wait().unwrap().success());
        assert_eq!(check.done(), Value::Null, "{change}");
    }

    // Whatever became of the configuration meanwhile.
    let del = call("DEL", 0).with("network", json!("blue")).with("ipam", json!({ "type": "host-local" }));
    for _ in 0..3 {
        assert_eq!(del.done(), Value::Null);
    }
    let (code, message) = check.refused();
    assert_eq!((code, message.contains("has no eth0 of red")), (101, true), "{message}");
    let left = swarm.agent(1).inspect("red").endpoints;
    assert_eq!(left.len(), 1, "{left:?}");
    let mut dummy = Command::new("ip");
    dummy.args(["link", "add", "eth0", "type", "veth", "peer", "name", "other"]);
    assert!(swarm.lab.host(1).spawn_in(&containers[0], dummy).unwrap().wait().unwrap().success());
    let (code, message) = call("ADD", 0).refused();
    assert_eq!((code, message.contains("eth0 already")), (100, true), "{message}");
}

fn node_that_cannot_attach_says_so_and_detaches_all_the_same() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let agent = swarm.agent(2);
    let containers = ["c2", "c3"].map(|name| swarm.lab.host(2).container(name).unwrap());
    // It was made anew with the same name while its first namespace is still about.
    let again = |verb| Call { container: "c2", ..Call::new(verb, agent, &containers[1]) };
    let given = [Call::new("ADD", agent, &containers[0]).done(), again("ADD").done()];
    assert_eq!(again("CHECK").with("prevResult", given[1].clone()).done(), Value::Null);
    let (code, _) = again("CHECK").with("prevResult", given[0].clone()).refused();
    assert_eq!(code, 101);
    swarm.agent(1).kill();
    let status = Call::new("STATUS", agent, &containers[0]);
    let (mut is, unready) = ((String::new(), true), json!(50));
    let told = eventually(Duration::from_secs(15), || {
        is = status.answer();
        serde_json::from_str::<Value>(&is.0).is_ok_and(|failure| failure["code"] == unready)
    });
    assert!(told && !is.1, "{is:?}");
    assert_eq!(agent.status().cluster.unwrap().endpoint_count, 2);
    assert_eq!(again("DEL").done(), Value::Null);
    assert_eq!(agent.status().cluster.unwrap().endpoint_count, 0);
}

fn locked_manager_says_so_and_does_not_pretend_to_detach() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let agent = swarm.agent(1);
    let address = Family::V4.of(swarm.lab.host(1)).to_string();
    agent.done(&["init", "--autolock", "--advertise-addr", &address]);
    swarm.create_encrypted("red");
    let container = swarm.lab.host(1).container("c1").unwrap();
    let call = |verb| Call::new(verb, agent, &container);
    call("ADD").done();
    agent.kill();
    swarm.start(1);
    for (verb, code) in [("STATUS", 51), ("DEL", 100), ("ADD", 100)] {
        let (is, message) = call(verb).refused();
        assert_eq!((is, message.contains("lock")), (code, true), "{verb}: {is} {message}");
    }
}

fn network_is_named_by_its_id_as_well() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let container = swarm.lab.host(2).container("c2").unwrap();
    let id = swarm.agent(1).inspect("red").network.id;
    let call = |verb| {
        Call::new(verb, swarm.agent(2), &container).with("network", json!(id)).with("name", json!("any"))
    };
    let given = call("ADD").done();
    assert_eq!(call("CHECK").with("prevResult", given).done(), Value::Null);
    assert_eq!(call("DEL").done(), Value::Null);
    let empty = || swarm.agent(1).inspect("red").endpoints.is_empty();
    assert!(empty());
}

fn container_is_detached_though_its_namespace_is_gone_and_its_agent_was_killed() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let agent = swarm.agent(2);
    let container = swarm.lab.host(2).container("c2").unwrap();
    Call::new("ADD", agent, &container).done();
    agent.kill();
    let del = Call { netns: String::new(), ..Call::new("DEL", agent, &container) };
    let (code, message) = del.refused();
    assert_eq!((code, message.contains("no agent is running")), (11, true), "{message}");
    swarm.start(2);
    assert_eq!(del.done(), Value::Null);
    let is_empty = || {
        let empty =
            eventually(Duration::from_secs(10), || swarm.agent(1).inspect("red").endpoints.is_empty());
        assert!(empty, "{:?}", swarm.agent(1).inspect("red").endpoints);
    };
    is_empty();
    Call::new("ADD", agent, &container).done();
    let del = Call::new("DEL", agent, &container);
    let (config, netns) = (del.config.clone(), del.netns.clone());
    drop(container);
    let gone = Call { verb: "DEL", container: "c2", netns, config };
    assert_eq!(gone.done(), Value::Null);
    // The agent itself would have noticed within two seconds.
    assert!(swarm.agent(1).inspect("red").endpoints.is_empty());
    assert_eq!(gone.done(), Value::Null);
}

fn garbage_is_what_the_runtime_has_no_more_of_this_configuration() {
    let swarm = Swarm::pair();
    swarm.create_encrypted("red");
    let agent = swarm.agent(1);
    let containers = ["c1", "c2", "c3"].map(|name| swarm.lab.host(1).container(name).unwrap());
    let by_hand = swarm.attach(1, "red", "c4");
    for container in &containers[..2] {
        Call::new("ADD", agent, container).done();
    }
    let another = json!("another");
    let other = |verb| {
        Call::new(verb, agent, &containers[2]).with("name", another.clone()).with("network", json!("red"))
    };
    other("ADD").done();
    let collect = |valid: Value| {
        Call::new("GC", agent, &containers[0]).with("cni.dev/valid-attachments", valid).done();
        agent.inspect("red").endpoints.len()
    };
    let both = json!([{ "containerID": "c1", "ifname": "eth0" }, { "containerID": "c2", "ifname": "eth0" }]);
    assert_eq!(collect(both), 4);
    // The second one's interface is another one's by name.
    let one = json!([{ "containerID": "c1", "ifname": "eth0" }, { "containerID": "c2", "ifname": "eth1" }]);
    assert_eq!(collect(one), 3);
    // As Go writes an empty list.
    assert_eq!(collect(Value::Null), 2);
    let (code, message) = Call::new("GC", agent, &containers[0]).refused();
    assert_eq!((code, message.contains("valid-attachments is missing")), (7, true), "{message}");
    other("DEL").done();
    let left: Vec<_> = agent.inspect("red").endpoints.into_iter().map(|endpoint| endpoint.id).collect();
    assert_eq!(left, [by_hand.endpoint().id]);
}

fn capabilities_give_addresses_and_rates() {
    let swarm = Swarm::pair();
    swarm.create(&["--encrypted", "--subnet", "10.20.0.0/24", "--gateway", "10.20.0.1", "blue"]);
    let agent = swarm.agent(1);
    let container = swarm.lab.host(1).container("c1").unwrap();
    let call = |verb| Call::new(verb, agent, &container).with("network", json!("blue"));
    let wishes = json!({
        "ips": ["10.20.0.7/24"], "mac": "02:00:00:00:00:07",
        "bandwidth": { "ingressRate": 50_000_000, "ingressBurst": 1, "egressRate": 0, "egressBurst": 0 },
    });
    let before = json!({
        "cniVersion": "0.4.0", "interfaces": [{ "name": "lo0" }], "ips": [{ "address": "10.9.0.1/24", "version": "4" }],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let add = call("ADD").with("cniVersion", json!("0.4.0")).with("prevResult", before);
    let result = add.with("runtimeConfig", wishes).done();
    let expected = json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            { "name": "lo0" },
            { "name": "eth0", "mac": "02:00:00:00:00:07", "sandbox": container.path() },
        ],
        "ips": [
            { "address": "10.9.0.1/24", "version": "4" },
            { "address": "10.20.0.7/24", "gateway": "10.20.0.1", "interface": 1, "version": "4" },
        ],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.20.0.1" }],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    assert_eq!(result, expected);
    let rates = agent.stats().endpoints[0].rates;
    assert_eq!((rates.egress, rates.ingress), (None, "50mbit".parse().ok()));
    assert_eq!(call("CHECK").with("prevResult", result).done(), Value::Null);
}

fn what_cannot_be_done_is_refused_with_the_code_of_the_specification() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let agent = swarm.agent(1);
    let container = swarm.lab.host(1).container("c1").unwrap();
    let call = |verb| Call::new(verb, agent, &container);
    let refused = |call: Call<'_>, code, words: &str| {
        let (is, message) = call.refused();
        assert_eq!((is, message.contains(words)), (code, true), "{code} {words}: {is} {message}");
    };
    let version = call("VERSION").with("cniVersion", json!("9.0.0")).done();
    assert_eq!(version["supportedVersions"].as_array().unwrap().last(), Some(&json!("1.1.0")));
    refused(call("STATUS"), 50, "in no cluster");
    refused(call("ADD"), 100, "in no cluster");
    // It has nothing of anybody.
    assert_eq!(call("DEL").done(), Value::Null);
    assert_eq!(call("GC").with("cni.dev/valid-attachments", json!([])).done(), Value::Null);
    swarm.init(Family::V4);
    // As soon as the agent has a session with the manager that it is.
    assert!(eventually(Duration::from_secs(10), || call("STATUS").answer() == (String::new(), true)));
    refused(call("ADD"), 7, "no network red");
    assert_eq!(call("DEL").done(), Value::Null);
    swarm.create_encrypted("red");
    refused(call("ADD").with("cniVersion", json!("2.0.0")), 1, "cniVersion 2.0.0");
    refused(call("ADD").with("ipam", json!({ "type": "host-local" })), 2, "ipam");
    refused(call("ADD").with("runtimeConfig", json!({ "ips": ["10.0.0"] })), 7, "10.0.0 is no address");
    refused(call("ADD").with("name", json!(7)), 7, "name: invalid type");
    refused(
        call("ADD").with("runtimeConfig", json!({ "bandwidth": { "egressRate": 9 } })),
        7,
        "less than 8000",
    );
    refused(Call { netns: "/nowhere".to_owned(), ..call("ADD") }, 3, "/nowhere");
    refused(Call { netns: String::new(), ..call("ADD") }, 4, "CNI_NETNS is not set");
    refused(Call { container: "/x", ..call("ADD") }, 4, "CNI_CONTAINERID=/x");
    refused(call("MOVE"), 4, "CNI_COMMAND=MOVE");
    refused(call("CHECK"), 101, "has no eth0");
    let mut garbled = call("ADD");
    garbled.config = json!("no object");
    refused(garbled, 6, "the network configuration");
    refused(
        call("STATUS").with("socket", json!("/nowhere.sock")),
        51,
        "no agent is running at /nowhere.sock",
    );
}
