//! How a node goes out of its cluster: with a manager's word, or by force without.
//!
//! Nothing is forgotten before the manager has agreed. By force the node's endpoints go first, then the
//! manager is told if it can be, and then all is forgotten either way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::attachments::blocking;
use super::member::Member;
use crate::api::ApiError;
use crate::control::rpc::messages;
use crate::control::session::SessionStatus;

/// Has the cluster forget a node without endpoints, which stays as it is if this is refused.
pub(super) async fn ask(member: &Member) -> Result<(), ApiError> {
    member.attachments.close().await?;
    let agreed = tell(member).await;
    if agreed.is_err() {
        member.attachments.open().await;
    }
    agreed
}

/// Takes every endpoint of the node away, and tells the manager if there is one; otherwise why it was
/// not told.
pub(super) async fn force(member: &Member) -> Result<Option<String>, ApiError> {
    member.attachments.close_by_force().await?;
    if member.manager().is_some_and(|manager| manager.is_alone()) {
        return Ok(None);
    }
    if let SessionStatus::Removed(_) = &*member.session.borrow() {
        return Ok(None);
    }
    let told = tokio::time::timeout(PATIENCE, member.client.leave(messages::Leave {})).await;
    Ok(match told {
        Ok(Ok(messages::Done {})) => None,
        Ok(Err(error)) => Some(error.message),
        Err(_elapsed) => Some(format!("no manager has answered within {} s", PATIENCE.as_secs())),
    })
}

/// Ends every connection of a node that has left, and lets nobody who came by one change its cluster's state any
/// more. Called once its ports are closed: who is refused there would take itself for removed.
pub(super) async fn turn_away(member: &Member) -> Result<(), ApiError> {
    if let Some(manager) = member.manager() {
        blocking(move || {
            manager.state.retire();
            Ok::<_, ApiError>(())
        })
        .await?;
    }
    member.credentials.change_trust(|trust| trust.with_known(BTreeSet::new()));
    Ok(())
}

/// Waits until nobody uses a member that was stopped, so that its ports can be had again.
pub(super) async fn let_go(mut member: Arc<Member>) {
    let dataplane = Arc::downgrade(&member.dataplane);
    let alone = async {
        loop {
            match Arc::try_unwrap(member) {
                Ok(last) => break drop(last),
                Err(shared) => member = shared,
            }
            tokio::time::sleep(LET_GO_INTERVAL).await;
        }
        while dataplane.strong_count() > 0 {
            tokio::time::sleep(LET_GO_INTERVAL).await;
        }
    };
    if tokio::time::timeout(LET_GO_TIMEOUT, alone).await.is_err() {
        tracing::warn!("a call that is still under way keeps the ports of the cluster that was left");
    }
}

async fn tell(member: &Member) -> Result<(), ApiError> {
    if let Some(manager) = member.manager().filter(|manager| manager.is_alone()) {
        let others = manager.other_nodes();
        if others > 0 {
            return Err(ApiError::conflict(format!(
                "this node is the cluster's only manager and {others} other nodes are in it: let them leave \
                 first; with --force the cluster is given up, and each of them has to leave by force too"
            )));
        }
        return Ok(());
    }
    match member.client.leave(messages::Leave {}).await {
        Ok(messages::Done {}) => Ok(()),
        Err(error) => {
            let mut error = ApiError::from(error);
            error.message = format!(
                "{}; overlayd leave --force takes this node out without a manager's word",
                error.message
            );
            Err(error)
        }
    }
}

/// How long a manager is waited for that need not hear of it.
const PATIENCE: Duration = Duration::from_secs(5);
const LET_GO_INTERVAL: Duration = Duration::from_millis(5);
/// Longer than an attachment waits for a manager, for the view and to be taken back.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(40);
