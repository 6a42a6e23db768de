//! Flags of `overlayd status`.

use clap::Args;

/// Flags of `overlayd status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Compare what there is with what should be; exits with 1 unless all is equal
    #[arg(long)]
    pub(in crate::cli) verify: bool,
}
