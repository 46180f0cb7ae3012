//! Rules 7 and 9: what must be so for the store to open.

use std::fs;
use std::path::Path;

use gatepost_audit::{Checkpoint, SignerKey, empty_root};
use gatepost_store::{DataDirError, LogFault, OpenError};

use crate::check::{STORE, assert_log, resum, tamper};
use crate::fixture::{DELIVERED, Fixture, Place, queue, quick};

async fn place_with(count: usize) -> Place {
    filled(Place::new(vec![queue("lab", quick())]).open().await.unwrap(), "m", count).await.stop().await
}

async fn filled(fixture: Fixture, name: &str, count: usize) -> Fixture {
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

fn copy(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        let _ = fs::remove_file(to.join(name));
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

const DATABASE: [&str; 3] = ["gatepost.db", "gatepost.db-wal", "gatepost.db-shm"];

async fn assert_adopts(place: Place) {
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
    for key in ["keys/store.key", "keys/audit.key"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
    assert_eq!(mode("gatepost.db") & 0o077, 0, "the database is nobody else's");
}

#[tokio::test]
async fn r13_9_data_without_its_keys_is_refused() {
    for key in ["keys/store.key", "keys/audit.key"] {
        let place = place_with(1).await;
        let path = place.path().join(key);
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let refused = place.refusal().await;
        assert!(
            matches!(&refused, OpenError::DataDir(DataDirError::KeyMissing { key, .. }) if *key == path),
            "{refused:?}"
        );
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
async fn a_database_of_a_newer_version_is_refused_untouched() {
    let place = place_with(1).await;
    tamper(&place, "PRAGMA user_version = 99").await;
    let refused = place.refusal().await;
    assert!(matches!(refused, OpenError::Newer { found: 99, .. }), "{refused:?}");
    tamper(&place, "PRAGMA user_version = 1").await;
    place.open().await.unwrap();
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
async fn r13_7_a_database_that_was_rolled_back_is_refused_until_adopted() {
    let place = place_with(3).await;
    let backup = tempfile::tempdir().unwrap();
    copy(place.path(), backup.path(), &DATABASE);
    let place = filled(place.open().await.unwrap(), "later", 3).await.stop().await;
    copy(backup.path(), place.path(), &DATABASE);
    let refused = place.refusal().await;
    assert!(matches!(refused, OpenError::Log(LogFault::RolledBack { .. })), "{refused:?}");
    assert_adopts(place).await;
}

/// The log of the newer database stands in files already when the older one comes back.
#[tokio::test]
async fn r13_7_a_rollback_behind_filed_bundles_is_refused_until_adopted() {
    let place = place_with(3).await;
    let backup = tempfile::tempdir().unwrap();
    copy(place.path(), backup.path(), &DATABASE);
    let fixture = filled(place.open().await.unwrap(), "later", 700).await;
    let bundles = place.path().join("audit/tile/entries");
    crate::fixture::until("bundles are filed", async || bundles.join("001").exists()).await;
    let place = fixture.stop().await;
    assert_log(&place, "before the rollback").await;
    copy(backup.path(), place.path(), &DATABASE);
    let refused = place.refusal().await;
    assert!(matches!(refused, OpenError::Log(LogFault::RolledBack { .. })), "{refused:?}");
    assert_adopts(place).await;
}

#[tokio::test]
async fn r13_7_a_database_that_is_gone_is_not_a_first_start() {
    let place = place_with(3).await;
    for name in DATABASE {
        let _ = fs::remove_file(place.path().join(name));
    }
    for _ in 0..2 {
        let refused = place.refusal().await;
        assert!(matches!(refused, OpenError::Log(LogFault::RolledBack { found: 0, .. })), "{refused:?}");
    }
    assert_adopts(place).await;
}

#[tokio::test]
async fn r13_7_an_edited_leaf_is_refused_until_adopted() {
    let place = place_with(3).await;
    tamper(
        &place,
        "DROP TRIGGER leaf_is_immutable; \
         UPDATE leaf SET bytes = unhex(replace(hex(bytes), hex('\"size\":1'), hex('\"size\":2'))) WHERE idx >= 2",
    )
    .await;
    // Whoever knows how puts the row's sum right too.
    let refused = place.refusal().await;
    assert!(matches!(refused, OpenError::Log(LogFault::EntryDamaged(_))), "{refused:?}");
    resum(&place, "leaf", "idx", &["idx", "bytes"]).await;
    let refused = place.refusal().await;
    assert!(matches!(refused, OpenError::Log(LogFault::Edited(_))), "{refused:?}");
    assert_adopts(place).await;
}

#[tokio::test]
async fn r13_7_a_missing_leaf_is_refused_and_cannot_be_adopted() {
    let place = place_with(3).await;
    tamper(&place, "DELETE FROM leaf WHERE idx = 2").await;
    let refused = place.refusal().await;
    assert!(matches!(refused, OpenError::Log(LogFault::EntryMissing(2))), "{refused:?}");
    let refused = Place { adopt: true, ..place }.refusal().await;
    assert!(matches!(refused, OpenError::Log(LogFault::EntryMissing(2))), "{refused:?}");
}

#[tokio::test]
async fn leaves_are_immutable_in_the_database_itself() {
    let place = place_with(1).await;
    let mut connection = crate::check::connect(&place).await;
    let edited = sqlx::query("UPDATE leaf SET bytes = x'00' WHERE idx = 0").execute(&mut connection).await;
    assert!(edited.is_err());
}

#[tokio::test]
async fn r13_7_entries_that_no_checkpoint_covers_are_normal_after_a_crash() {
    for round in 0..3 {
        let place = place_with(1).await;
        let fixture = filled(place.open().await.unwrap(), "tail", 50).await;
        let size = fixture.leaves();
        let place = fixture.crash().await;
        let signed = fs::read_to_string(place.path().join("audit/checkpoint")).unwrap();
        let signed: u64 = signed.lines().nth(1).unwrap().parse().unwrap();
        assert!(signed <= size, "round {round}: a checkpoint covers only what is durable");
        let report = assert_log(&place, "after the crash").await;
        assert_eq!(report.size + report.unsigned, size);
        let fixture = place.open().await.unwrap();
        assert_eq!(fixture.stats("lab").await.waiting, 51);
        assert_log(&fixture.stop().await, "after the crash").await;
    }
}

/// The process was killed between making its files and the first commit: no leaf, and a checkpoint of nothing.
#[tokio::test]
async fn a_start_that_died_before_its_first_leaf_is_made_good() {
    let place = Place::new(vec![queue("lab", quick())]);
    place.open().await.unwrap().stop().await;
    tamper(&place, "DELETE FROM leaf; UPDATE store SET leaf_count = 0").await;
    resum(&place, "store", "id", &STORE).await;
    let signer = fs::read_to_string(place.path().join("keys/audit.key")).unwrap();
    let signer = SignerKey::parse(signer.trim()).unwrap();
    let checkpoint = Checkpoint { origin: signer.name().to_owned(), size: 0, root: empty_root() };
    fs::write(place.path().join("audit/checkpoint"), checkpoint.sign(&signer).unwrap()).unwrap();
    let place = filled(place.open().await.unwrap(), "m", 2).await.stop().await;
    assert_log(&place, "a log that begins").await;
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

#[tokio::test]
async fn time_never_goes_back_behind_what_was_written() {
    let place = place_with(1).await;
    let future = 4_000_000_000_000_000i64;
    tamper(&place, "UPDATE store SET clock = 4000000000000000").await;
    resum(&place, "store", "id", &STORE).await;
    let fixture = place.open().await.unwrap();
    assert!(fixture.store.read().now().as_micros() >= future);
    let delivery = fixture.send("1", None, "lab").await;
    assert!(fixture.row(delivery).await.accepted_at.as_micros() >= future);
}

/// Whoever copies the database of a gateway that was stopped in good order has all of it.
#[tokio::test]
async fn a_good_stop_leaves_everything_in_one_file() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    fixture.send("1", None, "lab").await;
    let place = fixture.stop().await;
    for beside in ["gatepost.db-wal", "gatepost.db-shm"] {
        assert!(!place.path().join(beside).exists(), "{beside}");
    }
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
