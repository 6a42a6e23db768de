//! How a node becomes the manager that was backed up.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;

use super::{ChosenBy, Formed, Sockets, cannot, everywhere, host_name, internal, payload_signer};
use crate::agent::attachments::blocking;
use crate::api::ApiError;
use crate::api::types::RestoreRequest;
use crate::cluster::{Node, Role};
use crate::config::OffloadConfig;
use crate::control::identity::NodeIdentity;
use crate::control::key_channel::KeyChannel;
use crate::control::state::{ClusterState, Whereabouts};
use crate::control::store::local::NodeSettings;
use crate::control::store::{Backup, Store};
use crate::control::tls::Credentials;
use crate::control::trust::{Refusal, Trust};
use crate::id::LaneCount;
use crate::io::clock::wall_clock;
use crate::unlock_key::UnlockKey;

/// Makes this node the manager that was backed up; as ever the identity is written last.
pub(in crate::agent) async fn restore(
    store: &Store,
    backup: Arc<Backup>,
    request: RestoreRequest,
    lanes: LaneCount,
    offload: OffloadConfig,
) -> Result<Formed, ApiError> {
    let unusable = || ApiError::invalid("the backup does not say whose it is: nothing was changed");
    let identity: NodeIdentity = backup.identity().ok_or_else(unusable)?;
    let before = backup.settings().ok_or_else(unusable)?;
    let trust = Trust::of(&identity).map_err(internal)?;
    let credentials = Credentials::new(identity.clone(), trust, wall_clock).map_err(internal)?;
    refuse_living(&credentials, before.advertise).await?;
    refuse_serving(&credentials, &ClusterState::nodes_of(&backup).map_err(|_| unusable())?).await?;
    let settings = settings(&before, &request);
    let sockets = Sockets::bind(&settings, ChosenBy::Restore, lanes, offload).await.map_err(|error| {
        let mut error = cannot(error);
        if request.advertise.is_none() {
            error.message = format!(
                "{}; the manager was at {}: to restore it at another address, give that with --advertise-addr",
                error.message, before.advertise
            );
        }
        error
    })?;
    let here = Whereabouts {
        node: identity.node(),
        name: host_name(),
        advertise: settings.advertise,
        data: settings.data,
        underlay_mtu: sockets.underlay_mtu,
    };
    let (store, written, as_written) = (store.clone(), identity.clone(), settings.clone());
    blocking(move || {
        // What an earlier cluster may have left when it could not be forgotten.
        store.leave_cluster()?;
        let restored = take_over(&store, (&backup, here), request.autolock.as_ref(), &credentials)
            .and_then(|()| Ok(store.put_enrolment(&written, &as_written)?));
        restored.inspect_err(|_| {
            if let Err(error) = store.leave_cluster() {
                tracing::warn!(%error, "an unfinished restore is left in the state file; the next start removes it");
            }
        })
    })
    .await?;
    Ok(Formed { identity, settings, sockets })
}

fn take_over(
    store: &Store,
    (backup, here): (&Backup, Whereabouts),
    autolock: Option<&UnlockKey>,
    credentials: &Arc<Credentials>,
) -> Result<(), ApiError> {
    if autolock.is_some() {
        store.set_unlock_key(autolock)?;
    }
    store.take_over(backup)?;
    let now = u64::try_from(wall_clock().unix_timestamp()).unwrap_or(0);
    Ok(ClusterState::overtake(store.clone(), payload_signer(credentials), here, now)?)
}

/// Two managers with one identity would tell the nodes different things.
async fn refuse_living(credentials: &Credentials, manager: SocketAddr) -> Result<(), ApiError> {
    let lives = match KeyChannel::connect(credentials, manager, credentials.identity().node()).await {
        Ok(channel) => {
            channel.close().await;
            true
        }
        // It is the manager and does not take our certificate, which may have expired; or it has one of
        // this cluster under a root that took the place of the one that we know.
        Err(error) => matches!(error.refusal(), Some(Refusal::ByPeer(_) | Refusal::WrongCa)),
    };
    if !lives {
        return Ok(());
    }
    Err(ApiError::conflict(format!(
        "the manager that was backed up still answers at {manager}: nothing was changed; stop its agent for good \
         first, two with one identity would tear the cluster apart"
    )))
}

/// What other managers go on with is not replaced either.
async fn refuse_serving(credentials: &Credentials, nodes: &[Node]) -> Result<(), ApiError> {
    let this = credentials.identity().node();
    let others = nodes.iter().filter(|node| node.role == Role::Manager && node.id != this);
    let asked = others.map(|other| async move {
        match KeyChannel::connect(credentials, other.advertise, other.id).await {
            // It may be a worker by now.
            Ok(channel) => (channel.peer().role == Role::Manager).then_some(other),
            Err(error) => {
                matches!(error.refusal(), Some(Refusal::ByPeer(_) | Refusal::WrongCa)).then_some(other)
            }
        }
    });
    let Some(other) = join_all(asked).await.into_iter().flatten().next() else { return Ok(()) };
    Err(ApiError::conflict(format!(
        "another manager of this cluster, {} ({}), still answers at {}: nothing was changed; as long as the others reach \
         their store, nothing is lost: take the one that is gone out there with overlayd node rm --force, and join its \
         machine as a new manager. If the store itself is lost, stop the agents of all other managers first",
        other.name, other.id, other.advertise
    )))
}

/// Where the manager is from now on.
fn settings(before: &NodeSettings, request: &RestoreRequest) -> NodeSettings {
    let advertise = request.advertise.unwrap_or(before.advertise);
    let (listen, data_ip) = match request.advertise {
        Some(advertise) => (everywhere(advertise), advertise.ip()),
        None => (before.listen, before.data.ip()),
    };
    NodeSettings {
        listen: request.listen.unwrap_or(listen),
        advertise,
        data: SocketAddr::new(request.data_ip.unwrap_or(data_ip), before.data.port()),
        managers: vec![advertise],
        interface: None,
        advertised_here: false,
    }
}
