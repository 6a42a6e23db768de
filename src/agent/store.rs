//! Where the state of the cluster is that this node manages, and its way from the state file to etcd.

use super::attachments::blocking;
use super::backend::Inner;
use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{EtcdRequest, MigrateStoreRequest, MigrateStoreResponse, StoreKind, StoreResponse};
use crate::cluster::Role;
use crate::control::session::SessionStatus;
use crate::control::state::Relocated;
use crate::control::store::{ClusterRows, EtcdAccess, EtcdError, SharedStore, Store};
use crate::id::ClusterId;

impl Inner {
    /// Where the state is, and whether it can be reached.
    pub(super) async fn where_the_state_is(&self) -> Result<StoreResponse, ApiError> {
        let member = self.member().await?;
        let manager = member.manager();
        if manager.is_none() {
            // A manager that cannot reach etcd says so itself.
            let store = self.store.clone();
            let has_state = blocking(move || Ok::<_, ApiError>(store.shared_store()?.is_some())).await?;
            if !has_state || member.credentials.identity().role() == Role::Worker {
                return Err(no_state(&member));
            }
        }
        let (store, version) = (self.store.clone(), manager.map(|manager| manager.state.version().get()));
        blocking(move || {
            let rows = store.cluster_rows()?;
            let trouble = rows.look().err().map(|error| error.to_string());
            Ok::<_, ApiError>(match &rows {
                ClusterRows::File(file) => {
                    let place = file.file().display().to_string();
                    StoreResponse { kind: StoreKind::Embedded, place, version, trouble }
                }
                ClusterRows::Etcd(etcd) => {
                    let place = etcd.address().to_string();
                    StoreResponse { kind: StoreKind::Etcd, place, version, trouble }
                }
            })
        })
        .await
    }

    /// Moves the state to an etcd while traffic goes on, or changes how that is reached.
    pub(super) async fn migrate_store(
        &self,
        request: MigrateStoreRequest,
    ) -> Result<MigrateStoreResponse, ApiError> {
        let _one = self.forming.lock().await;
        let member = self.member().await?;
        let manager = member.manager().ok_or_else(|| no_state(&member))?;
        let to = shared(request.to)?;
        let (store, state) = (self.store.clone(), manager.state.clone());
        let (moved, place) = blocking(move || {
            let moved = state.relocate(&store, to)?;
            let place = state.shared_store().map(|shared| shared.access.address.to_string());
            Ok::<_, ApiError>((moved, place.unwrap_or_default()))
        })
        .await?;
        let rows = match moved {
            Relocated::Moved { rows } => Some(u64::try_from(rows).unwrap_or(u64::MAX)),
            Relocated::AccessChanged => None,
        };
        tracing::info!(%place, rows, "the cluster's state is in etcd");
        Ok(MigrateStoreResponse { place, rows })
    }
}

/// Why there is no state to ask about here.
fn no_state(member: &Member) -> ApiError {
    match &*member.session.borrow() {
        SessionStatus::Removed(error) => error.clone().into(),
        SessionStatus::Connecting | SessionStatus::Connected | SessionStatus::Disconnected(_) => {
            ApiError::conflict(NO_STATE)
        }
    }
}

/// The store that an operator names, with a data key of its own.
pub(super) fn shared(request: EtcdRequest) -> Result<SharedStore, ApiError> {
    let EtcdRequest { address, ca_pem, client_pem, user } = request;
    let address = address.parse().map_err(|error: EtcdError| ApiError::invalid(error.to_string()))?;
    let access = EtcdAccess { address, ca_pem, client_pem, user };
    access.check().map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(SharedStore::new(access))
}

/// Takes back what a cluster has in etcd whose making was not finished, or whose last manager is gone.
pub(super) fn take_back(store: &Store, cluster: Option<ClusterId>) {
    let taken = store.cluster_rows().and_then(|rows| {
        let cluster = if cluster.is_some() { cluster } else { rows.owner()? };
        Ok(cluster.map(|cluster| rows.discard(cluster)).transpose())
    });
    let error = match taken {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let shared = store.shared_store().ok().flatten();
    let prefix = shared.map(|shared| shared.access.address.to_string()).unwrap_or_default();
    tracing::warn!(
        %error, %prefix,
        "what the cluster has in etcd could not be removed: remove its prefix with `etcdctl del --prefix`"
    );
}

const NO_STATE: &str = "this node is a worker: where the cluster's state is, `overlayd store` says on its managers, \
                        which `overlayd node ls` names";
