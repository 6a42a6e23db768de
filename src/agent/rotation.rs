//! The manager's part in replacing the root: begins it, takes each step when the nodes are ready for
//! it, and tells how far it is. What the steps are is the business of `control::state`.

use std::sync::Arc;
use std::time::Duration;

use super::authority::StoredAuthority;
use super::manager::Manager;
use crate::cluster::RotationStep;
use crate::control::ca::CertificateAuthority;
use crate::control::rpc::messages::{CaStatus, Done, RotateCa, RotationStatus, WaitedFor};
use crate::control::rpc::{ErrorKind, ManagerError};
use crate::control::state::{Advance, NewRotation, StateError};
use crate::events::Event;
use crate::io::clock::wall_clock;
use crate::membership::{Root, RootFingerprint};

impl Manager {
    /// Begins to replace the root by one that is brought, or made.
    pub(super) async fn rotate(&self, request: RotateCa) -> Result<Done, ManagerError> {
        let life = self.certificate_life();
        let internal =
            |error: &dyn std::fmt::Display| ManagerError::new(ErrorKind::Internal, error.to_string());
        let invalid =
            |error: &dyn std::fmt::Display| ManagerError::new(ErrorKind::Invalid, error.to_string());
        let now = wall_clock();
        if self.state.rotation().is_some() {
            return Err(StateError::RotationUnderWay.into());
        }
        let new = {
            let old = self.on_state(|state| Ok(StoredAuthority::open(state))).await?;
            let old = old.map_err(|error| internal(&error))?;
            let coming = match &request.brought {
                None => {
                    CertificateAuthority::create(self.state.id(), now).map_err(|error| internal(&error))?
                }
                Some((certificate, key)) => {
                    CertificateAuthority::import(self.state.id(), certificate, key, life, now)
                        .map_err(|error| invalid(&error))?
                }
            };
            let cross = old.cross_sign(coming.root(), now).map_err(|error| invalid(&error))?;
            NewRotation {
                new: Root::crossed(coming.root().to_vec(), cross.to_vec()),
                ca: StoredAuthority::store(&coming),
                now: u64::try_from(now.unix_timestamp()).unwrap_or(0),
            }
        };
        let root = new.new.fingerprint();
        self.on_state(move |state| state.begin_rotation(new)).await?;
        tracing::info!(%root, "the root is being replaced");
        self.events.record(Event::RotationStep { step: RotationStep::Trust });
        Ok(Done {})
    }

    /// Takes each step of a rotation as soon as every node has done its part, until the state ends.
    pub(super) async fn keep_rotation(self: Arc<Self>) {
        let mut versions = self.state.versions();
        loop {
            versions.borrow_and_update();
            let advanced = match self.state.rotation() {
                Some((_, waiting)) if waiting.is_empty() => {
                    self.on_state(|state| state.advance_rotation()).await
                }
                Some(_) | None => Ok(Advance::Waiting),
            };
            match advanced {
                Ok(Advance::To(step)) => {
                    tracing::info!(step = step.describe(), "the root is being replaced");
                    self.events.record(Event::RotationStep { step });
                }
                Ok(Advance::Done) => {
                    tracing::info!("the root is replaced: join tokens of the old one are void");
                    self.events.record(Event::RotationEnded {});
                }
                Ok(Advance::Waiting) => {
                    if versions.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the replacement of the root does not get on; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// How far a rotation is.
    pub(super) async fn rotation_status(&self) -> CaStatus {
        let roots = self.state.roots();
        let issuing = roots.issuing().map_or_else(|| RootFingerprint::of(&[]), Root::fingerprint);
        let issuing_ends_unix_seconds = roots.issuing().and_then(Root::ends_unix_seconds);
        let Some((rotation, waiting)) = self.state.rotation() else {
            return CaStatus { issuing, issuing_ends_unix_seconds, rotation: None };
        };
        let nodes = self.state.nodes();
        let census = self.census().await;
        let waiting = waiting.into_iter().map(|node| {
            let connected = census.connected.contains(&node.id);
            let away_seconds = census.away_seconds(node.id);
            WaitedFor { node: node.id, name: node.name, away_seconds, connected }
        });
        let rotation = RotationStatus {
            step: rotation.step,
            begun_unix_seconds: rotation.begun,
            old: rotation.old.fingerprint(),
            new: rotation.new.fingerprint(),
            nodes: u64::try_from(nodes.len()).unwrap_or(u64::MAX),
            waiting: waiting.collect(),
        };
        CaStatus { issuing, issuing_ends_unix_seconds, rotation: Some(rotation) }
    }
}

/// Before another attempt after a disk has failed.
const PAUSE: Duration = Duration::from_secs(1);
