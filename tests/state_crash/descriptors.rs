//! A move of the state to etcd by an agent that has no descriptors left.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use overlayd::control::store::{ClusterRows, SharedStore};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::etcd::Etcd;
use super::{VICTIM, Victim, access, new_dir};

pub(crate) fn moved() {
    let (etcd, dir) = (Etcd::start(), new_dir());
    let mut victim = Command::new(env::current_exe().expect("this program"));
    let victim = victim.arg(dir.path()).arg(format!("{}/moved", etcd.url())).env(VICTIM, "descriptors");
    let output = victim.output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
}

/// The victim of [`moved`]: it is allowed one more after each attempt that failed, so that
/// each step of the move is once the one that has none left.
pub(crate) fn victim(dir: &Path, to: &str) -> Result<(), Box<dyn Error>> {
    let mut victim = Victim::create(dir);
    let shared = SharedStore::new(access(to));
    // What the process has for good after it used etcd once.
    ClusterRows::over(&shared)?.look().expect_err("there is nothing yet");
    let maximum = getrlimit(Resource::Nofile).maximum;
    for spare in 0..64 {
        victim.step(spare)?;
        let limit = |current| setrlimit(Resource::Nofile, Rlimit { current, maximum });
        limit(Some(least_open()? + u64::from(spare)))?;
        let moved = victim.state.relocate(&victim.store, shared.clone());
        limit(maximum)?;
        let kept = victim.store.shared_store()?;
        if victim.state.shared_store() != kept || moved.is_ok() != kept.is_some() {
            return Err(format!("{spare} to spare: {moved:?}, and it is kept in {kept:?}").into());
        }
        if moved.is_ok() {
            victim.step(64)?;
            let version = victim.state.version();
            drop(victim);
            return if Victim::open(dir).state.version() == version {
                Ok(())
            } else {
                Err("it is lost".into())
            };
        }
    }
    Err("it did not move".into())
}

/// How many descriptors are open, once threads that nobody waits for have closed what they had.
fn least_open() -> Result<u64, Box<dyn Error>> {
    let mut least = u64::MAX;
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(10));
        least = least.min(u64::try_from(fs::read_dir("/proc/self/fd")?.count())?);
    }
    Ok(least)
}
