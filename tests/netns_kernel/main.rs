//! Our cutting and merging against the kernel's own, with seeded random flows: what it makes of a
//! super-frame we make too, byte for byte, and what it would not merge we do not.
//!
//! ```text
//! cut:   super-frame -> TAP (all offloads) - bridge - TAP (none) -> the kernel's segments
//! merge: segments    -> TAP (IFF_NAPI: GRO) -> packet socket     -> the kernel's super-frames
//! ```
//! Merging is held against a model of the kernel's rules first, and model and ours against the
//! kernel where the tests run as the machine's root: nobody else may have its GRO wait for frames.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod cut;
mod flow;
mod merge;
mod model;
#[path = "../support/mod.rs"]
mod support;

use support::test_program;

test_program! {
    super_frames_are_cut_as_the_kernel_cuts_them
    nothing_is_merged_that_the_kernel_would_not_merge
}

fn super_frames_are_cut_as_the_kernel_cuts_them() {
    cut::compare();
}

fn nothing_is_merged_that_the_kernel_would_not_merge() {
    merge::compare();
}
