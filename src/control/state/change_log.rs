//! What changed of a network lately, so that its members are told of that alone.
//!
//! Kept in memory only; what is longer ago than it reaches is answered with the whole network.

use std::collections::VecDeque;

use crate::id::{EndpointId, NodeId, Version};

/// The latest changes of one network, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChangeLog {
    changes: VecDeque<(Version, Touched)>,
    /// Everything later than this is in it.
    since: Version,
}

/// A part of a network that is another, or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Touched {
    Membership,
    Endpoint(EndpointId),
    Node(NodeId),
}

impl ChangeLog {
    pub(super) const fn new(since: Version) -> Self {
        Self { changes: VecDeque::new(), since }
    }

    /// Takes note of a change; more than `size`, the parts of the network, are not worth keeping.
    pub(super) fn note(&mut self, version: Version, touched: Touched, size: usize) {
        self.changes.push_back((version, touched));
        while self.changes.len() > size.max(SHORTEST) {
            if let Some((dropped, _)) = self.changes.pop_front() {
                self.since = dropped;
            }
        }
    }

    /// What changed after `version`; `None` if that is too long ago.
    pub(super) fn after(&self, version: Version) -> Option<impl Iterator<Item = Touched>> {
        let first = self.changes.partition_point(|(at, _)| *at <= version);
        (version >= self.since).then(|| self.changes.range(first..).map(|(_, touched)| *touched))
    }

    /// When the latest change up to `version` was; `None` if that is too long ago.
    pub(super) fn latest(&self, version: Version) -> Option<Version> {
        let first = self.changes.partition_point(|(at, _)| *at <= version);
        let before = first.checked_sub(1).and_then(|last| self.changes.get(last));
        (version >= self.since).then(|| before.map_or(self.since, |(at, _)| *at))
    }
}

const SHORTEST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_is_as_long_as_the_network_and_says_where_it_ends() {
        let mut log = ChangeLog::new(Version::new(10));
        let touched = |n| Touched::Endpoint(EndpointId::from_entropy([n; 16]));
        for n in 0..100 {
            log.note(Version::new(11 + u64::from(n)), touched(n), 80);
        }
        assert!(log.after(Version::new(29)).is_none(), "the change to 30 is forgotten");
        let after = log.after(Version::new(30)).map(Iterator::count);
        assert_eq!(after, Some(80));
        let last = log.after(Version::new(109)).map(Iterator::collect::<Vec<_>>);
        assert_eq!(last, Some(vec![touched(99)]));
        assert_eq!(log.after(Version::new(500)).map(Iterator::count), Some(0));
        let latest = [29, 30, 31, 500].map(|version| log.latest(Version::new(version)));
        assert_eq!(latest, [None, Some(Version::new(30)), Some(Version::new(31)), Some(Version::new(110))]);
    }
}
