//! Keeps this node's certificate fresh: renewed at a random point of its later half, and again
//! until it succeeds. Connections made afterwards show the new one.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;

use super::identity::{CertificateName, IdentityError, NodeIdentity, NodeKey};
use super::rpc::messages::Renewed;
use super::rpc::{ManagerClient, ManagerError, messages};
use super::session::Backoff;
use super::tls::{Credentials, verify_identity};
use super::trust::{Refusal, Trust};
use crate::membership::RootFingerprint;

/// Who signs: a manager over the network, or the authority in this process.
pub trait Signer: Send + Sync {
    /// Signs a new certificate of this node for the key of `csr` (PEM).
    fn sign(&self, csr: String) -> impl Future<Output = Result<Renewed, ManagerError>> + Send;
}

impl Signer for ManagerClient {
    async fn sign(&self, csr: String) -> Result<Renewed, ManagerError> {
        self.renew(messages::Renew { csr }).await
    }
}

/// Renews for ever, and at once whenever `wanted` says so or the certificate is not valid yet: it was signed by a
/// clock that was ahead, and nobody accepts it. `persist` stores an identity before it is used;
/// `renewed` runs after it is, and is where clients reconnect.
pub async fn keep(
    credentials: Arc<Credentials>,
    (signer, wanted): (impl Signer, Arc<Notify>),
    persist: impl Fn(&NodeIdentity) -> Result<(), BoxedError> + Send + Sync,
    renewed: impl Fn() + Send + Sync,
) {
    loop {
        let due = credentials.identity().renew_at(&mut rand::rng());
        tokio::select! {
            () = sleep_until(due, &credentials) => {}
            () = wanted.notified() => {}
            () = other_root_signs(&credentials) => {
                // All nodes hear of it at once.
                tokio::time::sleep(SPREAD.mul_f64(rand::random())).await;
            }
        }
        let mut backoff = Backoff::new(Duration::from_secs(1), LONGEST_PAUSE);
        while let Err(error) = renew(&credentials, &signer, &persist).await {
            let expires = credentials.identity().expires();
            tracing::warn!(%error, %expires, "this node's certificate could not be renewed; trying again");
            tokio::time::sleep(backoff.next()).await;
        }
        tracing::info!(expires = %credentials.identity().expires(), "this node's certificate was renewed");
        renewed();
    }
}

/// Renews once: draws a key, has it signed, stores the identity and shows it from now on.
///
/// # Errors
/// The signer refuses or answers with another node's certificate, or the identity cannot be stored;
/// the old one stays in use.
pub async fn renew(
    credentials: &Credentials,
    signer: &impl Signer,
    persist: &(impl Fn(&NodeIdentity) -> Result<(), BoxedError> + Send + Sync),
) -> Result<(), RenewalError> {
    let old = credentials.identity();
    let key = NodeKey::generate()?;
    let answer = signer.sign(key.request_pem()?).await?;
    let root = answer.root.map_or_else(|| old.root().clone(), |root| root.der().to_vec().into());
    if !credentials.trust().roots().contains(&root) {
        return Err(RenewalError::Root(RootFingerprint::of(&root)));
    }
    let identity = NodeIdentity::new(answer.chain, &key, root)?;
    // What it may do is the manager's word.
    if identity.node() != old.node() {
        let leaf = identity.chain().first().ok_or(IdentityError::NotX509)?;
        return Err(RenewalError::Another(CertificateName::parse(leaf)?));
    }
    verify_identity(&identity, credentials.now())?;
    persist(&identity).map_err(RenewalError::Store)?;
    Ok(credentials.replace_identity(identity)?)
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The manager refuses or is not there.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The manager's answer cannot be used.
    #[error("the manager's new certificate cannot be used: {0}")]
    Identity(#[from] IdentityError),
    /// The certificate would be refused by others.
    #[error("the manager's new certificate would be refused: {0}")]
    Unusable(#[from] Refusal),
    /// The certificate is of a root that this node has not heard of.
    #[error("the manager's new certificate is of root {0}, which this node does not trust (yet)")]
    Root(RootFingerprint),
    /// The certificate is of another node.
    #[error("the manager's new certificate is of {} {}", .0.role, .0.node)]
    Another(CertificateName),
    /// The new identity cannot be stored.
    #[error("the new certificate cannot be stored: {0}")]
    Store(BoxedError),
}

/// Why the store refused; this module only prints it.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Waits until new certificates are of another root than this node's.
async fn other_root_signs(credentials: &Credentials) {
    let mut trust = credentials.watch_trust();
    let is_other = |trust: &Arc<Trust>| {
        trust.roots().issuing().is_some_and(|root| root.der() != credentials.identity().root().as_ref())
    };
    if trust.wait_for(is_other).await.is_err() {
        // The credentials hold the sender, and this holds the credentials.
        std::future::pending().await
    }
}

/// How long nodes that hear of a new root may wait before they ask for a certificate of it.
const SPREAD: Duration = Duration::from_secs(1);
/// How often the wall clock is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long after a failure the next attempt comes at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Looks at the wall clock again and again: a long sleep would not notice a suspend or a clock
/// that was set. A machine whose clock starts late may have a certificate of then, which nobody accepts once the
/// clock is set: nothing tells it from one whose certificate was signed by a clock that was ahead.
async fn sleep_until(due: OffsetDateTime, credentials: &Credentials) {
    loop {
        let now = credentials.now();
        let left = due - now;
        if !left.is_positive() || now < credentials.identity().begins() {
            return;
        }
        tokio::time::sleep(left.unsigned_abs().min(LOOK_INTERVAL)).await;
    }
}
