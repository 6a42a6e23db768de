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

/// Makes `main` of the tests that it names; of those that measure, one at a time. Soaks take minutes,
/// are run when asked for (`--ignored`), and tell what they found.
macro_rules! test_program {
    (one at a time: $($test:ident)*) => {
        fn main() -> std::process::ExitCode {
            $crate::support::run(&[$((stringify!($test), $test)),*], &[], 1)
        }
    };
    ($($test:ident)* $(; soak: $($soak:ident)*)?) => {
        fn main() -> std::process::ExitCode {
            let soaks = &[$($((stringify!($soak), $soak as fn())),*)?];
            $crate::support::run(&[$((stringify!($test), $test)),*], soaks, $crate::support::PROCESSES)
        }
    };
}
pub(crate) use test_program;

/// A test: its name and what it does.
type Test = (&'static str, fn());

/// Runs the tests that the command line asks for, each in its own process, so many at once.
pub(crate) fn run(tests: &'static [Test], soaks: &'static [Test], processes: usize) -> ExitCode {
    let mut given = std::env::args().skip(1);
    if given.next().as_deref() == Some(ALONE) {
        return run_alone(&[tests, soaks].concat(), &given.next().unwrap_or_default());
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(processes);
    let trials = tests.iter().map(|(name, _)| Trial::test(*name, move || start(name, PATIENCE)));
    let soaks = soaks.iter().map(|(name, _)| {
        Trial::test(*name, move || start(name, SOAK_PATIENCE)).with_ignored_flag(true).with_kind("soak")
    });
    libtest_mimic::run(&arguments, trials.chain(soaks).collect()).exit_code()
}

fn run_alone(tests: &[Test], name: &str) -> ExitCode {
    if let Err(error) = Lab::enter() {
        let _ = writeln!(io::stderr(), "the laboratory cannot be built here: {error}");
        return ExitCode::FAILURE;
    }
    let (_, test) = tests.iter().find(|(known, _)| *known == name).expect("a test of this program");
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
