//! Cross-signing: one root certifies the name and key of another, so that who trusts the one may
//! believe the other (RFC 5280 §3.2).

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyUsagePurpose,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::asn1_rs::Tag;
use x509_parser::x509::X509Name;

use super::{AuthorityError, BACKDATE, CertificateAuthority, random_serial};

impl CertificateAuthority {
    /// Signs a certificate of `other`'s name and key, which lives as long as both roots do.
    ///
    /// # Errors
    /// `other` is not a certificate, or its name is of an unusual kind.
    pub fn cross_sign(
        &self,
        other: &CertificateDer<'_>,
        now: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let (_, root) = x509_parser::parse_x509_certificate(other).map_err(|_| AuthorityError::NotPem)?;
        let key = SubjectPublicKeyInfo::from_der(root.public_key().raw)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name_of(root.subject())?;
        params.not_before = now - BACKDATE;
        params.not_after = self.root_expires.min(root.validity().not_after.to_datetime());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        let cross = params.signed_by(&key, &self.issuer)?.der().clone();
        let (_, made) = x509_parser::parse_x509_certificate(&cross).map_err(|_| AuthorityError::NotPem)?;
        if made.subject() == root.subject() { Ok(cross) } else { Err(AuthorityError::Name) }
    }
}

fn name_of(subject: &X509Name<'_>) -> Result<DistinguishedName, AuthorityError> {
    let mut name = DistinguishedName::new();
    for attribute in subject.iter_attributes() {
        let kind: Vec<u64> = attribute.attr_type().iter().ok_or(AuthorityError::Name)?.collect();
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).map_err(|_| AuthorityError::Name)?;
        let value = match value.header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into()?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into()?),
            _ => return Err(AuthorityError::Name),
        };
        name.push(DnType::from_oid(&kind), value);
    }
    Ok(name)
}
