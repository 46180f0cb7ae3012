//! What is not moved, and why; the original stays as it is.

use std::fs;

use gatepost_store::migrate::{Begun, MigrateError, Migrated};
use gatepost_store::{Database, LogFault, OpenError};
use sqlx::Connection as _;

use super::{beside, moved, one_batch, places, refusal};
use crate::check::postgres::connect as connect_postgres;
use crate::check::{assert_sound, connect};
use crate::fixture::{Fixture, Place, inbox, message, quick, until};

/// A stopped gateway on SQLite with so many messages, and where it is to be moved.
async fn stopped(messages: usize) -> (Place, Place) {
    let (from, to) = places(vec![inbox("in", quick())]);
    let fixture = from.open().await.unwrap();
    let batch = (0..messages).map(|n| message(&n.to_string(), None, "x", &["in"])).collect();
    fixture.accept(batch).await.unwrap();
    fixture.until_signed().await;
    (fixture.stop().await, to)
}

async fn on_sqlite(place: &Place, script: &'static str) {
    let mut connection = connect(place).await;
    sqlx::raw_sql(script).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn on_postgres(place: &Place, script: &'static str) {
    let Database::Postgres { url, .. } = &place.database else { unreachable!("it is PostgreSQL's") };
    let mut connection = connect_postgres(url).await;
    sqlx::raw_sql(script).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_gateway_that_runs_and_a_directory_without_one() {
    let (from, to) = places(vec![inbox("in", quick())]);
    assert!(matches!(refusal(&to).await, MigrateError::NoData(_)));
    let fixture = from.open().await.unwrap();
    assert!(matches!(refusal(&to).await, MigrateError::Running(_)));
    fixture.send("1", None, "in").await;
    fixture.stop().await;
    moved(&to).await.unwrap();
}

#[tokio::test]
async fn a_database_that_another_gateway_or_another_node_has_written_to() {
    let (_, to) = stopped(1).await;
    let foreign = Place::new(vec![inbox("in", quick())]).open().await.unwrap().stop().await;
    let wrong = Place { database: foreign.database.clone(), ..to.clone() };
    assert!(matches!(refusal(&wrong).await, MigrateError::Foreign));
    // The same keys, but a gateway that began without what is to be moved.
    let fresh = beside(&Place { database: crate::database(), ..to.clone() });
    fresh.open().await.unwrap().stop().await;
    let used = Place { database: fresh.database.clone(), ..to.clone() };
    assert!(matches!(refusal(&used).await, MigrateError::InUse));
    moved(&to).await.unwrap();
}

#[tokio::test]
async fn a_copy_of_a_state_that_the_gateway_has_left_is_begun_again_unless_it_is_finished() {
    let (from, to) = stopped(40).await;
    for _ in 0..4 {
        assert!(matches!(one_batch(&to, 10).await, Err(MigrateError::Interrupted)));
    }
    let fixture = from.open().await.unwrap();
    fixture.send("later", None, "in").await;
    let from = fixture.stop().await;
    let of = moved(&to).await.unwrap();
    assert_eq!((of.begun, of.counts.messages), (Begun::Again, 41));
    assert_sound(&to, "begun again").await;
    // Somebody gives the old database its name back and lets it run.
    fs::rename(&of.kept, from.path().join("gatepost.db")).unwrap();
    let unchanged = moved(&to).await.unwrap();
    assert_eq!(unchanged.begun, Begun::GoesOn, "nothing has happened to it");
    fs::rename(&of.kept, from.path().join("gatepost.db")).unwrap();
    from.open().await.unwrap().stop().await;
    assert!(matches!(refusal(&to).await, MigrateError::OfAnotherTime));
}

#[tokio::test]
async fn damaged_rows_are_not_copied() {
    for script in [
        "UPDATE message SET kind = 'u' WHERE seq = 7",
        "UPDATE message SET data = CAST(substr(data, 1, 9) || 'y' AS BLOB) WHERE seq = 7",
        "UPDATE message SET attributes = CAST(attributes || x'20' AS BLOB) WHERE seq = 7",
        "UPDATE delivery SET attempts = 3 WHERE pos = 7",
    ] {
        let (from, to) = stopped(20).await;
        on_sqlite(&from, script).await;
        let error = refusal(&to).await;
        assert!(matches!(error, MigrateError::Damaged(_)), "{script}: {error}");
        assert!(error.to_string().contains("doctor --repair"), "{error}");
        assert!(matches!(beside(&to).refusal().await, OpenError::CopyUnfinished), "{script}");
        assert!(from.path().join("gatepost.db").exists(), "{script}");
    }
}

#[tokio::test]
async fn deliveries_that_stand_apart_have_no_place_there() {
    let (from, to) = stopped(3).await;
    // The third is the first message's too, and the second message's stands between them.
    on_sqlite(&from, "UPDATE delivery SET message = 1 WHERE pos = 3").await;
    assert!(matches!(refusal(&to).await, MigrateError::Scattered(_)));
}

#[tokio::test]
async fn a_log_that_is_not_the_one_that_was_signed() {
    let (from, to) = stopped(20).await;
    on_sqlite(
        &from,
        "DROP TRIGGER leaf_is_immutable; UPDATE leaf SET bytes = CAST(replace(bytes, 'accepted', 'acceptED') AS BLOB)",
    )
    .await;
    let error = refusal(&to).await;
    assert!(matches!(error, MigrateError::Log(LogFault::EntryDamaged(_))), "{error}");

    let (from, to) = stopped(400).await;
    let bundle = from.path().join("audit/tile/entries/000");
    let fixture = from.open().await.unwrap();
    until("a bundle is filed", async || bundle.exists()).await;
    let from = stop_filed(fixture).await;
    let text = fs::read(&bundle).unwrap();
    let flipped = text.iter().enumerate().map(|(at, byte)| if at == 5000 { byte ^ 1 } else { *byte });
    fs::write(&bundle, flipped.collect::<Vec<u8>>()).unwrap();
    let error = refusal(&to).await;
    assert!(matches!(error, MigrateError::Log(LogFault::EntryDamaged(_))), "{error}");
    assert!(from.path().join("gatepost.db").exists());
}

/// Stops once the rows of filed entries are gone.
async fn stop_filed(fixture: Fixture) -> Place {
    let place = fixture.place.clone();
    until("the rows are gone", async || {
        crate::check::number(&place, ["SELECT min(idx) FROM leaf", ""]).await >= 256
    })
    .await;
    fixture.stop().await
}

#[tokio::test]
async fn a_copy_that_has_not_what_it_should_have_is_not_finished() {
    for script in [
        "DELETE FROM payload WHERE seq = 7",
        "DELETE FROM dedup WHERE message = 7",
        "DELETE FROM ready WHERE pos = 7",
        "DELETE FROM leaf_place",
        "UPDATE leaf SET bytes = overlay(bytes PLACING '\\x58' FROM 40)",
    ] {
        let (from, to) = stopped(20).await;
        // Until the entries are copied, which are the last.
        loop {
            let copied = number(&to, "SELECT count(*) FROM pg_tables WHERE tablename = 'copy'").await == 1
                && number(&to, "SELECT count(*) FROM leaf").await > 0;
            if copied {
                break;
            }
            assert!(matches!(one_batch(&to, 10).await, Err(MigrateError::Interrupted)), "{script}");
        }
        on_postgres(&to, script).await;
        let error = refusal(&to).await;
        assert!(matches!(error, MigrateError::Unequal(_)), "{script}: {error}");
        assert!(matches!(beside(&to).refusal().await, OpenError::CopyUnfinished), "{script}");
        assert!(from.path().join("gatepost.db").exists(), "{script}");
        assert!(!matches!(one_batch(&to, 10).await, Ok(Migrated::Before)), "{script}");
    }
}

async fn number(place: &Place, statement: &'static str) -> i64 {
    crate::check::number(place, ["", statement]).await
}
