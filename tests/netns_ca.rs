//! The cluster's certificate authority, on real agents: its root, and one that the operator brings.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::path::{Path, PathBuf};

use overlayd::api::types::{CaResponse, StatusResponse};
use overlayd::lab::Underlay;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use sha2::{Digest, Sha256};

use support::swarm::Swarm;
use support::test_program;

test_program! {
    root_is_the_same_on_every_node_and_in_the_token
    root_that_the_operator_brought_carries_traffic
    root_that_cannot_be_used_is_refused_and_nothing_is_made
}

fn root_is_the_same_on_every_node_and_in_the_token() {
    let swarm = Swarm::pair();
    let [one, two] = [1, 2].map(|number| swarm.agent(number).done(&["ca"]));
    assert!(one.starts_with("-----BEGIN CERTIFICATE-----\n"), "{one}");
    assert_eq!(one, two);
    let answer: CaResponse = swarm.agent(2).ask(&["ca"]);
    let [root] = answer.roots.as_slice() else { panic!("one root: {answer:?}") };
    let body: String = one.lines().filter(|line| !line.starts_with('-')).collect();
    let der = data_encoding::BASE64.decode(body.as_bytes()).unwrap();
    assert_eq!(root.fingerprint_sha256, data_encoding::HEXLOWER.encode(&Sha256::digest(der)));
    let years = (root.ends_unix_seconds - root.begins_unix_seconds) / (365 * 24 * 3600);
    assert_eq!(years, 20);
}

fn root_that_the_operator_brought_carries_traffic() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let (cert, key) = files(swarm.dir(), "own", &rcgen::PKCS_ECDSA_P384_SHA384, |_| {});
    let address = swarm.lab.host(1).v4().to_string();
    let init = ["init", "--advertise-addr", &address, "--ca-cert", text(&cert), "--ca-key", text(&key)];
    swarm.join(2, &swarm.agent(1).ask(&init));
    let printed = swarm.agent(2).done(&["ca"]);
    assert_eq!(printed.replace('\n', ""), std::fs::read_to_string(&cert).unwrap().replace(['\r', '\n'], ""));
    let (swarm, containers) = swarm.with_containers();
    let [one, two] = containers.as_slice() else { unreachable!("two containers") };
    swarm.assert_joined(one, two);
    // What it was made with is in the state: the files are not needed again.
    std::fs::remove_file(&cert).unwrap();
    std::fs::remove_file(&key).unwrap();
    for agent in &swarm.agents {
        agent.kill();
        swarm.start(agent.number);
    }
    swarm.await_keys(1);
    swarm.assert_joined(one, two);
}

fn root_that_cannot_be_used_is_refused_and_nothing_is_made() {
    let swarm = Swarm::unformed(1, Underlay::default());
    let address = swarm.lab.host(1).v4().to_string();
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (cert, key) = files(swarm.dir(), "good", p256, |_| {});
    let (other_cert, other_key) = files(swarm.dir(), "other", p256, |_| {});
    let leaf = files(swarm.dir(), "leaf", p256, |params| params.is_ca = IsCa::ExplicitNoCa);
    let now = time::OffsetDateTime::now_utc();
    let old = files(swarm.dir(), "old", p256, |params| params.not_after = now - time::Duration::DAY);
    let short = files(swarm.dir(), "short", p256, |params| params.not_after = now + time::Duration::DAY);
    let edwards = files(swarm.dir(), "edwards", &rcgen::PKCS_ED25519, |_| {});
    for ((cert, key), words) in [
        ((cert.clone(), other_key), "does not belong to the CA certificate"),
        ((other_cert, key.clone()), "does not belong to the CA certificate"),
        (leaf, "is no CA"),
        (old, "expired at"),
        (short, "should live for years"),
        (edwards, "P-256 or P-384"),
        ((key.clone(), key.clone()), "no PEM certificate"),
        ((cert.clone(), cert.clone()), "no PEM private key"),
        ((cert.clone(), swarm.dir().join("nowhere")), "nowhere"),
    ] {
        let init = ["init", "--advertise-addr", &address, "--ca-cert", text(&cert), "--ca-key", text(&key)];
        let refusal = swarm.agent(1).refused(&init);
        assert!(refusal.contains(words), "{refusal:?} lacks {words:?}");
        let status: StatusResponse = swarm.agent(1).status();
        assert_eq!(status.cluster, None, "{words}");
    }
    // Nothing was left that stands in the way of a good one.
    let init = ["init", "--advertise-addr", &address, "--ca-cert", text(&cert), "--ca-key", text(&key)];
    swarm.agent(1).done(&init);
    assert!(swarm.agent(1).status().cluster.is_some());
}

/// A root as an organisation makes it, in two files, but for what `change` changes.
fn files(
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

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
