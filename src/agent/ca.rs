//! What the agent answers about the cluster's certificate authority.

use rustls::pki_types::CertificateDer;

use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{CaResponse, CaRoot, CaRotation, CaStatusResponse, RotateCaRequest, WaitingNode};
use crate::cluster::RotationStep;
use crate::control::ca::certificate_pem;
use crate::control::rpc::messages::{self, RotateCa, WaitedFor};
use crate::io::clock::wall_clock;
use crate::membership::Root;

/// The roots that this node trusts, the one that signs first.
pub(super) fn roots(member: &Member) -> Result<CaResponse, ApiError> {
    let trust = member.credentials.trust();
    let roots = trust.roots().iter().map(described).collect::<Result<_, _>>()?;
    Ok(CaResponse { cluster: trust.cluster(), roots })
}

/// Has a manager begin to replace the root.
pub(super) async fn rotate(member: &Member, request: RotateCaRequest) -> Result<CaStatusResponse, ApiError> {
    let brought = request.authority.map(|brought| (brought.certificate_pem, brought.key_pem));
    let request = RotateCa { brought };
    if request.brought.is_none() {
        member.client.rotate_ca(request).await?;
    } else {
        // A key that is brought passes through no connection: what was sent stays in buffers for as long as it lives.
        let manager = member.manager().ok_or_else(|| {
            let managers: Vec<_> = member.client.addresses().iter().map(ToString::to_string).collect();
            ApiError::denied(format!(
                "a certificate authority is brought to a manager itself, and this node is none (yet); do it on {}",
                managers.join(" or ")
            ))
        })?;
        manager.require_service()?;
        manager.rotate(request).await?;
    }
    status(member).await
}

/// How far the replacement of the root is.
pub(super) async fn status(member: &Member) -> Result<CaStatusResponse, ApiError> {
    let status = member.client.ca_status(messages::CaStatusRequest {}).await?;
    let rotation = status.rotation.map(|rotation| CaRotation {
        step: rotation.step,
        begun_unix_seconds: rotation.begun_unix_seconds,
        old_sha256: rotation.old.to_string(),
        new_sha256: rotation.new.to_string(),
        node_count: rotation.nodes,
        waiting: rotation.waiting.into_iter().map(|node| waiting(node, rotation.step)).collect(),
    });
    Ok(CaStatusResponse { issuing_sha256: status.issuing.to_string(), rotation })
}

fn waiting(node: WaitedFor, step: RotationStep) -> WaitingNode {
    let WaitedFor { node, name, away_seconds, connected } = node;
    let now = u64::try_from(wall_clock().unix_timestamp()).unwrap_or(0);
    let offline_since_unix_seconds = away_seconds.map(|away| now.saturating_sub(away));
    WaitingNode { node, name, why: step.lacking().to_owned(), connected, offline_since_unix_seconds }
}

fn described(root: &Root) -> Result<CaRoot, ApiError> {
    let der = CertificateDer::from(root.der());
    let (_, parsed) = x509_parser::parse_x509_certificate(&der)
        .map_err(|error| ApiError::internal(format!("the root certificate cannot be read: {error}")))?;
    Ok(CaRoot {
        certificate_pem: certificate_pem(&der),
        fingerprint_sha256: root.fingerprint().to_string(),
        subject: parsed.subject().to_string(),
        begins_unix_seconds: parsed.validity().not_before.timestamp(),
        ends_unix_seconds: parsed.validity().not_after.timestamp(),
    })
}
