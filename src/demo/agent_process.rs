//! One `overlayd agent` on a host of the laboratory.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::DemoError;
use crate::api::Client;
use crate::api::types::{Call, StatusRequest};
use crate::io::clock::boot_time;
use crate::lab::Host;

/// A running agent; killed when it is dropped.
#[derive(Debug)]
pub(super) struct AgentProcess {
    host: String,
    child: Child,
    client: Client,
    log: PathBuf,
}

impl AgentProcess {
    /// Starts this very program as the agent of `host`, with state, socket and log in `directory`.
    pub(super) fn start(host: &Host, directory: &Path) -> Result<Self, DemoError> {
        let failed = |source| DemoError::System { doing: "start an agent", source };
        let home = directory.join(host.name());
        std::fs::create_dir(&home).map_err(failed)?;
        let (socket, log) = (home.join("agent.sock"), home.join("log"));
        let file = File::create_new(&log).map_err(failed)?;
        // Not by its path, which may lie under the laboratory's own /run.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("overlayd").arg("--socket").arg(&socket).arg("agent");
        command.arg("--state-dir").arg(home.join("state"));
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(failed)?).stderr(file);
        // The terminal's Ctrl-C is for the demo, which ends its agents itself.
        command.process_group(0);
        let child = host.spawn(command).map_err(failed)?;
        Ok(Self { host: host.name().to_owned(), child, client: Client::new(socket), log })
    }

    /// Waits until it answers.
    pub(super) async fn ready(&mut self) -> Result<(), DemoError> {
        let deadline = boot_time() + PATIENCE;
        while self.client.call(&StatusRequest {}).await.is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(format!("ended at once ({status})")));
            }
            if boot_time() >= deadline {
                return Err(self.failed(format!("does not answer within {} s", PATIENCE.as_secs())));
            }
            tokio::time::sleep(INTERVAL).await;
        }
        Ok(())
    }

    /// Makes a call that cannot be refused.
    pub(super) async fn ask<C: Call>(&self, call: &C) -> Result<C::Response, DemoError> {
        let answer = tokio::time::timeout(PATIENCE, self.client.call(call)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failed(format!("does not answer: {error}"))),
            Err(_) => Err(self.failed(format!("does not answer {} within {PATIENCE:?}", C::PATH))),
        }
    }

    /// Its socket.
    pub(super) fn socket(&self) -> &Path {
        self.client.socket()
    }

    /// How it ended, if it has; it can still be waited for.
    pub(super) fn has_ended(&self) -> Option<String> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(Pid::from_child(&self.child)), options).ok()??;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        })
    }

    /// Has it end as systemd would.
    pub(super) async fn stop(mut self) -> Result<(), DemoError> {
        let asked = kill_process(Pid::from_child(&self.child), Signal::TERM);
        asked.map_err(|errno| DemoError::System { doing: "stop an agent", source: errno.into() })?;
        let deadline = boot_time() + PATIENCE;
        loop {
            match self.exit_status()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failed(format!("did not end well ({status})"))),
                None if boot_time() >= deadline => {
                    return Err(self.failed(format!("does not end within {PATIENCE:?} of SIGTERM")));
                }
                None => tokio::time::sleep(INTERVAL).await,
            }
        }
    }

    /// An error that shows the end of its log.
    pub(super) fn failed(&self, what: String) -> DemoError {
        DemoError::Agent { host: self.host.clone(), what, log: self.last_words() }
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(log) => end_of(&String::from_utf8_lossy(&log)),
            Err(error) => format!("  (no log: {error})"),
        }
    }

    fn exit_status(&mut self) -> Result<Option<ExitStatus>, DemoError> {
        self.child.try_wait().map_err(|source| DemoError::System { doing: "wait for an agent", source })
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _: io::Result<()> = self.child.kill();
        let _: io::Result<ExitStatus> = self.child.wait();
    }
}

fn end_of(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    if last.is_empty() { "  (empty)".into() } else { format!("  {}", last.join("\n  ")) }
}

/// For whatever an agent is asked, on a machine that is busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(10);
const LOG_LINES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        assert_eq!(end_of(""), "  (empty)");
        assert_eq!(end_of("a\nb\n"), "  a\n  b");
        let long: String = (0..50).map(|line| format!("{line}\n")).collect();
        let end = end_of(&long);
        assert_eq!((end.lines().count(), end.lines().last()), (LOG_LINES, Some("  49")));
    }
}
