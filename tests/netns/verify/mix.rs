//! Everything that can happen to the nodes of a cluster, in an order that a seed names; then all is equal.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::api::types::{
    AttachResponse, CaStatusResponse, InitResponse, ListNodesResponse, TokenResponse,
};
use overlayd::cluster::Role;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Container, Host, Underlay, eventually};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use super::{SOON, ip};
use crate::support::certificates::{Clock, shift_certificate};
use crate::support::cut_off::{cut_tcp, mend_tcp, plug_in, unplug};
use crate::support::etcd::{Etcd, Place};
use crate::support::swarm::{Agent, Attached, Swarm, V4_SUBNET, V6_SUBNET};
use crate::support::tell;

/// Where the cluster's state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In the file of its one manager; there are three nodes.
    Embedded,
    /// In an etcd of three members; of four nodes, one and more are managers.
    Etcd,
}

/// Lives through so many steps of a seed, and asserts that all is equal afterwards.
pub(crate) fn live(form: Form, seed: u64, steps: usize) {
    let mut mix = Mix::new(form, seed);
    for step in 0..steps {
        let what = mix.step();
        tell(&format!("seed {seed}, step {step}: {what}"));
    }
    mix.settle(seed);
}

/// Lives through every kind of step once.
pub(crate) fn live_through_each(form: Form, seed: u64) {
    live(form, seed, form.kinds().len());
}

impl Form {
    const fn nodes(self) -> usize {
        match self {
            Self::Embedded => 3,
            Self::Etcd => 4,
        }
    }

    /// The kinds of steps.
    fn kinds(self) -> Vec<Kind> {
        let own: &[Kind] = match self {
            Self::Embedded => &[Kind::MonthsOff],
            Self::Etcd => &[Kind::ChangeRole, Kind::ChangeRole, Kind::KillEtcd],
        };
        [KINDS, own].concat()
    }
}

struct Mix {
    form: Form,
    rng: StdRng,
    swarm: Swarm,
    /// Of the agents, in their order, and whether each is off.
    clocks: Vec<(Clock, bool)>,
    /// By how much: clocks of one cluster are up to two days apart.
    off: &'static str,
    etcd: Option<Etcd>,
    /// The numbers of the agents that are managers.
    managers: BTreeSet<usize>,
    attached: Vec<Held>,
    /// Containers of which nobody was promised anything.
    others: Vec<Container>,
    next: u32,
    /// What is to happen before anything happens again.
    coming: Vec<Kind>,
}

/// A container on a node, attached to a network.
struct Held {
    number: usize,
    network: &'static str,
    attached: Attached,
}

impl Mix {
    fn new(form: Form, seed: u64) -> Self {
        // Etcd is on a host without an agent, as hosts with one change their addresses.
        let hosts = form.nodes() + usize::from(form == Form::Etcd);
        let swarm = Swarm::idle(u8::try_from(hosts).unwrap(), Underlay::default());
        let etcd = (form == Form::Etcd).then(|| {
            let host = swarm.lab.host(hosts);
            let place = || Place::within(&Path::new("/run/netns").join(host.name()), host.v4());
            let etcd = Etcd::at((0..3).map(|_| place()).collect(), None);
            etcd.wait();
            etcd
        });
        let clock = |number| (Clock::new(swarm.dir(), &format!("clock{number}")), false);
        let clocks = (1..=form.nodes()).map(clock).collect();
        let mut rng = StdRng::seed_from_u64(seed);
        let off = if rng.random_bool(0.5) { "+2d" } else { "-2d" };
        let (managers, attached, others, coming) = (BTreeSet::from([1]), Vec::new(), Vec::new(), Vec::new());
        let mut mix =
            Self { form, rng, swarm, clocks, off, etcd, managers, attached, others, next: 0, coming };
        mix.assemble();
        mix
    }

    /// The cluster, and a container of each node in each network.
    fn assemble(&mut self) {
        self.numbers().for_each(|number| self.start(number));
        let address = self.swarm.lab.host(1).v4().to_string();
        let mut init = vec!["init", "--advertise-addr", &address];
        let store = self.etcd.as_ref().map(Etcd::url);
        init.extend(store.iter().flat_map(|store| ["--store", store]));
        let made: InitResponse = self.swarm.agent(1).ask(&init);
        for number in 2..=self.form.nodes() {
            self.swarm.join(number, &made);
        }
        if self.form == Form::Etcd {
            [2, 3].into_iter().for_each(|number| drop(self.change_role(number)));
        }
        self.swarm.create(&["--encrypted", "--subnet", V4_SUBNET, "--subnet", V6_SUBNET, "red"]);
        self.swarm.create(&["--encrypted", "--subnet", "10.79.0.0/24", "--node-label", "zone=a", "green"]);
        self.swarm.create(&["--subnet", "10.78.0.0/24", "plain"]);
        for number in self.numbers() {
            self.label(number, "--label-add", "zone=a");
            for network in NETWORKS {
                let (before, said) = (self.attached.len(), self.attach(number, network));
                assert!(self.attached.len() > before, "{said}");
            }
        }
    }

    /// Something happens; says what.
    fn step(&mut self) -> String {
        let number = self.any_number();
        let moment = Duration::from_millis(self.rng.random_range(0..120));
        if self.coming.is_empty() {
            self.coming = self.form.kinds();
            self.coming.shuffle(&mut self.rng);
        }
        match self.coming.pop().expect("some kinds") {
            Kind::Attach => {
                let network = NETWORKS[self.rng.random_range(0..NETWORKS.len())];
                self.attach(number, network)
            }
            Kind::Detach => self.with_one(|swarm, held| {
                let command = ["detach", held.network, "--netns", held.attached.container.name()];
                let done = swarm.agent(held.number).command().args(command).output().unwrap();
                format!("detach {}: {}", held.attached.container.name(), done.status)
            }),
            Kind::EndContainer => {
                self.with_one(|_, held| format!("the end of {}", held.attached.container.name()))
            }
            Kind::Kill => self.kill(number),
            Kind::KillTwo => self.kill_two(number),
            Kind::KillAttaching => {
                let (container, mut running) = self.begin_attach(number);
                std::thread::sleep(moment);
                let killed = self.kill(number);
                let ended = running.wait().unwrap();
                self.others.push(container);
                format!("{killed} after {moment:?} of an attachment, {ended}")
            }
            Kind::KillDetaching => {
                let Some(held) = self.take_one() else { return "nothing".into() };
                let command = ["detach", held.network, "--netns", held.attached.container.name()];
                let mut running = self.begin(held.number, &command);
                std::thread::sleep(moment);
                let killed = self.kill(held.number);
                running.wait().unwrap();
                self.others.push(held.attached.container);
                format!("{killed} after {moment:?} of a detachment")
            }
            Kind::Restart => {
                self.swarm.agent(number).signal(Signal::TERM);
                self.swarm.agent(number).await_exit(Duration::from_secs(10)).unwrap();
                self.start(number);
                format!("restart of agent {number}")
            }
            Kind::CutTcp => self.cut_off(number),
            Kind::Rekey => {
                let done = self.swarm.agent(number).command().arg("rekey").output().unwrap();
                format!("rekey by agent {number}: {}", done.status)
            }
            Kind::TakeLabel => {
                self.label(number, "--label-rm", "zone");
                std::thread::sleep(moment);
                self.label(number, "--label-add", "zone=a");
                self.attached.retain(|held| held.number != number || held.network != "green");
                format!("label of agent {number} taken and given {moment:?} later")
            }
            Kind::ReplaceAddress => self.replace_address(number),
            Kind::Partition => self.partition(number),
            Kind::Outage => self.outage(),
            Kind::RotateRoot => self.rotate(),
            Kind::Rejoin => self.rejoin(),
            Kind::MoveClock => self.move_clock(number),
            Kind::MonthsOff => self.months_off(),
            Kind::ChangeRole => self.change_role(number),
            Kind::KillEtcd => self.kill_etcd(),
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
        let running = self.begin(number, &["attach", "red", "--netns", &name]);
        (container, running)
    }

    fn begin(&self, number: usize, command: &[&str]) -> Child {
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

    /// Starts an agent, with a clock of its own.
    fn start(&self, number: usize) {
        let agent = self.swarm.agent(number);
        agent.spawn_in(self.swarm.host(agent), &[], &self.clocks[number - 1].0.environment());
        agent.await_ready();
    }

    fn kill(&self, number: usize) -> String {
        self.swarm.agent(number).kill();
        self.start(number);
        format!("kill -9 of agent {number}")
    }

    /// Both ends of whatever they share start at the same time.
    fn kill_two(&mut self, number: usize) -> String {
        let both = [number, self.another_than(number)];
        let dying = both.map(|number| self.swarm.agent(number).kill_without_waiting());
        for mut dying in dying {
            dying.wait().unwrap();
        }
        for agent in both.map(|number| self.swarm.agent(number)) {
            agent.spawn_in(self.swarm.host(agent), &[], &self.clocks[agent.number - 1].0.environment());
        }
        both.iter().for_each(|number| self.swarm.agent(*number).await_ready());
        format!("kill -9 of agents {both:?} at once")
    }

    /// The wall clock of a node goes off by two days, to the same side as all others that are off, or is right again.
    fn move_clock(&mut self, number: usize) -> String {
        let (clock, is_off) = &mut self.clocks[number - 1];
        *is_off = !*is_off;
        let off = if *is_off { self.off } else { "+0" };
        clock.set(off);
        format!("clock of agent {number} {off}")
    }

    /// A worker was off for so long that its certificate has to be renewed at once, or has expired: then it joins
    /// again as what it was.
    fn months_off(&mut self) -> String {
        self.await_rotation();
        let number = self.rng.random_range(2..=3);
        let (has_expired, agent) = (self.rng.random_bool(0.5), self.swarm.agent(number));
        let renewals = || agent.log().matches("this node's certificate was renewed").count();
        let before = renewals();
        [1, number].iter().for_each(|number| self.swarm.agent(*number).kill());
        let days = if has_expired { 300 } else { 80 };
        shift_certificate(self.swarm.agent(1), agent, -time::Duration::days(days));
        [1, number].iter().for_each(|number| self.start(*number));
        if has_expired {
            self.join_again(number);
        } else {
            assert!(eventually(PATIENCE, || renewals() > before), "{}", agent.log());
        }
        format!("agent {number} off, with a certificate that was issued {days} days ago")
    }

    /// A worker becomes a manager, or a manager a worker unless it is the last.
    fn change_role(&mut self, number: usize) -> String {
        let id = self.id(number);
        let (command, role) = if !self.managers.contains(&number) {
            ("promote", Role::Manager)
        } else if self.managers.len() > 1 {
            ("demote", Role::Worker)
        } else {
            return format!("agent {number} is the last manager");
        };
        self.manage(&["node", command, &id], |nodes| {
            nodes.nodes.iter().any(|listed| listed.node.id.as_str() == id && listed.node.role == role)
        });
        match role {
            Role::Manager => self.managers.insert(number),
            Role::Worker => self.managers.remove(&number),
        };
        format!("{command} of agent {number}")
    }

    /// One member of etcd dies, or all of them do, and something happens meanwhile.
    fn kill_etcd(&mut self) -> String {
        let lasts = Duration::from_millis(self.rng.random_range(500..4_000));
        let all = [0, 1, 2];
        let index = self.rng.random_range(0..all.len());
        let dead = if self.rng.random_bool(0.4) { &all[..] } else { &all[index..=index] };
        let number = self.any_number();
        let etcd = self.etcd.as_mut().expect("the state is there");
        dead.iter().for_each(|index| etcd.kill(*index));
        let ended = boot_time() + lasts;
        let attached = self.attach(number, "red");
        let index = self.attached.iter().position(|held| held.number != number);
        let gone = index.map(|index| self.attached.swap_remove(index).attached.container.name().to_owned());
        std::thread::sleep(ended.since(boot_time()));
        let etcd = self.etcd.as_mut().expect("the state is there");
        dead.iter().for_each(|index| etcd.restart(*index));
        dead.iter().for_each(|index| etcd.wait_for(*index));
        format!("members {dead:?} of etcd dead for {lasts:?}, meanwhile {attached}, the end of {gone:?}")
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

    /// A manager is dead, or hangs, for longer than a session may be silent, and something happens meanwhile.
    fn outage(&mut self) -> String {
        let lasts = Duration::from_millis(self.rng.random_range(2_500..5_000));
        let hangs = self.rng.random_bool(0.5);
        let managers: Vec<_> = self.managers.iter().copied().collect();
        let manager = managers[self.rng.random_range(0..managers.len())];
        if hangs {
            self.swarm.agent(manager).signal(Signal::STOP);
        } else {
            self.swarm.agent(manager).kill();
        }
        let ended = boot_time() + lasts;
        let index = self.attached.iter().position(|held| held.number != manager);
        let gone = index.map(|index| self.attached.swap_remove(index).attached.container.name().to_owned());
        let (number, is_killed) = (self.another_than(manager), self.rng.random_bool(0.5));
        let killed = is_killed.then(|| self.kill(number));
        std::thread::sleep(ended.since(boot_time()));
        if hangs {
            self.swarm.agent(manager).signal(Signal::CONT);
        } else {
            self.start(manager);
        }
        let what = if hangs { "hangs" } else { "is dead" };
        format!("manager {manager} {what} for {lasts:?}, meanwhile the end of {gone:?}, {killed:?}")
    }

    /// The root is replaced, while the steps that follow go on, unless it is being replaced.
    fn rotate(&self) -> String {
        let done = self.manager().command().args(["ca", "rotate", "--detach"]).output().unwrap();
        format!("rotation of the root: {}", done.status)
    }

    fn label(&self, number: usize, flag: &str, label: &str) {
        let id = self.id(number);
        let key = label.split('=').next().expect("a key");
        self.manage(&["node", "update", &id, flag, label], |nodes| {
            let profile =
                nodes.nodes.iter().find(|listed| listed.node.id.as_str() == id).map(|listed| &listed.profile);
            profile.is_some_and(|profile| profile.labels.contains_key(key) == (flag == "--label-add"))
        });
    }

    /// Has a manager do something, soon: where the answer is lost, it may be done already.
    fn manage(&self, command: &[&str], is_done: impl Fn(&ListNodesResponse) -> bool) {
        let done = || {
            self.managers.iter().map(|number| self.swarm.agent(*number)).any(|manager| {
                manager.command().args(command).output().unwrap().status.success()
                    || manager.try_ask(&["node", "ls"]).is_some_and(|listed| is_done(&listed))
            })
        };
        assert!(eventually(PATIENCE, done), "{command:?}: {}", self.manager().log());
    }

    fn manager(&self) -> &Agent {
        self.swarm.agent(*self.managers.first().expect("there is always one"))
    }

    fn numbers(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.form.nodes()
    }

    fn any_number(&mut self) -> usize {
        self.rng.random_range(self.numbers())
    }

    fn another_than(&mut self, number: usize) -> usize {
        let other = self.rng.random_range(1..self.form.nodes());
        other + usize::from(other >= number)
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
        let id = self.id(3);
        if self.managers.len() == 1 && self.managers.contains(&3) {
            return format!("node {id} is the last manager");
        }
        self.managers.remove(&3);
        self.manage(&["node", "rm", "--force", &id], |nodes| {
            !nodes.nodes.iter().any(|listed| listed.node.id.as_str() == id)
        });
        self.swarm.agent(3).done(&["leave", "--force"]);
        self.attached.retain(|held| held.number != 3);
        self.join_again(3);
        self.label(3, "--label-add", "zone=a");
        self.attach(3, "red");
        format!("node {id} removed, and a new one joined")
    }

    fn join_again(&self, number: usize) {
        let mut said = String::new();
        let joins = || {
            // Where the root is being replaced, a token may be void as soon as it is printed.
            let token = self.manager().try_ask::<TokenResponse>(&["token", &Role::Worker.to_string()]);
            let Some(TokenResponse { token, manager, .. }) = token else { return false };
            let join = ["join", "--token", &token, &manager.to_string()];
            let done = self.swarm.agent(number).command().args(join).output().unwrap();
            said = String::from_utf8_lossy(&done.stderr).into_owned();
            done.status.success()
        };
        assert!(eventually(PATIENCE, joins), "{said}\n{}", self.swarm.agent(number).log());
    }

    fn id(&self, number: usize) -> String {
        self.swarm.agent(number).status().cluster.unwrap().node.id.to_string()
    }

    fn await_rotation(&self) {
        let rotation = || self.manager().try_ask::<CaStatusResponse>(&["ca", "status"]);
        let is_over =
            eventually(Duration::from_secs(20), || rotation().is_some_and(|ca| ca.rotation.is_none()));
        assert!(is_over, "{:?}", rotation());
    }

    fn settle(&self, seed: u64) {
        self.await_equal(seed);
        self.await_rotation();
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
        for agent in self.numbers().map(|number| self.swarm.agent(number)) {
            let is_equal = || agent.command().args(["status", "--verify"]).output().unwrap().status.success();
            let in_time = eventually(SOON.saturating_sub(boot_time().since(now)), is_equal);
            let took = boot_time().since(now);
            assert!(in_time && took < SOON, "agent {}, {took:?}:\n{}", agent.number, agent.verification());
        }
        tell(&format!("seed {seed}: all equal after {:?}", boot_time().since(now)));
    }
}

/// What can happen in one step.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Attach,
    Detach,
    EndContainer,
    Kill,
    KillTwo,
    KillAttaching,
    KillDetaching,
    Restart,
    CutTcp,
    Rekey,
    TakeLabel,
    ReplaceAddress,
    Partition,
    Outage,
    RotateRoot,
    Rejoin,
    MoveClock,
    MonthsOff,
    ChangeRole,
    KillEtcd,
}

/// Those of every form; attaching twice as often, as much ends.
const KINDS: &[Kind] = &[
    Kind::Attach,
    Kind::Attach,
    Kind::Detach,
    Kind::EndContainer,
    Kind::Kill,
    Kind::KillTwo,
    Kind::KillAttaching,
    Kind::KillDetaching,
    Kind::Restart,
    Kind::CutTcp,
    Kind::Rekey,
    Kind::TakeLabel,
    Kind::ReplaceAddress,
    Kind::Partition,
    Kind::Outage,
    Kind::RotateRoot,
    Kind::Rejoin,
    Kind::MoveClock,
];
/// For what every manager that is asked does soon, whatever happened before.
const PATIENCE: Duration = Duration::from_secs(10);
const NETWORKS: [&str; 3] = ["red", "green", "plain"];
