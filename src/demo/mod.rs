//! `overlayd demo`: the main job on one machine, with nothing else installed.
//!
//! Two hosts with an agent and a container each are built as namespaces, joined to a cluster by the
//! commands that an operator would type, and measured: everything that is printed was measured in
//! that run. `play` is the sequence, `stage` what it is played on, `report` how it is told.
//!
//! Nothing is made outside private namespaces, not even a file, so nothing can be left behind.

mod agent_process;
mod error;
mod kernel_vxlan;
mod packet;
mod play;
mod report;
mod screen;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

pub use error::DemoError;

use crate::lab::Lab;
use screen::Screen;

/// How the demo runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOptions {
    /// How long each TCP stream is measured.
    pub tcp_time: Duration,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { tcp_time: Duration::from_secs(1) }
    }
}

/// Runs the demo; call it before the first thread starts.
///
/// # Errors
/// [`DemoError`]: what the system lacks, what failed, or which of the proofs did not hold.
pub fn run(options: DemoOptions) -> anyhow::Result<()> {
    perform(&options).map_err(|error| anyhow::Error::msg(error::whole(&error)))
}

fn perform(options: &DemoOptions) -> Result<(), DemoError> {
    let before = user_namespace();
    Lab::enter()?;
    let is_fake_root = user_namespace() != before;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DemoError::System { doing: "start the runtime", source })?;
    let result = runtime.block_on(async {
        let mut interrupted = Interruption::listen()?;
        let screen = Screen::new();
        // Whichever ends first; what was built goes when the play is dropped.
        tokio::select! {
            result = play::perform(&screen, options, is_fake_root) => result,
            name = interrupted.next() => Err(DemoError::Interrupted { name }),
        }
    });
    // A measurement that was interrupted ends with the process.
    runtime.shutdown_background();
    result
}

fn user_namespace() -> Option<PathBuf> {
    std::fs::read_link("/proc/self/ns/user").ok()
}

/// The signals that end the demo early.
struct Interruption {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interruption {
    fn listen() -> Result<Self, DemoError> {
        let listen =
            |kind| signal(kind).map_err(|source| DemoError::System { doing: "listen for signals", source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
