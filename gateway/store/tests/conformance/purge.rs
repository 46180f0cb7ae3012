//! Retention: payloads go when they are old and settled, and with them what the log commits to them by.

use std::time::Duration;

use gatepost_core::Outcome;
use gatepost_store::{Data, Verb};

use crate::check::{assert_log, assert_sound, entries, number};
use crate::fixture::{BEGIN, DELIVERED, Fixture, Place, item, message, queue, quick, text, until};

/// One delivered, one dead, one waiting; then the store is opened with nothing kept.
async fn purged() -> (Fixture, [gatepost_core::DeliveryId; 3]) {
    let fixture = Fixture::new(vec![queue("lab", quick()), queue("other", quick())]).await;
    let session = fixture.session("lab").await;
    let delivered = fixture.send("delivered", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let mut done = item(&leased, DELIVERED);
    done.reply = Some(br#"{"data":"canary"}"#.to_vec());
    done.evidence = Some(br#""canary""#.to_vec());
    fixture.store.delivery_settle(fixture.settling("lab", session, vec![done])).await.unwrap();
    let dead = fixture.send("dead", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let mut refused = item(&leased, Outcome::Reject);
    refused.reply = Some(br#"{"data":"canary"}"#.to_vec());
    fixture.store.delivery_settle(fixture.settling("lab", session, vec![refused])).await.unwrap();
    // Delivered to one of its destinations, waiting for the other.
    let half = fixture.accept(vec![message("half", None, "half", &["lab", "other"])]).await.unwrap();
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
    let place = Place { payload_retention: Duration::ZERO, ..fixture.stop().await };
    let fixture = place.open().await.unwrap();
    until("the payloads are gone", async || payload_gone(&fixture, delivered).await).await;
    (fixture, [delivered, dead, half[0].deliveries[1].id])
}

async fn payload_gone(fixture: &Fixture, delivery: gatepost_core::DeliveryId) -> bool {
    let message = fixture.row(delivery).await.message;
    let stored = fixture.store.read().message(message, Data::Include).await.unwrap().unwrap();
    assert_eq!(stored.purged, stored.data.is_none());
    stored.purged
}

#[tokio::test]
async fn payloads_of_settled_messages_go_and_unsettled_ones_stay() {
    let (fixture, [delivered, dead, half]) = purged().await;
    assert!(payload_gone(&fixture, dead).await);
    let message = fixture.row(dead).await.message;
    assert_eq!(
        fixture.store.read().deliveries_of(message).await.unwrap()[0].1,
        None,
        "nor what it was refused with"
    );
    assert!(!payload_gone(&fixture, half).await, "one of its deliveries is still to come");
    let message = fixture.row(delivered).await.message;
    let detail = fixture.store.read().message_detail(message).await.unwrap().unwrap();
    assert_eq!(detail.deliveries[0].1, None, "the reply went with it");
    assert!(detail.history.iter().all(|step| step.evidence.is_none() && step.reason.is_none()));
    let events: Vec<&str> = detail.history.iter().map(|step| step.event.as_str()).collect();
    assert_eq!(events, ["accepted", "attempt", "delivered"], "the log stays");
    let session = fixture.session("other").await;
    let leased = fixture.lease_one("other", session).await;
    assert_eq!(text(&leased), "half");
    fixture.taken("other", session, &leased, BEGIN).await;
    let place = fixture.stop().await;
    assert_sound(&place, "purged").await;
    assert_log(&place, "purged").await;
    let log = entries(&place).await.concat();
    let purges = String::from_utf8(log).unwrap().matches("payload_purged").count();
    assert_eq!(purges, 1);
}

#[tokio::test]
async fn the_salt_goes_with_the_payload_and_nothing_of_it_is_left() {
    let (fixture, _) = purged().await;
    let place = fixture.stop().await;
    let left = number(
        &place,
        [
            "SELECT (SELECT count(*) FROM message WHERE salt IS NOT NULL OR data IS NOT NULL) * 100 \
             + (SELECT count(*) FROM reply) * 10 + (SELECT count(*) FROM detail WHERE body LIKE '%canary%')",
            "SELECT (SELECT count(*) FROM payload) * 100 + (SELECT count(*) FROM reply) * 10 \
             + (SELECT count(*) FROM detail WHERE convert_from(body, 'LATIN1') LIKE '%canary%')",
        ],
    )
    .await;
    assert_eq!(left, 100, "only the unsettled message keeps its payload");
}

/// The subject of an event may be a patient.
#[tokio::test]
async fn what_an_event_says_of_somebody_goes_with_its_payload() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let mut event = message("1", None, "x", &["lab"]);
    event.attributes = br#"{"specversion":"1.0","id":"1","source":"/ehr","type":"t","subject":"canary","partitionkey":"canary"}"#.to_vec();
    let accepted = fixture.accept(vec![event]).await.unwrap();
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
    let place = Place { payload_retention: Duration::ZERO, ..fixture.stop().await };
    let fixture = place.open().await.unwrap();
    until("the payload is gone", async || payload_gone(&fixture, leased.delivery).await).await;
    let kept = fixture.store.read().message(accepted[0].id, Data::Omit).await.unwrap().unwrap();
    let kept = String::from_utf8(kept.attributes.to_vec()).unwrap();
    assert!(kept.contains(r#""source":"/ehr""#) && !kept.contains("canary"), "{kept}");
}

/// There is nothing left to send; an empty message must not go in its place.
#[tokio::test]
async fn a_dead_letter_without_its_payload_cannot_be_replayed() {
    let (fixture, [_, dead, _]) = purged().await;
    let leaves = fixture.leaves().await;
    let refused = fixture.operate(dead, Verb::Replay).await;
    assert!(matches!(refused, Err(gatepost_store::OperateError::Illegal(_))), "{refused:?}");
    assert_eq!(fixture.leaves().await, leaves);
    fixture.operate(dead, Verb::Discard).await.unwrap();
}

#[tokio::test]
async fn idempotency_keys_go_with_their_window() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    // The oldest leave memory for the index.
    for number in 1..=8 {
        fixture.send(&number.to_string(), None, "lab").await;
    }
    let place = Place { dedup_window: Duration::ZERO, ..fixture.stop().await };
    let keys = async || number(&place, ["SELECT count(*) FROM dedup", "SELECT count(*) FROM dedup"]).await;
    assert!(keys().await > 0);
    let fixture = place.open().await.unwrap();
    until("the old keys are gone", async || keys().await == 0).await;
    let place = Place { dedup_window: Duration::from_secs(3600), ..fixture.stop().await };
    let fixture = place.open().await.unwrap();
    for duplicate in [false, true] {
        let accepted = fixture.accept(vec![message("1", None, "other", &["lab"])]).await.unwrap();
        assert_eq!(accepted[0].duplicate, duplicate);
    }
}

#[tokio::test]
async fn young_payloads_stay() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
    let fixture = fixture.restart().await;
    // A message that expires is proof that the store has looked at time since it opened.
    let mut passing = message("2", None, "x", &["lab"]);
    passing.expires_at = Some(fixture.store.read().now());
    let passing = fixture.accept(vec![passing]).await.unwrap()[0].deliveries[0].id;
    fixture.until_state(passing, "expired").await;
    assert!(!payload_gone(&fixture, delivery).await);
}
