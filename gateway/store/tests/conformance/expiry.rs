//! Messages that run out, and the limits of a lease call.

use std::time::Duration;

use gatepost_core::message::NewMessage;
use gatepost_core::{OnDoubt, QueuePolicy, Timestamp};
use gatepost_store::Leased;

use crate::check::{assert_log, assert_sound};
use crate::fixture::{DELIVERED, Fixture, RETRY_LATER, doubting, in_time, keyed, message, queue, texts};

async fn expiring(fixture: &Fixture, id: &str, key: &str, after: Duration) -> gatepost_core::DeliveryId {
    let expires_at = Some(fixture.store.read().now() + after);
    let accepted =
        fixture.accept(vec![NewMessage { expires_at, ..message(id, Some(key), id, &["lab"]) }]).await;
    accepted.unwrap()[0].deliveries[0].id
}

/// One that is leased before its expiry, and when that is over.
async fn leased_in_time(fixture: &Fixture, session: u64) -> (Leased, Timestamp) {
    in_time("it is leased before its expiry", async |span| {
        expiring(fixture, &format!("{span:?}"), "k", span).await;
        let leased = fixture.lease("lab", session, 1).await.pop()?;
        // Not before it.
        Some((leased, fixture.store.read().now() + span))
    })
    .await
}

#[tokio::test]
async fn a_waiting_delivery_expires_by_time_and_lets_its_lane_go_on() {
    let fixture = Fixture::new(vec![queue("lab", keyed())]).await;
    let session = fixture.session("lab").await;
    fixture.send("head", Some("k"), "lab").await;
    let expiring = expiring(&fixture, "1", "k", Duration::from_millis(100)).await;
    fixture.send("2", Some("k"), "lab").await;
    let head = fixture.lease_one("lab", session).await;
    fixture.until_state(expiring, "expired").await;
    fixture.taken("lab", session, &head, DELIVERED).await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["2"]);
    assert_eq!(fixture.events(expiring).await, ["accepted", "expired"]);
    let place = fixture.stop().await;
    assert_sound(&place, "expired").await;
    assert_log(&place, "expired").await;
}

#[tokio::test]
async fn an_expired_message_is_never_leased() {
    let fixture = Fixture::new(vec![queue("lab", keyed())]).await;
    let session = fixture.session("lab").await;
    let mut sent = Vec::new();
    for n in 0..30 {
        sent.push(expiring(&fixture, &n.to_string(), "k", Duration::ZERO).await);
    }
    fixture.send("live", Some("k"), "lab").await;
    assert_eq!(texts(&fixture.lease_in_time("lab", session, 100).await), ["live"]);
    for delivery in sent {
        assert_eq!(fixture.events(delivery).await, ["accepted", "expired"]);
    }
}

#[tokio::test]
async fn a_lane_in_backoff_whose_head_expires_goes_on() {
    let fixture = Fixture::new(vec![queue("lab", keyed())]).await;
    let session = fixture.session("lab").await;
    let (leased, _) = leased_in_time(&fixture, session).await;
    fixture.send("2", Some("k"), "lab").await;
    fixture.taken("lab", session, &leased, RETRY_LATER).await;
    fixture.until_state(leased.delivery, "expired").await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["2"]);
}

#[tokio::test]
async fn a_dead_one_past_its_expiry_cannot_be_sent_again_and_the_log_says_who_tried() {
    let fixture = Fixture::new(vec![queue("lab", keyed())]).await;
    let session = fixture.session("lab").await;
    let (leased, expiry) = leased_in_time(&fixture, session).await;
    fixture.taken("lab", session, &leased, gatepost_core::Outcome::Reject).await;
    crate::fixture::until("it is past its expiry", async || fixture.store.read().now() > expiry).await;
    let row = fixture.operate(leased.delivery, gatepost_store::Verb::Replay).await.unwrap();
    assert_eq!(row.state, "expired");
    let detail = fixture.store.read().message_detail(row.message).await.unwrap().unwrap();
    let last = detail.history.last().unwrap();
    assert_eq!((last.by.as_str(), last.code.as_deref()), ("operator:ops", Some("past_expiry")));
    let place = fixture.stop().await;
    assert_sound(&place, "replayed past expiry").await;
    assert_log(&place, "replayed past expiry").await;
}

/// What expires at once must not keep everybody else waiting until all of it is written down.
#[tokio::test]
async fn a_flood_that_expires_is_worked_off_between_other_work() {
    let fixture = Fixture::new(vec![queue("lab", keyed())]).await;
    let expires_at = Some(fixture.store.read().now() + Duration::from_millis(500));
    for batch in 0..5 {
        let flood = |n| NewMessage { expires_at, ..message(&format!("{batch}-{n}"), None, "x", &["lab"]) };
        fixture.accept((0..1000).map(flood).collect()).await.unwrap();
    }
    crate::fixture::until("all have expired", async || fixture.stats("lab").await.waiting == 0).await;
    assert_sound(&fixture.stop().await, "flood").await;
}

/// What is past its time and does not wait must not stand in the way of what does.
#[tokio::test]
async fn what_has_begun_keeps_no_other_from_expiring() {
    let soon = |expires_at, n| NewMessage { expires_at, ..message(&format!("{n}"), None, "x", &["lab"]) };
    let (fixture, session, leased, expires_at) = in_time("all are leased", async |span| {
        let policy = QueuePolicy { max_in_flight: 1000, ..doubting(OnDoubt::Hold) };
        let fixture = Fixture::new(vec![queue("lab", policy)]).await;
        let session = fixture.session("lab").await;
        let expires_at = Some(fixture.store.read().now() + span);
        fixture.accept((0..600).map(|n| soon(expires_at, n)).collect()).await.unwrap();
        let mut leased = Vec::new();
        while fixture.store.read().now() < expires_at? && leased.len() < 600 {
            leased.extend(fixture.lease("lab", session, 300).await);
        }
        (leased.len() == 600).then_some((fixture, session, leased, expires_at))
    })
    .await;
    fixture.accept((600..610).map(|n| soon(expires_at, n)).collect()).await.unwrap();
    crate::fixture::until("what waits has expired", async || fixture.stats("lab").await.waiting == 0).await;
    assert_eq!(fixture.stats("lab").await.leased, 600);
    // One that goes back to waiting after its time expires too.
    fixture.taken("lab", session, &leased[0], RETRY_LATER).await;
    fixture.until_state(leased[0].delivery, "expired").await;
    assert_sound(&fixture.stop().await, "begun").await;
}
