//! A state that comes from a backup, or from an etcd that was put back to an earlier one: made later than all that
//! nodes may have heard since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::managers::Demoted;
use super::model::{COUNTERS, Change, FOUNDING, Model, NODES, ONLY};
use super::{ClusterState, NO_PANIC, SignPayload, StateError, subnets};
use crate::cluster::{Node, Role};
use crate::control::store::{Backup, BackupError, Batch, ClusterRows, Revision, Store};
use crate::id::{Epoch, HostName, NodeId, Version};

/// Where the manager is that a state was restored for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// The manager.
    pub node: NodeId,
    /// The one that was backed up: the same, or another where nodes know that one to be removed.
    pub in_place_of: NodeId,
    /// The name of its machine.
    pub name: HostName,
    /// Where its TLS port is reached.
    pub advertise: SocketAddr,
    /// Where its encrypted data is reached.
    pub data: SocketAddr,
    /// MTU of the interface that holds the data address, in bytes.
    pub underlay_mtu: u32,
}

/// What managers know of a state that was lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Its version; none for 0.
    version: Version,
    /// Who was removed by then: who was put out is not let in again by an older state.
    removed: BTreeMap<NodeId, u64>,
    demoted: BTreeMap<NodeId, Demoted>,
}

impl ClusterState {
    /// Raises the version, and the epoch of every membership and of the list of removed nodes, beyond
    /// what changes can have brought them to that this state does not know of: nodes keep the newest
    /// that they have heard. Such changes may have been made after an earlier restore, of this backup even, so it
    /// is beyond that too, by the time (`now`, seconds since 1970). The manager is `here` from now on, and the only one:
    /// others that there were shared a store that this state is not in, and nobody is to believe what they do with that.
    /// Where it is not the one that was backed up, that one stays removed, and it has its labels.
    ///
    /// # Errors
    /// When there is no state, the manager is no member or its address lies in a network's subnet,
    /// something cannot be signed, or the disk refuses; then nothing is changed.
    pub fn overtake(
        store: Store,
        sign: Box<SignPayload>,
        here: Whereabouts,
        now: u64,
    ) -> Result<(), StateError> {
        let state = Self::open(store, sign)?;
        let model = state.model();
        let mut counters = model.counters;
        counters.version = Version::new(raised(counters.version.get(), now));
        let Whereabouts { node, in_place_of, name, advertise, data, underlay_mtu } = here;
        let manager = model.member(in_place_of)?.clone();
        let manager = Node { id: node, name, advertise, data, underlay_mtu, ..manager };
        subnets::check_node(&model, &manager)?;
        // Nodes may know of removals though this state knows of none.
        let removals = model.removals.as_ref().map_or(0, |row| row.epoch.get());
        let row = Demoted { at: counters.version };
        let others: Vec<Node> = model.managers().filter(|other| other.id != node).cloned().collect();
        let (mut removed, mut demoted) = (model.removed.clone(), model.demoted.clone());
        demoted.extend(others.iter().map(|other| (other.id, row)));
        let gone = (in_place_of != node).then_some(in_place_of);
        // Its last certificate was made before it was removed.
        removed.extend(gone.map(|gone| (gone, now.saturating_add(model.founding.certificate_life_seconds))));
        let removals = state.removals_of(Epoch::new(raised(removals, now)), &removed, &demoted)?;
        let mut changes = vec![Change::PutNode(manager), removals];
        for other in others {
            changes.push(Change::PutDemoted(other.id, row));
            changes.push(match removed.get(&other.id) {
                Some(expiry) => Change::RemoveNode(other.id, *expiry),
                None => Change::PutNode(Node { role: Role::Worker, ..other }),
            });
        }
        if let Some(gone) = gone {
            changes
                .extend(model.profiles.get(&gone).map(|profile| Change::PutProfile(node, profile.clone())));
            changes.extend(model.standings.get(&gone).map(|known| Change::PutStanding(node, known.clone())));
            changes.extend(model.endpoints_of(gone).cloned().map(Change::DropEndpoint));
        }
        let gone = gone.into_iter().collect();
        state.add_memberships_beyond(&model, &gone, |epoch| raised(epoch, now), &mut changes)?;
        drop(model);
        let mut batch = Batch::default();
        changes.iter().try_for_each(|change| change.write(&mut batch))?;
        batch.put(&COUNTERS, ONLY, &counters)?;
        state.rows().commit(Revision::NOTHING, &batch, None)?;
        Ok(())
    }

    /// The version that [`Self::overtake`] makes this one, for a certificate that is to be later than all that was said
    /// of its manager since.
    pub fn version_beyond(&self, now: u64) -> Version {
        Version::new(raised(self.version().get(), now))
    }

    /// Takes note that a version was acknowledged that the state is not of any more, with those who were removed and
    /// demoted by then.
    pub(super) fn lose(
        &self,
        version: Version,
        removed: impl IntoIterator<Item = (NodeId, u64)>,
        demoted: impl IntoIterator<Item = (NodeId, Demoted)>,
    ) {
        let mut lost = self.inner.lost.lock().expect(NO_PANIC);
        lost.version = lost.version.max(version);
        lost.removed.extend(removed);
        lost.demoted.extend(demoted);
    }

    /// The version that was lost, as long as the state has not been made later than all that followed from it.
    pub(super) fn lost(&self, model: &Model) -> Option<Version> {
        let lost = self.inner.lost.lock().expect(NO_PANIC).version;
        let is_lost = lost.get() > 0 && !is_overtaken(lost.get(), model.counters.version.get());
        is_lost.then_some(lost)
    }

    /// The changes by which a state that was put back is later than all that nodes have heard; none where it is.
    pub(super) fn regained(&self, model: &Model, now: u64) -> Result<Vec<Change>, StateError> {
        let Some(lost) = self.lost(model) else { return Ok(Vec::new()) };
        // An epoch has grown by as many as there were changes, or fewer.
        let changes = lost.get().saturating_sub(model.counters.version.get());
        let beyond = |epoch: u64| raised(epoch.saturating_add(changes), now);
        let mut changes = Vec::new();
        let (mut removed, mut demoted) = (model.removed.clone(), model.demoted.clone());
        let known = self.inner.lost.lock().expect(NO_PANIC);
        // A state without a manager could be opened by nobody.
        let only = model.managers().map(|manager| manager.id).collect::<Vec<_>>();
        let stays = |id: &NodeId| model.removed.contains_key(id) || only == [*id];
        for (id, expiry) in known.removed.iter().filter(|(id, _)| !stays(id)) {
            changes.extend(model.endpoints_of(*id).cloned().map(Change::DropEndpoint));
            changes.push(Change::RemoveNode(*id, *expiry));
            removed.insert(*id, *expiry);
        }
        for (id, row) in &known.demoted {
            if demoted.get(id).is_none_or(|present| present.at < row.at) {
                changes.push(Change::PutDemoted(*id, *row));
                demoted.insert(*id, *row);
            }
        }
        drop(known);
        self.add_memberships_beyond(model, &removed.keys().copied().collect(), beyond, &mut changes)?;
        let removals = model.removals.as_ref().map_or(0, |row| row.epoch.get());
        changes.push(self.removals_of(Epoch::new(beyond(removals)), &removed, &demoted)?);
        changes.push(Change::RaiseVersion(Version::new(raised(lost.get(), now))));
        Ok(changes)
    }

    fn add_memberships_beyond(
        &self,
        model: &Model,
        without: &BTreeSet<NodeId>,
        beyond: impl Fn(u64) -> u64,
        changes: &mut Vec<Change>,
    ) -> Result<(), StateError> {
        for network in model.networks.values() {
            let members = network.members.keys().copied().filter(|member| !without.contains(member));
            let mut membership = network.next_membership(members.collect());
            membership.epoch = Epoch::new(beyond(membership.epoch.get()));
            changes.push(self.membership_of(network, &membership)?);
        }
        Ok(())
    }

    /// What a backup of this manager holds, which is `store`'s.
    ///
    /// # Errors
    /// When the state cannot be read, or is not where it should be: a backup without it is none.
    pub fn backup(&self, store: &Store, now_unix_seconds: u64) -> Result<Backup, StateError> {
        // What is in the file may be on its way out of it.
        let is_here = matches!(self.rows(), ClusterRows::File(_));
        let _stays = is_here.then(|| self.inner.changing.lock().expect(NO_PANIC));
        let rows = self.rows();
        let backup = store.backup_of(&rows, now_unix_seconds)?;
        if backup.has(&FOUNDING) { Ok(backup) } else { Err(Self::missing(&rows)) }
    }

    /// The nodes of the cluster that a backup is of.
    ///
    /// # Errors
    /// When it was not made of such a state.
    pub fn nodes_of(backup: &Backup) -> Result<Vec<Node>, BackupError> {
        backup.table(&NODES)
    }

    /// Whether this state was restored elsewhere since, by the epoch of a list of removed nodes that is
    /// signed and newer than the one here.
    pub fn is_overtaken_by(&self, removals: Epoch) -> bool {
        let own = self.model().removals.as_ref().map_or(0, |row| row.epoch.get());
        is_overtaken(own, removals.get())
    }
}

/// Whether `newer` comes from a state that was restored from a backup, and `own` from what it was restored over.
pub(crate) const fn is_overtaken(own: u64, newer: u64) -> bool {
    newer.saturating_sub(own) >= PACE / 2
}

/// What a number becomes that whoever counted on from it has not come to, be it in a state that was restored before:
/// since that moment the clock has gone faster. A clock that is behind the number is wrong, or was wrong then.
fn raised(number: u64, now: u64) -> u64 {
    let by_clock = now.saturating_mul(PACE).min(FURTHEST);
    if is_overtaken(number, by_clock) { by_clock } else { number.saturating_add(LEAP) }
}

/// More changes than a cluster makes in a second, and so few that the seconds since 1970, each as so many, are a number
/// that every program reads exactly (2^53) until the year 2242.
const PACE: u64 = 1 << 20;
/// Where no clock leads, so that there is always more to count to.
const FURTHEST: u64 = 1 << 62;
/// More changes than a cluster makes between two backups, and few enough for as many restores.
const LEAP: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raised_number_is_beyond_all_that_was_counted_to_since() {
        let year_2026 = 1_767_225_600;
        let first = raised(70, year_2026);
        assert!(is_overtaken(70, first) && !is_overtaken(70, 1070));
        // As many changes a second later as disks never make, from the same number and from a later one.
        let counted = first + 100_000;
        for number in [12, 70, counted] {
            assert!(is_overtaken(counted, raised(number, year_2026 + 1)), "{number}");
        }
        assert!(raised(counted, year_2026 + 200 * 365 * 86_400) < 1 << 53, "JSON's numbers are exact");
        // The clock is wrong now, or was when it was restored before.
        for now in [0, year_2026 - 86_400, year_2026] {
            assert!(is_overtaken(counted, raised(counted, now)), "{now}");
        }
        let last = (0..1000).fold(raised(1, u64::MAX), |number, _| raised(number, u64::MAX));
        assert!(last < 1 << 63, "there is more to count to");
    }
}
