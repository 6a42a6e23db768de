//! Everything that can happen to three nodes, in an order that a seed names; then all is equal.

use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::api::types::{AttachResponse, CaStatusResponse, TokenResponse};
use overlayd::cluster::Role;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Container, Host, Underlay, eventually};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use super::support::cut_off::{cut_tcp, mend_tcp, plug_in, unplug};
use super::support::swarm::{Attached, Family, Swarm, V4_SUBNET, V6_SUBNET};
use super::support::tell;
use super::{SOON, ip};

/// Lives through so many steps of a seed, and asserts that all is equal afterwards.
pub(crate) fn live(seed: u64, steps: usize) {
    let mut mix = Mix::new(seed);
    for step in 0..steps {
        let what = mix.step();
        tell(&format!("seed {seed}, step {step}: {what}"));
    }
    mix.settle(seed);
}

struct Mix {
    rng: StdRng,
    swarm: Swarm,
    attached: Vec<Held>,
    /// Containers of which nobody was promised anything.
    others: Vec<Container>,
    next: u32,
    /// What is to happen before anything happens again.
    coming: Vec<u32>,
}

/// A container on a node, attached to a network.
struct Held {
    number: usize,
    network: &'static str,
    attached: Attached,
}

impl Mix {
    fn new(seed: u64) -> Self {
        let swarm = Swarm::formed(3, Family::V4, Underlay::default());
        swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "--subnet", V6_SUBNET, "red"]);
        swarm.create(&["--encrypted", "--subnet", "10.79.0.0/24", "--node-label", "zone=a", "green"]);
        swarm.create(&["--subnet", "10.78.0.0/24", "plain"]);
        let rng = StdRng::seed_from_u64(seed);
        let mut mix =
            Self { rng, swarm, attached: Vec::new(), others: Vec::new(), next: 0, coming: Vec::new() };
        for number in 1..=3 {
            mix.label(number, "--label-add", "zone=a");
            NETWORKS.iter().for_each(|network| drop(mix.attach(number, network)));
        }
        mix
    }

    /// Something happens; says what.
    fn step(&mut self) -> String {
        let number = self.rng.random_range(1..=3);
        let moment = Duration::from_millis(self.rng.random_range(0..120));
        if self.coming.is_empty() {
            self.coming = (0..KINDS).collect();
            self.coming.shuffle(&mut self.rng);
        }
        match self.coming.pop().expect("some kinds") {
            0 | 1 => {
                let network = NETWORKS[self.rng.random_range(0..NETWORKS.len())];
                self.attach(number, network)
            }
            2 => self.with_one(|swarm, held| {
                let command = ["detach", held.network, "--netns", held.attached.container.name()];
                let done = swarm.agent(held.number).command().args(command).output().unwrap();
                format!("detach {}: {}", held.attached.container.name(), done.status)
            }),
            3 => self.with_one(|_, held| format!("the end of {}", held.attached.container.name())),
            4 => self.kill(number),
            5 => {
                let (container, mut running) = self.begin_attach(number);
                std::thread::sleep(moment);
                let killed = self.kill(number);
                let ended = running.wait().unwrap();
                self.others.push(container);
                format!("{killed} after {moment:?} of an attachment, {ended}")
            }
            6 => {
                let Some(held) = self.take_one() else { return "nothing".into() };
                let command = ["detach", held.network, "--netns", held.attached.container.name()];
                let mut running = self.start(held.number, &command);
                std::thread::sleep(moment);
                let killed = self.kill(held.number);
                running.wait().unwrap();
                self.others.push(held.attached.container);
                format!("{killed} after {moment:?} of a detachment")
            }
            7 => {
                self.swarm.agent(number).signal(Signal::TERM);
                self.swarm.agent(number).await_exit(Duration::from_secs(10)).unwrap();
                self.swarm.start(number);
                format!("restart of agent {number}")
            }
            8 => self.cut_off(number),
            9 => {
                let done = self.swarm.agent(number).command().arg("rekey").output().unwrap();
                format!("rekey by agent {number}: {}", done.status)
            }
            10 => {
                self.label(number, "--label-rm", "zone");
                std::thread::sleep(moment);
                self.label(number, "--label-add", "zone=a");
                self.attached.retain(|held| held.number != number || held.network != "green");
                format!("label of agent {number} taken and given {moment:?} later")
            }
            11 => self.replace_address(number),
            12 => self.partition(number),
            13 => self.outage(),
            14 => self.rotate(),
            _ => self.rejoin(),
        }
    }

    fn attach(&mut self, number: usize, network: &'static str) -> String {
        let (container, name) = self.container(number);
        let Some(response) =
            self.swarm.agent(number).try_ask::<AttachResponse>(&["attach", network, "--netns", &name])
        else {
            return format!("{name} not attached to {network} by agent {number}");
        };
        let attached = Attached { container, response };
        if network == "red" {
            // A container that is careless with what it was given.
            let address = attached.endpoint().addresses[0];
            let what = ["link del eth0".to_owned(), format!("address del {address} dev eth0")];
            ip(&self.swarm, &attached, &what[self.rng.random_range(0..2)]);
        }
        self.attached.push(Held { number, network, attached });
        format!("{name} attached to {network} by agent {number}")
    }

    fn begin_attach(&mut self, number: usize) -> (Container, Child) {
        let (container, name) = self.container(number);
        let running = self.start(number, &["attach", "red", "--netns", &name]);
        (container, running)
    }

    fn start(&self, number: usize, command: &[&str]) -> Child {
        let mut program = self.swarm.agent(number).command();
        program.args(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn container(&mut self, number: usize) -> (Container, String) {
        self.next += 1;
        let name = format!("x{}", self.next);
        (self.swarm.lab.host(number).container(&name).unwrap(), name)
    }

    fn with_one(&mut self, act: impl FnOnce(&Swarm, &Held) -> String) -> String {
        // What it is about ends with this.
        self.take_one().map_or_else(|| "nothing".into(), |held| act(&self.swarm, &held))
    }

    fn take_one(&mut self) -> Option<Held> {
        let index = self.rng.random_range(0..self.attached.len().max(1));
        (index < self.attached.len()).then(|| self.attached.swap_remove(index))
    }

    fn kill(&self, number: usize) -> String {
        self.swarm.agent(number).kill();
        self.swarm.start(number);
        format!("kill -9 of agent {number}")
    }

    /// A node's TCP alone is cut: no session, no key exchange.
    fn cut_off(&mut self, number: usize) -> String {
        let hosts = self.swarm.lab.all();
        let others: Vec<&Host> =
            hosts.iter().filter(|host| host.name() != hosts[number - 1].name()).collect();
        let lasts = Duration::from_millis(self.rng.random_range(200..1_500));
        cut_tcp(&hosts[number - 1], &others);
        std::thread::sleep(lasts);
        mend_tcp(&hosts[number - 1], &others);
        format!("agent {number} without TCP for {lasts:?}")
    }

    /// A host hears nothing at all, and nobody hears it, perhaps until its sessions and key channels are given up.
    fn partition(&mut self, number: usize) -> String {
        let host = self.swarm.lab.host(number);
        let lasts = Duration::from_millis(self.rng.random_range(200..5_000));
        unplug(host);
        std::thread::sleep(lasts);
        plug_in(host);
        format!("agent {number} alone for {lasts:?}")
    }

    /// The manager is dead, or hangs, for longer than a session may be silent, and something happens meanwhile.
    fn outage(&mut self) -> String {
        let lasts = Duration::from_millis(self.rng.random_range(2_500..5_000));
        let hangs = self.rng.random_bool(0.5);
        let manager = self.swarm.agent(1);
        if hangs {
            manager.signal(Signal::STOP);
        } else {
            manager.kill();
        }
        let ended = boot_time() + lasts;
        let index = self.attached.iter().position(|held| held.number != 1);
        let gone = index.map(|index| self.attached.swap_remove(index).attached.container.name().to_owned());
        let (number, is_killed) = (self.rng.random_range(2..=3), self.rng.random_bool(0.5));
        let killed = is_killed.then(|| self.kill(number));
        std::thread::sleep(ended.since(boot_time()));
        if hangs {
            self.swarm.agent(1).signal(Signal::CONT);
        } else {
            self.swarm.start(1);
        }
        let what = if hangs { "hangs" } else { "is dead" };
        format!("the manager {what} for {lasts:?}, meanwhile the end of {gone:?}, {killed:?}")
    }

    /// The root is replaced, while the steps that follow go on, unless it is being replaced.
    fn rotate(&self) -> String {
        let done = self.swarm.agent(1).command().args(["ca", "rotate", "--detach"]).output().unwrap();
        format!("rotation of the root: {}", done.status)
    }

    fn label(&self, number: usize, flag: &str, label: &str) {
        let id = self.id(number);
        let update = ["node", "update", id.as_str(), flag, label];
        let done = || self.swarm.agent(1).command().args(update).output().unwrap().status.success();
        assert!(eventually(Duration::from_secs(10), done), "{update:?}");
    }

    /// The host of a node gets another address, or the one that it had at first.
    fn replace_address(&self, number: usize) -> String {
        let host = self.swarm.lab.host(number);
        let other = match host.v4() {
            IpAddr::V4(ip) => std::net::Ipv4Addr::from_bits(ip.to_bits() | 0x40).into(),
            IpAddr::V6(ip) => ip.into(),
        };
        let subnet = |address| IpNet::new(address, 24).unwrap();
        let (from, to) = if self.swarm.agent(number).status().cluster.unwrap().node.data.ip() == other {
            (other, host.v4())
        } else {
            (host.v4(), other)
        };
        let replaced = Netlink::within(host.namespace(), |netlink| {
            let link = netlink.link(&Host::underlay_name())?;
            netlink.remove_address(&link, subnet(from))?;
            netlink.add_address(&link, subnet(to))
        });
        match replaced {
            Ok(()) => {
                let is_there = || self.swarm.agent(number).status().cluster.unwrap().node.data.ip() == to;
                assert!(
                    eventually(Duration::from_secs(10), is_there),
                    "agent {number} does not move to {to}"
                );
                format!("agent {number} at {to}")
            }
            Err(_) => format!("agent {number} is moving still"),
        }
    }

    /// Node 3 is removed, and joins again as a new one.
    fn rejoin(&mut self) -> String {
        let (id, manager) = (self.id(3), self.swarm.agent(1).status().cluster.unwrap().node.advertise);
        self.swarm.agent(1).done(&["node", "rm", "--force", &id]);
        self.swarm.agent(3).done(&["leave", "--force"]);
        self.attached.retain(|held| held.number != 3);
        let joins = || {
            // Where the root is being replaced, a token may be void as soon as it is printed.
            let token: TokenResponse = self.swarm.agent(1).ask(&["token", &Role::Worker.to_string()]);
            let join = ["join", "--token", &token.token, &manager.to_string()];
            self.swarm.agent(3).command().args(join).output().unwrap().status.success()
        };
        assert!(eventually(Duration::from_secs(10), joins), "{}", self.swarm.agent(3).log());
        self.label(3, "--label-add", "zone=a");
        self.attach(3, "red");
        format!("node {id} removed, and a new one joined")
    }

    fn id(&self, number: usize) -> String {
        self.swarm.agent(number).status().cluster.unwrap().node.id.to_string()
    }

    fn settle(&self, seed: u64) {
        self.await_equal(seed);
        let rotation = || self.swarm.agent(1).ask::<CaStatusResponse>(&["ca", "status"]).rotation;
        let is_over = eventually(Duration::from_secs(20), || rotation().is_none());
        assert!(is_over, "{}", self.swarm.agent(1).done(&["ca", "status"]));
        self.await_equal(seed);
        for from in &self.attached {
            let others =
                self.attached.iter().filter(|to| to.network == from.network && to.number != from.number);
            for to in others.take(1) {
                self.swarm.assert_reaches(&from.attached, &to.attached, Duration::from_secs(5));
            }
        }
    }

    /// What is there is what should be, on every node, within five seconds from now.
    fn await_equal(&self, seed: u64) {
        let now = boot_time();
        for agent in &self.swarm.agents {
            let is_equal = || agent.command().args(["status", "--verify"]).output().unwrap().status.success();
            let in_time = eventually(SOON.saturating_sub(boot_time().since(now)), is_equal);
            let took = boot_time().since(now);
            assert!(in_time && took < SOON, "agent {}, {took:?}:\n{}", agent.number, agent.verification());
        }
        tell(&format!("seed {seed}: all equal after {:?}", boot_time().since(now)));
    }
}

/// So many kinds of steps there are.
const KINDS: u32 = 16;
const NETWORKS: [&str; 3] = ["red", "green", "plain"];
