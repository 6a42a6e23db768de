//! `overlayd ca`, and a certificate authority as the command line names it: two files.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use crate::api::types::{BroughtAuthority, RotateCaRequest};
use crate::cli::CliError;

/// Commands about the certificate authority.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Replace the root certificate on every node, without loss of traffic
    Rotate(RotateArguments),
    /// Show how far the replacement of the root is, and what it waits for
    Status,
}

/// Flags of `overlayd ca rotate`.
#[derive(Debug, Args)]
pub struct RotateArguments {
    /// Root certificate that comes, PEM, for this cluster alone [default: a new one]
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, PEM, ECDSA on P-256 or P-384
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Return at once; 'overlayd ca status' shows how far it is
    #[arg(short, long)]
    pub(in crate::cli) detach: bool,
}

impl RotateArguments {
    pub(in crate::cli) fn request(&self) -> Result<RotateCaRequest, CliError> {
        let files = self.cert.as_deref().zip(self.key.as_deref());
        Ok(RotateCaRequest { authority: files.map(|(cert, key)| read(cert, key)).transpose()? })
    }
}

/// A root that the operator brings to `overlayd init`.
#[derive(Debug, Args)]
pub(super) struct BroughtCa {
    /// Root certificate of the cluster, PEM, for this cluster alone [default: a new one]
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// Its private key, PEM, ECDSA on P-256 or P-384
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
}

impl BroughtCa {
    pub(super) fn read(&self) -> Result<Option<BroughtAuthority>, CliError> {
        self.ca_cert.as_deref().zip(self.ca_key.as_deref()).map(|(cert, key)| read(cert, key)).transpose()
    }
}

/// Reads both files; what is in them is for the agent to judge.
fn read(certificate: &Path, key: &Path) -> Result<BroughtAuthority, CliError> {
    let read = |file: &Path| {
        std::fs::read_to_string(file).map_err(|source| CliError::File { file: file.to_owned(), source })
    };
    Ok(BroughtAuthority { certificate_pem: read(certificate)?, key_pem: Zeroizing::new(read(key)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_cannot_be_read_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = read(file.path(), Path::new("/no/such/key")).expect_err("no key");
        assert!(error.to_string().contains("/no/such/key"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}
