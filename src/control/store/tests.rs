use super::local::{Attachment, AttachmentState, NetnsRef, NodeSettings};
use super::*;
use crate::id::EndpointId;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn rows_written_are_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.put_settings(&settings()).unwrap();
    store.put_identity(&"who I am").unwrap();
    store.put_attachment(&attachment(1)).unwrap();
    drop(store);

    let store = Store::open(dir.path()).unwrap();

    assert_eq!(store.settings().unwrap(), Some(settings()));
    assert_eq!(store.identity::<String>().unwrap().as_deref(), Some("who I am"));
    assert_eq!(store.attachments().unwrap(), vec![attachment(1)]);
    assert_eq!(store.attachment(attachment(1).id).unwrap(), Some(attachment(1)));
    store.remove_attachment(attachment(1).id).unwrap();
    assert_eq!(store.attachments().unwrap(), vec![]);
}

#[test]
fn leaving_the_cluster_forgets_everything_but_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.put_enrolment(&"who I am", &settings()).unwrap();
    store.put_view(&crate::cluster::View::default()).unwrap();
    store.put_attachment(&attachment(1)).unwrap();

    store.leave_cluster().unwrap();
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.identity::<String>().unwrap(), None);
    assert_eq!(store.view().unwrap(), None);
    assert_eq!(store.attachments().unwrap(), vec![]);
}

#[test]
fn a_failed_transaction_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();

    let refused = store.write(|w| {
        w.put(&Table::new("t"), "k", &1)?;
        Err::<(), _>(StoreError::Missing { file: "x".into() })
    });

    assert!(refused.is_err());
    assert_eq!(store.read(|r| r.get::<u32>(&Table::new("t"), "k")).unwrap(), None);
}

#[test]
fn directory_and_file_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let _store = Store::create(&state).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join(STATE_FILE)), 0o600);
    assert_eq!(mode(&state.join(LOCK_FILE)), 0o600);
}

#[test]
fn file_restored_from_a_backup_is_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::create(dir.path()).unwrap());
    let path = dir.path().join(STATE_FILE);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let _store = Store::open(dir.path()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn second_agent_on_a_state_directory_is_refused_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open_or_create(dir.path()).unwrap();

    let message = Store::open_or_create(dir.path()).unwrap_err().to_string();

    assert_eq!(
        message,
        format!(
            "state directory {} is in use by another overlayd agent (pid {}): stop that one, or give this one a --state-dir of its own",
            dir.path().display(),
            std::process::id()
        )
    );
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn opening_makes_no_file_and_creating_replaces_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Missing { .. })));
    assert!(!dir.path().join(STATE_FILE).exists());
    drop(Store::create(dir.path()).unwrap());
    assert!(matches!(Store::create(dir.path()), Err(StoreError::Exists { .. })));
}

#[test]
fn draft_of_an_interrupted_creation_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("overlayd.redb.new"), "half").unwrap();
    Store::open_or_create(dir.path()).unwrap();
    assert!(!dir.path().join("overlayd.redb.new").exists());
}

#[test]
fn database_of_another_program_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(STATE_FILE);
    drop(redb::Database::create(&path).unwrap());
    let message = Store::open_or_create(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("is not a state file of overlayd (a redb file of another program)"),
        "{message}"
    );
    drop(redb::Database::open(&path).unwrap());
}

#[test]
fn file_of_a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.write(|w| w.put(&Table::new("header"), "format", &7)).unwrap();
    drop(store);
    let message = Store::open_or_create(dir.path()).unwrap_err().to_string();
    assert!(message.contains("has format 7, this overlayd knows format 1"), "{message}");
}

#[test]
fn row_that_does_not_parse_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.write(|w| w.put(&Table::new("attachments"), "bad", &"text")).unwrap();
    let message = store.attachments().unwrap_err().to_string();
    assert!(message.contains(r#"row "bad" of table "attachments""#), "{message}");
}

fn settings() -> NodeSettings {
    NodeSettings {
        listen: "0.0.0.0:2377".parse().unwrap(),
        advertise: "192.0.2.1:2377".parse().unwrap(),
        data: "192.0.2.1:4500".parse().unwrap(),
        managers: vec!["192.0.2.9:2377".parse().unwrap()],
    }
}

fn attachment(n: u8) -> Attachment {
    Attachment {
        id: EndpointId::from_entropy([n; 16]),
        network: "web".parse().unwrap(),
        netns: NetnsRef { path: "/run/netns/a".into(), dev: 4, inode: 4_026_531_840 },
        ifname: "eth0".parse().unwrap(),
        name: None,
        ips: vec!["10.1.0.9".parse().unwrap()],
        mac: None,
        rates: crate::rate::RateLimits::default(),
        state: AttachmentState::Pending,
        endpoint: None,
        mtu: Some(1408),
    }
}
