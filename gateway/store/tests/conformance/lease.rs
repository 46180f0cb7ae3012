//! The lease call: how much it gives, how long for, and what a repetition gets.

use std::sync::Arc;
use std::time::Duration;

use gatepost_core::{OnDoubt, Outcome};
use gatepost_store::{LeaseRequest, Leased};

use crate::check::assert_sound;
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, doubting, hinted, inbox, message, queue, quick, texts, until,
};

async fn with(count: usize) -> (Fixture, u64) {
    let fixture = Fixture::new(vec![queue("lab", quick()), inbox("results", quick())]).await;
    for n in 0..count {
        fixture.send(&n.to_string(), None, "lab").await;
    }
    let session = fixture.session("lab").await;
    (fixture, session)
}

fn ids(leased: &[Leased]) -> Vec<gatepost_core::DeliveryId> {
    leased.iter().map(|leased| leased.delivery).collect()
}

fn named(request: LeaseRequest, id: &str) -> LeaseRequest {
    LeaseRequest { request_id: Some(id.into()), ..request }
}

#[tokio::test]
async fn r13_12_a_lease_holds_at_most_max_and_max_bytes_and_at_least_one() {
    let (fixture, session) = with(0).await;
    for id in ["1", "2", "3", "4"] {
        fixture.accept(vec![message(id, None, "0123456789", &["lab"])]).await.unwrap();
    }
    let bounded = |max, max_bytes| LeaseRequest { max_bytes, ..fixture.request("lab", session, max) };
    for (max, max_bytes, expected) in [(1, u64::MAX, 1), (10, 5, 1), (10, 25, 2)] {
        let leased = fixture.try_lease(bounded(max, max_bytes)).await.unwrap().deliveries;
        assert_eq!(leased.len(), expected, "max {max}, {max_bytes} bytes");
    }
    assert!(fixture.lease("lab", session, 10).await.is_empty());
}

#[tokio::test]
async fn r13_17_the_same_request_id_gets_the_same_batch_in_the_same_order() {
    let (fixture, session) = with(40).await;
    let request = || named(fixture.request("lab", session, 30), "r1");
    let first = fixture.try_lease(request()).await.unwrap().deliveries;
    assert_eq!(first.len(), 30);
    let again = fixture.try_lease(request()).await.unwrap().deliveries;
    assert_eq!(ids(&first), ids(&again));
    assert!(first.iter().zip(&again).all(|(a, b)| a.token == b.token));
    let other = fixture.try_lease(named(fixture.request("lab", session, 30), "r2")).await.unwrap();
    assert_eq!(other.deliveries.len(), 10);
    fixture.taken("lab", session, &first[0], DELIVERED).await;
    fixture.taken("lab", session, &first[1], Outcome::Release).await;
    let rest = fixture.try_lease(request()).await.unwrap().deliveries;
    assert_eq!(ids(&rest), ids(&first[2..]), "what is still leased of it");
}

#[tokio::test]
async fn r13_17_twin_requests_on_their_way_together_get_one_batch() {
    let (fixture, session) = with(20).await;
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move {
                let request = named(fixture.request("lab", session, 3), "r1");
                ids(&fixture.try_lease(request).await.unwrap().deliveries)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(fixture.stats("lab").await.sending, 3);
}

#[tokio::test]
async fn r13_17_a_batch_is_remembered_over_a_restart_for_whom_leases_live_on() {
    let (fixture, session) = with(2).await;
    for id in ["a", "b", "c"] {
        fixture.send(id, None, "results").await;
    }
    let request = |fixture: &Fixture| named(fixture.request("results", 0, 2), "r");
    let first = fixture.try_lease(request(&fixture)).await.unwrap().deliveries;
    let adapters =
        fixture.try_lease(named(fixture.request("lab", session, 2), "r")).await.unwrap().deliveries;
    let fixture = fixture.crash().await.open().await.unwrap();
    let again = fixture.try_lease(request(&fixture)).await.unwrap().deliveries;
    assert_eq!(ids(&first), ids(&again));
    let session = fixture.session("lab").await;
    let anew = fixture.try_lease(named(fixture.request("lab", session, 2), "r")).await.unwrap().deliveries;
    assert!(anew.iter().all(|anew| adapters.iter().all(|old| old.token != anew.token)));
    assert_sound(&fixture.stop().await, "batches").await;
}

#[tokio::test]
async fn r13_17_the_store_waits_two_seconds_longer_than_it_says() {
    let (fixture, session) = with(1).await;
    let mut request = fixture.request("lab", session, 1);
    request.lease = Duration::from_millis(10);
    let started = fixture.store.read().now();
    let leased = fixture.try_lease(request).await.unwrap().deliveries.remove(0);
    assert_eq!(leased.lease, Duration::from_millis(10), "the client is told its own");
    fixture.until_state(leased.delivery, "in_doubt").await;
    assert!(fixture.store.read().now().since(started) >= Duration::from_millis(2010));
    let row = fixture.row(leased.delivery).await;
    assert_eq!((row.attempts, row.doubt), (1, true), "the lease was the begin");
    assert_eq!(fixture.stale("lab", session, &leased, DELIVERED).await, "in_doubt");
    assert_sound(&fixture.stop().await, "expired lease").await;
}

#[tokio::test]
async fn r13_17_an_extended_lease_has_the_same_margin() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    fixture.send("2", None, "lab").await;
    let mut request = fixture.request("lab", session, 2);
    request.lease = Duration::from_millis(10);
    let leased = fixture.try_lease(request).await.unwrap().deliveries;
    let extend = Outcome::Extend { lease: Duration::from_secs(1) };
    let started = fixture.store.read().now();
    assert_eq!(fixture.taken("lab", session, &leased[0], extend).await, "leased");
    for leased in &leased {
        fixture.until_state(leased.delivery, "waiting").await;
    }
    let ended = fixture.row(leased[0].delivery).await.changed_at;
    assert!(ended.since(started) >= Duration::from_secs(3), "1 s and the margin");
    assert!(
        ended > fixture.row(leased[1].delivery).await.changed_at,
        "it outlasts one that was not extended"
    );
}

#[tokio::test]
async fn release_gives_it_back_untried() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    for begun in [false, true] {
        let leased = fixture.lease_one("lab", session).await;
        if begun {
            fixture.taken("lab", session, &leased, BEGIN).await;
        }
        assert_eq!(fixture.taken("lab", session, &leased, Outcome::Release).await, "waiting");
        assert_eq!(fixture.row(delivery).await.attempts, 0);
    }
    assert_eq!(fixture.events(delivery).await, ["accepted", "released", "attempt", "released"]);
}

#[tokio::test]
async fn concurrent_leases_never_share_a_delivery() {
    let (fixture, session) = with(60).await;
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { ids(&fixture.lease("lab", session, 7).await) })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    let distinct: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    until("all are leased in the end", async || {
        fixture.lease("lab", session, 7).await;
        fixture.stats("lab").await.sending == 60
    })
    .await;
}

#[tokio::test]
async fn an_inbox_is_leased_and_settled_without_a_session() {
    let (fixture, _) = with(0).await;
    fixture.send("1", None, "results").await;
    let leased = fixture.lease("results", 0, 10).await;
    assert_eq!(texts(&leased), ["1"]);
    let weakest = Outcome::Delivered { level: gatepost_core::Level::Sent };
    assert_eq!(fixture.taken("results", 0, &leased[0], weakest).await, "delivered");
}

#[tokio::test]
async fn a_consumer_that_waits_is_told_when_something_may_be_leased() {
    let (fixture, session) = with(0).await;
    let hint = fixture.store.queue_hint("lab");
    let mut told = std::pin::pin!(hint.notified());
    told.as_mut().enable();
    assert!(fixture.lease("lab", session, 1).await.is_empty());
    fixture.send("1", None, "lab").await;
    hinted(told).await;
    fixture.lease_one("lab", session).await;
}

#[tokio::test]
async fn a_queue_that_left_the_configuration_keeps_its_deliveries_and_serves_nobody() {
    let (mut fixture, session) = with(2).await;
    fixture.configure(vec![inbox("results", quick())]).await;
    assert!(fixture.lease("lab", session, 10).await.is_empty());
    assert_eq!(fixture.stats("lab").await.waiting, 2);
    let mut fixture = fixture.restart().await;
    assert_eq!(fixture.stats("lab").await.waiting, 2);
    fixture.configure(vec![inbox("results", quick()), queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["0", "1"]);
}
