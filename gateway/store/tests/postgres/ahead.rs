//! The next turn is decided while the last is on its way. Nobody hears of anything before all that it was decided on has come about.

use std::sync::Arc;
use std::time::Duration;

use gatepost_core::MessageId;
use sqlx::PgConnection;
use tokio::task::JoinHandle;

use crate::check::postgres::{connect, number};
use crate::check::{assert_log, assert_sound};
use crate::fixture::{DELIVERED, Fixture, Place, inbox, message, quick, texts, until};
use crate::nodes::url;

/// Turns for which a node looks before it writes, once it has met with what others have written; while it does, it decides nothing
/// ahead.
const WARY_TURNS: usize = 64;
/// Long enough for what was asked for to be decided, and shorter than any pause in which the writer looks at something else.
const MEANWHILE: Duration = Duration::from_millis(30);
/// The turn that waits while somebody else holds the node's row.
const UNDER_WAY: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
    AND query LIKE '/* turn */%' AND wait_event_type = 'Lock'";
/// Ends its connection.
const LOSE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
    AND state = 'active' AND query LIKE '/* turn */%' AND wait_event_type = 'Lock'";

async fn fixture() -> Arc<Fixture> {
    let fixture = Fixture::new(vec![inbox("in", quick())]).await;
    // Until it has seen that it is alone.
    tokio::time::sleep(Duration::from_millis(600)).await;
    Arc::new(fixture)
}

async fn run(other: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(other).await.unwrap();
}

/// Keeps whatever the node writes from coming about.
async fn hold_up(fixture: &Fixture) -> PgConnection {
    let mut other = connect(url(&fixture.place)).await;
    run(&mut other, "BEGIN; SELECT 1 FROM node FOR UPDATE").await;
    other
}

fn accept(fixture: &Arc<Fixture>, id: String) -> JoinHandle<MessageId> {
    let fixture = Arc::clone(fixture);
    tokio::spawn(async move {
        let accepted = fixture.accept(vec![message(&id, None, "x", &["in"])]).await.unwrap();
        assert!(!accepted[0].duplicate);
        accepted[0].id
    })
}

async fn seq_of(fixture: &Fixture, id: MessageId) -> i64 {
    let statement =
        sqlx::query_scalar("SELECT seq FROM message WHERE id = $1").bind(id.as_bytes().as_slice());
    statement.fetch_one(&mut connect(url(&fixture.place)).await).await.unwrap()
}

async fn until_under_way(place: &Place) {
    until("a turn is under way", async || number(url(place), UNDER_WAY).await == 1).await;
}

async fn end(fixture: Arc<Fixture>, what: &str) {
    let place = Arc::into_inner(fixture).unwrap().stop().await;
    assert_sound(&place, what).await;
    assert_log(&place, what).await;
}

/// How a turn does not come about.
#[derive(Clone, Copy, Debug)]
enum Failure {
    /// Another node has drawn a number meanwhile.
    Overtaken,
    ConnectionLost,
}

async fn decided_anew(failure: Failure) {
    let fixture = fixture().await;
    for round in 0..4 {
        for warm in 0..=WARY_TURNS {
            fixture.send(&format!("warm-{round}-{warm}"), None, "in").await;
        }
        let mut other = hold_up(&fixture).await;
        let mut accepting = vec![accept(&fixture, format!("{round}-0"))];
        until_under_way(&fixture.place).await;
        for behind in 1..3 {
            accepting.push(accept(&fixture, format!("{round}-{behind}")));
            tokio::time::sleep(MEANWHILE).await;
        }
        assert!(accepting.iter().all(|accepting| !accepting.is_finished()), "answered before it was written");
        match failure {
            Failure::Overtaken => drop(number(url(&fixture.place), "SELECT nextval('turn')").await),
            Failure::ConnectionLost => assert_eq!(number(url(&fixture.place), LOSE).await, 1),
        }
        run(&mut other, "COMMIT").await;
        let mut last = 0;
        for accepting in accepting {
            let seq = seq_of(&fixture, accepting.await.unwrap()).await;
            assert!(seq > last, "{failure:?}: what was handed in later stands before");
            last = seq;
        }
    }
    let all = 4 * (WARY_TURNS as u64 + 1 + 3);
    assert_eq!(fixture.stats("in").await.waiting, all);
    end(fixture, "after turns that have not come about").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_on_a_turn_that_was_overtaken_is_decided_anew() {
    decided_anew(Failure::Overtaken).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_on_a_turn_whose_connection_was_lost_is_decided_anew() {
    decided_anew(Failure::ConnectionLost).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_come_about_is_not_given_to_anybody() {
    for _ in 0..3 {
        let fixture = fixture().await;
        fixture.send("0", None, "in").await;
        let first = fixture.lease_in_time("in", 0, 1).await;
        // For a while now it knows what is ready.
        assert!(fixture.lease("in", 0, 1).await.is_empty());
        assert_eq!(fixture.taken("in", 0, &first[0], DELIVERED).await, "delivered");
        let mut other = hold_up(&fixture).await;
        let accepting = {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { fixture.accept(vec![message("1", None, "x", &["in"])]).await.is_ok() })
        };
        until_under_way(&fixture.place).await;
        let leasing = {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { fixture.try_lease(fixture.request("in", 0, 10)).await })
        };
        tokio::time::sleep(MEANWHILE).await;
        assert!(!accepting.is_finished() && !leasing.is_finished(), "answered before it was written");
        run(&mut other, "UPDATE node SET until = since; COMMIT").await;
        assert!(!accepting.await.unwrap(), "accepted by a node whose lease is over");
        let leased = leasing.await.unwrap().map_or(0, |answer| answer.deliveries.len());
        assert_eq!(leased, 0, "leased what has not come about");
        until("it is back as another", async || {
            fixture.accept(vec![message("2", None, "2", &["in"])]).await.is_ok()
        })
        .await;
        assert_eq!(texts(&fixture.lease_in_time("in", 0, 10).await), ["2"]);
        assert_eq!(number(url(&fixture.place), "SELECT count(*) FROM message").await, 2);
        end(fixture, "after its lease").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_nothing_waits_for_what_it_was_decided_on() {
    let fixture = fixture().await;
    for round in 0..4 {
        // For a while now it knows that nothing else is ready.
        assert!(fixture.lease("in", 0, 10).await.is_empty());
        fixture.send(&round.to_string(), None, "in").await;
        let mut other = hold_up(&fixture).await;
        let lease = || {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { fixture.lease("in", 0, 10).await })
        };
        let first = lease();
        until_under_way(&fixture.place).await;
        let nothing_left = lease();
        tokio::time::sleep(MEANWHILE).await;
        assert!(!first.is_finished() && !nothing_left.is_finished(), "answered before it was written");
        assert_eq!(number(url(&fixture.place), LOSE).await, 1);
        run(&mut other, "COMMIT").await;
        let mut leased = first.await.unwrap();
        leased.extend(nothing_left.await.unwrap());
        assert_eq!(leased.len(), 1);
        assert_eq!(fixture.taken("in", 0, &leased[0], DELIVERED).await, "delivered");
    }
    end(fixture, "after what was leased anew").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_decided_ahead_is_of_the_same_draw_and_keeps_the_time_of_its_own_turn() {
    let fixture = fixture().await;
    let mut ahead = 0;
    for round in 0..8 {
        fixture.send(&format!("{round}-warm"), None, "in").await;
        let mut other = hold_up(&fixture).await;
        let first = accept(&fixture, format!("{round}-first"));
        until_under_way(&fixture.place).await;
        let behind = accept(&fixture, format!("{round}-behind"));
        tokio::time::sleep(MEANWHILE).await;
        run(&mut other, "COMMIT").await;
        let first = seq_of(&fixture, first.await.unwrap()).await;
        let behind = seq_of(&fixture, behind.await.unwrap()).await;
        assert!(first < behind);
        // They were in turns of their own, and each of these draws a number if it has none from the one before.
        ahead += usize::from(first >> 20 == behind >> 20);
        let leased = fixture.lease_in_time("in", 0, 10).await;
        assert_eq!(leased.len(), 3);
        for one in leased {
            let times = sqlx::query_scalar("SELECT accepted_at FROM message WHERE id = $1");
            let id = one.message.id;
            let written: i64 = times
                .bind(id.as_bytes().as_slice())
                .fetch_one(&mut connect(url(&fixture.place)).await)
                .await
                .unwrap();
            assert_eq!(one.message.accepted_at.as_micros(), written);
            assert_eq!(fixture.taken("in", 0, &one, DELIVERED).await, "delivered");
        }
    }
    // Not each time: when the writer has to look at something else, it waits for what is under way.
    assert!(ahead > 0, "nothing was decided ahead");
    end(fixture, "after messages at once").await;
}
