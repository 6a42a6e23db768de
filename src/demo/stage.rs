//! Two hosts with an agent and a container each, and the operator who types commands on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use super::DemoError;
use super::agent_process::{AgentProcess, PATIENCE};
use super::report::Removal;
use crate::api::types::Call;
use crate::boot_time::BootTime;
use crate::cli::{self, Cli, CliError, Command};
use crate::io::clock::boot_time;
use crate::lab::{Container, Lab, LabError, Underlay};

/// What the demo is played on; all of it goes when it is dropped.
#[derive(Debug)]
pub(super) struct Stage {
    // Agents end before what they work on does.
    agents: [AgentProcess; 2],
    containers: [Arc<Container>; 2],
    lab: Arc<Lab>,
    begin: BootTime,
}

impl Stage {
    /// Builds the hosts and containers, and starts the agents.
    pub(super) async fn build() -> Result<Self, DemoError> {
        let begin = boot_time();
        let lab = Arc::new(aside(|| Lab::two_hosts(UNDERLAY)).await?);
        let container = |host: usize| lab.host(host + 1).container(CONTAINERS[host]).map(Arc::new);
        let containers = [container(0)?, container(1)?];
        std::fs::create_dir(DIRECTORY)
            .map_err(|source| DemoError::System { doing: "make a directory in /run", source })?;
        let agent = |host: usize| AgentProcess::start(lab.host(host + 1), Path::new(DIRECTORY));
        let mut agents = [agent(0)?, agent(1)?];
        for agent in &mut agents {
            agent.ready().await?;
        }
        Ok(Self { agents, containers, lab, begin })
    }

    /// Runs a command on a host as if it were typed there, and gives what it prints as JSON.
    pub(super) async fn command<C: Call>(&self, host: usize, line: &str) -> Result<C::Response, DemoError> {
        let agent = &self.agents[host];
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let socket = agent.socket().to_owned();
        let work = tokio::task::spawn_blocking(move || typed(&words, socket));
        let Ok(answer) = tokio::time::timeout(PATIENCE, work).await else {
            return Err(agent.failed(format!("does not answer '{line}' within {PATIENCE:?}")));
        };
        let json = joined(answer).map_err(|source| DemoError::Command {
            host: self.host_name(host),
            command: line.to_owned(),
            source: Box::new(source),
            log: agent.last_words(),
        })?;
        serde_json::from_str(&json)
            .map_err(|error| agent.failed(format!("has an unreadable answer to '{line}': {error}")))
    }

    /// The agent of a host.
    pub(super) fn agent(&self, host: usize) -> &AgentProcess {
        &self.agents[host]
    }

    /// The container on a host.
    pub(super) fn container(&self, host: usize) -> Arc<Container> {
        Arc::clone(&self.containers[host])
    }

    /// The hosts.
    pub(super) fn lab(&self) -> &Arc<Lab> {
        &self.lab
    }

    /// `host1` or `host2`.
    pub(super) fn host_name(&self, host: usize) -> String {
        self.lab.host(host + 1).name().to_owned()
    }

    /// Waits until an agent has ended, which none should.
    pub(super) async fn agent_ends(&self) -> DemoError {
        loop {
            for agent in &self.agents {
                if let Some(status) = agent.has_ended() {
                    return agent.failed(format!("ended by itself ({status})"));
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the agents cleanly, takes the rest away, and looks for what is left.
    pub(super) async fn remove(self) -> Result<Removal, DemoError> {
        let Self { agents, containers, lab, begin } = self;
        for agent in agents {
            agent.stop().await?;
        }
        drop((containers, lab));
        let unreadable = |source| DemoError::System { doing: "look for what is left", source };
        std::fs::remove_dir_all(DIRECTORY).map_err(unreadable)?;
        let names = std::fs::read_dir("/run/netns").map_err(unreadable)?;
        let left = names.filter_map(|name| name.ok()?.file_name().into_string().ok()).collect();
        Ok(Removal { left, elapsed: boot_time().since(begin) })
    }
}

/// Does what blocks on a thread of its own.
pub(super) async fn aside<T, F>(work: F) -> Result<T, LabError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, LabError> + Send + 'static,
{
    joined(tokio::task::spawn_blocking(work).await)
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    // It is never cancelled, so all that can go wrong is a panic.
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn typed(words: &[String], socket: PathBuf) -> Result<String, CliError> {
    let cli = Cli::try_parse_from(words).map_err(|error| CliError::Usage(error.to_string()))?;
    match cli.command {
        Command::Client(command) => cli::run(command, Some(socket), true),
        Command::Agent(_)
        | Command::Completion { .. }
        | Command::Demo
        | Command::Bench { .. }
        | Command::Events(_) => Err(CliError::Usage("not a call to the agent".into())),
    }
}

/// Of the containers, by host.
pub(super) const CONTAINERS: [&str; 2] = ["c1", "c2"];

/// In the laboratory's own /run, which is in memory and goes with its mount namespace.
const DIRECTORY: &str = "/run/overlayd-demo";

/// As a real wire: no packet is larger than the MTU.
pub(super) const UNDERLAY: Underlay = Underlay { mtu: 1500, segment_offload: false };
