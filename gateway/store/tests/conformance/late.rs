//! Rule 4: proof that comes late, and evidence that is too weak.

use std::time::Duration;

use gatepost_core::delivery::Refusal;
use gatepost_core::{Level, OnDoubt, Outcome, QueuePolicy};
use gatepost_store::{SessionEnd, SettleError};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{BEGIN, DELIVERED, Fixture, SENT, doubting, hinted, item, queue, quick, texts};

#[tokio::test]
async fn r13_4_sent_survives_sessions_crashes_and_restarts_with_its_token() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", Some("k"), "lab").await;
    fixture.send("2", Some("k"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, BEGIN).await;
    assert_eq!(fixture.taken("lab", session, &leased, SENT).await, "sending");
    fixture.store.session_end("lab".into(), SessionEnd::Crashed).await.unwrap();
    fixture.session("lab").await;
    let fixture = fixture.restart().await;
    let fixture = fixture.crash().await.open().await.unwrap();
    let session = fixture.session("lab").await;
    assert_eq!(fixture.state(delivery).await, "sending");
    assert!(fixture.lease("lab", session, 10).await.is_empty(), "its lane waits for the proof");
    assert_eq!(fixture.taken("lab", session, &leased, DELIVERED).await, "delivered");
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["2"]);
    assert_eq!(fixture.row(delivery).await.attempts, 0);
    let place = fixture.stop().await;
    assert_sound(&place, "late proof").await;
    assert_log(&place, "late proof").await;
}

#[tokio::test]
async fn r13_4_sent_takes_no_place_in_flight() {
    let policy = QueuePolicy { max_in_flight: 1, ..quick() };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let session = fixture.session("lab").await;
    for id in ["1", "2"] {
        fixture.send(id, None, "lab").await;
    }
    let leased = fixture.lease_one("lab", session).await;
    let hint = fixture.store.queue_hint("lab");
    let mut told = std::pin::pin!(hint.notified());
    told.as_mut().enable();
    assert!(fixture.lease("lab", session, 1).await.is_empty());
    fixture.taken("lab", session, &leased, SENT).await;
    // Whoever waits for its place.
    hinted(told).await;
    fixture.taken("lab", session, &leased, SENT).await;
    assert_eq!(texts(&fixture.lease("lab", session, 1).await), ["2"]);
}

#[tokio::test]
async fn r13_4_without_proof_by_its_deadline_it_is_in_doubt() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, BEGIN).await;
    let sent = Outcome::Sent { within: Duration::from_millis(200) };
    fixture.taken("lab", session, &leased, sent).await;
    fixture.until_state(delivery, "in_doubt").await;
    let row = fixture.row(delivery).await;
    assert_eq!((row.reason, row.attempts, row.doubt), (Some("held"), 1, true));
    assert_eq!(fixture.stale("lab", session, &leased, DELIVERED).await, "in_doubt");
    let history = fixture.store.read().message_detail(row.message).await.unwrap().unwrap().history;
    assert_eq!(history.last().unwrap().code.as_deref(), Some("proof_overdue"));
    assert_sound(&fixture.stop().await, "overdue").await;
}

#[tokio::test]
async fn r13_4_a_deadline_that_passed_while_the_gateway_was_down_counts() {
    let fixture = Fixture::new(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let sent = Outcome::Sent { within: Duration::from_millis(1) };
    let items = vec![item(&leased, BEGIN), item(&leased, sent)];
    fixture.store.delivery_settle(fixture.settling("lab", session, items)).await.unwrap();
    let fixture = fixture.crash().await.open().await.unwrap();
    fixture.until_state(delivery, "in_doubt").await;
    assert_eq!(fixture.row(delivery).await.reason, Some("held"), "as the configuration says");
}

#[tokio::test]
async fn r13_4_evidence_below_confirm_is_refused_and_changes_nothing() {
    let policy = QueuePolicy { confirm: Some(Level::Business), ..quick() };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let leaves = fixture.leaves().await;
    for level in [Level::Sent, Level::Transport] {
        let refused = fixture.settle("lab", session, &leased, Outcome::Delivered { level }).await;
        assert!(
            matches!(refused, Err(SettleError::Protocol { refusal: Refusal::EvidenceTooWeak { .. }, .. })),
            "{refused:?}"
        );
    }
    assert_eq!(fixture.leaves().await, leaves);
    let enough = Outcome::Delivered { level: Level::Business };
    assert_eq!(fixture.taken("lab", session, &leased, enough).await, "delivered");
}

#[tokio::test]
async fn r13_4_sent_is_delivered_where_sent_is_all_that_is_asked_for() {
    let policy = QueuePolicy { confirm: Some(Level::Sent), ..quick() };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    assert_eq!(fixture.taken("lab", session, &leased, SENT).await, "delivered");
    assert_eq!(fixture.taken("lab", session, &leased, SENT).await, "delivered", "repeated");
}

#[tokio::test]
async fn evidence_and_reason_are_kept_beside_the_log_and_committed_to_in_it() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let mut delivered = item(&leased, DELIVERED);
    delivered.evidence = Some(br#"{"ack":"AA canary"}"#.to_vec());
    delivered.reason = Some("a reason canary".into());
    fixture.store.delivery_settle(fixture.settling("lab", session, vec![delivered])).await.unwrap();
    let message = fixture.row(delivery).await.message;
    let history = fixture.store.read().message_detail(message).await.unwrap().unwrap().history;
    let last = history.last().unwrap();
    assert_eq!(last.evidence.as_deref(), Some(r#"{"ack":"AA canary"}"#));
    assert_eq!((last.reason.as_deref(), last.by.as_str()), (Some("a reason canary"), "adapter:lab"));
    let place = fixture.stop().await;
    for entry in crate::check::entries(&place).await {
        assert!(!String::from_utf8(entry).unwrap().contains("canary"), "content stands in a leaf");
    }
}
