//! How a node comes back that its managers know nothing of any more, as the node that it was: with a token where its
//! certificate has expired, and to another address where they are elsewhere. All of it goes on meanwhile as it was.

use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::attachments::blocking;
use super::formation::{enrol_in_turn, refused, resolve};
use super::member::Member;
use crate::api::ApiError;
use crate::api::types::JoinRequest;
use crate::cluster::{Role, View};
use crate::control::enrol::Joining;
use crate::control::session::SessionStatus;
use crate::control::store::Store;
use crate::control::store::local::NodeSettings;
use crate::membership::token::JoinToken;

/// Whether this node can only come back by joining: a manager signs for itself, as soon as it has the state.
pub(super) fn is_due(member: &Member) -> bool {
    let identity = member.credentials.identity();
    let signs = identity.role() == Role::Manager && member.office.may_sign();
    let now = member.credentials.now();
    !signs && (identity.expires() <= now || now < identity.begins())
}

/// What to do about it.
pub(super) fn advice(member: &Member) -> String {
    let identity = member.credentials.identity();
    let (begins, expired) = (identity.begins(), identity.expires());
    let begins_later = member.credentials.now() < begins;
    let (how, at) = if begins_later { ("is not valid before", begins) } else { ("expired at", expired) };
    let managers = member.client.addresses();
    let manager = managers.first().map_or_else(|| "MANAGER".to_owned(), ToString::to_string);
    format!(
        "the certificate of this node {how} {}, so no other node talks to it: print a token on a manager \
         (overlayd token worker), and join with it again: overlayd join --token TOKEN {manager}. It stays node {} \
         with its endpoints and their addresses. If it is the clock that is wrong, set that",
        at.format(&Rfc3339).unwrap_or_else(|_| at.to_string()),
        identity.node()
    )
}

/// Whether joining is a way back for it: also where it looks for its managers in vain.
pub(super) fn may_come(member: &Member) -> bool {
    let is_lost = matches!(*member.session.borrow(), SessionStatus::Disconnected(_));
    is_due(member) || (is_lost && member.manager().is_none())
}

/// Has the node that this is go on with the manager that the operator names.
pub(super) async fn come_back(member: &Member, store: &Store, request: JoinRequest) -> Result<(), ApiError> {
    if is_due(member) { certify(member, store, request).await } else { find(member, request).await }
}

async fn find(member: &Member, request: JoinRequest) -> Result<(), ApiError> {
    refuse_move(member, &request)?;
    let manager = resolve(&request.manager).await?;
    let before = member.client.addresses();
    member.client.point_to(manager);
    let mut session = member.session.clone();
    let found = session.wait_for(|status| *status == SessionStatus::Connected);
    if let Ok(Ok(_)) = tokio::time::timeout(FOUND_WITHIN, found).await {
        return Ok(());
    }
    member.client.set_addresses(before);
    let why = match &*member.session.borrow() {
        SessionStatus::Disconnected(error) => format!(": {error}"),
        SessionStatus::Removed(error) => format!(": {error}"),
        SessionStatus::Connecting | SessionStatus::Connected => String::new(),
    };
    Err(ApiError::conflict(format!(
        "this node is in cluster {} already, and has found no manager of that at {manager}{why}; `overlayd leave --force` \
         takes it out",
        member.credentials.identity().cluster()
    )))
}

/// Gets a certificate for the node that this is.
async fn certify(member: &Member, store: &Store, request: JoinRequest) -> Result<(), ApiError> {
    if let SessionStatus::Removed(error) = &*member.session.borrow() {
        return Err(ApiError::conflict(format!(
            "{error}: overlayd leave --force takes it out, and then it can join as a new node"
        )));
    }
    refuse_move(member, &request)?;
    let node = member.node();
    let token: JoinToken =
        Zeroizing::new(request.token).parse().map_err(|error| ApiError::invalid(format!("{error}")))?;
    let manager = resolve(&request.manager).await?;
    let machine = Joining {
        host: node.name.clone(),
        advertise: Some(node.advertise.ip()),
        advertise_port: node.advertise.port(),
        data: Some(node.data.ip()),
        underlay_mtu: node.underlay_mtu,
        taken: None,
    };
    let former = member.credentials.identity();
    let joined = enrol_in_turn(manager, &token, machine, Some(&former)).await;
    let (identity, enrolled) = joined.map_err(refused)?;

    let addresses = if enrolled.managers.is_empty() { vec![manager] } else { enrolled.managers };
    let (opened, written, managers) = (store.clone(), identity.clone(), addresses.clone());
    let roots = enrolled.roots.clone();
    blocking(move || {
        // A root is trusted before a certificate needs it, on the disk as well.
        let view = opened.view()?.unwrap_or_default();
        opened.put_view(&View { roots, ..view })?;
        let settings = opened.settings()?;
        let settings = settings.map(|settings| NodeSettings { managers, ..settings });
        match settings {
            Some(settings) => opened.put_enrolment(&written, &settings),
            None => opened.put_identity(&written),
        }
    })
    .await?;
    let usable = member.standing.adopt(&enrolled.roots).and_then(|()| {
        // Only now: its chain may lead to a root that was not known.
        member.credentials.replace_identity(identity)
    });
    usable.map_err(|error| ApiError::internal(error.to_string()))?;
    member.client.set_addresses(addresses);
    member.client.reconnect();
    member.standing.renewed();
    Ok(())
}

fn refuse_move(member: &Member, request: &JoinRequest) -> Result<(), ApiError> {
    let node = member.node();
    let elsewhere = request.advertise.is_some_and(|address| address != node.advertise)
        || request.data_ip.is_some_and(|address| address != node.data.ip());
    if elsewhere {
        return Err(ApiError::invalid(format!(
            "node {} comes back at {} with its data at {}: leave --advertise-addr and --data-addr out",
            node.id, node.advertise, node.data
        )));
    }
    Ok(())
}

/// A manager may be about to find its own address gone.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
