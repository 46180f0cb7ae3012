//! Rule 1: what happens when bytes may have reached the partner and no answer came.

use gatepost_core::delivery::Refusal;
use gatepost_core::{OnDoubt, Outcome, QueuePolicy, Resolution};
use gatepost_store::{DeliveryFilter, SettleError, Verb};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, RETRY, SENT, TROUBLE, doubting, in_time, message, queue, quick,
};

async fn with(on_doubt: OnDoubt) -> (Fixture, u64) {
    let fixture = Fixture::new(vec![queue("lab", doubting(on_doubt))]).await;
    let session = fixture.session("lab").await;
    (fixture, session)
}

/// Accepts, leases, begins where that is needed, and reports doubt.
async fn in_doubt(fixture: &Fixture, session: u64, id: &str) -> gatepost_core::DeliveryId {
    let delivery = fixture.send(id, Some(id), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    assert_eq!(leased.delivery, delivery);
    fixture.taken("lab", session, &leased, BEGIN).await;
    assert_eq!(fixture.taken("lab", session, &leased, Outcome::InDoubt).await, "in_doubt");
    delivery
}

#[tokio::test]
async fn r13_1_resend_leases_it_again_marked_under_the_same_id_and_charges_one_attempt() {
    let (fixture, session) = with(OnDoubt::Resend).await;
    let delivery = in_doubt(&fixture, session, "1").await;
    let row = fixture.row(delivery).await;
    assert_eq!((row.attempts, row.doubt), (1, true));
    assert!(row.due.is_some(), "it will be sent again");
    let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
    assert_eq!((again.delivery, again.doubt, again.attempt), (delivery, true, 2));
    fixture.taken("lab", session, &again, DELIVERED).await;
    assert!(!fixture.row(delivery).await.doubt);
    assert_log(&fixture.stop().await, "resend").await;
}

#[tokio::test]
async fn r13_1_hold_waits_for_a_person_is_listed_and_takes_no_place_in_flight() {
    let policy = QueuePolicy { max_in_flight: 1, ..doubting(OnDoubt::Hold) };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let session = fixture.session("lab").await;
    let delivery = in_doubt(&fixture, session, "1").await;
    let row = fixture.row(delivery).await;
    assert_eq!((row.state, row.reason, row.due), ("in_doubt", Some("held"), None));
    let filter = DeliveryFilter { held: true, ..DeliveryFilter::default() };
    let held = fixture.store.read().delivery_list(&filter, None, 10).await.unwrap();
    assert_eq!(held.items.iter().map(|row| row.id).collect::<Vec<_>>(), [delivery]);
    let stats = fixture.stats("lab").await;
    assert_eq!((stats.in_doubt, stats.held, stats.held_lanes), (1, 1, 1));
    fixture.send("2", Some("2"), "lab").await;
    fixture.lease_one("lab", session).await;
}

#[tokio::test]
async fn r13_1_query_leases_it_again_marked_and_begins_anew() {
    let (fixture, session) = with(OnDoubt::Query).await;
    let delivery = in_doubt(&fixture, session, "1").await;
    let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
    assert_eq!((again.delivery, again.doubt), (delivery, true));
    assert_eq!(fixture.state(delivery).await, "leased");
    let early = fixture.settle("lab", session, &again, DELIVERED).await;
    assert!(matches!(early, Err(SettleError::Protocol { refusal: Refusal::NotBegun, .. })), "{early:?}");
    fixture.taken("lab", session, &again, BEGIN).await;
    fixture.taken("lab", session, &again, DELIVERED).await;
    assert_eq!(fixture.events(delivery).await, ["accepted", "attempt", "in_doubt", "attempt", "delivered"]);
}

#[tokio::test]
async fn r13_1_the_flag_stays_until_the_adapter_says_the_partner_has_not_got_it() {
    let (fixture, session) = with(OnDoubt::Query).await;
    let delivery = in_doubt(&fixture, session, "1").await;
    let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
    assert_eq!(fixture.taken("lab", session, &again, Outcome::Release).await, "in_doubt");
    let row = fixture.row(delivery).await;
    assert_eq!((row.doubt, row.attempts), (true, 1));
    assert!(row.due.is_some_and(|due| due > row.changed_at), "with backoff");
    let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
    assert_eq!(fixture.taken("lab", session, &again, TROUBLE).await, "waiting");
    assert!(!fixture.row(delivery).await.doubt, "`retry` says that the partner has not got it");
}

#[tokio::test]
async fn r13_1_spent_attempts_hold_it_whatever_the_policy() {
    for on_doubt in [OnDoubt::Resend, OnDoubt::Query] {
        let (fixture, session) = with(on_doubt).await;
        let delivery = in_doubt(&fixture, session, "1").await;
        for attempt in 2..=3 {
            let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
            assert_eq!(again.attempt, attempt);
            fixture.taken("lab", session, &again, BEGIN).await;
            fixture.taken("lab", session, &again, Outcome::InDoubt).await;
        }
        let row = fixture.row(delivery).await;
        assert_eq!((row.state, row.reason, row.attempts), ("in_doubt", Some("held"), 3), "{on_doubt}");
    }
}

#[tokio::test]
async fn r13_1_an_operators_retry_starts_the_count_afresh() {
    let (fixture, session) = with(OnDoubt::Resend).await;
    let delivery = in_doubt(&fixture, session, "1").await;
    for _ in 2..=3 {
        let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
        fixture.taken("lab", session, &again, Outcome::InDoubt).await;
    }
    assert_eq!(fixture.resolve(delivery, Resolution::Retry).await, "waiting");
    let row = fixture.row(delivery).await;
    assert_eq!((row.attempts, row.doubt), (0, false));
    let again = fixture.lease_one("lab", session).await;
    assert_eq!((again.attempt, again.doubt), (1, false));
    fixture.taken("lab", session, &again, RETRY).await;
    let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
    fixture.taken("lab", session, &again, DELIVERED).await;
    // The auditor must not take the new count for attempts that were taken back.
    assert_log(&fixture.stop().await, "resolved to retry").await;
}

#[tokio::test]
async fn r13_1_resolving_ends_the_doubt_in_the_way_the_person_says() {
    let (fixture, session) = with(OnDoubt::Hold).await;
    for (id, resolution, state, reason) in [
        ("1", Resolution::Delivered, "delivered", None),
        ("2", Resolution::Dead, "dead", Some("resolved")),
        ("3", Resolution::Retry, "waiting", None),
    ] {
        let delivery = in_doubt(&fixture, session, id).await;
        assert_eq!(fixture.resolve(delivery, resolution).await, state);
        let row = fixture.row(delivery).await;
        assert_eq!((row.state, row.reason), (state, reason));
        assert_eq!(fixture.events(delivery).await, ["accepted", "attempt", "in_doubt", "resolved"]);
        assert!(fixture.operate(delivery, Verb::Resolve(resolution)).await.is_err(), "only once");
        if state == "waiting" {
            assert!(!fixture.lease_one("lab", session).await.doubt);
        }
    }
    let place = fixture.stop().await;
    assert_sound(&place, "resolved").await;
    assert_log(&place, "resolved").await;
}

#[tokio::test]
async fn r13_1_begin_after_the_expiry_is_refused_and_the_delivery_is_expired() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    let session = fixture.session("lab").await;
    let leased = leased_past_expiry(&fixture, session).await;
    assert_eq!(fixture.stale("lab", session, &leased, BEGIN).await, "expired");
    assert_eq!(fixture.row(leased.delivery).await.state, "expired");
    assert_eq!(fixture.events(leased.delivery).await, ["accepted", "expired"], "nothing was attempted");
    assert_sound(&fixture.stop().await, "expired at begin").await;
}

/// A delivery that has been leased in time and whose expiry has passed since.
async fn leased_past_expiry(fixture: &Fixture, session: u64) -> gatepost_store::Leased {
    let (leased, expiry) = in_time("it is leased before its expiry", async |span| {
        let mut expiring = message(&format!("{span:?}"), Some("k"), "x", &["lab"]);
        let expiry = fixture.store.read().now() + span;
        expiring.expires_at = Some(expiry);
        fixture.accept(vec![expiring]).await.unwrap();
        Some((fixture.lease("lab", session, 1).await.pop()?, expiry))
    })
    .await;
    crate::fixture::until("it is past its expiry", async || fixture.store.read().now() > expiry).await;
    leased
}

#[tokio::test]
async fn r13_1_retry_or_release_past_the_expiry_expires() {
    for outcome in [RETRY, Outcome::Release] {
        let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
        let session = fixture.session("lab").await;
        let leased = leased_past_expiry(&fixture, session).await;
        assert_eq!(fixture.taken("lab", session, &leased, outcome).await, "expired");
    }
}

#[tokio::test]
async fn r13_1_a_begun_delivery_does_not_expire_by_time() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let leased = leased_past_expiry(&fixture, session).await;
    // A sweep comes and goes: what was accepted after this one has expired by then.
    let mut other = message("2", None, "x", &["lab"]);
    other.expires_at = Some(fixture.store.read().now());
    let other = fixture.accept(vec![other]).await.unwrap()[0].deliveries[0].id;
    fixture.until_state(other, "expired").await;
    assert_eq!(fixture.state(leased.delivery).await, "sending");
    assert_eq!(fixture.taken("lab", session, &leased, DELIVERED).await, "delivered");
}

#[tokio::test]
async fn r13_1_what_may_have_arrived_is_never_called_expired() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let leased = leased_past_expiry(&fixture, session).await;
    fixture.taken("lab", session, &leased, Outcome::InDoubt).await;
    let delivery = leased.delivery;
    crate::fixture::until("it is held", async || {
        assert!(fixture.lease("lab", session, 1).await.is_empty(), "not sent again past its expiry");
        fixture.row(delivery).await.reason == Some("held")
    })
    .await;
    let place = fixture.stop().await;
    assert_sound(&place, "held past expiry").await;
    assert_log(&place, "held past expiry").await;
}

#[tokio::test]
async fn r13_1_a_destination_that_now_holds_does_not_resend_what_was_to_be_resent() {
    let (mut fixture, session) = with(OnDoubt::Resend).await;
    let delivery = in_doubt(&fixture, session, "1").await;
    fixture.configure(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    crate::fixture::until("it is held", async || {
        assert!(fixture.lease("lab", session, 1).await.is_empty(), "it was leased again");
        fixture.row(delivery).await.reason == Some("held")
    })
    .await;
    assert_eq!(fixture.events(delivery).await, ["accepted", "attempt", "in_doubt", "in_doubt"]);
    let place = fixture.stop().await;
    assert_sound(&place, "held by a reload").await;
    assert_log(&place, "held by a reload").await;
}

#[tokio::test]
async fn r13_2_before_the_begin_no_outcome_of_sending_is_taken_and_nothing_is_written() {
    for on_doubt in [OnDoubt::Hold, OnDoubt::Query] {
        let (fixture, session) = with(on_doubt).await;
        fixture.send("1", None, "lab").await;
        let leased = fixture.lease_one("lab", session).await;
        let leaves = fixture.leaves().await;
        for outcome in [DELIVERED, SENT, Outcome::InDoubt] {
            let refused = fixture.settle("lab", session, &leased, outcome).await;
            let not_begun = matches!(
                refused,
                Err(SettleError::Protocol { refusal: Refusal::NotBegun, delivery }) if delivery == leased.delivery
            );
            assert!(not_begun, "{on_doubt}: {outcome:?}");
        }
        assert_eq!((fixture.leaves().await, fixture.state(leased.delivery).await), (leaves, "leased"));
    }
}
