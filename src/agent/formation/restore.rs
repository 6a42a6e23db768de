//! How a node becomes the manager that was backed up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use super::{ChosenBy, Formed, Sockets, cannot, everywhere, host_name, internal, payload_signer};
use crate::agent::attachments::blocking;
use crate::agent::authority::restored_identity;
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
use crate::id::{LaneCount, NodeId};
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
    let nodes = ClusterState::nodes_of(&backup).map_err(|_| unusable())?;
    refuse_serving(&credentials, &nodes).await?;
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
    let restored = async {
        let now = u64::try_from(wall_clock().unix_timestamp()).unwrap_or(0);
        let (taking, from, autolock) = (store.clone(), Arc::clone(&backup), request.autolock.clone());
        let taken = blocking(move || take_over(&taking, &from, autolock.as_ref(), (&credentials, now)));
        let heirs = taken.await?;
        let heir = if is_removed(&heirs, &nodes).await? { heirs.another } else { heirs.again };
        let restored = NodeIdentity::clone(&heir.identity());
        let here = Whereabouts {
            node: restored.node(),
            in_place_of: identity.node(),
            name: host_name(),
            advertise: settings.advertise,
            data: settings.data,
            underlay_mtu: sockets.underlay_mtu,
        };
        let (store, written, as_written) = (store.clone(), restored.clone(), settings.clone());
        blocking(move || {
            ClusterState::overtake(store.clone(), payload_signer(&heir), here, now)?;
            Ok::<_, ApiError>(store.put_enrolment(&written, &as_written)?)
        })
        .await?;
        Ok(restored)
    };
    match restored.await {
        Ok(identity) => Ok(Formed { identity, settings, sockets }),
        Err(error) => {
            let store = store.clone();
            if let Err(left) = blocking(move || store.leave_cluster()).await {
                let error = left.message;
                tracing::warn!(%error, "an unfinished restore is left in the state file; the next start removes it");
            }
            Err(error)
        }
    }
}

/// Who may be the manager of what was restored.
struct Heirs {
    /// The one that was backed up, by a certificate that is later than all that was said of it.
    again: Arc<Credentials>,
    /// Another node.
    another: Arc<Credentials>,
}

fn take_over(
    store: &Store,
    backup: &Backup,
    autolock: Option<&UnlockKey>,
    (credentials, now): (&Arc<Credentials>, u64),
) -> Result<Heirs, ApiError> {
    // What an earlier cluster may have left when it could not be forgotten.
    store.leave_cluster()?;
    if autolock.is_some() {
        store.set_unlock_key(autolock)?;
    }
    store.take_over(backup)?;
    let state = ClusterState::open(store.clone(), payload_signer(credentials))?;
    let version = state.version_beyond(now);
    let heir = |node| {
        let identity = restored_identity(&state, node, version).map_err(internal)?;
        let trust =
            Trust::of(&identity).and_then(|trust| trust.with_roots(state.roots())).map_err(internal)?;
        Credentials::new(identity, trust, wall_clock).map_err(internal)
    };
    let another = NodeId::from_entropy(rand::random());
    Ok(Heirs { again: heir(credentials.identity().node())?, another: heir(another)? })
}

/// What a node shows of what came after the backup.
enum Shown {
    Nothing,
    /// It was told that the manager was removed: it refuses that one, and believes nothing that it signs.
    Removed,
    /// It is a manager now.
    Serves,
}

/// Whether nodes were told that the manager was removed since. Refused where one of them is a manager, which it may have
/// become since.
async fn is_removed(heirs: &Heirs, nodes: &[Node]) -> Result<bool, ApiError> {
    let this = heirs.again.identity().node();
    let others = nodes.iter().filter(|node| node.id != this);
    let asked: Vec<_> = others.map(|node| async move { (node, ask(heirs, node).await) }).collect();
    let mut told = stream::iter(asked).buffer_unordered(AT_ONCE);
    let mut is_removed = false;
    let asking = async {
        while let Some((node, shown)) = told.next().await {
            match shown {
                Shown::Nothing => {}
                Shown::Removed => is_removed = true,
                Shown::Serves => return Err(serves(node)),
            }
        }
        Ok(())
    };
    tokio::time::timeout(ASKING, asking).await.unwrap_or(Ok(()))?;
    Ok(is_removed)
}

async fn ask(heirs: &Heirs, node: &Node) -> Shown {
    match KeyChannel::connect(&heirs.again, node.advertise, node.id).await {
        Ok(channel) if channel.peer().role == Role::Manager => Shown::Serves,
        Ok(_) => Shown::Nothing,
        Err(error) if error.has_removed_us() => {
            // Managers alone refuse a node that they do not know.
            match KeyChannel::connect(&heirs.another, node.advertise, node.id).await {
                Ok(channel) if channel.peer().role == Role::Manager => Shown::Serves,
                Err(error) if matches!(error.refusal(), Some(Refusal::ByPeer(_))) => Shown::Serves,
                Ok(_) | Err(_) => Shown::Removed,
            }
        }
        Err(_) => Shown::Nothing,
    }
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
    match join_all(asked).await.into_iter().flatten().next() {
        Some(other) => Err(serves(other)),
        None => Ok(()),
    }
}

fn serves(other: &Node) -> ApiError {
    ApiError::conflict(format!(
        "another manager of this cluster, {} ({}), still answers at {}: nothing was changed; as long as the others reach \
         their store, nothing is lost: take the one that is gone out there with overlayd node rm --force, and join its \
         machine as a new manager. If the store itself is lost, stop the agents of all other managers first",
        other.name, other.id, other.advertise
    ))
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

/// How long nodes are asked whether they know the manager to be removed: of one that is off nothing is known.
const ASKING: Duration = Duration::from_secs(5);
/// Handshakes under way at a time.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::super::manager::tests::manager;
    use super::*;
    use crate::control::state::NewNetwork;
    use crate::membership::KnownMemberships;

    /// Nodes were told since the backup that the manager is none any more.
    #[tokio::test]
    async fn manager_that_was_demoted_since_the_backup_is_believed_again() {
        let (manager, _dir) = manager();
        let network = NewNetwork {
            name: "red".parse().expect("a name"),
            encrypted: true,
            subnets: Vec::new(),
            mtu: None,
            labels: [].into(),
            node_labels: [].into(),
        };
        let network = manager.state.create_network(network).expect("made");
        let rows = manager.state.rows();
        let crate::control::store::ClusterRows::File(store) = &rows else { panic!("it is in a file") };
        let identity = manager.credentials.identity();
        store.put_identity(&*identity).expect("written");
        let backup = manager.state.backup(store, 7).expect("read");
        let mut known = KnownMemberships::new(manager.state.roots(), identity.cluster());
        let membership = |state: &ClusterState| state.inspect(&network.name).expect("there").membership;
        known.accept(&membership(&manager.state), &BTreeSet::new()).expect("believed");
        // Of a certificate that it had later, too.
        let demoted = [(identity.node(), manager.state.version())];
        known.demote(demoted.into());

        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        let now = 1_767_225_600;
        let heirs = take_over(&store, &backup, None, (&manager.credentials, now)).expect("taken over");
        let here = |node| Whereabouts {
            node,
            in_place_of: identity.node(),
            name: host_name(),
            advertise: SocketAddr::from(([192, 0, 2, 9], 2377)),
            data: SocketAddr::from(([192, 0, 2, 9], 4500)),
            underlay_mtu: 1500,
        };
        let again = heirs.again.identity();
        assert_eq!((again.node(), again.role()), (identity.node(), Role::Manager));
        let signer = payload_signer(&heirs.again);
        ClusterState::overtake(store.clone(), signer, here(again.node()), now).expect("overtaken");

        let state = ClusterState::open(store, payload_signer(&heirs.again)).expect("a state");
        let heard = known.accept(&membership(&state), &BTreeSet::new());
        assert_eq!(heard.map(|(_, news)| news), Ok(crate::membership::News::Newer));
        let (shown, trust) =
            (Arc::clone(&again), Trust::clone(&heirs.again.trust()).with_demoted(demoted.into()));
        assert!(!trust.is_demoted(shown.node(), shown.issued_at()), "it is let in as a manager");
        state.serve_as(again.node(), move || shown.issued_at());
        assert!(state.is_in_office());
        // As another node it is believed by those who know the manager to be removed.
        let another = heirs.another.identity();
        assert_ne!(another.node(), again.node());
        assert_eq!(another.role(), Role::Manager);
    }
}
