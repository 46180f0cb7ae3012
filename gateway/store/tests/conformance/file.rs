//! What holds of a database that is a file: somebody with the file in hand changes it, or brings an older one back.

use std::fs;
use std::path::Path;

use gatepost_audit::{Checkpoint, SignerKey, empty_root};
use gatepost_core::MessageId;
use gatepost_store::{Data, EraseWhat, LogFault, MessageFilter, OpenError, StoreError};
use sqlx::{Connection as _, Row as _};

use crate::audit::grown;
use crate::check::{assert_log, assert_sound, connect, entries};
use crate::fixture::{DELIVERED, Fixture, Place, keyed, queue, quick, text, texts, until};
use crate::seal::{delivered, operator, payload};
use crate::start::{assert_adopts, filled, place_with};

/// Runs a script on the database, as somebody with the file in hand could.
async fn tamper(place: &Place, script: &'static str) {
    let mut connection = connect(place).await;
    sqlx::raw_sql(script).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Columns of table `store` that its sum covers.
const STORE: [&str; 6] = ["id", "clock", "instance_epoch", "leaf_count", "keyed", "store_key"];

/// Gives every row of a table the sum of these columns, as somebody who knows how it is made could.
async fn resum(place: &Place, table: &str, key: &str, columns: &[&str]) {
    let mut connection = connect(place).await;
    let select = format!("SELECT {}, {key} AS row_key FROM {table}", columns.join(", "));
    for row in sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(&mut connection).await.unwrap() {
        let mut summand = Vec::new();
        for column in 0..columns.len() {
            if let Ok(number) = row.try_get::<i64, _>(column) {
                summand.push(1);
                summand.extend_from_slice(&number.to_le_bytes());
            } else {
                let bytes: &[u8] = row.try_get(column).unwrap();
                summand.push(3);
                summand.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
                summand.extend_from_slice(bytes);
            }
        }
        let update = format!("UPDATE {table} SET sum = ? WHERE {key} = ?");
        let sum = xxhash_rust::xxh3::xxh3_64(&summand).cast_signed();
        let row_key: i64 = row.get("row_key");
        sqlx::query(sqlx::AssertSqlSafe(update))
            .bind(sum)
            .bind(row_key)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();
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

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_untouched() {
    let place = place_with(1).await;
    let mut connection = connect(&place).await;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    tamper(&place, "PRAGMA user_version = 99").await;
    let refused = place.refusal().await;
    assert!(matches!(refused, OpenError::Newer { found: 99, .. }), "{refused:?}");
    let mut connection = connect(&place).await;
    let back = format!("PRAGMA user_version = {version}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(back)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    place.open().await.unwrap();
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
    until("bundles are filed", async || bundles.join("001").exists()).await;
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
    connection.close().await.unwrap();
    assert!(edited.is_err());
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

#[tokio::test]
async fn full_bundles_become_files_and_their_rows_go() {
    let (fixture, _) = grown().await;
    let before: Vec<Vec<u8>> = {
        let mut entries = Vec::new();
        for index in 0..fixture.leaves().await {
            entries.push(fixture.store.read().entry(index).await.unwrap());
        }
        entries
    };
    let place = fixture.place.clone();
    until("the rows of full bundles are gone", async || {
        let mut connection = crate::check::connect(&place).await;
        let row = sqlx::query("SELECT min(idx) FROM leaf").fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        sqlx::Row::get::<i64, _>(&row, 0) == 512
    })
    .await;
    for (index, entry) in (0..).zip(&before) {
        assert_eq!(&fixture.store.read().entry(index).await.unwrap(), entry, "entry {index}");
    }
    let fixture = fixture.crash().await.open().await.unwrap();
    for (index, entry) in (0..).zip(&before) {
        assert_eq!(&fixture.store.read().entry(index).await.unwrap(), entry, "entry {index} after a crash");
    }
    let place = fixture.stop().await;
    assert_log(&place, "filed").await;
    assert_eq!(entries(&place).await[..before.len()], before);
}

#[tokio::test]
async fn an_entry_that_is_gone_from_the_middle_is_named() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    for id in ["1", "2", "3", "4"] {
        fixture.send(id, None, "lab").await;
    }
    fixture.until_signed().await;
    let place = fixture.stop().await;
    tamper(&place, "DELETE FROM leaf WHERE idx = 3").await;
    let refused = gatepost_store::archive::Archive::open(place.path(), &place.database).await.err().unwrap();
    assert!(matches!(refused, gatepost_store::archive::ArchiveError::Missing(3)), "{refused}");
}

/// What somebody has copied before is of no use: neither the whole database beside the keys of today, nor a row of it put back.
#[tokio::test]
async fn a_copy_from_before_does_not_open() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let kept = delivered(&fixture, session, "kept", "s").await;
    let gone = delivered(&fixture, session, "gone", "s").await;
    let place = fixture.stop().await;
    let (database, copy) = (place.path().join("gatepost.db"), place.path().join("copy"));
    fs::copy(&database, &copy).unwrap();
    let fixture = place.open().await.unwrap();
    fixture.store.erase(operator(), EraseWhat::Message(gone)).await.unwrap();
    let place = fixture.stop().await;
    let put_back = |id: MessageId| {
        let (copy, id) = (copy.display(), id.to_string().replace('-', ""));
        format!(
            "ATTACH '{copy}' AS copy; UPDATE message SET (data, salt, attributes) = (SELECT data, salt, attributes \
             FROM copy.message WHERE id = x'{id}') WHERE id = x'{id}'"
        )
    };
    for id in [kept, gone] {
        tamper(&place, put_back(id).leak()).await;
    }
    let fixture = place.open().await.unwrap();
    assert_eq!(payload(&fixture, kept).await.as_deref(), Some("kept"), "what was not erased opens so");
    let read = fixture.store.read().message(gone, Data::Include).await;
    assert!(matches!(read, Err(StoreError::Erased)), "{:?}", read.err());
    let place = fixture.stop().await;
    fs::copy(&copy, &database).unwrap();
    let refused = place.refusal().await;
    assert!(refused.to_string().contains("there is no seal key 1"), "{refused}");
}

/// A file of before there were second keys and lanes: its rows end before those columns, and their sums cover nothing of it.
#[tokio::test]
async fn rows_from_before_columns_were_added_are_what_they_were_and_new_ones_stand_beside_them() {
    let fixture = Fixture::new(vec![queue("lab", keyed())]).await;
    for (id, key) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        fixture.send(id, Some(key), "lab").await;
    }
    let place = fixture.stop().await;
    tamper(
        &place,
        "DROP INDEX delivery_beside; ALTER TABLE delivery DROP COLUMN barrier; \
         DROP INDEX message_barrier; ALTER TABLE message DROP COLUMN barrier; PRAGMA user_version = 2",
    )
    .await;
    let fixture = place.open().await.unwrap();
    fixture.merge("a+b", ["a", "b"], "lab").await;
    let session = fixture.session("lab").await;
    let first = fixture.lease("lab", session, 5).await;
    assert_eq!(texts(&first), ["a1", "b1"]);
    fixture.taken("lab", session, &first[0], DELIVERED).await;
    // a2 and b1 stand there as they were written then, a1 and the merge as rows are written now.
    let place = fixture.stop().await;
    assert_sound(&place, "an older file").await;
    let damage = gatepost_store::salvage::inspect(place.path(), &Default::default()).unwrap().damage;
    assert!(damage.is_empty(), "{damage:?}");
    let fixture = place.open().await.unwrap();
    for (key, count) in [("a", 3), ("b", 2)] {
        let filter = MessageFilter { key: Some(key.into()), ..MessageFilter::default() };
        let found = fixture.store.read().message_list(&filter, None, 10).await.unwrap().items;
        assert_eq!(found.len(), count, "{key}");
    }
    let session = fixture.session("lab").await;
    let mut came = Vec::new();
    while came.len() < 3 {
        for one in fixture.lease_in_time("lab", session, 5).await {
            came.push(text(&one));
            fixture.taken("lab", session, &one, DELIVERED).await;
        }
    }
    assert_eq!(came[2], "a+b", "{came:?}");
}
