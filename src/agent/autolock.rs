//! A manager that is locked at each start: unlocked by its operator, it goes on without a restart.

use std::time::Duration;

use super::attachments::blocking;
use super::backend::Inner;
use super::formation;
use crate::api::ApiError;
use crate::api::types::{UnlockKeyRequest, UnlockKeyResponse, UnlockRequest, UnlockResponse};
use crate::control::store::{Store, StoreError};

impl Inner {
    /// Opens the state with the operator's key and goes on as what the node was.
    pub(super) async fn unlock(&self, request: UnlockRequest) -> Result<UnlockResponse, ApiError> {
        let _one = self.forming.lock().await;
        if !self.store.is_locked() {
            return Err(ApiError::conflict("this node is not locked: there is nothing to unlock"));
        }
        let (store, key) = (self.store.clone(), request.key);
        let opened = blocking(move || Ok::<_, ApiError>(store.unlock(&key))).await?;
        if matches!(opened, Err(StoreError::WrongUnlockKey { .. })) {
            tracing::warn!("refused a wrong unlock key");
            // Others wait for as long.
            tokio::time::sleep(WRONG_KEY_PAUSE).await;
            return Err(ApiError::denied(
                "this is not the unlock key of this manager: nothing was changed; it is the one that \
                 `overlayd init --autolock` printed, or `overlayd unlock-key --rotate` after that",
            ));
        }
        opened?;
        match self.go_on().await {
            Ok(cluster) => {
                tracing::info!("unlocked");
                Ok(UnlockResponse { cluster })
            }
            Err(error) => {
                self.store.lock();
                Err(ApiError::internal(format!(
                    "the key is right, but this manager cannot go on: {error:#}; it is locked as before"
                )))
            }
        }
    }

    async fn go_on(&self) -> anyhow::Result<Option<crate::id::ClusterId>> {
        let Some(formed) = formation::resume(&self.store, self.lanes, self.config.offload).await? else {
            return Ok(None);
        };
        let member = self.begin(formed).await?;
        Ok(Some(member.credentials.identity().cluster()))
    }

    /// The manager's unlock key, a new one if that is wanted, the first one too.
    pub(super) async fn unlock_key(&self, request: UnlockKeyRequest) -> Result<UnlockKeyResponse, ApiError> {
        let _one = self.forming.lock().await;
        if self.member().await?.manager().is_none() {
            return Err(ApiError::conflict(
                "this node is a worker: only managers have an unlock key, each its own",
            ));
        }
        let Some(new) = request.rotate else {
            let key = self.store.unlock_key().ok_or_else(|| {
                ApiError::conflict(
                    "this manager has no unlock key, so nothing locks it when its agent is started: it was given none here, \
                     by --autolock of `overlayd init` or `overlayd restore`, and a backup holds none; `overlayd unlock-key \
                     --rotate` gives it one, which locks it at each start from then on",
                )
            })?;
            return Ok(UnlockKeyResponse { key });
        };
        let (store, key) = (self.store.clone(), new.clone());
        blocking(move || store.set_unlock_key(Some(&key))).await?;
        tracing::info!("there is a new unlock key");
        Ok(UnlockKeyResponse { key: new })
    }
}

/// What a locked agent says to everything but `status` and `unlock`.
pub(super) fn refuse_locked(store: &Store) -> Result<(), ApiError> {
    if !store.is_locked() {
        return Ok(());
    }
    Err(ApiError::conflict(
        "this manager is locked since its agent was started: run `overlayd unlock` and give it the unlock \
         key; until then it carries no traffic and changes nothing",
    ))
}

const WRONG_KEY_PAUSE: Duration = Duration::from_secs(2);
