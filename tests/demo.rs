//! `overlayd demo` as its user runs it: what it proves, and that nothing is left of it, however it ends.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use overlayd::lab::eventually;
use rustix::process::{Pid, Signal, kill_process, set_child_subreaper};
use tempfile::TempDir;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A rate is measured, and orphans are counted.
    arguments.test_threads = Some(1);
    // What outlives a demo becomes a child of this process, and so is seen.
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    libtest_mimic::run(&arguments, trials()).exit_code()
}

fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($test:ident)*) => { vec![$(Trial::test(stringify!($test), || { $test(); Ok::<(), Failed>(()) })),*] };
    }
    trials! {
        demo_proves_what_it_says_and_leaves_nothing
        demo_on_a_terminal_shows_progress_and_colours
        interrupted_demo_leaves_nothing
        terminated_demo_leaves_nothing
        killed_demo_leaves_nothing
        demo_whose_agent_dies_shows_the_end_of_its_log
        demo_without_tun_device_says_so
        demo_without_user_namespaces_says_so
    }
}

fn demo_proves_what_it_says_and_leaves_nothing() {
    let place = Place::new();
    let output = place.demo().output().unwrap();
    let text = succeeded(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "progress is for terminals");
    assert!(!text.contains("FAILED") && !text.contains('\u{1b}'), "{text}");
    assert!(text.lines().count() <= 40 && text.lines().all(|line| line.len() <= 100), "{text}");

    assert!(between(&text, "         SPI ", " to host2").starts_with("0x"), "{text}");
    assert!(text.contains("  ok     keys of aes-256-gcm at both ends"), "{text}");
    assert_eq!(text.matches("5 of 5 answered").count(), 4, "{text}");
    for stream in ["overlayd, encrypted", "kernel VXLAN"] {
        assert!(text.lines().any(|line| line.contains(stream)), "{stream}: {text}");
    }
    let encrypted = between(&text, "  ok     encrypted                 200   200      in 0 of ", " ESP)");
    let (total, esp) = encrypted.split_once(" packets (").unwrap();
    assert!(esp.parse::<u32>().unwrap() >= 200 && total.parse::<u32>().unwrap() >= 200, "{text}");
    let plain = between(&text, "  ok     unencrypted, to compare   200   200      in ", " VXLAN)");
    assert!(plain.starts_with("200 of "), "{text}");
    // Of whichever lane the canary went by.
    let spi = between(&text, "UDP, ESP SPI ", " sequence ");
    let sequence: u32 = between(&text, &format!("ESP SPI {spi} sequence "), ",").parse().unwrap();
    let bytes = format!("\n         {} {sequence:08x} ", spi.trim_start_matches("0x"));
    assert!(text.contains(&bytes), "{text}");
    assert_eq!(text.matches(", established\n").count(), 2, "{text}");
    place.assert_nothing_left();
}

fn demo_on_a_terminal_shows_progress_and_colours() {
    let place = Place::new();
    // script(1) gives it a terminal.
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{} demo", env!("CARGO_BIN_EXE_overlayd")), "/dev/null"]);
    command.env("TERM", "xterm").env_remove("NO_COLOR").env("TMPDIR", place.directory.path());
    let text = succeeded(&command.stdin(Stdio::null()).output().unwrap());
    assert!(text.contains("\u{1b}[32mok    \u{1b}[0m keys of"), "{text}");
    assert!(text.contains("one TCP stream each way, encrypted"), "{text}");
    place.assert_nothing_left();
}

fn interrupted_demo_leaves_nothing() {
    end_by(Signal::INT, "SIGINT");
}

fn terminated_demo_leaves_nothing() {
    end_by(Signal::TERM, "SIGTERM");
}

fn killed_demo_leaves_nothing() {
    let place = Place::new();
    let mut demo = place.started("Ping through the network");
    demo.kill().unwrap();
    demo.wait().unwrap();
    place.assert_nothing_left();
}

fn demo_whose_agent_dies_shows_the_end_of_its_log() {
    let place = Place::new();
    let demo = place.started("Ping through the network");
    let agents = children_of(demo.id());
    assert_eq!(agents.len(), 2, "an agent on each host");
    kill_process(agents[1], Signal::KILL).unwrap();
    let output = demo.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("the agent ended by itself (signal 9); the end of its log:\n"), "{told}");
    assert!(told.contains("agent is ready"), "{told}");
    place.assert_nothing_left();
}

fn demo_without_tun_device_says_so() {
    let told =
        refused(&format!("mount -t tmpfs none /dev/net && exec {} demo", env!("CARGO_BIN_EXE_overlayd")));
    assert!(told.starts_with("overlayd: /dev/net/tun cannot be opened"), "{told}");
    assert!(told.contains("modprobe tun"), "{told}");
}

fn demo_without_user_namespaces_says_so() {
    let told = refused(&format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin --inh-caps=-all \
         {} demo",
        env!("CARGO_BIN_EXE_overlayd")
    ));
    assert!(told.starts_with("overlayd: user namespaces are not allowed here"), "{told}");
    assert!(told.contains("run as root"), "{told}");
}

/// Runs a script as fake root, in which the demo fails at once; gives the one line that it says.
fn refused(script: &str) -> String {
    let output =
        Command::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).output();
    let output = output.unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len(), told.lines().count()), (Some(1), 0, 1), "{told}");
    told
}

fn end_by(signal: Signal, name: &str) {
    let place = Place::new();
    let demo = place.started("Ping through the network");
    assert_eq!(children_of(demo.id()).len(), 2, "an agent on each host");
    kill_process(Pid::from_child(&demo), signal).unwrap();
    let output = demo.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, format!("overlayd: ended by {name}; nothing is left behind\n"));
    assert_eq!(output.status.code(), Some(1));
    place.assert_nothing_left();
}

/// Where a demo runs: its temporary directory, and what was there before it.
struct Place {
    directory: TempDir,
    named: Vec<String>,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), named: named_namespaces() }
    }

    fn demo(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_overlayd"));
        command.arg("demo").env("TMPDIR", self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A demo that has come so far that it has printed `line`; it goes on while nobody reads.
    fn started(&self, line: &str) -> Child {
        let mut demo = self.demo().spawn().unwrap();
        let mut out = BufReader::new(demo.stdout.take().unwrap());
        let mut read = String::new();
        while !read.contains(line) {
            if out.read_line(&mut read).unwrap() == 0 {
                let mut told = String::new();
                demo.stderr.take().unwrap().read_to_string(&mut told).unwrap();
                panic!("the demo ended before {line:?}:\n{read}\n{told}");
            }
        }
        // The pipe stays open, so that the demo can go on writing.
        demo.stdout = Some(out.into_inner());
        demo
    }

    /// No process, no name of a namespace, no file.
    fn assert_nothing_left(&self) {
        let own = std::process::id();
        // A child that was just killed needs a moment.
        let is_alone = eventually(Duration::from_secs(5), || children_of(own).is_empty());
        assert!(is_alone, "processes live on: {:?}", children_of(own));
        assert_eq!(named_namespaces(), self.named);
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 0, "files are left");
        assert!(!Path::new("/run/overlayd-demo").exists());
    }
}

fn named_namespaces() -> Vec<String> {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let mut names: Vec<_> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The processes that `parent` has started or adopted and that run, in the order of their ids.
fn children_of(parent: u32) -> Vec<Pid> {
    let mut children = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap() {
        let Ok(stat) = std::fs::read_to_string(process.unwrap().path().join("stat")) else { continue };
        // "pid (name) state parent ...", and a name may contain anything.
        let (Some((pid, _)), Some((_, rest))) = (stat.split_once(' '), stat.rsplit_once(") ")) else {
            continue;
        };
        let mut fields = rest.split(' ');
        let is_alive = fields.next() != Some("Z");
        if is_alive && fields.next().and_then(|field| field.parse().ok()) == Some(parent) {
            children.push(Pid::from_raw(pid.parse().unwrap()).unwrap());
        }
    }
    children.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
    children
}

fn succeeded(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in:\n{text}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} in:\n{text}")).0
}
