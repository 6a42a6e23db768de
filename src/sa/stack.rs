//! What making a key leaves on the stack.
//!
//! A value that a function returns may be moved several times until it lies where it stays, and every move
//! leaves what was there before. Memory on the heap is wiped when it is freed (`main.rs`); this does the same
//! for the stack.

use std::hint::black_box;

/// Puts what `make` makes on the heap, and wipes the part of the stack that was used for it.
pub(super) fn made_on_heap<T>(make: impl FnOnce() -> T) -> Box<T> {
    let made = boxed(make);
    wipe();
    made
}

/// Neither is inlined, so that both frames begin at the same place.
#[inline(never)]
fn boxed<T>(make: impl FnOnce() -> T) -> Box<T> {
    Box::new(make())
}

#[inline(never)]
fn wipe() {
    black_box(&mut [0_u8; DEPTH]);
}

/// A cipher has 544 octets, and no more than a few calls move it.
const DEPTH: usize = 32 * 1024;
