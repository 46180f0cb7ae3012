//! MLLP release 2: whoever takes something says so by a byte, both ways.

use bytes::Bytes;
use serde_json::json;

use super::receiving::{Intake, accept, msa};
use super::sending::Partner;
use super::{ack, adt, body_of, is_closed, leased, write};
use crate::mllp::{COMMITTED, NOT_COMMITTED};

const SILENT: &[u8] = b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|M1|P|2.5|||NE|NE\r";

#[tokio::test]
async fn a_message_is_followed_by_the_partners_byte_and_its_answer_by_ours() {
    let mut partner = Partner::new(json!({"mllp_release": 2})).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    write(&mut channel, &Bytes::from_static(COMMITTED)).await;
    write(&mut channel, &ack("AA", "M1")).await;
    let call = partner.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "delivered")]);
    assert_eq!(channel.next_now().unwrap(), None, "before the gateway had it");
    call.settled("ok");
    assert_eq!(body_of(&mut channel).await, COMMITTED);
}

#[tokio::test]
async fn an_answer_that_the_gateway_does_not_take_gets_no_byte() {
    let mut partner = Partner::new(json!({"mllp_release": 2})).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    write(&mut channel, &ack("AA", "M1")).await;
    partner.gateway.next("/v1/settle").await.answer_problem("invalid_request");
    assert!(is_closed(&mut channel).await);
}

#[tokio::test]
async fn an_answer_that_asks_for_it_is_accepted_after_it_has_settled() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("Q1"))]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    let response = b"MSH|^~\\&|LAB|H|EHR|C|2026||RSP^K22|R1|P|2.5|||AL|NE\rMSA|AA|Q1\r";
    write(&mut channel, &Bytes::from_static(response)).await;
    let call = partner.gateway.next("/v1/settle").await;
    assert_eq!(channel.next_now().unwrap(), None, "before the gateway had it");
    call.settled("ok");
    assert_eq!(msa(&body_of(&mut channel).await), "MSA|CA|R1");
    // Twice: nobody waits for it any more, and the partner need not send it a third time.
    write(&mut channel, &Bytes::from_static(response)).await;
    assert_eq!(msa(&body_of(&mut channel).await), "MSA|CA|R1");
    partner.gateway.lease(&[leased(2, &adt("M2"))]).await;
    assert_eq!(body_of(&mut channel).await, adt("M2"), "the connection is kept");
}

#[tokio::test]
async fn the_byte_alone_delivers_a_message_that_asks_for_no_answer_and_its_opposite_brings_it_again() {
    let mut partner = Partner::new(json!({"mllp_release": 2})).await;
    partner.gateway.lease(&[leased(1, SILENT)]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    write(&mut channel, &Bytes::from_static(NOT_COMMITTED)).await;
    let result = partner.settled().await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("message")));
    partner.gateway.lease(&[leased(1, SILENT)]).await;
    body_of(&mut channel).await;
    write(&mut channel, &Bytes::from_static(COMMITTED)).await;
    let result = partner.settled().await;
    assert_eq!(result["outcome"], "delivered");
    assert_eq!(result["evidence"], json!({"level": "transport", "commit": "0x06"}));
}

#[tokio::test]
async fn what_came_is_followed_by_our_byte_after_the_commit_and_before_the_answer() {
    let mut intake = Intake::new(json!({"mllp_release": 2})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &adt("M1")).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert_eq!(partner.next_now().unwrap(), None, "before the gateway had answered");
    accept(call);
    assert_eq!(body_of(&mut partner).await, COMMITTED);
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
    write(&mut partner, &Bytes::from_static(COMMITTED)).await;
    write(&mut partner, &Bytes::from_static(SILENT)).await;
    intake.gateway.next("/v1/messages").await.answer_problem("queue_full");
    assert_eq!(body_of(&mut partner).await, NOT_COMMITTED);
}

#[tokio::test]
async fn such_a_byte_is_never_a_message() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    for byte in [COMMITTED, NOT_COMMITTED] {
        write(&mut partner, &Bytes::from_static(byte)).await;
    }
    write(&mut partner, &adt("M1")).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
}
