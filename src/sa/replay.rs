//! The anti-replay window of one inbound SA (RFC 6479).
//!
//! A ring of 64-bit blocks: sliding forward clears whole blocks and never shifts bits. Check
//! before decryption, accept only after the tag has verified, or a forger could move the window.

use crate::drop_reason::DropReason;

/// Which of the last [`ReplayWindow::SIZE`] sequence numbers have been seen.
pub struct ReplayWindow {
    highest: u32,
    blocks: [u64; BLOCKS],
}

impl ReplayWindow {
    /// How far behind the highest sequence number a packet may come.
    pub const SIZE: u32 = 8192;

    /// Nothing seen yet.
    pub const fn new() -> Self {
        Self { highest: 0, blocks: [0; BLOCKS] }
    }

    /// Whether a packet with this number may still come.
    ///
    /// # Errors
    /// `MalformedEsp` for zero, which nobody sends (RFC 4303 §3.4.3), `ReplayTooOld` below the
    /// window, `Replayed` for a number that was accepted before.
    #[inline]
    pub fn check(&self, sequence: u32) -> Result<(), DropReason> {
        if sequence > self.highest {
            return Ok(());
        }
        if sequence == 0 {
            return Err(DropReason::MalformedEsp);
        }
        if self.highest - sequence >= Self::SIZE {
            return Err(DropReason::ReplayTooOld);
        }
        if self.blocks[block_of(sequence)] & bit_of(sequence) != 0 {
            return Err(DropReason::Replayed);
        }
        Ok(())
    }

    /// Marks a number that [`Self::check`] let pass and whose packet was authentic.
    #[inline]
    pub fn accept(&mut self, sequence: u32) {
        if sequence > self.highest {
            let from = self.highest / 64;
            let to = sequence / 64;
            if to - from >= BLOCKS_U32 {
                self.blocks = [0; BLOCKS];
            } else {
                for block in from + 1..=to {
                    self.blocks[ring(block)] = 0;
                }
            }
            self.highest = sequence;
        }
        self.blocks[block_of(sequence)] |= bit_of(sequence);
    }

    /// The highest number accepted.
    pub const fn highest(&self) -> u32 {
        self.highest
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

#[inline]
const fn block_of(sequence: u32) -> usize {
    ring(sequence / 64)
}

#[inline]
const fn ring(block: u32) -> usize {
    (block % BLOCKS_U32) as usize
}

#[inline]
const fn bit_of(sequence: u32) -> u64 {
    1 << (sequence % 64)
}

/// One block more than the window holds (RFC 6479 §2), up to a power of two so that the ring's
/// index is a mask.
const BLOCKS: usize = BLOCKS_U32 as usize;
const BLOCKS_U32: u32 = (ReplayWindow::SIZE / 64 + 1).next_power_of_two();

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn replayed_packet_is_dropped_and_again_after_the_window_slid() {
        let mut window = ReplayWindow::new();
        window.check(1).unwrap();
        window.accept(1);
        assert_eq!(window.check(1), Err(DropReason::Replayed));
        window.accept(8192);
        assert_eq!(window.check(1), Err(DropReason::Replayed));
        window.accept(8193);
        assert_eq!(window.check(1), Err(DropReason::ReplayTooOld));
        assert_eq!(window.check(2), Ok(()));
    }

    #[test]
    fn sequence_number_zero_is_malformed() {
        assert_eq!(ReplayWindow::new().check(0), Err(DropReason::MalformedEsp));
    }

    #[test]
    fn jump_over_the_whole_ring_forgets_nothing_that_matters() {
        let mut window = ReplayWindow::new();
        for sequence in 1..=10 {
            window.accept(sequence);
        }
        window.accept(u32::MAX);
        assert_eq!(window.check(10), Err(DropReason::ReplayTooOld));
        assert_eq!(window.check(u32::MAX), Err(DropReason::Replayed));
        assert_eq!(window.check(u32::MAX - 8191), Ok(()));
        assert_eq!(window.check(u32::MAX - 8192), Err(DropReason::ReplayTooOld));
    }

    proptest! {
        #[test]
        fn window_agrees_with_a_model_that_remembers_everything(
            steps in proptest::collection::vec(step(), 1..400)
        ) {
            let mut window = ReplayWindow::new();
            let mut seen = BTreeSet::new();
            let mut at = 1u32;
            for step in steps {
                at = match step {
                    Step::Ahead(by) => at.saturating_add(by),
                    Step::Behind(by) => at.saturating_sub(by).max(1),
                };
                let highest = seen.last().copied().unwrap_or(0);
                let expected = if at <= highest && highest - at >= ReplayWindow::SIZE {
                    Err(DropReason::ReplayTooOld)
                } else if seen.contains(&at) {
                    Err(DropReason::Replayed)
                } else {
                    Ok(())
                };
                prop_assert_eq!(window.check(at), expected);
                if expected.is_ok() {
                    window.accept(at);
                    seen.insert(at);
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ahead(u32),
        Behind(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u32..4).prop_map(Step::Ahead),
            2 => (0u32..9000).prop_map(Step::Ahead),
            1 => (0u32..40_000).prop_map(Step::Ahead),
            4 => (0u32..200).prop_map(Step::Behind),
            2 => (8100u32..8300).prop_map(Step::Behind),
            1 => (0u32..20_000).prop_map(Step::Behind),
        ]
    }
}
