//! The SPIs of a node's inbound SAs: one space for all peers and networks, since an arriving packet
//! is looked up by its SPI alone.

use std::collections::BTreeSet;

use rand::CryptoRng;

use crate::id::{LaneId, Spi};

/// The SPIs in use.
#[derive(Debug, Default)]
pub struct SpiPool {
    in_use: BTreeSet<Spi>,
}

impl SpiPool {
    /// A random SPI of `lane` that no other SA of the node has. 2^26 fit in a lane, so the search
    /// ends at once.
    pub fn allocate(&mut self, lane: LaneId, rng: &mut impl CryptoRng) -> Spi {
        loop {
            if let Some(spi) = Spi::for_lane(rng.next_u32(), lane)
                && self.in_use.insert(spi)
            {
                return spi;
            }
        }
    }

    /// Gives SPIs back.
    pub fn release(&mut self, spis: &[Spi]) {
        for spi in spis {
            self.in_use.remove(spi);
        }
    }

    /// How many SPIs are in use.
    pub fn len(&self) -> usize {
        self.in_use.len()
    }

    /// Whether none is in use.
    pub fn is_empty(&self) -> bool {
        self.in_use.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn spis_are_unique_and_name_their_lane_until_released() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let lane = LaneId::new(5).unwrap();
        let mut pool = SpiPool::default();
        let spis: Vec<_> = (0..1000).map(|_| pool.allocate(lane, rng)).collect();
        assert_eq!(pool.len(), 1000, "an SPI was given out twice");
        assert!(spis.iter().all(|spi| spi.lane() == lane && spi.get() >= 256));
        pool.release(&spis);
        assert!(pool.is_empty());
    }
}
