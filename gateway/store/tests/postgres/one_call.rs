//! Turns that are one call: it makes sure itself of everything that a transaction would have held.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gatepost_core::DeliveryId;
use gatepost_store::Emit;

use crate::check::postgres::{connect, number};
use crate::check::{assert_log, assert_sound};
use crate::fixture::{DELIVERED, Fixture, inbox, item, keyed, message, queue, quick, texts, until};
use crate::nodes::url;

/// Messages of one call.
const BATCH: usize = 40;
const BATCHES: usize = 12;
const SENDERS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crowd_hands_in_is_there_once_and_counts() {
    let fixture = Arc::new(Fixture::new(vec![inbox("in", quick()), inbox("lanes", keyed())]).await);
    let senders = (0..SENDERS).map(|sender| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move {
            for batch in 0..BATCHES {
                let key = |n: usize| if n.is_multiple_of(2) { Some("k") } else { None };
                let one = |n| message(&format!("{sender}-{batch}-{n}"), key(n), "x", &["in", "lanes"]);
                // Some are handed in twice.
                let from = if batch.is_multiple_of(3) { 0 } else { BATCH };
                let accepted = fixture.accept((from..from + BATCH).map(one).collect()).await.unwrap();
                assert!(accepted.iter().all(|accepted| !accepted.duplicate));
                if batch.is_multiple_of(4) {
                    let again = fixture.accept((from..from + BATCH).map(one).collect()).await.unwrap();
                    assert!(
                        again
                            .iter()
                            .zip(&accepted)
                            .all(|(again, first)| again.duplicate && again.id == first.id)
                    );
                }
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let all = SENDERS * BATCHES * BATCH;
    let mut taken: HashMap<DeliveryId, usize> = HashMap::new();
    while taken.len() < all {
        for one in fixture.lease_in_time("in", 0, 100).await {
            *taken.entry(one.delivery).or_default() += 1;
            assert_eq!(fixture.taken("in", 0, &one, DELIVERED).await, "delivered");
        }
    }
    for sender in senders {
        sender.await.unwrap();
    }
    assert!(taken.values().all(|times| *times == 1));
    until("the counts are right", async || {
        let (one, other) = (fixture.stats("in").await, fixture.stats("lanes").await);
        (one.waiting, one.leased, other.waiting) == (0, 0, all as u64)
    })
    .await;
    let place = Arc::into_inner(fixture).unwrap().stop().await;
    let pieces =
        "SELECT sum(pg_relation_size(reltoastrelid))::bigint FROM pg_class WHERE relname ~ '^leaf_[0-9]+$'";
    assert_eq!(number(url(&place), pieces).await, 0, "leaves are stored in pieces");
    assert_sound(&place, "after the crowd").await;
    assert_log(&place, "after the crowd").await;
}

/// A leap of the server's clock, of which this host's own knows nothing: larger than what two clocks may differ by, and smaller than a
/// node's lease.
const LEAP: &str = "UPDATE store SET clock = 1500000 + greatest(clock, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";

async fn leap(fixture: &Fixture) -> i64 {
    sqlx::raw_sql(LEAP).execute(&mut connect(url(&fixture.place)).await).await.unwrap();
    number(url(&fixture.place), "SELECT clock FROM store").await
}

#[tokio::test]
async fn a_turn_happens_at_the_servers_time_though_it_was_decided_without_asking() {
    let fixture = Fixture::new(vec![inbox("in", quick())]).await;
    for id in ["1", "2"] {
        fixture.send(id, None, "in").await;
    }
    let leased = fixture.lease_in_time("in", 0, 2).await;
    let leapt = leap(&fixture).await;
    fixture.send("3", None, "in").await;
    let accepted = number(url(&fixture.place), "SELECT max(accepted_at) FROM message").await;
    assert!(accepted >= leapt, "{accepted} is before {leapt}");
    // The first draws the number of the second, which need not ask for one.
    fixture.taken("in", 0, &leased[0], DELIVERED).await;
    let leapt = leap(&fixture).await;
    fixture.taken("in", 0, &leased[1], DELIVERED).await;
    let settled = number(url(&fixture.place), "SELECT max(changed_at) FROM delivery").await;
    assert!(settled >= leapt, "{settled} is before {leapt}");
    assert_log(&fixture.stop().await, "after leaps").await;
}

#[tokio::test]
async fn what_was_written_is_past_though_the_servers_clock_is_set_back() {
    let fixture = Fixture::new(vec![inbox("in", quick())]).await;
    leap(&fixture).await;
    fixture.send("1", None, "in").await;
    let back = "UPDATE store SET clock = 0";
    sqlx::raw_sql(back).execute(&mut connect(url(&fixture.place)).await).await.unwrap();
    // The node says so when it renews its right.
    let ahead = "SELECT clock - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM store";
    until("it is noted", async || number(url(&fixture.place), ahead).await > 0).await;
    fixture.send("2", None, "in").await;
    let place = fixture.stop().await;
    assert_log(&place, "after the server's clock was set back").await;
}

#[tokio::test]
async fn what_is_emitted_stands_behind_what_others_have_drawn_a_number_for_before() {
    let fixture = Fixture::new(vec![queue("lab", quick()), inbox("in", quick())]).await;
    let session = fixture.session("lab").await;
    for round in 0..5 {
        for name in ["a", "b"] {
            fixture.send(&format!("{name}{round}"), None, "lab").await;
        }
        let leased = fixture.lease_in_time("lab", session, 2).await;
        // This draws a number for the next turn.
        fixture.taken("lab", session, &leased[0], DELIVERED).await;
        let drawn = number(url(&fixture.place), "SELECT nextval('turn')").await;
        let mut settle = fixture.settling("lab", session, vec![item(&leased[1], DELIVERED)]);
        let emitted = message(&format!("emitted{round}"), None, "x", &["in"]);
        settle.emit = vec![Emit { message: emitted, dead: None }];
        fixture.store.delivery_settle(settle).await.unwrap();
        let newest = number(url(&fixture.place), "SELECT max(seq) >> 20 FROM message").await;
        assert!(newest > drawn, "{newest} was drawn before {drawn}");
    }
    let place = fixture.stop().await;
    assert_sound(&place, "after what was emitted").await;
    assert_log(&place, "after what was emitted").await;
}

/// As a node that does it between this one's look and its lease.
const PUT_OFF: &str = "UPDATE ready SET due = due + 3600000000 WHERE pos = (SELECT min(pos) FROM delivery); \
    UPDATE delivery SET due = due + 3600000000 WHERE pos = (SELECT min(pos) FROM delivery)";

#[tokio::test]
async fn what_others_have_put_off_meanwhile_is_not_leased() {
    // One with which the lease is all that changes, and one with which more does.
    for name in ["lab", "in", "lab", "in"] {
        let fixture = Fixture::new(vec![queue("lab", quick()), inbox("in", quick())]).await;
        let session = if name == "lab" { fixture.session("lab").await } else { 0 };
        // Until it has seen that it is alone, it looks under locks.
        tokio::time::sleep(Duration::from_millis(600)).await;
        // For a while now it knows what is ready.
        assert!(fixture.lease(name, session, 10).await.is_empty());
        for id in ["1", "2"] {
            fixture.send(id, None, name).await;
        }
        sqlx::raw_sql(PUT_OFF).execute(&mut connect(url(&fixture.place)).await).await.unwrap();
        let leased = fixture.lease_in_time(name, session, 10).await;
        assert_eq!(texts(&leased), ["2"]);
        assert_eq!(fixture.stats(name).await.waiting, 1);
        assert_sound(&fixture.stop().await, "after a lease").await;
    }
}

#[tokio::test]
async fn a_node_whose_lease_is_over_adds_nothing() {
    let fixture = Fixture::new(vec![inbox("in", quick())]).await;
    let over = "UPDATE node SET until = since";
    sqlx::raw_sql(over).execute(&mut connect(url(&fixture.place)).await).await.unwrap();
    let accept = async |id: &str| fixture.accept(vec![message(id, None, "x", &["in"])]).await;
    assert!(accept("1").await.is_err());
    assert_eq!(number(url(&fixture.place), "SELECT count(*) FROM message").await, 0);
    until("it is back as another", async || accept("2").await.is_ok()).await;
    let place = fixture.stop().await;
    assert_sound(&place, "after its lease").await;
    assert_log(&place, "after its lease").await;
}
