//! A real etcd (Debian's `etcd-server`) of one or more members, which ends with the test.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// The members. They end with it, and whatever ends the test ends them.
pub(crate) struct Etcd {
    members: Vec<Member>,
    dir: TempDir,
    tls: Option<Tls>,
}

/// Where a member runs.
pub(crate) struct Place {
    /// Its address.
    pub(crate) ip: IpAddr,
    /// Starts a command there, like `|command| host.spawn(command)`.
    pub(crate) spawn: Box<dyn Fn(Command) -> io::Result<Child> + Send + Sync>,
}

/// The certificate that members show, and by what they know their clients; PEM files.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// Signed those of the clients.
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

struct Member {
    place: Place,
    client_port: u16,
    peer_port: u16,
    /// [`KEEPER`], with etcd as its child.
    keeper: Option<Child>,
}

impl Etcd {
    /// One member on this machine, answering.
    pub(crate) fn start() -> Self {
        let etcd = Self::at(vec![Place::here()], None);
        etcd.wait();
        etcd
    }

    /// One member on this machine that speaks TLS alone and wants clients with certificates.
    pub(crate) fn start_tls(tls: Tls) -> Self {
        let etcd = Self::at(vec![Place::here()], Some(tls));
        etcd.wait();
        etcd
    }

    /// A member at each place; they answer a while later.
    pub(crate) fn at(places: Vec<Place>, tls: Option<Tls>) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let mut ports = free_ports(2 * places.len()).into_iter();
        let mut port = || ports.next().expect("two for each");
        let members = places.into_iter().map(|place| Member {
            client_port: port(),
            peer_port: port(),
            place,
            keeper: None,
        });
        let mut etcd = Self { members: members.collect(), dir, tls };
        (0..etcd.members.len()).for_each(|index| etcd.restart(index));
        etcd
    }

    /// `etcd://HOST:PORT,...`, without a prefix.
    pub(crate) fn url(&self) -> String {
        let members = self.members.iter().map(Member::client);
        format!("etcd://{}", members.collect::<Vec<_>>().join(","))
    }

    /// `HOST:PORT` of a member.
    pub(crate) fn client(&self, index: usize) -> String {
        self.members[index].client()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, index: usize) {
        if let Some(mut keeper) = self.members[index].keeper.take() {
            let mut told = keeper.stdin.take().expect("it was piped");
            told.write_all(b"kill\n").expect("the keeper listens");
            keeper.wait().expect("it is ours");
        }
    }

    /// Starts a member that was killed, with the data that it had.
    pub(crate) fn restart(&mut self, index: usize) {
        self.kill(index);
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let peer = |index: usize, member: &Member| {
            format!("m{index}=http://{}", SocketAddr::new(member.place.ip, member.peer_port))
        };
        let peers: Vec<_> =
            self.members.iter().enumerate().map(|(index, member)| peer(index, member)).collect();
        let member = &self.members[index];
        let clients = format!("{scheme}://{}", member.client());
        let own = peers[index].split_once('=').map(|(_, url)| url.to_owned()).expect("name=url");
        let mut command = Command::new("sh");
        command
            .args(["-c", KEEPER, "sh"])
            .arg(self.dir.path())
            .args(["etcd", "--name", &format!("m{index}"), "--data-dir"])
            .arg(self.data_dir(index))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &own, "--initial-advertise-peer-urls", &own])
            .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"])
            .args(["--logger", "zap", "--log-level", "error"]);
        if let Some(Tls { ca, certificate, key }) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = (member.place.spawn)(command).expect("a shell");
        self.members[index].keeper = Some(keeper);
    }

    /// Another one, of one member, with a copy of the data that was kept of the first member.
    pub(crate) fn copy_of_kept(&self) -> Self {
        let mut other = Self::at(vec![Place::here()], None);
        other.kill(0);
        copy(&self.kept(0), &other.data_dir(0));
        other.restart(0);
        other.wait();
        other
    }

    /// Keeps a copy of the data of a member that was killed.
    pub(crate) fn keep(&self, index: usize) {
        copy(&self.data_dir(index), &self.kept(index));
    }

    /// Starts a member with the data that was kept of it, in place of those that it has.
    pub(crate) fn go_back(&mut self, index: usize) {
        self.kill(index);
        copy(&self.kept(index), &self.data_dir(index));
        self.restart(index);
        self.wait_for(index);
    }

    /// Runs `etcdctl` against the first member.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.try_ctl(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "etcdctl {arguments:?}: {out}{err}");
        out.into_owned()
    }

    fn try_ctl(&self, arguments: &[&str]) -> Output {
        self.ask(0, arguments)
    }

    fn ask(&self, index: usize, arguments: &[&str]) -> Output {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &format!("{scheme}://{}", self.client(index))]);
        if let Some(Tls { ca, certificate, key }) = &self.tls {
            command.arg("--cacert").arg(ca).arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let running = (self.members[index].place.spawn)(command).expect("etcdctl, of Debian's etcd-client");
        running.wait_with_output().expect("it is ours")
    }

    /// All bytes that a member has on its disk.
    pub(crate) fn bytes(&self, index: usize) -> Vec<u8> {
        let mut all = Vec::new();
        collect(&self.data_dir(index), &mut all);
        all
    }

    /// Waits until the first member answers and has a leader.
    pub(crate) fn wait(&self) {
        self.wait_for(0);
    }

    /// Waits until a member answers and has a leader.
    pub(crate) fn wait_for(&self, index: usize) {
        for _ in 0..ATTEMPTS {
            if self.ask(index, &["endpoint", "health"]).status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("member {index} of etcd does not start");
    }

    /// Waits until a member says that it is the leader, and names it.
    pub(crate) fn leader(&self) -> usize {
        for _ in 0..ATTEMPTS {
            if let Some(leader) = (0..self.members.len()).find(|index| self.leads(*index)) {
                return leader;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("etcd has no leader");
    }

    fn leads(&self, index: usize) -> bool {
        let said = self.ask(index, &["endpoint", "status", "--write-out=json"]).stdout;
        let said: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
        let status = &said[0]["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
    }

    fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("m{index}"))
    }

    fn kept(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("m{index}.kept"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|index| self.kill(index));
    }
}

impl Place {
    /// This machine, in the namespace of the test.
    pub(crate) fn here() -> Self {
        Self { ip: Ipv4Addr::LOCALHOST.into(), spawn: Box::new(|mut command| command.spawn()) }
    }

    /// In the network namespace of a host of the laboratory, at one of its addresses.
    pub(crate) fn within(namespace: &Path, ip: IpAddr) -> Self {
        let enter = format!("--net={}", namespace.display());
        let spawn = move |command: Command| {
            let mut entered = Command::new("nsenter");
            entered.arg(&enter).arg(command.get_program()).args(command.get_args());
            entered.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            entered.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        };
        Self { ip, spawn: Box::new(spawn) }
    }
}

impl Member {
    fn client(&self) -> String {
        SocketAddr::new(self.place.ip, self.client_port).to_string()
    }
}

/// Kills etcd when it is told so, and when the test has ended in whatever way, and then its data too.
const KEEPER: &str = r#"
    dir=$1; shift
    "$@" >/dev/null 2>&1 & etcd=$!
    read -r word
    kill -9 "$etcd"; wait "$etcd"
    test "$word" = kill || rm -rf -- "$dir"
"#;

/// Each of which takes 50 ms and more.
const ATTEMPTS: u32 = 400;

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("it is ours");
    }
    let done = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(done.success(), "no copy of {}", from.display());
}

/// So many, each another one: members may be at one address.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    let listeners: Vec<_> = listeners.collect();
    listeners.iter().map(|listener| listener.local_addr().expect("an address").port()).collect()
}

fn collect(dir: &Path, all: &mut Vec<u8>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, all);
        } else {
            all.extend(std::fs::read(&path).expect("a file"));
        }
    }
}
