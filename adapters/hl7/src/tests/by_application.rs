//! What the application behind the gateway answers: queries, and the second phase of enhanced mode.

use bytes::Bytes;
use gatepost_adapter::testing::Call;
use serde_json::json;

use super::receiving::{Intake, accept, msa};
use super::{adt, body_of, write};

const TWO_PHASES: &[u8] = b"MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5|||AL|AL\r";
const QUERY: &[u8] = b"MSH|^~\\&|A|B|C|D|||QBP^Q22|Q1|P|2.5\rQPD|x\r";

#[tokio::test]
async fn the_application_acknowledgement_follows_where_the_adapter_is_to_give_it() {
    let mut intake = Intake::new(json!({"application_ack": "on_commit"})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(TWO_PHASES)).await;
    intake.accepted().await;
    let accepted = body_of(&mut partner).await;
    let applied = body_of(&mut partner).await;
    assert_eq!((msa(&accepted), msa(&applied)), ("MSA|CA|M1", "MSA|AA|M1"));
    let id = |ack: &Bytes| ack.split(|byte| *byte == b'|').nth(9).unwrap().to_vec();
    assert_ne!(id(&accepted), id(&applied), "each acknowledgement is a message of its own");

    // By default the application gives it.
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(TWO_PHASES)).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|CA|M1");
    write(&mut partner, &adt("M2")).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M2");
}

/// Answers a call that waits for a reply.
pub(super) fn reply(call: Call, text: Option<&str>) {
    assert_eq!(call.headers["prefer"], "wait=20");
    let reply = text.map(|text| json!({"datacontenttype": "text/plain", "data": text}));
    let id = "00000000-0000-0000-0000-000000000001";
    let delivery = json!({"id": id, "destination": "ehr", "state": "delivered", "reply": reply});
    let message = json!({"id": id, "duplicate": true, "deliveries": [delivery]});
    call.answer(200, &json!({"messages": [message], "durability": "fsync"}));
}

#[tokio::test]
async fn a_query_is_stored_and_then_answered_by_the_application() {
    let mut intake = Intake::new(json!({"reply_from_app": ["QBP"]})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(QUERY)).await;
    let stored = intake.gateway.next("/v1/messages").await;
    assert!(!stored.headers.contains_key("prefer"), "it is stored without waiting");
    let key = stored.headers["idempotency-key"].clone();
    accept(stored);
    let asked = intake.gateway.next("/v1/messages").await;
    assert_eq!(asked.headers["idempotency-key"], key);
    let answer = "MSH|^~\\&|C|D|A|B|||RSP^K22|R1|P|2.5\rMSA|AA|Q1\rQAK|x|OK\r";
    reply(asked, Some(answer));
    assert_eq!(body_of(&mut partner).await, answer.as_bytes());
}

#[tokio::test]
async fn a_query_that_no_application_answers_well_gets_an_error_and_no_other_messages_answer() {
    let mut intake = Intake::new(json!({"reply_from_app": ["QBP"]})).await;
    let mut partner = intake.connect().await;
    let other = "MSH|^~\\&|C|D|A|B|||RSP^K22|R1|P|2.5\rMSA|AA|Q2\r";
    for answer in [None, Some("hello"), Some(other), Some("MSH|^~\\&|C|D|A|B|||RSP^K22|R1|P|2.5\r")] {
        write(&mut partner, &Bytes::from_static(QUERY)).await;
        intake.accepted().await;
        reply(intake.gateway.next("/v1/messages").await, answer);
        let refusal = body_of(&mut partner).await;
        assert!(msa(&refusal).starts_with("MSA|AE|Q1|the application gave no"), "{answer:?}");
    }
    // In enhanced mode the acceptance is acknowledged before the answer is waited for.
    let query = [QUERY.strip_suffix(b"\rQPD|x\r").unwrap(), b"|||AL|AL\rQPD|x\r"].concat();
    write(&mut partner, &query.into()).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|CA|Q1");
    reply(intake.gateway.next("/v1/messages").await, None);
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AE|Q1|"));
}
