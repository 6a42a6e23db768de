//! Dense indexes for things that come and go: what the tables and the lanes index by.
//!
//! A slot is given out again only after its holder released it, which is done when no lane knows
//! it any more: a late command can never reach its successor.

use std::collections::HashMap;
use std::hash::Hash;

/// Keys and the slots that they hold.
#[derive(Debug)]
pub(crate) struct Slots<K> {
    held: HashMap<K, u32>,
    free: Vec<u32>,
    next: u32,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { held: HashMap::new(), free: Vec::new(), next: 0 }
    }
}

impl<K: Eq + Hash> Slots<K> {
    /// The slot of `key`, if it holds one.
    pub(crate) fn get(&self, key: &K) -> Option<u32> {
        self.held.get(key).copied()
    }

    /// The slot of `key`; a free one is given to it if it holds none.
    pub(crate) fn hold(&mut self, key: K) -> u32 {
        *self.held.entry(key).or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                let slot = self.next;
                self.next += 1;
                slot
            })
        })
    }

    /// Takes the slot of `key` back.
    pub(crate) fn release(&mut self, key: &K) -> Option<u32> {
        let slot = self.held.remove(key)?;
        self.free.push(slot);
        Some(slot)
    }

    /// Every key with its slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.held.iter().map(|(key, slot)| (key, *slot))
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
        assert_eq!(slots.release(&"a"), Some(0));
        assert_eq!(slots.get(&"a"), None);
        assert_eq!((slots.hold("d"), slots.hold("e")), (0, 3));
        assert_eq!(slots.iter().count(), 4);
    }
}
