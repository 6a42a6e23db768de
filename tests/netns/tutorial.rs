//! The README's five minutes on two machines, typed as they are written there.
//!
//! A machine is a host of the laboratory with a shell that has directories of its own for sockets and
//! state. Two things differ from a reader's: the program is built already, and `sudo` does nothing.

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::support::swarm::{OVERLAYD, PATIENCE};
use crate::support::tests;
use overlayd::lab::{Host, Lab, Underlay, eventually};

tests! {
    the_tutorial_works_as_it_is_written
}

fn the_tutorial_works_as_it_is_written() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let dir = tempfile::tempdir_in("/run").unwrap();
    let mut machines = [1, 2].map(|number| Machine::start(lab.host(number), dir.path()));
    let (mut built, mut join, mut seen) = (0, None, Vec::new());

    for (on, line) in tutorial(include_str!("../../README.md")) {
        let number = if on == On::First { 0 } else { 1 };
        let machine = &mut machines[number];
        if line.starts_with("cargo build --release && sudo install ") {
            built += 1;
            continue;
        }
        let line = if line.contains("overlayd join ") {
            let printed: &String = join.as_ref().expect("init comes before join");
            let (typed, pattern) = (words(printed), words(&line));
            assert_eq!(typed.len(), pattern.len(), "{line} is not what init prints: {printed}");
            format!("sudo {printed}")
        } else {
            line
        };
        let said = machine.type_in(&line);
        if line.contains("overlayd agent") {
            assert!(eventually(PATIENCE, || machine.try_in("overlayd status").is_ok()), "{}", machine.log());
        }
        if line.contains("overlayd init") {
            let printed = said.lines().map(str::trim).find(|line| line.starts_with("overlayd join "));
            join = Some(printed.expect(&said).to_owned());
        }
        seen.push((line, said));
    }

    assert_eq!(built, 2, "both machines build it");
    let said = |command: &str| &seen.iter().find(|(line, _)| line.contains(command)).expect(command).1;
    assert!(said(" ping ").contains(" 0% packet loss"), "{}", said(" ping "));
    assert!(said("overlayd peers").contains("established"), "{}", said("overlayd peers"));
    for machine in &mut machines {
        machine.type_in("kill %1 && wait %1");
    }
}

/// Where a line is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    First,
    Second,
}

/// The lines of the tutorial in their order; one for both machines comes twice.
fn tutorial(readme: &str) -> Vec<(On, String)> {
    let (_, rest) = readme.split_once("\n## Five minutes on two machines\n").expect("the tutorial");
    let (tutorial, _) = rest.split_once("\n## ").expect("a section behind it");
    let mut lines = Vec::new();
    // Prose and code take turns; the prose says where the code is typed.
    let mut parts = tutorial.split("```");
    while let (Some(prose), Some(code)) = (parts.next(), parts.next()) {
        let prose = prose.trim().rsplit("\n\n").next().unwrap_or_default();
        let on: &[On] = match prose {
            _ if prose.starts_with("On both") => &[On::First, On::Second],
            _ if prose.starts_with("On the first") => &[On::First],
            _ if prose.starts_with("On the second") => &[On::Second],
            _ => panic!("nothing says where to type: {code}"),
        };
        for line in code.strip_prefix("sh\n").expect("shell").lines() {
            let command = line.split('#').next().unwrap_or_default().trim();
            if !command.is_empty() {
                lines.extend(on.iter().map(|on| (*on, command.to_owned())));
            }
        }
    }
    lines
}

fn words(line: &str) -> Vec<&str> {
    line.trim_start_matches("sudo ").split_whitespace().collect()
}

/// A machine with somebody at its keyboard.
struct Machine {
    shell: Child,
    keyboard: ChildStdin,
    screen: BufReader<ChildStdout>,
    log: std::path::PathBuf,
}

impl Machine {
    /// The shell is the first process of a namespace, so that what it starts ends with it.
    fn start(host: &Host, dir: &Path) -> Self {
        let log = dir.join(format!("log{}", host.name()));
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
        std::fs::set_permissions(bin.join("sudo"), Permissions::from_mode(0o755)).unwrap();
        let _already = std::os::unix::fs::symlink(OVERLAYD, bin.join("overlayd"));
        std::fs::create_dir_all("/run/overlayd").unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "bash", "-c"]);
        command.arg("mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /run/overlayd && exec bash");
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()));
        command.env_remove("OVERLAYD_SOCKET").stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(&log).unwrap());
        let mut shell = host.spawn(command).unwrap();
        let keyboard = shell.stdin.take().unwrap();
        let screen = BufReader::new(shell.stdout.take().unwrap());
        Self { shell, keyboard, screen, log }
    }

    /// Types a line that must succeed; what it printed.
    fn type_in(&mut self, line: &str) -> String {
        match self.try_in(line) {
            Ok(said) => said,
            Err(said) => panic!("{line}\n{said}{}", self.log()),
        }
    }

    fn try_in(&mut self, line: &str) -> Result<String, String> {
        writeln!(self.keyboard, "{line}\necho \"{DONE} $?\"").unwrap();
        let mut said = String::new();
        loop {
            let start = said.len();
            assert!(self.screen.read_line(&mut said).unwrap() > 0, "the shell ended\n{said}{}", self.log());
            if let Some(code) = said[start..].trim().strip_prefix(DONE) {
                let succeeded = code.trim() == "0";
                said.truncate(start);
                return if succeeded { Ok(said) } else { Err(said) };
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _gone = self.shell.kill();
        let _status = self.shell.wait();
    }
}

/// What the shell prints behind a command, with its exit code.
const DONE: &str = "--done--";
