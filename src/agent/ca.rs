//! What the agent answers about the cluster's certificate authority.

use rustls::pki_types::CertificateDer;

use super::member::Member;
use crate::api::ApiError;
use crate::api::types::{CaResponse, CaRoot};
use crate::control::ca::{certificate_pem, fingerprint};

/// The root that this node trusts.
pub(super) fn roots(member: &Member) -> Result<CaResponse, ApiError> {
    let identity = member.credentials.identity();
    Ok(CaResponse { cluster: identity.cluster(), roots: vec![described(identity.root())?] })
}

fn described(root: &CertificateDer<'_>) -> Result<CaRoot, ApiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(root)
        .map_err(|error| ApiError::internal(format!("the root certificate cannot be read: {error}")))?;
    Ok(CaRoot {
        certificate_pem: certificate_pem(root),
        fingerprint_sha256: data_encoding::HEXLOWER.encode(&fingerprint(root)),
        subject: parsed.subject().to_string(),
        begins_unix_seconds: parsed.validity().not_before.timestamp(),
        ends_unix_seconds: parsed.validity().not_after.timestamp(),
    })
}
