//! Where the cluster's state is, and moving it to etcd.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// An etcd, and the rights to use it; files are given by their content, PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdRequest {
    /// `etcd://HOST:2379[,HOST:2379...][/PREFIX]`.
    pub address: String,
    /// What signed its members' certificates; without it connections are not encrypted.
    pub ca_pem: Option<String>,
    /// Certificate chain and private key by which it knows this manager.
    pub client_pem: Option<(String, Zeroizing<String>)>,
    /// Name and password of one of its users.
    pub user: Option<(String, Zeroizing<String>)>,
}

/// Neither key nor password.
impl std::fmt::Debug for EtcdRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdRequest").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Asks where the cluster's state is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreRequest {}

/// Where the cluster's state is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreResponse {
    /// In which store.
    pub kind: StoreKind,
    /// The state file, or the address of the etcd.
    pub place: String,
    /// The version of the state that this manager has in memory; absent while it has none.
    pub version: Option<u64>,
    /// Why it cannot be read or changed now, if that is so.
    pub trouble: Option<String>,
}

/// The kinds of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// The state file of the only manager.
    Embedded,
    /// etcd, for several managers.
    Etcd,
}

/// Moves the cluster's state to an etcd, or changes how that is reached where it is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateStoreRequest {
    /// Where to.
    pub to: EtcdRequest,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateStoreResponse {
    /// Where the state is now.
    pub place: String,
    /// How many rows were copied; absent when it was there already.
    pub rows: Option<u64>,
}
