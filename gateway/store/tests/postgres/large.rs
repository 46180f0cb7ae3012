//! Large messages in pieces, as only PostgreSQL has them: of several nodes, of days, on a connection of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gatepost_core::MessageId;
use gatepost_postgres::Cluster;
use gatepost_store::{AcceptError, Accepted, Data, Database, Engines, StoreError};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::task::JoinHandle;

use crate::check::assert_sound;
use crate::check::postgres::{connect, number};
use crate::fixture::{DELIVERED, Fixture, Place, accept_of, app, inbox, queue, quick, until};
use crate::nodes::{beside, url};
use crate::pieces::{large, text};
use crate::retention::{age, until_dropped};

const MIB: usize = 1024 * 1024;
/// So much that something can be done while it is written.
const LONG: usize = 60 * MIB;
const PIECES: &str = "SELECT (SELECT count(*) FROM piece) + (SELECT count(*) FROM piece_ahead)";
const AHEAD: &str = "SELECT coalesce(sum(pieces), 0) FROM piece_ahead";
/// How often a node looks for what others have left.
const LOOKS: Duration = Duration::from_secs(5);
/// A node's right to write, and until the others have looked for what it has left.
const TAKEOVER: Duration = Duration::from_secs(30);

async fn lab() -> Fixture {
    Fixture::new(vec![queue("lab", quick()), inbox("in", quick())]).await
}

fn hand_in(fixture: &Fixture, id: &str, bytes: usize) -> JoinHandle<Result<Vec<Accepted>, AcceptError>> {
    let (store, accept) = (fixture.store.clone(), accept_of(&app(), vec![large(id, bytes)]));
    tokio::spawn(async move { store.message_accept(accept).await })
}

async fn run(place: &Place, statement: &str) -> u64 {
    let mut connection = connect(url(place)).await;
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    done.rows_affected()
}

async fn content(fixture: &Fixture, id: MessageId) -> Option<String> {
    let stored = fixture.store.read().message(id, Data::Include).await.unwrap().unwrap();
    stored.data.map(|data| String::from_utf8(data.to_vec()).unwrap())
}

async fn is_being_written(place: &Place) {
    until("some of it is written", async || number(url(place), AHEAD).await > 0).await;
}

async fn until_is(place: &Place, statement: &'static str, expected: i64) {
    let started = std::time::Instant::now();
    while number(url(place), statement).await != expected {
        assert!(started.elapsed() < TAKEOVER, "{statement}: {}", number(url(place), statement).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_a_dead_node_has_begun_goes_and_what_a_living_one_writes_stays() {
    let one = lab().await;
    let other = beside(&one.place, "node-2").open().await.unwrap();
    let place = other.place.clone();
    let half = hand_in(&one, "half", LONG);
    is_being_written(&place).await;
    one.crash().await;
    assert!(half.await.unwrap().is_err());
    let left = number(url(&place), AHEAD).await;
    assert!(left > 0, "it has left something");
    // One after the other, so that something is being written whenever the dead one's is removed.
    let mut accepted = Vec::new();
    let started = std::time::Instant::now();
    for n in 0.. {
        let id = n.to_string();
        accepted.push(hand_in(&other, &id, 12 * MIB).await.unwrap().unwrap()[0].id);
        if number(url(&place), "SELECT count(*) FROM piece_ahead").await == 0 {
            break;
        }
        assert!(started.elapsed() < TAKEOVER, "what the dead one has begun is there still");
    }
    for (n, id) in accepted.iter().enumerate() {
        assert!(content(&other, *id).await == Some(text(&n.to_string(), 12 * MIB)), "{n}");
    }
    let orphans =
        "SELECT count(*) FROM piece p WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.id = p.message)";
    assert_eq!(number(url(&place), orphans).await, 0);
    assert_sound(&other.stop().await, "one died").await;
}

#[tokio::test]
async fn what_a_node_is_writing_is_its_own_until_it_is_gone() {
    let fixture = lab().await;
    let place = fixture.place.clone();
    // Another node as it looks to this one, in the middle of a message.
    let other = "INSERT INTO node (epoch, name, version, since, until) VALUES (7, 'other', '0', 0, 9000000000000000); \
        INSERT INTO piece_ahead (message, epoch, day, pieces) VALUES ('\\x01', 7, 20000, 1); \
        INSERT INTO piece (day, message, number, bytes) VALUES (20000, '\\x01', 1, 'x')";
    run(&place, &other.replace("\\x01", &format!("\\x{:032x}", 1))).await;
    tokio::time::sleep(2 * LOOKS + Duration::from_secs(1)).await;
    assert_eq!(number(url(&place), PIECES).await, 2);
    run(&place, "UPDATE node SET until = 0 WHERE epoch = 7").await;
    until_is(&place, PIECES, 0).await;
    assert_sound(&fixture.stop().await, "the other is gone").await;
}

/// As after a failover to a standby that had not got the last of them.
#[tokio::test]
async fn an_accept_whose_pieces_are_not_all_there_fails_and_nothing_is_left() {
    let fixture = lab().await;
    let place = fixture.place.clone();
    let lost = [
        "UPDATE piece_ahead SET pieces = pieces - 1",
        "DELETE FROM piece_ahead",
        "UPDATE piece_ahead SET epoch = epoch + 1",
        "UPDATE piece_ahead SET day = day - 1",
    ];
    for lost in lost {
        let half = hand_in(&fixture, lost, LONG);
        is_being_written(&place).await;
        run(&place, lost).await;
        let refused = half.await.unwrap();
        assert!(matches!(refused, Err(AcceptError::Store(_))), "{lost}: {refused:?}");
        assert_eq!(fixture.stats("lab").await.waiting, 0, "{lost}");
        if lost.starts_with("DELETE") || lost.contains("day -") {
            // Nothing says any more whose they are, or where: nobody but this test does so.
            run(&place, "DELETE FROM piece; DELETE FROM piece_ahead").await;
        }
        until_is(&place, PIECES, 0).await;
    }
    let accepted = fixture.accept(vec![large("whole", 3 * MIB)]).await.unwrap();
    assert!(content(&fixture, accepted[0].id).await == Some(text("whole", 3 * MIB)));
    assert_sound(&fixture.stop().await, "lost").await;
}

#[tokio::test]
async fn where_their_connection_is_lost_one_message_is_refused_and_the_next_is_not() {
    let fixture = lab().await;
    let place = fixture.place.clone();
    let half = hand_in(&fixture, "half", LONG);
    is_being_written(&place).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE datname = current_database() AND query LIKE '/* pieces_write */%' AND pid <> pg_backend_pid()";
    assert_eq!(run(&place, cut).await, 1, "they have one connection");
    let refused = half.await.unwrap();
    assert!(matches!(refused, Err(AcceptError::Store(StoreError::ReadOnly(_)))), "{refused:?}");
    fixture.send("small", None, "lab").await;
    let accepted = hand_in(&fixture, "half", 3 * MIB).await.unwrap().unwrap();
    assert!(!accepted[0].duplicate && content(&fixture, accepted[0].id).await == Some(text("half", 3 * MIB)));
    until("nothing is left of the first", async || {
        number(url(&place), "SELECT count(*) FROM piece_ahead").await == 0
    })
    .await;
    assert_sound(&fixture.stop().await, "cut").await;
}

/// More than have a place: what their senders hold of them they hold until then, and who goes away leaves its place to nobody.
#[tokio::test]
async fn further_ones_wait_with_their_senders_even_where_others_have_gone_away() {
    const PLACES: usize = 64;
    const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
        AND wait_event_type = 'Lock' AND query LIKE '/* pieces_write */%'";
    struct Room(Arc<AtomicUsize>);
    impl Drop for Room {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let fixture = lab().await;
    let mut other = connect(url(&fixture.place)).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE piece_ahead IN EXCLUSIVE MODE").execute(&mut other).await.unwrap();
    let given_back: Arc<AtomicUsize> = Arc::default();
    let hand_in = |n: usize| {
        let accept = accept_of(&app(), vec![large(&n.to_string(), 300 * 1024)]);
        let (store, room) = (fixture.store.clone(), Room(Arc::clone(&given_back)));
        tokio::spawn(async move { store.message_accept_from(accept, room).await })
    };
    let mut first: Vec<_> = (0..PLACES).map(hand_in).collect();
    let count = || given_back.load(Ordering::SeqCst);
    until("the first have places", async || count() == PLACES).await;
    let last = hand_in(PLACES);
    let waits = async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(count(), PLACES);
    };
    waits().await;
    until("the first one is being written", async || number(url(&fixture.place), WAITS).await == 1).await;
    first.remove(0).abort();
    waits().await;
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    last.await.unwrap().unwrap();
    assert_eq!(count(), PLACES + 1);
    for accepted in first {
        accepted.await.unwrap().unwrap();
    }
    assert_sound(&fixture.stop().await, "more than have a place").await;
}

/// An address that leads to another server by now: one of the two connections would write to a server that is not the other's.
#[tokio::test]
async fn who_connects_anew_writes_pieces_on_a_new_connection_too() {
    const WRITES_PIECES: &str = "SELECT coalesce(sum(pid), 0)::bigint FROM pg_stat_activity \
        WHERE datname = current_database() AND query LIKE '/* pieces_write */%' AND pid <> pg_backend_pid()";
    let fixture = lab().await;
    let place = fixture.place.clone();
    fixture.accept(vec![large("before", MIB)]).await.unwrap();
    let before = number(url(&place), WRITES_PIECES).await;
    assert!(before > 0);
    let cut = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name = 'gatepost' AND pid NOT IN ({before}, pg_backend_pid())"
    );
    run(&place, &cut).await;
    let after = || vec![large("after", MIB)];
    until("it is there again", async || fixture.accept(after()).await.is_ok()).await;
    let now = number(url(&place), WRITES_PIECES).await;
    assert!(now > 0 && now != before, "{now}");
    assert_sound(&fixture.stop().await, "connected anew").await;
}

/// An accept whose connection was lost may come to be carried out after all: not any more once its first piece is gone.
#[tokio::test]
async fn what_is_being_removed_can_not_be_accepted_any_more() {
    const MANY: i64 = 400;
    const LEFT: &str = "SELECT count(*) FROM piece";
    let fixture = lab().await;
    let place = fixture.place.clone();
    // Of this node, which knows nothing of it.
    let made = format!(
        "INSERT INTO piece (day, message, number, bytes) SELECT 20000, '\\x{:032x}', n, 'x' FROM generate_series(1, {MANY}) n; \
         INSERT INTO piece_ahead (message, epoch, day, pieces) SELECT '\\x{:032x}', epoch, 20000, {MANY} FROM node",
        1, 1
    );
    run(&place, &made).await;
    until("some are gone", async || number(url(&place), LEFT).await < MANY).await;
    let claim = format!(
        "DELETE FROM piece_ahead a USING node n WHERE a.epoch = n.epoch AND a.day = 20000 AND a.pieces = {MANY}"
    );
    assert_eq!(run(&place, &claim).await, 0);
    assert!(number(url(&place), LEFT).await > 0, "it looked too late");
    // Nor can it grow into a whole one again.
    assert_eq!(number(url(&place), "SELECT count(*) FROM piece_ahead WHERE pieces > 0").await, 0);
    until_is(&place, PIECES, 0).await;
    assert_sound(&fixture.stop().await, "removed").await;
}

/// The day of its accept is not the day on which it was begun.
#[tokio::test]
async fn pieces_go_with_the_day_of_their_message_and_nobody_waits_for_that() {
    const MOVES: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
        AND query LIKE '/* pieces_date */%'";
    let fixture = lab().await;
    let place = fixture.place.clone();
    let accepted = hand_in(&fixture, "late", LONG);
    is_being_written(&place).await;
    let mut other = connect(url(&place)).await;
    sqlx::raw_sql("BEGIN; SELECT 1 FROM piece WHERE number = 1 FOR UPDATE")
        .execute(&mut other)
        .await
        .unwrap();
    // Store time is never behind what was noted of it; the node's right goes along.
    let day = 86_400_000_000_i64;
    let later = format!(
        "BEGIN; UPDATE node SET until = until + {day}; \
         UPDATE store SET clock = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + {day}; COMMIT"
    );
    run(&place, &later).await;
    until("they are moved", async || number(url(&place), MOVES).await == 1).await;
    fixture.send("small", None, "lab").await;
    assert_eq!(number(url(&place), MOVES).await, 1, "not any more");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    let id = accepted.await.unwrap().unwrap()[0].id;
    let days = "SELECT count(DISTINCT p.day) * 10 + count(DISTINCT m.day) FILTER (WHERE m.day = p.day) \
        FROM piece p JOIN message m ON m.id = p.message";
    assert_eq!(number(url(&place), days).await, 11, "all of one day, which is the message's");
    assert!(content(&fixture, id).await == Some(text("late", LONG)));
    assert_sound(&fixture.stop().await, "midnight").await;
}

#[tokio::test]
async fn a_day_goes_with_its_pieces_and_what_is_unsettled_keeps_them() {
    let fixture = lab().await;
    let session = fixture.session("lab").await;
    let mut ids = Vec::new();
    for id in ["settled", "kept 1", "kept 2"] {
        ids.push(fixture.accept(vec![large(id, 3 * MIB)]).await.unwrap()[0].id);
    }
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
    let before = number(url(&fixture.place), PIECES).await;
    let place = fixture.stop().await;
    age(&place, 40).await;
    let fixture = place.open().await.unwrap();
    until_dropped(&place).await;
    assert_eq!(content(&fixture, ids[0]).await, None);
    assert_eq!(number(url(&place), PIECES).await * 3, before * 2);
    for (id, name) in ids[1..].iter().zip(["kept 1", "kept 2"]) {
        assert!(content(&fixture, *id).await == Some(text(name, 3 * MIB)), "{name}");
    }
    let session = fixture.session("lab").await;
    for id in &ids[1..] {
        let leased = fixture.lease_one("lab", session).await;
        assert_eq!(leased.message.id, *id);
        fixture.taken("lab", session, &leased, DELIVERED).await;
    }
    // A new start looks at once.
    let fixture = fixture.restart().await;
    until("the rest is gone", async || number(url(&place), PIECES).await == 0).await;
    assert_sound(&fixture.stop().await, "purged").await;
}

#[tokio::test]
async fn a_missing_piece_is_a_damaged_payload_and_keeps_nobody_elses_back() {
    for harm in ["DELETE FROM piece WHERE number = 2", "UPDATE piece SET bytes = ''::bytea WHERE number = 3"]
    {
        let fixture = lab().await;
        // Small enough to come with its lease.
        let id = fixture.accept(vec![large("harmed", MIB / 2)]).await.unwrap()[0].id;
        run(&fixture.place, harm).await;
        let sound = fixture.accept(vec![large("sound", MIB / 2)]).await.unwrap()[0].id;
        let read = fixture.store.read().message(id, Data::Include).await;
        assert!(
            matches!(&read, Err(StoreError::Corrupt { table: "payload", column: "data", .. })),
            "{harm}: {read:?}"
        );
        let session = fixture.session("lab").await;
        let leased = fixture.lease("lab", session, 10).await;
        assert_eq!(leased.iter().map(|leased| leased.message.id).collect::<Vec<_>>(), [sound], "{harm}");
        assert_eq!(fixture.stats("lab").await.dead, 1, "{harm}");
    }
}

/// What has not been synced of the pieces is lost with it; nobody was told of it.
#[tokio::test]
async fn a_database_that_dies_among_large_messages_leaves_whole_ones_and_nothing_else() {
    let mut cluster = Cluster::start(&[]).expect("a PostgreSQL server for the tests");
    let database = Database::Postgres {
        url: cluster.url("postgres"),
        node: "node-1".to_owned(),
        engines: Engines::Postgres,
    };
    let place = Place { database, ..Place::new(vec![queue("lab", quick())]) };
    let fixture = place.open().await.unwrap();
    let mut kept = Vec::new();
    for round in 0..3 {
        let id = format!("kept {round}");
        kept.push((fixture.accept(vec![large(&id, 3 * MIB)]).await.unwrap()[0].id, id));
        let half = hand_in(&fixture, &format!("half {round}"), LONG);
        is_being_written(&place).await;
        cluster.kill().unwrap();
        let refused = half.await.unwrap();
        assert!(matches!(refused, Err(AcceptError::Store(StoreError::ReadOnly(_)))), "{refused:?}");
        cluster.start_again().unwrap();
        let small = crate::fixture::message(&format!("small {round}"), None, "x", &["lab"]);
        until("it accepts again", async || fixture.accept(vec![small.clone()]).await.is_ok()).await;
    }
    let ahead = "SELECT count(*) FROM piece_ahead";
    until_is(&place, ahead, 0).await;
    for (id, name) in &kept {
        assert!(content(&fixture, *id).await.as_ref() == Some(&text(name, 3 * MIB)), "{name}");
    }
    assert_eq!(fixture.stats("lab").await.waiting, 6, "three large ones and three small ones");
    assert_sound(&fixture.stop().await, "a database that died").await;
}
