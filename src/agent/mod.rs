//! The node's daemon: builds everything, keeps actual equal to desired.
//!
//! [`run`] opens the state, brings back what the last run left, and answers on the unix socket
//! until it is told to stop. `member` is what runs while the node is in a cluster.

mod announcement;
mod attachments;
mod audit;
mod authority;
mod autolock;
mod backend;
mod backup;
mod ca;
mod chronicle;
mod condition;
mod container;
mod dataplane;
mod departure;
mod docker;
mod formation;
mod heard;
#[cfg(test)]
mod histories;
mod keys;
mod lane_state;
mod leftovers;
mod log_limit;
mod manager;
mod member;
mod nodes;
mod office;
mod offloads;
mod peer;
mod peers;
mod placement;
mod rekey;
mod removals;
mod report;
mod returning;
mod rotation;
mod runtimes;
mod saving;
mod slots;
mod sockets;
mod standing;
mod store;
mod superseded;
mod tasks;
#[cfg(test)]
mod testbed;
mod tokens;
mod underlay;
mod upkeep;
mod verification;
mod views;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::backend::Daemon;
pub use self::superseded::Superseded;
use crate::api::{self, ApiListener};
use crate::config::AgentConfig;
use crate::control::store::{Store, StoreError};
use crate::events::{Event, Events};
use crate::io::netns::NetNs;
use crate::sa;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// The state cannot be opened, a socket cannot be had, or a part fails that nothing works without.
pub fn run(config: AgentConfig) -> Result<()> {
    refuse_plaintext()?;
    keep_keys_out_of_core_dumps();
    allow_many_connections();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config));
    // A task in a system call must not keep the agent from ending.
    runtime.shutdown_background();
    result
}

/// A build that encrypts nothing runs for whoever knows what it is.
fn refuse_plaintext() -> Result<()> {
    if sa::ENCRYPTS {
        return Ok(());
    }
    if std::env::var_os(PLAINTEXT_VARIABLE).is_none_or(|value| value != PLAINTEXT_VALUE) {
        bail!(
            "this build encrypts NOTHING: it is for measuring what the ciphers cost; build without \
             --cfg overlayd_null_aead, or set {PLAINTEXT_VARIABLE}={PLAINTEXT_VALUE} for a measurement"
        );
    }
    tracing::error!("this build encrypts NOTHING: everything that it carries can be read and forged");
    Ok(())
}

async fn serve(config: AgentConfig) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let dir = config.state_dir.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let store = Store::open_or_create(&dir)?;
        // The lock on the directory is the store's.
        let drafts = store.remove_drafts();
        Ok::<_, StoreError>((store, Events::open(&dir), drafts))
    });
    let (store, events, drafts) = opened.await??;
    let is_socket_left = config.socket.exists();
    let listener = ApiListener::bind(&config.socket, SOCKET_GROUP)?;
    let docker = config.docker_socket.as_ref().map(|path| ApiListener::bind_private(path)).transpose()?;
    let metrics = config.metrics_listen;
    let (failed, mut failures) = mpsc::channel(1);
    tracing::info!(
        version = api::VERSION, state = %store.file().display(),
        socket = %config.socket.display(), "agent starts"
    );
    let keeping = tokio::spawn(events.clone().keep());
    tokio::spawn(events.clone().count_suppressed());
    events.record(Event::AgentStarted { version: api::VERSION.to_owned() });
    let files = is_socket_left.then(|| config.socket.clone()).into_iter().chain(drafts);
    files.for_each(|file| leftovers::tell(&events, &format_args!("file {}", file.display())));
    let started = tokio::select! {
        daemon = Daemon::start(config, store, events.clone(), failed) => daemon?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let daemon = Arc::new(started);
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    // Stopped or dropped, it is the end.
    let stopping = stopping.map(drop).shared();
    let api = tokio::spawn(api::serve(listener, Arc::clone(&daemon), stopping.clone()));
    let docker = docker
        .map(|listener| tokio::spawn(api::docker::serve(listener, Arc::clone(&daemon), stopping.clone())));
    let metrics =
        metrics.map(|address| tokio::spawn(serve_metrics(address, Arc::clone(&daemon), stopping.clone())));
    // Not started by systemd: nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("agent is ready");
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(failure) = failures.recv() => Err(failure),
    };
    tracing::info!("agent stops");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    events.record(Event::AgentStopped {});
    events.close();
    drop(stop);
    // A task or caller that is slow does not keep the agent from ending: the next start finishes or
    // takes back what was begun.
    let _ = tokio::time::timeout(STOP_TIMEOUT, async {
        daemon.stop().await;
        let _ = api.await;
        if let Some(docker) = docker {
            let _ = docker.await;
        }
        if let Some(metrics) = metrics {
            let _ = metrics.await;
        }
        let _ = keeping.await;
    })
    .await;
    result
}

async fn serve_metrics(
    address: SocketAddr,
    daemon: Arc<Daemon>,
    stop: impl Future<Output = ()> + Send + Clone,
) {
    tokio::select! {
        listener = listen_for_scrapers(address) => api::serve_metrics(listener, daemon, stop).await,
        () = stop.clone() => {}
    }
}

/// Tries until it can: the address may come later, and packets do not wait for scrapers.
async fn listen_for_scrapers(address: SocketAddr) -> TcpListener {
    let mut is_told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                if !address.ip().is_loopback() {
                    tracing::warn!(%address, "the metrics are for whoever reaches this port");
                }
                return listener;
            }
            Err(error) if !is_told => {
                is_told = true;
                tracing::warn!(%address, %error, "the metrics cannot be served over TCP (`ss -ltnp` names who has a port); trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(SCRAPERS_WAIT).await;
    }
}

/// How often the port for scrapers is tried while it cannot be had.
const SCRAPERS_WAIT: Duration = Duration::from_secs(2);

/// Keys live only in memory: no core file, and no other user's debugger.
fn keep_keys_out_of_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core files cannot be forbidden");
    }
    // A core_pattern that is a pipe ignores the limit. Undumpable, /proc/self belongs to the real
    // root, which a fake root in a user namespace needs open to find its own namespaces.
    let forbidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if forbidden.is_err() || NetNs::current().is_err() {
        let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
    }
}

/// A manager has a connection for each node, a node one for each peer, and the usual 1,024 are too few.
fn allow_many_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        tracing::warn!(%error, "no more than the usual number of files can be open");
    }
}

const STOP_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);
/// The group that may use the socket, where it exists.
const SOCKET_GROUP: &str = "overlayd";
/// Threads of the control plane; lanes have their own.
const CONTROL_THREADS: usize = 2;
/// What a build that encrypts nothing wants to be told.
const PLAINTEXT_VARIABLE: &str = "OVERLAYD_MEASURE_PLAINTEXT";
const PLAINTEXT_VALUE: &str = "nothing-is-encrypted";
