//! The `overlayd` binary.

fn main() {}
