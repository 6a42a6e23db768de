//! Where an etcd is and how one gets in: `etcd://HOST:2379[,HOST:2379...][/PREFIX]`, TLS, user.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::seal::DataKey;
use super::EtcdError;

/// The members of an etcd, and where in it a cluster's rows are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EtcdAddress {
    /// `HOST:PORT`, at least one.
    members: Vec<String>,
    prefix: String,
}

impl EtcdAddress {
    /// The members, each `HOST:PORT`.
    pub(super) fn members(&self) -> &[String] {
        &self.members
    }

    /// What all keys begin with, without a slash at its end.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn is_of_this_machine(&self) -> bool {
        self.members.iter().all(|member| {
            let host = host_of(member);
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        })
    }
}

impl FromStr for EtcdAddress {
    type Err = EtcdError;

    fn from_str(text: &str) -> Result<Self, EtcdError> {
        let refused = |why| EtcdError::Address { address: text.to_owned(), why };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refused("it does not begin with etcd://"))?;
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, PREFIX));
        let prefix = prefix.trim_end_matches('/');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if prefix.is_empty() || prefix.len() > LONGEST_PREFIX || !prefix.chars().all(is_plain) {
            return Err(refused(
                "what follows the hosts is no prefix of letters, digits, '-', '_', '.' and '/'",
            ));
        }
        // It would lie among the keys of the other: whatever is in `turns` is removed if it seems to be dead.
        if prefix.split('/').skip(1).any(|part| OWN_KEYS.contains(&part)) {
            return Err(refused("a prefix below another one is not named head, last, rows or turns"));
        }
        let members = members.split(',').map(|member| {
            let host = host_of(member);
            let is_host = !host.is_empty() && ServerName::try_from(host).is_ok();
            let with_port = match member.strip_prefix(host).or_else(|| {
                member
                    .strip_prefix('[')
                    .and_then(|rest| rest.strip_prefix(host))
                    .and_then(|rest| rest.strip_prefix(']'))
            }) {
                Some("") => Some(format!("{member}:{PORT}")),
                Some(port) => {
                    let port = port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
                    port.filter(|port| *port != 0).map(|_| member.to_owned())
                }
                None => None,
            };
            with_port.filter(|_| is_host).ok_or_else(|| refused("each host is written HOST or HOST:PORT"))
        });
        Ok(Self { members: members.collect::<Result<_, _>>()?, prefix: prefix.to_owned() })
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.members.join(","), self.prefix)
    }
}

impl TryFrom<String> for EtcdAddress {
    type Error = EtcdError;

    fn try_from(text: String) -> Result<Self, EtcdError> {
        text.parse()
    }
}

impl From<EtcdAddress> for String {
    fn from(address: EtcdAddress) -> Self {
        address.to_string()
    }
}

/// An etcd and the rights to use it. What serialization reveals is for sealed files and for managers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdAccess {
    /// Where it is.
    pub address: EtcdAddress,
    /// How its members are known, PEM; without it connections are not encrypted.
    pub ca_pem: Option<String>,
    /// How etcd knows us: certificate chain and key, PEM.
    pub client_pem: Option<(String, Zeroizing<String>)>,
    /// Name and password of an etcd user.
    pub user: Option<(String, Zeroizing<String>)>,
}

impl EtcdAccess {
    /// Refuses what cannot work, and what would show a password to whoever listens.
    ///
    /// # Errors
    /// The certificates or the key do not parse or do not belong together, or there is no TLS for a
    /// client certificate or a password.
    pub fn check(&self) -> Result<(), EtcdError> {
        if self.ca_pem.is_none() {
            if self.client_pem.is_some() {
                return Err(EtcdError::Tls {
                    why: "a client certificate needs TLS: give --store-ca too".to_owned(),
                });
            }
            if self.user.is_some() && !self.address.is_of_this_machine() {
                let why = "a password is not sent to another machine in clear: give --store-ca too";
                return Err(EtcdError::Tls { why: why.to_owned() });
            }
        }
        self.tls().map(drop)
    }

    /// What connections are encrypted with, if they are.
    pub(super) fn tls(&self) -> Result<Option<ClientConfig>, EtcdError> {
        let failed =
            |what: &str, error: &dyn fmt::Display| EtcdError::Tls { why: format!("{what}: {error}") };
        let Some(ca) = &self.ca_pem else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca, "--store-ca")? {
            roots.add(certificate).map_err(|error| failed("--store-ca", &error))?;
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // Of etcd 3.4, Go's TLS 1.3 is as good as any; older ones have 1.2 alone and are refused.
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed("TLS", &error))?
            .with_root_certificates(roots);
        let mut config = match &self.client_pem {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .map_err(|error| failed("--store-key is no private key in PEM", &error))?;
                config
                    .with_client_auth_cert(certificates(chain, "--store-cert")?, key)
                    .map_err(|error| failed("--store-cert and --store-key do not fit together", &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(config))
    }
}

/// Neither key nor password.
impl fmt::Debug for EtcdAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdAccess").field("address", &self.address).finish_non_exhaustive()
    }
}

/// All that makes a manager of a cluster able to use its state in etcd.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedStore {
    /// The etcd.
    pub access: EtcdAccess,
    /// What the cluster's rows are sealed with, base64.
    key: Zeroizing<String>,
}

impl SharedStore {
    /// A store that is to be: with a data key of its own.
    pub fn new(access: EtcdAccess) -> Self {
        let key = Zeroizing::new(data_encoding::BASE64.encode(DataKey::generate().as_bytes()));
        Self { access, key }
    }

    /// The same rows, reached in another way.
    #[must_use]
    pub fn with_access(&self, access: EtcdAccess) -> Self {
        Self { access, key: self.key.clone() }
    }

    pub(super) fn data_key(&self) -> Result<DataKey, EtcdError> {
        let bytes = Zeroizing::new(data_encoding::BASE64.decode(self.key.as_bytes()).unwrap_or_default());
        DataKey::from_bytes(&bytes).ok_or(EtcdError::Key)
    }
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStore").field("address", &self.access.address).finish_non_exhaustive()
    }
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, EtcdError> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(EtcdError::Tls { why: format!("{what} holds no certificate in PEM") }),
        Err(error) => Err(EtcdError::Tls { why: format!("{what} does not parse: {error}") }),
    }
}

/// The host of `HOST`, `HOST:PORT` or `[HOST]:PORT`.
pub(super) fn host_of(member: &str) -> &str {
    if let Some((host, _)) = member.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return host;
    }
    member.rsplit_once(':').map_or(member, |(host, _)| host)
}

const SCHEME: &str = "etcd://";
/// Where the rows are unless the address says.
const PREFIX: &str = "overlayd";
/// Below its prefix a cluster has these.
const OWN_KEYS: [&str; 4] = ["head", "last", "rows", "turns"];
const LONGEST_PREFIX: usize = 200;
/// etcd's port for clients.
const PORT: u16 = 2379;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_written_as_it_was_read_with_what_was_left_out() {
        for (text, written) in [
            ("etcd://10.0.0.1", "etcd://10.0.0.1:2379/overlayd"),
            ("etcd://a:1,b:2/swarm/", "etcd://a:1,b:2/swarm"),
            ("etcd://[fd00::1]:2379,etcd.example", "etcd://[fd00::1]:2379,etcd.example:2379/overlayd"),
            ("etcd://[fd00::1]/a/b", "etcd://[fd00::1]:2379/a/b"),
        ] {
            let address: EtcdAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), written);
            assert_eq!(written.parse::<EtcdAddress>().expect(written), address);
        }
    }

    #[test]
    fn address_that_leads_nowhere_is_refused() {
        for text in [
            "http://a",
            "etcd://",
            "etcd://a,",
            "etcd://a:0",
            "etcd://a:b",
            "etcd://a//",
            "etcd://a/b c",
            "etcd://a/b/turns",
            "etcd://a/b/rows/c",
            "etcd://@:1",
        ] {
            assert!(matches!(text.parse::<EtcdAddress>(), Err(EtcdError::Address { .. })), "{text}");
        }
    }

    #[test]
    fn password_is_not_sent_in_clear_to_another_machine_nor_shown() {
        let mut access = EtcdAccess {
            address: "etcd://192.0.2.1".parse().expect("an address"),
            ca_pem: None,
            client_pem: None,
            user: Some(("manager".to_owned(), "very secret".to_owned().into())),
        };
        assert!(matches!(access.check(), Err(EtcdError::Tls { .. })));
        access.address = "etcd://127.0.0.1,localhost:99".parse().expect("an address");
        access.check().expect("nobody listens there");
        assert!(!format!("{access:?} {:?}", SharedStore::new(access.clone())).contains("secret"));
    }
}
