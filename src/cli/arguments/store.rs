//! `overlayd store`, and an etcd as the command line names it: an address, and files.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::api::types::{EtcdRequest, MigrateStoreRequest};
use crate::cli::{CliError, named_file, secret};

/// Commands about where the cluster's state is.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Move the cluster's state to etcd while traffic goes on, or change how it is reached there
    Migrate(MigrateArguments),
}

/// Flags of `overlayd store migrate`.
#[derive(Debug, Args)]
pub struct MigrateArguments {
    /// The etcd, and where in it [default prefix: overlayd]
    #[arg(value_name = "etcd://HOST:2379[,HOST:2379...][/PREFIX]")]
    to: String,
    #[command(flatten)]
    rights: EtcdArguments,
}

impl MigrateArguments {
    pub(in crate::cli) fn request(self) -> Result<MigrateStoreRequest, CliError> {
        Ok(MigrateStoreRequest { to: self.rights.request(self.to)? })
    }
}

/// The etcd of a new cluster.
#[derive(Debug, Args)]
pub(super) struct NewStore {
    /// Keep the cluster's state in this etcd, so that it can have several managers [default: in this node]
    #[arg(long, value_name = "etcd://HOST:2379[,HOST:2379...][/PREFIX]")]
    store: Option<String>,
    #[command(flatten)]
    rights: EtcdArguments,
}

impl NewStore {
    pub(super) fn request(self) -> Result<Option<EtcdRequest>, CliError> {
        match self.store {
            Some(store) => self.rights.request(store).map(Some),
            None if self.rights.is_empty() => Ok(None),
            None => Err(CliError::Usage(
                "how etcd is entered is said, but not where it is: give --store too".into(),
            )),
        }
    }
}

/// How an etcd is entered.
#[derive(Debug, Args)]
pub(super) struct EtcdArguments {
    /// Reach etcd over TLS, and believe the certificates that this one signed, PEM
    #[arg(long, value_name = "FILE")]
    store_ca: Option<PathBuf>,
    /// Certificate by which etcd knows this manager, PEM
    #[arg(long, value_name = "FILE", requires = "store_key", requires = "store_ca")]
    store_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "store_cert")]
    store_key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", requires = "store_password_file")]
    store_user: Option<String>,
    /// Read the user's password from FILE
    #[arg(long, value_name = "FILE", requires = "store_user")]
    store_password_file: Option<PathBuf>,
}

impl EtcdArguments {
    fn is_empty(&self) -> bool {
        self.store_ca.is_none() && self.store_user.is_none()
    }

    fn request(self, address: String) -> Result<EtcdRequest, CliError> {
        let client = self.store_cert.as_deref().zip(self.store_key.as_deref());
        let client = client.map(|(certificate, key)| {
            Ok::<_, CliError>((named_file::read(certificate)?.to_string(), named_file::read(key)?))
        });
        let user = self.store_user.zip(self.store_password_file);
        let user = user.map(|(name, file)| Ok::<_, CliError>((name, secret::read(Some(&file), "Password")?)));
        let ca = self.store_ca.as_deref().map(named_file::read).transpose()?;
        Ok(EtcdRequest {
            address,
            ca_pem: ca.map(|pem| pem.to_string()),
            client_pem: client.transpose()?,
            user: user.transpose()?,
        })
    }
}
