//! The certificate authority as the cluster's state keeps it, sealed: its key is in memory only while
//! something is signed.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cluster::Role;
use crate::control::ca::{AuthorityError, CertificateAuthority};
use crate::control::identity::{IdentityError, NodeIdentity, NodeKey};
use crate::control::state::{ClusterState, StateError};
use crate::id::{NodeId, Version};
use crate::io::clock::wall_clock;
use crate::membership::Root;

/// Root and key in the bytes that the state keeps.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredAuthority {
    certificate_pem: String,
    key_base64: Zeroizing<String>,
}

impl StoredAuthority {
    /// The bytes to keep.
    pub(crate) fn store(authority: &CertificateAuthority) -> Zeroizing<Vec<u8>> {
        let stored = Self {
            certificate_pem: authority.certificate_pem(),
            key_base64: Zeroizing::new(data_encoding::BASE64.encode(&authority.key_pkcs8())),
        };
        // What a vector leaves behind when it grows is not wiped.
        let mut bytes = Zeroizing::new(Vec::with_capacity(8192));
        serde_json::to_writer(&mut *bytes, &stored).expect("two strings have a JSON form");
        bytes
    }

    /// The authority with its key: to be dropped after use.
    ///
    /// # Errors
    /// The stored bytes are damaged.
    pub(crate) fn open(state: &ClusterState) -> Result<CertificateAuthority, StoredAuthorityError> {
        let stored: Self = serde_json::from_slice(&state.ca()?).map_err(|_| StoredAuthorityError::Damaged)?;
        let key = data_encoding::BASE64.decode(stored.key_base64.as_bytes());
        let key = Zeroizing::new(key.map_err(|_| StoredAuthorityError::Damaged)?);
        Ok(CertificateAuthority::from_stored(state.id(), &stored.certificate_pem, &key)?)
    }
}

/// Why the authority cannot be had from the state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoredAuthorityError {
    /// The cluster's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The stored authority does not parse.
    #[error("the stored certificate authority is damaged: restore the state directory from a backup")]
    Damaged,
    /// The stored authority contradicts itself.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The identity of a cluster's first node, signed by its own authority.
///
/// # Errors
/// The authority does not sign, or the lifetime is out of range.
pub(crate) fn first_identity(
    authority: &CertificateAuthority,
    life: Duration,
) -> Result<NodeIdentity, FirstIdentityError> {
    let key = NodeKey::generate()?;
    let life = time::Duration::try_from(life).unwrap_or(time::Duration::MAX);
    let node = NodeId::from_entropy(rand::random());
    let certificate = authority.issue(&key.request_pem()?, node, Role::Manager, wall_clock(), life)?;
    Ok(NodeIdentity::new(vec![certificate], &key, authority.root().clone())?)
}

/// The identity of a manager whose state was restored: later than whatever was said of it until `version`.
///
/// # Errors
/// The authority cannot be had, or does not sign.
pub(crate) fn restored_identity(
    state: &ClusterState,
    node: NodeId,
    version: Version,
) -> Result<NodeIdentity, FirstIdentityError> {
    let authority = StoredAuthority::open(state)?;
    let key = NodeKey::generate()?;
    let life = time::Duration::try_from(state.certificate_life()).unwrap_or(time::Duration::MAX);
    let bearer = (node, Role::Manager);
    let leaf = authority.issue_at(version, &key.request_pem()?, bearer, wall_clock(), life)?;
    let root = authority.root().clone();
    Ok(NodeIdentity::new(chain(state, leaf, &root), &key, root)?)
}

/// A certificate with the cross-signature of its root, if that is new: it leads to the old root too.
pub(crate) fn chain(
    state: &ClusterState,
    leaf: CertificateDer<'static>,
    root: &[u8],
) -> Vec<CertificateDer<'static>> {
    let roots = state.roots();
    let cross = roots.iter().find(|known| known.der() == root).and_then(Root::cross);
    std::iter::once(leaf).chain(cross.map(|cross| cross.to_vec().into())).collect()
}

/// Why a manager that has nobody to ask has no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstIdentityError {
    /// The authority of the state.
    #[error(transparent)]
    Stored(#[from] StoredAuthorityError),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The key or the certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}
