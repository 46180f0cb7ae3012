//! Batches that come in: stored whole or not at all, and how they are acknowledged.

use bytes::Bytes;
use gatepost_adapter::testing::Call;
use serde_json::{Value, json};

use super::receiving::{Intake, msa};
use super::{ack, adt, body_of, is_closed, write};

const BATCH: &str = "BHS|^~\\&|A|B|C|D|||||B7\rMSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5\rPID|1||42\r\
    MSH|^~\\&|A|B|C|D|||ADT^A08|M2|P|2.5|||AL|NE\rPID|1||43\rBTS|2\r";

#[tokio::test]
async fn a_batch_is_stored_in_one_step_and_each_message_acknowledged() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(BATCH.as_bytes())).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert_eq!(call.headers["content-type"], "application/cloudevents-batch+json");
    let events = call.body.as_array().unwrap();
    let told: Vec<_> = events
        .iter()
        .map(|event| (&event["subject"], &event["partitionkey"], &event["hl7batch"], &event["hl7batchindex"]))
        .collect();
    assert_eq!(
        told,
        [
            (&json!("M1"), &json!("42"), &json!("B7"), &json!(1)),
            (&json!("M2"), &json!("43"), &json!("B7"), &json!(2))
        ]
    );
    assert_eq!(partner.next_now().unwrap(), None, "before the gateway had answered");
    accept_all(call);
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|CA|M2");
}

pub(super) fn accept_all(call: Call) {
    let accepted = |event: &Value| json!({"id": uuid::Uuid::nil(), "duplicate": false, "deliveries": [], "of": event["id"]});
    let mut messages: Vec<Value> = call.body.as_array().unwrap().iter().map(accepted).collect();
    messages.iter_mut().for_each(|message| drop(message.as_object_mut().unwrap().remove("of")));
    call.answer(202, &json!({"messages": messages, "durability": "fsync"}));
}

#[tokio::test]
async fn a_batch_may_be_acknowledged_as_one() {
    let mut intake = Intake::new(json!({"batch_ack": "batch"})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(BATCH.as_bytes())).await;
    accept_all(intake.gateway.next("/v1/messages").await);
    let answer = body_of(&mut partner).await;
    let batch = crate::batch::split(&answer, 10).unwrap();
    assert_eq!(batch.messages.len(), 2);
    assert_eq!(batch.head.parties, [&b"C"[..], b"D", b"A", b"B"].map(<[u8]>::to_vec));
    let text = std::str::from_utf8(&answer).unwrap();
    assert_eq!(text.split('\r').next().unwrap().split('|').nth(11), Some("B7"), "BHS-12 names the batch");
    assert!(text.contains("\rMSA|AA|M1\r") && text.contains("\rMSA|CA|M2\r") && text.ends_with("\rBTS|2\r"));
}

#[tokio::test]
async fn a_batch_that_counts_otherwise_is_refused_as_a_whole_by_its_messages_ids() {
    let wrong = BATCH.replace("BTS|2", "BTS|3");
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from(wrong.clone())).await;
    let reason = "BTS-1 counts 3, and there are 2";
    assert_eq!(msa(&body_of(&mut partner).await), format!("MSA|AR|M1|{reason}"));
    assert_eq!(msa(&body_of(&mut partner).await), format!("MSA|CR|M2|{reason}"));
    // A message in it that cannot be read refuses the others too.
    let unreadable = BATCH.replace("|M2|", "||");
    write(&mut partner, &Bytes::from(unreadable)).await;
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AR|M1|MSH-10"));
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|CR||MSH-10"));
    // Nothing of all this was stored; the connection goes on.
    write(&mut partner, &adt("M9")).await;
    assert_eq!(intake.gateway.next("/v1/messages").await.body["subject"], "M9");

    let mut intake = Intake::new(json!({"batch_ack": "batch"})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from(wrong)).await;
    let answer = body_of(&mut partner).await;
    let text = std::str::from_utf8(&answer).unwrap();
    assert!(text.starts_with("BHS|^~\\&|C|D|A|B|") && text.contains(&format!("|{reason}|")), "{text}");
    assert!(text.contains("MSA|AR|M1|") && text.contains("MSA|CR|M2|"));
    write(&mut partner, &adt("M9")).await;
    assert_eq!(intake.gateway.next("/v1/messages").await.body["subject"], "M9");
}

#[tokio::test]
async fn a_message_hidden_by_other_line_ends_refuses_the_batch_and_is_refused_by_its_id_too() {
    let (head, rest) = BATCH.split_once('\r').unwrap();
    let mixed = format!("{head}\r{}", rest.replace('\r', "\n"));
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from(mixed)).await;
    let reason = "a MSH segment follows an LF, and the segments of this batch end in CR";
    assert_eq!(msa(&body_of(&mut partner).await), format!("MSA|AR|M1|{reason}"));
    assert_eq!(msa(&body_of(&mut partner).await), format!("MSA|CR|M2|{reason}"));
    write(&mut partner, &adt("M9")).await;
    assert_eq!(intake.gateway.next("/v1/messages").await.body["subject"], "M9");
}

#[tokio::test]
async fn a_batch_that_cannot_be_stored_now_is_asked_for_again() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(BATCH.as_bytes())).await;
    intake.gateway.next("/v1/messages").await.answer_problem("queue_full");
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AE|M1|"));
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|CE|M2|"));
}

#[tokio::test]
async fn a_batch_of_acknowledgements_is_not_acknowledged() {
    let bhs = "BHS|^~\\&|C|D|A|B|2026||||B8";
    let answers = String::from_utf8(ack("AA", "X1").to_vec()).unwrap();
    for batch in [
        format!("{bhs}\r{answers}BTS|1\r"),
        format!("{bhs}|B7\r{answers}BTS|1\r"),
        format!("{bhs}|B7\rBTS|0\r"),
        // Refusing it would be an answer, too.
        format!("{bhs}|B7\r{answers}BTS|2\r"),
    ] {
        let mut intake = Intake::new(json!({"batch_ack": "batch"})).await;
        let mut partner = intake.connect().await;
        write(&mut partner, &Bytes::from(batch.clone())).await;
        if batch.contains("BTS|1") {
            accept_all(intake.gateway.next("/v1/messages").await);
        }
        write(&mut partner, &adt("M1")).await;
        intake.accepted().await;
        assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1", "it was answered: {batch:?}");
    }
}

#[tokio::test]
async fn a_batch_whose_head_cannot_be_read_is_no_hl7() {
    for (set, told) in [("answer", true), ("silence", false)] {
        let intake = Intake::new(json!({"on_unreadable": set})).await;
        let mut stranger = intake.connect().await;
        write(&mut stranger, &Bytes::from_static(b"BHS|\rMSH|x\r")).await;
        if told {
            assert!(msa(&body_of(&mut stranger).await).starts_with("MSA|AR||"));
        }
        assert!(is_closed(&mut stranger).await, "{set}");
    }
}
