//! Our cutting and merging against the kernel's own, with seeded random flows: what it makes of a
//! super-frame we make too, byte for byte, and what it would not merge we do not.
//!
//! ```text
//! cut:   super-frame -> TAP (all offloads) - bridge - TAP (none) -> the kernel's segments
//! merge: segments    -> two VXLAN devices (GRO) -> packet socket -> the kernel's super-frames
//! ```
//! Merging is held against the kernel and against a model of its rules: kernels merge more or less of
//! what is rare, and what ours merges all of them have to.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod cut;
mod difference;
mod flow;
mod gro;
mod merge;
mod model;
#[path = "../support/mod.rs"]
mod support;

use support::test_program;

test_program! {
    super_frames_are_cut_as_the_kernel_cuts_them
    nothing_is_merged_that_the_kernel_would_not_merge
    a_difference_ends_a_run_where_it_ends_the_kernels
}

fn super_frames_are_cut_as_the_kernel_cuts_them() {
    cut::compare();
}

fn nothing_is_merged_that_the_kernel_would_not_merge() {
    merge::compare();
}

fn a_difference_ends_a_run_where_it_ends_the_kernels() {
    difference::compare();
}
