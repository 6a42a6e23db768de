//! The counter of one outbound SA: the only thing that makes nonces to seal with.
//!
//! Sequence number and IV are the same number, so the nonce cannot repeat while the sequence
//! number does not; the counter stops rather than wrap (RFC 4303 §3.3.3).

use zeroize::Zeroizing;

use super::suite::SALT_LEN;

/// Counts the packets of one outbound SA.
pub(crate) struct Counter {
    salt: Zeroizing<[u8; SALT_LEN]>,
    last: u32,
}

impl Counter {
    /// A counter whose first sequence number is 1.
    pub(crate) const fn new(salt: Zeroizing<[u8; SALT_LEN]>) -> Self {
        Self { salt, last: 0 }
    }

    /// The next nonce; `None` when the sequence numbers are used up, for ever.
    pub(crate) fn mint(&mut self) -> Option<Nonce> {
        self.last = self.last.checked_add(1)?;
        Some(Nonce { bytes: nonce(&self.salt, u64::from(self.last).to_be_bytes()), sequence: self.last })
    }
}

/// A nonce that no other packet of its SA has. Made by [`Counter`] alone, not `Clone`, and used
/// up by sealing.
pub(crate) struct Nonce {
    bytes: [u8; 12],
    sequence: u32,
}

impl Nonce {
    /// The sequence number of the packet.
    pub(crate) const fn sequence(&self) -> u32 {
        self.sequence
    }

    /// The explicit part, for the packet.
    pub(crate) fn iv(&self) -> [u8; 8] {
        u64::from(self.sequence).to_be_bytes()
    }

    pub(super) const fn into_bytes(self) -> [u8; 12] {
        self.bytes
    }

    /// A nonce of a test vector.
    #[cfg(test)]
    pub(super) const fn of_vector(bytes: [u8; 12]) -> Self {
        Self { bytes, sequence: 0 }
    }
}

/// salt || IV, for the nonce of a received packet.
pub(super) fn nonce(salt: &[u8; SALT_LEN], iv: [u8; 8]) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..SALT_LEN].copy_from_slice(salt);
    nonce[SALT_LEN..].copy_from_slice(&iv);
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_nonce_is_salt_and_one() {
        let mut counter = Counter::new(Zeroizing::new([0xa0, 0xa1, 0xa2, 0xa3]));
        let nonce = counter.mint().unwrap();
        assert_eq!(nonce.sequence(), 1);
        assert_eq!(nonce.into_bytes(), [0xa0, 0xa1, 0xa2, 0xa3, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn no_nonce_comes_twice_and_the_counter_stops_for_ever_at_its_end() {
        let mut counter = Counter::new(Zeroizing::new([7; 4]));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10_000 {
            assert!(seen.insert(counter.mint().unwrap().into_bytes()));
        }
        counter.last = u32::MAX - 1;
        assert_eq!(counter.mint().unwrap().sequence(), u32::MAX);
        assert!(counter.mint().is_none());
        assert!(counter.mint().is_none(), "a counter at its end must not start again");
    }
}
