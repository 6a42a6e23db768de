//! Hosts of the laboratory with the real agent on each, driven by its real command line.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::api::types::{
    AttachResponse, InitResponse, InspectNetworkResponse, JoinResponse, PeerState, PeersResponse,
    StatsResponse, StatusResponse,
};
use overlayd::cluster::Endpoint;
use overlayd::drop_reason::DropReason;
use overlayd::id::{IfName, MacAddr};
use overlayd::lab::{Capture, Container, Host, Lab, Ping, Underlay, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

/// Hosts with an agent on each.
pub(crate) struct Swarm {
    pub(crate) agents: Vec<Agent>,
    pub(crate) lab: Lab,
    /// In the laboratory's `/run`, so that nothing of it outlives the test.
    dir: tempfile::TempDir,
}

/// Which addresses of the hosts the nodes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The address of a host on the underlay.
    pub(crate) fn of(self, host: &Host) -> IpAddr {
        match self {
            Self::V4 => host.v4(),
            Self::V6 => host.v6(),
        }
    }
}

impl Swarm {
    /// Hosts with agents that are in no cluster.
    pub(crate) fn unformed(hosts: u8, underlay: Underlay) -> Self {
        Self::unformed_with(hosts, underlay, &[])
    }

    /// Hosts whose agents do not run yet.
    pub(crate) fn idle(hosts: u8, underlay: Underlay) -> Self {
        let lab = Lab::hosts(hosts, underlay).unwrap();
        let dir = tempfile::tempdir_in("/run").unwrap();
        let agents = (1..=usize::from(hosts)).map(|number| Agent::new(dir.path(), number)).collect();
        Self { agents, lab, dir }
    }

    /// As [`Self::unformed`], with more flags for the agents.
    pub(crate) fn unformed_with(hosts: u8, underlay: Underlay, flags: &[&str]) -> Self {
        let swarm = Self::idle(hosts, underlay);
        for agent in &swarm.agents {
            agent.spawn(swarm.host(agent), flags);
        }
        for agent in &swarm.agents {
            agent.await_ready();
        }
        swarm
    }

    /// As [`Self::unformed`], with a configuration, which the agents read when they start.
    pub(crate) fn unformed_configured(hosts: u8, underlay: Underlay, config: &str) -> Self {
        let file = tempfile::NamedTempFile::new_in("/run").unwrap();
        std::fs::write(&file, config).unwrap();
        Self::unformed_with(hosts, underlay, &["--config", file.path().to_str().unwrap()])
    }

    /// Hosts in one cluster whose manager is agent 1.
    pub(crate) fn formed(hosts: u8, family: Family, underlay: Underlay) -> Self {
        let swarm = Self::unformed(hosts, underlay);
        let init = swarm.init(family);
        for number in 2..=swarm.agents.len() {
            swarm.join(number, &init);
        }
        swarm
    }

    /// Two hosts in one cluster over IPv4.
    pub(crate) fn pair() -> Self {
        Self::formed(2, Family::V4, Underlay::default())
    }

    /// Makes agent 1 a manager.
    pub(crate) fn init(&self, family: Family) -> InitResponse {
        self.init_on(1, family)
    }

    /// Makes an agent the manager of a cluster.
    pub(crate) fn init_on(&self, number: usize, family: Family) -> InitResponse {
        let address = family.of(self.lab.host(number)).to_string();
        self.agent(number).ask(&["init", "--advertise-addr", &address])
    }

    /// Lets an agent join.
    pub(crate) fn join(&self, number: usize, to: &InitResponse) -> JoinResponse {
        self.agent(number).ask(&["join", "--token", &to.worker_token, &to.manager.to_string()])
    }

    /// The agent of the host with this number, 1 and on.
    pub(crate) fn agent(&self, number: usize) -> &Agent {
        &self.agents[number - 1]
    }

    pub(crate) fn host(&self, agent: &Agent) -> &Host {
        self.lab.host(agent.number)
    }

    /// A directory that goes with the test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Makes an encrypted network of both families.
    pub(crate) fn create_encrypted(&self, name: &str) {
        self.create(&["--encrypted", "--subnet", V4_SUBNET, "--subnet", V6_SUBNET, name]);
    }

    /// Makes a network on the manager.
    pub(crate) fn create(&self, arguments: &[&str]) {
        self.agent(1).done(&[&["create"], arguments].concat());
    }

    /// Makes a container on an agent's host and attaches it.
    pub(crate) fn attach(&self, number: usize, network: &str, container: &str) -> Attached {
        self.attach_with(number, network, container, &[])
    }

    /// As [`Self::attach`], with more flags.
    pub(crate) fn attach_with(
        &self,
        number: usize,
        network: &str,
        container: &str,
        flags: &[&str],
    ) -> Attached {
        let container = self.lab.host(number).container(container).unwrap();
        let command = [&["attach", network, "--netns", container.name()], flags].concat();
        let response = self.agent(number).ask(&command);
        Attached { container, response }
    }

    /// Attaches a container of host 2 to one more network.
    pub(crate) fn attach_again(&self, to: &Attached, network: &str, ifname: &str) -> AttachResponse {
        self.agent(2).ask(&["attach", network, "--netns", to.container.name(), "--ifname", ifname])
    }

    /// Attaches a container that sends nothing by itself: without IPv6 it has no groups to report.
    pub(crate) fn attach_quietly(&self, number: usize, network: &str, name: &str) -> Attached {
        let container = self.lab.host(number).container(name).unwrap();
        container
            .run_in(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap())
            .unwrap();
        let response = self.agent(number).ask(&["attach", network, "--netns", name]);
        Attached { container, response }
    }

    /// An encrypted network `red` with a container on each host, keys in use.
    pub(crate) fn with_containers(self) -> (Self, Vec<Attached>) {
        self.create_encrypted("red");
        let containers: Vec<_> =
            (1..=self.agents.len()).map(|number| self.attach(number, "red", &format!("c{number}"))).collect();
        self.await_keys(self.agents.len() - 1);
        (self, containers)
    }

    /// Waits until every agent has keys for `links` links and for no more.
    pub(crate) fn await_keys(&self, links: usize) {
        for agent in &self.agents {
            agent.await_keys(links);
        }
    }

    /// Pings until a series is complete, for at most `timeout`; both families.
    pub(crate) fn assert_reaches(&self, from: &Attached, to: &Attached, timeout: Duration) {
        for address in to.addresses() {
            let reached = eventually(timeout, || from.pings(address, 3));
            assert!(reached, "{} does not reach {address}\n{}", from.container.name(), self.drops());
        }
    }

    /// Both ways, both families.
    pub(crate) fn assert_joined(&self, one: &Attached, other: &Attached) {
        self.assert_reaches(one, other, Duration::from_secs(10));
        self.assert_reaches(other, one, Duration::from_secs(10));
    }

    /// Starts an agent again as it was started first.
    pub(crate) fn start(&self, number: usize) {
        let agent = self.agent(number);
        agent.spawn(self.host(agent), &[]);
        agent.await_ready();
    }

    /// Captures the underlay at a host.
    pub(crate) fn capture(&self, number: usize) -> Capture {
        self.lab.host(number).capture().unwrap()
    }

    pub(crate) fn drops(&self) -> String {
        let drops = self.agents.iter().map(|agent| {
            let drops = agent.try_ask::<StatsResponse>(&["stats"]).map(|stats| stats.drops);
            format!("agent {}: {drops:?}\n", agent.number)
        });
        drops.collect()
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Whatever was lived through, no lane had anything else than it was given.
            for agent in &self.agents {
                let log = std::fs::read_to_string(agent.log_file()).unwrap_or_default();
                assert!(!log.contains("a lane was mended"), "agent {} said:\n{log}", agent.number);
            }
            return;
        }
        for agent in &self.agents {
            let log = std::fs::read_to_string(agent.log_file()).unwrap_or_default();
            let _ = writeln!(io::stderr(), "--- agent {} said:\n{log}", agent.number);
        }
    }
}

/// The agent of one host: its files, and its process while it runs.
pub(crate) struct Agent {
    pub(crate) number: usize,
    pub(crate) dir: PathBuf,
    pub(crate) socket: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Agent {
    /// An agent that does not run yet, with its files in `dir`.
    pub(crate) fn new(dir: &Path, number: usize) -> Self {
        let dir = dir.join(format!("agent{number}"));
        std::fs::create_dir(&dir).unwrap();
        let socket = dir.join("agent.sock");
        Self { number, dir, socket, process: Mutex::default() }
    }

    /// The file of `--esp-key-log`.
    pub(crate) fn key_log(&self) -> PathBuf {
        self.dir.join("esp_sa")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap()
    }

    /// Starts it on a host, with more flags if given, and does not wait.
    pub(crate) fn spawn(&self, host: &Host, flags: &[&str]) {
        self.spawn_in(host, flags, &[]);
    }

    /// As [`Self::spawn`], in another environment.
    pub(crate) fn spawn_in(&self, host: &Host, flags: &[&str], environment: &[(&str, &Path)]) {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.command();
        command.arg("agent").arg("--state-dir").arg(self.state_dir());
        command.arg("--esp-key-log").arg(self.key_log());
        command.envs(environment.iter().copied());
        command.args(flags).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = host.spawn(command).unwrap();
        let before = self.lock().replace(child);
        assert!(before.is_none_or(|mut child| child.try_wait().unwrap().is_some()), "it runs already");
    }

    /// Waits until it answers.
    pub(crate) fn await_ready(&self) {
        let answers = || {
            if let Some(status) = self.exit_status() {
                panic!("agent {} ended: {status}\n{}", self.number, self.log());
            }
            self.command().arg("status").output().unwrap().status.success()
        };
        assert!(eventually(PATIENCE, answers), "agent {} does not answer", self.number);
    }

    /// How its process ended, if it did.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        self.lock().as_mut().expect("it was started").try_wait().unwrap()
    }

    /// How long its lanes have been ready to run, but had no processor.
    pub(crate) fn lanes_waited(&self) -> Duration {
        self.lane_schedules().into_iter().map(|[_, waited, _]| Duration::from_nanos(waited)).sum()
    }

    /// How often each of its lanes was given a processor.
    pub(crate) fn lane_runs(&self) -> Vec<u64> {
        self.lane_schedules().into_iter().map(|[.., runs]| runs).collect()
    }

    /// Nanoseconds that each of its lanes ran and waited for a processor, and how often it got one
    /// (Documentation/scheduler/sched-stats.rst).
    fn lane_schedules(&self) -> Vec<[u64; 3]> {
        let process = self.lock().as_ref().expect("it was started").id();
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let read = |task: &Path, file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let lanes = tasks.map(|task| task.unwrap().path()).filter(|t| read(t, "comm").starts_with("lane-"));
        let schedule = |lane: PathBuf| {
            let text = read(&lane, "schedstat");
            let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
            numbers.try_into().expect("three numbers")
        };
        lanes.map(schedule).collect()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let process = self.lock();
        let child = process.as_ref().expect("it was started");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// `kill -9`, and waits until it is dead.
    pub(crate) fn kill(&self) {
        self.kill_without_waiting().wait().unwrap();
    }

    /// Kills it; it is ending when this returns.
    pub(crate) fn kill_without_waiting(&self) -> Child {
        let mut child = self.lock().take().expect("it was started");
        child.kill().unwrap();
        child
    }

    /// Waits for its end.
    pub(crate) fn await_exit(&self, timeout: Duration) -> Option<ExitStatus> {
        let mut status = None;
        eventually(timeout, || {
            status = self.exit_status();
            status.is_some()
        });
        status
    }

    /// A command of its command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(OVERLAYD);
        command.arg("--socket").arg(&self.socket).env_remove("OVERLAYD_SOCKET");
        command
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs a command, which must succeed, and gives what it prints.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "agent {}: {arguments:?}: {said}", self.number);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command with `--json`, which must succeed.
    pub(crate) fn ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let text = self.done(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// As [`Self::ask`]; `None` when it fails.
    pub(crate) fn try_ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> Option<T> {
        let output = self.command().arg("--json").args(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Runs a command that must be refused with exit code 1, and gives its message.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        refused(self.command().args(arguments), 1)
    }

    pub(crate) fn status(&self) -> StatusResponse {
        self.ask(&["status"])
    }

    /// What `overlayd status --verify` prints.
    pub(crate) fn verification(&self) -> String {
        let output = self.command().args(["status", "--verify"]).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    pub(crate) fn peers(&self) -> PeersResponse {
        self.ask(&["peers"])
    }

    pub(crate) fn stats(&self) -> StatsResponse {
        self.ask(&["stats"])
    }

    pub(crate) fn inspect(&self, network: &str) -> InspectNetworkResponse {
        self.ask(&["inspect", network])
    }

    /// How many packets it has dropped for a reason.
    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.stats().drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.packets).sum()
    }

    /// Frames that it has delivered to the containers of its host.
    pub(crate) fn delivered(&self) -> u64 {
        self.stats().endpoints.iter().map(|endpoint| endpoint.received.packets).sum()
    }

    /// Packets that came from the peers. Unlike those that were delivered,
    /// they are counted one by one: packets of a flow may reach a container in one piece.
    pub(crate) fn received(&self) -> u64 {
        self.stats().peers.iter().map(|peer| peer.received.packets).sum()
    }

    /// Waits until it has received `packets` more than `before`, and receives no more.
    pub(crate) fn await_received(&self, before: u64, packets: u64) {
        let mut last = before;
        let is_done = || {
            let now = self.received();
            let is_quiet = std::mem::replace(&mut last, now) == now;
            std::thread::sleep(Duration::from_millis(100));
            is_quiet && now >= before + packets
        };
        assert!(eventually(PATIENCE, is_done), "{:?}", self.stats());
    }

    /// Waits until it has keys for `links` links and waits for no others.
    pub(crate) fn await_keys(&self, links: usize) {
        let mut peers = None;
        let done = eventually(PATIENCE, || {
            let now: Option<PeersResponse> = self.try_ask(&["peers"]);
            let ready = now.as_ref().is_some_and(|now| {
                let keyed = || now.peers.iter().filter(|peer| peer.state != PeerState::Plain);
                keyed().count() == links && keyed().all(|peer| peer.state == PeerState::Established)
            });
            peers = now;
            ready
        });
        assert!(done, "agent {} has no keys: {peers:#?}", self.number);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap()
    }
}

/// A container with an interface in a network.
pub(crate) struct Attached {
    pub(crate) container: Container,
    pub(crate) response: AttachResponse,
}

impl Attached {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.response.endpoint
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoint().addresses.iter().map(IpNet::addr)
    }

    /// Its address of a family.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        self.addresses().find(|address| address.is_ipv4() == (family == Family::V4)).unwrap()
    }

    pub(crate) fn mac(&self) -> MacAddr {
        self.endpoint().mac
    }

    pub(crate) fn ifname(&self) -> &IfName {
        &self.response.ifname
    }

    /// Whether every one of some pings is answered; gives up at the first that is not.
    pub(crate) fn pings(&self, to: IpAddr, count: u16) -> bool {
        let once = Ping { count: 1, timeout: Duration::from_millis(500), ..Ping::default() };
        (0..count).all(|_| self.ping(to, &once))
    }

    /// Whether a series is answered.
    pub(crate) fn ping(&self, to: IpAddr, ping: &Ping) -> bool {
        ping.run(self.container.namespace(), to).unwrap().is_complete()
    }

    /// Pings again and again until it is done; how many were sent and answered.
    pub(crate) fn pings_until(&self, done: &AtomicBool, to: &Self, interval: Duration) -> (usize, usize) {
        let series = Ping { count: 50, interval, ..Ping::default() };
        let (mut sent, mut received) = (0, 0);
        while !done.load(Ordering::Relaxed) {
            let report = series.run(self.container.namespace(), to.address(Family::V4)).unwrap();
            sent += usize::try_from(report.sent).unwrap();
            received += report.received();
        }
        (sent, received)
    }

    /// Frames for which the queue of its interface had no room, by its own kernel's count.
    pub(crate) fn tx_dropped(&self) -> u64 {
        self.interface_counts()[11]
    }

    /// Octets of payload that its interface has received, and super-frames in one piece, if each has so
    /// many octets of headers.
    pub(crate) fn payload_received(&self, headers: u64) -> u64 {
        let counts = self.interface_counts();
        counts[0] - counts[1] * headers
    }

    /// What its own kernel counts of its interface: 8 numbers of what it received, 8 of what it sent.
    fn interface_counts(&self) -> Vec<u64> {
        // Of the reading thread's namespace, unlike /sys.
        let text = self.read("/proc/thread-self/net/dev");
        let name = format!("{}:", self.ifname());
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&name)).unwrap();
        line.split_whitespace().map(|count| count.parse().unwrap()).collect()
    }

    /// Datagrams that its programs were too slow for, by its own kernel's count.
    pub(crate) fn overflown(&self) -> usize {
        let text = self.read("/proc/thread-self/net/snmp");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        names.zip(values).find(|(name, _)| *name == "RcvbufErrors").unwrap().1.parse().unwrap()
    }

    /// A file as the container has it.
    pub(crate) fn read(&self, file: &str) -> String {
        self.container.run_in(|| std::fs::read_to_string(file).unwrap()).unwrap()
    }

    /// Captures its interface.
    pub(crate) fn capture(&self) -> Capture {
        Capture::start(self.container.namespace(), self.ifname()).unwrap()
    }
}

/// Runs a command that must end with an exit code, print nothing and say why.
pub(crate) fn refused(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    assert!(output.stdout.is_empty(), "{command:?} printed something");
    assert!(said.starts_with("overlayd: "), "{said}");
    said
}

/// The program under test.
pub(crate) const OVERLAYD: &str = env!("CARGO_BIN_EXE_overlayd");
pub(crate) const V4_SUBNET: &str = "10.77.0.0/24";
pub(crate) const V6_SUBNET: &str = "fd77::/64";
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
