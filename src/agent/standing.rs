//! What this node tells managers of itself: where it is, and which of the cluster's roots it trusts, once
//! it has stored them.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::watch;

use super::underlay::Underlay;
use crate::cluster::{Node, View};
use crate::control::identity::IdentityError;
use crate::control::rpc::messages::{RootStanding, SessionRequest};
use crate::control::tls::Credentials;
use crate::membership::{RootFingerprint, Roots};

/// What managers are told; another session begins when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// The roots that are stored, and that of the certificate.
    pub(super) roots: RootStanding,
    /// A session is held over a connection of the certificate that the node has, not of the last one.
    certificate_ends: OffsetDateTime,
}

/// The roots of this node, and what managers know of them.
#[derive(Debug)]
pub(super) struct Standing {
    credentials: Arc<Credentials>,
    told: watch::Sender<Told>,
}

impl Standing {
    /// Of a node whose stored roots are those that `credentials` trust.
    pub(super) fn new(credentials: Arc<Credentials>) -> Arc<Self> {
        let told = watch::Sender::new(told(&credentials, credentials.trust().roots()));
        Arc::new(Self { credentials, told })
    }

    /// What managers are to be told.
    pub(super) fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    /// Takes the roots of a view, if they follow from those that are trusted; the view with the roots
    /// that are in force.
    pub(super) fn follow(&self, view: Arc<View>, is_manager: bool) -> Arc<View> {
        let trust = self.credentials.trust();
        // A manager's trust follows its own state.
        if is_manager || *trust.roots() == view.roots {
            return view;
        }
        let kept = || Arc::new(View { roots: trust.roots().clone(), ..View::clone(&view) });
        if view.roots.is_empty() {
            return kept();
        }
        if let Err(error) = view.roots.follow_from(trust.roots()) {
            tracing::error!(%error, "the manager names a root that is not believed; the known ones stay");
            return kept();
        }
        match trust.with_roots(view.roots.clone()) {
            // Who is removed meanwhile stays so.
            Ok(other) => self.credentials.change_trust(|trust| trust.under_roots_of(&other)),
            Err(error) => {
                tracing::error!(%error, "the manager names a root that cannot be used; the known ones stay");
                return kept();
            }
        }
        view
    }

    /// Takes roots that a token vouches for, once they are stored.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub(super) fn adopt(&self, roots: &Roots) -> Result<(), IdentityError> {
        if roots.is_empty() {
            return Ok(());
        }
        let other = self.credentials.trust().with_roots(roots.clone())?;
        self.credentials.change_trust(|trust| trust.under_roots_of(&other));
        self.stored(roots);
        Ok(())
    }

    /// Takes note that roots were stored.
    pub(super) fn stored(&self, roots: &Roots) {
        if !roots.is_empty() {
            self.tell(told(&self.credentials, roots));
        }
    }

    /// Takes note that the certificate was renewed, and stored.
    pub(super) fn renewed(&self) {
        let trusted = self.told.borrow().roots.trusted.clone();
        let mut now = told(&self.credentials, &Roots::default());
        now.roots.trusted = trusted;
        self.tell(now);
    }

    fn tell(&self, now: Told) {
        self.told.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }
}

fn told(credentials: &Credentials, roots: &Roots) -> Told {
    let identity = credentials.identity();
    let roots = RootStanding {
        trusted: roots.iter().map(|root| root.fingerprint()).collect(),
        issuer: RootFingerprint::of(identity.root()),
    };
    Told { roots, certificate_ends: identity.expires() }
}

/// What this node tells a manager at the beginning of a session.
pub(super) fn session_request(
    node: Node,
    underlay: watch::Receiver<Underlay>,
    told: watch::Receiver<Told>,
) -> impl FnMut() -> SessionRequest + Send {
    move || SessionRequest { node: underlay.borrow().of(&node), standing: Some(told.borrow().roots.clone()) }
}

/// Says when either changes.
pub(super) async fn merge<A: Sync + Send, B: Sync + Send>(
    (mut one, mut other): (watch::Receiver<A>, watch::Receiver<B>),
    changes: watch::Sender<()>,
) {
    loop {
        let changed = tokio::select! {
            changed = one.changed() => changed,
            changed = other.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        changes.send_replace(());
    }
}
