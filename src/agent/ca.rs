//! What the agent answers about the cluster's certificate authority.

use rustls::pki_types::CertificateDer;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{CaResponse, CaRoot, CaRotation, CaStatusResponse, RotateCaRequest, WaitingNode};
use crate::cluster::RotationStep;
use crate::control::ca::certificate_pem;
use crate::control::identity::NodeIdentity;
use crate::control::rpc::messages::{self, RotateCa, WaitedFor};
use crate::io::clock::wall_clock;
use crate::membership::{Root, Roots};

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
    Ok(CaStatusResponse {
        issuing_sha256: status.issuing.to_string(),
        issuing_ends_unix_seconds: status.issuing_ends_unix_seconds,
        rotation,
    })
}

/// What the operator has to know of the end of the root that signed this node's certificate. It cuts certificates
/// short from a life before on, and replacing it takes until the last node has been there.
pub(super) fn ending(identity: &NodeIdentity, roots: &Roots, now: OffsetDateTime) -> Option<String> {
    let ends = identity.root_expires();
    let at = ends.format(&Rfc3339).unwrap_or_else(|_| ends.to_string());
    if ends <= now {
        return Some(format!(
            "the cluster's root certificate ended at {at}, and with it every certificate: if the clock is right, no \
             node believes another any more, and the cluster has to be made anew"
        ));
    }
    if ends - now >= identity.life().saturating_mul(2).min(LONGEST_WARNING) {
        return None;
    }
    let what_to_do = if roots.iter().count() > 1 {
        "it is being replaced: `overlayd ca status` says whom that waits for"
    } else {
        "replace it before, with `overlayd ca rotate` on a manager"
    };
    Some(format!("the cluster's root certificate ends at {at}, and with it every certificate: {what_to_do}"))
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

/// The most that is left of a root whose end is warned of: certificates may live for ten years, as half a root.
const LONGEST_WARNING: Duration = Duration::days(365);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::authority::first_identity;
    use crate::control::ca::CertificateAuthority;
    use crate::id::ClusterId;

    #[test]
    fn end_of_the_root_is_told_two_lives_before_and_not_earlier_than_a_year() {
        let day = |number: i64| wall_clock() + Duration::days(number);
        let authority = CertificateAuthority::create(ClusterId::from_entropy([1; 16]), day(0));
        let authority = authority.expect("an authority");
        let living = |days: u64| first_identity(&authority, std::time::Duration::from_secs(days * 86400));
        let (short, long) = (living(90).expect("an identity"), living(3650).expect("an identity"));
        let old = Root::plain(authority.root().to_vec());
        let sole = Roots::from(old.clone());
        let end = 20 * 365 + 5;
        for (identity, first) in [(&short, end - 180), (&long, end - 365)] {
            assert_eq!(ending(identity, &sole, day(0)), None);
            assert_eq!(ending(identity, &sole, day(first - 1)), None);
            let told = ending(identity, &sole, day(first + 1)).expect("a warning");
            assert!(told.contains("ends at") && told.contains("`overlayd ca rotate`"), "{told}");
            let told = ending(identity, &sole, day(end + 1)).expect("a warning");
            assert!(told.contains("ended at") && !told.contains("rotate"), "{told}");
        }
        // Once is enough: a second rotation would be refused.
        let told = ending(&short, &Roots::pair(old.clone(), old), day(end - 10)).expect("a warning");
        assert!(told.contains("`overlayd ca status`") && !told.contains("rotate"), "{told}");
    }
}
