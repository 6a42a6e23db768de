//! What the state file lives through: `kill -9` at any moment, torn and foreign files, a full disk.
//!
//! The victim is this program itself, started again with `VICTIM` set: it changes the state and
//! says so line by line. The parent kills it, opens what it left and compares that with a
//! reference that made the same changes undisturbed.

#[path = "state_crash/descriptors.rs"]
mod descriptors;
#[path = "support/etcd.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod etcd;

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use overlayd::cluster::{Membership, Node, Role, Subnet};
use overlayd::control::state::{
    AttachRequest, ClusterState, NewCluster, NewNetwork, SignPayload, StateError, Tokens,
};
use overlayd::control::store::local::{Attachment, AttachmentState, NetnsRef};
use overlayd::control::store::{EtcdAccess, KEY_FILE, STATE_FILE, SharedStore, Store, StoreError};
use overlayd::id::{ClusterId, EndpointId, NetworkName, NodeId};
use overlayd::membership::Signature;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use etcd::Etcd;

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(what) = env::var(VICTIM) {
        let mut arguments = env::args().skip(1);
        let dir = PathBuf::from(arguments.next().ok_or("a victim needs a directory")?);
        return match what.as_str() {
            "steps" => go_on_for_ever(&dir, arguments.next().ok_or("where to begin?")?.parse()?),
            "limit" => go_on_beside_a_limit(&dir),
            "move" => {
                move_to_etcd(&dir, &arguments.next().ok_or("where to?")?)?;
                writeln!(std::io::stdout().lock(), "moved")?;
                loop {
                    thread::park();
                }
            }
            "disk" => go_on_beside_a_filler(&dir),
            "descriptors" => descriptors::victim(&dir, &arguments.next().ok_or("where to?")?),
            other => Err(format!("{other} is no victim").into()),
        };
    }
    let trial = |name: &str, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok::<(), Failed>(())
        })
    };
    libtest_mimic::run(
        &Arguments::from_args(),
        vec![
            trial("every_acknowledged_change_survives_kill_9", killed_at_any_moment),
            trial("cluster_is_made_whole_or_not_at_all", killed_while_it_is_made),
            trial("every_acknowledged_change_in_etcd_survives_kill_9", killed_at_any_moment_over_etcd),
            trial("every_acknowledged_change_survives_kill_9_of_etcd", etcd_killed_at_any_moment),
            trial("kill_9_while_the_state_moves_to_etcd_leaves_one_truth", killed_while_it_moves),
            trial("move_to_etcd_that_runs_out_of_descriptors_changes_nothing", descriptors::moved),
            trial("truncated_file_is_an_error_and_kept", truncated),
            trial("file_with_a_broken_header_is_an_error_and_kept", broken_header),
            trial("file_of_something_else_is_an_error_and_kept", foreign),
            trial("altered_page_is_an_error_or_was_unused", altered_page),
            trial("file_that_may_not_grow_is_an_error_and_later_changes_work", limited_file),
            trial("full_disk_is_an_error_and_later_changes_work", full_disk),
        ],
    )
    .exit()
}

fn killed_at_any_moment() {
    let dir = new_dir();
    drop(Victim::create(dir.path()));
    kill_at_any_moment(&dir);
}

fn killed_at_any_moment_over_etcd() {
    let (etcd, dir) = (Etcd::start(), new_dir());
    drop(Victim::create_over(dir.path(), Some(&etcd.url())));
    kill_at_any_moment(&dir);
}

fn kill_at_any_moment(dir: &TempDir) {
    let reference_dir = new_dir();
    let mut reference = Victim::create(reference_dir.path());
    let mut done = 0;
    for round in 0..KILLS {
        let mut child = start("steps", dir.path(), done);
        // Every other round it is killed as soon as it starts; on a busy machine it does nothing then.
        let lines = if round % 2 == 0 { 0 } else { 3 };
        let wait = Duration::from_micros(rand::random_range(0..60_000));
        let acknowledged = lines_until_killed(&mut child, lines, wait);
        for line in &acknowledged {
            assert_eq!(*line, format!("done {done}"));
            reference.step(done).expect("the reference is undisturbed");
            done += 1;
        }

        let found = Victim::open(dir.path()).fingerprint();

        if found != reference.fingerprint() {
            // The step under way was written, only its acknowledgement was not.
            reference.step(done).expect("the reference is undisturbed");
            done += 1;
            assert_eq!(found, reference.fingerprint(), "round {round}, after {done} steps");
        }
    }
    assert!(done > KILLS, "only {done} steps in {KILLS} rounds");
}

fn etcd_killed_at_any_moment() {
    let (mut etcd, dir, reference_dir) = (Etcd::start(), new_dir(), new_dir());
    drop(Victim::create_over(dir.path(), Some(&etcd.url())));
    let mut child = start("steps", dir.path(), 0);
    let killed = thread::scope(|scope| {
        let reader = scope.spawn(|| lines_until_killed(&mut child, 400, Duration::from_millis(20)));
        let mut kills = 0;
        while !reader.is_finished() {
            thread::sleep(Duration::from_millis(rand::random_range(0..100)));
            etcd.kill(0);
            etcd.restart(0);
            etcd.wait();
            kills += 1;
        }
        (reader.join().expect("the reader"), kills)
    });
    let (acknowledged, kills) = killed;
    assert!(kills > 2, "etcd was killed {kills} times");
    let mut reference = Victim::create(reference_dir.path());
    for (done, line) in (0..).zip(&acknowledged) {
        assert_eq!(*line, format!("done {done}"));
        reference.step(done).expect("the reference is undisturbed");
    }
    let found = Victim::open(dir.path()).fingerprint();
    if found != reference.fingerprint() {
        reference
            .step(u32::try_from(acknowledged.len()).expect("few"))
            .expect("the reference is undisturbed");
        assert_eq!(found, reference.fingerprint());
    }
}

fn killed_while_it_moves() {
    let (etcd, reference_dir) = (Etcd::start(), new_dir());
    let mut reference = Victim::create(reference_dir.path());
    (0..STEPS).for_each(|n| reference.step(n).expect("the steps work"));
    let (mut moved, mut stayed) = (0, 0);
    for round in 0..MOVES {
        let dir = new_dir();
        let mut victim = Victim::create(dir.path());
        (0..STEPS).for_each(|n| victim.step(n).expect("the steps work"));
        drop(victim);
        let to = format!("{}/moved-{round}", etcd.url());
        let mut child = start_with("move", dir.path(), &to);
        // At the latest some time after it has moved.
        let lines = u32::from(round % 4 == 0);
        lines_until_killed(&mut child, lines, Duration::from_micros(rand::random_range(0..40_000)));

        let victim = Victim::open(dir.path());
        let truth = victim.state.shared_store();
        assert_eq!(victim.fingerprint(), reference.fingerprint(), "round {round}: {truth:?}");
        *(if truth.is_some() { &mut moved } else { &mut stayed }) += 1;
        drop(victim);
        // Whatever a killed attempt has left does not stand in the way of the next one.
        move_to_etcd(dir.path(), &to).expect("it moves");
        let mut victim = Victim::open(dir.path());
        assert!(victim.state.shared_store().is_some());
        assert_eq!(victim.fingerprint(), reference.fingerprint(), "round {round}");
        victim.step(STEPS).expect("it goes on");
    }
    assert!(moved > 0, "{moved} moved, {stayed} stayed");
}

/// The victim of [`killed_while_it_moves`].
fn move_to_etcd(dir: &Path, to: &str) -> Result<(), Box<dyn Error>> {
    let victim = Victim::open(dir);
    victim.state.relocate(&victim.store, SharedStore::new(access(to)))?;
    Ok(())
}

fn killed_while_it_is_made() {
    for _ in 0..KILLS {
        let dir = new_dir();
        let mut child = start("steps", dir.path(), 0);
        let wait = Duration::from_micros(rand::random_range(0..15_000));
        let acknowledged = lines_until_killed(&mut child, 0, wait);

        let store = Store::open_or_create(dir.path()).expect("a file that is whole, or none");

        let made = ClusterState::exists(&store).expect("a state that is whole");
        assert!(made || acknowledged.is_empty());
        if made {
            drop(store);
            Victim::open(dir.path());
        }
    }
}

fn truncated() {
    let state = state_fingerprint();
    for crashed in [false, true] {
        let (whole, key) = state_file(crashed);
        let mut lengths: Vec<_> = (0..whole.len()).step_by(1024).collect();
        lengths.extend([1, 5, 9, 63, 64, 65, 320, 4095, 4097, whole.len() - 1]);
        let refusals = lengths.iter().filter(|&&length| !keeps_state(&whole[..length], &key, &state)).count();
        // What a crash leaves may end in a page that was never used.
        assert!(refusals + 4 > lengths.len(), "only {refusals} of {} lengths were refused", lengths.len());
    }
}

fn broken_header() {
    for crashed in [false, true] {
        let (whole, _) = state_file(crashed);
        for (from, to) in [(0, 8), (0, 64), (0, 320), (0, 4096), (9, 64), (64, 320)] {
            let mut broken = whole.clone();
            broken[from..to].iter_mut().for_each(|byte| *byte ^= 0x5a);
            let message = refused(&broken);
            assert!(message.contains("overlayd.redb"), "{from}..{to}: {message}");
        }
    }
}

fn foreign() {
    let text = refused(b"[agent]\nsocket = \"/run/overlayd/agent.sock\"\n");
    assert!(text.contains("is not a state file of overlayd"), "{text}");
    let zeros = refused(&[0; 65_536]);
    assert!(zeros.contains("is not a state file of overlayd"), "{zeros}");
    let empty = refused(b"");
    assert!(empty.contains("is damaged"), "{empty}");

    let dir = new_dir();
    fs::create_dir(dir.path().join(STATE_FILE)).expect("a directory in its place");
    assert!(Store::open_or_create(dir.path()).is_err());
    let dir = new_dir();
    std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join(STATE_FILE)).expect("a dangling link");
    assert!(Store::open_or_create(dir.path()).is_err());
}

fn altered_page() {
    let state = state_fingerprint();
    for crashed in [false, true] {
        let (whole, key) = state_file(crashed);
        let altered = |offset: usize| {
            let mut altered = whole.clone();
            altered[offset] ^= 0x10;
            altered
        };
        let refusals =
            (4096..whole.len()).step_by(509).filter(|&at| !keeps_state(&altered(at), &key, &state)).count();
        assert!(refusals > 10, "only {refusals} alterations were noticed");
    }
}

/// Whether `bytes` is taken for a state file beside its key file; then it holds all that was ever
/// acknowledged.
fn keeps_state(bytes: &[u8], key: &[u8], state: &(String, String)) -> bool {
    let dir = new_dir();
    let path = dir.path().join(STATE_FILE);
    fs::write(&path, bytes).expect("a file");
    fs::write(dir.path().join(KEY_FILE), key).expect("a file");
    match Store::open_or_create(dir.path()) {
        Ok(store) => {
            assert_eq!(Victim::over(store).fingerprint(), *state, "{} bytes were not enough", bytes.len());
            true
        }
        Err(StoreError::Damaged { file, .. }) => {
            assert_eq!((&file, fs::read(&file).expect("the file").len()), (&path, bytes.len()));
            false
        }
        Err(other) => panic!("{} bytes: {other}", bytes.len()),
    }
}

fn limited_file() {
    let dir = new_dir();
    // A process that ignores SIGXFSZ gets EFBIG instead; the shell passes the ignoring on.
    succeeds(Command::new("sh").args(["-c", "trap '' XFSZ; exec \"$0\" \"$1\""]), "limit", dir.path());
}

fn full_disk() {
    let dir = new_dir();
    let script = "mount -t tmpfs -o size=2m overlayd \"$1\" && exec \"$0\" \"$1\"";
    let mut unshare = Command::new("unshare");
    succeeds(unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]), "disk", dir.path());
}

fn succeeds(command: &mut Command, what: &str, dir: &Path) {
    let victim = env::current_exe().expect("this program");
    let output = command.arg(victim).arg(dir).env(VICTIM, what).output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
}

/// The victim of [`limited_file`]: its files may not grow any more, nor be written near their end.
fn go_on_beside_a_limit(dir: &Path) -> Result<(), Box<dyn Error>> {
    let unlimited = getrlimit(Resource::Fsize);
    let limit = || {
        let size = fs::metadata(dir.join(STATE_FILE))?.len();
        let limit = Rlimit { current: Some(size - size / 8), maximum: unlimited.maximum };
        Ok(setrlimit(Resource::Fsize, limit)?)
    };
    fill_up_and_go_on(dir, limit, || Ok(setrlimit(Resource::Fsize, unlimited)?))
}

/// The victim of [`full_disk`]: another file takes what is left of the disk.
fn go_on_beside_a_filler(dir: &Path) -> Result<(), Box<dyn Error>> {
    let filler = dir.join("filler");
    let fill = || {
        let mut file = fs::File::create(&filler)?;
        while file.write(&[0; 4096]).is_ok() {}
        Ok(())
    };
    fill()?;
    let refused = Store::create(dir).expect_err("there is no space").to_string();
    if !refused.contains("no space left") || dir.join(STATE_FILE).exists() {
        return Err(refused.into());
    }
    fs::remove_file(&filler)?;
    fill_up_and_go_on(dir, fill, || Ok(fs::remove_file(&filler)?))
}

fn fill_up_and_go_on(
    dir: &Path,
    fill: impl Fn() -> Result<(), Box<dyn Error>>,
    free: impl Fn() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut victim = Victim::create(dir);
    let mut next = goes_on(&mut victim, 0)?;
    for _ in 0..5 {
        fill()?;
        next = until_full(&mut victim, next)?;
        // A node that restarts beside a full disk must get its containers going again.
        drop(victim);
        victim = Victim::over(Store::open(dir)?);
        free()?;
        next = goes_on(&mut victim, next)?;
    }
    drop(victim);
    let found = Victim::open(dir).fingerprint();
    let reference = new_dir();
    let mut reference = Victim::create(reference.path());
    for n in 0..next {
        reference.step(n)?;
    }
    if found != reference.fingerprint() {
        return Err("after it had been full the state is another".into());
    }
    Ok(())
}

fn until_full(victim: &mut Victim, from: u32) -> Result<u32, Box<dyn Error>> {
    for n in from..from + 100_000 {
        let before = victim.fingerprint();
        if let Err(error) = victim.step(n) {
            let message = error.to_string();
            if !message.contains("no space left") || !message.contains("nothing was changed") {
                return Err(format!("step {n}: {message}").into());
            }
            let Err(again) = victim.step(n) else { return Ok(n + 1) };
            if !again.to_string().contains("no space left") {
                return Err(format!("step {n} again: {again}").into());
            }
            if victim.state_alone() != before.0 {
                return Err(format!("step {n} was refused and left something").into());
            }
            return Ok(n);
        }
    }
    Err("the disk never filled up".into())
}

fn goes_on(victim: &mut Victim, from: u32) -> Result<u32, Box<dyn Error>> {
    for n in from..from + 50 {
        victim.step(n)?;
    }
    Ok(from + 50)
}

fn go_on_for_ever(dir: &Path, from: u32) -> Result<(), Box<dyn Error>> {
    let store = Store::open_or_create(dir)?;
    let is_there = ClusterState::exists(&store)?;
    let mut victim = if is_there { Victim::once_reachable(store)? } else { Victim::found(store) };
    let mut out = std::io::stdout().lock();
    for n in from.. {
        victim.step_through(n)?;
        writeln!(out, "done {n}")?;
        out.flush()?;
    }
    Ok(())
}

/// A node that is manager and has containers.
struct Victim {
    store: Store,
    state: ClusterState,
}

impl Victim {
    fn create(dir: &Path) -> Self {
        Self::create_over(dir, None)
    }

    /// One whose cluster is in etcd, if there is one.
    fn create_over(dir: &Path, etcd: Option<&str>) -> Self {
        let store = Store::create(dir).expect("a new store");
        if let Some(address) = etcd {
            store.put_shared_store(&SharedStore::new(access(address))).expect("written");
        }
        Self::found(store)
    }

    fn found(store: Store) -> Self {
        let new = NewCluster {
            id: ClusterId::from_entropy([7; 16]),
            ca: b"root and key".to_vec().into(),
            root: b"root".to_vec(),
            pools: Vec::new(),
            certificate_life: Duration::from_hours(2160),
            tokens: Tokens { worker: [1; 16], manager: [2; 16] },
        };
        let rows = store.cluster_rows().expect("rows");
        let state = ClusterState::create(rows, new, signer()).expect("a new cluster");
        Self { store, state }
    }

    fn open(dir: &Path) -> Self {
        Self::over(Store::open(dir).expect("a store that is whole"))
    }

    fn over(store: Store) -> Self {
        let rows = store.cluster_rows().expect("rows");
        let state = ClusterState::open(rows, signer()).expect("a state that is whole");
        Self { store, state }
    }

    /// As [`Self::over`], as soon as etcd is there.
    fn once_reachable(store: Store) -> Result<Self, StateError> {
        loop {
            match ClusterState::open(store.cluster_rows()?, signer()) {
                Err(StateError::Store(StoreError::Etcd(_))) => thread::sleep(Duration::from_millis(10)),
                opened => return Ok(Self { state: opened?, store }),
            }
        }
    }

    /// As [`Self::step`], again after each time that etcd was away. What is said to have changed nothing
    /// must have changed nothing.
    fn step_through(&mut self, n: u32) -> Result<(), StateError> {
        loop {
            let before = self.state.version();
            let refused = match self.step(n) {
                Err(error @ StateError::Store(StoreError::Etcd(_))) => error,
                ended => return ended,
            };
            while self.state.catch_up().is_err() {
                thread::sleep(Duration::from_millis(10));
            }
            if self.state.version() > before {
                assert!(!refused.to_string().contains("nothing was changed"), "step {n}: {refused}");
                return Ok(());
            }
        }
    }

    /// Makes the change number `n`; every history makes the same ones.
    fn step(&mut self, n: u32) -> Result<(), StateError> {
        let (turn, kind) = (n / 6, n % 6);
        let network: NetworkName = format!("net-{}", turn / 8).parse().expect("a name");
        let id = endpoint_id(turn);
        let node = self.state.nodes().first().map(|status| status.node.id);
        let node = node.unwrap_or_else(|| NodeId::from_entropy([1; 16]));
        match kind {
            0 if n == 0 => self.state.add_node(manager(node)),
            0 if turn.is_multiple_of(8) => {
                self.state.create_network(new_network(network, turn / 8)).map(drop)
            }
            0 => self.state.rotate_token(Role::Worker, u128::from(n).to_le_bytes()),
            1 if turn == 0 => self.state.create_network(new_network(network, 0)).map(drop),
            1 | 3 => {
                let state = if kind == 1 { AttachmentState::Pending } else { AttachmentState::Ready };
                Ok(self.store.put_attachment(&attachment(id, network, state))?)
            }
            2 => {
                let request = AttachRequest { id, network, name: None, ips: Vec::new(), mac: None };
                self.state.attach(node, &request).map(drop)
            }
            4 if turn % 3 == 2 => self.state.detach(node, endpoint_id(turn - 1)),
            5 if turn % 3 == 2 => Ok(self.store.remove_attachment(endpoint_id(turn - 1))?),
            _ => self.state.sign_again(),
        }
    }

    fn state_alone(&self) -> String {
        let mut lines = vec![format!("version {}", self.state.version())];
        lines.push(format!("worker {:?}", self.state.token(Role::Worker)));
        lines.extend(self.state.nodes().into_iter().map(|status| format!("{:?}", status.node)));
        for summary in self.state.networks() {
            let view = self.state.inspect(&summary.network.name).expect("a network that is listed");
            let membership: Membership = serde_json::from_str(&view.membership.payload).expect("ours");
            let network = &summary.network;
            lines.push(format!("{} {} {:?}", network.name, network.vni, network.subnets));
            lines.push(format!("epoch {} {:?}", membership.epoch, membership.nodes));
            let endpoint = |e: &overlayd::cluster::Endpoint| format!("{} {} {:?}", e.id, e.mac, e.addresses);
            lines.extend(view.endpoints.iter().map(endpoint));
        }
        lines.join("\n")
    }

    /// All that can be seen, without the ids that were drawn at random; cluster first, then node.
    fn fingerprint(&self) -> (String, String) {
        let attachments = self.store.attachments().expect("attachments that are whole");
        (self.state_alone(), format!("{attachments:#?}"))
    }
}

/// A state file after some steps, closed or as a crash leaves it, and its key file.
fn state_file(crashed: bool) -> (Vec<u8>, Vec<u8>) {
    let dir = new_dir();
    let mut victim = Victim::create(dir.path());
    for n in 0..STEPS {
        victim.step(n).expect("the steps work");
    }
    let files = || [STATE_FILE, KEY_FILE].map(|name| fs::read(dir.path().join(name)).expect("the file"));
    let [crashed_file, key] = files();
    if crashed {
        return (crashed_file, key);
    }
    drop(victim);
    let [file, key] = files();
    (file, key)
}

fn state_fingerprint() -> (String, String) {
    let dir = new_dir();
    let mut victim = Victim::create(dir.path());
    for n in 0..STEPS {
        victim.step(n).expect("the steps work");
    }
    victim.fingerprint()
}

/// Puts `bytes` in the place of the state file, and returns why it was refused.
fn refused(bytes: &[u8]) -> String {
    let dir = new_dir();
    let path = dir.path().join(STATE_FILE);
    fs::write(&path, bytes).expect("a file");
    let message = match Store::open_or_create(dir.path()) {
        Ok(_) => panic!("a file of {} bytes was taken for a state file", bytes.len()),
        Err(error) => error.to_string(),
    };
    assert!(message.contains(&path.display().to_string()), "{message}");
    assert!(Store::create(dir.path()).is_err(), "it was replaced");
    assert_eq!(fs::read(&path).expect("the file").len(), bytes.len(), "it was changed");
    message
}

fn start(what: &str, dir: &Path, from: u32) -> Child {
    start_with(what, dir, &from.to_string())
}

fn start_with(what: &str, dir: &Path, argument: &str) -> Child {
    Command::new(env::current_exe().expect("this program"))
        .arg(dir)
        .arg(argument)
        .env(VICTIM, what)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program, again")
}

/// What it said when it was killed, some time after so many lines.
fn lines_until_killed(child: &mut Child, lines: u32, after: Duration) -> Vec<String> {
    let stdout = child.stdout.take().expect("a pipe");
    let (sender, said) = mpsc::channel();
    let reader = thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        // Nobody listens to the later ones.
        lines.inspect(|_| sender.send(()).unwrap_or_default()).collect::<Vec<_>>()
    });
    (0..lines).for_each(|_| said.recv().expect("it goes on for ever"));
    thread::sleep(after);
    child.kill().expect("it still runs");
    let status = child.wait().expect("it was ours");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it died of something else");
    // No line is torn: a pipe takes so few bytes at once or not at all (pipe(7), PIPE_BUF).
    reader.join().expect("the reader")
}

fn access(address: &str) -> EtcdAccess {
    let address = address.parse().expect("an address");
    EtcdAccess { address, ca_pem: None, client_pem: None, user: None }
}

fn signer() -> Box<SignPayload> {
    Box::new(|_| Ok(Signature { certificate: "certificate".to_owned(), signature: "signature".to_owned() }))
}

fn manager(id: NodeId) -> Node {
    Node {
        id,
        name: "host".parse().expect("a name"),
        role: Role::Manager,
        advertise: "192.0.2.1:2377".parse().expect("an address"),
        data: "192.0.2.1:4500".parse().expect("an address"),
        underlay_mtu: 1500,
    }
}

fn new_network(name: NetworkName, n: u32) -> NewNetwork {
    let cidr = format!("10.{}.{}.0/24", n / 256, n % 256 / 2 * 2).parse().expect("a subnet");
    let subnets = if n.is_multiple_of(2) && n > 0 {
        vec![Subnet { cidr, gateway: None, ip_range: None }]
    } else {
        Vec::new()
    };
    NewNetwork {
        name,
        encrypted: true,
        subnets,
        mtu: None,
        labels: BTreeMap::new(),
        node_labels: BTreeMap::new(),
    }
}

fn attachment(id: EndpointId, network: NetworkName, state: AttachmentState) -> Attachment {
    Attachment {
        id,
        network,
        netns: NetnsRef { path: "/run/netns/web".into(), dev: 4, inode: 4_026_531_840 },
        ifname: "eth0".parse().expect("a name"),
        name: None,
        cni: None,
        docker: None,
        ips: Vec::new(),
        mac: None,
        rates: overlayd::rate::RateLimits::default(),
        state,
        endpoint: None,
        mtu: None,
    }
}

fn endpoint_id(n: u32) -> EndpointId {
    EndpointId::from_entropy(u128::from(n).to_le_bytes())
}

fn new_dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

const VICTIM: &str = "OVERLAYD_STATE_VICTIM";
const KILLS: u32 = 40;
const MOVES: u32 = 16;
const STEPS: u32 = 60;
