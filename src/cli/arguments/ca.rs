//! `overlayd ca`, and a certificate authority as the command line names it: two files.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::api::types::{BroughtAuthority, RotateCaRequest};
use crate::api::{ClientError, ErrorKind};
use crate::cli::{CliError, named_file};

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
        let authority = self.files().map(|(cert, key)| read(&cert, &key)).transpose()?;
        Ok(RotateCaRequest { authority })
    }

    /// The root that comes, and its key.
    pub(in crate::cli) fn files(&self) -> Option<(PathBuf, PathBuf)> {
        self.cert.clone().zip(self.key.clone())
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
        self.files().map(|(cert, key)| read(&cert, &key)).transpose()
    }

    pub(super) fn files(&self) -> Option<(PathBuf, PathBuf)> {
        self.ca_cert.clone().zip(self.ca_key.clone())
    }
}

/// Says, where an agent refuses what came with a CA, which files that is.
pub(in crate::cli) fn of_files<T>(
    files: Option<(PathBuf, PathBuf)>,
    outcome: Result<T, CliError>,
) -> Result<T, CliError> {
    match (files, outcome) {
        (Some((certificate, key)), Err(CliError::Agent(failure))) if is_about_ca(&failure) => {
            Err(CliError::BroughtCa { certificate, key, failure })
        }
        (_, outcome) => outcome,
    }
}

/// Whether it is the CA that is refused, which each such refusal names, and not an address beside it.
fn is_about_ca(failure: &ClientError) -> bool {
    matches!(failure, ClientError::Refused(error)
        if error.kind == ErrorKind::Invalid && error.message.contains("the CA"))
}

/// Reads both files; what is in them is for the agent to judge.
fn read(certificate: &Path, key: &Path) -> Result<BroughtAuthority, CliError> {
    let certificate_pem = named_file::read(certificate)?.to_string();
    Ok(BroughtAuthority { certificate_pem, key_pem: named_file::read(key)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ApiError;

    #[test]
    fn files_are_named_where_the_ca_is_refused_and_nowhere_else() {
        let files = || Some(("root.pem".into(), "root.key".into()));
        let told = |refusal: ApiError| {
            let outcome: Result<(), CliError> = Err(CliError::Agent(refusal.into()));
            of_files(files(), outcome).expect_err("a refusal").to_string()
        };
        let of_key = "the CA's key is encrypted: decrypt it first";
        assert_eq!(
            told(ApiError::invalid(of_key)),
            format!("{of_key} (the CA that was given is that of root.pem and root.key)")
        );
        for other in [
            ApiError::invalid("no other node can reach 127.0.0.1: give an address of this machine"),
            ApiError::conflict("this node is in cluster x already: `overlayd leave` takes it out"),
        ] {
            assert_eq!(told(other.clone()), other.message);
        }
    }

    #[test]
    fn file_that_cannot_be_read_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = read(file.path(), Path::new("/no/such/key")).expect_err("no key");
        assert!(error.to_string().contains("/no/such/key"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}
