//! Flags of the commands about backups.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::autolock::new_key;
use super::{listen_address, reachable_address};
use crate::api::types::{Passphrase, RestoreRequest};
use crate::cli::{CliError, secret};

/// Flags of `overlayd backup`.
#[derive(Debug, Args)]
pub struct BackupArguments {
    /// Read the passphrase from FILE [default: ask for it, or read it from standard input]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// The file to make
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
}

impl BackupArguments {
    pub(in crate::cli) fn passphrase(&self) -> Result<Passphrase, CliError> {
        secret::choose(self.passphrase_file.as_deref(), "Passphrase").map(Passphrase::new)
    }
}

/// Flags of `overlayd restore`.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// Read the passphrase from FILE [default: ask for it, or read it from standard input]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Address, and port if not 2377, where nodes reach this one [default: the manager's, as before]
    #[arg(long, value_name = "IP[:PORT]", value_parser = reachable_address)]
    advertise_addr: Option<SocketAddr>,
    /// Address, and port if not the advertised one, to listen on [default: every address of its family]
    #[arg(long, value_name = "IP[:PORT]", requires = "advertise_addr")]
    listen_addr: Option<String>,
    /// Address that carries the data [default: the advertised one]
    #[arg(long, value_name = "IP")]
    data_addr: Option<IpAddr>,
    /// Lock this manager whenever its agent is started, until 'overlayd unlock' has its unlock key
    #[arg(long)]
    autolock: bool,
    /// The file that 'overlayd backup' made
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
}

impl RestoreArguments {
    /// The request, with the content of the file.
    pub(in crate::cli) fn request(&self, sealed: &[u8]) -> Result<RestoreRequest, CliError> {
        let listen = match (self.listen_addr.as_deref(), self.advertise_addr) {
            (Some(text), Some(advertise)) => Some(listen_address(text, advertise)?),
            (Some(_), None) | (None, _) => None,
        };
        let passphrase = secret::read(self.passphrase_file.as_deref(), "Passphrase")?;
        Ok(RestoreRequest {
            sealed: data_encoding::BASE64.encode(sealed),
            passphrase: Passphrase::new(passphrase),
            advertise: self.advertise_addr,
            listen,
            data_ip: self.data_addr,
            autolock: self.autolock.then(new_key),
        })
    }
}
