//! What partners answer: the answer that ended a delivery is kept, whichever way it ended.

use gatepost_core::{DeliveryId, Outcome, QueuePolicy, RetryPolicy};
use gatepost_store::{Leased, Verb};
use serde_json::{Value, json};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{BEGIN, DELIVERED, Fixture, RETRY, item, queue, quick};

/// `lab` tries three times, `once` once.
async fn fixture() -> Fixture {
    let once = QueuePolicy { retry: RetryPolicy { attempts: 1, ..quick().retry }, ..quick() };
    Fixture::new(vec![queue("lab", quick()), queue("once", once)]).await
}

/// Settles what must be taken, with what the partner said; the state it leads to.
async fn answered(
    fixture: &Fixture,
    (name, session): (&str, u64),
    leased: &Leased,
    outcome: Outcome,
    body: Option<&str>,
) -> &'static str {
    let mut settled = item(leased, outcome);
    settled.reply = body.map(|body| json!({ "data": body }).to_string().into_bytes());
    let answer = fixture.store.delivery_settle(fixture.settling(name, session, vec![settled])).await.unwrap();
    assert!(answer.items[0].ok, "{answer:?}");
    answer.items[0].state
}

async fn reply(fixture: &Fixture, delivery: DeliveryId) -> Option<String> {
    let message = fixture.row(delivery).await.message;
    let detail = fixture.store.read().message_detail(message).await.unwrap().unwrap();
    let waited = fixture.store.read().deliveries_of(message).await.unwrap();
    assert_eq!(detail.deliveries[0].1, waited[0].1, "who waits sees what who looks later does");
    let reply: Value = serde_json::from_str(waited[0].1.as_ref()?).unwrap();
    reply["data"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn the_answer_that_ends_a_delivery_is_kept_whichever_way() {
    let fixture = fixture().await;
    let mut kept = Vec::new();
    for (name, outcome, state) in [
        ("lab", DELIVERED, "delivered"),
        ("lab", Outcome::Reject, "dead"),
        // The last attempt that there is.
        ("once", RETRY, "dead"),
        ("lab", RETRY, "waiting"),
        ("lab", Outcome::InDoubt, "in_doubt"),
    ] {
        let session = fixture.session(name).await;
        let delivery = fixture.send(&format!("{name} {outcome:?}"), None, name).await;
        let leased = fixture.lease_one(name, session).await;
        let end = answered(&fixture, (name, session), &leased, outcome, Some(state)).await;
        assert_eq!(end, state, "{name} {outcome:?}");
        let said = matches!(state, "delivered" | "dead").then(|| state.to_owned());
        assert_eq!(reply(&fixture, delivery).await, said, "{name} {outcome:?}");
        if said.is_none() {
            // Out of the way of those behind.
            let again = fixture.lease_in_time(name, session, 1).await.remove(0);
            answered(&fixture, (name, session), &again, Outcome::Reject, None).await;
            assert_eq!(reply(&fixture, delivery).await, None, "what did not end it");
        } else {
            kept.push((delivery, said));
        }
    }
    let fixture = fixture.restart().await;
    for (delivery, said) in kept {
        assert_eq!(reply(&fixture, delivery).await, said);
    }
    let place = fixture.stop().await;
    assert_sound(&place, "replies").await;
    assert_log(&place, "replies").await;
}

#[tokio::test]
async fn a_discarded_refusal_keeps_its_answer_and_a_replayed_one_has_none_until_its_next_end() {
    let fixture = fixture().await;
    let lab = ("lab", fixture.session("lab").await);
    let refused = async |id: &str| {
        let delivery = fixture.send(id, None, "lab").await;
        let leased = fixture.lease_one("lab", lab.1).await;
        answered(&fixture, lab, &leased, Outcome::Reject, Some("AE")).await;
        delivery
    };
    let discarded = refused("discarded").await;
    fixture.operate(discarded, Verb::Discard).await.unwrap();
    assert_eq!(reply(&fixture, discarded).await.as_deref(), Some("AE"));
    for (end, body) in [(DELIVERED, None), (DELIVERED, Some("AA")), (Outcome::Reject, Some("AR"))] {
        let delivery = refused(&format!("{end:?} {body:?}")).await;
        fixture.operate(delivery, Verb::Replay).await.unwrap();
        assert_eq!(reply(&fixture, delivery).await, None, "that answer was to the earlier attempt");
        let leased = fixture.lease_one("lab", lab.1).await;
        answered(&fixture, lab, &leased, end, body).await;
        assert_eq!(reply(&fixture, delivery).await.as_deref(), body);
    }
}

#[tokio::test]
async fn an_answer_and_a_replay_in_one_commit_leave_no_answer() {
    let fixture = fixture().await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    for _ in 0..20 {
        let leased = fixture.lease_one("lab", session).await;
        // Together as a rule; refused where the replay comes first.
        let (_, replayed) = tokio::join!(
            answered(&fixture, ("lab", session), &leased, Outcome::Reject, Some("AE")),
            fixture.operate(delivery, Verb::Replay)
        );
        if replayed.is_err() {
            assert_eq!(reply(&fixture, delivery).await.as_deref(), Some("AE"));
            fixture.operate(delivery, Verb::Replay).await.unwrap();
        }
        assert_eq!(reply(&fixture, delivery).await, None);
    }
}

/// The begin of one that has expired meanwhile is refused, and is nobody's answer.
#[tokio::test]
async fn what_was_never_sent_has_no_answer() {
    use gatepost_core::policy::OnDoubt;
    let hold = QueuePolicy { on_doubt: OnDoubt::Hold, ..quick() };
    let fixture = Fixture::new(vec![queue("lab", hold)]).await;
    let session = fixture.session("lab").await;
    let (leased, expiry) = crate::fixture::in_time("it is leased before its expiry", async |span| {
        let mut message = crate::fixture::message(&format!("{span:?}"), None, "x", &["lab"]);
        let expiry = fixture.store.read().now() + span;
        message.expires_at = Some(expiry);
        fixture.accept(vec![message]).await.unwrap();
        Some((fixture.lease("lab", session, 1).await.pop()?, expiry))
    })
    .await;
    crate::fixture::until("it is past its expiry", async || fixture.store.read().now() > expiry).await;
    let mut begin = item(&leased, BEGIN);
    begin.reply = Some(br#"{"data":"no"}"#.to_vec());
    let answer = fixture.store.delivery_settle(fixture.settling("lab", session, vec![begin])).await.unwrap();
    assert_eq!((answer.items[0].ok, answer.items[0].state), (false, "expired"));
    assert_eq!(reply(&fixture, leased.delivery).await, None);
}
