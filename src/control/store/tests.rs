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

/// A child between fork and exec has the files of its parent open, the lock file too.
#[test]
fn directory_is_free_once_its_store_is_closed_though_processes_are_started_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::create(dir.path()).unwrap());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(std::process::Command::new("true").status().unwrap().success());
            }
        });
        let opened = (0..300).try_for_each(|_| Store::open(dir.path()).map(drop));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        opened.unwrap();
    });
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
    assert_eq!(mode(&state.join(KEY_FILE)), 0o600);
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
    drop(Store::create(dir.path()).unwrap());
    alter(dir.path(), |transaction| {
        let mut header = transaction.open_table(IN_CLEAR_HEADER).unwrap();
        header.insert("format", b"7".as_slice()).unwrap();
    });
    let message = Store::open_or_create(dir.path()).unwrap_err().to_string();
    assert!(message.contains("has format 7, this overlayd knows format 2"), "{message}");
}

#[test]
fn row_that_does_not_parse_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.write(|w| w.put(&Table::new("attachments"), "bad", &"text")).unwrap();
    let message = store.attachments().unwrap_err().to_string();
    assert!(message.contains(r#"row "bad" of table "attachments""#), "{message}");
}

#[test]
fn nothing_that_is_written_can_be_read_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.write(|w| w.put(&Table::new("t"), "key-of-the-row", &"value-of-the-row")).unwrap();
    store.write(|w| w.put(&Table::new("t"), "key-of-the-row", &"value-that-came-later")).unwrap();
    drop(store);
    for secret in ["key-of-the-row", "value-of-the-row", "value-that-came-later"] {
        assert!(!contains(dir.path(), secret), "{secret}");
    }
}

#[test]
fn file_of_the_first_version_is_sealed_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(STATE_FILE);
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut header = transaction.open_table(IN_CLEAR_HEADER).unwrap();
        header.insert("magic", b"\"overlayd state\"".as_slice()).unwrap();
        header.insert("format", b"1".as_slice()).unwrap();
        let mut nodes = transaction.open_table(TableDefinition::<&str, &[u8]>::new("t")).unwrap();
        nodes.insert("key-of-the-row", b"\"value-of-the-row\"".as_slice()).unwrap();
        nodes.insert("key-that-is-gone", b"\"value-that-is-gone\"".as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    let transaction = database.begin_write().unwrap();
    let mut nodes = transaction.open_table(TableDefinition::<&str, &[u8]>::new("t")).unwrap();
    nodes.remove("key-that-is-gone").unwrap();
    drop(nodes);
    transaction.commit().unwrap();
    drop(database);
    assert!(contains(dir.path(), "value-of-the-row"));

    let all = Store::open(dir.path()).unwrap().read(|r| r.all::<String>(&Table::new("t"))).unwrap();

    assert_eq!(all, vec![("key-of-the-row".to_owned(), "value-of-the-row".to_owned())]);
    for secret in ["key-of-the-row", "value-of-the-row", "key-that-is-gone", "value-that-is-gone"] {
        assert!(!contains(dir.path(), secret), "{secret}");
    }
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 3, "state file, key file, lock");
}

#[test]
fn rows_that_were_swapped_or_altered_are_refused_and_named_with_their_table() {
    let swap = |one: &'static str, other: &'static str| {
        move |transaction: &redb::WriteTransaction| {
            let mut first = transaction.open_table(rows_of(one)).unwrap();
            let (key, row) = pop(&mut first);
            if one == other {
                let (key2, row2) = pop(&mut first);
                first.insert(key.as_slice(), row2.as_slice()).unwrap();
                first.insert(key2.as_slice(), row.as_slice()).unwrap();
            } else {
                let mut second = transaction.open_table(rows_of(other)).unwrap();
                second.insert(key.as_slice(), row.as_slice()).unwrap();
            }
        }
    };
    let flip = |transaction: &redb::WriteTransaction| {
        let mut rows = transaction.open_table(rows_of("t")).unwrap();
        let (key, mut row) = pop(&mut rows);
        *row.last_mut().unwrap() ^= 1;
        rows.insert(key.as_slice(), row.as_slice()).unwrap();
    };
    let cut = |transaction: &redb::WriteTransaction| {
        let mut rows = transaction.open_table(rows_of("t")).unwrap();
        let (key, row) = pop(&mut rows);
        rows.insert(key.as_slice(), &row[..row.len() / 2]).unwrap();
    };
    let alterations: [(&str, Alteration<'_>); 4] =
        [("t", &swap("t", "t")), ("u", &swap("t", "u")), ("t", &flip), ("t", &cut)];
    for (table, change) in alterations {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        store
            .write(|w| {
                w.put(&Table::new("t"), "a", &"1")?;
                w.put(&Table::new("t"), "b", &"2")
            })
            .unwrap();
        drop(store);
        alter(dir.path(), change);

        let store = Store::open(dir.path()).unwrap();
        let refused = store.read(|r| r.all::<String>(&Table::new(table))).unwrap_err().to_string();

        assert!(
            refused.contains(&format!("of table {table:?} was altered or put in another's place")),
            "{refused}"
        );
    }
}

#[test]
fn state_file_opens_with_its_own_key_file_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(Store::create(dir.path()).unwrap());
    drop(Store::create(other.path()).unwrap());
    let key_file = dir.path().join(KEY_FILE);
    let own = fs::read(&key_file).unwrap();
    let refused = || Store::open_or_create(dir.path()).unwrap_err().to_string();

    fs::remove_file(&key_file).unwrap();
    assert!(refused().contains("put the key file back"), "{}", refused());
    fs::copy(other.path().join(KEY_FILE), &key_file).unwrap();
    assert!(refused().contains("put the key file back"), "{}", refused());
    fs::write(&key_file, &own[..own.len() / 2]).unwrap();
    assert!(refused().contains("is damaged"), "{}", refused());
    let secret = String::from_utf8(own.clone()).unwrap();
    let altered = secret.replace("\"open\": \"", "\"open\": \"AAAA");
    assert_ne!(altered, secret);
    fs::write(&key_file, altered).unwrap();
    assert!(refused().contains("is damaged"), "{}", refused());
    fs::write(&key_file, own).unwrap();
    Store::open(dir.path()).unwrap();
}

#[test]
fn state_file_that_was_moved_away_can_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    store.put_identity(&"the first").unwrap();
    drop(store);
    let (path, away) = (dir.path().join(STATE_FILE), dir.path().join("away"));
    fs::rename(&path, &away).unwrap();
    drop(Store::open_or_create(dir.path()).unwrap());
    fs::rename(&away, &path).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.identity::<String>().unwrap().as_deref(), Some("the first"));
}

fn pop(rows: &mut redb::Table<'_, &'static [u8], &'static [u8]>) -> (Vec<u8>, Vec<u8>) {
    let (key, row) = rows.pop_first().unwrap().unwrap();
    (key.value().to_vec(), row.value().to_vec())
}

type Alteration<'a> = &'a dyn Fn(&redb::WriteTransaction);

/// Changes the closed state file behind the store's back.
fn alter(dir: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::open(dir.join(STATE_FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

fn contains(dir: &Path, text: &str) -> bool {
    let file = fs::read(dir.join(STATE_FILE)).unwrap();
    file.windows(text.len()).any(|bytes| bytes == text.as_bytes())
}

const IN_CLEAR_HEADER: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("header");

fn settings() -> NodeSettings {
    NodeSettings {
        listen: "0.0.0.0:2377".parse().unwrap(),
        advertise: "192.0.2.1:2377".parse().unwrap(),
        data: "192.0.2.1:4500".parse().unwrap(),
        managers: vec!["192.0.2.9:2377".parse().unwrap()],
        interface: Some("eth0".parse().unwrap()),
        advertised_here: true,
    }
}

fn attachment(n: u8) -> Attachment {
    Attachment {
        id: EndpointId::from_entropy([n; 16]),
        network: "web".parse().unwrap(),
        netns: NetnsRef { path: "/run/netns/a".into(), dev: 4, inode: 4_026_531_840 },
        ifname: "eth0".parse().unwrap(),
        name: None,
        cni: None,
        docker: None,
        ips: vec!["10.1.0.9".parse().unwrap()],
        mac: None,
        rates: crate::rate::RateLimits::default(),
        state: AttachmentState::Pending,
        endpoint: None,
        mtu: Some(1408),
    }
}
