//! The nodes that were removed from the cluster, in a list that a manager signed; nodes pass it on.
//!
//! One list with an epoch for the whole cluster: a newer one replaces an older one, and names again
//! whoever is still to be refused. It says as well who is a manager no more, whose certificates may say
//! otherwise for long. A removed node is named until its last certificate has expired, a former manager for good, as
//! signatures outlive certificates; how long that is, and that the list is not too long for the key channel, is
//! `control::state`'s business.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::roots::Roots;
use super::signed::{MembershipError, News, Signed, Statement};
use crate::id::{ClusterId, Epoch, NodeId, Version};

/// The nodes that every node refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removals {
    /// Grows with every change; an older list never replaces a newer one.
    #[serde(rename = "removals_epoch")]
    pub epoch: Epoch,
    /// The nodes.
    #[serde(rename = "removed_nodes")]
    pub nodes: BTreeSet<NodeId>,
    /// Nodes that are managers no more by any certificate that was issued until this version of the
    /// cluster's state; one that is made a manager again gets a later one.
    #[serde(rename = "demoted_managers", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub demoted: BTreeMap<NodeId, Version>,
}

impl Statement for Removals {
    const NONE: &'static str = "it is no list of removed nodes";
}

/// [`Removals`] with a manager's signature.
pub type SignedRemovals = Signed<Removals>;

/// The newest verified list.
#[derive(Debug, Clone)]
pub struct KnownRemovals {
    roots: Roots,
    cluster: ClusterId,
    newest: Option<(Removals, SignedRemovals)>,
}

impl KnownRemovals {
    /// Nothing known yet; `roots` are the cluster's.
    pub const fn new(roots: Roots, cluster: ClusterId) -> Self {
        Self { roots, cluster, newest: None }
    }

    /// Believes in other roots from now on; what was believed stays known.
    pub fn trust(&mut self, roots: Roots) {
        self.roots = roots;
    }

    /// Verifies a list and keeps it if it is newer. What is not newer is not worth verifying: in a large
    /// cluster each node hears each list from every peer.
    ///
    /// # Errors
    /// See [`SignedRemovals::verify`].
    pub fn accept(
        &mut self,
        signed: &SignedRemovals,
        removed: &BTreeSet<NodeId>,
    ) -> Result<News, MembershipError> {
        let claimed = signed.claim()?.epoch;
        match self.epoch() {
            Some(known) if claimed < known => return Ok(News::Older),
            Some(known) if claimed == known => return Ok(News::Known),
            Some(_) | None => {}
        }
        let removals = signed.verify_but(&self.roots, self.cluster, removed, &self.demoted())?;
        self.newest = Some((removals, signed.clone()));
        Ok(News::Newer)
    }

    /// The nodes of the newest list.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.newest.iter().flat_map(|(removals, _)| removals.nodes.iter().copied())
    }

    /// The nodes that the newest list says to be managers no more.
    pub fn demoted(&self) -> BTreeMap<NodeId, Version> {
        self.newest.as_ref().map(|(removals, _)| removals.demoted.clone()).unwrap_or_default()
    }

    /// The epoch of the newest list.
    pub fn epoch(&self) -> Option<Epoch> {
        self.newest.as_ref().map(|(removals, _)| removals.epoch)
    }

    /// The newest list with its signature, to pass on.
    pub fn signed(&self) -> Option<&SignedRemovals> {
        self.newest.as_ref().map(|(_, signed)| signed)
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::super::SignedMembership;
    use super::super::signed::tests::{Ca, cluster, signer};
    use super::*;
    use crate::cluster::Membership;
    use crate::id::{NetworkId, Vni};

    #[test]
    fn list_signed_by_a_manager_is_believed_and_by_nobody_else() {
        let ca = Ca::new();
        let none = BTreeSet::new();
        let sign = |ca: &Ca, unit| SignedRemovals::sign(&removals(3, &[1, 2]), ca.signer(unit, cluster()));
        let good = sign(&ca, MANAGER).unwrap();
        assert_eq!(good.verify(&ca.roots(), cluster(), &none), Ok(removals(3, &[1, 2])));

        let error = sign(&ca, "overlayd-worker").unwrap().verify(&ca.roots(), cluster(), &none);
        assert!(matches!(error, Err(MembershipError::NotAManager { .. })), "{error:?}");
        let error = sign(&Ca::new(), MANAGER).unwrap().verify(&ca.roots(), cluster(), &none);
        assert_eq!(error, Err(MembershipError::OtherRoot));
        let error = good.verify(&ca.roots(), cluster(), &[signer()].into());
        assert_eq!(error, Err(MembershipError::RemovedManager { signer: signer() }));
        let payload = good.payload.replace('3', "4");
        let error = SignedRemovals { payload, ..good }.verify(&ca.roots(), cluster(), &none);
        assert_eq!(error, Err(MembershipError::BadSignature));
    }

    #[test]
    fn membership_and_list_are_never_taken_for_one_another() {
        let ca = Ca::new();
        let none = BTreeSet::new();
        let membership = Membership {
            network: NetworkId::from_entropy([1; 16]),
            vni: Vni::new(7).unwrap(),
            epoch: Epoch::new(9),
            nodes: [signer()].into(),
        };
        let signed = SignedMembership::sign(&membership, ca.signer(MANAGER, cluster())).unwrap();
        let SignedMembership { payload, certificate, signature, .. } = signed;
        let as_list = SignedRemovals { payload, certificate, signature, says: PhantomData };
        let error = as_list.verify(&ca.roots(), cluster(), &none);
        assert!(matches!(error, Err(MembershipError::Malformed(_))), "{error:?}");

        let signed = SignedRemovals::sign(&removals(9, &[1]), ca.signer(MANAGER, cluster())).unwrap();
        let SignedRemovals { payload, certificate, signature, .. } = signed;
        let as_membership = SignedMembership { payload, certificate, signature, says: PhantomData };
        let error = as_membership.verify(&ca.roots(), cluster(), &none);
        assert!(matches!(error, Err(MembershipError::Malformed(_))), "{error:?}");
    }

    #[test]
    fn older_list_never_replaces_a_newer_one_and_a_forged_one_nothing() {
        let ca = Ca::new();
        let none = BTreeSet::new();
        let sign =
            |ca: &Ca, removals| SignedRemovals::sign(&removals, ca.signer(MANAGER, cluster())).unwrap();
        let mut known = KnownRemovals::new(ca.roots(), cluster());
        assert_eq!((known.epoch(), known.signed()), (None, None));
        assert_eq!(known.accept(&sign(&ca, removals(4, &[1])), &none), Ok(News::Newer));
        assert_eq!(known.accept(&sign(&ca, removals(4, &[1])), &none), Ok(News::Known));
        assert_eq!(known.accept(&sign(&ca, removals(3, &[])), &none), Ok(News::Older));
        let forged = sign(&Ca::new(), removals(99, &[]));
        assert_eq!(known.accept(&forged, &none), Err(MembershipError::OtherRoot));
        assert_eq!(known.epoch(), Some(Epoch::new(4)));
        assert_eq!(known.accept(&sign(&ca, removals(6, &[1, 2])), &none), Ok(News::Newer));
        assert_eq!(known.nodes().collect::<BTreeSet<_>>(), removals(6, &[1, 2]).nodes);
    }

    #[test]
    fn demoted_manager_cannot_take_that_back_by_a_newer_list() {
        let ca = Ca::new();
        let none = BTreeSet::new();
        let sign = |epoch, demoted: &[(NodeId, Version)], version| {
            let list = Removals { demoted: demoted.iter().copied().collect(), ..removals(epoch, &[]) };
            SignedRemovals::sign(&list, ca.signer_of(MANAGER, cluster(), &[version])).unwrap()
        };
        let mut known = KnownRemovals::new(ca.roots(), cluster());
        let demoted = [(signer(), Version::new(7))];
        assert_eq!(known.accept(&sign(1, &demoted, 3), &none), Ok(News::Newer));
        assert_eq!(known.demoted(), demoted.into());
        let error = known.accept(&sign(2, &[], 7), &none);
        assert_eq!(error, Err(MembershipError::DemotedManager { signer: signer() }));
        // Made a manager again, it is believed, also by those who have heard of its demotion only.
        assert_eq!(known.accept(&sign(3, &demoted, 9), &none), Ok(News::Newer));
    }

    #[test]
    fn list_without_demoted_managers_is_as_it_was_before_there_were_any() {
        let list = serde_json::to_string(&removals(3, &[])).unwrap();
        assert_eq!(list, r#"{"removals_epoch":3,"removed_nodes":[]}"#);
        assert_eq!(serde_json::from_str::<Removals>(&list).unwrap(), removals(3, &[]));
    }

    #[test]
    fn garbage_is_malformed_and_never_panics() {
        let ca = Ca::new();
        let mut known = KnownRemovals::new(ca.roots(), cluster());
        let good = SignedRemovals::sign(&removals(1, &[1]), ca.signer(MANAGER, cluster())).unwrap();
        for bad in [
            SignedRemovals { payload: "{}".into(), ..good.clone() },
            SignedRemovals { certificate: "!".into(), ..good.clone() },
            SignedRemovals { signature: "!".into(), ..good },
        ] {
            let error = known.accept(&bad, &BTreeSet::new()).unwrap_err();
            assert!(matches!(error, MembershipError::Malformed(_)), "{error}");
        }
        assert_eq!(known.epoch(), None);
    }

    fn removals(epoch: u64, nodes: &[u8]) -> Removals {
        Removals {
            epoch: Epoch::new(epoch),
            nodes: nodes.iter().map(|n| NodeId::from_entropy([*n; 16])).collect(),
            demoted: BTreeMap::new(),
        }
    }

    const MANAGER: &str = "overlayd-manager";
}
