//! The root of the cluster, and its replacement by another in three steps, each one transaction:
//!
//! ```text
//! trust     both roots are told to every node; certificates are still of the old one
//! reissue   the new one signs; every node is to have a certificate of it
//! retire    what managers signed is signed anew; only the new root is told to every node
//! ```
//! A step ends when every node has said that it has done its part, so a node that is away holds it up
//! until it comes back or is removed. The old root's key is gone with the first step.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::model::{Change, Model, ONLY};
use super::{ClusterState, StateError};
use crate::cluster::{Node, RotationStep};
use crate::control::store::Table;
use crate::id::NodeId;
use crate::membership::{Root, RootFingerprint, Roots};

/// The rotation that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Which step.
    pub step: RotationStep,
    /// When it was begun, in seconds since 1970.
    pub begun: u64,
    /// The root that goes.
    pub old: Root,
    /// The root that comes, signed by the one that goes.
    pub new: Root,
}

impl Rotation {
    /// Whether a node has done its part of the step.
    fn is_done_by(&self, standing: Option<&RootStanding>) -> bool {
        let Some(standing) = standing else { return false };
        match self.step {
            RotationStep::Trust => standing.trusted.contains(&self.new.fingerprint()),
            RotationStep::Reissue => standing.issuer == self.new.fingerprint(),
            RotationStep::Retire => !standing.trusted.contains(&self.old.fingerprint()),
        }
    }
}

/// Which roots a node trusts, and which signed its certificate, by its own word: it stored both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootStanding {
    /// The roots that it trusts.
    pub trusted: BTreeSet<RootFingerprint>,
    /// The root of its certificate.
    pub issuer: RootFingerprint,
}

/// What a rotation begins with.
#[derive(Debug, Clone)]
pub struct NewRotation {
    /// The root that comes, signed by the present one. Not the other way round: who has stolen the old
    /// root's key could present such a signature for ever.
    pub new: Root,
    /// The authority that comes, with its key; opaque to the state.
    pub ca: Zeroizing<Vec<u8>>,
    /// Now, in seconds since 1970.
    pub now: u64,
}

/// The root, or both of a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootsRow {
    /// Outside of a rotation.
    pub(super) root: Roots,
    pub(super) rotation: Option<Rotation>,
}

impl RootsRow {
    /// What every node is to trust now.
    fn told(&self) -> Roots {
        let Some(Rotation { step, old, new, .. }) = &self.rotation else { return self.root.clone() };
        match step {
            RotationStep::Trust => Roots::pair(old.clone(), new.clone()),
            RotationStep::Reissue => Roots::pair(new.clone(), old.clone()),
            RotationStep::Retire => Roots::sole(new.der()),
        }
    }
}

impl ClusterState {
    /// The roots that every node is to trust now, the one that signs first.
    pub fn roots(&self) -> Roots {
        self.model().roots()
    }

    /// The rotation that is under way, and the nodes that it waits for.
    pub fn rotation(&self) -> Option<(Rotation, Vec<Node>)> {
        let model = self.model();
        let rotation = model.roots.rotation.clone()?;
        let waiting = model.waited_for(&rotation).cloned().collect();
        Some((rotation, waiting))
    }

    /// Takes note of the root of a state that was made before roots could be replaced.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn name_root(&self, der: &[u8]) -> Result<(), StateError> {
        self.change_if_needed(|model| {
            if !model.roots.root.is_empty() {
                return Ok(((), Vec::new()));
            }
            Ok(((), vec![Change::PutRoots(RootsRow { root: Roots::sole(der), rotation: None })]))
        })
    }

    /// Begins to replace the root.
    ///
    /// # Errors
    /// A rotation is under way, the new root is the present one, or the disk refuses.
    pub fn begin_rotation(&self, new: NewRotation) -> Result<(), StateError> {
        self.change(|model| {
            if model.roots.rotation.is_some() {
                return Err(StateError::RotationUnderWay);
            }
            let NewRotation { new, ca, now } = new.clone();
            let old = model
                .roots
                .root
                .issuing()
                .cloned()
                .ok_or_else(|| StateError::Inconsistent { why: "the root is missing".to_owned() })?;
            if old.der() == new.der() {
                return Err(StateError::SameRoot);
            }
            let rotation = Rotation { step: RotationStep::Trust, begun: now, old, new };
            let row = RootsRow { rotation: Some(rotation), ..model.roots.clone() };
            Ok(((), vec![Change::PutComingCa(SecretDigits::of(&ca)), Change::PutRoots(row)]))
        })
    }

    /// Takes the next step, if every node has done its part of the present one; the step that was
    /// taken, or `None` for the end.
    ///
    /// # Errors
    /// A membership cannot be signed or the disk refuses; then nothing has changed.
    pub fn advance_rotation(&self) -> Result<Advance, StateError> {
        self.change(|model| {
            let Some(rotation) = &model.roots.rotation else { return Ok((Advance::Waiting, Vec::new())) };
            if model.waited_for(rotation).next().is_some() {
                return Ok((Advance::Waiting, Vec::new()));
            }
            let at = |step| {
                let rotation = Rotation { step, ..rotation.clone() };
                Change::PutRoots(RootsRow { rotation: Some(rotation), ..model.roots.clone() })
            };
            Ok(match rotation.step {
                RotationStep::Trust => {
                    // What is read is of this moment or later, and later the change is decided again.
                    let (coming, _) = self.rows().read(|r| r.get(&COMING_CA, ONLY))?;
                    let ca = coming.ok_or_else(|| StateError::Inconsistent {
                        why: "the authority that is to come is missing".to_owned(),
                    })?;
                    let changes = vec![
                        Change::PutCa(SecretDigits(ca)),
                        Change::DropComingCa,
                        at(RotationStep::Reissue),
                    ];
                    (Advance::To(RotationStep::Reissue), changes)
                }
                RotationStep::Reissue => {
                    // In one transaction: nobody is told to drop a root that a signature needs.
                    let mut changes = self.signed_again(model)?;
                    changes.push(at(RotationStep::Retire));
                    (Advance::To(RotationStep::Retire), changes)
                }
                RotationStep::Retire => {
                    let row = RootsRow { root: Roots::sole(rotation.new.der()), rotation: None };
                    (Advance::Done, vec![Change::PutRoots(row)])
                }
            })
        })
    }

    /// Takes note of which roots a node trusts.
    ///
    /// # Errors
    /// It is no member, trusts more roots than there can be, or the disk refuses.
    pub fn note_standing(&self, node: NodeId, standing: RootStanding) -> Result<(), StateError> {
        if standing.trusted.len() > MOST_TRUSTED {
            return Err(StateError::TooManyRoots { count: standing.trusted.len() });
        }
        self.change_if_needed(|model| {
            model.member(node)?;
            if model.standings.get(&node) == Some(&standing) {
                return Ok(((), Vec::new()));
            }
            Ok(((), vec![Change::PutStanding(node, standing.clone())]))
        })
    }
}

/// An authority with its key as the file keeps it: hexadecimal digits, wiped after use.
#[derive(Clone)]
pub(super) struct SecretDigits(pub(super) Zeroizing<String>);

impl SecretDigits {
    fn of(ca: &[u8]) -> Self {
        Self(Zeroizing::new(data_encoding::HEXLOWER.encode(ca)))
    }
}

impl std::fmt::Debug for SecretDigits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretDigits([redacted])")
    }
}

/// What became of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// It waits for nodes, or there is none.
    Waiting,
    /// It has come to this step.
    To(RotationStep),
    /// It is over.
    Done,
}

impl Model {
    /// What every node is to trust now.
    pub(super) fn roots(&self) -> Roots {
        self.roots.told()
    }

    fn waited_for<'m>(&'m self, rotation: &'m Rotation) -> impl Iterator<Item = &'m Node> {
        self.nodes.values().filter(|node| !rotation.is_done_by(self.standings.get(&node.id)))
    }
}

/// In a rotation a node trusts two. Whoever says a long list would fill the store with it.
const MOST_TRUSTED: usize = 8;

pub(super) const ROOTS: Table<RootsRow> = Table::new("roots");
pub(super) const STANDINGS: Table<RootStanding> = Table::new("root_standings");
/// The authority of a rotation until it signs; read when it is needed.
pub(super) const COMING_CA: Table<Zeroizing<String>> = Table::new("coming_ca");
