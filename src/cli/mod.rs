//! The command line: arguments in, one call to the agent, text or JSON out.
//!
//! Every command but `agent`, `demo` and `bench` is a client of the agent's socket and runs here; those
//! three are programs of their own that `main` starts with what was parsed here. Rendering is pure, so
//! tests compare whole screens. For a container runtime it is all different, and in `cni`.

mod arguments;
mod backup;
pub mod cni;
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
pub use logging::start_log;
pub use netns::NetnsError;

use crate::api::types::VerifyRequest;
use crate::api::types::{BackupRequest, BackupResponse};
use crate::api::types::{
    CaRequest, CaStatusRequest, Call, DetachRequest, DetachTarget, InspectNetworkRequest,
    ListNetworksRequest, ListNodesRequest, NodeChange, PeersRequest, RekeyRequest, RemoveNetworkRequest,
    StatsRequest, StatusRequest, StoreRequest,
};
use crate::api::types::{ListTokensRequest, RemoveTokenRequest};
use crate::api::{Client, ClientError};
use crate::config::{ConfigError, DEFAULT_SOCKET};
use crate::unlock_key::{NotAnUnlockKey, UnlockKey};
use arguments::{BackupArguments, CaCommand, NodeCommand, StoreCommand, TokenArguments, TokenWish, of_files};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments contradict each other.
    #[error("{0}\n\nFor more information, try '--help'.")]
    Usage(String),
    /// The agent refuses or cannot be reached.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// `--netns` leads nowhere.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A file that the command names cannot be read.
    #[error("cannot read {}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The agent's configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Some links have no new keys.
    #[error("{failed} of {of} links have no new keys; what they have stays in use until its limits")]
    NotRenewed {
        /// What to print all the same.
        report: String,
        /// So many links.
        failed: usize,
        /// Of so many.
        of: usize,
    },
    /// Some of what there is on the node is not as it should be.
    #[error("{differing} of {of} items are not as they should be")]
    Differs {
        /// What to print all the same.
        report: String,
        /// So many items.
        differing: usize,
        /// Of so many.
        of: usize,
    },
    /// A secret cannot be read.
    #[error("cannot read the {what} from {from}")]
    Secret {
        /// What it is.
        what: String,
        /// Where it should be.
        from: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Two texts where there should have been one.
    #[error("the passphrase was not the same the second time: nothing was done")]
    TypedDifferently,
    /// A file is in the way.
    #[error("{} exists: give another name, or --force to replace it", file.display())]
    FileExists {
        /// The file.
        file: PathBuf,
    },
    /// The system refuses to read or write a backup.
    #[error("cannot {doing} the backup {}", file.display())]
    BackupFile {
        /// What was tried.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// What is to be restored is something else.
    #[error(
        "{} is not a backup of overlayd: {why}; give the file that `overlayd backup` wrote; nothing was changed",
        file.display()
    )]
    NoBackup {
        /// The file.
        file: PathBuf,
        /// How that can be told.
        why: &'static str,
    },
    /// What was given for an unlock key.
    #[error("cannot take the unlock key from {from}")]
    UnlockKey {
        /// Where it is from.
        from: String,
        /// What is wrong.
        source: NotAnUnlockKey,
    },
    /// The agent refuses a CA.
    #[error("{failure} (the CA that was given is that of {} and {})", certificate.display(), key.display())]
    BroughtCa {
        /// The file of its certificate.
        certificate: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// Why it is refused.
        failure: ClientError,
    },
    /// A key was sent, and whether it counts is not known.
    #[error(
        "{failure}\n\nShould the agent have taken the new unlock key all the same, it is:\n\n    {}",
        key.reveal().as_str()
    )]
    UnlockKeyAtLarge {
        /// The key.
        key: UnlockKey,
        /// Why nothing more is known.
        failure: ClientError,
    },
    /// The system refuses something that every command needs.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl CliError {
    /// What goes to standard output all the same.
    pub fn report(&self) -> Option<&str> {
        if let Self::NotRenewed { report, .. } | Self::Differs { report, .. } = self {
            Some(report)
        } else {
            None
        }
    }

    /// The exit code that tells a wrong command (2) from one that was refused or failed (1).
    pub const fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

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
