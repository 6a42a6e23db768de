//! How a node comes into a cluster and leaves it: what is written, in an order in which a crash at
//! any moment leaves either no member or a whole one. The identity is written last: without it,
//! whatever else is there was never acknowledged.

mod restore;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use zeroize::Zeroizing;

use super::attachments::blocking;
use super::authority::{StoredAuthority, first_identity};
use super::member::{host_name, payload_signer};
use super::sockets::{ChosenBy, Sockets, is_taken};
use super::store::{shared, take_back};
use super::underlay::{self, route_to};
use crate::api::ApiError;
use crate::api::types::{BroughtAuthority, InitRequest, JoinRequest};
use crate::cluster::{Node, Role, View};
use crate::config::{AgentConfig, OffloadConfig};
use crate::control::ca::CertificateAuthority;
use crate::control::enrol::{self, EnrolError, EnrolRefusal, Enrolled, Joining, USUAL_DATA_PORT};
use crate::control::identity::NodeIdentity;
use crate::control::rpc::ManagerClient;
use crate::control::rpc::messages::{Done, Leave};
use crate::control::state::{AddressPool, ClusterState, NewCluster, StateError, Tokens};
use crate::control::store::Store;
use crate::control::store::local::NodeSettings;
use crate::control::tls::Credentials;
use crate::control::trust::Trust;
use crate::id::{ClusterId, LaneCount, NodeId};
use crate::io::clock::wall_clock;
use crate::membership::token::JoinToken;

pub(super) use self::restore::restore;

/// What a node needs to run as a member.
pub(super) struct Formed {
    pub(super) identity: NodeIdentity,
    pub(super) settings: NodeSettings,
    pub(super) sockets: Sockets,
}

/// The member that this node was when the agent last ran, if it was one.
pub(super) async fn resume(
    store: &Store,
    lanes: LaneCount,
    offload: OffloadConfig,
) -> anyhow::Result<Option<Formed>> {
    if store.is_locked() {
        tracing::warn!("this manager is locked: nothing goes on before `overlayd unlock`");
        return Ok(None);
    }
    let opened = store.clone();
    let found = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let member = opened.identity::<NodeIdentity>()?.zip(opened.settings()?);
        if member.is_none() && ClusterState::exists(&opened)? {
            tracing::info!("forgetting a cluster whose making was never finished");
            take_back(&opened, None);
            opened.leave_cluster()?;
        }
        Ok(member)
    })
    .await??;
    let Some((identity, settings)) = found else { return Ok(None) };
    let settings = underlay::at_home(store, settings).await?;
    let sockets = Sockets::bind(&settings, ChosenBy::Settings, lanes, offload).await?;
    Ok(Some(Formed { identity, settings, sockets }))
}

/// Makes a cluster with this node as its manager.
pub(super) async fn init(
    store: &Store,
    request: InitRequest,
    lanes: LaneCount,
    config: &AgentConfig,
) -> Result<Formed, ApiError> {
    let data_ip = request.data_ip.unwrap_or(request.advertise.ip());
    for address in [request.advertise.ip(), data_ip] {
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(ApiError::invalid(format!(
                "no other node can reach {address}: give an address of this machine"
            )));
        }
    }
    let life = Duration::from_secs(request.cert_expiry_seconds);
    if life < config.shortest_cert_expiry {
        return Err(ApiError::invalid(format!(
            "--cert-expiry {}: certificates live for at least {}, so that renewal has time to fail and succeed",
            humantime::format_duration(life),
            humantime::format_duration(config.shortest_cert_expiry)
        )));
    }
    let shared = request.store.clone().map(shared).transpose()?;
    let settings = NodeSettings {
        listen: request.listen.unwrap_or_else(|| everywhere(request.advertise)),
        advertise: request.advertise,
        data: SocketAddr::new(data_ip, request.data_port),
        managers: vec![request.advertise],
        interface: None,
        advertised_here: false,
    };
    let sockets = Sockets::bind(&settings, ChosenBy::Init, lanes, config.offload).await.map_err(cannot)?;
    let node = |identity: &NodeIdentity, mtu| Node {
        id: identity.node(),
        name: host_name(),
        role: Role::Manager,
        advertise: settings.advertise,
        data: settings.data,
        underlay_mtu: mtu,
    };
    let mtu = sockets.underlay_mtu;
    let cluster = ClusterId::from_entropy(rand::random());
    let authority = match &request.authority {
        None => CertificateAuthority::create(cluster, wall_clock()).map_err(internal)?,
        Some(brought) => import(cluster, brought, life)?,
    };
    let identity = first_identity(&authority, life).map_err(|error| ApiError::invalid(error.to_string()))?;
    let node = node(&identity, mtu);
    let trust = Trust::of(&identity).map_err(internal)?;
    let credentials = Credentials::new(identity.clone(), trust, wall_clock).map_err(internal)?;
    let new = NewCluster {
        id: cluster,
        ca: StoredAuthority::store(&authority),
        root: authority.root().to_vec(),
        pools: request.default_addr_pools.into_iter().map(AddressPool::of).collect(),
        certificate_life: life,
        tokens: Tokens { worker: rand::random(), manager: rand::random() },
    };
    let (store, written, as_written) = (store.clone(), identity.clone(), settings.clone());
    blocking(move || {
        // What an earlier cluster may have left when it could not be forgotten.
        store.leave_cluster()?;
        if let Some(key) = &request.autolock {
            store.set_unlock_key(Some(key))?;
        }
        if let Some(shared) = &shared {
            store.put_shared_store(shared)?;
        }
        let made = store
            .cluster_rows()
            .map_err(StateError::from)
            .and_then(|rows| ClusterState::create(rows, new, payload_signer(&credentials)))
            .and_then(|state| state.add_node(node))
            .and_then(|()| Ok(store.put_enrolment(&written, &as_written)?));
        made.inspect_err(|_| {
            if shared.is_some() {
                take_back(&store, Some(cluster));
            }
            if let Err(error) = store.leave_cluster() {
                tracing::warn!(%error, "an unfinished cluster is left in the state file; the next start removes it");
            }
        })
    })
    .await?;
    Ok(Formed { identity, settings, sockets })
}

/// Makes this node a member of an existing cluster.
pub(super) async fn join(
    store: &Store,
    request: JoinRequest,
    lanes: LaneCount,
    offload: OffloadConfig,
) -> Result<(Formed, Enrolled), ApiError> {
    let token: JoinToken =
        Zeroizing::new(request.token).parse().map_err(|error| ApiError::invalid(format!("{error}")))?;
    let manager = resolve(&request.manager).await?;
    let no_route =
        |error| ApiError::unavailable(format!("there is no route to the manager {manager}: {error}"));
    let route = route_to(manager).map_err(no_route)?;
    let advertise = request.advertise.unwrap_or(SocketAddr::new(route, TLS_PORT));
    let data_ip = request.data_ip.unwrap_or(advertise.ip());
    // The cluster's data port is known only afterwards; the addresses are tried before anybody is asked.
    let listen = everywhere(advertise);
    let data = SocketAddr::new(data_ip, 0);
    let managers = vec![manager];
    let mut settings =
        NodeSettings { listen, advertise, data, managers, interface: None, advertised_here: false };
    let tried = Sockets::bind(&settings, ChosenBy::Join, lanes, offload).await.map_err(cannot)?;
    let machine = Joining {
        host: host_name(),
        advertise: Some(advertise.ip()),
        advertise_port: advertise.port(),
        data: Some(data_ip),
        underlay_mtu: tried.underlay_mtu,
        taken: is_taken(SocketAddr::new(data_ip, USUAL_DATA_PORT)).then_some(USUAL_DATA_PORT),
    };
    drop(tried);
    let (identity, enrolled) = enrol_in_turn(manager, &token, machine, None).await.map_err(refused)?;
    settings.data = enrolled.data;
    if !enrolled.managers.is_empty() {
        settings.managers.clone_from(&enrolled.managers);
    }
    let sockets = match Sockets::bind(&settings, ChosenBy::Join, lanes, offload).await {
        Ok(sockets) => sockets,
        Err(error) => {
            return Err(ApiError::conflict(take_back_enrolment(&identity, &settings, &error).await));
        }
    };
    let (store, written, as_written) = (store.clone(), identity.clone(), settings.clone());
    let roots = enrolled.roots.clone();
    let kept = blocking(move || {
        // What an earlier cluster may have left when it could not be forgotten.
        store.leave_cluster()?;
        // Before a manager has told its view, the roots are all there is of it.
        store.put_view(&View { roots, ..View::default() })?;
        store.put_enrolment(&written, &as_written)
    });
    if let Err(error) = kept.await {
        return Err(ApiError::internal(take_back_enrolment(&identity, &settings, &error).await));
    }
    Ok((Formed { identity, settings, sockets }, enrolled))
}

/// Takes a node out of its cluster that was admitted and cannot run; says why that is, and what is left of it.
pub(super) async fn take_back_enrolment(
    identity: &NodeIdentity,
    settings: &NodeSettings,
    error: &impl std::fmt::Display,
) -> String {
    let node = identity.node();
    let left = async {
        let trust = Trust::of(identity).map_err(|error| error.to_string())?;
        let credentials =
            Credentials::new(identity.clone(), trust, wall_clock).map_err(|error| error.to_string())?;
        let client = ManagerClient::new(credentials, settings.managers.clone());
        client.leave(Leave {}).await.map_err(|error| error.message)
    };
    let ending = match tokio::time::timeout(TAKE_BACK, left).await {
        Ok(Ok(Done {})) => {
            "the manager has forgotten it again; a token that works once is used up".to_owned()
        }
        Ok(Err(why)) => still_listed(node, &why),
        Err(_elapsed) => still_listed(node, &format!("no answer within {} s", TAKE_BACK.as_secs())),
    };
    format!("{error:#}. This node did not join: {ending}")
}

fn still_listed(node: NodeId, why: &str) -> String {
    format!(
        "the manager lists it as {node} all the same ({why}), and that entry can never be used: remove it there with \
         overlayd node rm --force {node}"
    )
}

/// The authority that the operator brought.
pub(super) fn import(
    cluster: ClusterId,
    brought: &BroughtAuthority,
    life: Duration,
) -> Result<CertificateAuthority, ApiError> {
    let life = time::Duration::try_from(life).unwrap_or(time::Duration::MAX);
    let BroughtAuthority { certificate_pem, key_pem } = brought;
    CertificateAuthority::import(cluster, certificate_pem, key_pem, life, wall_clock())
        .map_err(|error| ApiError::invalid(error.to_string()))
}

/// Enrols, as a node that it is already if there is one, waiting for as long as the manager says while many others join.
pub(super) async fn enrol_in_turn(
    manager: SocketAddr,
    token: &JoinToken,
    machine: Joining,
    former: Option<&NodeIdentity>,
) -> Result<(NodeIdentity, Enrolled), EnrolError> {
    let patience = tokio::time::Instant::now() + IN_TURN;
    loop {
        let enrolled = match former {
            Some(former) => enrol::enrol_again(manager, token, machine.clone(), former, wall_clock).await,
            None => enrol::enrol(manager, token, machine.clone(), wall_clock).await,
        };
        let retry_seconds = match enrolled {
            Err(EnrolError::Refused(EnrolRefusal::Busy { retry_seconds })) => retry_seconds,
            ended => return ended,
        };
        let retry = Duration::from_secs(retry_seconds);
        if tokio::time::Instant::now() + retry > patience {
            return Err(EnrolError::Refused(EnrolRefusal::Busy { retry_seconds }));
        }
        tracing::info!(%manager, retry_seconds, "many machines join at once; waiting");
        tokio::time::sleep(retry).await;
    }
}

pub(super) async fn resolve(manager: &str) -> Result<SocketAddr, ApiError> {
    let hint = |why: String| {
        ApiError::invalid(format!(
            "{manager:?} leads to no manager ({why}): write HOST or HOST:PORT, like 192.0.2.1:2377"
        ))
    };
    let with_port = match manager.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, TLS_PORT).to_string(),
        Err(_) if manager.contains(':') => manager.to_owned(),
        Err(_) => format!("{manager}:{TLS_PORT}"),
    };
    let mut found = lookup_host(with_port).await.map_err(|error| hint(error.to_string()))?;
    found.next().ok_or_else(|| hint("the name has no address".to_owned()))
}

/// Every address of this machine, on the port that is advertised.
fn everywhere(advertise: SocketAddr) -> SocketAddr {
    let any = match advertise {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, advertise.port())
}

pub(super) fn refused(error: EnrolError) -> ApiError {
    let message = error.to_string();
    match error {
        EnrolError::Refused(
            EnrolRefusal::Unavailable(_) | EnrolRefusal::Busy { .. } | EnrolRefusal::TooManyAttempts { .. },
        )
        | EnrolError::NoAnswer
        | EnrolError::Silent => ApiError::unavailable(message),
        EnrolError::Refused(_) => ApiError::denied(message),
        EnrolError::Connect(connect) if connect.refusal().is_some() => ApiError::denied(message),
        EnrolError::Connect(_) => ApiError::unavailable(message),
        EnrolError::Malformed(_)
        | EnrolError::Identity(_)
        | EnrolError::Unusable(_)
        | EnrolError::Contradiction => ApiError::internal(message),
    }
}

fn cannot(error: anyhow::Error) -> ApiError {
    ApiError::invalid(format!("{error:#}"))
}

fn internal(error: impl std::error::Error) -> ApiError {
    ApiError::internal(error.to_string())
}

impl From<StateError> for ApiError {
    fn from(error: StateError) -> Self {
        crate::control::rpc::ManagerError::from(error).into()
    }
}

/// How long a machine waits for its turn to join; the command line waits longer.
const IN_TURN: Duration = Duration::from_secs(60);
/// How long a manager is waited for that admitted a node which cannot run.
const TAKE_BACK: Duration = Duration::from_secs(5);
/// The TLS port of a node unless another is advertised.
const TLS_PORT: u16 = 2377;
