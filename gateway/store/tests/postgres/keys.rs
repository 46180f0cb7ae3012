//! Trees of data keys are written by who has the right to write, and as they stand at that moment.

use gatepost_store::{Data, EraseWhat, StoreError};
use sqlx::PgConnection;

use crate::check::postgres::{connect, number};
use crate::fixture::{Fixture, inbox, message, queue, quick, until};
use crate::nodes::{beside, url};
use crate::seal::{delivered, operator};

const TREES: &str = "SELECT count(*) FROM keyring";
/// What a node writes, or begins to, waits for a lock.
const WRITER_WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND wait_event_type = 'Lock' AND (query LIKE 'BEGIN;%' OR query LIKE '/* turn */%')";
const KEYRING_WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND wait_event_type = 'Lock' AND query LIKE '/* keyring%'";

async fn run(connection: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

/// One that was stopped between its look at the trees and what it writes: meanwhile another has taken its place, and has erased something.
#[tokio::test]
async fn who_wraps_trees_anew_wraps_them_as_they_are_by_then() {
    let one = Fixture::new(vec![queue("lab", quick())]).await;
    let session = one.session("lab").await;
    let gone = delivered(&one, session, "gone", "gone").await;
    let kept = delivered(&one, session, "kept", "kept").await;
    let mut somebody = connect(url(&one.place)).await;
    run(
        &mut somebody,
        "CREATE TABLE before AS SELECT * FROM keyring; CREATE TABLE copied AS SELECT * FROM payload",
    )
    .await;
    let other = beside(&one.place, "other").open().await.unwrap();
    other.store.erase(operator(), EraseWhat::Message(gone)).await.unwrap();
    other.stop().await;
    // As it was before, until the one has looked.
    let before = "CREATE TABLE after AS SELECT * FROM keyring; \
        UPDATE keyring k SET body = b.body FROM before b WHERE b.tree = k.tree";
    run(&mut somebody, before).await;
    run(&mut somebody, "BEGIN; UPDATE keyring k SET body = a.body FROM after a WHERE a.tree = k.tree").await;
    let store = one.store.clone();
    let rotating = tokio::spawn(async move { store.seal_key_rotate(operator()).await });
    until("it is about to write them", async || number(url(&one.place), KEYRING_WAITS).await == 1).await;
    run(&mut somebody, "COMMIT").await;
    assert_eq!(rotating.await.unwrap().unwrap().version, 2);
    run(
        &mut somebody,
        "INSERT INTO payload SELECT * FROM copied ON CONFLICT DO NOTHING; DROP TABLE before, after, copied",
    )
    .await;
    let one = one.restart().await;
    let read = one.store.read().message(gone, Data::Include).await;
    assert!(matches!(read, Err(StoreError::Erased)), "{:?}", read.err());
    let read = one.store.read().message(kept, Data::Include).await;
    assert!(read.unwrap().unwrap().data.is_some());
    one.stop().await;
}

/// The seal key that it is wrapped with may be destroyed by then: nobody who has not got that could start any more.
#[tokio::test]
async fn a_node_whose_place_is_taken_adds_no_tree() {
    let fixture = Fixture::new(vec![queue("lab", quick()), inbox("in", quick())]).await;
    let session = fixture.session("lab").await;
    let gone = delivered(&fixture, session, "gone", "gone").await;
    let place = fixture.place.clone();
    let before = number(url(&place), TREES).await;
    // From now on new messages have their keys from another tree, which the next one that is written saves.
    fixture.store.erase(operator(), EraseWhat::Message(gone)).await.unwrap();
    let mut other = connect(url(&place)).await;
    run(&mut other, "BEGIN; SELECT 1 FROM node FOR UPDATE").await;
    let store = fixture.store.clone();
    let accept = crate::fixture::accept_of(&crate::fixture::app(), vec![message("late", None, "x", &["in"])]);
    let accepting = tokio::spawn(async move { store.message_accept(accept).await });
    until("it is about to write", async || number(url(&place), WRITER_WAITS).await == 1).await;
    assert_eq!(number(url(&place), TREES).await, before);
    run(&mut other, "COMMIT").await;
    accepting.await.unwrap().unwrap();
    assert_eq!(number(url(&place), TREES).await, before + 1);
    fixture.stop().await;
}
