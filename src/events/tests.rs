//! Readers and the files, together.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test]
async fn reader_gets_what_comes_after_it_and_the_past_on_request() {
    let events = Events::default();
    record(&events, 3);
    let mut live = events.reader(None);
    let mut all = events.reader(Some(Timestamp(UNIX_EPOCH)));
    assert_eq!(live.take(), None);
    record(&events, 2);
    assert_eq!(numbers(&mut live), [4, 5]);
    assert_eq!(numbers(&mut all), [1, 2, 3, 4, 5]);
    let later = Timestamp(Timestamp::now().0 + Duration::from_secs(9));
    assert_eq!(numbers(&mut events.reader(Some(later))).len(), 0);
}

#[tokio::test]
async fn waiting_reader_is_woken_by_an_event_and_ends_with_the_last() {
    let events = Events::default();
    let mut reader = events.reader(None);
    let reading = tokio::spawn(async move {
        let mut read = Vec::new();
        while let Some(Told::Event(recorded)) = reader.next().await {
            read.push(recorded.number);
        }
        read
    });
    for _ in 0..5 {
        record(&events, 1);
        tokio::task::yield_now().await;
    }
    events.close();
    assert_eq!(reading.await.expect("no panic"), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn reader_that_is_too_slow_is_told_how_many_it_has_lost() {
    let events = Events::default();
    let mut reader = events.reader(None);
    record(&events, 2000);
    assert_eq!(reader.next().await, Some(Told::Lost { lost: 2000 - 1024 }));
    let Some(Told::Event(first)) = reader.next().await else { panic!("no event") };
    assert_eq!(first.number, 977);
    assert_eq!(numbers(&mut reader).len(), 1023);
    let line = serde_json::to_string(&Told::Lost { lost: 12 }).expect("JSON");
    assert_eq!(line, r#"{"lost":12}"#);
    assert_eq!(serde_json::from_str::<Told>(&line).expect("a line"), Told::Lost { lost: 12 });
}

#[tokio::test]
async fn events_outlive_the_agent_and_numbers_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    run(dir.path(), 5).await;
    let file = dir.path().join("events.jsonl");
    assert_eq!(std::fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).expect("lines");
    assert_eq!(text.lines().count(), 5);
    let line: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&line["seq"], &line["event"]), (&1.into(), &"agent_started".into()));
    assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");

    let events = run(dir.path(), 2).await;
    assert_eq!(numbers(&mut events.reader(Some(Timestamp(UNIX_EPOCH)))), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(std::fs::read_to_string(&file).expect("lines").lines().count(), 7);
}

#[tokio::test]
async fn torn_line_is_taken_back_and_foreign_lines_are_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    run(dir.path(), 2).await;
    let file = dir.path().join("events.jsonl");
    let mut text = std::fs::read_to_string(&file).expect("lines");
    text.push_str("{\"seq\":3,\"time\":\"2027-01-15T08:00:00Z\",\"event\":\"from_the_future\"}\nnonsense\n");
    text.push_str("{\"seq\":4,\"time\":\"2027-01-1");
    std::fs::write(&file, &text).expect("written");

    let events = run(dir.path(), 1).await;
    let text = std::fs::read_to_string(&file).expect("lines");
    assert_eq!(text.lines().count(), 5, "{text}");
    assert_eq!(numbers(&mut events.reader(Some(Timestamp(UNIX_EPOCH)))), [4], "3 is of another version");
    let past: Vec<_> =
        events.past(Timestamp(UNIX_EPOCH)).expect("the files").iter().map(|past| past.number).collect();
    assert_eq!(past, [1, 2]);
}

#[tokio::test]
async fn files_are_bounded_and_the_past_beyond_memory_is_read_from_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let full = std::iter::repeat_n("x\n", 2 << 20).collect::<String>();
    std::fs::write(dir.path().join("events.1.jsonl"), "older\n").expect("written");
    run(dir.path(), 1500).await;
    let file = dir.path().join("events.jsonl");
    let mut text = std::fs::read_to_string(&file).expect("lines");
    text.push_str(&full);
    std::fs::write(&file, text).expect("written");

    // The tail of the newer file tells nothing of the numbers: they begin anew, and nothing is lost.
    let events = run(dir.path(), 3).await;
    assert!(std::fs::metadata(&file).expect("a file").len() < 1000);
    assert!(std::fs::metadata(dir.path().join("events.1.jsonl")).expect("a file").len() > 4 << 20);
    assert!(events.trouble().is_none());
}

#[tokio::test]
async fn directory_that_cannot_be_written_is_told_and_stops_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("events.jsonl")).expect("something else of that name");
    let events = Events::open(dir.path());
    let trouble = events.trouble().expect("a trouble");
    assert!(trouble.contains("in memory alone") && trouble.contains("events.jsonl"), "{trouble}");
    let mut reader = events.reader(None);
    record(&events, 1);
    assert_eq!(numbers(&mut reader), [1]);
}

#[test]
fn every_kind_of_event_survives_json_and_has_its_sentence() {
    let node = crate::id::NodeId::from_entropy([0; 16]);
    let from = "192.0.2.2:40000".parse().expect("an address");
    let (uid, pid) = (1000, Some(7));
    let [subject, failure] = ["red", "no"].map(|text| Some(Reason::of(text)));
    for (event, sentence) in [
        (
            Event::LocalRequest {
                uid,
                pid,
                request: "network/remove".into(),
                subject: subject.clone(),
                failure: failure.clone(),
            },
            "uid 1000 (pid 7) asked for network/remove red, failed: no",
        ),
        (
            Event::NodeRequest { node, name: None, from, request: "attach".into(), subject, failure: None },
            "node 0000000000000000000000000 at 192.0.2.2:40000 asked for attach red",
        ),
        (
            Event::JoinRefused { from, reason: Reason::of("no such\ntoken") },
            "192.0.2.2:40000 may not join: no such token",
        ),
        (
            Event::CertificateRenewed { expires_unix_seconds: 1_800_000_000 },
            "certificate renewed, until 2027-01-15T08:00:00.000Z",
        ),
        (Event::AgentStopped {}, "agent stops"),
        (Event::NodeRemoved { node }, "node 0000000000000000000000000 was removed from the cluster"),
        (
            Event::ManagerAdded { node, name: "b".parse().expect("a name") },
            "node 0000000000000000000000000 (b) is a manager now",
        ),
        (
            Event::ManagerGone { node, name: "b".parse().expect("a name") },
            "node 0000000000000000000000000 (b) is a manager no more",
        ),
        (Event::OfficeTaken {}, "this node serves as a manager"),
        (Event::OfficeLeft {}, "this node serves as a manager no more"),
        (
            Event::RootsChanged { trusted: vec!["ab".into(), "cd".into()], issuer: "cd".into() },
            "roots trusted: ab, cd; the certificate is of cd",
        ),
        (
            Event::RotationStep { step: crate::cluster::RotationStep::Retire },
            "the root is being replaced: every node drops the old root",
        ),
        (Event::RotationEnded {}, "the root is replaced on every node"),
    ] {
        assert_eq!(event.to_string(), sentence);
        let time = "2027-01-15T08:00:00.123Z".parse().expect("a time");
        let recorded = Recorded { number: 7, time, event };
        let line = serde_json::to_string(&recorded).expect("JSON");
        assert!(line.contains(r#""seq":7,"time":"2027-01-15T08:00:00.123Z","event":""#), "{line}");
        assert_eq!(serde_json::from_str::<Recorded>(&line).expect("an event"), recorded);
    }
}

#[test]
fn text_of_others_is_one_bounded_line() {
    assert_eq!(Reason::of("a\nb\u{1b}[31mc").to_string(), "a b [31mc");
    let long = Reason::of("ä".repeat(10_000)).to_string();
    assert_eq!((long.chars().count(), long.ends_with('…')), (300, true));
}

#[test]
fn journal_whose_next_file_could_not_be_opened_goes_on_in_it_and_keeps_the_full_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (newer, older) = (dir.path().join("events.jsonl"), dir.path().join("events.1.jsonl"));
    let recorded = |number| Recorded {
        number,
        time: Timestamp(UNIX_EPOCH),
        event: Event::AgentStarted { version: "1".into() },
    };
    // What the attempt had come to when it failed: the next file is not there, or has just been made.
    for is_made in [false, true] {
        let full = serde_json::to_string(&recorded(1)).expect("JSON") + "\n" + &" ".repeat(4 << 20) + "\n";
        std::fs::write(&newer, &full).expect("written");
        let (mut journal, _) = Journal::open(dir.path()).expect("readable");
        std::fs::rename(&newer, &older).expect("renamed");
        if is_made {
            std::fs::write(&newer, "").expect("made");
        }
        for number in [2, 3] {
            journal.append(&[Told::Event(Box::new(recorded(number)))]).expect("written");
        }
        assert_eq!(std::fs::read_to_string(&older).expect("lines"), full);
        let numbers: Vec<_> = journal::read(dir.path()).expect("readable").iter().map(|r| r.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        std::fs::remove_file(&newer).expect("removed");
    }
}

/// One run of an agent, with as many events.
async fn run(dir: &Path, count: usize) -> Events {
    let events = Events::open(dir);
    let keeping = tokio::spawn(events.clone().keep());
    for _ in 0..count {
        record(&events, 1);
        // Faster, the ring would overtake the disk.
        tokio::task::yield_now().await;
    }
    events.close();
    keeping.await.expect("no panic");
    events
}

fn record(events: &Events, count: usize) {
    for _ in 0..count {
        events.record(Event::AgentStarted { version: "1".into() });
    }
}

fn numbers(reader: &mut Reader) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(told) = reader.take() {
        let Told::Event(recorded) = told else { panic!("{told}") };
        numbers.push(recorded.number);
    }
    numbers
}
