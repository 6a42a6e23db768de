//! Flags of the commands about a manager's unlock key.

use std::path::PathBuf;

use clap::Args;

use crate::api::types::{UnlockKeyRequest, UnlockRequest};
use crate::cli::{CliError, secret};
use crate::unlock_key::UnlockKey;

/// Flags of `overlayd unlock`.
#[derive(Debug, Args)]
pub struct UnlockArguments {
    /// Read the unlock key from FILE [default: ask for it, or read it from standard input]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl UnlockArguments {
    pub(in crate::cli) fn request(&self) -> Result<UnlockRequest, CliError> {
        let text = secret::read(self.key_file.as_deref(), "Unlock key")?;
        let no_key = |source| CliError::UnlockKey { from: secret::source(self.key_file.as_deref()), source };
        Ok(UnlockRequest { key: text.parse().map_err(no_key)? })
    }
}

/// Flags of `overlayd unlock-key`.
#[derive(Debug, Args)]
pub struct UnlockKeyArguments {
    /// Make a new key first, so that the old one is void; a manager that has none is locked from then on
    #[arg(long)]
    rotate: bool,
    /// Print the key alone
    #[arg(short, long)]
    pub(in crate::cli) quiet: bool,
}

impl UnlockKeyArguments {
    pub(in crate::cli) fn request(&self) -> UnlockKeyRequest {
        UnlockKeyRequest { rotate: self.rotate.then(new_key) }
    }
}

/// An unlock key that nobody has yet.
pub(super) fn new_key() -> UnlockKey {
    UnlockKey::from_entropy(rand::random())
}
