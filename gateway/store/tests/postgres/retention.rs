//! Retention drops whole days of content, and nothing that is still to be delivered.

use std::time::{Duration, Instant};

use gatepost_audit::{Event, Leaf};
use gatepost_core::{DeliveryId, Outcome};
use gatepost_store::{Data, OperateError, Verb};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::check::postgres::{connect, number};
use crate::check::{assert_log, assert_sound, entries};
use crate::fixture::{DELIVERED, Fixture, Place, item, message, queue, quick, text, until};
use crate::nodes::{beside, url};

/// Older than what is kept.
const DAYS_AGO: i64 = 40;
/// Partitions of content, without those that are made ahead.
const OLD_PARTITIONS: &str = "SELECT count(*) FROM pg_class WHERE relname ~ '^(payload|piece|detail|reply)_[0-9]+$' AND relkind = 'r' \
    AND substring(relname FROM '[0-9]+')::int < (extract(epoch FROM now()) / 86400)::int - 2";

async fn run(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

/// Makes everything that a stopped store has accepted so many days older.
pub(crate) async fn age(place: &Place, days: i64) {
    let mut connection = connect(url(place)).await;
    let day = number(url(place), "SELECT max(day)::bigint FROM message").await - days;
    for table in ["payload", "piece", "detail", "reply"] {
        let to = day + 1;
        run(
            &mut connection,
            format!("CREATE TABLE IF NOT EXISTS {table}_{day} PARTITION OF {table} FOR VALUES FROM ({day}) TO ({to})"),
        )
        .await;
        run(&mut connection, format!("UPDATE {table} SET day = {day}")).await;
    }
    let micros = days * 86_400_000_000;
    run(&mut connection, format!("UPDATE message SET day = {day}, accepted_at = accepted_at - {micros}"))
        .await;
}

/// Retention comes again after a minute when somebody was in its way, as a slow machine's readers are: so long may it take twice.
async fn until_after_rests(what: &str, condition: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(130), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn until_dropped(place: &Place) {
    until_after_rests("the old partitions are gone", async || number(url(place), OLD_PARTITIONS).await == 0)
        .await;
}

async fn is_purged(fixture: &Fixture, delivery: DeliveryId) -> bool {
    let message = fixture.row(delivery).await.message;
    let stored = fixture.store.read().message(message, Data::Include).await.unwrap().unwrap();
    assert_eq!(stored.purged, stored.data.is_none());
    stored.purged
}

/// How many messages the log says were purged, leaf by leaf.
async fn purges(place: &Place) -> Vec<u64> {
    let entries = entries(place).await;
    let leaves = entries.iter().map(|entry| Leaf::parse(entry).unwrap());
    leaves.filter(|leaf| leaf.event == Event::PayloadPurged).map(|leaf| leaf.count.unwrap()).collect()
}

async fn deliver(fixture: &Fixture, name: &str, session: u64) {
    let leased = fixture.lease_one(name, session).await;
    let mut done = item(&leased, DELIVERED);
    done.reply = Some(br#"{"data":"answer"}"#.to_vec());
    done.evidence = Some(br#""proof""#.to_vec());
    let answer = fixture.store.delivery_settle(fixture.settling(name, session, vec![done])).await.unwrap();
    assert!(answer.items[0].ok);
}

/// What partners answered to a delivery's message, and the pieces of evidence.
async fn beside_content(fixture: &Fixture, delivery: DeliveryId) -> (usize, usize) {
    let message = fixture.row(delivery).await.message;
    let detail = fixture.store.read().message_detail(message).await.unwrap().unwrap();
    let replies = detail.deliveries.iter().filter(|(_, reply)| reply.is_some()).count();
    (replies, detail.history.iter().filter(|step| step.evidence.is_some()).count())
}

/// Waits until a store has looked at time a few times: each message that expires is proof of one look.
async fn looks_around(fixture: &Fixture) {
    for look in 0..6 {
        let mut passing = message("passing", None, "x", &["lab"]);
        passing.idempotency_key = format!("{look} {}", fixture.place.path().display());
        passing.expires_at = Some(fixture.store.read().now());
        let passing = fixture.accept(vec![passing]).await.unwrap()[0].deliveries[0].id;
        fixture.until_state(passing, "expired").await;
    }
}

async fn end(place: &Place) {
    assert_sound(place, "at the end").await;
    assert_log(place, "at the end").await;
}

#[tokio::test]
async fn a_day_goes_with_its_partitions_and_what_is_unsettled_stays_until_it_is_settled() {
    // More than one step looks at.
    const EXPIRED: usize = 700;
    let fixture = Fixture::new(vec![queue("lab", quick()), queue("other", quick())]).await;
    let session = fixture.session("lab").await;
    let half = fixture.accept(vec![message("half", None, "half", &["lab", "other"])]).await.unwrap();
    let half = half[0].deliveries[1].id;
    deliver(&fixture, "lab", session).await;
    let settled = fixture.send("settled", None, "lab").await;
    deliver(&fixture, "lab", session).await;
    let now = fixture.store.read().now();
    let expiring = (0..EXPIRED).map(|number| {
        let mut passing = message(&number.to_string(), None, "x", &["lab"]);
        passing.expires_at = Some(now);
        passing
    });
    let last = fixture.accept(expiring.collect()).await.unwrap().last().unwrap().deliveries[0].id;
    fixture.until_state(last, "expired").await;
    until("all have expired", async || fixture.stats("lab").await.waiting == 0).await;
    let place = fixture.stop().await;
    age(&place, DAYS_AGO).await;
    let leaves = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'leaf'::regclass";
    let leaf_partitions = number(url(&place), leaves).await;

    let fixture = place.open().await.unwrap();
    until_dropped(&place).await;
    until_after_rests("their keys are gone", async || {
        number(url(&place), "SELECT count(*) FROM dedup").await == 0
    })
    .await;
    assert!(is_purged(&fixture, settled).await && is_purged(&fixture, last).await);
    assert_eq!(beside_content(&fixture, settled).await, (0, 0));
    assert!(!is_purged(&fixture, half).await, "one of its deliveries is still to come");
    assert_eq!(beside_content(&fixture, half).await, (1, 1), "what came of the other stays with it");
    assert_eq!(number(url(&place), "SELECT count(*) FROM payload").await, 1);
    assert_eq!(number(url(&place), leaves).await, leaf_partitions, "the audit log stays");
    assert_eq!(purges(&place).await, [EXPIRED as u64 + 1]);

    let session = fixture.session("other").await;
    let leased = fixture.lease_one("other", session).await;
    assert_eq!(text(&leased), "half");
    let mut done = item(&leased, DELIVERED);
    done.reply = Some(br#"{"data":"late"}"#.to_vec());
    done.evidence = Some(br#""late""#.to_vec());
    fixture.store.delivery_settle(fixture.settling("other", session, vec![done])).await.unwrap();
    assert_eq!(beside_content(&fixture, half).await, (2, 2), "what comes later is found with it");

    // A new start looks at once.
    let fixture = fixture.restart().await;
    until("the rest is gone", async || is_purged(&fixture, half).await).await;
    assert_eq!(beside_content(&fixture, half).await, (0, 0));
    let place = fixture.stop().await;
    let left = "SELECT (SELECT count(*) FROM payload) + (SELECT count(*) FROM reply) + (SELECT count(*) FROM detail) \
        + (SELECT count(*) FROM day_purge)";
    assert_eq!(number(url(&place), left).await, 0);
    assert_eq!(purges(&place).await, [EXPIRED as u64 + 1, 1]);
    end(&place).await;
}

/// One delivered and one dead, so many days ago, in a stopped store.
async fn delivered_and_dead(days_ago: i64) -> (Place, [DeliveryId; 2]) {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let delivered = fixture.send("delivered", None, "lab").await;
    deliver(&fixture, "lab", session).await;
    let dead = fixture.send("dead", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let mut refused = item(&leased, Outcome::Reject);
    refused.reply = Some(br#"{"data":"answer"}"#.to_vec());
    fixture.store.delivery_settle(fixture.settling("lab", session, vec![refused])).await.unwrap();
    let place = fixture.stop().await;
    age(&place, days_ago).await;
    (place, [delivered, dead])
}

#[tokio::test]
async fn a_dead_letter_that_is_replayed_after_its_day_was_walked_keeps_its_content() {
    let (place, [delivered, dead]) = delivered_and_dead(DAYS_AGO).await;
    // A reader that does not end keeps the partitions from being dropped, and nobody from working.
    let mut reader = connect(url(&place)).await;
    run(&mut reader, "BEGIN; SELECT count(*) FROM payload".to_owned()).await;
    let fixture = place.open().await.unwrap();
    let counted = "SELECT coalesce(sum(settled), 0)::bigint FROM day_purge";
    until("the day has been walked", async || number(url(&place), counted).await == 2).await;
    assert_eq!(beside_content(&fixture, dead).await.0, 1);
    fixture.operate(dead, Verb::Replay).await.unwrap();
    assert_eq!(beside_content(&fixture, dead).await.0, 0, "the answer was to the attempt before");
    assert_eq!(number(url(&place), counted).await, 1, "it does not go with the day");
    assert!(!is_purged(&fixture, delivered).await, "the reader still reads");
    run(&mut reader, "COMMIT".to_owned()).await;
    reader.close().await.unwrap();
    let fixture = fixture.restart().await;
    until_dropped(&place).await;
    assert!(is_purged(&fixture, delivered).await);
    let session = fixture.session("lab").await;
    assert_eq!(text(&fixture.lease_one("lab", session).await), "dead");
    let place = fixture.stop().await;
    assert_eq!(purges(&place).await, [1]);
    end(&place).await;
}

#[tokio::test]
async fn a_replay_that_finds_the_content_just_gone_is_refused() {
    let (place, [delivered, dead]) = delivered_and_dead(DAYS_AGO).await;
    let mut other = connect(url(&place)).await;
    // As a step of another node that is under way: nobody here walks meanwhile.
    run(&mut other, "BEGIN; SELECT name FROM role WHERE name = 'retention' FOR UPDATE".to_owned()).await;
    let fixture = place.open().await.unwrap();
    looks_around(&fixture).await;
    assert!(!is_purged(&fixture, delivered).await);
    let replay = async { fixture.operate(dead, Verb::Replay).await };
    let step = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
            AND query LIKE '%retention_hold%'";
        until("the replay waits for the step", async || number(url(&place), waits).await == 1).await;
        run(&mut other, "DELETE FROM payload; COMMIT".to_owned()).await;
    };
    let (refused, ()) = tokio::join!(replay, step);
    assert!(matches!(refused, Err(OperateError::Illegal(_))), "{refused:?}");
    assert_eq!(fixture.state(dead).await, "dead");
    end(&fixture.stop().await).await;
}

#[tokio::test]
async fn two_nodes_at_once_purge_once() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let now = fixture.store.read().now();
    let expiring = (0..1200).map(|number| {
        let mut passing = message(&number.to_string(), None, "x", &["lab"]);
        passing.expires_at = Some(now);
        passing
    });
    fixture.accept(expiring.collect()).await.unwrap();
    until("all have expired", async || fixture.stats("lab").await.waiting == 0).await;
    let place = fixture.stop().await;
    age(&place, DAYS_AGO).await;
    let second = beside(&place, "node-2");
    let (one, other) = tokio::join!(place.open(), second.open());
    let (one, other) = (one.unwrap(), other.unwrap());
    until_dropped(&place).await;
    looks_around(&one).await;
    looks_around(&other).await;
    let (one, other) = (one.stop().await, other.stop().await);
    assert_eq!(purges(&one).await, [1200]);
    assert_sound(&one, "both stopped").await;
    assert_log(&other, "the last").await;
}

/// A retention of less than whole days goes row by row, from what has content.
#[tokio::test]
async fn a_short_retention_empties_what_is_older_and_leaves_what_is_younger() {
    let (place, [delivered, dead]) = delivered_and_dead(1).await;
    let fixture = place.open().await.unwrap();
    let session = fixture.session("lab").await;
    let young = fixture.send("young", None, "lab").await;
    deliver(&fixture, "lab", session).await;
    let place = Place { payload_retention: Duration::from_secs(3600), ..fixture.stop().await };
    let fixture = place.open().await.unwrap();
    until("the older ones are empty", async || is_purged(&fixture, delivered).await).await;
    looks_around(&fixture).await;
    assert!(is_purged(&fixture, dead).await && !is_purged(&fixture, young).await);
    let place = fixture.stop().await;
    assert_eq!(purges(&place).await, [2]);
    end(&place).await;
}
