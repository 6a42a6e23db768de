//! What all peers of this node share when they agree on keys, and what `overlayd peers` shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::announcement::Said;
use super::dataplane::DataPlane;
use super::placement::LinkKey;
use super::slots::Hold;
use super::underlay::Underlay;
use crate::api::types::PeerState;
use crate::boot_time::BootTime;
use crate::control::tls::Credentials;
use crate::control::tls::peer::PeerIdentity;
use crate::events::Events;
use crate::id::{LaneCount, NetworkId, NodeId, Spi};
use crate::io::clock::boot_time;
use crate::negotiate::{Env, Established, Hello, Install, LaneKey, SpiPool, Whereabouts};
use crate::sa::{InboundSa, LimitOverrides, OutboundSa, Suite};
use crate::worker::{Command, LaneGone};

/// What the key exchanges of all peers share.
pub(crate) struct Keys {
    pub(super) node: NodeId,
    pub(super) hello: Hello,
    pub(super) receiving_lanes: LaneCount,
    pub(super) suites: Vec<Suite>,
    pub(super) limits: LimitOverrides,
    pub(super) dataplane: Arc<DataPlane>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) events: Events,
    /// Where this node is, as peers are told.
    pub(super) underlay: watch::Receiver<Underlay>,
    said: mpsc::Sender<Said>,
    key_log: Option<KeyLog>,
    spis: Mutex<SpiPool>,
    status: Mutex<BTreeMap<LinkKey, LinkStatus>>,
}

/// How far the keys of a link are.
#[derive(Debug, Clone)]
pub(crate) struct LinkStatus {
    pub(crate) state: PeerState,
    /// Why the last attempt failed, if it did.
    pub(crate) failure: Option<String>,
    pub(crate) established: Option<Established>,
    /// SPIs of the generation before, which this node still receives on.
    pub(crate) lingering: Vec<Spi>,
    /// SPIs of a generation to come, in and out, which lanes may have already.
    pub(crate) coming: [Vec<Spi>; 2],
    /// SPIs of the last generation, when it is over without another: nothing can be sealed with them.
    pub(crate) over: Vec<Spi>,
}

impl Keys {
    /// For this run of the agent, which `hello` names, with as many lanes that receive.
    pub(crate) fn new(
        (hello, receiving_lanes): (Hello, LaneCount),
        (suites, limits): (Vec<Suite>, LimitOverrides),
        dataplane: Arc<DataPlane>,
        credentials: Arc<Credentials>,
        (key_log, events): (Option<KeyLog>, Events),
        (underlay, said): (watch::Receiver<Underlay>, mpsc::Sender<Said>),
    ) -> Self {
        Self {
            node: credentials.identity().node(),
            hello,
            receiving_lanes,
            suites,
            limits,
            dataplane,
            credentials,
            events,
            underlay,
            said,
            key_log,
            spis: Mutex::default(),
            status: Mutex::default(),
        }
    }

    /// Hands on where a peer says that it is.
    pub(super) fn hear(&self, peer: &PeerIdentity, at: Whereabouts) {
        // Full: it is said again on the next channel.
        let _heard_or_not = self.said.try_send(Said::by(peer, at, &self.credentials.trust()));
    }

    /// Calls a link with the time, randomness and the SPIs of this node.
    pub(super) fn with_env<T>(&self, call: impl FnOnce(&mut Env<'_, rand::rngs::ThreadRng>) -> T) -> T {
        let mut spis = unpoisoned(&self.spis);
        call(&mut Env { now: boot_time(), rng: &mut rand::rng(), spis: &mut spis })
    }

    /// Gives SAs to their lanes, inbound ones first; true once they are in force, false if the link
    /// has ended.
    pub(super) async fn install(
        &self,
        link: (LinkKey, Hold),
        ipv6: bool,
        install: Install,
    ) -> Result<bool, LaneGone> {
        let (now, limits) = (boot_time(), install.limits);
        if let Some(log) = &self.key_log {
            log.append(install.inbound.iter().chain(&install.outbound), ipv6);
        }
        let commands = |link| {
            let inbound = install.inbound.into_iter().map(|LaneKey { lane, spi, key }| {
                let sa = InboundSa::new(spi, key, limits, now);
                (lane, Command::InstallInbound { link, sa })
            });
            let outbound = install.outbound.into_iter().map(|LaneKey { lane, spi, key }| {
                let sa = OutboundSa::new(spi, key, limits, now);
                (lane, Command::InstallOutbound { link, sa })
            });
            inbound.chain(outbound).collect()
        };
        self.dataplane.command_link(link, commands).await
    }

    /// Ends inbound SAs of a link at a time.
    pub(super) async fn retire(
        &self,
        link: (LinkKey, Hold),
        spis: Vec<Spi>,
        at: BootTime,
    ) -> Result<(), LaneGone> {
        let command = |spi: Spi| (spi.lane(), Command::RetireInbound { spi, at });
        // The keys of a link that has ended are gone already.
        self.dataplane.command_link(link, |_| spis.into_iter().map(command).collect()).await.map(|_| ())
    }

    /// How far the keys of each link are.
    pub(crate) fn status(&self) -> BTreeMap<LinkKey, LinkStatus> {
        self.lock_status().clone()
    }

    /// The peers that some network's keys are in use with.
    pub(super) fn keyed(&self) -> BTreeSet<NodeId> {
        let status = self.lock_status();
        let keyed = status.iter().filter(|(_, status)| status.established.is_some());
        keyed.map(|((_, node), _)| *node).collect()
    }

    /// Waits a moment until the keys of a network's links are in use, or an attempt has failed:
    /// then the first packets of a new endpoint need not be dropped.
    pub(crate) async fn settle(&self, network: NetworkId) {
        let settled = async {
            loop {
                let links = self.dataplane.links().await;
                let status = self.status();
                let is_settled = |key: &LinkKey| {
                    status.get(key).is_some_and(|s| s.established.is_some() || s.failure.is_some())
                };
                if links.keys().filter(|(id, _)| *id == network).all(is_settled) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // A peer that cannot be reached is no reason to refuse the endpoint.
        let _settled_or_not = tokio::time::timeout(SETTLE_TIMEOUT, settled).await;
    }

    pub(super) fn set_status(&self, key: LinkKey, change: impl FnOnce(&mut LinkStatus)) {
        let mut status = self.lock_status();
        change(status.entry(key).or_insert_with(|| LinkStatus {
            state: PeerState::Connecting,
            failure: None,
            established: None,
            lingering: Vec::new(),
            coming: Default::default(),
            over: Vec::new(),
        }));
    }

    pub(super) fn forget_status(&self, key: LinkKey) {
        self.lock_status().remove(&key);
    }

    fn lock_status(&self) -> MutexGuard<'_, BTreeMap<LinkKey, LinkStatus>> {
        unpoisoned(&self.status)
    }
}

/// The file of `--esp-key-log`: every key that is installed, as lines of Wireshark's `esp_sa` table.
#[derive(Debug)]
pub(crate) struct KeyLog {
    path: PathBuf,
    file: Mutex<File>,
}

impl KeyLog {
    /// Opens the file for appending, for its owner alone.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let mut permissions = file.metadata()?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        file.set_permissions(permissions)?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file) })
    }

    fn append<'k>(&self, keys: impl Iterator<Item = &'k LaneKey>, ipv6: bool) {
        let mut file = unpoisoned(&self.file);
        for LaneKey { spi, key, .. } in keys {
            let row = key.esp_sa_row(*spi, ipv6);
            if let Err(error) = writeln!(file, "{}", row.as_str()) {
                tracing::warn!(file = %self.path.display(), %error, "a key could not be logged");
            }
        }
    }
}

/// A set, a map and a file are whole between any two calls: the panic of one peer's task is no
/// reason to stop the others.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
