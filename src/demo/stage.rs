//! Two hosts with an agent and a container each, and the operator who types commands on them.

use std::path::Path;
use std::sync::Arc;

use clap::Parser;

use super::DemoError;
use super::agent_process::{AgentProcess, PATIENCE};
use crate::api::types::Call;
use crate::cli::{self, Cli, CliError, Command};
use crate::lab::{Container, Lab, LabError, Underlay};

/// What the demo is played on; all of it goes when it is dropped.
#[derive(Debug)]
pub(super) struct Stage {
    // Agents end before what they work on does.
    agents: [AgentProcess; 2],
    containers: [Arc<Container>; 2],
    lab: Arc<Lab>,
}

impl Stage {
    /// Builds the hosts and containers, and starts the agents.
    pub(super) async fn build() -> Result<Self, DemoError> {
        let lab = Arc::new(aside(|| Lab::two_hosts(UNDERLAY)).await?);
        let container = |host: usize| lab.host(host + 1).container(CONTAINERS[host]).map(Arc::new);
        let containers = [container(0)?, container(1)?];
        // In the laboratory's own /run, which is in memory and goes with its mount namespace.
        let directory = Path::new("/run/overlayd-demo");
        std::fs::create_dir(directory)
            .map_err(|source| DemoError::System { doing: "make a directory in /run", source })?;
        let agent = |host: usize| AgentProcess::start(lab.host(host + 1), directory);
        let mut agents = [agent(0)?, agent(1)?];
        for agent in &mut agents {
            agent.ready().await?;
        }
        Ok(Self { agents, containers, lab })
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

    /// Stops the agents cleanly, and takes the rest away.
    pub(super) async fn remove(self) -> Result<(), DemoError> {
        for agent in self.agents {
            agent.stop().await?;
        }
        Ok(())
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

fn typed(words: &[String], socket: std::path::PathBuf) -> Result<String, CliError> {
    let cli = Cli::try_parse_from(words).map_err(|error| CliError::Usage(error.to_string()))?;
    match cli.command {
        Command::Client(command) => cli::run(command, Some(socket), true),
        Command::Agent(_) | Command::Demo => Err(CliError::Usage("not a call to the agent".into())),
    }
}

/// Of the containers, by host.
pub(super) const CONTAINERS: [&str; 2] = ["c1", "c2"];

/// As a real wire: no packet is larger than the MTU.
pub(super) const UNDERLAY: Underlay = Underlay { mtu: 1500, segment_offload: false };
