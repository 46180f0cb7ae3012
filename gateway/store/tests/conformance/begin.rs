//! Rule 2: when an attempt begins, what a crash costs whom, and how poison is found.

use std::time::Duration;

use gatepost_core::{DeliveryId, OnDoubt};
use gatepost_store::SessionEnd;

use crate::check::{assert_log, assert_sound};
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, TROUBLE, doubting, external, in_time, inbox, queue, quick, text, texts, until,
};

async fn end(fixture: &Fixture, end: SessionEnd) -> u64 {
    fixture.store.session_end("lab".into(), end).await.unwrap();
    fixture.session("lab").await
}

#[tokio::test]
async fn r13_2_with_resend_the_lease_is_the_begin() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    assert_eq!(fixture.state(delivery).await, "sending");
    assert_eq!(fixture.events(delivery).await, ["accepted", "attempt"], "before bytes leave");
    let leaves = fixture.leaves().await;
    assert_eq!(fixture.taken("lab", session, &leased, BEGIN).await, "sending");
    assert_eq!(fixture.leaves().await, leaves, "an explicit begin says nothing new");
}

#[tokio::test]
async fn r13_2_otherwise_the_attempt_begins_with_begin() {
    for on_doubt in [OnDoubt::Hold, OnDoubt::Query] {
        let fixture = Fixture::new(vec![queue("lab", doubting(on_doubt))]).await;
        let session = fixture.session("lab").await;
        let delivery = fixture.send("1", None, "lab").await;
        let leased = fixture.lease_one("lab", session).await;
        assert_eq!(fixture.state(delivery).await, "leased");
        assert_eq!(fixture.events(delivery).await, ["accepted"]);
        assert_eq!(fixture.taken("lab", session, &leased, BEGIN).await, "sending");
        assert_eq!(fixture.taken("lab", session, &leased, BEGIN).await, "sending", "again");
        assert_eq!(fixture.events(delivery).await, ["accepted", "attempt"]);
    }
}

/// Accepts `count` messages and leases all of them; the adapter dies with them.
async fn crashed_with(fixture: &Fixture, count: usize) -> (u64, Vec<DeliveryId>) {
    let session = fixture.session("lab").await;
    let mut deliveries = Vec::new();
    for n in 0..count {
        deliveries.push(fixture.send(&n.to_string(), None, "lab").await);
    }
    assert_eq!(fixture.lease("lab", session, 100).await.len(), count);
    (end(fixture, SessionEnd::Crashed).await, deliveries)
}

#[tokio::test]
async fn r13_2_after_a_crash_its_leases_come_back_one_by_one_and_uncharged() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let (session, deliveries) = crashed_with(&fixture, 3).await;
    fixture.send("bystander", None, "lab").await;
    for expected in ["0", "1", "2"] {
        let leased = fixture.lease("lab", session, 100).await;
        assert_eq!(texts(&leased), [expected], "a suspect is leased alone");
        assert_eq!(leased[0].attempt, 1, "uncharged");
        assert!(fixture.lease("lab", session, 100).await.is_empty(), "and nothing beside it");
        fixture.taken("lab", session, &leased[0], DELIVERED).await;
    }
    assert_eq!(texts(&fixture.lease("lab", session, 100).await), ["bystander"]);
    for delivery in deliveries {
        assert_eq!(fixture.row(delivery).await.attempts, 0);
    }
    let place = fixture.stop().await;
    assert_sound(&place, "suspects").await;
    assert_log(&place, "suspects").await;
}

#[tokio::test]
async fn r13_2_three_crashes_alone_are_poison_and_burn_no_neighbour() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let (mut session, deliveries) = crashed_with(&fixture, 3).await;
    let mut deaths = 0;
    let mut delivered = Vec::new();
    while deaths < 3 {
        let leased = fixture.lease_one("lab", session).await;
        if text(&leased) == "1" {
            deaths += 1;
            session = end(&fixture, SessionEnd::Crashed).await;
        } else {
            fixture.taken("lab", session, &leased, DELIVERED).await;
            delivered.push(leased.delivery);
        }
    }
    let row = fixture.row(deliveries[1]).await;
    assert_eq!((row.state, row.reason, row.attempts), ("dead", Some("poison"), 0));
    while delivered.len() < 2 {
        let leased = fixture.lease_one("lab", session).await;
        fixture.taken("lab", session, &leased, DELIVERED).await;
        delivered.push(leased.delivery);
    }
    for neighbour in delivered {
        assert_eq!(fixture.row(neighbour).await.attempts, 0);
    }
    let place = fixture.stop().await;
    assert_sound(&place, "poison").await;
    assert_log(&place, "poison").await;
}

#[tokio::test]
async fn r13_2_two_crashes_are_forgiven_by_an_outcome() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let (mut session, deliveries) = crashed_with(&fixture, 1).await;
    for round in 0..3 {
        for _ in 0..2 {
            fixture.lease_one("lab", session).await;
            session = end(&fixture, SessionEnd::Crashed).await;
        }
        assert_ne!(fixture.state(deliveries[0]).await, "dead", "round {round}");
        let leased = fixture.lease_one("lab", session).await;
        fixture.taken("lab", session, &leased, TROUBLE).await;
        fixture.store.queue_trip("lab".into(), None).await.unwrap();
        // No longer a suspect: the next death makes it one again, without a crash.
        fixture.lease_in_time("lab", session, 1).await;
        session = end(&fixture, SessionEnd::Crashed).await;
    }
    assert_ne!(fixture.state(deliveries[0]).await, "dead");
}

/// A suspect beside others would take their blame, or they its.
#[tokio::test]
async fn r13_2_a_suspect_that_comes_due_waits_until_nothing_else_is_in_flight() {
    let (fixture, session, suspect, other) = in_time("another is leased before it is due", async |span| {
        let mut policy = doubting(OnDoubt::Query);
        (policy.retry.initial, policy.retry.max) = (span, span);
        let fixture = Fixture::new(vec![queue("lab", policy)]).await;
        let session = fixture.session("lab").await;
        let suspect = fixture.send("suspect", None, "lab").await;
        let leased = fixture.lease_one("lab", session).await;
        fixture.taken("lab", session, &leased, BEGIN).await;
        let session = end(&fixture, SessionEnd::Crashed).await;
        // Leased again as the only suspect, and taken back with backoff by a session that ends in good order.
        fixture.lease_one("lab", session).await;
        let session = end(&fixture, SessionEnd::Stopped).await;
        fixture.send("other", None, "lab").await;
        let other = fixture.lease_one("lab", session).await;
        (text(&other) == "other").then_some((fixture, session, suspect, other))
    })
    .await;
    let due = fixture.row(suspect).await.due.unwrap();
    until("the suspect is due", async || fixture.store.read().now() > due).await;
    fixture.send("third", None, "lab").await;
    assert!(fixture.lease("lab", session, 10).await.is_empty(), "not beside another");
    fixture.taken("lab", session, &other, BEGIN).await;
    fixture.taken("lab", session, &other, DELIVERED).await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["suspect"]);
}

#[tokio::test]
async fn r13_2_the_gateways_own_stop_or_death_costs_nothing() {
    let mut fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let delivery = fixture.send("1", None, "lab").await;
    for round in 0..5 {
        let session = fixture.session("lab").await;
        let leased = fixture.lease_one("lab", session).await;
        assert_eq!(leased.attempt, 1, "round {round}");
        fixture = if round % 2 == 0 {
            fixture.restart().await
        } else {
            fixture.crash().await.open().await.unwrap()
        };
        let row = fixture.row(delivery).await;
        assert_eq!((row.state, row.attempts), ("in_doubt", 0), "begun, and the answer is lost");
    }
    assert_log(&fixture.stop().await, "five restarts").await;
}

#[tokio::test]
async fn r13_2_a_session_that_is_stopped_costs_nothing_and_makes_no_suspects() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Query))]).await;
    let session = fixture.session("lab").await;
    for id in ["1", "2"] {
        fixture.send(id, None, "lab").await;
    }
    let leased = fixture.lease("lab", session, 2).await;
    fixture.taken("lab", session, &leased[1], BEGIN).await;
    let session = end(&fixture, SessionEnd::Stopped).await;
    let again = fixture.lease("lab", session, 10).await;
    assert_eq!(again.len(), 2, "both at once");
    let marks: Vec<(bool, u32)> = again.iter().map(|leased| (leased.doubt, leased.attempt)).collect();
    assert!(marks.contains(&(false, 1)) && marks.contains(&(true, 1)), "{marks:?}");
}

/// What a destination does in doubt is in the configuration, which the store learns after it has opened.
#[tokio::test]
async fn r13_1_r13_2_a_restart_follows_the_destinations_policy_on_doubt() {
    for crash in [false, true] {
        let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
        let session = fixture.session("lab").await;
        let begun = fixture.send("1", Some("k"), "lab").await;
        let leased_only = fixture.send("2", None, "lab").await;
        let leased = fixture.lease("lab", session, 10).await;
        fixture.taken("lab", session, &leased[0], BEGIN).await;
        let fixture =
            if crash { fixture.crash().await.open().await.unwrap() } else { fixture.restart().await };
        let row = fixture.row(begun).await;
        assert_eq!((row.state, row.reason, row.due), ("in_doubt", Some("held"), None), "crash: {crash}");
        assert_eq!(fixture.state(leased_only).await, "waiting");
        let session = fixture.session("lab").await;
        assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["2"]);
        assert_sound(&fixture.stop().await, "a restart with hold").await;
    }
}

#[tokio::test]
async fn r13_17_leases_of_apps_and_external_adapters_survive_a_restart_with_their_tokens() {
    let queues = vec![inbox("results", quick()), external("remote", quick())];
    let fixture = Fixture::new(queues).await;
    for (id, destination) in [("1", "results"), ("2", "remote")] {
        fixture.send(id, None, destination).await;
    }
    let session = fixture.session("remote").await;
    let leased = [fixture.lease_one("results", 0).await, fixture.lease_one("remote", session).await];
    let fixture = fixture.crash().await.open().await.unwrap();
    assert_eq!(fixture.taken("results", 0, &leased[0], DELIVERED).await, "delivered");
    assert_eq!(fixture.taken("remote", session, &leased[1], DELIVERED).await, "delivered");
    assert_sound(&fixture.stop().await, "leases over a restart").await;
}

#[tokio::test]
async fn r13_2_an_external_adapters_next_session_tells_of_its_death() {
    let fixture = Fixture::new(vec![external("lab", quick())]).await;
    let session = fixture.session("lab").await;
    for id in ["1", "2"] {
        fixture.send(id, None, "lab").await;
    }
    fixture.lease("lab", session, 10).await;
    let session = fixture.session("lab").await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["1"], "suspects come one by one");
}

#[tokio::test]
async fn r13_2_a_begun_lease_that_expires_costs_an_attempt_and_an_unbegun_one_does_not() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Query))]).await;
    let session = fixture.session("lab").await;
    let (begun, unbegun) = (fixture.send("1", None, "lab").await, fixture.send("2", None, "lab").await);
    let mut request = fixture.request("lab", session, 10);
    request.lease = Duration::from_millis(1);
    let leased = fixture.try_lease(request).await.unwrap().deliveries;
    fixture.taken("lab", session, &leased[0], BEGIN).await;
    fixture.until_state(begun, "in_doubt").await;
    fixture.until_state(unbegun, "waiting").await;
    let (begun, unbegun) = (fixture.row(begun).await, fixture.row(unbegun).await);
    assert_eq!((begun.attempts, begun.doubt), (1, true));
    assert_eq!((unbegun.attempts, unbegun.doubt), (0, false));
    assert_eq!(fixture.stale("lab", session, &leased[0], DELIVERED).await, "in_doubt");
}
