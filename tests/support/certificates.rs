//! Certificates and clocks of agents as they are after months.

use std::path::{Path, PathBuf};

use overlayd::cluster::Role;
use overlayd::control::ca::CertificateAuthority;
use overlayd::control::identity::{NodeIdentity, NodeKey};
use overlayd::control::state::ClusterState;
use overlayd::control::store::Store;
use overlayd::io::clock::wall_clock;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde::Deserialize;

use super::swarm::Agent;

/// A wall clock that the programs which are told of it believe, and no others.
pub(crate) struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// One that is right, in a file of that directory.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let found = std::fs::read_dir("/usr/lib").unwrap().filter_map(|arch| {
            let library = arch.unwrap().path().join("faketime/libfaketimeMT.so.1");
            library.exists().then_some(library)
        });
        let library = found.last().expect("libfaketime is not installed: apt install faketime");
        let clock = Self { file: dir.join(name), library };
        clock.set("+0");
        clock
    }

    /// Sets it off by so much, as `+2d`.
    pub(crate) fn set(&self, off: &str) {
        let written = self.file.with_extension("new");
        std::fs::write(&written, format!("{off}\n")).unwrap();
        std::fs::rename(written, &self.file).unwrap();
    }

    /// The environment of a program that believes it. Only the wall clock is another.
    pub(crate) fn environment(&self) -> [(&str, &Path); 5] {
        [
            ("LD_PRELOAD", self.library.as_path()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.as_path()),
            ("FAKETIME_NO_CACHE", Path::new("1")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1")),
            ("FAKETIME_DISABLE_SHM", Path::new("1")),
        ]
    }
}

/// Gives a dead agent a certificate of another time, signed by the manager's authority.
pub(crate) fn shift_certificate(manager: &Agent, agent: &Agent, by: time::Duration) {
    let authority = {
        let store = Store::open(&manager.state_dir()).unwrap();
        let state = ClusterState::open(store, Box::new(|_| Err("nothing is to be signed".into()))).unwrap();
        let stored: StoredAuthority = serde_json::from_slice(&state.ca().unwrap()).unwrap();
        let key = data_encoding::BASE64.decode(stored.key_base64.as_bytes()).unwrap();
        CertificateAuthority::from_stored(state.id(), &stored.certificate_pem, &key).unwrap()
    };
    let store = Store::open(&agent.state_dir()).unwrap();
    let identity: NodeIdentity = store.identity().unwrap().unwrap();
    let key = NodeKey::generate().unwrap();
    let (node, role) = (identity.node(), identity.role());
    assert_eq!(role == Role::Manager, agent.number == 1);
    let (then, life) = (wall_clock() + by, time::Duration::days(90));
    let certificate = authority.issue(&key.request_pem().unwrap(), node, role, then, life).unwrap();
    let shifted = NodeIdentity::new(vec![certificate], &key, authority.root().clone()).unwrap();
    store.put_identity(&shifted).unwrap();
}

/// A root as an organisation makes it, in two files, but for what `change` changes.
pub(crate) fn root_files(
    dir: &Path,
    name: &str,
    algorithm: &'static rcgen::SignatureAlgorithm,
    change: impl FnOnce(&mut CertificateParams),
) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, format!("Example root {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::HOUR;
    params.not_after = now + time::Duration::days(3650);
    change(&mut params);
    let (cert, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&cert, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    (cert, key_file)
}

/// As the manager keeps it.
#[derive(Deserialize)]
struct StoredAuthority {
    certificate_pem: String,
    key_base64: String,
}
