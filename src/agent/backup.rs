//! Backing this manager up, and making this node the manager that was backed up.

use std::sync::Arc;

use data_encoding::BASE64;

use super::attachments::blocking;
use super::backend::Inner;
use super::formation;
use crate::api::ApiError;
use crate::api::types::{BackupRequest, BackupResponse, RestoreRequest, RestoreResponse};
use crate::control::identity::NodeIdentity;
use crate::control::store::{Backup, BackupError};
use crate::io::clock::wall_clock;

impl Inner {
    /// The state of this moment, sealed.
    pub(super) async fn backup(&self, request: BackupRequest) -> Result<BackupResponse, ApiError> {
        let member = self.member().await?;
        let Some(manager) = member.manager() else {
            return Err(ApiError::conflict(
                "this node is a worker: a cluster is backed up on its manager, which `overlayd node ls` names",
            ));
        };
        let BackupRequest { passphrase } = request;
        if passphrase.reveal().chars().count() < SHORTEST_PASSPHRASE {
            return Err(ApiError::invalid(format!(
                "the passphrase is too short: whoever guesses it has the cluster's keys; take {SHORTEST_PASSPHRASE} \
                 characters or more"
            )));
        }
        let (store, state) = (self.store.clone(), manager.state.clone());
        let now = u64::try_from(wall_clock().unix_timestamp()).unwrap_or(0);
        let sealed = blocking(move || {
            let backup = state.backup(&store, now)?;
            Ok::<_, ApiError>(backup.sealed(passphrase.reveal()))
        });
        let sealed = sealed.await?;
        let identity = member.credentials.identity();
        tracing::info!(bytes = sealed.len(), "backed up");
        Ok(BackupResponse {
            cluster: identity.cluster(),
            node: identity.node(),
            sealed: BASE64.encode(&sealed),
        })
    }

    /// Makes this node the manager of a backup.
    pub(super) async fn restore(&self, mut request: RestoreRequest) -> Result<RestoreResponse, ApiError> {
        let _one = self.forming.lock().await;
        self.refuse_member().await?;
        let (sealed, passphrase) = (std::mem::take(&mut request.sealed), request.passphrase.clone());
        let backup = blocking(move || {
            let sealed = BASE64.decode(sealed.as_bytes()).map_err(|_| BackupError::Foreign)?;
            Backup::open(&sealed, passphrase.reveal())
        });
        let backup = Arc::new(backup.await?);
        let autolock = request.autolock.clone();
        let formed =
            formation::restore(&self.store, Arc::clone(&backup), request, self.lanes, self.config.offload)
                .await?;
        let member = match self.begin(formed).await {
            Ok(member) => member,
            Err(error) => {
                let store = self.store.clone();
                blocking(move || store.leave_cluster()).await?;
                return Err(ApiError::internal(format!("nothing was restored: {error:#}")));
            }
        };
        let manager =
            member.manager_soon().await.ok_or_else(|| ApiError::internal("the cluster has no state"))?;
        tracing::info!(cluster = %member.credentials.identity().cluster(), "restored from a backup");
        let former = backup.identity().map(|identity: NodeIdentity| identity.node());
        Ok(RestoreResponse {
            cluster: member.credentials.identity().cluster(),
            node: member.id,
            former: former.filter(|former| *former != member.id),
            manager: member.node().advertise,
            made_unix_seconds: backup.made_unix_seconds(),
            other_node_count: u64::try_from(manager.other_nodes()).unwrap_or(u64::MAX),
            unlock_key: autolock,
        })
    }
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> Self {
        let message = format!("{error}; nothing was changed");
        match error {
            BackupError::WrongPassphrase => Self::denied(message),
            BackupError::Foreign
            | BackupError::Newer { .. }
            | BackupError::Truncated { .. }
            | BackupError::Altered => Self::invalid(message),
        }
    }
}

const SHORTEST_PASSPHRASE: usize = 8;

#[cfg(test)]
mod tests {
    use crate::agent::manager::tests::manager;
    use crate::api::types::BACKUP_BEGINNING;
    use crate::control::state::ClusterState;
    use crate::control::store::ClusterRows;

    #[test]
    fn backup_begins_as_those_who_read_its_file_expect() {
        let (manager, _dir) = manager();
        let state: &ClusterState = &manager.state;
        let ClusterRows::File(store) = state.rows() else { panic!("it is in a file") };
        let sealed = state.backup(&store, 7).expect("a backup").sealed("a long passphrase");
        assert!(sealed.starts_with(BACKUP_BEGINNING));
    }
}
