//! What the fuzz targets do with their input, and what must hold whatever it is.
//!
//! The targets call it with what the fuzzer makes up, `tests/fuzz_corpus.rs` with the committed
//! corpus, so a plain test run repeats exactly what the fuzzer found worth keeping. Each `run`
//! panics when an invariant does not hold. Public interfaces of the library alone are used.

pub mod egress;
pub mod ingress;
pub mod key_exchange;
pub mod wire;

mod claims;
mod world;

/// An input read as a sequence of operations: one byte what, two bytes how many bytes with it.
struct Operations<'a>(&'a [u8]);

impl<'a> Iterator for Operations<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[what, high, low], rest) = self.0.split_first_chunk()?;
        let (with, rest) = rest.split_at(usize::from(u16::from_be_bytes([high, low])).min(rest.len()));
        self.0 = rest;
        Some((what, with))
    }
}
