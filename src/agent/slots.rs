//! Dense indexes for things that come and go: what the tables and the lanes index by.
//!
//! A slot is given out again only after its holder released it, which is done when no lane knows
//! it any more. What was decided for one holder and arrives late is told from what is meant for the
//! next by the number of the [`Hold`].

use std::collections::HashMap;
use std::hash::Hash;

/// Keys and the slots that they hold.
#[derive(Debug)]
pub(crate) struct Slots<K> {
    held: HashMap<K, Hold>,
    free: Vec<u32>,
    next: u32,
    holds: u64,
}

/// A slot from the moment that a key is given it to its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hold {
    /// The slot.
    pub(crate) slot: u32,
    /// No other hold has this number, be it of the same key and slot.
    pub(crate) number: u64,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { held: HashMap::new(), free: Vec::new(), next: 0, holds: 0 }
    }
}

impl<K: Eq + Hash> Slots<K> {
    /// The slot of `key`, if it holds one.
    pub(crate) fn get(&self, key: &K) -> Option<u32> {
        self.held(key).map(|hold| hold.slot)
    }

    /// The hold of `key`, if it has one.
    pub(crate) fn held(&self, key: &K) -> Option<Hold> {
        self.held.get(key).copied()
    }

    /// The slot of `key`; a free one is given to it if it holds none.
    pub(crate) fn hold(&mut self, key: K) -> u32 {
        let Self { held, free, next, holds } = self;
        let hold = held.entry(key).or_insert_with(|| {
            *holds += 1;
            let slot = free.pop().unwrap_or_else(|| {
                let slot = *next;
                *next += 1;
                slot
            });
            Hold { slot, number: *holds }
        });
        hold.slot
    }

    /// Takes the slot of `key` back.
    pub(crate) fn release(&mut self, key: &K) {
        if let Some(hold) = self.held.remove(key) {
            self.free.push(hold.slot);
        }
    }

    /// Every key with its slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.held.iter().map(|(key, hold)| (key, hold.slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_reused_only_after_it_was_released() {
        let mut slots = Slots::default();
        assert_eq!((slots.hold("a"), slots.hold("b"), slots.hold("a")), (0, 1, 0));
        assert_eq!(slots.hold("c"), 2);
        slots.release(&"a");
        assert_eq!(slots.get(&"a"), None);
        assert_eq!((slots.hold("d"), slots.hold("e")), (0, 3));
        assert_eq!(slots.iter().count(), 4);
    }

    #[test]
    fn same_key_in_the_same_slot_is_another_hold_after_a_release() {
        let mut slots = Slots::default();
        slots.hold("a");
        let first = slots.held(&"a").expect("held");
        slots.hold("a");
        assert_eq!(slots.held(&"a"), Some(first));
        slots.release(&"a");
        slots.hold("a");
        let second = slots.held(&"a").expect("held");
        assert_eq!(second.slot, first.slot);
        assert_ne!(second, first);
    }
}
