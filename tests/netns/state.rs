//! The state at rest: what whoever has a node's state file, or looks into its agent, can read there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use memchr::memmem;
use overlayd::api::types::{IssueTokenResponse, TokenResponse};
use overlayd::control::state::ClusterState;
use overlayd::control::store::{KEY_FILE, LOCK_FILE, STATE_FILE, Store};
use overlayd::lab::{Underlay, eventually};
use overlayd::membership::JoinToken;
use rustix::process::Signal;

use crate::support::certificates::root_files;
use crate::support::simulated::SimulatedNode;
use crate::support::swarm::{Agent, Family, PATIENCE, Swarm};
use crate::support::tests;

tests! {
    nothing_of_the_cluster_can_be_read_in_the_state_files
    root_key_is_in_memory_only_while_it_is_used
    root_key_that_was_brought_is_in_memory_only_while_it_is_used
    keys_of_before_a_rekey_are_in_no_memory
}

fn nothing_of_the_cluster_can_be_read_in_the_state_files() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let init = swarm.init(Family::V4);
    let node = swarm.join(2, &init).node;
    swarm.agent(1).done(&[
        "node",
        "update",
        node.id.as_str(),
        "--label-add",
        "key-of-a-node=value-of-a-node",
    ]);
    swarm.create(&["--encrypted", "--label", "label-of-the-test=its-value", "name-of-the-network"]);
    let _containers = [1, 2].map(|number| {
        let (container, name) = (format!("container-{number}"), format!("name-of-endpoint-{number}"));
        swarm.attach_with(number, "name-of-the-network", &container, &["--name", &name])
    });
    let (mut secrets, mut names) = (Secrets::default(), Secrets::default());
    for role in ["worker", "manager"] {
        for flags in [&[][..], &["--rotate"], &[]] {
            let response: TokenResponse = swarm.agent(1).ask(&[&["token", role], flags].concat());
            let token: JoinToken = response.token.parse().unwrap();
            secrets.text(&response.token);
            secrets.text(token.secret().reveal().as_str());
            secrets.bytes(token.secret().as_bytes());
        }
    }
    // One that is used, two that are not, and one that was removed; all but the first admit a node once.
    let once = [&["--ttl", "1h"][..], &["--once"], &["--once", "--ttl", "1h"], &["--once"]].map(|flags| {
        let issued: IssueTokenResponse = swarm.agent(1).ask(&[&["token", "worker"], flags].concat());
        let token: JoinToken = issued.token.parse().unwrap();
        secrets.text(&issued.token);
        secrets.text(token.secret().reveal().as_str());
        secrets.bytes(token.secret().as_bytes());
        (token, issued.info.name.to_string())
    });
    swarm.agent(1).done(&["token", "rm", &once[3].1]);
    let joins = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let joining = SimulatedNode::try_join(init.manager, &once[1].0, 1, "name-of-a-node");
        names.text(runtime.block_on(joining).unwrap().node.id.as_str());
    };
    swarm.lab.host(2).run_in(joins).unwrap();
    for text in ["name-of-a-node", "key-of-a-node", "value-of-a-node"] {
        names.text(text);
    }
    for text in ["name-of-the-network", "label-of-the-test", "its-value", "name-of-endpoint", "container-"] {
        names.text(text);
    }
    let network = swarm.agent(1).inspect("name-of-the-network");
    names.text(network.network.id.as_str());
    network.endpoints.iter().for_each(|endpoint| names.text(endpoint.id.as_str()));
    network.nodes.iter().for_each(|node| names.text(node.id.as_str()));
    names.text(swarm.agent(1).status().cluster.unwrap().id.as_str());
    // As a crash leaves it and as an orderly end does.
    swarm.agent(1).kill();
    stop(swarm.agent(2));
    for agent in &swarm.agents {
        secrets.key(&node_key(agent));
    }
    secrets.key(&root_key(swarm.agent(1)));

    for agent in &swarm.agents {
        let in_clear = rows_in_clear(agent);
        assert!(
            names.found_in(&in_clear).len() > 5 && !secrets.found_in(&in_clear).is_empty(),
            "the rows hold what is looked for"
        );
        let files = std::fs::read_dir(agent.state_dir()).unwrap().map(|entry| entry.unwrap().path());
        let files: Vec<_> =
            files.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert!(
            files.iter().all(|name| [STATE_FILE, KEY_FILE, LOCK_FILE, AUDIT_LOG].contains(&name.as_str())),
            "{files:?}"
        );
        let file = std::fs::read(agent.state_dir().join(STATE_FILE)).unwrap();
        let found = [secrets.found_in(&file), names.found_in(&file)].concat();
        assert!(found.is_empty(), "agent {}: {found:?}", agent.number);
        // It is there to name what happened, and has no secrets all the same.
        let found = secrets.found_in(&std::fs::read(agent.state_dir().join(AUDIT_LOG)).unwrap());
        assert!(found.is_empty(), "the audit log of agent {}: {found:?}", agent.number);
    }
}

fn root_key_is_in_memory_only_while_it_is_used() {
    let swarm = Swarm::unformed(3, Underlay::default());
    let agent = swarm.agent(1);
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    let after_init = memory(agent);
    let (file, secret) = (swarm.dir().join("backup"), swarm.dir().join("passphrase"));
    std::fs::write(&secret, "correct horse battery\n").unwrap();
    let [file, secret] = [file, secret].map(|path| path.to_str().unwrap().to_owned());
    agent.done(&["backup", "--passphrase-file", &secret, &file]);
    let after_backup = memory(agent);
    stop(agent);
    let (mut root, mut own) = (Secrets::default(), Secrets::default());
    root.key(&root_key(agent));
    own.key(&node_key(agent));
    swarm.start(1);
    swarm.join(3, &init);
    let after_restart = memory(agent);
    agent.done(&["ca", "rotate"]);
    let after_rotation = memory(agent);
    stop(agent);
    // The old root and the new one are looked for everywhere; the node's own key is another one by now.
    root.key(&root_key(agent));
    let mut new = Secrets::default();
    new.key(&node_key(agent));
    for (when, own, memory) in [
        ("after init", &own, after_init),
        ("after a backup", &own, after_backup),
        ("after a restart", &own, after_restart),
        ("after a rotation", &new, after_rotation),
    ] {
        assert!(!own.found_in(&memory).is_empty(), "{when}: the key that is always in use was not found");
        let found = root.found_in(&memory);
        assert!(found.is_empty(), "{when}: {found:?}");
    }
}

fn root_key_that_was_brought_is_in_memory_only_while_it_is_used() {
    let swarm = Swarm::unformed(2, Underlay::default());
    let agent = swarm.agent(1);
    let brought = |name| {
        let (cert, key) = root_files(swarm.dir(), name, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {});
        let [cert, key] = [cert, key].map(|path| path.to_str().unwrap().to_owned());
        let mut root = Secrets::default();
        let pem = std::fs::read_to_string(&key).unwrap();
        let lines: Vec<_> = pem.lines().filter(|line| !line.starts_with('-')).collect();
        root.key(&BASE64.decode(lines.concat().as_bytes()).unwrap());
        // The second line has the end of the secret.
        root.text(lines[1]);
        (cert, key, root)
    };
    let (cert, key, first) = brought("first");
    let address = swarm.lab.host(1).v4().to_string();
    let init = agent.ask(&["init", "--advertise-addr", &address, "--ca-cert", &cert, "--ca-key", &key]);
    swarm.join(2, &init);
    let after_init = memory(agent);
    let (cert, key, second) = brought("second");
    agent.done(&["ca", "rotate", "--cert", &cert, "--key", &key]);
    let after_rotation = memory(agent);
    stop(agent);
    let mut own = Secrets::default();
    own.key(&node_key(agent));
    for (when, root, memory) in [
        ("after init", &first, &after_init),
        ("after a rotation", &first, &after_rotation),
        ("after a rotation to it", &second, &after_rotation),
    ] {
        let found = root.found_in(memory);
        assert!(found.is_empty(), "{when}: {found:?}");
    }
    assert!(!own.found_in(&after_rotation).is_empty(), "the key that is always in use was not found");
}

fn keys_of_before_a_rekey_are_in_no_memory() {
    let swarm = Swarm::unformed_configured(2, Underlay::default(), "[limits]\nlinger = \"1s\"");
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    let (swarm, containers) = swarm.with_containers();
    swarm.assert_joined(&containers[0], &containers[1]);
    let logged = || std::fs::read_to_string(swarm.agent(1).key_log()).unwrap();
    let before = SessionKeys::of_log(&logged());
    for agent in &swarm.agents {
        let found = before.found_in(&memory(agent));
        assert_eq!(found.len(), before.keys.len(), "a key that is in use was not found: {found:?}");
    }

    swarm.agent(1).done(&["rekey"]);
    let peers = || swarm.agents.iter().map(|agent| agent.peers().peers.remove(0)).collect::<Vec<_>>();
    assert!(eventually(PATIENCE, || peers().iter().all(|peer| peer.lingering_spis.is_empty())));
    assert!(SessionKeys::of_log(&logged()).keys.len() > before.keys.len(), "nothing was rekeyed");
    swarm.assert_joined(&containers[0], &containers[1]);
    for agent in &swarm.agents {
        let found = before.found_in(&memory(agent));
        assert!(found.is_empty(), "agent {}: {found:?}", agent.number);
    }
}

/// Keys of SAs, and their salts.
struct SessionKeys {
    keys: Vec<(String, Vec<u8>)>,
}

impl SessionKeys {
    /// Those of Wireshark's `esp_sa` table.
    fn of_log(log: &str) -> Self {
        let keys = log.lines().map(|row| {
            let key = row.split("\"0x").last().unwrap().split('"').next().unwrap();
            (row.split('"').nth(7).unwrap().to_owned(), HEXLOWER.decode(key.as_bytes()).unwrap())
        });
        Self { keys: keys.collect() }
    }

    /// SPIs of the keys of which a half is there.
    fn found_in(&self, memory: &[u8]) -> Vec<&str> {
        let is_there =
            |key: &[u8]| [&key[..16], &key[16..32]].iter().any(|half| memmem::find(memory, half).is_some());
        self.keys.iter().filter(|(_, key)| is_there(key)).map(|(spi, _)| &**spi).collect()
    }
}

/// What is looked for, in every form in which it may be written.
#[derive(Default)]
struct Secrets {
    forms: Vec<(String, Vec<u8>)>,
}

impl Secrets {
    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let name = String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| HEXLOWER.encode(bytes));
        self.forms.push((name.clone(), bytes.to_vec()));
        for hex in [HEXLOWER.encode(bytes), HEXUPPER.encode(bytes)] {
            self.forms.push((format!("{name} as {hex}"), hex.into_bytes()));
        }
        // Base64 of something that it is a part of, wherever it begins there.
        for before in 0..3 {
            let base64 = BASE64.encode(&[&[0; 2][..before], bytes].concat());
            let sure = &base64[4..(before + bytes.len()) / 3 * 4];
            self.forms.push((format!("{name} as {sure}"), sure.as_bytes().to_vec()));
            self.forms
                .push((format!("{name} as {sure} in hex"), HEXLOWER.encode(sure.as_bytes()).into_bytes()));
        }
    }

    /// A P-256 key in PKCS#8: its 32 secret bytes.
    fn key(&mut self, pkcs8: &[u8]) {
        // An OCTET STRING of 32 bytes after version 1 (RFC 5915).
        let at = memmem::find(pkcs8, &[2, 1, 1, 4, 32]).unwrap() + 5;
        self.bytes(&pkcs8[at..at + 32]);
    }

    fn found_in(&self, bytes: &[u8]) -> Vec<&str> {
        let found = self.forms.iter().filter(|(_, form)| memmem::find(bytes, form).is_some());
        found.map(|(name, _)| name.as_str()).collect()
    }
}

/// What the agent writes to its disk, as it is before it is sealed.
fn rows_in_clear(agent: &Agent) -> Vec<u8> {
    let store = Store::open(&agent.state_dir()).unwrap();
    let identity: serde_json::Value = store.identity().unwrap().unwrap();
    let mut text = format!("{identity} {:?}", store.attachments().unwrap());
    text.push_str(&serde_json::to_string(&store.view().unwrap()).unwrap());
    text.into_bytes()
}

fn root_key(agent: &Agent) -> Vec<u8> {
    let store = Store::open(&agent.state_dir()).unwrap();
    let state = ClusterState::open(store, Box::new(|_| Err("nothing is signed".into()))).unwrap();
    let authority: serde_json::Value = serde_json::from_slice(&state.ca().unwrap()).unwrap();
    BASE64.decode(authority["key_base64"].as_str().unwrap().as_bytes()).unwrap()
}

fn node_key(agent: &Agent) -> Vec<u8> {
    let store = Store::open(&agent.state_dir()).unwrap();
    let identity: serde_json::Value = store.identity().unwrap().unwrap();
    BASE64.decode(identity["key"].as_str().unwrap().as_bytes()).unwrap()
}

/// All that the agent's process may write to.
fn memory(agent: &Agent) -> Vec<u8> {
    let pid = agent.status().pid;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        if !rights.starts_with("rw") || line.contains("[vvar") {
            continue;
        }
        let mut page = vec![0; 1 << 20];
        for at in (from..to).step_by(page.len()) {
            let length = usize::try_from(to - at).unwrap().min(page.len());
            // A stack that has not grown so far yet cannot be read.
            if memory.read_exact_at(&mut page[..length], at).is_ok() {
                all.extend_from_slice(&page[..length]);
            }
        }
    }
    all
}

fn stop(agent: &Agent) {
    agent.signal(Signal::TERM);
    assert!(agent.await_exit(Duration::from_secs(10)).is_some_and(|status| status.success()));
}

const AUDIT_LOG: &str = "events.jsonl";
