//! What the tests of whole agents share: the program around the tests, hosts with agents on them,
//! and frames made by hand.
//!
//! Each test runs in a process of its own, which enters namespaces of its own: tests run side by
//! side, and nothing that one leaves behind can reach another.

#![expect(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod certificates;
pub(crate) mod changes;
pub(crate) mod cut_off;
pub(crate) mod etcd;
pub(crate) mod followers;
pub(crate) mod frames;
pub(crate) mod keyed;
pub(crate) mod kills;
pub(crate) mod long_stream;
pub(crate) mod managers;
pub(crate) mod paced;
pub(crate) mod simulated;
pub(crate) mod streams;
pub(crate) mod swarm;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use overlayd::lab::{Lab, eventually};

/// Makes `TESTS` of a module's tests. Soaks take minutes, are run when asked for (`--ignored`), and tell what
/// they found.
macro_rules! tests {
    (@ $test:ident) => { (concat!(module_path!(), "::", stringify!($test)), $test as fn()) };
    ($($test:ident)* $(; soak: $($soak:ident)*)?) => {
        pub(crate) const TESTS: $crate::support::Tests = $crate::support::Tests {
            tests: &[$($crate::support::tests!(@ $test)),*],
            soaks: &[$($($crate::support::tests!(@ $soak)),*)?],
        };
    };
}
pub(crate) use tests;

/// Makes `main` of the tests that it names, or of those of the modules; of what measures, one at a time.
macro_rules! test_program {
    (one at a time: $($tests:tt)*) => {
        $crate::support::tests!($($tests)*);
        $crate::support::test_program!(@ 1; self);
    };
    (modules: $($module:ident)*) => {
        $crate::support::test_program!(@ $crate::support::PROCESSES; $($module)*);
    };
    (@ $processes:expr; $($module:tt)*) => {
        fn main() -> std::process::ExitCode {
            $crate::support::run(&[$($module::TESTS),*], $processes)
        }
    };
    ($($tests:tt)*) => {
        $crate::support::tests!($($tests)*);
        $crate::support::test_program!(@ $crate::support::PROCESSES; self);
    };
}
pub(crate) use test_program;

/// The tests of a module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tests {
    pub(crate) tests: &'static [Test],
    pub(crate) soaks: &'static [Test],
}

/// A test: its path and what it does.
type Test = (&'static str, fn());

/// Runs the tests that the command line asks for, each in its own process, so many at once.
pub(crate) fn run(modules: &[Tests], processes: usize) -> ExitCode {
    let mut given = std::env::args().skip(1);
    if given.next().as_deref() == Some(ALONE) {
        return run_alone(modules, &given.next().unwrap_or_default());
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(processes);
    let trial = |path: &'static str, patience| Trial::test(name(path), move || start(name(path), patience));
    let tests = modules.iter().flat_map(|module| module.tests).map(|(path, _)| trial(path, PATIENCE));
    let soaks = modules.iter().flat_map(|module| module.soaks);
    let soaks = soaks.map(|(path, _)| trial(path, SOAK_PATIENCE).with_ignored_flag(true).with_kind("soak"));
    libtest_mimic::run(&arguments, tests.chain(soaks).collect()).exit_code()
}

/// A test's path within its program.
fn name(path: &'static str) -> &'static str {
    path.split_once("::").map_or(path, |(_program, name)| name)
}

fn run_alone(modules: &[Tests], asked: &str) -> ExitCode {
    if let Err(error) = Lab::enter() {
        let _ = writeln!(io::stderr(), "the laboratory cannot be built here: {error}");
        return ExitCode::FAILURE;
    }
    let mut tests = modules.iter().flat_map(|module| module.tests.iter().chain(module.soaks));
    let (_, test) = tests.find(|(path, _)| name(path) == asked).expect("a test of this program");
    test();
    ExitCode::SUCCESS
}

/// Says what was measured; shown where the test is a soak or fails.
pub(crate) fn tell(what: &str) {
    let _ = writeln!(io::stderr(), "{what}");
}

fn start(name: &str, patience: Duration) -> Result<(), Failed> {
    let mut output = tempfile::tempfile()?;
    let (out, err): (File, File) = (output.try_clone()?, output.try_clone()?);
    let mut test = Command::new(std::env::current_exe()?)
        .args([ALONE, name])
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()?;
    let mut ended = None;
    let in_time = eventually(patience, || {
        ended = test.try_wait().transpose();
        ended.is_some()
    });
    if !in_time {
        test.kill()?;
        test.wait()?;
    }
    let mut said = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said);
    if let Some(status) = ended
        && status?.success()
    {
        if patience == SOAK_PATIENCE {
            tell(&said);
        }
        return Ok(());
    }
    Err(if in_time { said.into() } else { format!("not done after {patience:?}:\n{said}").into() })
}

const ALONE: &str = "--alone";
/// They wait more than they compute.
pub(crate) const PROCESSES: usize = 4;
/// Tests take seconds; this is for machines under heavy load.
const PATIENCE: Duration = Duration::from_secs(180);
const SOAK_PATIENCE: Duration = Duration::from_secs(2 * 3600);
