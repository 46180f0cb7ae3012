//! Rules 7 and 9: what must be so for the store to open.

use std::fs;

use gatepost_store::{DataDirError, Database, LogFault, OpenError, Options, SealKeysFrom};

use crate::check::{assert_log, number};
use crate::fixture::{DELIVERED, Fixture, Place, queue, quick, until};

pub(crate) async fn place_with(count: usize) -> Place {
    filled(Place::new(vec![queue("lab", quick())]).open().await.unwrap(), "m", count).await.stop().await
}

pub(crate) async fn filled(fixture: Fixture, name: &str, count: usize) -> Fixture {
    let batch = |from: usize| {
        (from..count.min(from + 500))
            .map(|n| crate::fixture::message(&format!("{name}{n}"), None, "x", &["lab"]))
            .collect::<Vec<_>>()
    };
    for from in (0..count).step_by(500) {
        fixture.accept(batch(from)).await.unwrap();
    }
    fixture
}

pub(crate) async fn assert_adopts(place: Place) {
    let adopting = Place { adopt: true, ..place };
    let fixture = adopting.open().await.unwrap();
    let fixture = filled(fixture, "after", 3).await;
    let place = Place { adopt: false, ..fixture.stop().await };
    let log = String::from_utf8(crate::check::entries(&place).await.concat()).unwrap();
    assert_eq!(log.matches("audit_adopted").count(), 1);
    assert!(log.contains(r#""by":{"kind":"operator","name":"ops"}"#), "who adopted it");
    assert_log(&place, "adopted").await;
    let fixture = place.open().await.unwrap();
    let session = fixture.session("lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
}

#[tokio::test]
async fn r13_9_the_first_start_makes_a_private_directory_with_keys() {
    use std::os::unix::fs::PermissionsExt as _;
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let mode =
        |name: &str| fs::metadata(fixture.place.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("keys"), 0o700);
    for key in ["keys/store.key", "keys/audit.key", "keys/seal-1.key"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
    if matches!(fixture.place.database, Database::Sqlite) {
        assert_eq!(mode("gatepost.db") & 0o077, 0, "the database is nobody else's");
    }
}

/// Nothing is made in the place of a seal key that others give, and nothing beside it before it is there.
#[tokio::test]
async fn r13_9_a_given_seal_key_that_is_not_there_is_asked_for_by_its_place() {
    let place = Place::new(vec![queue("lab", quick())]);
    let given = place.path().join("given");
    let options = || Options { seal_keys: SealKeysFrom::Credentials(given.clone()), ..place.options() };
    for there in [false, true] {
        if there {
            fs::create_dir(&given).unwrap();
        }
        let refused = gatepost_store::open(options()).await.err();
        assert!(
            matches!(&refused, Some(OpenError::DataDir(DataDirError::SealKeyGiven(key))) if *key == given.join("seal-1.key")),
            "{refused:?}"
        );
        assert!(!place.path().join("keys/store.key").exists());
    }
}

#[tokio::test]
async fn r13_9_data_without_its_keys_is_refused() {
    for key in ["keys/store.key", "keys/audit.key", "keys/seal-1.key"] {
        let place = place_with(1).await;
        let path = place.path().join(key);
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let refused = place.refusal().await;
        // Which version of the seal key it was is not known without it.
        let any = path.with_file_name("seal-N.key");
        let is_named = match &refused {
            OpenError::DataDir(DataDirError::KeyMissing { key, .. }) => *key == path,
            OpenError::DataDir(DataDirError::SealKeysGone { key: gone, .. }) => {
                key == "keys/seal-1.key" && *gone == any
            }
            _ => false,
        };
        assert!(is_named, "{refused:?}");
        assert!(!path.exists(), "no key was made in its place");
        fs::write(&path, "x").unwrap();
        let refused = place.refusal().await;
        assert!(matches!(refused, OpenError::DataDir(DataDirError::KeyMalformed(_))), "{refused:?}");
        fs::write(&path, kept).unwrap();
        place.open().await.unwrap();
    }
}

#[tokio::test]
async fn a_directory_is_open_once() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let refused = fixture.place.refusal().await;
    assert!(matches!(refused, OpenError::DataDir(DataDirError::InUse(_))), "{refused:?}");
    fixture.send("1", None, "lab").await;
    fixture.restart().await;
}

#[tokio::test]
async fn r13_7_a_missing_checkpoint_is_refused_until_adopted() {
    let place = place_with(3).await;
    fs::remove_file(place.path().join("audit/checkpoint")).unwrap();
    for _ in 0..2 {
        let refused = place.refusal().await;
        assert!(matches!(refused, OpenError::Log(LogFault::CheckpointMissing(_))), "{refused:?}");
        assert!(refused.to_string().contains("gatepost audit adopt --reason"), "{refused}");
    }
    assert_adopts(place).await;
}

#[tokio::test]
async fn r13_7_a_torn_or_foreign_checkpoint_is_refused_until_adopted() {
    let place = place_with(3).await;
    let path = place.path().join("audit/checkpoint");
    let whole = fs::read(&path).unwrap();
    let foreign = fs::read(place_with(3).await.path().join("audit/checkpoint")).unwrap();
    for broken in [Vec::new(), whole[..whole.len() / 2].to_vec(), whole[..whole.len() - 2].to_vec(), foreign]
    {
        fs::write(&path, broken).unwrap();
        let refused = place.refusal().await;
        assert!(matches!(refused, OpenError::Log(LogFault::CheckpointUnreadable { .. })), "{refused:?}");
    }
    assert_adopts(place).await;
}

#[tokio::test]
async fn r13_7_entries_that_no_checkpoint_covers_are_normal_after_a_crash() {
    for round in 0..3 {
        let place = place_with(1).await;
        let fixture = filled(place.open().await.unwrap(), "tail", 50).await;
        let size = fixture.leaves().await;
        let place = fixture.crash().await;
        let signed = fs::read_to_string(place.path().join("audit/checkpoint")).unwrap();
        let signed: u64 = signed.lines().nth(1).unwrap().parse().unwrap();
        assert!(signed <= size, "round {round}: a checkpoint covers only what is durable");
        let report = assert_log(&place, "after the crash").await;
        match place.database {
            Database::Sqlite => assert_eq!(report.size + report.unsigned, size),
            // The rest gets its place after the crash.
            Database::Postgres { .. } => assert!(report.size + report.unsigned <= size),
        }
        let fixture = place.open().await.unwrap();
        assert_eq!(fixture.stats("lab").await.waiting, 51);
        let report = assert_log(&fixture.stop().await, "after the crash").await;
        assert!(report.size > size);
    }
}

/// Under load files are written between two checkpoints: killed then, the log has files of a larger tree than the one that is signed.
#[tokio::test]
async fn r13_7_files_may_be_ahead_of_the_checkpoint_after_a_crash() {
    let place = place_with(400).await;
    let checkpoint = place.path().join("audit/checkpoint");
    let signed = fs::read(&checkpoint).unwrap();
    let fixture = filled(place.open().await.unwrap(), "more", 600).await;
    let place = fixture.place.clone();
    // PostgreSQL keeps its rows for other nodes.
    let gone = ["SELECT min(idx) >= 768 FROM leaf", "SELECT 1::bigint"];
    let bundle = place.path().join("audit/tile/entries/002");
    until("files are written, and their rows are gone", async || {
        bundle.exists() && number(&place, gone).await == 1
    })
    .await;
    fixture.stop().await;
    fs::write(&checkpoint, signed).unwrap();
    let place = place.open().await.unwrap().stop().await;
    assert_log(&place, "after the crash").await;
}

#[tokio::test]
async fn r13_7_the_checkpoint_before_is_kept() {
    let place = place_with(3).await;
    let size = |name: &str| {
        let text = fs::read_to_string(place.path().join("audit").join(name)).unwrap();
        text.lines().nth(1).unwrap().parse::<u64>().unwrap()
    };
    assert!(size("checkpoint.prev") < size("checkpoint"));
}

/// Whoever serves must not go on as if it could still write.
#[tokio::test]
async fn a_writer_that_ends_by_itself_is_noticed() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let store = fixture.store.clone();
    let ended = tokio::spawn(async move { store.writer_ended().await });
    fixture.send("1", None, "lab").await;
    assert!(!ended.is_finished());
    drop(fixture.crash().await);
    ended.await.unwrap();
}
