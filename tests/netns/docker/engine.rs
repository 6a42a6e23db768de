//! Docker as the agent sees it: what it says when, and what it does with the interface.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::id::NetworkId;
use overlayd::lab::{Container, Host, eventually};
use serde_json::{Value, json};

use crate::support::swarm::{Agent, Swarm};

pub(super) const SUBNETS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

/// Docker on one host.
pub(super) struct Docker<'s> {
    pub(super) swarm: &'s Swarm,
    pub(super) number: usize,
    /// Its id for `red`, another one on each host.
    pub(super) network: String,
    pub(super) endpoints: AtomicUsize,
    /// The cluster's.
    pub(super) red: NetworkId,
}

/// What Docker has of a container.
pub(super) struct Started {
    pub(super) endpoint: String,
    pub(super) addresses: Vec<IpNet>,
    pub(super) ifname: String,
}

pub(super) fn start(swarm: &Swarm, agent: &Agent) {
    let socket = socket(agent);
    agent.spawn(swarm.host(agent), &["--docker-socket", socket.to_str().unwrap()]);
    agent.await_ready();
    assert!(eventually(Duration::from_secs(5), || socket.exists()));
}

pub(super) fn socket(agent: &Agent) -> PathBuf {
    agent.dir.join("docker.sock")
}

impl<'s> Docker<'s> {
    pub(super) fn new(swarm: &'s Swarm, number: usize) -> Self {
        let red = swarm.agent(1).inspect("red").network.id;
        Self { swarm, number, network: format!("{number:064x}"), endpoints: AtomicUsize::new(0), red }
    }

    pub(super) fn agent(&self) -> &Agent {
        self.swarm.agent(self.number)
    }

    /// A call as Docker 20.10 makes it, and the answer, whose status is always 200 but for calls that are not known.
    fn call(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.exchange(path, &body.to_string());
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    pub(super) fn exchange(&self, path: &str, body: &str) -> (u16, String) {
        self.try_exchange(path, body).unwrap()
    }

    fn try_exchange(&self, path: &str, body: &str) -> io::Result<(u16, String)> {
        let mut stream = UnixStream::connect(socket(self.agent()))?;
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {}\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            "%2Frun%2Fdocker.sock",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
    }

    /// As Docker does: what got no answer is asked for again.
    pub(super) fn insist(&self, path: &str, body: &Value) -> Result<Value, String> {
        let (mut answer, body) = (None, body.to_string());
        let answered = eventually(Duration::from_secs(30), || {
            answer = self.try_exchange(path, &body).ok().filter(|(status, _)| *status == 200);
            answer.is_some()
        });
        assert!(answered, "{path}: no answer within 30 s\n{}", self.agent().log());
        let answer: Value = serde_json::from_str(&answer.unwrap().1).unwrap();
        let refusal = [&answer["Err"], &answer["Error"]].into_iter().find_map(Value::as_str);
        refusal.map_or(Ok(answer.clone()), |refusal| Err(format!("{path}: {refusal}")))
    }

    /// All that Docker does when a container starts, and what it does when it cannot start.
    pub(super) fn try_run(&self, container: &Container) -> Result<Started, String> {
        let mut started = Started { endpoint: String::new(), addresses: Vec::new(), ifname: String::new() };
        let ran = self.try_each(container, &mut started);
        if ran.is_err() && !started.endpoint.is_empty() {
            self.insist("NetworkDriver.DeleteEndpoint", &self.of(&started.endpoint))?;
        }
        if ran.is_err() {
            self.give_back(&started)?;
        }
        ran.map(|()| started)
    }

    fn try_each(&self, container: &Container, started: &mut Started) -> Result<(), String> {
        for subnet in SUBNETS {
            let request = json!({ "PoolID": self.pool(subnet), "Address": "", "Options": {} });
            let given = self.insist("IpamDriver.RequestAddress", &request)?;
            started.addresses.push(given["Address"].as_str().unwrap().parse().unwrap());
        }
        let endpoint = self.next_endpoint();
        let mut request = self.of(&endpoint);
        request["Interface"] =
            json!({ "Address": started.addresses[0], "AddressIPv6": started.addresses[1], "MacAddress": "" });
        self.insist("NetworkDriver.CreateEndpoint", &request)?;
        started.endpoint = endpoint;
        request["SandboxKey"] = json!(container.path());
        let joined = self.insist("NetworkDriver.Join", &request)?;
        joined["InterfaceName"]["SrcName"].as_str().unwrap().clone_into(&mut started.ifname);
        self.move_in(started, container);
        Ok(())
    }

    fn give_back(&self, started: &Started) -> Result<(), String> {
        for address in &started.addresses {
            let pool = self.pool(&address.trunc().to_string());
            self.insist("IpamDriver.ReleaseAddress", &json!({ "PoolID": pool, "Address": address.addr() }))?;
        }
        Ok(())
    }

    /// All that Docker does when one stops; `home` is a process of the host's.
    pub(super) fn stop(&self, started: &Started, container: &Container, home: &str) {
        self.insist("NetworkDriver.Leave", &self.of(&started.endpoint)).unwrap();
        self.move_to(home, started, container);
        self.insist("NetworkDriver.DeleteEndpoint", &self.of(&started.endpoint)).unwrap();
        self.give_back(started).unwrap();
    }

    pub(super) fn done(&self, path: &str, body: &Value) -> Value {
        let answer = self.call(path, body);
        assert!(answer["Err"].is_null() && answer["Error"].is_null(), "{path}: {answer}");
        answer
    }

    pub(super) fn refused(&self, path: &str, body: &Value) -> String {
        let answer = self.call(path, body);
        let name = if path.starts_with("Ipam") { "Error" } else { "Err" };
        answer[name].as_str().unwrap_or_else(|| panic!("{path}: {answer}")).to_owned()
    }

    pub(super) fn pool(&self, subnet: &str) -> String {
        format!("{}/{subnet}", self.red)
    }

    /// `docker network create -d overlayd --ipam-driver overlayd --ipam-opt network=red --ipv6 --subnet ...`
    pub(super) fn create_network(&self) -> &Self {
        let data = SUBNETS.map(|subnet| {
            let v6 = subnet.contains(':');
            let options = json!({ "network": "red" });
            let request =
                json!({ "AddressSpace": "overlayd", "Pool": subnet, "SubPool": "", "Options": options, "V6": v6 });
            let pool = self.done("IpamDriver.RequestPool", &request);
            assert_eq!((&pool["Pool"], &pool["PoolID"]), (&json!(subnet), &json!(self.pool(subnet))));
            json!({
                "AddressSpace": "overlayd", "Pool": subnet, "AuxAddresses": null,
                "Gateway": pool["Data"]["com.docker.network.gateway"],
            })
        });
        let [v4, v6] = data;
        let options = json!({ "com.docker.network.enable_ipv6": true, "com.docker.network.generic": { "encrypted": "" } });
        self.done(
            "NetworkDriver.CreateNetwork",
            &json!({ "NetworkID": self.network, "Options": options, "IPv4Data": [v4], "IPv6Data": [v6] }),
        );
        self
    }

    /// Takes addresses, these if they are not empty, as Docker does: one family after the other.
    pub(super) fn take_addresses(&self, wanted: [&str; 2]) -> Vec<IpNet> {
        let take = |(subnet, wanted): (&str, &str)| {
            let request = json!({ "PoolID": self.pool(subnet), "Address": wanted, "Options": {} });
            let given = self.done("IpamDriver.RequestAddress", &request);
            given["Address"].as_str().unwrap().parse().unwrap()
        };
        SUBNETS.into_iter().zip(wanted).map(take).collect()
    }

    fn next_endpoint(&self) -> String {
        let number = self.endpoints.fetch_add(1, Ordering::Relaxed);
        format!("{:032x}{number:032x}", self.number)
    }

    pub(super) fn create_endpoint(&self, addresses: &[IpNet], mac: &str) -> (String, Value) {
        let endpoint = self.next_endpoint();
        let interface = json!({ "Address": addresses[0], "AddressIPv6": addresses[1], "MacAddress": mac });
        let answer = self.done(
            "NetworkDriver.CreateEndpoint",
            &json!({
                "NetworkID": self.network, "EndpointID": endpoint, "Interface": interface,
                "Options": { "com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": [] },
            }),
        );
        (endpoint, answer["Interface"].clone())
    }

    pub(super) fn join(&self, endpoint: &str, container: &Container) -> String {
        let mut request = self.of(endpoint);
        request["SandboxKey"] = json!(container.path());
        request["Options"] = json!({});
        let joined = self.done("NetworkDriver.Join", &request);
        assert_eq!(joined["InterfaceName"]["DstPrefix"], "eth");
        assert_eq!(joined.get("Gateway"), None, "{joined}");
        joined["InterfaceName"]["SrcName"].as_str().unwrap().to_owned()
    }

    pub(super) fn of(&self, endpoint: &str) -> Value {
        json!({ "NetworkID": self.network, "EndpointID": endpoint })
    }

    /// Moves the interface and dresses it there, as libnetwork does.
    pub(super) fn move_in(&self, started: &Started, container: &Container) {
        let path = container.path();
        self.ip(&["link", "set", &started.ifname, "netns", path.to_str().unwrap()]);
        let within = |arguments: &[&str]| {
            let mut ip = Command::new("ip");
            ip.args(arguments);
            assert!(self.host().spawn_in(container, ip).unwrap().wait().unwrap().success(), "{arguments:?}");
        };
        within(&["link", "set", &started.ifname, "name", "eth0"]);
        for address in &started.addresses {
            let flags: &[&str] = if address.addr().is_ipv6() { &["nodad"] } else { &[] };
            within(&[&["addr", "add", &address.to_string(), "dev", "eth0"], flags].concat());
        }
        within(&["link", "set", "eth0", "up"]);
    }

    pub(super) fn move_out(&self, started: &Started, container: &Container) {
        self.move_to(&self.agent().status().pid.to_string(), started, container);
    }

    /// To the namespace of a process of the host's.
    pub(super) fn move_to(&self, home: &str, started: &Started, container: &Container) {
        for arguments in [
            &["link", "set", "eth0", "down"][..],
            &["link", "set", "eth0", "name", &started.ifname],
            &["link", "set", &started.ifname, "netns", home],
        ] {
            let mut ip = Command::new("ip");
            ip.args(arguments);
            assert!(self.host().spawn_in(container, ip).unwrap().wait().unwrap().success(), "{arguments:?}");
        }
    }

    /// All that Docker does when a container starts.
    pub(super) fn run(&self, container: &Container) -> Started {
        self.try_run(container).unwrap()
    }

    pub(super) fn release(&self, started: &Started) {
        self.give_back(started).unwrap();
    }

    pub(super) fn host(&self) -> &Host {
        self.swarm.host(self.agent())
    }

    pub(super) fn ip(&self, arguments: &[&str]) {
        let mut ip = Command::new("ip");
        ip.args(arguments);
        assert!(self.host().spawn(ip).unwrap().wait().unwrap().success(), "{arguments:?}");
    }

    /// The interfaces of endpoints where the agent is: their names, whether they are up, and their addresses.
    pub(super) fn at_home(&self) -> Vec<(String, bool, usize)> {
        let links =
            self.host().run_in(|| Command::new("ip").args(["-json", "addr"]).output().unwrap()).unwrap();
        let links: Vec<Value> = serde_json::from_slice(&links.stdout).unwrap();
        let ours = links.into_iter().filter(|link| link["ifname"].as_str().unwrap().starts_with("ovd"));
        ours.map(|link| {
            let is_up = link["flags"].as_array().unwrap().contains(&json!("UP"));
            let name = link["ifname"].as_str().unwrap().to_owned();
            (name, is_up, link["addr_info"].as_array().unwrap().len())
        })
        .collect()
    }

    pub(super) fn endpoints_in_cluster(&self) -> usize {
        self.swarm.agent(1).inspect("red").endpoints.len()
    }

    pub(super) fn container(&self, name: &str) -> Container {
        self.host().container(name).unwrap()
    }

    pub(super) fn await_equal(&self) {
        let is_equal = || {
            let verification = self.agent().command().args(["status", "--verify"]).output().unwrap();
            verification.status.success()
        };
        assert!(eventually(Duration::from_secs(15), is_equal), "{}", self.agent().verification());
    }
}
