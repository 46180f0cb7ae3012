//! Application acknowledgements that mean another message, come from somebody else, or in a batch; and what is kept until they come.

use bytes::Bytes;
use serde_json::{Value, json};

use super::enhanced::{PAUSE, Whole, delivered, sent};
use super::{ack, body_of, encoded, kept, leased, order, write};

#[tokio::test]
async fn an_answer_to_an_earlier_message_with_the_same_id_does_not_settle_the_one_in_flight() {
    let settings = json!({"application_ack_timeout_ms": 60_000, "ack_timeout_ms": 500});
    let mut whole = Whole::start(settings, json!({"confirm": "business"})).await;
    let (mut partner, _) = whole.sent_one("CLIA").await;
    whole.gateway.lease(&[leased(2, &order("CLIA"))]).await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("AA", "CLIA")).await;
    let (result, _) = whole.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t2"), &json!("in_doubt")));
}

#[tokio::test]
async fn an_accept_acknowledgement_that_comes_twice_leaves_room_for_the_applications() {
    let mut whole = Whole::business().await;
    whole.gateway.lease(&[leased(1, &order("M1"))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    let (mut one, mut other) = (whole.connect().await, whole.connect().await);
    write(&mut one, &ack("CA", "M1")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "sent")]);
    write(&mut other, &ack("CA", "M1")).await;
    write(&mut other, &ack("AA", "M1")).await;
    // The second one is no news, and kept as a message.
    whole.gateway.next("/v1/messages").await.answer_problem("no_route");
    tokio::time::sleep(PAUSE).await;
    call.settled("ok");
    let (result, _) = whole.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t1"), &json!("delivered")));
}

#[tokio::test]
async fn who_is_let_in_may_not_answer_for_the_partner_that_the_message_went_to() {
    let mut whole = Whole::business().await;
    let (_partner, key) = whole.sent_one("M1").await;
    let mut neighbour = whole.connect_from("127.0.0.2").await;
    write(&mut neighbour, &ack("AR", "M1")).await;
    // It is a message like any other.
    let call = whole.gateway.next("/v1/messages").await;
    assert_eq!(call.body["type"], "org.hl7.v2.ACK_A01");
    call.answer_problem("no_route");
    let mut own = whole.connect().await;
    write(&mut own, &ack("AA", "M1")).await;
    delivered(whole.settled().await, "t1", &key);
}

#[tokio::test]
async fn who_may_answer_for_it_can_be_configured() {
    let settings = json!({"application_ack_timeout_ms": 60_000, "answers_from": ["127.0.0.2"]});
    let mut whole = Whole::start(settings, json!({"confirm": "business"})).await;
    let (_partner, key) = whole.sent_one("M1").await;
    let mut own = whole.connect().await;
    write(&mut own, &ack("AR", "M1")).await;
    whole.gateway.next("/v1/messages").await.answer_problem("no_route");
    let mut listed = whole.connect_from("127.0.0.2").await;
    write(&mut listed, &ack("AA", "M1")).await;
    delivered(whole.settled().await, "t1", &key);
}

#[tokio::test]
async fn what_is_kept_does_not_grow_with_what_is_foreign() {
    let mut whole = Whole::business().await;
    let long = "M".repeat(100_000);
    whole.gateway.lease(&[leased(1, &order(&long))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("CA", &long)).await;
    let (key, value) = sent(whole.settled().await);
    assert!(key.len() + value.as_str().unwrap().len() < 1000, "{key}");
    write(&mut partner, &ack("AA", &long)).await;
    delivered(whole.settled().await, "t1", &key);
}

#[tokio::test]
async fn state_that_nobody_waits_for_is_deleted_many_keys_at_a_time() {
    let mut state: serde_json::Map<_, _> = (0..600).map(|number| kept(number, None, 1_000)).collect();
    state.extend((0..100).map(|number| (format!("await/x{number}"), encoded(b"unreadable"))));
    state.extend([kept(9999, None, 4_000_000_000), ("other".to_owned(), encoded(b"not ours"))]);
    let mut whole = Whole::start(json!({}), json!({"confirm": "business", "state": state})).await;
    let mut deleted = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let (result, state) = whole.settled().await;
        assert_eq!(result, Value::Null);
        let state = state.as_object().unwrap();
        assert!(state.len() <= 500 && state.values().all(Value::is_null));
        deleted.extend(state.keys().cloned());
    }
    assert_eq!(deleted.len(), 700);
    assert!(!deleted.contains("await/9999") && !deleted.contains("other"));
}

#[tokio::test]
async fn an_answer_in_a_batch_settles_only_once_the_batch_is_stored() {
    let mut whole = Whole::business().await;
    let (_partner, key) = whole.sent_one("M1").await;
    let text = |body: Bytes| String::from_utf8(body.to_vec()).unwrap();
    let new = "MSH|^~\\&|LAB|H|EHR|C|2026||ORU^R01|R1|P|2.5\rPID|1||42\r";
    let batch = format!("BHS|^~\\&|LAB|H|EHR|C|||||B1\r{}{new}BTS|2\r", text(ack("AA", "M1")));
    let mut other = whole.connect().await;
    write(&mut other, &Bytes::from(batch.clone())).await;
    whole.gateway.next("/v1/messages").await.answer_problem("queue_full");
    assert!(text(body_of(&mut other).await).contains("MSA|AE|R1|"));
    // It comes again whole, and nothing of it has been used up.
    write(&mut other, &Bytes::from(batch)).await;
    let call = whole.gateway.next("/v1/messages").await;
    assert_eq!(call.body.as_array().unwrap().len(), 1, "the answer is no message");
    super::batches::accept_all(call);
    delivered(whole.settled().await, "t1", &key);
    assert!(text(body_of(&mut other).await).contains("MSA|AA|R1\r"));
}
