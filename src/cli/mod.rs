//! The command line: arguments in, one call to the agent, text or JSON out.
//!
//! Every command but `agent`, `demo` and `bench` is a client of the agent's socket and runs here; those
//! three are programs of their own that `main` starts with what was parsed here. Rendering is pure, so
//! tests compare whole screens. For a container runtime it is all different, and in `cni`.

mod arguments;
mod backup;
pub mod cni;
mod error;
mod logging;
mod named_file;
mod netns;
mod report;
mod rotation;
mod secret;
mod tables;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

pub use arguments::{AgentArguments, Cli, ClientCommand, Command, EventsArguments};
pub use error::{CliError, TRY_HELP, failure_as_json};
pub use logging::start_log;
pub use netns::NetnsError;

use crate::api::Client;
use crate::api::types::VerifyRequest;
use crate::api::types::{BackupRequest, BackupResponse};
use crate::api::types::{
    CaRequest, CaStatusRequest, Call, DetachRequest, DetachTarget, InspectNetworkRequest,
    ListNetworksRequest, ListNodesRequest, NodeChange, PeersRequest, RekeyRequest, RemoveNetworkRequest,
    StatsRequest, StatusRequest, StoreRequest,
};
use crate::api::types::{ListTokensRequest, RemoveTokenRequest};
use crate::config::DEFAULT_SOCKET;
use crate::unlock_key::UnlockKey;
use arguments::{BackupArguments, CaCommand, NodeCommand, StoreCommand, TokenArguments, TokenWish, of_files};

/// Runs one command against the agent and returns what goes to standard output.
///
/// # Errors
/// When the arguments contradict each other, or the agent refuses or cannot be reached.
pub fn run(command: ClientCommand, socket: Option<PathBuf>, json: bool) -> Result<String, CliError> {
    let agent = Agent { client: Client::new(socket.unwrap_or_else(|| DEFAULT_SOCKET.into())), json };
    runtime()?.block_on(agent.execute(command))
}

/// Writes events to `out` as they come, until there are no more or nobody reads them.
///
/// # Errors
/// When the agent refuses or cannot be reached, or `out` cannot be written.
pub fn follow_events(
    arguments: &EventsArguments,
    socket: Option<PathBuf>,
    json: bool,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let client = Client::new(socket.unwrap_or_else(|| DEFAULT_SOCKET.into()));
    runtime()?.block_on(async {
        let mut events = client.events(&arguments.request()).await?;
        while let Some(told) = events.next().await? {
            let line = if json {
                serde_json::to_string(&told).expect("it came out of JSON")
            } else {
                told.to_string()
            };
            match writeln!(out, "{line}").and_then(|()| out.flush()) {
                Ok(()) => {}
                // The reader has seen enough, as in `overlayd events | head`.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                Err(source) => return Err(CliError::System { doing: "write to standard output", source }),
            }
        }
        Ok(())
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::System { doing: "start the runtime", source })
}

struct Agent {
    client: Client,
    json: bool,
}

impl Agent {
    async fn execute(&self, command: ClientCommand) -> Result<String, CliError> {
        match command {
            ClientCommand::Init(arguments) => {
                let files = arguments.ca_files();
                let request = arguments.request()?;
                let outcome = self.call(&request, report::init).await;
                of_files(files, at_large(request.autolock.as_ref(), outcome))
            }
            ClientCommand::Token(arguments) => self.token(&arguments).await,
            ClientCommand::Join(arguments) => self.call(&arguments.request(), report::join).await,
            ClientCommand::Leave(arguments) => self.call(&arguments.request(), report::leave).await,
            ClientCommand::Backup(arguments) => self.back_up(&arguments).await,
            ClientCommand::Restore(arguments) => {
                let request = arguments.request(&backup::read(&arguments.file)?)?;
                at_large(request.autolock.as_ref(), self.call(&request, report::restore).await)
            }
            ClientCommand::Unlock(arguments) => self.call(&arguments.request()?, report::unlock).await,
            ClientCommand::UnlockKey(arguments) => {
                let request = arguments.request();
                let render = if arguments.quiet { report::unlock_key_alone } else { report::unlock_key };
                at_large(request.rotate.as_ref(), self.call(&request, render).await)
            }
            ClientCommand::Store { command: None } => self.call(&StoreRequest {}, report::store).await,
            ClientCommand::Store { command: Some(StoreCommand::Migrate(arguments)) } => {
                self.call(&arguments.request()?, report::migrate_store).await
            }
            ClientCommand::Create(arguments) => self.call(&arguments.request()?, report::create).await,
            ClientCommand::Ls => self.call(&ListNetworksRequest {}, tables::networks).await,
            ClientCommand::Inspect { network } => {
                self.call(&InspectNetworkRequest { network }, report::inspect).await
            }
            ClientCommand::Rm { network } => {
                self.call(&RemoveNetworkRequest { network }, report::remove).await
            }
            ClientCommand::Attach(arguments) => self.call(&arguments.request()?, report::attach).await,
            ClientCommand::Detach { network, netns, endpoint } => {
                let target = match (netns, endpoint) {
                    (Some(netns), _) => DetachTarget::Netns(netns::resolve(&netns)?),
                    (None, Some(endpoint)) => DetachTarget::Endpoint(endpoint),
                    (None, None) => {
                        return Err(CliError::Usage("detach needs --netns or --endpoint".into()));
                    }
                };
                self.call(&DetachRequest { network, target }, report::detach).await
            }
            ClientCommand::Status(status) if status.verify => self.verify().await,
            ClientCommand::Status(_) => self.call(&StatusRequest {}, report::status).await,
            ClientCommand::Node(command) => self.node(command).await,
            ClientCommand::Peers => self.call(&PeersRequest {}, tables::peers).await,
            ClientCommand::Rekey(arguments) => self.rekey(&arguments.request()).await,
            ClientCommand::Ca { command: None } => self.call(&CaRequest {}, report::ca::roots).await,
            ClientCommand::Ca { command: Some(CaCommand::Status) } => {
                self.call(&CaStatusRequest {}, report::ca::status).await
            }
            ClientCommand::Ca { command: Some(CaCommand::Rotate(arguments)) } => {
                let (request, files) = (arguments.request()?, arguments.files());
                let outcome = if arguments.detach {
                    self.call(&request, report::ca::status).await
                } else {
                    rotation::follow(&self.client, &request, self.json).await
                };
                of_files(files, outcome)
            }
            ClientCommand::Stats => self.call(&StatsRequest {}, tables::stats).await,
        }
    }

    async fn rekey(&self, request: &RekeyRequest) -> Result<String, CliError> {
        let response = self.client.call(request).await?;
        let report = if self.json { as_json(&response) } else { tables::rekeyed(&response) };
        match response.links.iter().filter(|link| link.failure.is_some()).count() {
            0 => Ok(report),
            failed => Err(CliError::NotRenewed { report, failed, of: response.links.len() }),
        }
    }

    async fn verify(&self) -> Result<String, CliError> {
        let response = self.client.call(&VerifyRequest::default()).await?;
        let report = if self.json { as_json(&response) } else { tables::verified(&response) };
        match response.differing().count() {
            0 => Ok(report),
            differing => Err(CliError::Differs { report, differing, of: response.items.len() }),
        }
    }

    async fn node(&self, command: NodeCommand) -> Result<String, CliError> {
        match command {
            NodeCommand::Ls => self.call(&ListNodesRequest {}, tables::nodes).await,
            NodeCommand::Inspect(node) => self.call(&node.inspect(), report::inspect_node).await,
            NodeCommand::Rm { node, force } => self.call(&node.remove(force), report::remove_node).await,
            NodeCommand::Update(update) => self.call(&update.request()?, report::change_node).await,
            NodeCommand::Promote(node) => {
                self.call(&node.change(NodeChange::Promote), report::change_node).await
            }
            NodeCommand::Demote(node) => {
                self.call(&node.change(NodeChange::Demote), report::change_node).await
            }
        }
    }

    async fn token(&self, arguments: &TokenArguments) -> Result<String, CliError> {
        match arguments.wish() {
            TokenWish::Standing(request) => {
                let render = if arguments.quiet { report::token_alone } else { report::token };
                self.call(&request, render).await
            }
            TokenWish::Issue(request) => {
                let render = if arguments.quiet { tables::issued_alone } else { tables::issued };
                self.call(&request, render).await
            }
            TokenWish::List => self.call(&ListTokensRequest {}, tables::tokens).await,
            TokenWish::Remove(token) => self.call(&RemoveTokenRequest { token }, tables::removed).await,
        }
    }

    async fn back_up(&self, arguments: &BackupArguments) -> Result<String, CliError> {
        let BackupArguments { file, force, .. } = arguments;
        backup::refuse_existing(file, *force)?;
        let request = BackupRequest { passphrase: arguments.passphrase()? };
        let BackupResponse { cluster, node, sealed } = self.client.call(&request).await?;
        let sealed = data_encoding::BASE64.decode(sealed.as_bytes()).map_err(|e| self.client.garbled(e))?;
        backup::write(file, &sealed, *force)?;
        let made = report::BackedUp { cluster, node, file: file.clone(), bytes: sealed.len() };
        Ok(if self.json { as_json(&made) } else { report::backup(&made) })
    }

    async fn call<C: Call>(
        &self,
        request: &C,
        render: impl Fn(&C::Response) -> String,
    ) -> Result<String, CliError> {
        let response = self.client.call(request).await?;
        Ok(if self.json { as_json(&response) } else { render(&response) })
    }
}

/// Shows a new unlock key that the agent may have taken although it did not say so.
fn at_large(key: Option<&UnlockKey>, outcome: Result<String, CliError>) -> Result<String, CliError> {
    match (key, outcome) {
        (Some(key), Err(CliError::Agent(failure))) if failure.may_have_been_done() => {
            Err(CliError::UnlockKeyAtLarge { key: key.clone(), failure })
        }
        (_, outcome) => outcome,
    }
}

fn as_json(response: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(response).expect("a response came out of JSON");
    text.push('\n');
    text
}
