//! The newest events, numbered without a gap; the oldest makes way.

use std::collections::VecDeque;

use super::{Event, Recorded, Timestamp};

#[derive(Debug)]
pub(super) struct Ring {
    records: VecDeque<Recorded>,
    /// The number of the next event.
    next: u64,
}

impl Ring {
    /// A ring that goes on with the number `next`, after events of earlier runs, which are in order.
    pub(super) fn going_on(next: u64, past: Vec<Recorded>) -> Self {
        let mut ring = Self { records: VecDeque::new(), next };
        // Before a number that is missing they are for readers of the files.
        let mut wanted = next;
        for recorded in past.into_iter().rev() {
            if recorded.number + 1 != wanted || ring.records.len() >= CAPACITY {
                break;
            }
            wanted = recorded.number;
            ring.records.push_front(recorded);
        }
        ring
    }

    /// The number of the next event.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// The number of the oldest event that is here, or of the next.
    pub(super) fn oldest(&self) -> u64 {
        self.records.front().map_or(self.next, |recorded| recorded.number)
    }

    /// The number of the first event that is here and not older than `moment`, or of the next.
    pub(super) fn first_since(&self, moment: Timestamp) -> u64 {
        let found = self.records.iter().find(|recorded| recorded.time >= moment);
        found.map_or(self.next, |recorded| recorded.number)
    }

    pub(super) fn get(&self, number: u64) -> Option<Recorded> {
        let place = usize::try_from(number.checked_sub(self.oldest())?).ok()?;
        self.records.get(place).cloned()
    }

    pub(super) fn push(&mut self, time: Timestamp, event: Event) {
        if self.records.len() >= CAPACITY {
            self.records.pop_front();
        }
        self.records.push_back(Recorded { number: self.next, time, event });
        self.next += 1;
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self { records: VecDeque::new(), next: 1 }
    }
}

/// Events in memory, some 1 KiB each at most.
pub(super) const CAPACITY: usize = 1024;
